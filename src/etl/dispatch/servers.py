"""One server as the dispatcher sees it: may it get jobs, how many lanes it holds, how it has done lately.

State with hardly a decision, guarded by the dispatcher's lock; the clock is handed in. Knows no pool, no job, no Kafka.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from etl.models.report import Report
from etl.retry.tiers import DeferralPacer

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.server import ServerConfig

RECENT_SECONDS = 60.0  # what happened longer ago says little of now


class DecayingCount:
    """A count of events of which those longer ago than `fade_seconds` hardly count.

    `at` is in seconds of any clock that does not run backwards; counting begins at `began`, or with the first event.
    """

    def __init__(self, fade_seconds: float = RECENT_SECONDS, began: float | None = None) -> None:
        self._fade_seconds = fade_seconds
        self._began = began
        self._count = 0.0  # as of `last`
        self.last = 0.0  # when the last event was counted

    def add(self, at: float) -> None:
        """Count an event."""
        self._began = at if self._began is None else self._began
        self._count, self.last = 1.0 + self.value(at), at

    def value(self, at: float) -> float:
        """Return the count, faded."""
        return self._count * math.exp((self.last - at) / self._fade_seconds)

    def per_second(self, at: float, shortest: float = 1.0) -> float:
        """Return the recent rate, as if it had been counted for `shortest` seconds at least; 0: there was no event."""
        if self._began is None:
            return 0.0
        # A count that fades and has run for a short time only has seen less than `fade_seconds`.
        seen = self._fade_seconds * -math.expm1((self._began - at) / self._fade_seconds)
        return self.value(at) / max(seen, shortest)


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

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"open until {self.open_until:.1f}, {self._failures} failures"
        return f"<Breaker {state}{', half open' if self._probe else ''}>"

    @property
    def closed(self) -> bool:
        """May its jobs run: did the last attempt reach the server, and is it not on hold?"""
        return self._failures == 0 and self.hold is None

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
        self.hold = hold

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
            self._probe = None
            self.open_until = now + self._wait(self._failures)
        self.open_until = max(self.open_until, now + least)

    def reset(self) -> None:
        """Close: the server answered."""
        self._failures, self._probe = 0, None
        self.open_until, self._error = 0.0, None

    def open_for(self, now: float) -> float:
        """Return the seconds until a probe is due; 0 when one is, or the breaker is closed."""
        return 0.0 if self.closed else max(0.0, self.open_until - now)

    def age(self, now: float) -> float:
        """Return for how many seconds it has not been closed."""
        return 0.0 if self.closed else now - (self._opened_at if self._failures else self._held_at)


@dataclass(eq=False)
class Server:
    """One server, under all its names."""

    config: ServerConfig  # under the name that it was met by first
    breaker: Breaker
    lanes: int = 0  # that hold a session of it
    deferred: int = 0  # jobs deferred untried since it has been down
    pacer: DeferralPacer = field(default_factory=DeferralPacer)
    _runs: DecayingCount = field(default_factory=DecayingCount)
    _failures: DecayingCount = field(default_factory=DecayingCount)

    def __repr__(self) -> str:
        return f"<Server {self.config.hostname} lanes={self.lanes} deferred={self.deferred} {self.breaker}>"

    def is_open_to_jobs(self, now: float) -> bool:
        """May it get a job now: any, or one probe while it has no other?"""
        return self.breaker.closed or (self.breaker.admits(now) and self.lanes == 0)

    def count(self, now: float, *, failed: bool) -> None:
        """Count the end of a job's run."""
        self._runs.add(now)
        if failed:
            self._failures.add(now)

    def defer_one(self, now: float) -> float:
        """Count a job that is deferred untried; return for how many seconds."""
        self.deferred += 1
        return self.pacer.seconds(self.breaker.age(now), self.breaker.open_for(now), now)

    def is_back(self) -> None:
        """Note that it answered."""
        self.breaker.reset()
        self.deferred = 0

    def report(self, now: float, round_trip_seconds: float | None, waiting: int = 0) -> Report:
        """Return how it is."""
        wait, runs = self.breaker.open_for(now), self._runs.value(now)
        return Report(
            state="closed" if not self.breaker.fails else "open" if wait else "half open",
            next_probe_seconds=wait,
            lanes=self.lanes,
            jobs_per_second=self._runs.per_second(now),
            error_share=self._failures.value(now) / runs if runs else 0.0,
            round_trip_seconds=round_trip_seconds,
            deferred=self.deferred,
            waiting=waiting,
            down_seconds=self.breaker.age(now),
            error=self.breaker.error,
        )
