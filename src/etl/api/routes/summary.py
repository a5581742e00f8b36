"""The whole installation in a few lines, as the page begins: what needs somebody, the backlog in time, holds."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter
from pydantic import BaseModel, Field

from etl.api.problems import describe
from etl.api.routes.asking import Served, Viewer
from etl.api.routes.control import HoldTold, tell_hold
from etl.api.routes.shapes import View
from etl.api.services import Services
from etl.models import document
from etl.status import summary

router = APIRouter(tags=["state"], responses=describe(401, 403, 429))


class Need(BaseModel):
    """Something that needs somebody, or that one should know."""

    kind: str = Field(description=", ".join(summary.KINDS))
    subject: str = Field(description="what it is about: a server, a process, a topic, counts of codes")
    since: str | None
    jobs: int = Field(description="jobs, or dead letters, that are touched by it")
    detail: str
    urgent: bool = Field(description="false: one should merely know it")


class Backlog(BaseModel):
    """What is left to do of one topic for one group."""

    topic: str
    group: str
    processes: int
    unfinished: int
    oldest_at: str | None = Field(description="when the oldest unfinished job was submitted")
    deferred: int
    next_due_at: str | None = Field(description="when the next deferred job is due")
    jobs_per_second: float
    clear_seconds: float | None = Field(description="at the present rate; null: nothing is done at the moment")


class Summary(View):
    """What needs somebody, the worst first; the backlog; the holds in force."""

    well: bool
    needs: list[Need]
    more_needs: int
    topics: list[Backlog]
    holds: list[HoldTold]


@router.get("/summary")
def show_summary(services: Served, _who: Viewer) -> Summary:
    """Tell what needs somebody, the worst first, and the backlog in time."""
    return collect(services)


def collect(services: Services) -> Summary:
    """Return the summary as of now."""
    holds = services.orders.holds()
    found = summary.summarise(services.live.heard(), datetime.now(UTC), holds, services.search.waiting_letters())
    return Summary(
        well=found.is_well,
        needs=[
            Need(
                kind=need.kind,
                subject=need.subject,
                since=_iso(need.since),
                jobs=need.jobs,
                detail=need.detail,
                urgent=need.is_urgent,
            )
            for need in found.needs[: summary.NEEDS]
        ],
        more_needs=max(0, len(found.needs) - summary.NEEDS),
        topics=[
            Backlog(
                topic=one.topic,
                group=one.group,
                processes=one.processes,
                unfinished=one.unfinished,
                oldest_at=_iso(one.oldest_at),
                deferred=one.parked,
                next_due_at=_iso(one.next_due_at),
                jobs_per_second=round(one.jobs_per_second, 2),
                clear_seconds=None if one.clear_seconds is None else round(one.clear_seconds, 1),
            )
            for one in found.topics
        ],
        holds=[tell_hold(hold) for hold in holds],
        **services.envelope(),
    )


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else document.iso(moment)
