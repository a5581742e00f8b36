"""Live pages: one stream of server-sent events, of whole snapshots, at most one a second of each kind.

A snapshot that was missed does not matter, because the next one is whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import StreamingResponse

from etl.api.access.identity import NOBODY, Identity
from etl.api.problems import Problem, describe
from etl.api.routes import control, root, summary
from etl.api.routes.asking import Served, Viewer
from etl.api.services import Services

router = APIRouter(tags=["live"], responses=describe(401, 403, 422, 429))

STEP_SECONDS = 1.0
BEAT_SECONDS = 5.0  # without any event: proxies cut silent connections, and the page turns grey after three
STREAMS = 100  # at the same time

SNAPSHOTS: dict[str, Callable[[Services], Any]] = {
    "transfers": lambda services: services.live.transfers(),
    "servers": lambda services: services.live.servers(services.config.servers),
    "processes": lambda services: services.live.processes(),
    "partitions": lambda services: services.live.partitions(),
    "operations": lambda services: [one.model_dump() for one in services.engine.operations()[:50]],
    "summary": lambda services: summary.summary(services, NOBODY).model_dump(exclude={"as_of"}),
    "holds": lambda services: [control.tell_hold(one).model_dump() for one in services.orders.holds()],
    "stats": lambda services: root.collect(services, None).model_dump(exclude={"as_of"}),
}


class Feed:
    """Snapshots of each kind, made at most once a second for all streams together."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._made: dict[str, tuple[float, str, str]] = {}  # when, version, data
        self._locks = {name: asyncio.Lock() for name in SNAPSHOTS}
        self.streams = 0

    async def get(self, name: str) -> tuple[str, str]:
        """Return the version and the data of a kind."""
        loop = asyncio.get_running_loop()
        async with self._locks[name]:
            made = self._made.get(name)
            if made is None or loop.time() - made[0] >= STEP_SECONDS * 0.9:
                data = await asyncio.to_thread(self._make, name)
                version = hashlib.sha256(data.encode()).hexdigest()[:16]
                made = self._made[name] = (loop.time(), version, data)
        return made[1], made[2]

    def _make(self, name: str) -> str:
        content = SNAPSHOTS[name](self._services)
        return json.dumps({"items": content, "stale": self._services.stale}, ensure_ascii=False)


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Events, for ever"}, **describe(503)},
)
async def events(
    request: Request,
    services: Served,
    who: Viewer,
    topics: Annotated[str, Query(max_length=200, description="kinds, separated by commas")] = "transfers,servers,stats",
) -> StreamingResponse:
    """Stream snapshots of these kinds as they change: summary, transfers, servers and others."""
    names = list(dict.fromkeys(name.strip() for name in topics.split(",")))
    if unknown := [name for name in names if name not in SNAPSHOTS]:
        raise Problem("invalid", errors=[("topics", f"{unknown[0]!r} is not one of {', '.join(SNAPSHOTS)}")])
    feed: Feed = request.app.state.feed
    if feed.streams >= STREAMS:
        raise Problem("too-many", f"at most {STREAMS} streams are open at the same time", headers={"Retry-After": "30"})
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(request, services, feed, names, who), 200, headers, "text/event-stream")


async def _stream(
    request: Request, services: Services, feed: Feed, names: list[str], who: Identity
) -> AsyncIterator[str]:
    """Yield events until the client leaves, its session ends, or the process stops."""
    loop = asyncio.get_running_loop()
    sent: dict[str, str] = {}
    spoken = looked = loop.time()
    feed.streams += 1
    try:
        yield "retry: 3000\n\n"
        while not request.app.state.stopping.is_set() and not await request.is_disconnected():
            for name in names:
                version, data = await feed.get(name)
                if sent.get(name) != version:
                    sent[name], spoken = version, loop.time()
                    yield f"event: {name}\nid: {version}\ndata: {data}\n\n"
            now = loop.time()
            if now - spoken >= BEAT_SECONDS:
                spoken = now
                yield "event: beat\ndata: {}\n\n"
            if now - looked >= BEAT_SECONDS:
                looked = now
                if who.session is not None and not await asyncio.to_thread(services.vault.has_session, who.session):
                    return
            await asyncio.sleep(STEP_SECONDS)
    finally:
        feed.streams -= 1
