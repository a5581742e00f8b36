"""Which job a lane takes next, when it ends its lease for others, how many lanes there are.

**Least loaded first** (max-min fairness): of the pairs that could run, the next lane goes to the one whose busier
server has the fewest lanes; among equals they take turns. A lane ends its lease where that helps a pair with fewer. So
a server alone gets all lanes, two get half each, and one that just came is first.

ETL_WORKERS lanes are active, and some more run in place of those that are long at one job: a lane in a transfer of ten
minutes, or at a server that has fallen silent, moves nobody else's jobs. One that opens the first session with a server
moves no job at all: CONNECTING_LANES do nothing else, so that silent servers take no lane of those that answer.

Guarded by the dispatcher's lock; the clock is handed in, and delayed jobs whose time has come are ready. Asks the pools
and reserves sessions; opens none. Knows no Kafka, no protocol.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from etl.sessions.pool import Reason, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from etl.dispatch.backlog import Backlog, PairQueue, QueuedJob
    from etl.dispatch.servers import Server
    from etl.models.server import ServerConfig
    from etl.models.task import Task
    from etl.sessions.lease import Lease
    from etl.sessions.pools import Pools

SHORT_LEASE_SECONDS, LONG_LEASE_SECONDS = 0.5, 30.0  # how long a lane keeps its sessions while others wait, or do not
SPARE_LANES, CONNECTING_LANES = 8, 16  # threads beyond ETL_WORKERS
RECENT_SECONDS = 60.0  # for so long a pair that ran is expected to have jobs again
LONG_SECONDS = 3.0  # a lane that is at one job for longer does not count as active


class Load:
    """How loaded servers are at one moment, by the lanes that have both sessions of a job.

    Lanes that are long at one job load a server up to `half` of all lanes: it may have more, but only after others.
    """

    def __init__(self, active: list[QueuedJob], all_lanes: Iterable[QueuedJob], half: int) -> None:
        self.lanes = len(active)
        self._active, self._all = _by_server(active), _by_server(all_lanes)
        self._half = half

    def level(self, queue: PairQueue) -> list[int]:
        """Return the load of the busier server of a queue, then that of the other."""
        return sorted((self.of(queue.servers[0]), self.of(queue.servers[-1])), reverse=True)

    def apart(self, queue: PairQueue, other: PairQueue) -> int:
        """Return the load of the busier server of a queue that `other` does not have, too."""
        return max((self.of(server) for server in queue.servers if server not in other.servers), default=0)

    def of(self, server: Server) -> int:
        """Return the load of a server."""
        return max(self._active.get(server, 0), min(self._all.get(server, 0), self._half))


def _by_server(lanes: Iterable[QueuedJob]) -> dict[Server, int]:
    """Count the lanes of each server. Asked for so often that a Counter, and what it is told by, would cost more."""
    counts: dict[Server, int] = {}
    for entry in lanes:
        for server in entry.queue.servers:
            counts[server] = counts.get(server, 0) + 1
    return counts


class LaneBudget:
    """The lanes at work, by the job that each took last."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self.half = max(1, workers // 2)
        self._at_work: dict[QueuedJob, float] = {}  # since when
        self._connecting: set[QueuedJob] = set()

    def __repr__(self) -> str:
        return f"<LaneBudget workers={self._workers} at_work={len(self._at_work)} connecting={len(self._connecting)}>"

    def enter(self, entry: QueuedJob, now: float, *, connects: bool) -> None:
        """Count a lane as busy. `connects`: it only opens the first session with a server."""
        if connects:
            self._connecting.add(entry)
        else:
            self._at_work[entry] = now

    def leave(self, entry: QueuedJob) -> bool:
        """Count a lane as free. Return whether it had both sessions; it only connected otherwise."""
        had_both = self._at_work.pop(entry, None) is not None
        if not had_both:
            self._connecting.remove(entry)
        return had_both

    def load(self, now: float, moving: QueuedJob | None = None) -> Load:
        """Return the load now. Lanes that are not long at their job are active, and so is that of `moving`."""
        work = self._at_work.items()
        active = [entry for entry, since in work if now - since <= LONG_SECONDS or entry is moving]
        return Load(active, self._at_work, self.half)

    def has_room(self, load: Load, *, newcomer: bool, connects: bool) -> bool:
        """May one more lane go to work? `newcomer`: for a server that has none; one lane more is kept for those."""
        if connects:
            return len(self._connecting) < CONNECTING_LANES
        return len(self._at_work) < self._workers + SPARE_LANES and load.lanes < self._workers + newcomer

    def is_over(self, now: float) -> bool:
        """Are there too many active lanes, since some that were long at one job go on?"""
        most = self._workers + 1
        return len(self._at_work) > most and self.load(now).lanes > most


