"""What needs somebody, and who sees to it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from etl.api.problems import Problem, describe
from etl.api.routes.asking import Operator, Served, Viewer
from etl.api.routes.control import author, end_of
from etl.api.routes.shapes import View
from etl.api.services import Services
from etl.models import document
from etl.models.control import Acknowledge
from etl.status import summary as told
from etl.status.summary import KINDS, summarise

router = APIRouter(tags=["state"], responses=describe(401, 403, 422, 429))

Name = Annotated[str, Query(min_length=1, max_length=1024)]


class Acknowledged(BaseModel):
    """Somebody sees to it, until `until`, or until it begins anew or grows."""

    author: str
    at: str
    reason: str
    until: str | None


class WantedAcknowledgement(BaseModel):
    """What somebody sees to: kind and name of a need, as the summary tells them."""

    model_config = ConfigDict(extra="forbid")

    kind: str = Field(max_length=100)
    name: str = Field(min_length=1, max_length=1024)
    reason: str = Field(min_length=1, max_length=500, pattern=r"\S")
    until: datetime | None = Field(None, description="with its time zone; missing: 30 days at most")


class Need(BaseModel):
    """Something that needs somebody, or that one should know."""

    kind: str = Field(description=", ".join(KINDS))
    name: str = Field(description="what it is acknowledged by")
    subject: str = Field(description="what it is about: a server, a process, a code")
    since: str | None
    jobs: int = Field(description="jobs that are touched by it")
    detail: str = Field(description="text of a server or a person: to be shown as such")
    is_urgent: bool = Field(description="false: one should merely know, or somebody sees to it")
    known: Acknowledged | None = Field(description="who sees to it")


class Backlog(BaseModel):
    """The backlog of one topic and group."""

    topic: str
    group: str
    processes: int
    unfinished: int
    oldest_at: str | None
    parked: int = Field(description="jobs that wait in T-retry")
    next_due_at: str | None
    jobs_per_second: float
    clear_seconds: float | None = Field(description="at this rate; null: nothing is done at the moment")


class Summary(View):
    """Is all well?"""

    is_well: bool
    urgent: int = Field(description="how many of the needs are urgent")
    known: int = Field(description="how many would be, if nobody saw to them")
    needs: list[Need]
    topics: list[Backlog]


@router.get("/summary")
def summary(services: Served, _who: Viewer) -> Summary:
    """Tell whether all is well, and what needs somebody, the worst first: the same as `etl status`."""
    found = look(services)
    topics = [
        Backlog(
            topic=one.topic,
            group=one.group,
            processes=one.processes,
            unfinished=one.unfinished,
            oldest_at=None if one.oldest_at is None else document.iso(one.oldest_at),
            parked=one.parked,
            next_due_at=None if one.next_due_at is None else document.iso(one.next_due_at),
            jobs_per_second=one.jobs_per_second,
            clear_seconds=one.clear_seconds,
        )
        for one in found.topics
    ]
    return Summary(
        is_well=found.is_well,
        urgent=found.urgent,
        known=found.known,
        needs=[_tell(need) for need in found.needs],
        topics=topics,
        **services.envelope(),
    )


@router.post("/needs/acknowledgements", status_code=201, responses=describe(404, 409, 503))
def acknowledge(wanted: WantedAcknowledgement, request: Request, services: Served, who: Operator) -> Need:
    """Say that you see to something that needs somebody: for all others it is known then, and not urgent."""
    request.state.audit |= {
        "action": "acknowledge", "target": f"{wanted.kind}/{wanted.name}", "reason": wanted.reason,
    }  # fmt: skip
    now = datetime.now(UTC)
    until = end_of(wanted.until, now)
    services.require_broker()
    need = next((one for one in look(services).needs if (one.kind, one.name) == (wanted.kind, wanted.name)), None)
    if need is None:
        raise Problem("not-found", "nothing of that name needs anybody now")
    if need.kind == "on-hold":
        raise Problem("conflict", "a hold needs nobody: release it")
    order = Acknowledge(
        author=author(who.name), at=now, reason=wanted.reason, need=need.kind, name=need.name,
        jobs=need.jobs, since=need.since, until=until,
    )  # fmt: skip
    services.orders.acknowledge(order)
    return _tell(next((one for one in look(services).needs if (one.kind, one.name) == (need.kind, need.name)), need))


@router.delete("/needs/acknowledgements", status_code=204, responses=describe(404, 503))
def take_back(kind: Name, name: Name, request: Request, services: Served, _who: Operator) -> None:
    """Take it back: it needs somebody again."""
    request.state.audit |= {"action": "unacknowledge", "target": f"{kind}/{name}"}
    services.require_broker()
    order = next((one for one in services.orders.known() if (one.need, one.name) == (kind, name)), None)
    if order is None:
        raise Problem("not-found", "nobody has said to see to that")
    services.orders.take_back(order.key)


def look(services: Services) -> told.Summary:
    """Return the summary as of now."""
    _, newest = services.search.letter_times()
    return summarise(
        services.live.fleet(),
        datetime.now(UTC),
        services.orders.holds(),
        services.search.waiting_letters(),
        known=services.orders.known(),
        newest_letter=None if newest is None else document.moment(newest),
    )


def _tell(need: told.Need) -> Need:
    known = need.known
    return Need(
        kind=need.kind,
        name=need.name,
        subject=need.subject,
        since=None if need.since is None else document.iso(need.since),
        jobs=need.jobs,
        detail=need.detail,
        is_urgent=need.is_urgent,
        known=known
        and Acknowledged(
            author=known.author,
            at=document.iso(known.at),
            reason=known.reason,
            until=None if known.until is None else document.iso(known.until),
        ),
    )
