"""Counts the requests that are answered: by route, method and class of status, for the metrics.

A route is its template, never an address that somebody asked for; so the number of series is bounded.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict

from etl.models.status import HistogramStatus
from etl.outcomes.totals import SECONDS_BUCKETS, Histogram
from etl.status.metrics import Requests

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"})
OTHER = "other"  # a method that no resource has; an address that is none


class Counted:
    """The requests of this process since its start. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._seconds: defaultdict[tuple[str, str], Histogram] = defaultdict(lambda: Histogram(SECONDS_BUCKETS))

    def note(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count an answer; `seconds`: until it began. `route` None: there is no such resource."""
        key = (route or OTHER, method if method in METHODS else OTHER)
        with self._lock:
            self._counts[*key, f"{status // 100}xx"] += 1
            self._seconds[key].observe(seconds)

    def totals(self) -> Requests:
        """Return the counts by route, method and class of status, and the durations by route and method."""
        with self._lock:
            durations = {key: HistogramStatus(**one.to_dict()) for key, one in self._seconds.items()}
            return Requests(dict(self._counts), durations)
