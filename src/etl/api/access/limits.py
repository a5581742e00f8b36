"""Limits what one address may ask: requests, and attempts to log in that fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FAILURES_PER_MINUTE = 10
ADDRESSES = 10_000  # remembered at most


class Bucket:
    """For each address a bucket of `per_minute` tokens, which fills up again within a minute."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._size = per_minute
        self._clock = clock
        self._lock = threading.Lock()  # guards the buckets
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens left, and when that was

    def take(self, address: str, *, only_look: bool = False) -> float:
        """Take one token from an address's bucket; return 0, or the seconds to wait if there is none in it."""
        now = self._clock()
        with self._lock:
            left, at = self._buckets.pop(address, (self._size, now))
            left = min(self._size, left + (now - at) * self._size / 60)
            wait = 0.0 if left >= 1 else (1 - left) * 60 / self._size
            self._buckets[address] = (left if wait or only_look else left - 1, now)  # those used last stand last
            while len(self._buckets) > ADDRESSES:
                del self._buckets[next(iter(self._buckets))]
        return wait
