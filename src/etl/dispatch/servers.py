"""One server as the dispatcher sees it: may it get jobs, how many lanes it holds, how it has done.

State with hardly a decision, guarded by the dispatcher's lock; the clock is handed in. Knows no pool, no job, no Kafka.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.server import ServerConfig


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
        self.error: BaseException | None = None  # the outage it saw last; None while it is closed

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"open until {self.open_until:.1f}, {self._failures} failures"
        return f"<Breaker {state}{', half open' if self._probe else ''}>"

    @property
    def closed(self) -> bool:
        """Did the last attempt reach the server?"""
        return self._failures == 0

    def admits(self, now: float) -> bool:
        """May a job be released now? Of an open breaker one may after its wait: the probe."""
        return self.closed or (now >= self.open_until and self._probe is None)

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
        self.error = error
        if self.closed or now >= self.open_until:
            self._opened_at = now if self.closed else self._opened_at
            self._failures += 1
            self._probe = None
            self.open_until = now + self._wait(self._failures)
        self.open_until = max(self.open_until, now + least)

    def reset(self) -> None:
        """Close: the server answered."""
        self._failures, self._probe = 0, None
        self.open_until, self.error = 0.0, None

    def open_for(self, now: float) -> float:
        """Return the seconds until a probe is due; 0 when one is, or the breaker is closed."""
        return 0.0 if self.closed else max(0.0, self.open_until - now)

    def age(self, now: float) -> float:
        """Return for how many seconds it has not been closed."""
        return 0.0 if self.closed else now - self._opened_at


class Report(NamedTuple):
    """How a server is, for display, and what it has done so far."""

    state: str  # of its breaker: closed, open, or half open
    next_probe_seconds: float
    lanes: int
    runs: int
    failures: int  # of these
    round_trip_seconds: float | None
    deferred: int  # jobs deferred untried since it has been down


@dataclass(eq=False)
class Server:
    """One server, under all its names."""

    config: ServerConfig  # under the name that it was met by first
    breaker: Breaker
    lanes: int = 0  # that hold a session of it
    runs: int = 0  # of jobs, that ended
    failures: int = 0  # of these
    deferred: int = 0  # jobs deferred untried since it has been down

    def __repr__(self) -> str:
        return f"<Server {self.config.hostname} lanes={self.lanes} deferred={self.deferred} {self.breaker}>"

    def is_open_to_jobs(self, now: float) -> bool:
        """May it get a job now: any, or one probe while it has no other?"""
        return self.breaker.closed or (self.breaker.admits(now) and self.lanes == 0)

    def report(self, now: float, round_trip_seconds: float | None) -> Report:
        """Return how it is."""
        wait = self.breaker.open_for(now)
        state = "closed" if self.breaker.closed else "open" if wait else "half open"
        return Report(state, wait, self.lanes, self.runs, self.failures, round_trip_seconds, self.deferred)
