"""Memory for the names that listings bring: one budget for all lanes, as one server may fill what many jobs list.

Any thread. What a job's run takes is given back when the run ends; outside of a run nothing is counted.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable

from etl.errors import IOFailure

LIMIT_BYTES = 64 << 20  # of all runs beyond what each has by itself
OWN_BYTES = 1 << 20  # that each run may take without asking: an honest listing is not refused for a hostile one
NAME_BYTES = 150  # memory of a name, read and decoded, beside twice its length


class Budget:
    """Counts the bytes that names take."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next
        self._taken_bytes = 0  # by all runs, beyond their own
        self._here = threading.local()  # its `taken_bytes`: by the run of this thread

    def room(self) -> _Room:
        """Return a context, or decorator, in which is counted what is taken; at its end all is given back."""
        return _Room(self)

    def begin(self) -> None:
        """Count from here on."""
        self._here.taken_bytes = 0

    def end(self) -> None:
        """Give back all, and count no more."""
        taken_bytes, self._here.taken_bytes = self._here.taken_bytes, None
        if taken_bytes > OWN_BYTES:
            with self._lock:
                self._taken_bytes -= taken_bytes - OWN_BYTES

    def take(self, length: int) -> None:
        """Count a name of that length that is kept. Raises IOFailure when there is no memory for it."""
        taken_bytes = getattr(self._here, "taken_bytes", None)
        if taken_bytes is None:
            return
        name_bytes = NAME_BYTES + 2 * length
        more_bytes = max(0, taken_bytes + name_bytes - max(OWN_BYTES, taken_bytes))
        if more_bytes:
            with self._lock:  # critical section: decide whether it fits
                if self._taken_bytes + more_bytes > LIMIT_BYTES:
                    raise IOFailure(f"listings of more than {LIMIT_BYTES} bytes: a folder has too many names")
                self._taken_bytes += more_bytes
        self._here.taken_bytes = taken_bytes + name_bytes

    def kept(self, names: Iterable[str]) -> list[str]:
        """Return the names in a list, and count them. Raises IOFailure when there is no memory for one more."""
        result: list[str] = []
        for name in names:
            self.take(len(name))
            result.append(name)
        return result


class _Room(contextlib.ContextDecorator):
    """A run's part of a budget. A generator would do, at the price of ten calls for each file."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __enter__(self) -> None:
        self._budget.begin()

    def __exit__(self, *_: object) -> None:
        self._budget.end()


LISTINGS = Budget()
