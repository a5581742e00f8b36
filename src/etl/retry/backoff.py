"""Exponential back-off, the only arithmetic for it. Pure: the caller supplies the randomness."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SPREAD = 0.2  # waits after an outage vary by this part, so that processes that saw the same one return at other times


@dataclass(frozen=True)
class Doubling:
    """Waits that double from `first` to at most `longest` seconds. `jitter` returns a number in [0, 1)."""

    first: float
    longest: float
    jitter: Callable[[], float] = random.random

    def without_jitter(self, count: int) -> float:
        """Return the seconds to wait after `count` (from 1) consecutive failures, without jitter."""
        # 2.0 ** 1024 overflows; sensible limits are less than a factor of 2 ** 60 apart.
        return float(min(self.longest, self.first * 2.0 ** min(max(count, 1) - 1, 60)))

    def __call__(self, count: int) -> float:
        """Return the seconds to wait after `count` consecutive outages, ± SPREAD, never more than `longest`."""
        return min(self.longest, self.without_jitter(count) * (1 - SPREAD + 2 * SPREAD * self.jitter()))
