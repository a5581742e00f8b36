"""How a server has done lately: jobs per second, and the part of them that failed. Pure; the clock is handed in."""

from __future__ import annotations

import math

FADE_SECONDS = 60.0  # what happened longer ago counts for little


class Gauge:
    """Counts that fade."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._at = 0.0  # when the counts below were right
        self._ended = 0.0
        self._failed = 0.0

    def count(self, now: float, *, failed: bool) -> None:
        """Note the end of a job's run."""
        self._began = now if self._began is None else self._began
        self._fade(now)
        self._ended += 1
        self._failed += failed

    def per_second(self, now: float) -> float:
        """Return how many runs ended per second."""
        if self._began is None:
            return 0.0
        self._fade(now)
        seen = FADE_SECONDS * -math.expm1((self._began - now) / FADE_SECONDS)
        return self._ended / max(seen, 1.0)

    @property
    def error_share(self) -> float:
        """Return the part of them that failed, 0 to 1."""
        return self._failed / self._ended if self._ended else 0.0

    def _fade(self, now: float) -> None:
        part = math.exp(min(0.0, self._at - now) / FADE_SECONDS)
        self._at, self._ended, self._failed = now, self._ended * part, self._failed * part
