"""The jobs' way through this process, behind one lock: they come, go to lanes, wait again, or are too many.

Owns the lock, and what is known of servers and their pairs; `scheduling` decides which job runs, `overflow` which are
too many. Knows tasks, pools and breakers; knows no Kafka, no protocol. Logs, outside the lock, that a server is down or
back; does no other I/O.
"""

from __future__ import annotations

import math
import posixpath
import random
import threading
import time
from collections import Counter
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import structlog

from etl.dispatch import overflow
from etl.dispatch.backlog import Backlog, JobState, PairQueue
from etl.dispatch.concurrency import FIRST_LANES, ConcurrencyLimit
from etl.dispatch.overflow import Overflow
from etl.dispatch.scheduling import Scheduler
from etl.dispatch.servers import Report, Server
from etl.errors import Fate, UnknownServer, fate_of
from etl.retry.backoff import Doubling
from etl.retry.breaker import Breaker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from etl.config import Settings
    from etl.models.message import FileTransferJob
    from etl.models.server import ServerConfig
    from etl.models.task import Task
    from etl.sessions.lease import Lease
    from etl.sessions.pools import Pools

log = structlog.get_logger(__name__)

LONGEST_PAUSE = 1.0  # a lane looks again at least this often: a pool may have grown back meanwhile


class Room(Enum):
    """Whether there is room here for one more job of a pair of servers."""

    SCARCE = "scarce"  # there is, and few of its jobs are here
    FREE = "free"
    PROBE = "probe"  # a server is down: for its next probes
    CROWDED = "crowded"  # the pair has its share of the window
    DOWN = "down"  # a server is down, and has its probes: one more would be deferred


class _Pair(NamedTuple):
    """What is known of two servers by the names that jobs use; settings do not change while the process lives."""

    sides: tuple[ServerConfig, ServerConfig]
    queue: PairQueue
    key: object  # of the destination's pool
    folder: str  # of the destination


