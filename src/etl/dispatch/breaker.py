"""Whether a server may be tried: one small state per server, closed, open, or half open with one probe.

    Breaker(wait)       wait(failures in a row) -> seconds (`retry.Doubling`)
    .admits(now)  .probe()  .down(now, error, least=0.0)  .up()  .forgo()  .wait(now)  .age(now)
    .closed  .open_until  .error

Not thread-safe: its owner's lock guards it. Pure: the clock is handed in. Knows no server, no job, no thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Breaker:
    """Opens at an outage; each wait is longer than the one before; after a wait a single probe decides."""

    def __init__(self, wait: Callable[[int], float]) -> None:
        self._wait = wait
        self._failures = 0
        self._probing = False
        self._since = 0.0  # when it opened first
        self.open_until = 0.0
        self.error: BaseException | None = None  # what the server met us with last; None while it is closed

    @property
    def closed(self) -> bool:
        """Did the last attempt reach the server?"""
        return self._failures == 0

    def admits(self, now: float) -> bool:
        """May a job be released now? After the wait of an open breaker: one, the probe."""
        return self.closed or (now >= self.open_until and not self._probing)

    def probe(self) -> None:
        """Note that a job was released; matters only while the breaker is not closed."""
        self._probing = not self.closed

    def forgo(self) -> None:
        """Note that the probe ended without a word from the server: the next job is the probe."""
        self._probing = False

    def down(self, now: float, error: BaseException, least: float = 0.0) -> None:
        """Note an outage, and stay open for `least` seconds at least.

        Those of jobs released before the breaker opened are the same one: counted once.
        """
        self.error = error
        if self.closed or now >= self.open_until:
            self._since = now if self.closed else self._since
            self._failures += 1
            self._probing = False
            self.open_until = now + self._wait(self._failures)
        self.open_until = max(self.open_until, now + least)

    def up(self) -> None:
        """Note that the server answered."""
        self._failures = 0
        self._probing = False
        self.open_until = 0.0
        self.error = None

    def wait(self, now: float) -> float:
        """Return the seconds until a probe is due; 0 when one is, or the breaker is closed."""
        return 0.0 if self.closed else max(0.0, self.open_until - now)

    def age(self, now: float) -> float:
        """Return for how many seconds it has not been closed."""
        return 0.0 if self.closed else now - self._since
