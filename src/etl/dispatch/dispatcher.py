"""The jobs' way through this process, behind one lock: they come, go to lanes, wait again, or are too many.

    Dispatcher(pools, settings, clock=time.monotonic, jitter=random.random)     sets pools.on_release
    .offer(task, delay=0.0)   raises UnknownServer, SettingsError: dead letters
    .take(timeout) -> (task, lease) | None      .finish(task)     the lanes; the lease may be of one side, to be opened
    .another(task) -> task | None               one more for the same sessions
    .later(task, delay)       while it runs: it waits and runs again once `finish` was called; keeps its destination
    .worked(name)             a server let us in;   .failed(name, error, task=None)   it met a job with an error
    .answered(task)           a job's servers did;   .breaker_wait(name) -> seconds
    .overflow() -> [Overflow(task, seconds, outage)]   to T-retry: they are not here any more
    .would_defer(names) -> bool         would a job of theirs be among these at once?
    .has_capacity(names, part=1.0) -> bool   would one that was, run soon?
    .drop(predicate) -> [task]       those not running are gone; running ones go when they finish
    .unfinished -> (records, bytes)  .full -> bool  .stats()  .servers() -> {name: Report}  .stop()

Owns the lock, and what is known of servers and their pairs; whose turn it is, is decided by `turns`, and what is too
much by `overflow`. Knows tasks, sessions' pools and breakers; knows no Kafka, no protocol. Says in the log, without the
lock, that a server is down or back; does no other I/O.
"""

from __future__ import annotations

import posixpath
import random
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import structlog

from etl.dispatch import overflow
from etl.dispatch.backlog import Queue, State
from etl.dispatch.breaker import Breaker
from etl.dispatch.concurrency import FIRST_LANES, Climb
from etl.dispatch.overflow import Overflow
from etl.dispatch.scheduling import Turns
from etl.dispatch.servers import Report, Server
from etl.dispatch.table import Table
from etl.errors import Fate, UnknownServer, fate_of
from etl.retry.backoff import Doubling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from etl.config import Settings
    from etl.models.message import FileTransferJob
    from etl.models.server import ServerConfig
    from etl.models.task import Task
    from etl.sessions.lease import Lease
    from etl.sessions.pools import Pools

log = structlog.get_logger(__name__)

LONGEST_PAUSE = 1.0  # a lane looks again at least this often: a pool may have grown back meanwhile


