"""Which job runs next: queues per server pair, turns, shares, priorities, order by destination, what waits too long.

    Dispatcher(pools, settings, clock=time.monotonic, jitter=random.random)     sets pools.on_release
    .offer(task, delay=0.0)   raises UnknownServer, SettingsError: dead letters
    .take(timeout) -> (task, lease) | None      .finish(task)     the lanes; the lease may be of one side, to be opened
    .another(task) -> task | None               one more for the same sessions
    .later(task, delay)       while it runs: it waits and runs again once `finish` was called; keeps its destination
    .worked(name)             a server let us in;   .failed(name, error, task=None)   it met a job with an error
    .answered(task)           a job's servers did;   .breaker_wait(name) -> seconds
    .overflow() -> [Surplus(task, seconds, outage)]   to T-retry: they are not here any more
    .sets_back(names) -> bool         would a job of theirs be among these at once?
    .drop(predicate) -> [task]       those not running are gone; running ones go when they finish
    .unfinished -> (records, bytes)  .full -> bool  .stats()  .servers() -> {name: Report}  .stop()

Knows tasks, sessions' pools and breakers; knows no Kafka, no protocol. Decides under one lock and does no I/O.
"""

from __future__ import annotations

import math
import posixpath
import random
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from etl import surplus
from etl.breaker import Breaker
from etl.climb import FIRST_LANES, Climb
from etl.crew import Crew
from etl.errors import Fate, UnknownServer, fate_of
from etl.health import Report, Server
from etl.queues import Queue, State
from etl.retry import Doubling
from etl.surplus import Surplus
from etl.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from etl.config import ServerConfig, Settings
    from etl.models.message import FileTransferJob
    from etl.models.task import Task
    from etl.queues import Entry
    from etl.transfer.lease import Lease
    from etl.transfer.pool import Pools

