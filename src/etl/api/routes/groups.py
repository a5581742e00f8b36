"""Messages of several jobs: how far all of their jobs are together."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from etl.api.problems import Problem, describe
from etl.api.routes.asking import Served, Viewer, when
from etl.api.routes.jobs import Number, Offset, Topic
from etl.api.routes.shapes import View

router = APIRouter(prefix="/groups", tags=["jobs"], responses=describe(401, 403, 422, 429))


class Group(View):
    """How far the jobs of one message are. `GET /jobs?group_id=` lists them."""

    place: str = Field(description="of the message, TOPIC/PARTITION/OFFSET")
    job_id: str = Field(description="its jobs are called after it")
    at: str = Field(description="when it was submitted")
    files: int = Field(description="jobs in it")
    unknown: int = Field(description="jobs of which there is no word yet: the message waits to be split")
    states: dict[str, int] = Field(description="jobs by state: waiting, running, done, failed, discarded")
    bytes: int = Field(description="that were copied")
    finished_at: str | None = Field(description="when the last job was finished; null: not all of them are")


@router.get("/{topic}/{partition}/{offset}", responses=describe(404))
def show_group(topic: Topic, partition: Number, offset: Offset, services: Served, _who: Viewer) -> Group:
    """Tell how far the jobs of a message of version 2.0 are."""
    row = services.search.group(topic, partition, offset)
    if row is None:
        raise Problem("not-found", "no such message of several jobs is in the cache")
    place = f"{topic}/{partition}/{offset}"
    rows = services.search.states_of_group(place)
    states = {one["state"]: one["n"] for one in rows}
    running = services.search.running_of_group(place, services.live.running())
    if running:
        states["running"] = running
        states["waiting"] = max(0, states.get("waiting", 0) - running)
    known = sum(states.values())
    is_over = known >= row["files"] and not states.keys() & {"queued", "waiting", "running"}
    return Group(
        place=place,
        job_id=row["job_id"],
        at=when(row["at"]) or "",
        files=row["files"],
        unknown=max(0, row["files"] - known),
        states={state: count for state, count in states.items() if count},
        bytes=sum(one["bytes"] for one in rows),
        finished_at=when(max((one["last"] for one in rows if one["last"]), default=None)) if is_over else None,
        **services.envelope(),
    )
