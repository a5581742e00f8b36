"""Which jobs of servers that are down are too many here, so that the dispatcher defers them to T-retry.

Guarded by the dispatcher's lock. Knows no pool, no Kafka.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from etl.dispatch.backlog import JobState
from etl.retry.tiers import TIERS, wait_after

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from etl.config import Settings
    from etl.dispatch.backlog import PairQueue, QueuedJob
    from etl.dispatch.servers import Server
    from etl.models.task import Task

# Jobs kept here for a server whose breaker is open: probes, and work for the moment it is back. Fewer where many are
# down: they would fill the window, and nothing else would come in.
DOWN_KEEPS = 8


class Overflow(NamedTuple):
    """A job to defer, for how many seconds, and the error of its server."""

    task: Task
    seconds: float
    outage: BaseException


def kept(outages: int, settings: Settings) -> int:
    """Return how many jobs are kept for each of so many servers that are down: of all a quarter of the window."""
    return min(DOWN_KEEPS, max(1, settings.window_records // (4 * max(1, outages))))


def waiting(server: Server, queues: Iterable[PairQueue]) -> list[QueuedJob]:
    """Return the jobs that wait here for a server."""
    return [entry for queue in queues if server in queue.servers for entry in queue.waiting.values()]


def beyond_breakers(
    servers: Collection[Server], queues: Collection[PairQueue], settings: Settings, now: float
) -> list[Overflow]:
    """Return what is beyond a few jobs of each server that is down, those served last first; count it there.

    After the first seconds those few are ones that were deferred before: others would keep the offsets of their
    partitions, and with them the lag, where they are. While a probe is due, any job may be it.
    """
    down = [server for server in servers if not server.breaker.closed]
    most = kept(len(down), settings)
    picked: dict[QueuedJob, Overflow] = {}
    for server in down:
        any_may_stay = server.breaker.age(now) < TIERS[0] or server.breaker.admits(now)
        entries = sorted(waiting(server, queues), key=lambda entry: entry.turn)
        stay = {*[entry for entry in entries if any_may_stay or entry.task.recallable][:most], *picked}
        for entry in reversed([entry for entry in entries if entry not in stay]):
            server.deferred += 1
            seconds = wait_after(server.breaker.age(now))
            if entry.state is JobState.DELAYED:
                seconds = max(seconds, entry.due - now)
            outage = next(error for one in entry.queue.servers if (error := one.breaker.error))
            picked[entry] = Overflow(entry.task, seconds, outage)
    return list(picked.values())