SHORT_ROW_SECONDS, LONG_ROW_SECONDS = 0.5, 30.0  # how long a lane keeps its sessions while others wait, or do not
NEAR_SECONDS = 0.5  # how long a connect may take while lanes are kept for those that wait for it
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
        self._share = max(1, settings.workers // 2)
        self._most = settings.workers  # of one server while no other wants them
        # By the names of source and destination; found out without a lock, as finding it out twice does no harm.
        self._pairs: dict[tuple[str, str], _Pair] = {}
        # Guards everything below. Held only to decide; inside it only the lock of the pools is taken.
        self._lock = threading.Lock()
        self._possible = threading.Condition(self._lock)  # something may have become possible: one lane looks
        self._servers: dict[object, Server] = {}
        self._down: set[Server] = set()  # whose breaker is not closed
        self._queues: dict[object, Queue] = {}
        self._table = Table(self._possible.notify)
        self._crew = Crew(settings.workers)
        self._grows_at = math.inf  # when a queue that has jobs ready may get another lane
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
                if (taken := self._next(now)) is not None:
                    self._possible.notify()  # there may be more than one: the next lane looks
                    return taken
                left = end - time.monotonic()
                if left <= 0:
                    return None
                self._possible.wait(min(left, LONGEST_PAUSE, self._seconds_to_next(now)))
        return None

    def another(self, task: Task) -> Task | None:
        """Return the next job of a running one's pair of servers, for the same lease; None: end the row.

        A lane that goes on with its sessions is faster than one that gives them back between two jobs. It takes turns
        all the same: a row ends soon when another queue could use the lane, or its sessions.
        """
        with self._lock:
            now = self._clock()
            last = self._table.entries.get(task)
            self._table.promote(now)
            if self._stopped or last is None or not last.has_lane or not last.queue.ready:
                return None
            queue = last.queue
            entry = queue.head()
            if entry.source is not last.source or entry.destination is not last.destination:
                return None
            if self._down and not self._down.isdisjoint(queue.servers):
                return None
            if queue.climb.is_over or self._crew.is_over(now) or self._yields(last, now):
                return None
            self._table.begin(entry, now)
            entry.row_since = last.row_since
            last.has_lane, entry.has_lane = False, True
            self._crew.go_on(last, entry, now)
            return entry.task

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
            self._give_up_lane(entry, now)
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

    # --- servers ----------------------------------------------------------------------------------------------

    def worked(self, name: str) -> None:
        """Note that a server let us in: its breaker closes, and its lanes come back a few at a time."""
        if not self._down:  # read without the lock: nearly always so, and asked for each row
            return
        config = self._pools.server(name)
        with self._lock:
            server = self._server(config)
            if server in self._down:
                self._down.discard(server)
                server.is_back()
                for queue in self._queues.values():
                    if server in queue.servers:
                        queue.climb.restart()
                self._possible.notify()

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
        rest = self._pools.rest(config) if is_outage else 0.0
        with self._lock:
            now = self._clock()
            server = self._server(config)
            server.gauge.count(now, failed=True)
            if is_outage:
                server.breaker.down(now, error, rest)
                self._down.add(server)
            entry = None if task is None else self._table.entries.get(task)
            if entry is not None and fate is Fate.RETRY:
                entry.queue.climb.failed()
            self._possible.notify()

    def breaker_wait(self, name: str) -> float:
        """Return for how many seconds no job of this server will be tried."""
        config = self._pools.server(name)
        with self._lock:
            return self._server(config).breaker.wait(self._clock())

    # --- too much ---------------------------------------------------------------------------------------------

    def overflow(self) -> list[Surplus]:
        """Take out what would fill the window for all, with the seconds each should wait: those served last first.

        Of a server whose breaker is open a few are kept; of the slow queues of one server a quarter of the window, and
        of all slow queues together half of it. Queues that are not slow keep everything.
        """
        handed = []
        with self._lock:
            now = self._clock()
            for entry, seconds in surplus.beyond_breakers(self._down, self._queues.values(), now):
                errors = (server.breaker.error for server in entry.queue.servers)
                handed.append(Surplus(entry.task, seconds, next((error for error in errors if error), None)))
                self._table.remove(entry, now)
            for entry, seconds in surplus.beyond_share(
                self._servers.values(), self._queues.values(), self._settings, now
            ):
                handed.append(Surplus(entry.task, seconds, None))
                self._table.remove(entry, now)
            if handed:
                self._possible.notify()
        return handed

    def sets_back(self, names: Iterable[str]) -> bool:
        """Would a job of these servers be handed out again at once, since one of them is down?"""
        if not self._down:  # hardly ever is one; read without the lock, as the answer is old a moment later anyway
            return False
        try:
            configs = [self._pools.server(name) for name in names]
        except UnknownServer:  # it is none any more
            return False
        with self._lock:
            servers = [self._server(config) for config in configs]
            queues = self._queues.values()
            return any(not server.breaker.closed and not surplus.is_kept(server, queues) for server in servers)

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

    def _wake(self) -> None:
        with self._possible:
            self._possible.notify()

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
            most = min(self._most, source.max_connections, destination.max_connections)
            queue = self._queues[key] = Queue(key, servers, Climb(most, self._first_lanes))
        return queue

    def _next(self, now: float) -> tuple[Task, Lease] | None:
        self._table.promote(now)
        self._grows_at = math.inf
        full: set[Server] = set()
        claimed: set[Server] = set()
        sated: list[Queue] = []  # a server of theirs has its share of the lanes
        refused: list[Queue] = []  # a server of theirs is full
        held_up: list[Queue] = []  # will run once connects are through: they wait for their share of lanes
        for queue in self._table.ready.values():  # all of them only when nothing can go: cheap tests first
            if self._down and not all(server.is_open_to_jobs(now) for server in queue.servers):
                continue
            if not queue.climb.admits(now):
                self._grows_at = min(self._grows_at, queue.climb.due(now))
                continue
            if not self._crew.has_room(now, newcomer=not all(server.lanes for server in queue.servers)):
                continue
            if claimed and not claimed.isdisjoint(queue.servers):
                continue
            if full.isdisjoint(queue.servers):
                if any(server.lanes >= self._share for server in queue.servers):
                    sated.append(queue)
                    continue
                if (taken := self._release(queue, refused, now)) is not None:
                    return taken
                full |= self._full_of(queue)
            if full.isdisjoint(queue.servers):
                if self._is_near(queue):
                    held_up.append(queue)
            else:
                refused.append(queue)
                if queue.overtaken:
                    claimed |= queue.claim(full, now)
        # Nobody within its share can go now. More than the share goes to those whose lanes nobody else waits for.
        for queue in sated:
            if not claimed.isdisjoint(queue.servers) or not self._may_exceed(queue, held_up, now):
                continue
            if (taken := self._release(queue, refused, now)) is not None:
                return taken
        return None

    def _may_exceed(self, queue: Queue, held_up: list[Queue], now: float) -> bool:
        """May its servers hold more than their share: not all there are, and none that others will want at once?"""
        if any(s.lanes >= self._most and self._crew.moving(now, s) >= self._most for s in queue.servers):
            return False
        greedy = [server for server in queue.servers if server.lanes >= self._share]
        return all(server in other.servers for server in greedy for other in held_up)

    def _full_of(self, queue: Queue) -> set[Server]:
        """Return which servers of a refused queue have no room; none: too many connects are under way."""
        return {server for side, server in _ends(queue) if not self._pools.room(side)}

    def _is_near(self, queue: Queue) -> bool:
        """Did the connect that a queue waits for begin just now, so that it may soon be through?"""
        waits = (self._pools.held_up(side) for side in queue.head().sides)
        return all(seconds is None or seconds < NEAR_SECONDS for seconds in waits)

    def _release(self, queue: Queue, refused: list[Queue], now: float) -> tuple[Task, Lease] | None:
        """Let the head of a queue go, if there are sessions for it; those `refused` were before it in turn."""
        entry = queue.head()
        lease = self._reserve(*entry.sides)
        if lease is None:
            return None
        self._table.ready.move_to_end(queue.key)
        self._table.begin(entry, now)
        queue.forget_claims()
        queue.yielded_to = -math.inf
        entry.has_lane, entry.row_since = True, now
        self._crew.enter(entry, now)
        self._count_lanes(queue, 1, now)
        for server in queue.servers:
            if not server.breaker.closed:
                server.breaker.probe()
                server.prober = entry
        for other in refused:
            queue.overtake(other)
        return entry.task, lease

    def _reserve(self, source: ServerConfig, destination: ServerConfig) -> Lease | None:
        """Take both sessions; of a server that none is open with, that alone: until it answers it holds no other's."""
        if self._pools.key(source) != self._pools.key(destination):
            for side in (source, destination):
                if not self._pools.connected(side):
                    return self._pools.reserve(side)
        return self._pools.reserve(source, destination)

    def _yields(self, last: Entry, now: float) -> bool:
        """Must a row end, for another queue that could use its lane or its sessions? Notes for which."""
        queue, seconds = last.queue, now - last.row_since
        if seconds > LONG_ROW_SECONDS:
            return True
        if len(self._table.ready) == 1:
            return False  # nobody else has a job that could run
        if seconds <= SHORT_ROW_SECONDS and all(server.lanes <= self._share for server in queue.servers):
            return False
        for other in self._table.ready.values():
            if now - other.yielded_to > SHORT_ROW_SECONDS and self._would_gain(other, queue, now):
                other.yielded_to = now  # one row is enough, until it had its turn
                return True
        return False

    def _would_gain(self, queue: Queue, giving: Queue, now: float) -> bool:
        """Could a job of `queue` run if a lane of `giving` ended, or get nearer to it?

        Nearer: without any lane, it finds one of its servers full whenever the other is free, until it claims them.
        """
        if queue is giving or not queue.climb.admits(now):
            return False
        if not all(server.is_open_to_jobs(now) for server in queue.servers):
            return False
        others = [(side, server) for side, server in _ends(queue) if server not in giving.servers]
        if any(self._pools.held_up(side) is not None for side, _ in others):
            return False
        if not queue.lanes and not set(queue.servers).isdisjoint(giving.servers):
            return True
        return all(server.lanes < self._share and self._pools.room(side) for side, server in others)

    def _count_lanes(self, queue: Queue, change: int, now: float) -> None:
        queue.lanes += change
        queue.climb.set_lanes(now, queue.lanes)
        for server in queue.servers:
            server.lanes += change

    def _give_up_lane(self, entry: Entry, now: float) -> None:
        """Free what a run held: its lane, unless a later one of its row has it; and its being a probe."""
        if entry.has_lane:
            entry.has_lane = False
            self._crew.leave(entry)
            self._count_lanes(entry.queue, -1, now)
        for server in entry.queue.servers:
            if server.prober is entry:  # neither `failed` nor `worked` may have been said of this server
                server.prober = None
                server.breaker.forgo()

    def _seconds_to_next(self, now: float) -> float:
        """Return how long nothing becomes possible by time alone: the next delayed job, the next probe."""
        dues = [server.breaker.wait(now) or math.inf for server in self._down]
        dues.append(max(0.0, self._grows_at - now))
        dues.append(max(0.0, self._table.next_due - now))
        return min(dues)


def _ends(queue: Queue) -> Iterable[tuple[ServerConfig, Server]]:
    """Return source and destination of a queue's next job, by its names of them, and what is known of them."""
    return zip(queue.head().sides, (queue.servers[0], queue.servers[-1]), strict=True)
