"""How many lanes one pair of servers is worth: few at first, soon all, and fewer where that is faster.

    ConcurrencyLimit(most, first=FIRST_LANES, cpu=time.process_time)
    .admits(now) -> bool                may the pair have one lane more?
    .set_lanes(now, count)              it has so many lanes from now on
    .answered(now)  .failed()  .restart()
    .limit  .is_over  .due(now)         lanes at most; are there more; when time alone may raise the limit

A lane mostly waits for round trips, so more of them are faster until the servers say "enough", which the pools hear.
Only where this process is busy (a link without latency) do lanes get in each other's way: there, and only there, other
numbers are tried and compared. When in doubt, more. Pure: the clocks are handed in. Knows no server, no thread.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_LANES = 2  # as fast as any number on a link without latency (FTP.md section 4)
SETTLE_SECONDS = 0.1  # after a change, before anything is counted
STEP_SECONDS = 0.1  # between two steps up while nothing is compared
COMPARE_SECONDS = 0.5  # how long a number of lanes is measured
ENOUGH_JOBS = 100  # in that time, for a comparison to mean something
BUSY = 0.5  # of a processor core, used by this process: from here on more lanes may be slower
GAIN = 1.05  # how much faster a smaller number of lanes must be, to be kept; a larger one must only be no slower
FIRST_HOLD_SECONDS, LONGEST_HOLD_SECONDS = 10.0, 60.0  # before another number is tried again


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
        self._is_climbing = True  # until it has had all lanes once
        self._hold = FIRST_HOLD_SECONDS
        self._next_trial = 0.0
        self._goes_up = True  # in the next trial
        self._before: tuple[int, float] | None = None  # during a trial: the number it is compared with, and its rate
        self.limit = self._first
        self._begin(0.0)

    def __repr__(self) -> str:
        trial = "" if self._before is None else f" compared with {self._before[0]}"
        return f"<ConcurrencyLimit {self._count} of {self.limit}{trial}>"

    def due(self, now: float) -> float:
        """Return when the limit may change without a job's end."""
        if not self._trusted:
            return math.inf
        return next((due for due in (self._since + STEP_SECONDS, self._since + COMPARE_SECONDS) if due > now), now + 1)

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
        if now - self._since >= SETTLE_SECONDS:
            self._jobs += 1
        self._step(now)

    def failed(self) -> None:
        """Note a transfer that broke or stalled: fewer lanes until a job is answered."""
        self._trusted = False
        self._before = None
        self.limit = max(1, self.limit // 2)

    def restart(self) -> None:
        """Begin with one lane: a server was down and is back."""
        self._before = None
        self._is_climbing = True
        self.limit = 1

    @property
    def _cap(self) -> int:
        """Half of the lanes for servers that never answered: they may have fallen silent."""
        return self._most if self._proven else max(self._first, self._most // 2)

    def _begin(self, now: float) -> None:
        self._since, self._cpu_since = now, self._cpu()
        self._jobs = 0
        self._lane_seconds = 0.0
        self._now = now

    def _measure(self, now: float) -> None:
        self._lane_seconds += self._count * (now - self._now)
        self._now = now

    def _step(self, now: float) -> None:
        seconds = now - self._since
        if seconds < STEP_SECONDS:
            return
        self._measure(now)
        is_busy = self._cpu() - self._cpu_since >= BUSY * seconds
        if self._before is None and (self._is_climbing or not is_busy):
            self._grow(now, seconds)
        elif seconds >= COMPARE_SECONDS:
            self._compare(now, seconds, is_busy=is_busy)

    def _grow(self, now: float, seconds: float) -> None:
        """Raise the limit if lanes were in use up to it."""
        if self._trusted and self._lane_seconds >= 0.75 * self.limit * seconds:
            self.limit = max(self.limit, min(self._cap, self.limit * 2))
            self._is_climbing = self._is_climbing and self.limit < self._most
        self._begin(now)

    def _compare(self, now: float, seconds: float, *, is_busy: bool) -> None:
        """Judge a trial that is over, or begin one."""
        used, rate = self._lane_seconds / seconds, self._jobs / (seconds - SETTLE_SECONDS)
        is_clear = is_busy and self._jobs >= ENOUGH_JOBS and used >= 0.75 * self.limit
        before, self._before = self._before, None
        if before is not None:
            lanes, rate_before = before
            is_more = self.limit > lanes
            is_better = (rate >= rate_before * (1.0 if is_more else GAIN)) if is_clear else is_more
            if not is_better:
                self.limit = lanes
                self._goes_up = not is_more
                self._next_trial = now + self._hold
                self._hold = min(2 * self._hold, LONGEST_HOLD_SECONDS)
            else:
                self._goes_up = is_more
                self._hold = FIRST_HOLD_SECONDS
        elif not is_busy or used < 0.75 * self.limit:
            pass
        elif self._jobs < ENOUGH_JOBS:
            self._grow(now, seconds)
        elif now >= self._next_trial and self._trusted:
            self._before = (self.limit, rate)
            self.limit = self._other()
        self._begin(now)

    def _other(self) -> int:
        """Return the number to try next: twice as many or half; the other one where that changes nothing."""
        up, down = min(self._cap, self.limit * 2), max(1, self.limit // 2)
        wanted, other = (up, down) if self._goes_up else (down, up)
        return wanted if wanted != self.limit else other