class _Pair(NamedTuple):
    """What is known of two servers by the names that jobs give them; settings do not change while the process lives."""

    ends: tuple[ServerConfig, ServerConfig]
    queue: Queue
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
        # By the names of source and destination; found out without a lock, as finding it out twice does no harm.
        self._pairs: dict[tuple[str, str], _Pair] = {}
        # Guards everything below. Held only to decide; inside it only the lock of the pools is taken.
        self._lock = threading.Lock()
        self._possible = threading.Condition(self._lock)  # something may have become possible: one lane looks
        self._servers: dict[object, Server] = {}
        self._down: set[Server] = set()  # whose breaker is not closed
        self._queues: dict[object, Queue] = {}
        self._table = Table(self._possible.notify)
        self._turns = Turns(pools, self._table, self._down, settings.workers)
        self._stopped = False
        pools.on_release = self._wake

    # --- jobs come --------------------------------------------------------------------------------------------

    def offer(self, task: Task, delay: float = 0.0) -> None:
        """Take in a job, to run after `delay` seconds at the earliest. Never blocks.

        Raises UnknownServer, or SettingsError for a pair that could never get its sessions.
        """
        pair = self._pair(task.job)
        below = f"{pair.folder}/{task.job.destination.path}"
        place = (pair.key, posixpath.normpath(below.lstrip("/")))
        with self._lock:
            now = self._clock()
            self._table.add(task, pair.queue, pair.ends, place, now + delay, now)

    def later(self, task: Task, delay: float) -> None:
        """Have a running job run again `delay` seconds from now, once `finish` was called for this run."""
        with self._lock:
            entry = self._table.entries.get(task)
            if entry is not None and entry.state is State.RUNNING:
                entry.again, entry.due = True, self._clock() + delay

    def _pair(self, job: FileTransferJob) -> _Pair:
        """Return what is known of a job's two servers. Raises as `offer`."""
        ends = (self._pools.server(job.source.hostname), self._pools.server(job.destination.hostname))
        names = (ends[0].hostname, ends[1].hostname)
        pair = self._pairs.get(names)
        if pair is None:
            self._pools.check(*ends)
            with self._lock:
                queue = self._queue(*ends)
            pair = self._pairs[names] = _Pair(ends, queue, self._pools.key(ends[1]), f"/{ends[1].base_path}")
        return pair

    # --- jobs go ----------------------------------------------------------------------------------------------

    def take(self, timeout: float) -> tuple[Task, Lease] | None:
        """Return the next job and its sessions; blocks at most `timeout` seconds, None then or once stopped."""
        end = time.monotonic() + timeout
        with self._possible:
            while not self._stopped:
                now = self._clock()
                self._table.promote(now)
                if (taken := self._turns.next(now)) is not None:
                    self._possible.notify()  # there may be more than one: the next lane looks
                    return taken
                left = end - time.monotonic()
                if left <= 0:
                    return None
                self._possible.wait(min(left, LONGEST_PAUSE, self._turns.seconds_to_next(now)))
        return None

    def another(self, task: Task) -> Task | None:
        """Return the next job of a running one's pair of servers, for the same lease; None: end the row.

        A lane that goes on with its sessions is faster than one that gives them back between two jobs. It takes turns
        all the same: a row ends soon when another queue could use the lane, or its sessions.
        """
        with self._lock:
            now = self._clock()
            self._table.promote(now)
            last = self._table.entries.get(task)
            return None if self._stopped or last is None else self._turns.go_on(last, now)

    def finish(self, task: Task) -> None:
        """End a job's run: its lane share is free; unless it is to run `later`, its destination too, and it is gone."""
        with self._lock:
            entry = self._table.entries.get(task)
            if entry is None or entry.state is not State.RUNNING:
                return
            now = self._clock()
            again, entry.again = entry.again and not entry.dropped, False
            if entry.has_lane:
                self._possible.notify()
            self._turns.leave(entry, now)
            self._table.land(entry, now, again=again)

    def drop(self, predicate: Callable[[Task], bool]) -> list[Task]:
        """Forget the jobs that `predicate` picks; return those that were not running.

        A running one stays until `finish`, and will not run again whatever `later` says.
        """
        with self._lock:
            now = self._clock()
            picked = [entry for task, entry in self._table.entries.items() if predicate(task)]
            gone = [entry for entry in picked if entry.state is not State.RUNNING]
            for entry in picked:
                entry.dropped = True
            for entry in gone:
                self._table.remove(entry, now)
            self._possible.notify()
            return [entry.task for entry in gone]

    def stop(self) -> None:
        """Hand out no more jobs; wake all that wait in `take`."""
        with self._possible:
            self._stopped = True
            self._possible.notify_all()

    def _wake(self) -> None:
        with self._possible:
            self._possible.notify()

    # --- servers ----------------------------------------------------------------------------------------------

    def worked(self, name: str) -> None:
        """Note that a server let us in: its breaker closes, and its lanes come back a few at a time."""
        if not self._down:  # read without the lock: nearly always so, and asked for each row
            return
        config = self._pools.server(name)
        with self._lock:
            server = self._server(config)
            if server not in self._down:
                return
            now = self._clock()
            seconds, deferred = server.breaker.age(now), server.deferred
            self._down.discard(server)
            server.is_back()
            for queue in self._queues.values():
                if server in queue.servers:
                    queue.restart(now)
            self._possible.notify()
        log.info("server is back", server=config.hostname, down_seconds=round(seconds, 1), deferred=deferred)

    def answered(self, task: Task) -> None:
        """Note that a running job ended with an answer of its servers: the file is there, or cannot be."""
        with self._lock:
            now = self._clock()
            entry = self._table.entries.get(task)
            if entry is not None:
                entry.queue.climb.answered(now)
                for server in entry.queue.servers:
                    server.gauge.count(now, failed=False)

    def failed(self, name: str, error: BaseException, task: Task | None = None) -> None:
        """Note that a server met a job with an error; with an outage its breaker opens.

        A refusal while some of our sessions are open is no outage: the pool has shrunk, that is enough.
        """
        fate, config = fate_of(error), self._pools.server(name)
        is_outage = fate is Fate.OUTAGE and self._pools.connected(config) == 0
        rest = self._pools.login_backoff_left(config) if is_outage else 0.0
        with self._lock:
            now = self._clock()
            server = self._server(config)
            server.gauge.count(now, failed=True)
            is_news = is_outage and server.breaker.closed
            if is_outage:
                server.breaker.down(now, error, rest)
                self._down.add(server)
            wait = server.breaker.wait(now)
            entry = None if task is None else self._table.entries.get(task)
            if entry is not None and fate is Fate.RETRY:
                entry.queue.climb.failed()
            self._possible.notify()
        if is_news:
            log.warning("server is down", server=config.hostname, error=str(error), next_probe_seconds=round(wait, 1))

    def breaker_wait(self, name: str) -> float:
        """Return for how many seconds no job of this server will be tried."""
        config = self._pools.server(name)
        with self._lock:
            return self._server(config).breaker.wait(self._clock())

    # --- too much ---------------------------------------------------------------------------------------------

    def overflow(self) -> list[Overflow]:
        """Take out what would fill the window for all, with the seconds each should wait: those served last first.

        Of a server whose breaker is open a few are kept; of the slow queues of one server a quarter of the window, and
        of all slow queues together half of it. Queues that are not slow keep everything.
        """
        handed = []
        with self._lock:
            now, queues = self._clock(), self._queues.values()
            for entry, seconds in overflow.beyond_breakers(self._down, queues, self._settings, now):
                errors = (server.breaker.error for server in entry.queue.servers)
                handed.append(Overflow(entry.task, seconds, next((error for error in errors if error), None)))
                self._table.remove(entry, now)
            for entry, seconds in overflow.beyond_share(self._servers.values(), queues, self._settings, now):
                handed.append(Overflow(entry.task, seconds, None))
                self._table.remove(entry, now)
            if handed:
                self._possible.notify()
        return handed

    def would_defer(self, names: Iterable[str]) -> bool:
        """Would a job of these servers be handed out again at once, since one of them is down?"""
        if not self._down:  # hardly ever is one; read without the lock, as the answer is old a moment later anyway
            return False
        with self._lock:
            servers = [self._server(config) for config in self._known(names)]
            queues = self._queues.values()
            most = overflow.kept(self._down, self._settings)
            return any(server in self._down and overflow.waiting(server, queues) >= most for server in servers)

    def has_capacity(self, names: Sequence[str], part: float = 1.0) -> bool:
        """Would a job of these two servers run soon: they are up, and less than (`part` of) enough waits for them?"""
        with self._lock:
            configs = self._known(names)
            if len(configs) != 2 or any(not self._server(config).breaker.closed for config in configs):
                return False
            queue = self._queues.get(tuple(self._pools.key(config) for config in configs))
            return queue is None or overflow.is_short(queue, self._settings, self._clock(), part)

    @property
    def unfinished(self) -> tuple[int, int]:
        """Records and bytes of all jobs here: waiting, delayed, running."""
        with self._lock:
            return len(self._table.entries), self._table.size_bytes

    @property
    def full(self) -> bool:
        """Is the window full, so that no more should be polled?"""
        records, size_bytes = self.unfinished
        return records >= self._settings.window_records or size_bytes >= self._settings.window_bytes

    def stats(self) -> dict[str, int]:
        """Return how many jobs wait, and how many run."""
        with self._lock:
            running = sum(queue.running for queue in self._queues.values())
            return {"running": running, "waiting": len(self._table.entries) - running, "queues": len(self._table.ready)}

    def servers(self) -> dict[str, Report]:
        """Return how each server is and has done lately, by one of its names."""
        with self._lock:
            now = self._clock()
            return {
                server.config.hostname: server.report(now, self._pools.round_trip(server.config))
                for server in self._servers.values()
            }

    # --- under the lock ---------------------------------------------------------------------------------------

    def _known(self, names: Iterable[str]) -> list[ServerConfig]:
        """Return the servers of these names; none of them when one is no server any more: told of when it is due."""
        try:
            return [self._pools.server(name) for name in names]
        except UnknownServer:
            return []

    def _server(self, config: ServerConfig) -> Server:
        key = self._pools.key(config)
        server = self._servers.get(key)
        if server is None:
            server = self._servers[key] = Server(config, Breaker(self._wait))
        return server

    def _queue(self, source: ServerConfig, destination: ServerConfig) -> Queue:
        key = (self._pools.key(source), self._pools.key(destination))
        queue = self._queues.get(key)
        if queue is None:
            servers = tuple(dict.fromkeys((self._server(source), self._server(destination))))
            most = min(self._settings.workers, source.max_connections, destination.max_connections)
            queue = self._queues[key] = Queue(key, servers, Climb(most, self._first_lanes))
        return queue
