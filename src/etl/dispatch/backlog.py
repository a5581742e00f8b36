"""What the dispatcher keeps: the jobs of a pair of servers in the order of service, their rate, their lanes.

State, and what follows from that of one queue: which places are kept for it (`claim`), how long it will take
(`outlook`). Guarded by the dispatcher's lock; the clock is handed in. Knows no pool, no Kafka.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etl.dispatch.concurrency import Climb
    from etl.dispatch.servers import Server
    from etl.models.server import ServerConfig
    from etl.models.task import Task

SLOW_SECONDS = 30.0  # a queue that takes longer is slow: what is beyond its part of the window is set aside
SURE_SECONDS = 3.0  # with jobs, before a rate says anything: the first job waits for logins
QUIET_SECONDS = 10.0  # without a finished job for so long, a rate of the past says nothing
OVERTAKEN = 8  # how often, at each of its servers, before a queue keeps a place there
CLAIM_SECONDS = 2.0  # how long a place is kept empty for a queue whose other server is full
CROWDED_SECONDS = 60.0  # without a job set aside, before a queue counts as not slow any more
RATE_SECONDS = 20.0  # the time constant of a queue's rate


class State(Enum):
    """Where a job is."""

    READY = "ready"
    FOLLOWING = "following"  # an earlier job writes the same destination
    DELAYED = "delayed"
    RUNNING = "running"
    GONE = "gone"


class Rate:
    """Jobs finished per second in which the queue had any; a queue that idles keeps its rate.

    While they waited for a lane or for sessions, too: a server with many partners is slow for each of them.
    """

    def __init__(self) -> None:
        self._count = 0.0  # finished jobs, fading
        self._faded_at = 0.0  # in busy seconds, as of `_count`
        self._busy = 0.0
        self._since: float | None = None

    def begin(self, now: float) -> None:
        """The queue has jobs from now on."""
        self._since = now

    def end(self, now: float) -> None:
        """The queue has no jobs from now on."""
        self._busy, self._since = self.busy(now), None

    def busy(self, now: float) -> float:
        """Return for how many seconds the queue has had jobs."""
        return self._busy + (0.0 if self._since is None else max(0.0, now - self._since))

    def count(self, now: float) -> None:
        """One job finished."""
        busy = self.busy(now)
        self._count = 1.0 + self._count * math.exp((self._faded_at - busy) / RATE_SECONDS)
        self._faded_at = busy

    def quiet(self, now: float) -> float:
        """Return for how many of those seconds nothing finished."""
        return self.busy(now) - self._faded_at

    def per_second(self, now: float) -> float | None:
        """Return the recent rate; None: nothing finished yet."""
        if not self._count:
            return None
        busy = self.busy(now)
        seen = RATE_SECONDS * -math.expm1(-busy / RATE_SECONDS)  # of a fading count, while it has run for `busy` only
        return self._count * math.exp((self._faded_at - busy) / RATE_SECONDS) / max(seen, 0.001)


@dataclass(eq=False)
class Queue:
    """The jobs of one pair of servers."""

    key: object
    servers: tuple[Server, ...]  # one or two
    climb: Climb
    lanes: int = 0
    heap: list[tuple[int, int, Entry]] = field(default_factory=list)  # by turn; some may not be ready any more
    ready: int = 0
    waiting: dict[int, Entry] = field(default_factory=dict)  # ready, following and delayed, by their number
    running: int = 0
    rate: Rate = field(default_factory=Rate)
    overtaken: dict[Server, int] = field(default_factory=dict)  # since it was refused first
    claims: set[Server] = field(default_factory=set)
    kept_since: float | None = None  # since when a claimed place is kept empty
    crowded_since: float = -math.inf  # since when it has been slow, and jobs of it are set aside
    crowded_until: float = -math.inf  # when one was, last
    yielded_to: float = -math.inf  # when a row of another queue ended for it, since its last turn

    @property
    def is_idle(self) -> bool:
        """Has it no jobs at all?"""
        return not self.running and not self.waiting

    def restart(self, now: float) -> None:
        """Begin anew: one of its servers was down, and is back."""
        self.climb.restart()
        self.rate = Rate()
        if not self.is_idle:
            self.rate.begin(now)

    def push(self, entry: Entry) -> None:
        """Make a job ready."""
        entry.state = State.READY
        self.ready += 1
        if len(self.heap) > 64 + 2 * self.ready:  # mostly jobs that were dropped or handed out
            self.heap = [item for item in self.heap if item[2].state is State.READY]
            heapq.heapify(self.heap)
        heapq.heappush(self.heap, (*entry.turn, entry))

    def head(self) -> Entry:
        """Return the ready job that is next; there must be one."""
        while self.heap[0][2].state is not State.READY:
            heapq.heappop(self.heap)
        return self.heap[0][2]

    def overtake(self, other: Queue) -> None:
        """Note that this queue was served while `other`, before it in turn, found one of its servers full."""
        for server in self.servers:
            if server in other.servers:
                other.overtaken[server] = other.overtaken.get(server, 0) + 1

    def claim(self, full: set[Server], now: float) -> set[Server]:
        """Return the servers whose next free place is this queue's, as it was refused again.

        Two servers with few sessions are hardly ever free in the same instant while others use both. A queue that was
        overtaken often at both (so both move) claims the one that is full now, then the other. No place is kept empty
        for long: the other server may be stuck.
        """
        if any(self.overtaken.get(server, 0) < OVERTAKEN for server in self.servers):
            return self.claims
        self.claims |= full.intersection(self.servers)
        if self.claims - full:
            self.kept_since = now if self.kept_since is None else self.kept_since
            if now - self.kept_since > CLAIM_SECONDS:
                self.forget_claims()
        return self.claims

    def forget_claims(self) -> None:
        """Begin anew: it was served, or claiming did not help."""
        self.overtaken.clear()
        self.claims.clear()
        self.kept_since = None

    def crowded(self, now: float) -> float:
        """Note that a job is set aside, as the queue is slow; return for how many seconds that has been so."""
        if now - self.crowded_until > CROWDED_SECONDS:
            self.crowded_since = now
        self.crowded_until = now
        return now - self.crowded_since

    def outlook(self, now: float) -> float:
        """Return how many seconds the queue will take.

        Without any rate nothing is known against a queue until it had jobs for long; nor with one that is young.
        """
        rate, quiet = self.rate.per_second(now), self.rate.quiet(now)
        if (rate is None and quiet < SLOW_SECONDS) or self.rate.busy(now) < SURE_SECONDS:
            return 0.0
        if rate is None or quiet >= QUIET_SECONDS:
            bound = max(1, self.running) / quiet  # nothing finished for long: each lane does one job in it at most
            rate = bound if rate is None else min(rate, bound)
        return len(self.waiting) / rate


@dataclass(eq=False)
class Entry:
    """A task here."""

    task: Task
    number: int  # in the order of arrival
    rank: int
    queue: Queue
    source: ServerConfig
    destination: ServerConfig
    place: object  # the key of its destination path
    state: State = State.FOLLOWING
    due: float = 0.0  # of a delayed one; of a running one when it is to wait after its end
    again: bool = False  # running, and to wait afterwards
    has_lane: bool = False  # running, and the one that its lane took last
    held: tuple[Server, ...] = ()  # whose sessions its lane holds: of both servers, or of the one that it knocks at
    row_since: float = 0.0  # since when its lane has had these sessions
    dropped: bool = False  # running, and never to wait afterwards

    @property
    def sides(self) -> tuple[ServerConfig, ServerConfig]:
        """Source and destination."""
        return (self.source, self.destination)

    @property
    def turn(self) -> tuple[int, int]:
        """Its place in the order of service."""
        return (self.rank, self.number)
