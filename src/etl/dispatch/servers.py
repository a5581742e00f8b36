"""One server as the dispatcher sees it: may it get jobs, how many lanes it holds, how it has done lately.

State with hardly a decision, guarded by the dispatcher's lock; the clock is handed in. Knows no pool, no Kafka.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from etl.dispatch.gauges import Gauge
from etl.retry.tiers import DeferralPacer

if TYPE_CHECKING:
    from etl.dispatch.backlog import Entry
    from etl.dispatch.breaker import Breaker
    from etl.models.server import ServerConfig


@dataclass(frozen=True)
class Report:
    """How a server is and has done lately, for display."""

    state: str  # closed, open, or half open: as its breaker is
    next_probe_seconds: float
    lanes: int
    jobs_per_second: float
    error_share: float  # 0 to 1, of the runs of the last minute or so
    round_trip_seconds: float | None
    deferred: int  # how often a job was deferred, since it has been down


@dataclass(eq=False)
class Server:
    """One server, under all its names."""

    config: ServerConfig  # under the name that it was met by first
    breaker: Breaker
    gauge: Gauge = field(default_factory=Gauge)
    lanes: int = 0  # how many it holds now
    prober: Entry | None = None  # the job that probes it
    deferred: int = 0  # how often a job was deferred untried since it has been down
    waits: DeferralPacer = field(default_factory=DeferralPacer)

    def is_open_to_jobs(self, now: float) -> bool:
        """May it get a job now: any, or one probe while it has no other?"""
        return self.breaker.closed or (self.breaker.admits(now) and self.lanes == 0)

    def defer_one(self, now: float) -> float:
        """Count a job that is set back untried; return for how many seconds."""
        self.deferred += 1
        return self.waits.seconds(self.breaker.age(now), self.breaker.wait(now), now)

    def report(self, now: float, round_trip_seconds: float | None) -> Report:
        """Say how it is."""
        wait = self.breaker.wait(now)
        return Report(
            state="closed" if self.breaker.closed else "open" if wait else "half open",
            next_probe_seconds=wait,
            lanes=self.lanes,
            jobs_per_second=self.gauge.per_second(now),
            error_share=self.gauge.error_share,
            round_trip_seconds=round_trip_seconds,
            deferred=self.deferred,
        )

    def is_back(self) -> None:
        """Note that it answered."""
        self.breaker.up()
        self.deferred = 0
