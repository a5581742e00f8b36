"""Which jobs are too many here: what the dispatcher hands out, to be set aside in T-retry.

Picks, in the order of service, and notes that it did: whoever asks takes out what is yielded before the next is asked
for. They come back when there is room for them (`is_short`), at their time at the latest. Guarded by the dispatcher's
lock. Knows no pool, no Kafka.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from etl.dispatch.backlog import SLOW_SECONDS, JobState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from etl.config import Settings
    from etl.dispatch.backlog import PairQueue, QueuedJob
    from etl.dispatch.servers import Server
    from etl.models.task import Task

# Jobs kept here for a server whose breaker is open: probes, and work for the moment it is back. Fewer where many are
# down: they would fill the window, and nothing else would come in.
DOWN_KEEPS = 8
STOCK_SECONDS = 5.0  # for how long what waits here should last, when more that was set aside is to be had
SETTLED_SECONDS = 10.0  # without one set aside, before any comes back early: it would be set aside again


class Overflow(NamedTuple):
    """A job that is not here any more, and for how many seconds it is to wait."""

    task: Task
    seconds: float
    outage: BaseException | None  # what its server was met with, if it is down; None: it is busy


def kept(down: Collection[Server], settings: Settings) -> int:
    """Return how many jobs are kept here for each of the servers that are down: of all a quarter of the window."""
    return min(DOWN_KEEPS, max(1, settings.window_records // (4 * max(1, len(down)))))


def waiting(server: Server, queues: Iterable[PairQueue]) -> int:
    """Return how many jobs wait here for a server."""
    return sum(len(queue.waiting) for queue in queues if server in queue.servers)


def is_short(queue: PairQueue, settings: Settings, now: float, part: float = 1.0) -> bool:
    """Is what waits here less than (that `part` of) a stock that lasts until more is brought from T-retry?"""
    if now - queue.overloaded_until < SETTLED_SECONDS:
        return False
    stock = min(queue.rate.per_second(now) * STOCK_SECONDS, settings.window_records / 4)
    return len(queue.waiting) < max(DOWN_KEEPS, stock) * part


def beyond_breakers(
    down: Collection[Server], queues: Collection[PairQueue], settings: Settings, now: float
) -> Iterator[tuple[QueuedJob, float]]:
    """Yield what is beyond a few of each server that is down, and how long its wait is: those served last first."""
    most = kept(down, settings)
    for server in down:
        if waiting(server, queues) <= most:
            continue
        its = [queue for queue in queues if server in queue.servers]
        for entry in reversed(_in_turn(its)[most:]):
            yield entry, _at_least(server.defer_one(now), entry, now)


def beyond_share(
    servers: Collection[Server], queues: Collection[PairQueue], settings: Settings, now: float
) -> Iterator[tuple[QueuedJob, float]]:
    """Yield what is beyond a quarter of the window of one server's slow queues, or beyond half of it of them all."""
    slow = [queue for queue in queues if queue.waiting and queue.drain_seconds(now) > SLOW_SECONDS]
    groups = [([queue for queue in slow if server in queue.servers], 4, server) for server in servers]
    for its, part, server in [*groups, (slow, 2, None)]:
        for entry in reversed(_beyond(its, part, settings)):
            pacer = (server or entry.queue.servers[0]).pacer
            # As long again as that has been so: a rate may be that of a few large files, and small ones follow.
            yield entry, _at_least(pacer.seconds(entry.queue.overloaded_for(now), 0.0, now), entry, now)


def _beyond(queues: list[PairQueue], part: int, settings: Settings) -> list[QueuedJob]:
    """Return what is beyond 1/`part` of the window, in records or bytes, in the order of service."""
    records, size_bytes = settings.window_records // part, settings.window_bytes // part
    if sum(len(queue.waiting) for queue in queues) <= 1:
        return []  # one job is never too many, however large its record
    entries = _in_turn(queues)
    kept = 0
    for entry in entries:
        records, size_bytes = records - 1, size_bytes - entry.task.size_bytes
        if kept and (records < 0 or size_bytes < 0):
            break
        kept += 1
    return entries[kept:]


def _at_least(seconds: float, entry: QueuedJob, now: float) -> float:
    return max(seconds, entry.due - now) if entry.state is JobState.DELAYED else seconds


def _in_turn(queues: Iterable[PairQueue]) -> list[QueuedJob]:
    return sorted((entry for queue in queues for entry in queue.waiting.values()), key=lambda entry: entry.turn)
