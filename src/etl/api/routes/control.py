"""Orders to running consumers: hold, cancel, drain, try now; and checks of servers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from etl.api.problems import Problem, describe
from etl.api.routes.asking import Operator, Served, Viewer
from etl.api.routes.jobs import Number, Offset, Topic
from etl.api.routes.shapes import View
from etl.api.services import Services
from etl.errors import UnknownServer
from etl.models import document
from etl.models.control import Cancel, Drain, Hold, TryNow
from etl.models.field import is_label

router = APIRouter(tags=["orders"], responses=describe(401, 403, 422, 429))

What = Annotated[Literal["server", "topic", "group"], Path()]
Name = Annotated[str, Path(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f/]+$")]
FURTHEST = timedelta(days=3650)


class Why(BaseModel):
    """The reason of an order."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field("", max_length=500)


class WantedHold(BaseModel):
    """A hold to be made, or changed."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=500, pattern=r"\S")
    until: datetime | None = Field(None, description="when it ends by itself, with its time zone")


class HoldTold(BaseModel):
    """A hold in force: its jobs wait."""

    what: str
    name: str
    author: str
    at: str
    reason: str
    until: str | None


class Holds(View):
    """The holds in force, newest first."""

    items: list[HoldTold]


class Ordered(BaseModel):
    """An order that was given. Consumers follow it within seconds."""

    order: str
    by: str
    at: str


class CheckTold(BaseModel):
    """A check of a server."""

    id: str
    server: str
    by: str
    at: str
    state: str = Field(description="running or done")
    result: dict[str, Any] | None


@router.get("/holds")
def list_holds(services: Served, _who: Viewer) -> Holds:
    """List the holds in force."""
    return Holds(items=[tell_hold(hold) for hold in services.orders.holds()], **services.envelope())


@router.get("/holds/{what}/{name}", responses=describe(404))
def show_hold(what: What, name: Name, services: Served, _who: Viewer) -> HoldTold:
    """Show a hold in force."""
    return tell_hold(_hold(services, what, name))


@router.put("/holds/{what}/{name}", responses=describe(404, 503))
def hold(what: What, name: Name, wanted: WantedHold, request: Request, services: Served, who: Operator) -> HoldTold:
    """Hold a server, a topic or a group: its jobs wait, without spending attempts."""
    name = _own(what, name, services)
    request.state.audit |= {"action": "hold", "target": f"{what}/{name}", "reason": wanted.reason}
    now = datetime.now(UTC)
    until = end_of(wanted.until, now)
    services.require_broker()
    made = Hold(author=author(who.name), at=now, reason=wanted.reason, what=what, name=name, until=until)
    services.orders.give(made)
    return tell_hold(made)


@router.delete("/holds/{what}/{name}", status_code=204, responses=describe(404, 503))
def release(what: What, name: Name, request: Request, services: Served, _who: Operator) -> None:
    """Release a hold: its jobs run again."""
    found = _hold(services, what, name)
    request.state.audit |= {"action": "release", "target": f"{what}/{found.name}"}
    services.require_broker()
    services.orders.take_back(found.key)


@router.post("/jobs/{topic}/{partition}/{offset}/cancel", status_code=202, responses=describe(404, 409, 503))
def cancel(
    topic: Topic, partition: Number, offset: Offset, why: Why, request: Request, services: Served, who: Operator
) -> Ordered:
    """Cancel a job that waits or runs: it becomes a dead letter with the code CANCELLED."""
    place = f"{topic}/{partition}/{offset}"
    request.state.audit |= {"action": "cancel", "target": place, "reason": why.reason or None}
    row = services.search.job(topic, partition, offset)
    if row is None:
        raise Problem("not-found", "no such job is in the cache")
    if row["state"] not in ("queued", "waiting"):
        raise Problem("conflict", f"the job is over: {row['state']}")
    services.require_broker()
    now = datetime.now(UTC)
    order = Cancel(author=author(who.name), at=now, reason=why.reason, place=f"{topic}-{partition}-{offset}")
    services.orders.give(order)
    return Ordered(order=order.key, by=who.name, at=document.iso(now))


@router.post("/pool/processes/{name:path}/drain", status_code=202, responses=describe(404, 409, 503))
def drain(
    name: Annotated[str, Path(max_length=1000)], why: Why, request: Request, services: Served, who: Operator
) -> Ordered:
    """Drain a process: it finishes what runs, takes nothing more, and leaves."""
    request.state.audit |= {"action": "drain", "target": name, "reason": why.reason or None}
    found = [one for one in services.live.all() if name in (one.name, one.key) and one.told["kind"] == "consumer"]
    if not found:
        raise Problem("not-found")
    if len(found) > 1:
        raise Problem("conflict", f"several processes have this id; name one: {', '.join(one.key for one in found)}")
    if found[0].state in ("stopped", "silent"):
        raise Problem("conflict", f"the process is {found[0].state}")
    services.require_broker()
    now, incarnation = datetime.now(UTC), found[0].told["incarnation"]
    order = Drain(author=author(who.name), at=now, reason=why.reason, process=found[0].key, incarnation=incarnation)
    services.orders.give(order)
    return Ordered(order=order.key, by=who.name, at=document.iso(now))


@router.post("/pool/servers/{name}/try", status_code=202, responses=describe(404, 503))
def try_now(name: Name, why: Why, request: Request, services: Served, who: Operator) -> Ordered:
    """Let consumers try a server that is down at once, without waiting for the next probe."""
    name = _own("server", name, services)
    request.state.audit |= {"action": "try-now", "target": f"server/{name}", "reason": why.reason or None}
    services.require_broker()
    now = datetime.now(UTC)
    order = TryNow(author=author(who.name), at=now, reason=why.reason, server=name)
    services.orders.give(order)
    return Ordered(order=order.key, by=who.name, at=document.iso(now))


@router.post("/pool/servers/{name}/check", status_code=202, responses=describe(404))
def check(name: Name, request: Request, response: Response, services: Served, who: Operator) -> CheckTold:
    """Check a server from here: reach it, log in, list its folder. The answer says where the result will be."""
    request.state.audit |= {"action": "check", "target": f"server/{name}"}
    try:
        server = services.config.get_server_config(name)
    except UnknownServer:
        raise Problem("not-found", "the settings of the API have no such server") from None
    begun = services.checks.begin(server, who.name)
    response.headers["Location"] = f"/api/v1/pool/servers/{name}/checks/{begun.id}"
    return show_check(name, begun.id, services, who)


@router.get("/pool/servers/{name}/checks/{check_id}", responses=describe(404))
def show_check(
    name: Name, check_id: Annotated[str, Path(pattern=r"^[0-9a-f]{8,32}$")], services: Served, _who: Viewer
) -> CheckTold:
    """Show a check of a server, and what it found."""
    found = services.checks.get(check_id)
    if found is None or found.server.upper() != name.upper():
        raise Problem("not-found", "there is no such check, or the API was started again since")
    return CheckTold(
        id=found.id,
        server=found.server,
        by=found.by,
        at=found.at,
        state="running" if found.result is None else "done",
        result=found.result,
    )


def _own(what: str, name: str, services: Services) -> str:
    """Return the name of what is to be held, as consumers know it. Raises Problem for a server that nobody knows."""
    if what != "server":
        if not is_label(name):
            raise Problem("invalid", errors=[("name", "is not a name of a topic or a group")])
        return name
    known = {one["name"] for one in services.live.servers(services.config.servers)}
    if name.upper() not in known:
        raise Problem("not-found", f"no settings and no process have a server {name}")
    return name.upper()


def _hold(services: Services, what: str, name: str) -> Hold:
    name = name.upper() if what == "server" else name
    for one in services.orders.holds():
        if (one.what, one.name) == (what, name):
            return one
    raise Problem("not-found", "there is no such hold")


def tell_hold(hold: Hold) -> HoldTold:
    """Return a hold as it is answered."""
    return HoldTold(
        what=hold.what,
        name=hold.name,
        author=hold.author,
        at=document.iso(hold.at),
        reason=hold.reason,
        until=None if hold.until is None else document.iso(hold.until),
    )


def end_of(until: datetime | None, now: datetime) -> datetime | None:
    """Return the end that was asked for. Raises Problem if it cannot be one."""
    if until is not None and until.tzinfo is None:
        raise Problem("invalid", errors=[("/until", "has no time zone")])
    if until is not None and not now < until < now + FURTHEST:
        raise Problem("invalid", errors=[("/until", "is not in the next ten years")])
    return until


def author(name: str) -> str:
    """Return the name of who asks, as a record can hold it."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:200].strip() or "?"
