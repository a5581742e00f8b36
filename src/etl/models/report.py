"""How a server is and has done lately, as the dispatcher tells those who show it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """One server, for display."""

    state: str  # of its breaker: closed, open, or half open
    next_probe_seconds: float
    lanes: int
    jobs_per_second: float
    error_share: float  # 0 to 1, of the runs of the last minute or so
    round_trip_seconds: float | None
    deferred: int  # jobs deferred untried since it has been down
    waiting: int  # jobs that wait here
    down_seconds: float  # since its breaker opened; 0: it is closed
    error: BaseException | None  # that opened it
