"""Notices a transfer that stands still, or nearly. Pure: told how long was waited, and how many bytes moved.

Only waiting counts: whoever reads from a fast server to feed a slow one does not hold it against the fast one.
"""

from __future__ import annotations

PROGRESS_TICK = 1.0  # seconds between two looks at bytes that the kernel is still sending


class StalledError(TimeoutError):
    """Raised when too little moved; says which setting was passed."""


class Watch:
    """One direction of one data connection.

    Args:
        limit: seconds of waiting in which a byte must move.
        rate: bytes a second that must move on average, over every `limit` seconds of waiting; 0: any will do.
    """

    def __init__(self, limit: float, rate: float) -> None:
        self._limit = limit
        self._rate = rate
        self._still = 0.0  # seconds waited since the last byte
        self._waited = 0.0  # seconds, and bytes in them, of the stretch that is averaged
        self._moved_bytes = 0

    def left(self) -> float:
        """Return how many seconds may still be waited for a byte."""
        return max(0.0, self._limit - self._still)

    def note(self, seconds: float, moved_bytes: int) -> None:
        """Count a wait and what moved in it. Raises StalledError."""
        self._still = 0.0 if moved_bytes else self._still + seconds
        if self._still >= self._limit:
            raise self.stalled()
        self._waited += seconds
        self._moved_bytes += moved_bytes
        if self._waited < self._limit:
            return
        if self._moved_bytes < self._rate * self._waited:
            raise StalledError(
                f"{self._moved_bytes} bytes moved in {self._waited:.1f} s of waiting, "
                f"fewer than {self._rate:g} a second (ETL_MIN_BYTES_PER_SECOND)"
            )
        self._waited, self._moved_bytes = 0.0, 0

    def stalled(self) -> StalledError:
        """Return the error for a connection on which nothing moves."""
        return StalledError(f"no byte moved for {self._limit:g} s (ETL_STALL_TIMEOUT_SECONDS)")
