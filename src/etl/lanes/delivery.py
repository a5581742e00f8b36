"""The jobs of one lease in two stages: while one file is delivered, the next one is fetched.

Small files cross whole, in memory that all lanes share (`Store`); a larger one is streamed by the delivering thread,
while the fetching one waits. Knows no protocol, no queue, no outcome.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.lanes.run import Run
    from etl.models.task import Task
    from etl.sessions.lease import Lease

AHEAD = 2  # at most so many files of a lane were handed over and are not delivered when one more is fetched

log = structlog.get_logger(__name__)


class Stages(Protocol):
    """The two stages of a job; none of these raises."""

    def can_pipeline(self, run: Run) -> bool:
        """May this job go through two stages? Otherwise it is run alone."""
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
        """Read all answers that the source still owes: no file follows for now."""
        ...

    def expect(self, lease: Lease) -> None:
        """Get the destination ready for a file that is being fetched."""
        ...

    def deliver(self, run: Run, is_followed: Callable[[], bool], behind: Callable[[], Run | None]) -> None:
        """Bring a fetched file to its destination, and report. `behind`: which one of this lease comes next?"""
        ...


class Delivery:
    """The second stage of one lane: a thread that delivers what the lane fetched, in the same order.

        lane      announce(lease)  fetch  put(run)  make_room()  announce(lease)  fetch  put(run)  ...  wait()
        delivery         expect(lease)          deliver(run, is_followed)          deliver(run, ...)

    Neither thread limits how long it waits for the other: each outlives every bug, and waits for servers are limited.
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
        self._steps: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # for the thread; None: it ends
        self._delivered: SimpleQueue[None] = SimpleQueue()  # one item for each run or fence that is done
        self._queued: deque[Run] = deque()  # appended to by the lane, taken from by the delivering thread
        # No lock: each of these is written by one thread only. `put` raises `_put_count` before it clears `_coming`,
        # and `_is_followed` reads `_coming` before `_put_count`: it sees a file that is coming in one of the two.
        self._coming: Lease | None = None  # by the lane: a file is being fetched with this lease
        self._put_count = 0  # by the lane: runs handed over
        self._undelivered = 0  # by the lane: runs and fences handed over that it does not know to be done
        self._taken_count = 0  # by the delivering thread: runs begun
        self._ready_for: Lease | None = None  # by the delivering thread: its destination is ready for a file
        self._thread = threading.Thread(target=self._loop, name=f"{name}-out", daemon=True)

    def __repr__(self) -> str:
        return f"<Delivery {self._thread.name} undelivered={self._undelivered} coming={self._coming}>"

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def announce(self, lease: Lease) -> None:
        """Say that a file is being fetched, so that the destination of the lease can get ready."""
        self._coming = lease
        self._steps.put(partial(self._expect, lease))

    def put(self, run: Run, follow: Callable[[], bool] | None = None) -> None:
        """Hand over a fetched file.

        `follow` is called near the end of the delivery: is another file sure to follow? Without it one follows if it
        was announced by then.
        """
        self._queued.append(run)
        self._put_count += 1
        self._undelivered += 1
        self._coming = None
        self._steps.put(partial(self._deliver, run, follow or self._is_followed))

    def make_room(self) -> None:
        """Wait while more than AHEAD files are not delivered."""
        self._wait_until(AHEAD)

    def wait(self) -> None:
        """Wait until everything handed over was delivered, and no destination is being got ready."""
        if self._coming is not None:  # no file followed an announcement, which may be acted on just now: set a fence
            self._coming = None
            self._undelivered += 1
            self._steps.put(partial(self._delivered.put, None))
        self._wait_until(0)

    def _wait_until(self, undelivered: int) -> None:
        while self._undelivered > undelivered:
            self._delivered.get()
            self._undelivered -= 1

    def stop(self) -> None:
        """End the thread once it has done all steps."""
        self._steps.put(None)

    def join(self, timeout: float) -> bool:
        """Wait for the end of the thread. True: it has ended, or was never started."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while (step := self._steps.get()) is not None:
            try:
                step()
            except BaseException:  # a bug must not end the lane
                log.exception("delivery met a bug")

    def _expect(self, lease: Lease) -> None:
        if lease is self._coming and lease is not self._ready_for:
            self._ready_for = lease
            self._stages.expect(lease)

    def _is_followed(self) -> bool:
        return self._coming is not None or self._put_count != self._taken_count

    def _behind(self) -> Run | None:
        return self._queued[0] if self._queued else None

    def _deliver(self, run: Run, follow: Callable[[], bool]) -> None:
        self._queued.popleft()
        self._taken_count += 1
        self._ready_for = None

        def is_followed() -> bool:
            if not follow():
                return False
            self._ready_for = run.lease
            return True

        try:
            self._stages.deliver(run, is_followed, self._behind)
        except BaseException as error:  # noqa: BLE001 - a bug: it is reported, and the lane goes on with a new lease
            run.lease.destination_is_reusable = False
            self._on_bug(run.task, error)
        finally:
            try:
                self._ended(run)
            finally:
                self._delivered.put(None)
