"""How many lanes one pair of servers is worth: few at first, then all, unless they would get in each other's way.

A lane mostly waits for round trips, so more of them are faster until the servers say "enough", which the pools hear.
Only where this process is busy, and jobs take hardly any time (a link without latency), the few of the beginning are as
fast as any number. Pure: the clocks are handed in. Knows no server, no thread.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_LANES = 2  # as fast as any number on a link without latency (FTP.md section 4)
STEP_SECONDS = 0.1  # between two steps up
BUSY = 0.5  # of a processor core, used by this process: from here on more lanes may be slower
SHORT_SECONDS = 0.02  # a job that takes a lane longer than that waits for round trips


class ConcurrencyLimit:
    """The most lanes of one queue, now; `most` ever."""

    def __init__(self, most: int, first: int = FIRST_LANES, cpu: Callable[[], float] = time.process_time) -> None:
        self._most = max(1, most)
        self._first = min(first, self._most)
        self._cpu = cpu
        self._now = 0.0
        self._count = 0  # of lanes
        self._proven = False  # a job was answered
        self._trusted = True  # none has failed since then
        self.limit = self._first
        self._begin(0.0)

    def __repr__(self) -> str:
        return f"<ConcurrencyLimit {self._count} of {self.limit}>"

    def due(self, now: float) -> float:
        """Return when the limit may change without a job's end."""
        due = self._since + STEP_SECONDS
        return math.inf if not self._trusted else due if due > now else now + STEP_SECONDS

    def admits(self, now: float) -> bool:
        """May there be one lane more?"""
        if self._count >= self.limit:
            self._step(now)
        return self._count < self.limit

    @property
    def is_over(self) -> bool:
        """Are there more lanes than it is worth?"""
        return self._count > self.limit

    def set_lanes(self, now: float, count: int) -> None:
        """Note how many lanes there are from now on."""
        if not self._count and count and now - self._now > STEP_SECONDS:
            self._begin(now)  # it was idle
        self._measure(now)
        self._count = count

    def answered(self, now: float) -> None:
        """Note that a job ended with an answer of the servers."""
        self._proven = self._trusted = True
        self._jobs += 1
        self._step(now)

    def failed(self) -> None:
        """Note a transfer that broke or stalled: fewer lanes until a job is answered."""
        self._trusted = False
        self.limit = max(1, self.limit // 2)

    def restart(self) -> None:
        """Begin with one lane: a server was down and is back."""
        self.limit = 1

    def _begin(self, now: float) -> None:
        self._since, self._cpu_since = now, self._cpu()
        self._jobs = 0
        self._lane_seconds = 0.0
        self._now = now

    def _measure(self, now: float) -> None:
        self._lane_seconds += self._count * (now - self._now)
        self._now = now

    def _step(self, now: float) -> None:
        """Double the limit if lanes were in use up to it, and more of them may be faster."""
        seconds = now - self._since
        if seconds < STEP_SECONDS:
            return
        self._measure(now)
        is_used = self._lane_seconds >= 0.75 * self.limit * seconds
        is_busy = self._cpu() - self._cpu_since >= BUSY * seconds
        if self._trusted and is_used and not (is_busy and self._jobs * SHORT_SECONDS > self._lane_seconds):
            # Half of the lanes for servers that never answered: they may have fallen silent.
            cap = self._most if self._proven else max(self._first, self._most // 2)
            self.limit = max(self.limit, min(cap, self.limit * 2))
        self._begin(now)
