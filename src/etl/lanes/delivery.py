"""The jobs of one lease in two stages: while one file is delivered, the next one is fetched.

Small files cross whole, in memory that all lanes share (`Store`); a larger one is streamed by the delivering thread,
while the fetching one waits. Knows no protocol, no queue, no outcome.
"""

from __future__ import annotations

import threading
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.lanes.run import Run
    from etl.models.task import Task
    from etl.sessions.lease import Lease

WAITING = 1  # files of a lane that are handed over and not yet delivered, when one more may be

log = structlog.get_logger(__name__)


class Stages(Protocol):
    """The two stages of a job; none of these raises."""

    def can_pipeline(self, run: Run) -> bool:
        """May this job go through two stages? Else it is run by itself."""
        ...

    def open(self, run: Run) -> bool:
        """Have the sessions of its lease open. False: the job failed, and was reported."""
        ...

    def fetch(self, run: Run) -> bool:
        """Open the source's file; take it into memory if it is small. False: it failed, and was reported."""
        ...

    def confirm(self, run: Run) -> None:
        """End the reading of a file in memory, and have its source asked whether it changed."""
        ...

    def settle(self, lease: Lease) -> None:
        """Read all answers of the source: no file follows for now."""
        ...

    def expect(self, lease: Lease) -> None:
        """Get the destination ready: a file is on its way."""
        ...

    def deliver(self, run: Run, is_followed: Callable[[], bool]) -> None:
        """Bring a fetched file to its destination, and report."""
        ...


class Delivery:
    """The second stage of one lane: a thread that delivers what the lane fetched, in that order.

    Neither thread limits its wait for the other: each outlives every bug, and its own waits have their limits.
    """

    def __init__(
        self,
        name: str,
        stages: Stages,
        ended: Callable[[Run], None],
        on_bug: Callable[[Task, BaseException], None],
    ) -> None:
        self._stages = stages
        self._on_bug = on_bug
        self._ended = ended
        self._line: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # steps; None: the end
        self._delivered: SimpleQueue[None] = SimpleQueue()  # one for each run, or fence
        # Each of these is written by one thread. `put` counts before it takes `_coming` back, `is_followed` reads in
        # the other order: so a file on its way is always seen in one of them.
        self._coming: Lease | None = None  # the lane: a file for it is being fetched
        self._put_count = 0  # the lane: runs handed over
        self._undelivered = 0  # the lane: runs and fences handed over, as far as it knows
        self._taken_count = 0  # the delivering thread: runs begun
        self._ready_for: Lease | None = None  # the delivering thread: its destination knows that a file comes
        self._thread = threading.Thread(target=self._loop, name=f"{name}-out", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def announce(self, lease: Lease) -> None:
        """Say that a file is being fetched for a lease."""
        self._coming = lease
        self._line.put(partial(self._expect, lease))

    def put(self, run: Run, follow: Callable[[], bool] | None = None) -> None:
        """Hand over a fetched file; waits while others wait.

        `follow`: asked near the end of its delivery, is another file sure to come? Without it, whether one was
        announced by then.
        """
        self._wait_until(WAITING)
        self._put_count += 1
        self._undelivered += 1
        self._coming = None
        self._line.put(partial(self._deliver, run, follow or self._is_followed))

    def wait(self) -> None:
        """Wait until everything handed over was delivered, and no destination is being got ready."""
        if self._coming is not None:  # announced, and no file followed: it may be its turn just now
            self._coming = None
            self._undelivered += 1
            self._line.put(partial(self._delivered.put, None))
        self._wait_until(0)

    def _wait_until(self, undelivered: int) -> None:
        while self._undelivered > undelivered:
            self._delivered.get()
            self._undelivered -= 1

    def stop(self) -> None:
        """End the thread once its line is empty."""
        self._line.put(None)

    def join(self, timeout: float) -> bool:
        """Wait for the end of the thread; True when it ended, or never began."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while (step := self._line.get()) is not None:
            try:
                step()
            except BaseException:  # a bug; the lane goes on
                log.exception("delivery met a bug")

    def _expect(self, lease: Lease) -> None:
        if lease is self._coming and lease is not self._ready_for:
            self._ready_for = lease
            self._stages.expect(lease)

    def _is_followed(self) -> bool:
        return self._coming is not None or self._put_count != self._taken_count

    def _deliver(self, run: Run, follow: Callable[[], bool]) -> None:
        self._taken_count += 1
        self._ready_for = None

        def is_followed() -> bool:
            if not follow():
                return False
            self._ready_for = run.lease
            return True

        try:
            self._stages.deliver(run, is_followed)
        except BaseException as error:  # noqa: BLE001 - a bug; the lane goes on, with other sessions
            run.lease.destination_is_reusable = False
            self._on_bug(run.task, error)
        finally:
            try:
                self._ended(run)
            finally:
                self._delivered.put(None)
