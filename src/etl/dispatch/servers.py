"""One server as the dispatcher sees it: may it get jobs, how many lanes it holds, how it has done.

State with hardly a decision, guarded by the dispatcher's lock; the clock is handed in. Knows no pool, no job, no Kafka.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from etl.models.server import ServerConfig
    from etl.retry.breaker import Breaker


class Report(NamedTuple):
    """How a server is, for display, and what it has done so far."""

    state: str  # of its breaker: closed, open, or half open
    next_probe_seconds: float
    lanes: int
    runs: int
    failures: int  # of these
    round_trip_seconds: float | None
    deferred: int  # jobs deferred untried since it has been down
    waiting: int  # jobs that wait here
    down_seconds: float  # since it has been down or on hold; 0: neither
    error: BaseException | None  # its outage, or its hold


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

    def report(self, now: float, round_trip_seconds: float | None, waiting: int = 0) -> Report:
        """Return how it is."""
        breaker, wait = self.breaker, self.breaker.open_for(now)
        state = "closed" if not breaker.fails else "open" if wait else "half open"
        done = self.lanes, self.runs, self.failures, round_trip_seconds, self.deferred, waiting
        return Report(state, wait, *done, breaker.age(now), breaker.error)
