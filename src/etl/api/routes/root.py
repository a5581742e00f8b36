"""The paths beside /api/v1: is it alive, is it ready, is all well; the login link; the description; the page."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from pydantic import BaseModel, Field

from etl.api.problems import describe
from etl.api.routes import pool
from etl.api.routes.asking import Served, Viewer, When, moment, when
from etl.api.routes.session import enter
from etl.api.routes.shapes import Open, View
from etl.api.services import Services
from etl.models import document
from etl.status import metrics
from etl.status.metrics import DeadLetters

router = APIRouter(tags=["state"], responses=describe(400, 429))
# The paths of the first version of this product.
old = APIRouter(tags=["state"], responses=describe(401, 403, 422, 429))
stats_router = APIRouter(tags=["state"], responses=describe(401, 403, 422, 429))

PAGE = "/ui/"
STEPS = 96  # columns of a time line at most
COLUMN_SECONDS = 900.0  # of the page's time line: a day


class Check(BaseModel):
    """One check of health."""

    name: str
    status: str
    detail: str | None = None


class Health(BaseModel):
    """Is all well? The checks are shown to those who logged in."""

    status: str = Field(description="pass, warn or fail")
    checks: list[Check] | None = None


class State(BaseModel):
    """Is it so?"""

    status: str = Field(description="pass or fail")


class Column(BaseModel):
    """What was finished in one column of a time line."""

    at: str
    done: int = 0
    failed: int = 0
    bytes: int = 0


class Outage(BaseModel):
    """A server was down, as processes found it."""

    server: str
    began_at: str
    ended_at: str = Field(description="when it was last told to be down")


class Stats(View):
    """What was done in a window of time, and what is left to do."""

    since: str
    jobs: dict[str, int] = Field(description="finished jobs, by state")
    bytes: int
    failures: dict[str, int] = Field(description="failed jobs, by code")
    dead_letters: dict[str, int] = Field(description="dead letters that wait, by code")
    oldest_dead_letter_at: str | None
    unfinished: dict[str, int] = Field(description="jobs that are queued or set aside")
    oldest_job_at: str | None = Field(description="when the oldest unfinished job was submitted")
    running: int
    processes: dict[str, int] = Field(description="processes, by state")
    servers: dict[str, int] = Field(description="servers, by breaker")
    pool: dict[str, float] = Field(description="lanes, busy lanes, jobs in windows, set aside, behind")
    timeline: list[Column]
    outages: list[Outage] = Field(description="of servers, in that time, the newest first")


@router.get("/live")
def live() -> State:
    """Answer if the process works. Kafka is not asked: its absence is no reason to restart the API."""
    return State(status="pass")


@router.get(
    "/ready", responses={503: {"description": "Not yet, or not any more", "model": State}}, response_model=State
)
def ready(services: Served) -> Response:
    """Answer 200 once the views are built and while Kafka answers, else 503."""
    is_ready = services.ready
    return JSONResponse({"status": "pass" if is_ready else "fail"}, 200 if is_ready else 503)


@router.get("/health", responses={503: {"description": "It is not well", "model": Health}})
def health(request: Request, services: Served) -> Response:
    """Tell whether all is well: pass, warn or fail. The reasons are for those who logged in."""
    checks = _checks(services)
    worst = (
        "fail"
        if any(c.status == "fail" for c in checks)
        else "warn"
        if any(c.status == "warn" for c in checks)
        else "pass"
    )
    shown = checks if request.state.identity.via != "none" else None
    content = Health(status=worst, checks=shown).model_dump(exclude_none=True)
    return JSONResponse(content, 503 if worst == "fail" else 200)


def _checks(services: Services) -> list[Check]:
    built = services.status.caught_up and services.history.caught_up
    behind = services.status.behind() + services.history.behind()
    states = [process["state"] for process in services.live.processes() if process.get("kind") == "consumer"]
    speaking = [state for state in states if state not in ("silent", "stopped")]
    trouble = [server["name"] for server in services.live.servers() if server["breaker"] != "closed"]
    silent = states.count("silent")
    return [
        Check(name="broker", status="fail" if services.stale else "pass"),
        Check(name="views", status="pass" if built else "warn", detail=None if built else f"{behind} records to read"),
        Check(
            name="consumers", status="pass" if speaking else "warn", detail=f"{len(speaking)} speak, {silent} silent"
        ),
        Check(name="servers", status="warn" if trouble else "pass", detail=", ".join(trouble[:10]) or None),
    ]


@stats_router.get("/stats")
def stats(services: Served, _who: Viewer, window: When = "24h") -> Stats:
    """Tell what was done within a window, such as 1h or 24h, and what is left to do."""
    return collect(services, window)


def collect(services: Services, window: str | None) -> Stats:
    """Return what was done within a window, and what is left to do; None: the page's, which moves by a column."""
    now = time.time()
    if window is None:
        now = COLUMN_SECONDS * math.ceil(now / COLUMN_SECONDS)
        since = now - STEPS * COLUMN_SECONDS
    else:
        since = moment("window", window) or now
    rows = services.search.finished(since)
    by_state: dict[str, int] = {}
    failures: dict[str, int] = {}
    for row in rows:
        by_state[row["state"]] = by_state.get(row["state"], 0) + row["n"]
        if row["code"] and row["state"] != "done":
            failures[row["code"]] = failures.get(row["code"], 0) + row["n"]
    oldest = [one.get("oldest_at") for one in services.live.partitions() if one.get("oldest_at")]
    return Stats(
        since=when(since) or "",
        jobs=by_state,
        bytes=sum(row["bytes"] for row in rows),
        failures=failures,
        dead_letters=services.search.waiting_letters(),
        oldest_dead_letter_at=when(services.search.letter_times()[0]),
        unfinished=services.search.unfinished(),
        oldest_job_at=min(map(str, oldest), default=None),
        running=len(services.live.running()),
        processes=_count(process["state"] for process in services.live.processes()),
        servers=_count(server["breaker"] for server in services.live.servers(services.config.servers)),
        pool=services.live.totals(),
        timeline=_timeline(services, since, now),
        outages=[
            Outage(server=row["server"], began_at=when(row["began"]) or "", ended_at=when(row["ended"]) or "")
            for row in services.search.outages(since)
        ],
        **services.envelope(),
    )


