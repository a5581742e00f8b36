"""Whose turn it is: which job a lane takes next, when its row ends for others, how many lanes a server gets.

    Turns(pools, table, down, workers)          `down`: the servers whose breaker is not closed; the dispatcher's set
    .next(now) -> (task, lease) | None          a lane begins a row of jobs with the same sessions
    .go_on(last, now) -> task | None            the row goes on after the job that it took last, or ends
    .leave(entry, now)                          a run is over: what it held is free
    .seconds_to_next(now)                       for how long `next` finds nothing more by time alone

Guarded by the dispatcher's lock; the clock is handed in, and delayed jobs whose time has come are ready. Asks the pools
for room and reserves sessions; opens none. Knows no Kafka, no protocol.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from etl.dispatch.crew import Crew

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from etl.dispatch.backlog import Entry, Queue
    from etl.dispatch.servers import Server
    from etl.dispatch.table import Table
    from etl.models.server import ServerConfig
    from etl.models.task import Task
    from etl.sessions.lease import Lease
    from etl.sessions.pools import Pools

SHORT_ROW_SECONDS, LONG_ROW_SECONDS = 0.5, 30.0  # how long a lane keeps its sessions while others wait, or do not
RECENT_SECONDS = 60.0  # for how long a place is kept for a pair of servers that had a lane: its next jobs may be near
NEAR_SECONDS = 0.5  # how long a connect may take while lanes are kept for those that wait for it


class Turns:
    """Queues in turn; a server gets its share of the lanes, or more while nobody else wants them."""

    def __init__(self, pools: Pools, table: Table, down: AbstractSet[Server], workers: int) -> None:
        self._pools = pools
        self._table = table
        self._down = down
        self._crew = Crew(workers)
        self._share = max(1, workers // 2)
        self._most = workers  # of one server while no other wants them
        self._ran: dict[Queue, float] = {}  # when a lane with both sessions left each queue last
        self._grows_at = math.inf  # when a queue that has jobs ready may get another lane

    # --- a row begins -----------------------------------------------------------------------------------------

    def next(self, now: float) -> tuple[Task, Lease] | None:
        """Begin a row: return the next job and its sessions, or that of one side which must be reached first."""
        self._grows_at = math.inf
        full: set[Server] = set()
        claimed: set[Server] = set()
        sated: list[tuple[Queue, ServerConfig | None]] = []  # a server of theirs has its share of the lanes
        refused: list[Queue] = []  # a server of theirs is full
        held_up: list[Queue] = []  # will run once connects are through: they wait for their share of lanes
        for queue in self._table.ready.values():  # all of them only when nothing can go: cheap tests first
            if self._down and not all(server.is_open_to_jobs(now) for server in queue.servers):
                continue
            if not queue.climb.admits(now):
                self._grows_at = min(self._grows_at, queue.climb.due(now))
                continue
            unreached = self._unreached(queue)
            newcomer = not all(server.lanes for server in queue.servers)
            if not self._crew.has_room(now, newcomer=newcomer, knocks=unreached is not None):
                continue
            if claimed and not claimed.isdisjoint(queue.servers):
                continue
            if full.isdisjoint(queue.servers):
                if any(server.lanes >= self._share for server in queue.servers):
                    sated.append((queue, unreached))
                    continue
                if (taken := self._begin(queue, unreached, refused, now)) is not None:
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
        for queue, unreached in sated:
            if not claimed.isdisjoint(queue.servers) or not self._may_exceed(queue, held_up, now):
                continue
            if (taken := self._begin(queue, unreached, refused, now)) is not None:
                return taken
        return None

    def seconds_to_next(self, now: float) -> float:
        """Return how long nothing becomes possible by time alone: the next delayed job, the next probe."""
        dues = [server.breaker.wait(now) or math.inf for server in self._down]
        dues.append(max(0.0, self._grows_at - now))
        dues.append(max(0.0, self._table.next_due - now))
        return min(dues)

    def _may_exceed(self, queue: Queue, held_up: list[Queue], now: float) -> bool:
        """May its servers hold more than their share: not all there are, and none that others will want at once?"""
        if any(self._crew.moving(now, server) >= self._most for server in queue.servers):
            return False
        greedy = [server for server in queue.servers if server.lanes >= self._share]
        if any(self._keeps_last(server, queue, now) for server in greedy):
            return False
        return all(server in other.servers for server in greedy for other in held_up)

    def _keeps_last(self, server: Server, queue: Queue, now: float) -> bool:
        """Is the last session of a server kept for another queue than this, that had a lane just now?

        It may have no job ready in this instant; a partner that falls silent with all sessions would keep it from them.
        """
        if self._crew.holding(server) + 1 < server.config.max_connections:
            return False
        return any(
            server in other.servers and other is not queue and not other.lanes and now - at <= RECENT_SECONDS
            for other, at in self._ran.items()
        )

    def _full_of(self, queue: Queue) -> set[Server]:
        """Return which servers of a refused queue have no room; none: too many connects are under way."""
        return {server for side, server in _ends(queue) if not self._pools.room(side)}

    def _is_near(self, queue: Queue) -> bool:
        """Did the connect that a queue waits for begin just now, so that it may soon be through?"""
        waits = (self._pools.connecting_for(side) for side in queue.head().sides)
        return all(seconds is None or seconds < NEAR_SECONDS for seconds in waits)

    def _begin(
        self, queue: Queue, unreached: ServerConfig | None, refused: list[Queue], now: float
    ) -> tuple[Task, Lease] | None:
        """Begin with the head of a queue, if there are sessions for it; those `refused` were before it in turn.

        Of a server that none is open with, that alone is taken: until it answers it holds no other's.
        """
        entry = queue.head()
        lease = self._pools.reserve(*entry.sides) if unreached is None else self._pools.reserve(unreached)
        if lease is None:
            return None
        # A lane counts for, and probes, only the servers whose sessions its lease holds: what it learns at a silent one
        # says nothing of the partner, which must not lose lanes to it.
        held = queue.servers if unreached is None else (server for side, server in _ends(queue) if side is unreached)
        entry.held = tuple(held)
        self._table.ready.move_to_end(queue.key)
        self._table.begin(entry)
        queue.forget_claims()
        queue.yielded_to = -math.inf
        entry.has_lane, entry.row_since = True, now
        self._crew.enter(entry, now, knocks=not lease.is_pair)
        self._count_lanes(entry, 1, now)
        for server in entry.held:
            if not server.breaker.closed:
                server.breaker.probe()
                server.prober = entry
        for other in refused:
            queue.overtake(other)
        return entry.task, lease

    def _unreached(self, queue: Queue) -> ServerConfig | None:
        """Return which of two servers no session is open with, so that a lane has to knock there first; None: neither.

        Of two one that is down: the job is its probe. Where both are one server its own session is both, and there is
        nobody to hold up.
        """
        if len(queue.servers) == 1:
            return None
        unreached = [(side, server) for side, server in _ends(queue) if not self._pools.connected(side)]
        return min(unreached, key=lambda end: end[1].breaker.closed)[0] if unreached else None

    # --- it goes on -------------------------------------------------------------------------------------------

    def go_on(self, last: Entry, now: float) -> Task | None:
        """Return the next job of a running one's queue, for the same sessions; None: its row ends."""
        queue = last.queue
        if not last.has_lane or not queue.ready:
            return None
        entry = queue.head()
        if entry.source is not last.source or entry.destination is not last.destination:
            return None
        if self._down and not self._down.isdisjoint(queue.servers):
            return None
        if queue.climb.is_over or self._crew.is_over(now) or self._yields(last, now):
            return None
        self._table.begin(entry)
        entry.row_since = last.row_since
        last.has_lane, entry.has_lane = False, True
        entry.held = last.held
        self._crew.go_on(last, entry, now)
        return entry.task

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
        if self._unreached(queue) is not None:
            return False  # whoever knocks there takes none of these sessions, and has lanes of its own
        others = [(side, server) for side, server in _ends(queue) if server not in giving.servers]
        if any(self._pools.connecting_for(side) is not None for side, _ in others):
            return False
        if not queue.lanes and not set(queue.servers).isdisjoint(giving.servers):
            return True
        return all(server.lanes < self._share and self._pools.room(side) for side, server in others)

    # --- it ends ----------------------------------------------------------------------------------------------

    def leave(self, entry: Entry, now: float) -> None:
        """Free what a run held: its lane, unless a later one of its row has it; and its being a probe."""
        if entry.has_lane:
            entry.has_lane = False
            if self._crew.leave(entry):
                self._ran[entry.queue] = now
            self._count_lanes(entry, -1, now)
        for server in entry.held:
            if server.prober is entry:  # neither `failed` nor `worked` may have been said of this server
                server.prober = None
                server.breaker.forgo()

    def _count_lanes(self, entry: Entry, change: int, now: float) -> None:
        queue = entry.queue
        queue.lanes += change
        queue.climb.set_lanes(now, queue.lanes)
        for server in entry.held:
            server.lanes += change


def _ends(queue: Queue) -> Iterable[tuple[ServerConfig, Server]]:
    """Return source and destination of a queue's next job, by its names of them, and what is known of them."""
    return zip(queue.head().sides, (queue.servers[0], queue.servers[-1]), strict=True)
