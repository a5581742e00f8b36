"""The jobs that are not finished: ready in the queues of their pairs, delayed, or behind another of their destination.

State and its bookkeeping, and how much of the window each queue takes. Chooses nothing. Guarded by the dispatcher's
lock; the clock is handed in. Knows no pool, no Kafka.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.config import Settings
    from etl.dispatch.concurrency import ConcurrencyLimit
    from etl.dispatch.servers import Server
    from etl.models.server import ServerConfig
    from etl.models.task import Task

RANKS = {"high": 0, "normal": 1, "low": 2}
STARVING_SECONDS = 1.0  # without a session that others got, before a queue has its turn and sessions are reserved
RESERVED_SECONDS = 2.0  # how long they may stay idle: its other server may be stuck


class JobState(Enum):
    """Where a job is."""

    READY = "ready"
    FOLLOWING = "following"  # an earlier job writes the same destination
    DELAYED = "delayed"
    RUNNING = "running"
    GONE = "gone"


@dataclass(eq=False)
class PairQueue:
    """The jobs of one pair of servers."""

    key: object
    servers: tuple[Server, ...]  # one or two
    concurrency: ConcurrencyLimit
    lanes: int = 0
    heap: list[tuple[int, int, QueuedJob]] = field(default_factory=list)  # by turn; some may not be ready any more
    ready: int = 0
    waiting: dict[int, QueuedJob] = field(default_factory=dict)  # ready, following and delayed, by their number
    running: int = 0
    size_bytes: int = 0  # of all its jobs
    is_crowded: bool = False  # it took its share of the window, and still has half of that or more
    is_scarce: bool = True  # it had less than a quarter of its share, and has not got three quarters since
    refused_since: float = math.inf  # since when it has found one of its servers full
    yielded_to: float = -math.inf  # when a lane of another queue ended its lease for it, since its last turn

    def __repr__(self) -> str:
        names = " to ".join(server.config.hostname for server in self.servers)
        jobs = f"running={self.running} ready={self.ready} waiting={len(self.waiting)}"
        return f"<PairQueue {names} lanes={self.lanes} {jobs} {self.concurrency}>"

    def push(self, entry: QueuedJob) -> None:
        """Make a job ready."""
        entry.state = JobState.READY
        self.ready += 1
        heapq.heappush(self.heap, (*entry.turn, entry))

    def head(self) -> QueuedJob:
        """Return the ready job that is next; there must be one."""
        while self.heap[0][2].state is not JobState.READY:
            heapq.heappop(self.heap)
        return self.heap[0][2]

    def refuse(self, now: float) -> None:
        """Note that one of its servers is full."""
        self.refused_since = min(self.refused_since, now)
        if now - self.refused_since > STARVING_SECONDS + RESERVED_SECONDS:
            self.refused_since = now

    def is_starving(self, now: float) -> bool:
        """Is it its turn, whoever has fewer lanes? Then free sessions of its servers are reserved for it.

        Two servers with few sessions are hardly ever free in the same instant while others use both.
        """
        return now - self.refused_since > STARVING_SECONDS


@dataclass(eq=False)
class QueuedJob:
    """A task here."""

    task: Task
    number: int  # in the order of arrival
    turn: tuple[int, int]  # its place in the order of service: rank, then number
    queue: PairQueue
    sides: tuple[ServerConfig, ServerConfig]  # source and destination
    destination_key: object  # of the file it writes
    state: JobState = JobState.FOLLOWING
    due: float = 0.0  # when it may run
    has_lane: bool = False  # running, and the one that its lane took last
    held: tuple[Server, ...] = ()  # whose sessions its lane holds: of both, or of the one that it connects to
    lease_since: float = 0.0  # since when its lane has had these sessions
    dropped: bool = False  # running, and not to run again


class Backlog:
    """All jobs; `notify` is called when a lane may find something that it did not find before."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._numbers = itertools.count()
        self.entries: dict[Task, QueuedJob] = {}
        self.ready: OrderedDict[object, PairQueue] = OrderedDict()  # queues with ready jobs; the next in turn first
        self.destinations: dict[object, OrderedDict[int, QueuedJob]] = {}  # who writes there; the first may run
        self.delayed: list[tuple[float, int, QueuedJob]] = []  # by due time; some may not be delayed any more
        self.size_bytes = 0

    def add(
        self,
        task: Task,
        queue: PairQueue,
        sides: tuple[ServerConfig, ServerConfig],
        destination_key: object,
        due: float,
        now: float,
    ) -> None:
        """Take in a job, behind all others of its destination."""
        number = next(self._numbers)
        turn = RANKS[task.job.priority], number
        entry = QueuedJob(task, number, turn, queue, sides, destination_key, due=due)
        self.entries[task] = entry
        self.size_bytes += task.size_bytes
        queue.size_bytes += task.size_bytes
        queue.waiting[entry.number] = entry
        waiters = self.destinations.setdefault(destination_key, OrderedDict())
        waiters[entry.number] = entry
        if len(waiters) == 1:
            self._admit(entry, now)

    def begin(self, entry: QueuedJob) -> None:
        """Take the head of its queue to run."""
        queue = entry.queue
        heapq.heappop(queue.heap)
        self._unready(entry)
        entry.state = JobState.RUNNING
        del queue.waiting[entry.number]
        queue.running += 1

    def end_run(self, entry: QueuedJob, now: float, due: float | None) -> None:
        """End a run: the job waits until it is due again, and keeps its destination; or it is gone."""
        queue = entry.queue
        queue.running -= 1
        if due is None:
            self.remove(entry, now)
        else:
            entry.due = due
            queue.waiting[entry.number] = entry
            self._admit(entry, now)

    def remove(self, entry: QueuedJob, now: float) -> None:
        """Forget a job; the next of its destination may go."""
        if entry.state is JobState.READY:
            self._unready(entry)
        entry.state = JobState.GONE
        entry.queue.waiting.pop(entry.number, None)
        del self.entries[entry.task]
        self.size_bytes -= entry.task.size_bytes
        entry.queue.size_bytes -= entry.task.size_bytes
        waiters = self.destinations[entry.destination_key]
        was_first = next(iter(waiters)) == entry.number
        del waiters[entry.number]
        if not waiters:
            del self.destinations[entry.destination_key]
        elif was_first:
            self._admit(next(iter(waiters.values())), now)

    def measure(self, queue: PairQueue, settings: Settings) -> None:
        """See whether a queue is crowded, or scarce, by what it takes of the window and what is left of that.

        Its share is as much as is left: half of the window for one queue, a third for each of two, and so on.
        """
        records = max(1, settings.window_records - len(self.entries))
        size_bytes = max(1, settings.window_bytes - self.size_bytes)
        part = max((len(queue.waiting) + queue.running) / records, queue.size_bytes / size_bytes)
        queue.is_crowded = part >= (0.5 if queue.is_crowded else 1.0)
        queue.is_scarce = part < (0.75 if queue.is_scarce else 0.25)

    def promote(self, now: float) -> None:
        """Make the delayed jobs ready whose time has come."""
        while self.delayed and self.delayed[0][0] <= now:
            entry = heapq.heappop(self.delayed)[2]
            if entry.state is JobState.DELAYED and entry.due <= now:
                self._admit(entry, now)

    def _admit(self, entry: QueuedJob, now: float) -> None:
        """Let the first of its destination go: ready, or delayed until it is due."""
        if entry.due > now:
            entry.state = JobState.DELAYED
            heapq.heappush(self.delayed, (entry.due, entry.number, entry))
            self._notify()
            return
        if not entry.queue.ready:  # else a lane looked for this pair already, and it had to wait
            self._notify()
        entry.queue.push(entry)
        self.ready.setdefault(entry.queue.key, entry.queue)

    def _unready(self, entry: QueuedJob) -> None:
        queue = entry.queue
        queue.ready -= 1
        if not queue.ready:
            queue.heap.clear()
            del self.ready[queue.key]
