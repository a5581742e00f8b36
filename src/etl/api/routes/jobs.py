"""Jobs: find them, and one job's whole story."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from etl import broker
from etl.api.paging import Page
from etl.api.problems import Problem, describe
from etl.api.routes import showing
from etl.api.routes.asking import DEFAULT_LIMIT, Cursor, Limit, Served, Text, Viewer, When, Words, moment, when
from etl.api.routes.shapes import Event, Job, Letter
from etl.api.services import Services
from etl.api.views.search import Where
from etl.errors import BrokerUnavailable, InvalidMessage
from etl.models import document
from etl.models.task import Record

router = APIRouter(prefix="/jobs", tags=["jobs"], responses=describe(401, 403, 422, 429))

State = Literal["queued", "waiting", "running", "done", "failed", "discarded"]
OFFSETS = 2**63 - 1
Topic = Annotated[str, Path(max_length=249)]
Number = Annotated[int, Path(ge=0, le=2**31 - 1)]
Offset = Annotated[int, Path(ge=0, le=OFFSETS)]


class Story(BaseModel):
    """A job with all that is known of it."""

    job: Job
    message: dict[str, Any] | None = Field(description="the job as it was sent; null: it is gone, or Kafka is away")
    result: dict[str, Any] | None
    events: list[Event]
    letters: list[Letter]
    namesakes: list[Job] = Field(description="other jobs with this id, such as its replays")


@router.get("", responses=describe(400))
def find_jobs(
    services: Served,
    _who: Viewer,
    job_id: Words = [],  # noqa: B006 - FastAPI copies it
    state: Annotated[list[State], Query()] = [],  # noqa: B006
    code: Words = [],  # noqa: B006
    server: Words = [],  # noqa: B006
    path: Text = None,
    since: When = None,
    until: When = None,
    group_id: Text = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[Job]:
    """Find jobs, newest first. `path` is a pattern (`/in/*.tif`) of either end; `server` is either end's."""
    query = {
        "job_id": job_id,
        "state": state,
        "code": code,
        "server": server,
        "path": path,
        "since": since,
        "until": until,
        "group_id": group_id,
    }
    running = services.live.running()
    where = Where()
    where.one_of("job_id", job_id)
    where.one_of("code", [word.upper() for word in code])
    _add_state(where, state, running)
    if group_id is not None:
        where.add("group_id = ?", group_id)
    if (first := moment("since", since)) is not None:
        where.add("at >= ?", first)
    if (last := moment("until", until)) is not None:
        where.add("at < ?", last)
    where.ends(server, path)
    after = services.cursors.read({"jobs": query}, cursor) if cursor else None
    found = services.search.jobs(where, limit, after)
    return Page[Job](
        items=[showing.show_job(row, running) for row in found.rows],
        next=services.cursors.write({"jobs": query}, found.after) if found.after else None,
        searched_until=when(found.searched_until),
        complete=found.complete,
        **services.envelope(),
    )


def _add_state(where: Where, states: list[State], running: dict[str, dict[str, Any]]) -> None:
    """Add the condition of a state. Whether a job is running is known from its process alone."""
    if not states:
        return
    kept: list[str] = [state for state in states if state != "running"]
    parts: list[str] = []
    values: list[str] = []
    if kept:
        parts.append(f"state IN ({', '.join('?' * len(kept))})")
        values += kept
    if "running" in states:
        places = [place for place in running if place.count("-") >= 2]
        parts.append(
            f"(topic || '-' || partition || '-' || offset IN ({', '.join('?' * len(places))})"
            " AND state IN ('queued', 'waiting'))"
        )
        values += places
    where.add(f"({' OR '.join(parts)})", *values)
    if "running" not in states:
        taken = set(running)
        inner = where.test
        where.test = lambda row: (
            (
                f"{row['topic']}-{row['partition']}-{row['offset']}" not in taken
                or row["state"] not in ("queued", "waiting")
            )
            and (inner is None or inner(row))
        )


@router.get("/{topic}/{partition}/{offset}", responses=describe(404))
def show_job(topic: Topic, partition: Number, offset: Offset, services: Served, _who: Viewer) -> Story:
    """Show a job with its message, its result and its story."""
    row = services.search.job(topic, partition, offset)
    if row is None:
        raise Problem("not-found", "no such job is in the cache: it may be older than what is kept")
    origin = f"{topic}-{partition}-{offset}"
    letters = services.search.letters_of(origin, None)
    namesakes = services.search.namesakes(row["job_id"]) if row["job_id"] else []
    running = services.live.running()
    return Story(
        job=showing.show_job(row, running),
        message=_message(services, topic, partition, offset),
        result=json.loads(row["result"]) if row["result"] else None,
        events=showing.tell(row, letters, namesakes, _acts(services, f"{topic}/{partition}/{offset}"), services.topics),
        letters=[showing.show_letter(letter) for letter in letters],
        namesakes=[
            showing.show_job(other, running)
            for other in namesakes
            if (other["topic"], other["partition"], other["offset"]) != (topic, partition, offset)
        ],
    )


@router.get("/{topic}/{partition}/{offset}/events", responses=describe(404))
def tell_job(topic: Topic, partition: Number, offset: Offset, services: Served, who: Viewer) -> list[Event]:
    """Tell the story of a job: what happened to it, and when."""
    return show_job(topic, partition, offset, services, who).events


def _message(services: Services, topic: str, partition: int, offset: int) -> dict[str, Any] | None:
    """Return the message of a job, read from its topic; None if it cannot be had."""
    if topic != services.topics.source or services.stale:
        return None
    record = _read(services, topic, partition, offset)
    try:
        return None if record is None else document.parse(record.value)
    except InvalidMessage:
        return {"raw": (record.value or b"").decode("utf-8", "replace")} if record else None


def _read(services: Services, topic: str, partition: int, offset: int) -> Record | None:
    try:
        with broker.Reader(services.config.settings.bootstrap_servers, topic) as reader:
            return reader.one(partition, offset)
    except BrokerUnavailable:
        return None


def _acts(services: Services, place: str) -> list[dict[str, Any]]:
    where = Where()
    where.add("target = ?", place)
    return [json.loads(row["value"]) for row in services.search.audit(where, 100).rows]
