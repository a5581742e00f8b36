"""Which job a lane takes next, when it ends its lease for others, how many lanes there are and a server gets.

    Scheduler(pools, backlog, down, workers)    `down`: the servers whose breaker is not closed; the dispatcher's set
    .select(now) -> (task, lease) | None        a lane begins with the sessions of a pair
    .next_for(last, now) -> task | None         it goes on with them after the job that it took last, or gives them back
    .leave(entry, now)                          a run is over: what it held is free
    .seconds_to_next(now)                       for how long `select` finds nothing more by time alone

ETL_WORKERS lanes run, and some more in place of those that are long at one job: a lane in a transfer of ten minutes, or
at a server that has fallen silent, moves nobody else's jobs. Lanes are cheap: up to SPARE_LANES more work for other
servers meanwhile. One that opens the first session with a server moves no job at all: CONNECTING_LANES do nothing else,
so that silent servers take no lane of those that answer.

Guarded by the dispatcher's lock; the clock is handed in, and delayed jobs whose time has come are ready. Asks the pools
for room and reserves sessions; opens none. Knows no Kafka, no protocol.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from etl.dispatch.servers import RECENT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from etl.dispatch.backlog import Backlog, PairQueue, QueuedJob
    from etl.dispatch.servers import Server
    from etl.models.server import ServerConfig
    from etl.models.task import Task
    from etl.sessions.lease import Lease
    from etl.sessions.pools import Pools

SHORT_LEASE_SECONDS, LONG_LEASE_SECONDS = 0.5, 30.0  # how long a lane keeps its sessions while others wait, or do not
NEAR_SECONDS = 0.5  # how long a connect may take while lanes are kept for those that wait for it
SPARE_LANES, CONNECTING_LANES = 8, 16  # threads beyond ETL_WORKERS
LONG_SECONDS = 3.0  # a lane that is at one job for longer does not count among the active ones


class LaneBudget:
    """The lanes at work, by the job that each took last."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._at_work: dict[QueuedJob, float] = {}  # since when
        self._connecting: set[QueuedJob] = set()

    def enter(self, entry: QueuedJob, now: float, *, connects: bool) -> None:
        """Count a lane as busy. `connects`: it only opens the first session with a server."""
        if connects:
            self._connecting.add(entry)
        else:
            self._at_work[entry] = now

    def pass_on(self, last: QueuedJob, entry: QueuedJob, now: float) -> None:
        """The lane of `last` took `entry`."""
        self.leave(last)
        self._at_work[entry] = now

    def leave(self, entry: QueuedJob) -> bool:
        """The lane is free. Return whether it had both sessions; it only connected otherwise."""
        had_both = self._at_work.pop(entry, None) is not None
        if not had_both:
            self._connecting.remove(entry)
        return had_both

    def active(self, now: float, server: Server | None = None) -> int:
        """Return how many lanes (of a server) have both sessions of a job, and are not long at it."""
        return sum(
            now - since <= LONG_SECONDS and (server is None or server in entry.queue.servers)
            for entry, since in self._at_work.items()
        )

    def holding(self, server: Server) -> int:
        """Return how many lanes hold a session of a server, and one of its partner."""
        return sum(server in entry.queue.servers for entry in self._at_work)

    def has_room(self, now: float, *, newcomer: bool, connects: bool) -> bool:
        """May one more lane go to work? `newcomer`: for servers that hold none; one lane more is kept for those."""
        if connects:
            return len(self._connecting) < CONNECTING_LANES
        return len(self._at_work) < self._workers + SPARE_LANES and self.active(now) < self._workers + newcomer

    def is_over(self, now: float) -> bool:
        """Are there too many at work, since those that were long at one job go on?"""
        most = self._workers + 1
        return len(self._at_work) > most and self.active(now) > most


