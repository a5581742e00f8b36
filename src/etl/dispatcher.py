"""Which job runs next: queues per server pair, turns, shares, priorities, order by destination, what waits too long.

    Dispatcher(pools, settings, clock=time.monotonic, jitter=random.random)     sets pools.on_release
    .offer(task, delay=0.0)   raises UnknownServer, SettingsError: dead letters
    .take(timeout) -> (task, lease) | None      .finish(task)     the lanes
    .another(task) -> task | None               one more for the same sessions
    .later(task, delay)       while it runs: it waits and runs again once `finish` was called; keeps its destination
    .failed(name, error)      an outage of that server;   .worked(name)   it answered;   .breaker_wait(name) -> seconds
    .overflow() -> [(task, delay)]   to T-retry as "server busy": they are not here any more
    .drop(predicate) -> [task]       those not running are gone; running ones go when they finish
    .unfinished -> (records, bytes)  .full -> bool  .stats()  .stop()

Knows tasks, sessions' pools and breakers; knows no Kafka, no protocol. Decides under one lock and does no I/O.
"""

from __future__ import annotations

import heapq
import itertools
import math
import posixpath
import random
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from etl.breaker import Breaker
from etl.errors import Fate, ServerBusy, fate_of
from etl.queues import SLOW_SECONDS, Entry, Queue, Server, State
from etl.retry import Doubling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from etl.config import ServerConfig, Settings
    from etl.models.task import Task
    from etl.transfer.lease import Lease
    from etl.transfer.pool import Pools

RANKS = {"high": 0, "normal": 1, "low": 2}
DOWN_KEEPS = 8  # jobs kept here for a server whose breaker is open: probes, and work for the moment it is back
SHORTEST_BUSY, LONGEST_BUSY = 10.0, 3600.0  # how long "server busy" sets aside: the shortest and the longest tier
SHORT_ROW_SECONDS, LONG_ROW_SECONDS = 0.5, 30.0  # how long a lane keeps its sessions while others wait, or do not
LONGEST_PAUSE = 1.0  # a lane looks again at least this often: a pool may have grown back meanwhile


