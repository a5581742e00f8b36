"""The last hour of each server, minute by minute: what all processes together said of it on `etl-status`.

Kept in memory, and read from the topic again after a restart, as far back as its records still stand there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etl.models.status import Snapshot

MINUTES = 60
SERVERS = 1000  # of names, which whoever may write the topic chooses


@dataclass
class Minute:
    """One minute of one server, of all processes."""

    jobs: float = 0.0
    failed: float = 0.0
    bytes: float = 0.0
    round_trip: float = 0.0  # the longest
    seconds: float = 0.0  # that were spoken of
    down: float = 0.0  # of these: while it was down


class Hour:
    """The minutes of all servers. One thread at a time."""

    def __init__(self) -> None:
        self._servers: dict[str, dict[int, Minute]] = {}
        self._spoke: dict[str, float] = {}  # when each process did last, by the broker's clock
        self._newest = 0

    def accept(self, snapshot: Snapshot, at: float) -> None:
        """Add what a process says; it counts for the time since its last word. `at`: by the broker's clock."""
        limit = 2 * snapshot.interval_seconds
        took = min(max(0.0, at - self._spoke.get(snapshot.key, at - snapshot.interval_seconds)), limit)
        self._spoke[snapshot.key] = at
        minute = int(at // 60)
        if minute > self._newest:
            self._newest = minute
            self._forget(at)
        for row in snapshot.servers:
            name = row.name.upper()
            if name not in self._servers and len(self._servers) >= SERVERS:
                continue
            found = self._servers.setdefault(name, {}).setdefault(minute, Minute())
            jobs = row.jobs_per_second * took
            found.jobs += jobs
            found.failed += jobs * min(row.error_share, 1.0)
            found.bytes += row.bytes_per_second * took
            found.round_trip = max(found.round_trip, row.round_trip_seconds or 0.0)
            found.seconds += took
            found.down += took if row.breaker == "open" else 0.0

    def of(self, server: str, now: float) -> list[dict[str, Any]]:
        """Return the minutes of a server that somebody spoke of, the oldest first. `now`: seconds since the epoch."""
        first = int(now // 60) - MINUTES + 1
        return [
            {
                "at": minute * 60.0,
                "jobs": round(one.jobs, 1),
                "failed": round(one.failed, 1),
                "bytes": int(one.bytes),
                "round_trip_seconds": one.round_trip or None,
                "down": round(one.down / one.seconds, 3) if one.seconds else 0.0,
            }
            for minute, one in sorted(self._servers.get(server.upper(), {}).items())
            if minute >= first
        ]

    def _forget(self, at: float) -> None:
        first = self._newest - MINUTES
        for name, minutes in list(self._servers.items()):
            kept = {minute: one for minute, one in minutes.items() if minute > first}
            if kept:
                self._servers[name] = kept
            else:
                del self._servers[name]
        self._spoke = {key: spoke for key, spoke in self._spoke.items() if at - spoke < 60 * MINUTES}
