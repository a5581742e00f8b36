"""What the processes do now: processes, servers, running transfers, partitions."""

from __future__ import annotations

import hashlib
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from etl.api.problems import Problem, describe
from etl.api.routes.asking import Served, Text, Viewer, when
from etl.api.routes.shapes import Open, View
from etl.api.services import Services
from etl.api.views.live import GONE_SECONDS
from etl.models import document
from etl.status import metrics, unheld
from etl.status.fleet import Process

router = APIRouter(prefix="/pool", tags=["pool"], responses=describe(401, 403, 429))


class Processes(View):
    """The processes, by name."""

    items: list[Open]


class Servers(View):
    """The servers, those in trouble first."""

    items: list[Open]


class Transfers(View):
    """The running transfers: those that stand still first, then the oldest."""

    items: list[Open]
    more: int


class Partitions(View):
    """The partitions of jobs."""

    items: list[Open]


class Minute(BaseModel):
    """What processes said of a server in one minute, together."""

    at: str
    jobs: float
    failed: float
    bytes: int
    round_trip_seconds: float | None = Field(description="the longest")
    down: float = Field(description="part of the time that it was down, as processes found it: 0 to 1")


class Hour(View):
    """The last hour of a server, the oldest minute first; minutes of which nobody spoke are left out."""

    items: list[Minute]


class Group(BaseModel):
    """The consumers of one group and topic, together."""

    topic: str
    group: str
    processes: int = Field(description="that speak")
    silent: int
    partitions: int = Field(description="of the topic, that one of them holds")
    unfinished: int
    runnable: int
    parked: int = Field(description="jobs that wait in T-retry")
    oldest_at: str | None
    held_by: str | None = Field(description="who holds the topic or the group back")
    settings_differ: bool = Field(description="true: not all have the same servers in their settings")


class Groups(View):
    """The groups, by topic and name."""

    items: list[Group]


class Runnable(View):
    """The number to scale a group of consumers by."""

    topic: str
    group: str
    processes: int = Field(description="consumers of the group that speak")
    runnable: int = Field(description="unfinished jobs that more processes could run")


NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "Nothing has changed since that ETag"}}


@router.get("/processes", response_model=Processes, responses=NOT_MODIFIED)
def processes(request: Request, services: Served, _who: Viewer) -> Response:
    """List the processes; a silent one has missed three of its own intervals."""
    return _answer(request, services, {"items": services.live.processes()})


@router.get("/processes/{name:path}", response_model=Open, responses=describe(404))
def process(name: str, services: Served, _who: Viewer) -> dict[str, Any]:
    """Show all that one process says, by its id or key."""
    for found in services.live.processes():
        if name in (found["id"], found["key"]):
            told = next(one.told for one in services.live.all() if one.key == found["key"])
            return {**told, **found}
    raise Problem("not-found")


@router.get("/servers", response_model=Servers, responses=NOT_MODIFIED)
def servers(request: Request, services: Served, _who: Viewer) -> Response:
    """List the servers: those of the settings, and those that processes speak of."""
    return _answer(request, services, {"items": services.live.servers(services.config.servers)})


@router.get("/servers/{name}", response_model=Open, responses=describe(404))
def server(name: str, services: Served, _who: Viewer) -> dict[str, Any]:
    """Show one server."""
    for found in services.live.servers(services.config.servers):
        if found["name"].upper() == name.upper():
            return found
    raise Problem("not-found")


@router.get("/servers/{name}/hour", responses=describe(404))
def server_hour(name: str, services: Served, who: Viewer) -> Hour:
    """Tell the last hour of a server, minute by minute, as the processes spoke of it."""
    server(name, services, who)
    items = [Minute(**{**one, "at": when(one["at"]) or ""}) for one in services.live.hour(name)]
    return Hour(items=items, **services.envelope())


@router.get("/transfers", response_model=Transfers, responses=NOT_MODIFIED)
def transfers(request: Request, services: Served, _who: Viewer) -> Response:
    """List the running transfers."""
    more = sum(one.told["more"]["transfers"] for one in services.live.consumers())
    return _answer(request, services, {"items": services.live.transfers(), "more": more})


