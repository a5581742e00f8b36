"""Waits that double: the only back-off arithmetic. Pure; randomness is handed in."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SPREAD = 0.2  # waits of an outage vary by this part: processes that saw the same one do not come back together


@dataclass(frozen=True)
class Doubling:
    """Waits that double from `first` up to `longest` seconds. `jitter` returns a number in [0, 1)."""

    first: float
    longest: float
    jitter: Callable[[], float] = random.random

    def bare(self, count: int) -> float:
        """Return the wait after `count` failures in a row (1: the first), without jitter."""
        # 2.0 ** 1024 overflows; no sensible pair of limits is 2 ** 60 apart.
        return float(min(self.longest, self.first * 2.0 ** min(max(count, 1) - 1, 60)))

    def __call__(self, count: int) -> float:
        """Return the wait after `count` outages in a row, ± SPREAD, never above `longest`."""
        return min(self.longest, self.bare(count) * (1 - SPREAD + 2 * SPREAD * self.jitter()))