class Dispatcher:
    """All jobs of this process that are not finished."""

    def __init__(
        self,
        pools: Pools,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._pools = pools
        self._settings = settings
        self._clock = clock
        self._wait = Doubling(settings.retry_backoff_seconds, settings.retry_backoff_max_seconds, jitter)
        self._share = max(1, settings.workers // 2)
        self._most = settings.workers  # of one server while no other wants them; the spare lane is never among them
        # Guards everything below. Held only to decide; inside it only the lock of the pools is taken.
        self._lock = threading.Lock()
        self._possible = threading.Condition(self._lock)  # something may have become possible: one lane looks
        self._numbers = itertools.count()
        self._servers: dict[object, Server] = {}
        self._down: set[Server] = set()  # whose breaker is not closed
        self._queues: dict[object, Queue] = {}
        self._turns: OrderedDict[object, Queue] = OrderedDict()  # queues with ready jobs; the next in turn first
        self._entries: dict[Task, Entry] = {}
        self._places: dict[object, OrderedDict[int, Entry]] = {}  # per destination path; the first holds it
        self._delayed: list[tuple[float, int, Entry]] = []  # by due time; may hold what is not delayed any more
        self._bytes = 0
        self._stopped = False
        pools.on_release = self._wake

    # --- jobs come --------------------------------------------------------------------------------------------

    def offer(self, task: Task, delay: float = 0.0) -> None:
        """Take in a job, to run after `delay` seconds at the earliest. Never blocks.

        Raises UnknownServer, or SettingsError for a pair that could never get its sessions.
        """
        source = self._pools.server(task.job.source.hostname)
        destination = self._pools.server(task.job.destination.hostname)
        self._pools.check(source, destination)
        below = f"/{destination.base_path}/{task.job.destination.path}"
        place = (self._pools.key(destination), posixpath.normpath(below.lstrip("/")))
        with self._lock:
            now = self._clock()
            entry = Entry(
                task,
                next(self._numbers),
                RANKS[task.job.priority],
                self._queue(source, destination),
                source,
                destination,
                place,
                due=now + delay,
            )
            self._entries[task] = entry
            self._bytes += task.size_bytes
            entry.queue.waiting[entry.number] = entry
            line = self._places.setdefault(place, OrderedDict())
            line[entry.number] = entry
            if len(line) == 1:
                self._admit(entry, now)

    def later(self, task: Task, delay: float) -> None:
        """Have a running job run again `delay` seconds from now, once `finish` was called for this run."""
        with self._lock:
            entry = self._entries.get(task)
            if entry is not None and entry.state is State.RUNNING:
                entry.again, entry.due = True, self._clock() + delay

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
        all the same: a row ends soon when others have jobs ready.
        """
        with self._lock:
            now = self._clock()
            last = self._entries.get(task)
            self._promote(now)
            if self._stopped or last is None or not last.has_lane or not last.queue.ready:
                return None
            queue = last.queue
            entry = queue.head()
            others_wait = len(self._turns) > 1
            if now - last.row_since > (SHORT_ROW_SECONDS if others_wait else LONG_ROW_SECONDS):
                return None
            if any(not server.breaker.closed for server in queue.servers):
                return None
            if others_wait and any(server.lanes > self._share for server in queue.servers):
                return None
            if entry.source is not last.source or entry.destination is not last.destination:
                return None
            self._begin(entry, now)
            entry.row_since = last.row_since
            last.has_lane, entry.has_lane = False, True
            return entry.task

    def finish(self, task: Task) -> None:
        """End a job's run: its lane share is free; unless it is to run `later`, its destination too, and it is gone."""
        with self._lock:
            entry = self._entries.get(task)
            if entry is None or entry.state is not State.RUNNING:
                return
            now = self._clock()
            again, entry.again = entry.again and not entry.dropped, False
            if entry.has_lane:
                self._possible.notify()
            self._land(entry, now, done=not again)
            if again:
                entry.queue.waiting[entry.number] = entry
                self._admit(entry, now)
            else:
                self._remove(entry, now)

    def drop(self, predicate: Callable[[Task], bool]) -> list[Task]:
        """Forget the jobs that `predicate` picks; return those that were not running.

        A running one stays until `finish`, and will not run again whatever `later` says.
        """
        with self._lock:
            now = self._clock()
            picked = [entry for task, entry in self._entries.items() if predicate(task)]
            gone = [entry for entry in picked if entry.state is not State.RUNNING]
            for entry in picked:
                entry.dropped = True
            for entry in gone:
                self._remove(entry, now)
            self._possible.notify()
            return [entry.task for entry in gone]

    def stop(self) -> None:
        """Hand out no more jobs; wake all that wait in `take`."""
        with self._possible:
            self._stopped = True
            self._possible.notify_all()

    # --- servers ----------------------------------------------------------------------------------------------

    def failed(self, name: str, error: BaseException) -> None:
        """Note that a server met a job with an outage; other errors say nothing about it.

        "Too many connections" while some of ours are open is no outage: the pool has shrunk, that is enough.
        """
        if fate_of(error) is not Fate.OUTAGE:
            return
        config = self._pools.server(name)
        if isinstance(error, ServerBusy) and self._pools.connected(config) > 0:
            return
        with self._lock:
            server = self._server(config)
            server.breaker.down(self._clock())
            self._down.add(server)
            self._possible.notify()

    def worked(self, name: str) -> None:
        """Note that a server answered a job: its breaker closes."""
        config = self._pools.server(name)
        with self._lock:
            server = self._server(config)
            if not server.breaker.closed:
                server.breaker.up()
                self._down.discard(server)
                self._possible.notify()

    def breaker_wait(self, name: str) -> float:
        """Return for how many seconds no job of this server will be tried."""
        config = self._pools.server(name)
        with self._lock:
            return self._server(config).breaker.wait(self._clock())

    # --- too much ---------------------------------------------------------------------------------------------

    def overflow(self) -> list[tuple[Task, float]]:
        """Take out what would fill the window for all, with the seconds each should wait: those served last first.

        Of a server whose breaker is open a few are kept; of the slow queues of one server a quarter of the window, and
        of all slow queues together half of it. Queues that are not slow keep everything.
        """
        with self._lock:
            now = self._clock()
            handed = self._beyond_breakers(now) + self._beyond_share(now)
            if handed:
                self._possible.notify()
            return handed

    @property
    def unfinished(self) -> tuple[int, int]:
        """Records and bytes of all jobs here: waiting, delayed, running."""
        with self._lock:
            return len(self._entries), self._bytes

    @property
    def full(self) -> bool:
        """Is the window full, so that no more should be polled?"""
        records, size_bytes = self.unfinished
        return records >= self._settings.window_records or size_bytes >= self._settings.window_bytes

    def stats(self) -> dict[str, int]:
        """Return how many jobs wait, and how many run."""
        with self._lock:
            running = sum(queue.running for queue in self._queues.values())
            return {"running": running, "waiting": len(self._entries) - running, "queues": len(self._turns)}

    # --- under the lock ---------------------------------------------------------------------------------------

    def _wake(self) -> None:
        with self._possible:
            self._possible.notify()

    def _server(self, config: ServerConfig) -> Server:
        key = self._pools.key(config)
        server = self._servers.get(key)
        if server is None:
            server = self._servers[key] = Server(Breaker(self._wait))
        return server

    def _queue(self, source: ServerConfig, destination: ServerConfig) -> Queue:
        key = (self._pools.key(source), self._pools.key(destination))
        queue = self._queues.get(key)
        if queue is None:
            servers = tuple(dict.fromkeys((self._server(source), self._server(destination))))
            queue = self._queues[key] = Queue(key, servers)
        return queue

    def _admit(self, entry: Entry, now: float) -> None:
        """Let the first in the line of its destination go: ready, or delayed until it is due."""
        if entry.due > now:
            entry.state = State.DELAYED
            heapq.heappush(self._delayed, (entry.due, entry.number, entry))
            self._possible.notify()
            return
        if not entry.queue.ready:  # else a lane looked for this pair already, and it had to wait
            self._possible.notify()
        entry.queue.push(entry)
        self._turns.setdefault(entry.queue.key, entry.queue)

    def _unready(self, entry: Entry) -> None:
        queue = entry.queue
        queue.ready -= 1
        if not queue.ready:
            queue.heap.clear()
            del self._turns[queue.key]

    def _promote(self, now: float) -> None:
        """Make the delayed jobs ready whose time has come."""
        while self._delayed and self._delayed[0][0] <= now:
            entry = heapq.heappop(self._delayed)[2]
            if entry.state is State.DELAYED and entry.due <= now:
                self._admit(entry, now)

    def _next(self, now: float) -> tuple[Task, Lease] | None:
        self._promote(now)
        full: set[Server] = set()
        claimed: set[Server] = set()
        beyond_share: list[Queue] = []
        refused: list[Queue] = []  # a server of theirs is full
        held_up: list[Queue] = []  # would run if connects were not under way: they wait for their share of lanes
        for queue in self._turns.values():  # all of them only when nothing can go: cheap tests first
            if self._down and not all(_is_open_to_jobs(server, now) for server in queue.servers):
                continue
            if claimed and not claimed.isdisjoint(queue.servers):
                continue
            if full.isdisjoint(queue.servers):
                if any(server.lanes >= self._share for server in queue.servers):
                    beyond_share.append(queue)
                    continue
                if (taken := self._release(queue, now)) is not None:
                    for other in refused:
                        queue.overtake(other)
                    return taken
                full |= self._full_of(queue)
            if full.isdisjoint(queue.servers):
                held_up.append(queue)
            else:
                refused.append(queue)
                if queue.overtaken:
                    claimed |= queue.claim(full, now)
        # Nobody within its share can go now. More than the share goes to those whose lanes nobody else waits for.
        for queue in beyond_share:
            if not claimed.isdisjoint(queue.servers) or any(s.lanes >= self._most for s in queue.servers):
                continue
            greedy = [server for server in queue.servers if server.lanes >= self._share]
            if any(server not in other.servers for server in greedy for other in held_up):
                continue
            if (taken := self._release(queue, now)) is not None:
                for other in refused:
                    queue.overtake(other)
                return taken
        return None

    def _full_of(self, queue: Queue) -> set[Server]:
        """Return which servers of a refused queue have no room; none: too many connects are under way."""
        entry = queue.head()
        sides = (entry.source, entry.destination)
        return {self._server(side) for side in sides if not self._pools.room(side)}

    def _release(self, queue: Queue, now: float) -> tuple[Task, Lease] | None:
        entry = queue.head()
        lease = self._pools.reserve(entry.source, entry.destination)
        if lease is None:
            return None
        self._turns.move_to_end(queue.key)
        self._begin(entry, now)
        queue.forget_claims()
        entry.has_lane, entry.row_since = True, now
        for server in queue.servers:
            server.lanes += 1
            if not server.breaker.closed:
                server.breaker.probe()
                server.prober = entry
        return entry.task, lease

    def _begin(self, entry: Entry, now: float) -> None:
        """Take the head of its queue to run."""
        queue = entry.queue
        heapq.heappop(queue.heap)
        self._unready(entry)
        entry.state = State.RUNNING
        del queue.waiting[entry.number]
        if not queue.running:
            queue.rate.begin(now)
        queue.running += 1

    def _land(self, entry: Entry, now: float, *, done: bool) -> None:
        queue = entry.queue
        if done:
            queue.rate.count(now)
        queue.running -= 1
        if not queue.running:
            queue.rate.end(now)
        had_lane, entry.has_lane = entry.has_lane, False
        for server in queue.servers:
            server.lanes -= had_lane
            if server.prober is entry:  # neither `failed` nor `worked` may have been said of this server
                server.prober = None
                server.breaker.forgo()

    def _remove(self, entry: Entry, now: float) -> None:
        """Forget a job; whoever is next in the line of its destination moves up."""
        if entry.state is State.READY:
            self._unready(entry)
        entry.state = State.GONE
        entry.queue.waiting.pop(entry.number, None)
        del self._entries[entry.task]
        self._bytes -= entry.task.size_bytes
        line = self._places[entry.place]
        was_first = next(iter(line)) == entry.number
        del line[entry.number]
        if not line:
            del self._places[entry.place]
        elif was_first:
            self._admit(next(iter(line.values())), now)

    def _seconds_to_next(self, now: float) -> float:
        """Return how long nothing becomes possible by time alone: the next delayed job, the next probe."""
        dues = [server.breaker.wait(now) or math.inf for server in self._down]
        if self._delayed:
            dues.append(max(0.0, self._delayed[0][0] - now))
        return min(dues, default=math.inf)

    def _beyond_breakers(self, now: float) -> list[tuple[Task, float]]:
        handed: list[tuple[Task, float]] = []
        for server in self._down:
            queues = [queue for queue in self._queues.values() if server in queue.servers]
            if sum(len(queue.waiting) for queue in queues) <= DOWN_KEEPS:
                continue
            wait = min(max(server.breaker.wait(now), SHORTEST_BUSY), LONGEST_BUSY)
            surplus = _in_turn(queues)[DOWN_KEEPS:]
            handed += self._hand_out(surplus, now, lambda _entry, wait=wait: wait)  # type: ignore[misc]  # bound per loop
        return handed

    def _beyond_share(self, now: float) -> list[tuple[Task, float]]:
        slow: dict[Queue, float] = {}
        for queue in self._queues.values():
            if queue.waiting:
                seconds, wait = queue.outlook(now)
                if seconds > SLOW_SECONDS:
                    slow[queue] = wait
        handed: list[tuple[Task, float]] = []
        groups = [([queue for queue in slow if server in queue.servers], 4) for server in self._servers.values()]
        for queues, part in [*groups, (list(slow), 2)]:
            handed += self._hand_out(self._surplus(queues, part), now, lambda entry: slow[entry.queue])
        return handed

    def _surplus(self, queues: list[Queue], part: int) -> list[Entry]:
        """Return what is beyond 1/`part` of the window, in records or bytes, in the order of service."""
        records, size_bytes = self._settings.window_records // part, self._settings.window_bytes // part
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

    def _hand_out(
        self, entries: list[Entry], now: float, seconds: Callable[[Entry], float]
    ) -> list[tuple[Task, float]]:
        handed = []
        for entry in reversed(entries):
            wait = min(max(seconds(entry), SHORTEST_BUSY), LONGEST_BUSY)
            if entry.state is State.DELAYED:
                wait = max(wait, entry.due - now)
            handed.append((entry.task, wait))
            self._remove(entry, now)
        return handed


def _is_open_to_jobs(server: Server, now: float) -> bool:
    """May a server get a job now: any, or one probe while it has no other."""
    return server.breaker.closed or (server.breaker.admits(now) and server.lanes == 0)


def _in_turn(queues: Iterable[Queue]) -> list[Entry]:
    return sorted((entry for queue in queues for entry in queue.waiting.values()), key=lambda entry: entry.turn)