class Scheduler:
    """Queues in turn; a server gets its share of the lanes, or more while nobody else wants them."""

    def __init__(self, pools: Pools, backlog: Backlog, down: AbstractSet[Server], workers: int) -> None:
        self._pools = pools
        self._backlog = backlog
        self._down = down
        self._budget = LaneBudget(workers)
        self._share = max(1, workers // 2)
        self._most = workers  # of one server while no other wants them
        self._last_ran: dict[PairQueue, float] = {}  # when a lane with both sessions left each queue last
        self._grows_at = math.inf  # when a queue that has jobs ready may get another lane

    # --- a row begins -----------------------------------------------------------------------------------------

    def select(self, now: float) -> tuple[Task, Lease] | None:
        """Begin a row: return the next job and its sessions, or that of one side which must be reached first."""
        self._grows_at = math.inf
        full: set[Server] = set()
        reserved: set[Server] = set()
        at_share: list[tuple[PairQueue, ServerConfig | None]] = []  # a server of theirs has its share of the lanes
        blocked: list[PairQueue] = []  # a server of theirs is full
        connecting: list[PairQueue] = []  # will run once connects are through: they wait for their share of lanes
        for queue in self._backlog.ready.values():  # all of them only when nothing can go: cheap tests first
            if self._down and not all(server.is_open_to_jobs(now) for server in queue.servers):
                continue
            if not queue.concurrency.admits(now):
                self._grows_at = min(self._grows_at, queue.concurrency.due(now))
                continue
            needs_connect = self._needs_connect(queue)
            newcomer = not all(server.lanes for server in queue.servers)
            if not self._budget.has_room(now, newcomer=newcomer, connects=needs_connect is not None):
                continue
            if reserved and not reserved.isdisjoint(queue.servers):
                continue
            if full.isdisjoint(queue.servers):
                if any(server.lanes >= self._share for server in queue.servers):
                    at_share.append((queue, needs_connect))
                    continue
                if (taken := self._begin(queue, needs_connect, blocked, now)) is not None:
                    return taken
                full |= self._full_of(queue)
            if full.isdisjoint(queue.servers):
                if self._is_near(queue):
                    connecting.append(queue)
            else:
                blocked.append(queue)
                if queue.passed_over:
                    reserved |= queue.reserve(full, now)
        # Nobody within its share can go now. More than the share goes to those whose lanes nobody else waits for.
        for queue, needs_connect in at_share:
            if not reserved.isdisjoint(queue.servers) or not self._may_exceed(queue, connecting, now):
                continue
            if (taken := self._begin(queue, needs_connect, blocked, now)) is not None:
                return taken
        return None

    def seconds_to_next(self, now: float) -> float:
        """Return how long nothing becomes possible by time alone: the next delayed job, the next probe."""
        dues = [server.breaker.open_for(now) or math.inf for server in self._down]
        dues.append(max(0.0, self._grows_at - now))
        dues.append(max(0.0, self._backlog.next_due - now))
        return min(dues)

    def _may_exceed(self, queue: PairQueue, connecting: list[PairQueue], now: float) -> bool:
        """May its servers hold more than their share: not all there are, and none that others will want at once?"""
        if any(self._budget.active(now, server) >= self._most for server in queue.servers):
            return False
        over_share = [server for server in queue.servers if server.lanes >= self._share]
        if any(self._keeps_last(server, queue, now) for server in over_share):
            return False
        return all(server in other.servers for server in over_share for other in connecting)

    def _keeps_last(self, server: Server, queue: PairQueue, now: float) -> bool:
        """Is the last session of a server kept for another queue than this, that had a lane just now?

        It may have no job ready in this instant; a partner that falls silent with all sessions would keep it from them.
        """
        if self._budget.holding(server) + 1 < server.config.max_connections:
            return False
        return any(
            server in other.servers and other is not queue and not other.lanes and now - at <= RECENT_SECONDS
            for other, at in self._last_ran.items()
        )

    def _full_of(self, queue: PairQueue) -> set[Server]:
        """Return which servers of a refused queue have no room; none: too many connects are under way."""
        return {server for side, server in _ends(queue) if not self._pools.room(side)}

    def _is_near(self, queue: PairQueue) -> bool:
        """Did the connect that a queue waits for begin just now, so that it may soon be through?"""
        waits = (self._pools.connecting_for(side) for side in queue.head().sides)
        return all(seconds is None or seconds < NEAR_SECONDS for seconds in waits)

    def _begin(
        self, queue: PairQueue, needs_connect: ServerConfig | None, blocked: list[PairQueue], now: float
    ) -> tuple[Task, Lease] | None:
        """Begin with the head of a queue, if there are sessions for it; those `refused` were before it in turn.

        Of a server that none is open with, that alone is taken: until it answers it holds no other's.
        """
        entry = queue.head()
        lease = self._pools.reserve(*entry.sides) if needs_connect is None else self._pools.reserve(needs_connect)
        if lease is None:
            return None
        # A lane counts for, and probes, only the servers whose sessions its lease holds: what it learns at a silent one
        # says nothing of the partner, which must not lose lanes to it.
        held = (
            queue.servers
            if needs_connect is None
            else (server for side, server in _ends(queue) if side is needs_connect)
        )
        entry.held = tuple(held)
        self._backlog.ready.move_to_end(queue.key)
        self._backlog.begin(entry)
        queue.end_reservation()
        queue.yielded_to = -math.inf
        entry.has_lane, entry.lease_since = True, now
        self._budget.enter(entry, now, connects=not lease.is_pair)
        self._count_lanes(entry, 1, now)
        for server in entry.held:
            server.breaker.half_open(entry)
        for other in blocked:
            queue.pass_over(other)
        return entry.task, lease

    def _needs_connect(self, queue: PairQueue) -> ServerConfig | None:
        """Return which of two servers no session is open with, so that a lane has to knock there first; None: neither.

        Of two one that is down: the job is its probe. Where both are one server its own session is both, and there is
        nobody to hold up.
        """
        if len(queue.servers) == 1:
            return None
        needs_connect = [(side, server) for side, server in _ends(queue) if not self._pools.connected(side)]
        return min(needs_connect, key=lambda end: end[1].breaker.closed)[0] if needs_connect else None

    # --- it goes on -------------------------------------------------------------------------------------------

    def next_for(self, last: QueuedJob, now: float) -> Task | None:
        """Return the next job of a running one's queue, for the same sessions; None: its row ends."""
        queue = last.queue
        if not last.has_lane or not queue.ready:
            return None
        entry = queue.head()
        if entry.source is not last.source or entry.destination is not last.destination:
            return None
        if self._down and not self._down.isdisjoint(queue.servers):
            return None
        if queue.concurrency.is_over or self._budget.is_over(now) or self._yields(last, now):
            return None
        self._backlog.begin(entry)
        entry.lease_since = last.lease_since
        last.has_lane, entry.has_lane = False, True
        entry.held = last.held
        self._budget.pass_on(last, entry, now)
        return entry.task

    def _yields(self, last: QueuedJob, now: float) -> bool:
        """Must a row end, for another queue that could use its lane or its sessions? Notes for which."""
        queue, seconds = last.queue, now - last.lease_since
        if seconds > LONG_LEASE_SECONDS:
            return True
        if len(self._backlog.ready) == 1:
            return False  # nobody else has a job that could run
        if seconds <= SHORT_LEASE_SECONDS and all(server.lanes <= self._share for server in queue.servers):
            return False
        for other in self._backlog.ready.values():
            if now - other.yielded_to > SHORT_LEASE_SECONDS and self._would_gain(other, queue, now):
                other.yielded_to = now  # one row is enough, until it had its turn
                return True
        return False

    def _would_gain(self, queue: PairQueue, giving: PairQueue, now: float) -> bool:
        """Could a job of `queue` run if a lane of `giving` ended, or get nearer to it?

        Nearer: without any lane, it finds one of its servers full whenever the other is free, until it claims them.
        """
        if queue is giving or not queue.concurrency.admits(now):
            return False
        if not all(server.is_open_to_jobs(now) for server in queue.servers):
            return False
        if self._needs_connect(queue) is not None:
            return False  # whoever connects there takes none of these sessions, and has lanes of its own
        others = [(side, server) for side, server in _ends(queue) if server not in giving.servers]
        if any(self._pools.connecting_for(side) is not None for side, _ in others):
            return False
        if not queue.lanes and not set(queue.servers).isdisjoint(giving.servers):
            return True
        return all(server.lanes < self._share and self._pools.room(side) for side, server in others)

    # --- it ends ----------------------------------------------------------------------------------------------

    def leave(self, entry: QueuedJob, now: float) -> None:
        """Free what a run held: its lane, unless a later one of its row has it; and its being a probe."""
        if entry.has_lane:
            entry.has_lane = False
            if self._budget.leave(entry):
                self._last_ran[entry.queue] = now
            self._count_lanes(entry, -1, now)
        for server in entry.held:
            server.breaker.release_probe(entry)

    def _count_lanes(self, entry: QueuedJob, change: int, now: float) -> None:
        queue = entry.queue
        queue.lanes += change
        queue.concurrency.set_lanes(now, queue.lanes)
        for server in entry.held:
            server.lanes += change


def _ends(queue: PairQueue) -> Iterable[tuple[ServerConfig, Server]]:
    """Return source and destination of a queue's next job, by its names of them, and what is known of them."""
    return zip(queue.head().sides, (queue.servers[0], queue.servers[-1]), strict=True)
