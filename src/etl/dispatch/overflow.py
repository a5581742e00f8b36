"""Which jobs are too many here, so that the dispatcher defers them to T-retry.

They come back when there is room for them (`is_short`), at their time at the latest. Guarded by the dispatcher's lock;
changes nothing but the pace of deferrals. Knows no pool, no Kafka.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from etl.dispatch.backlog import SLOW_SECONDS, JobState

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable

    from etl.config import Settings
    from etl.dispatch.backlog import PairQueue, QueuedJob
    from etl.dispatch.servers import Server
    from etl.models.task import Task

# Jobs kept here for a server whose breaker is open: probes, and work for the moment it is back. Fewer where many are
# down: they would fill the window, and nothing else would come in.
DOWN_KEEPS = 8
STOCK_SECONDS = 5.0  # for how long the jobs here should last while deferred ones are recalled
SETTLED_SECONDS = 10.0  # without a deferral, before any job is recalled: it would be deferred again


class Overflow(NamedTuple):
    """A job to defer, and for how many seconds."""

    task: Task
    seconds: float
    outage: BaseException | None  # the error of its server, if that is down; None: it is busy


def kept(outages: int, settings: Settings) -> int:
    """Return how many jobs are kept for each of so many servers that are down: of all a quarter of the window."""
    return min(DOWN_KEEPS, max(1, settings.window_records // (4 * max(1, outages))))


def waiting(server: Server, queues: Iterable[PairQueue]) -> int:
    """Return how many jobs wait here for a server."""
    return sum(len(queue.waiting) for queue in queues if server in queue.servers)


def is_short(queue: PairQueue, settings: Settings, now: float, part: float = 1.0) -> bool:
    """Does less than `part` of STOCK_SECONDS' worth of work wait here, so that deferred jobs should be recalled?"""
    if now - queue.overloaded_until < SETTLED_SECONDS:
        return False
    stock = min(queue.rate.per_second(now) * STOCK_SECONDS, settings.window_records / 4)
    return len(queue.waiting) < max(DOWN_KEEPS, stock) * part


def beyond_breakers(
    servers: Collection[Server], queues: Collection[PairQueue], settings: Settings, now: float
) -> list[Overflow]:
    """Return what is beyond a few jobs of each server that is down, those served last first."""
    down = [server for server in servers if not server.breaker.closed]
    most = kept(len(down), settings)
    picked: dict[QueuedJob, Overflow] = {}
    for server in down:
        if waiting(server, queues) <= most:
            continue
        entries = _in_turn((queue for queue in queues if server in queue.servers), picked)
        for entry in reversed(entries[most:]):
            outage = next(error for one in entry.queue.servers if (error := one.breaker.error))
            picked[entry] = Overflow(entry.task, _at_least(server.defer_one(now), entry, now), outage)
    return list(picked.values())


def beyond_share(
    servers: Collection[Server], queues: Collection[PairQueue], settings: Settings, now: float
) -> list[Overflow]:
    """Return what is beyond a quarter of the window for one server's slow queues, or beyond half of it for them all."""
    slow = [queue for queue in queues if queue.waiting and queue.drain_seconds(now) > SLOW_SECONDS]
    groups = [([queue for queue in slow if server in queue.servers], 4, server) for server in servers]
    picked: dict[QueuedJob, Overflow] = {}
    for its, part, server in [*groups, (slow, 2, None)]:
        for entry in reversed(_beyond(_in_turn(its, picked), part, settings)):
            pacer = (server or entry.queue.servers[0]).pacer
            # As long again as that has been so: a rate may be that of a few large files, and small ones follow.
            seconds = pacer.seconds(entry.queue.overloaded_for(now), 0.0, now)
            picked[entry] = Overflow(entry.task, _at_least(seconds, entry, now), None)
    return list(picked.values())


def _beyond(entries: list[QueuedJob], part: int, settings: Settings) -> list[QueuedJob]:
    """Return those beyond 1/`part` of the window, in records or bytes; never the first, however large its record."""
    records, size_bytes = settings.window_records // part, settings.window_bytes // part
    for index, entry in enumerate(entries):
        records, size_bytes = records - 1, size_bytes - entry.task.size_bytes
        if index and (records < 0 or size_bytes < 0):
            return entries[index:]
    return []


def _at_least(seconds: float, entry: QueuedJob, now: float) -> float:
    return max(seconds, entry.due - now) if entry.state is JobState.DELAYED else seconds


def _in_turn(queues: Iterable[PairQueue], picked: Container[QueuedJob]) -> list[QueuedJob]:
    """Return what waits in these queues and is not picked yet, in the order of service."""
    entries = (entry for queue in queues for entry in queue.waiting.values() if entry not in picked)
    return sorted(entries, key=lambda entry: entry.turn)