class Scheduler:
    """Gives lanes to pairs of servers: the least loaded first."""

    def __init__(self, pools: Pools, backlog: Backlog, workers: int) -> None:
        self._pools = pools
        self._backlog = backlog
        self._budget = LaneBudget(workers)
        self._last_ran: dict[PairQueue, float] = {}  # when a lane with both sessions left each queue last
        self._look_at = math.inf  # when a queue that has jobs ready may get a lane by time alone

    def __repr__(self) -> str:
        return f"<Scheduler {self._budget} {list(self._backlog.ready.values())}>"

    def select(self, now: float) -> tuple[Task, Lease] | None:
        """Select the next job and reserve its sessions, or only that of a server which must be connected to first."""
        self._look_at = math.inf
        load: Load | None = None  # nobody asks for it while no queue may run
        is_full: dict[Server, bool] = {}  # as far as it was asked
        reserved: set[Server] = set()  # whose free sessions are kept for a queue
        able: list[tuple[bool, list[int], int, PairQueue, ServerConfig | None]] = []
        for turn, queue in enumerate(self._backlog.ready.values()):
            if not self._may_run(queue, now):
                continue
            side = self._needs_connect(queue)
            newcomer = not (queue.servers[0].lanes and queue.servers[-1].lanes)
            load = load or self._budget.load(now)
            if not self._budget.has_room(load, newcomer=newcomer, connects=side is not None):
                continue
            level = load.level(queue)
            if side is None and self._is_full(queue, is_full):
                queue.refuse(now)
                if queue.is_starving(now):
                    reserved.update(queue.servers)
                continue
            if any(level):
                able.append((not queue.is_starving(now), level, turn, queue, side))
            elif (taken := self._begin(queue, side, reserved, now)) is not None:
                return taken  # nobody can have fewer
        for _, _, _, queue, side in sorted(able):
            if (taken := self._begin(queue, side, reserved, now)) is not None:
                return taken
        return None

    def _is_full(self, queue: PairQueue, known: dict[Server, bool]) -> bool:
        """Has one of its servers no session to lend?"""
        for side, server in _ends(queue):
            if server not in known:
                known[server] = self._pools.refusal(side) is Reason.FULL
        return any(known[server] for server in queue.servers)

    @property
    def next_at(self) -> float:
        """When something may become possible by time alone: a delayed job, a probe, a lane more of a queue."""
        delayed = self._backlog.delayed
        return min(self._look_at, delayed[0][0] if delayed else math.inf)

    def _may_run(self, queue: PairQueue, now: float) -> bool:
        """Are its servers open to jobs, and is it worth one lane more? Else note when that may change by itself."""
        for server in queue.servers:
            if not server.is_open_to_jobs(now):
                self._look_at = min(self._look_at, now + (server.breaker.open_for(now) or math.inf))
                return False
        if not queue.concurrency.admits(now):
            self._look_at = min(self._look_at, queue.concurrency.due(now))
            return False
        return True

    def _needs_connect(self, queue: PairQueue) -> ServerConfig | None:
        """Return the side that has no open session, so a lane must connect there first; None if both have one.

        If both lack one, prefer the side whose breaker is open: this connect is its half-open probe. Where both sides
        are one server, its own session is both.
        """
        if len(queue.servers) == 1:
            return None
        missing = [(side, server) for side, server in _ends(queue) if not self._pools.connected(side)]
        return min(missing, key=lambda end: end[1].breaker.closed)[0] if missing else None

    def _keeps_a_last(self, queue: PairQueue, now: float) -> bool:
        """Would a server with half of the lanes lend its last session, which another pair used a moment ago?

        That one may have no job ready in this instant; a partner that falls silent with all sessions would keep it out.
        """
        return any(
            server.lanes >= self._budget.half
            and server.lanes + 1 >= server.config.max_connections
            and any(
                server in other.servers and other is not queue and not other.lanes and now - at <= RECENT_SECONDS
                for other, at in self._last_ran.items()
            )
            for server in queue.servers
        )

    def _begin(
        self, queue: PairQueue, side: ServerConfig | None, reserved: set[Server], now: float
    ) -> tuple[Task, Lease] | None:
        """Run the head of a queue with a lease of both sides, or of one; None: it cannot be had."""
        entry = queue.head()
        if side is None and (not reserved.isdisjoint(queue.servers) or self._keeps_a_last(queue, now)):
            return None
        lease = self._pools.reserve(*(entry.sides if side is None else (side,)))
        if isinstance(lease, Refusal):
            return None
        # It counts for, and probes, only the servers whose sessions it holds: a silent one says nothing of its partner.
        entry.held = queue.servers if side is None else tuple(server for end, server in _ends(queue) if end is side)
        for server in entry.held:
            server.breaker.half_open(entry)
        if side is None:
            queue.refused_since = math.inf
        self._backlog.ready.move_to_end(queue.key)
        self._backlog.begin(entry)
        queue.yielded_to = -math.inf
        entry.has_lane, entry.lease_since = True, now
        self._budget.enter(entry, now, connects=not lease.is_pair)
        self._count_lanes(entry, 1, now)
        return entry.task, lease

    def next_for(self, last: QueuedJob, now: float) -> Task | None:
        """Return the next job of a running one's queue, for the same sessions; None: its lease ends."""
        queue = last.queue
        if not last.has_lane or not queue.ready:
            return None
        entry = queue.head()
        if entry.sides != last.sides or queue.concurrency.is_over:
            return None
        is_up = queue.servers[0].breaker.closed and queue.servers[-1].breaker.closed
        if not is_up or self._budget.is_over(now) or self._yields(last, now):
            return None
        self._backlog.begin(entry)
        entry.lease_since = last.lease_since
        last.has_lane, entry.has_lane = False, True
        entry.held = last.held
        self._budget.leave(last)
        self._budget.enter(entry, now, connects=False)
        return entry.task

    def _yields(self, last: QueuedJob, now: float) -> bool:
        """Must a lane end its lease for another queue that needs the lane or the sessions more? Notes for which."""
        queue, seconds = last.queue, now - last.lease_since
        if seconds > LONG_LEASE_SECONDS:
            return True
        if len(self._backlog.ready) == 1:
            return False  # nobody else has a job that could run
        load = self._budget.load(now, last)
        lead = 1 if seconds > SHORT_LEASE_SECONDS else 2  # lanes by which it must be ahead of the other
        if load.level(queue)[0] < lead:
            return False
        for other in self._backlog.ready.values():
            # One lease is enough until that queue has had its turn.
            if now - other.yielded_to > SHORT_LEASE_SECONDS and self._would_gain(other, queue, load, lead, now):
                other.yielded_to = now
                return True
        return False

    def _would_gain(self, queue: PairQueue, giving: PairQueue, load: Load, lead: int, now: float) -> bool:
        """Is `giving` ahead by `lead` lanes, and would `queue` get a lane, or a reservation, if it released one?

        A queue without lanes may find one of its servers full whenever the other is free: it needs a reservation.
        """
        if queue is giving:
            return False
        shared = [server for server in queue.servers if server in giving.servers]
        is_starving = bool(shared) and not queue.lanes and lead == 1
        if not is_starving and load.apart(queue, giving) + lead > load.apart(giving, queue):
            return False
        if not self._may_run(queue, now) or self._needs_connect(queue) is not None:
            return False  # a connect needs none of these sessions, and has lanes of its own
        refusals = {self._pools.refusal(side) for side, server in _ends(queue) if server not in shared} - {None}
        return not refusals or (is_starving and refusals == {Reason.FULL})

    def leave(self, entry: QueuedJob, now: float) -> None:
        """Free what a run held: its lane, unless the next job of the lease has it; and its being a probe."""
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