@router.get("/partitions", response_model=Partitions, responses=NOT_MODIFIED)
def partitions(request: Request, services: Served, _who: Viewer) -> Response:
    """List the partitions with their first unfinished record and its age, as their owners see them."""
    return _answer(request, services, {"items": services.live.partitions()})


@router.get("/groups")
def groups(services: Served, _who: Viewer) -> Groups:
    """List the groups of consumers that speak, or have fallen silent within the last hour."""
    found: dict[tuple[str, str], list[Process]] = {}
    for one in services.live.fleet():
        is_there = one.state != "stopped" and one.age_seconds < GONE_SECONDS
        if one.snapshot.kind == "consumer" and is_there:
            found.setdefault((one.snapshot.topic, one.snapshot.group), []).append(one)
    items = [_group(topic, name, members) for (topic, name), members in sorted(found.items())]
    return Groups(items=items, **services.envelope())


def _group(topic: str, name: str, members: list[Process]) -> Group:
    speaking = [one.snapshot for one in members if not one.silent]
    rows = [row for one in speaking for row in one.partitions if row.topic == topic]
    oldest = min((row.oldest_at for row in rows if row.oldest_at is not None), default=None)
    return Group(
        topic=topic,
        group=name,
        processes=len(speaking),
        silent=len(members) - len(speaking),
        partitions=len({row.partition for row in rows}),
        unfinished=sum(one.window.jobs + one.window.behind for one in speaking),
        runnable=sum(metrics.runnable(one) for one in speaking),
        parked=sum(one.parked.jobs for one in speaking),
        oldest_at=None if oldest is None else document.iso(oldest),
        held_by=next((one.held_by for one in speaking if one.held_by), None),
        settings_differ=len({one.settings_hash for one in speaking}) > 1,
    )


@router.get("/runnable", responses=describe(503))
def show_runnable(services: Served, _who: Viewer, group: Text = None) -> Runnable:
    """Tell how many jobs of a group (ETL_GROUP_ID) more processes could run: for what starts and stops processes.

    Jobs of a server that is down, or on hold, do not count. While nobody of the group speaks, all that waits counts.
    Without Kafka the answer is 503: whoever scales then leaves things as they are.
    """
    services.require_broker()
    topic, group = services.topics.source, group or services.config.settings.group_id
    members = [
        one.snapshot
        for one in services.live.fleet()
        if one.snapshot.kind == "consumer"
        and (one.snapshot.topic, one.snapshot.group) == (topic, group)
        and one.state not in ("silent", "stopped")
    ]
    if members:
        count = sum(metrics.runnable(one) for one in members)
    elif any((one.what, one.name) in (("topic", topic), ("group", group)) for one in services.orders.holds()):
        count = 0
    else:
        count = unheld.read(services.config.settings.bootstrap_servers, topic, group, ()).records
    return Runnable(topic=topic, group=group, processes=len(members), runnable=count, **services.envelope())


@router.get("/sessions", response_model=Open)
def sessions(services: Served, _who: Viewer) -> dict[str, Any]:
    """List the sessions with each server, of all processes."""
    found = services.live.servers(services.config.servers)
    return {"sessions": {one["name"]: one["sessions"] for one in found}, **services.envelope()}


@router.get("/circuit-breakers", response_model=Open)
def circuit_breakers(services: Served, _who: Viewer) -> dict[str, Any]:
    """List the state of each server's circuit breaker: closed, open or half_open."""
    found = services.live.servers(services.config.servers)
    return {"circuit_breakers": {one["name"]: one["breaker"] for one in found}}


def _answer(request: Request, services: Services, content: dict[str, Any]) -> Response:
    """Answer with the version of what the processes said last; with nothing if the asker has that already."""
    stale = services.stale
    said = f"{services.live.version} {stale} {[one['state'] for one in services.live.processes()]} {request.url.path}"
    tag = f'"{hashlib.sha256(said.encode()).hexdigest()[:20]}"'
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": tag})
    return JSONResponse({**content, **services.envelope()}, headers={"ETag": tag})
