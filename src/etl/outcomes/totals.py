"""What this process has done since its start: counters that only rise, for display. Knows no Kafka client, no clock."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etl.models.task import Span, Task

SECONDS_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)
WAIT_BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0)  # seconds
SIZE_BUCKETS = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12)  # bytes
SERVERS_NAMED = 64  # servers whose bytes are counted apart: the first ones to move any
OTHER = "other"  # all servers beyond them, together


class Histogram:
    """Counts of values up to each bound, and beyond the last; and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, each of its own bucket alone, and the sum."""
        return {"counts": list(self.counts), "sum": round(self.sum, 6)}


@dataclass
class Totals:
    """The counters of a process. Any thread counts; none holds another lock meanwhile."""

    jobs: Counter[str] = field(default_factory=Counter)  # by outcome: done, skipped, failed
    failures: Counter[str] = field(default_factory=Counter)  # by error code
    retries: Counter[str] = field(default_factory=Counter)  # by reason: attempt, outage, busy, not_before, held
    bytes_in: Counter[str] = field(default_factory=Counter)  # by the server that they were read from
    bytes_out: Counter[str] = field(default_factory=Counter)  # by the server that they were written to
    commits: int = 0
    commits_failed: int = 0
    duration: Histogram = field(default_factory=lambda: Histogram(SECONDS_BUCKETS))  # of successful runs
    size: Histogram = field(default_factory=lambda: Histogram(SIZE_BUCKETS))
    wait: Histogram = field(default_factory=lambda: Histogram(WAIT_BUCKETS))  # from the broker's time to the begin
    commit_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS_BUCKETS))
    last_error: dict[str, Any] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # guards everything above

    def succeeded(self, task: Task, size_bytes: int | None, span: Span, *, skipped: bool) -> None:
        """Count a job that is done."""
        with self._lock:
            self.jobs["skipped" if skipped else "done"] += 1
            self.duration.observe(span.seconds)
            if size_bytes is not None and not skipped:
                self.size.observe(size_bytes)
            record, origin = task.record, task.origin
            # Of a deferred job the record tells when it was deferred, not when it came.
            if (record.topic, record.offset) == (origin.topic, origin.offset):
                self.wait.observe(max(0.0, span.started_at - record.timestamp))

    def failed(self, code: str, at: str, text: str, place: str) -> None:
        """Count a job that failed for good; `text` must hold no password."""
        with self._lock:
            self.jobs["failed"] += 1
            self.failures[code] += 1
            self.last_error = {"at": at, "code": code, "text": text, "place": place}

    def retried(self, reason: str) -> None:
        """Count a job that is to run again, or is put off."""
        with self._lock:
            self.retries[reason] += 1

    def moved(self, task: Task) -> None:
        """Count what a run that is over has moved, however it ended."""
        count = task.progress.moved_bytes
        if count:
            with self._lock:
                for names, server in ((self.bytes_in, task.job.source), (self.bytes_out, task.job.destination)):
                    known = server.hostname in names or len(names) < SERVERS_NAMED
                    names[server.hostname if known else OTHER] += count

    def committed(self, seconds: float, *, succeeded: bool) -> None:
        """Count a transaction."""
        with self._lock:
            self.commits += succeeded
            self.commits_failed += not succeeded
            self.commit_seconds.observe(seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return a copy of all counters of one moment."""
        with self._lock:
            return {
                "jobs": dict(self.jobs),
                "failures": dict(self.failures),
                "retries": dict(self.retries),
                "bytes_in": dict(self.bytes_in),
                "bytes_out": dict(self.bytes_out),
                "commits": self.commits,
                "commits_failed": self.commits_failed,
                "duration_seconds": self.duration.to_dict(),
                "size_bytes": self.size.to_dict(),
                "wait_seconds": self.wait.to_dict(),
                "commit_seconds": self.commit_seconds.to_dict(),
            }