class Dispatcher:
    """All jobs of this process that are not finished."""

    def __init__(
        self,
        pools: Pools,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        first_lanes: int = FIRST_LANES,
    ) -> None:
        self._pools = pools
        self._settings = settings
        self._clock = clock
        self._wait = Doubling(settings.retry_backoff_seconds, settings.retry_backoff_max_seconds, jitter)
        self._first_lanes = first_lanes
        # By the names of source and destination. Filled without a lock: to look a pair up twice does no harm.
        self._pairs: dict[tuple[str, str], _Pair] = {}
        # Guards everything below. Held only to decide; while it is held, only the lock of the pools may be taken.
        self._lock = threading.Lock()
        self._possible = threading.Condition(self._lock)  # a job may have become possible: one lane looks
        self._servers: dict[object, Server] = {}
        self._outages = 0  # servers that are down or on hold; also read without the lock
        self._queues: dict[object, PairQueue] = {}
        self._backlog = Backlog(self._possible.notify)
        self._scheduler = Scheduler(pools, self._backlog, settings.workers)
        self._watched_until = math.inf  # when one of the lanes that wait looks by itself
        self._stopped = False
        self._paused = False
        pools.on_release = self._wake

    def __repr__(self) -> str:
        with self._lock:
            state = "stopped" if self._stopped else "running"
            return f"<Dispatcher {state} jobs={len(self._backlog.entries)} down={self._outages} {self._scheduler}>"

    def offer(self, task: Task, delay: float = 0.0) -> None:
        """Accept a job, to run after `delay` seconds at the earliest. Never blocks.

        Raises UnknownServer, or SettingsError for a pair that could never get its sessions.
        """
        pair = self._pair(task.job)
        below = f"{pair.folder}/{task.job.destination.path}"
        destination_key = (pair.key, posixpath.normpath(below.lstrip("/")))
        with self._lock:  # critical section: the job has its place in the order of its destination
            now = self._clock()
            self._backlog.add(task, pair.queue, pair.sides, destination_key, now + delay, now)

    def _pair(self, job: FileTransferJob) -> _Pair:
        """Return what is known of a job's two servers. Raises what `offer` does."""
        sides = (self._pools.server(job.source.hostname), self._pools.server(job.destination.hostname))
        names = (sides[0].hostname, sides[1].hostname)
        pair = self._pairs.get(names)
        if pair is None:
            self._pools.check(*sides)
            keys = (self._pools.key(sides[0]), self._pools.key(sides[1]))
            with self._lock:
                queue = self._queues.get(keys)
                if queue is None:
                    servers = tuple(dict.fromkeys((self._server(sides[0]), self._server(sides[1]))))
                    most = min(self._settings.workers, sides[0].max_connections, sides[1].max_connections)
                    queue = self._queues[keys] = PairQueue(keys, servers, ConcurrencyLimit(most, self._first_lanes))
            pair = self._pairs[names] = _Pair(sides, queue, keys[1], f"/{sides[1].base_path}")
        return pair

    def take(self, timeout: float) -> tuple[Task, Lease] | None:
        """Return the next job and its lease; blocks for `timeout` seconds at most. None: no job, or stopped."""
        end = time.monotonic() + timeout
        with self._possible:
            while not self._stopped:  # critical section: decide which job runs, and reserve its sessions
                now = self._clock()
                self._backlog.promote(now)
                if not self._paused and (taken := self._scheduler.select(now)) is not None:
                    self._possible.notify()  # more than one may be possible: the next lane looks
                    return taken
                left, at = end - time.monotonic(), math.inf if self._paused else self._scheduler.next_at
                is_watching = at < self._watched_until  # by time alone, one of those that wait looks for all of them
                if left <= 0:
                    if is_watching:
                        self._possible.notify()  # nobody does any more: the next lane
                    return None
                if is_watching:
                    self._watched_until, left = at, min(left, max(0.0, at - now))
                self._possible.wait(min(left, LONGEST_PAUSE))
                if is_watching:
                    self._watched_until = math.inf
        return None

    def another(self, task: Task) -> Task | None:
        """Return one more job for the lease of a running one; None: give the lease back, as others need it more."""
        with self._lock:  # critical section: decide whether the lane keeps its lease
            now = self._clock()
            self._backlog.promote(now)
            last = self._backlog.entries.get(task)
            return None if self._stopped or self._paused or last is None else self._scheduler.next_for(last, now)

    def finish(self, task: Task, again_in: float | None = None) -> None:
        """End a job's run, and forget the job; or have it run again after `again_in` seconds at the earliest.

        Until then it keeps its destination: jobs that write the same file wait behind it.
        """
        with self._lock:  # critical section: free what the run held
            entry = self._backlog.entries.get(task)
            if entry is None or entry.state is not JobState.RUNNING:
                return
            now = self._clock()
            if entry.has_lane:
                self._possible.notify()
            self._scheduler.leave(entry, now)
            again = again_in is not None and not entry.dropped
            self._backlog.end_run(entry, now, now + (again_in or 0.0) if again else None)

    def drop(self, predicate: Callable[[Task], bool], *, running: bool = True) -> list[Task]:
        """Forget the jobs that match; return those that were not running.

        A running one stays until `finish`, and does not run again then; unless `running` is false: it is left alone.
        """
        with self._lock:  # critical section: none of them begins, or begins again, from here on
            now = self._clock()
            picked = [entry for task, entry in self._backlog.entries.items() if predicate(task)]
            gone = [entry for entry in picked if entry.state is not JobState.RUNNING]
            for entry in picked if running else gone:
                entry.dropped = True
            for entry in gone:
                self._backlog.remove(entry, now)
            self._possible.notify()
            return [entry.task for entry in gone]

    def stop(self) -> None:
        """Give no more jobs to lanes; wake all that wait in `take`."""
        with self._possible:
            self._stopped = True
            self._possible.notify_all()

    def _wake(self) -> None:
        with self._possible:
            self._possible.notify()

    def worked(self, name: str) -> None:
        """Note that a server let us in: its breaker closes, and its lanes come back a few at a time."""
        if not self._outages:  # nearly always so, and asked for each lease
            return
        config = self._pools.server(name)
        with self._lock:  # critical section: decide whether that ends an outage
            server = self._server(config)
            if not server.breaker.fails:
                return
            seconds, deferred = server.breaker.age(self._clock()), server.deferred
            self._let_in(server)
        log.info("server is back", server=config.hostname, down_seconds=round(seconds, 1), deferred=deferred)

    def answered(self, task: Task) -> None:
        """Note that a running job got a final answer of its servers: the file has arrived, or never can."""
        with self._lock:
            entry = self._backlog.entries.get(task)
            if entry is not None:
                entry.queue.concurrency.answered(self._clock())
                for server in entry.queue.servers:
                    server.runs += 1

    def failed(self, name: str, error: BaseException, task: Task | None = None) -> float:
        """Note that a server met a job with an error; return for how many seconds an outage keeps jobs from it.

        An outage opens its breaker. A refusal while some of our sessions are open is none: the pool has shrunk, that is
        enough.
        """
        fate, config = fate_of(error), self._pools.server(name)
        is_outage = fate is Fate.OUTAGE and self._pools.connected(config) == 0
        rest = self._pools.login_backoff_left(config) if is_outage else 0.0
        with self._lock:  # critical section: decide whether an outage begins
            now = self._clock()
            server = self._server(config)
            server.runs, server.failures = server.runs + 1, server.failures + 1
            is_news = is_outage and not server.breaker.fails
            if is_outage:
                server.breaker.trip(now, error, rest)
                self._count_outages()
            wait = server.breaker.open_for(now)
            entry = None if task is None else self._backlog.entries.get(task)
            if entry is not None and fate is Fate.RETRY:
                entry.queue.concurrency.failed()
            self._possible.notify()
        if is_news:
            log.warning("server is down", server=config.hostname, error=str(error), next_probe_seconds=round(wait, 1))
        return wait if fate is Fate.OUTAGE else 0.0

    def hold(self, holds: Mapping[str, BaseException]) -> None:
        """Have the jobs of these servers wait, and of no others, like those of a server that is down."""
        with self._lock:  # critical section: no job of theirs begins from here on
            now = self._clock()
            wanted = {self._server(config): holds[name] for name in holds for config in self._known([name])}
            for server in self._servers.values():
                server.breaker.put_on_hold(now, wanted.get(server))
            self._count_outages()
            self._possible.notify()

    def pause(self, *, paused: bool) -> None:
        """Give no more jobs to lanes, or give them again."""
        with self._lock:
            self._paused = paused
            self._possible.notify_all()

    def try_now(self, name: str) -> None:
        """Take a server that is down for one that is back, so that its jobs come here and one of them tries it."""
        with self._lock:
            for config in self._known([name]):
                self._let_in(self._server(config))

    def overflow(self) -> list[Overflow]:
        """Take out what is beyond a few jobs of each server whose breaker is open, those served last first."""
        if not self._outages:  # hardly ever is one
            return []
        with self._lock:  # critical section: what is picked is not here any more
            now = self._clock()
            picked = overflow.beyond_breakers(self._servers.values(), self._queues.values(), self._settings, now)
            for task, _, _ in picked:
                self._backlog.remove(self._backlog.entries[task], now)
        return picked

    def room(self, names: Sequence[str]) -> Room:
        """Return whether there is room for one more job from the one server to the other."""
        if not (sides := self._known(names)):
            return Room.FREE  # the job fails as soon as it is here
        with self._lock:
            if self._outages and (down := [one for one in map(self._server, sides) if not one.breaker.closed]):
                most, queues = overflow.kept(self._outages, self._settings), self._queues.values()
                has_probes = any(len(overflow.waiting(server, queues)) >= most for server in down)
                return Room.DOWN if has_probes else Room.PROBE
            pair = self._pairs.get((sides[0].hostname, sides[1].hostname))
            if pair is None:
                return Room.SCARCE
            self._backlog.measure(pair.queue, self._settings)
            return Room.CROWDED if pair.queue.is_crowded else Room.SCARCE if pair.queue.is_scarce else Room.FREE

    @property
    def unfinished(self) -> tuple[int, int]:
        """Records and bytes of all jobs here: waiting, delayed, running."""
        with self._lock:
            return len(self._backlog.entries), self._backlog.size_bytes

    @property
    def full(self) -> bool:
        """Is the window full, so that no more should be polled?"""
        records, size_bytes = self.unfinished
        return records >= self._settings.window_records or size_bytes >= self._settings.window_bytes

    def stats(self) -> dict[str, int]:
        """Return how many jobs wait, and how many run."""
        with self._lock:
            running = sum(queue.running for queue in self._queues.values())
            return {
                "running": running,
                "waiting": len(self._backlog.entries) - running,
                "ready": sum(queue.ready for queue in self._queues.values()),
                "queues": len(self._backlog.ready),
                "down": self._outages,
            }

    def servers(self) -> dict[str, Report]:
        """Return the state of each server and how it has done lately, by one of its names."""
        with self._lock:
            now, waiting = self._clock(), Counter[Server]()
            for queue in self._queues.values():
                for server in queue.servers:
                    waiting[server] += len(queue.waiting)
            return {
                server.config.hostname: server.report(now, self._pools.round_trip(server.config), waiting[server])
                for server in self._servers.values()
            }

    def _known(self, names: Iterable[str]) -> list[ServerConfig]:
        """Return the servers of these names; none if one is not configured any more: its job fails when due."""
        try:
            return [self._pools.server(name) for name in names]
        except UnknownServer:
            return []

    def _let_in(self, server: Server) -> None:
        """End an outage: its lanes come back a few at a time."""
        server.breaker.reset()
        server.deferred = 0
        self._count_outages()
        for queue in self._queues.values():
            if server in queue.servers:
                queue.concurrency.restart()
        self._possible.notify()

    def _count_outages(self) -> None:
        self._outages = sum(not server.breaker.closed for server in self._servers.values())

    def _server(self, config: ServerConfig) -> Server:
        key = self._pools.key(config)
        server = self._servers.get(key)
        if server is None:
            server = self._servers[key] = Server(config, Breaker(self._wait))
        return server
