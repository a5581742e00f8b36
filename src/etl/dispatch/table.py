"""The jobs that are not finished: ready in their queues, delayed, or behind another that writes the same destination.

State and its bookkeeping, without a choice of what runs; guarded by the dispatcher's lock, the clock is handed in.
Knows no pool, no Kafka.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from etl.dispatch.backlog import Entry, Queue, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.server import ServerConfig
    from etl.models.task import Task

RANKS = {"high": 0, "normal": 1, "low": 2}


class Table:
    """All entries; `tell` is called when a lane may find something that it did not find before."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._numbers = itertools.count()
        self.entries: dict[Task, Entry] = {}
        self.ready: OrderedDict[object, Queue] = OrderedDict()  # queues with ready jobs; the next in turn first
        self.places: dict[object, OrderedDict[int, Entry]] = {}  # per destination path; the first holds it
        self._delayed: list[tuple[float, int, Entry]] = []  # by due time; may hold what is not delayed any more
        self.size_bytes = 0

    def add(
        self,
        task: Task,
        queue: Queue,
        ends: tuple[ServerConfig, ServerConfig],
        place: object,
        due: float,
        now: float,
    ) -> None:
        """Take in a job, last in the line of its destination."""
        entry = Entry(task, next(self._numbers), RANKS[task.job.priority], queue, *ends, place, due=due)
        self.entries[task] = entry
        self.size_bytes += task.size_bytes
        if queue.is_idle:
            queue.rate.begin(now)
        queue.waiting[entry.number] = entry
        line = self.places.setdefault(place, OrderedDict())
        line[entry.number] = entry
        if len(line) == 1:
            self._admit(entry, now)

    def begin(self, entry: Entry) -> None:
        """Take the head of its queue to run."""
        queue = entry.queue
        heapq.heappop(queue.heap)
        self._unready(entry)
        entry.state = State.RUNNING
        del queue.waiting[entry.number]
        queue.running += 1

    def land(self, entry: Entry, now: float, *, again: bool) -> None:
        """End a run: the job waits until it is due again, with its destination; or it is gone."""
        queue = entry.queue
        if not again:
            queue.rate.count(now)
        queue.running -= 1
        if again:
            queue.waiting[entry.number] = entry
            self._admit(entry, now)
        else:
            self.remove(entry, now)

    def remove(self, entry: Entry, now: float) -> None:
        """Forget a job; whoever is next in the line of its destination moves up."""
        if entry.state is State.READY:
            self._unready(entry)
        entry.state = State.GONE
        entry.queue.waiting.pop(entry.number, None)
        if entry.queue.is_idle:
            entry.queue.rate.end(now)
        del self.entries[entry.task]
        self.size_bytes -= entry.task.size_bytes
        line = self.places[entry.place]
        was_first = next(iter(line)) == entry.number
        del line[entry.number]
        if not line:
            del self.places[entry.place]
        elif was_first:
            self._admit(next(iter(line.values())), now)

    def promote(self, now: float) -> None:
        """Make the delayed jobs ready whose time has come."""
        while self._delayed and self._delayed[0][0] <= now:
            entry = heapq.heappop(self._delayed)[2]
            if entry.state is State.DELAYED and entry.due <= now:
                self._admit(entry, now)

    @property
    def next_due(self) -> float:
        """When the next delayed job may be ready."""
        return self._delayed[0][0] if self._delayed else math.inf

    def _admit(self, entry: Entry, now: float) -> None:
        """Let the first in the line of its destination go: ready, or delayed until it is due."""
        if entry.due > now:
            entry.state = State.DELAYED
            heapq.heappush(self._delayed, (entry.due, entry.number, entry))
            self._tell()
            return
        if not entry.queue.ready:  # else a lane looked for this pair already, and it had to wait
            self._tell()
        entry.queue.push(entry)
        self.ready.setdefault(entry.queue.key, entry.queue)

    def _unready(self, entry: Entry) -> None:
        queue = entry.queue
        queue.ready -= 1
        if not queue.ready:
            queue.heap.clear()
            del self.ready[queue.key]