def _timeline(services: Services, since: float, now: float) -> list[Column]:
    step = max(60.0, (now - since) / STEPS)
    count = min(STEPS, int((now - since) // step) + 1)
    columns = [Column(at=when(since + number * step) or "") for number in range(count)]
    for row in services.search.timeline(since, step):
        if 0 <= row["n"] < count:
            column = columns[row["n"]]
            column.bytes += row["bytes"]
            if row["state"] == "done":
                column.done += row["jobs"]
            else:
                column.failed += row["jobs"]
    return columns


def _count(words: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return found


@old.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {}}, "description": "The text format of Prometheus"}},
)
def show_metrics(services: Served, _who: Viewer) -> Response:
    """Give the metrics of all processes, from what they said last; docs/metrics.md lists them."""
    search = services.search
    oldest, _ = search.letter_times()
    since = None if oldest is None else document.moment(oldest)
    letters = DeadLetters(search.waiting_letters(), since, search.settled_letters())
    text = metrics.render(
        services.live.fleet(), datetime.now(UTC), {services.topics.dlq: letters}, services.requests.totals()
    )
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


@router.get("/login", include_in_schema=False)
def login(request: Request, services: Served, token: Annotated[str, Query(max_length=8192)]) -> Response:
    """Follow the login link of the log: open a session and go to the page."""
    response = RedirectResponse(PAGE, 303)
    enter(token, request, response, services)
    return response


@router.get("/", include_in_schema=False)
def index() -> Response:
    """Go to the page."""
    return RedirectResponse(PAGE, 307)


old.add_api_route("/stats", stats, response_model=Stats, operation_id="stats_at_root")
old.add_api_route("/pool/sessions", pool.sessions, response_model=Open, operation_id="sessions_at_root")
old.add_api_route(
    "/pool/circuit-breakers", pool.circuit_breakers, response_model=Open, operation_id="circuit_breakers_at_root"
)
