"""The time of day, without its jumps: what waits and patience are counted by.

The system's clock may be set by years while jobs wait. This one begins with the system's time, goes on at the pace of a
clock that nobody sets, and takes over the broker's time once it differs: that is what all processes have in common.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

FOLLOWED_SECONDS = 1.0  # the system's clock is followed in steps up to this: it is being corrected
DIFFERENCE_SECONDS = 30.0  # between the broker's clock and ours, from which on the broker's counts


def _steady() -> float:
    """Return seconds of a clock that nobody sets, and that goes on while the machine sleeps where there is one."""
    source = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if source is None else time.clock_gettime(source)


class Clock:
    """A clock whose time never jumps. Thread-safe."""

    def __init__(self, system: Callable[[], float] = time.time, steady: Callable[[], float] = _steady) -> None:
        self._system = system
        self._steady = steady
        self._lock = threading.Lock()  # guards the offsets
        self._offset = self._told = system() - steady()  # to the steady clock: ours, and the system's as told last

    def now(self) -> float:
        """Return the seconds since the epoch, UTC."""
        steady = self._steady()
        jump = None
        with self._lock:  # critical section: decide whether the system's clock is followed
            system_offset = self._system() - steady
            if abs(system_offset - self._offset) <= FOLLOWED_SECONDS:
                self._offset = self._told = system_offset
            elif abs(system_offset - self._told) > FOLLOWED_SECONDS:
                jump, self._told = system_offset - self._told, system_offset
            now = steady + self._offset
        if jump is not None:
            log.warning("system clock was set: waits go on as if it were not", seconds=round(jump, 1))
        return now

    def hear(self, broker_time: float) -> None:
        """Take note of the broker's time of this moment (seconds since the epoch, UTC)."""
        difference = broker_time - self.now()
        if abs(difference) > DIFFERENCE_SECONDS:
            with self._lock:
                self._offset += difference
            log.warning("clock differs from the broker's, which counts", broker_is_ahead_seconds=round(difference, 1))


_clock = Clock()
now = _clock.now
hear = _clock.hear
