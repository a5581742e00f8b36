"""Whether a server gets jobs after an outage, and while an operator holds it: a circuit breaker.

Pure: guarded by whoever owns it; the clock is handed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Breaker:
    """A circuit breaker: opens at an outage, for longer each time; after that a single probe decides.

    `wait(failures in a row)` returns the seconds that it stays open.
    """

    def __init__(self, wait: Callable[[int], float]) -> None:
        self._wait = wait
        self._failures = 0
        self._probe: object = None  # whoever probes now
        self._opened_at = 0.0  # when it opened first
        self.open_until = 0.0
        self._error: BaseException | None = None  # the outage it saw last
        self._held_at = 0.0
        self.hold: BaseException | None = None  # an operator's: nothing is admitted, not even a probe
        self.closed = True  # may its jobs run: did the last attempt reach the server, and is it not on hold?

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"open until {self.open_until:.1f}, {self._failures} failures"
        return f"<Breaker {state}{', half open' if self._probe else ''}>"

    @property
    def fails(self) -> bool:
        """Is the server down?"""
        return self._failures > 0

    @property
    def error(self) -> BaseException | None:
        """The hold, or the outage that it saw last; None while it is closed."""
        return self.hold or self._error

    def put_on_hold(self, now: float, hold: BaseException | None) -> None:
        """Begin a hold, or end it."""
        self._held_at = now if self.hold is None else self._held_at
        self.hold, self.closed = hold, hold is None and not self._failures

    def admits(self, now: float) -> bool:
        """May a job be released now? Of an open breaker one may after its wait: the probe."""
        return self.closed or (self.hold is None and now >= self.open_until and self._probe is None)

    def half_open(self, probe: object) -> None:
        """Note that `probe` is tried; does nothing while the breaker is closed."""
        self._probe = None if self.closed else probe

    def release_probe(self, probe: object) -> None:
        """Note that `probe` ended. If the server neither failed nor answered, the next job is the probe."""
        if self._probe is probe:
            self._probe = None

    def trip(self, now: float, error: BaseException, least: float = 0.0) -> None:
        """Note an outage, and stay open for `least` seconds at least.

        What jobs meet that were released before the breaker opened is the same outage: counted once.
        """
        self._error = error
        if not self._failures or now >= self.open_until:
            self._opened_at = self._opened_at if self._failures else now
            self._failures += 1
            self._probe, self.closed = None, False
            self.open_until = now + self._wait(self._failures)
        self.open_until = max(self.open_until, now + least)

    def reset(self) -> None:
        """Close: the server answered."""
        self._failures, self._probe, self.closed = 0, None, self.hold is None
        self.open_until, self._error = 0.0, None

    def open_for(self, now: float) -> float:
        """Return the seconds until a probe is due; 0 when one is, or the breaker is closed."""
        return 0.0 if self.closed else max(0.0, self.open_until - now)

    def age(self, now: float) -> float:
        """Return for how many seconds it has not been closed."""
        return 0.0 if self.closed else now - (self._opened_at if self._failures else self._held_at)
