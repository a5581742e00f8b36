"""One run of a job in a lane, and the memory for whole files that all lanes share.

Knows no protocol, no queue, no outcome.
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

from etl.models.task import Progress, Start

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.errors import EtlError
    from etl.models.task import Task
    from etl.sessions.lease import Lease
    from etl.transfer.base import Parcel
    from etl.transfer.promises import CrossThread

SMALL_BYTES = 1 << 20  # the largest file that is held whole: streaming larger ones costs less (FTP.md section 4)


class Store:
    """The memory of this process for whole files."""

    def __init__(self, limit_bytes: int) -> None:
        self._lock = threading.Lock()  # guards _left_bytes
        self._left_bytes = limit_bytes

    def take(self, size_bytes: int) -> bool:
        """Reserve memory for a small file; False: it is not small, or there is not enough left."""
        if size_bytes > SMALL_BYTES:
            return False
        with self._lock:  # critical section: decide whether the file fits
            if size_bytes > self._left_bytes:
                return False
            self._left_bytes -= size_bytes
            return True

    def give(self, size_bytes: int) -> None:
        """Give memory back."""
        with self._lock:
            self._left_bytes += size_bytes


class Run:
    """One run of one job in one lane."""

    _numbers = itertools.count(1)

    def __init__(
        self,
        task: Task,
        lease: Lease,
        started: float,
        deadline: float | None,
        buffer: Callable[[], memoryview],
    ) -> None:
        self.task = task
        self.lease = lease
        task.progress = Progress()
        self.started = started  # by the lanes' clock, as is `deadline`
        self.deadline = deadline
        self.number = next(self._numbers)  # unique in the process
        self.parcel: Parcel | None = None  # in two stages: the file that was fetched
        self.unchanged: CrossThread[bool] | None = (
            None  # of a file in memory: did its source say that it did not change?
        )
        self.held_bytes = 0  # of the `Store`
        self.again_in: float | None = None  # seconds after which the job is to run again; None: it is over here
        self.start = Start.now()  # for the result; in two stages: when it had its turn
        self._buffer = buffer
        self._lock = threading.Lock()  # guards _aborted
        self._aborted: EtlError | None = None

    def __repr__(self) -> str:
        state = f"aborted: {self._aborted}" if self._aborted else "running"
        return f"<Run {self.number} of {self.task.job.job_id} {self.lease} {state}>"

    @property
    def buffer(self) -> memoryview:
        """The lane's one buffer, made at first use; valid until the run ends."""
        return self._buffer()

    @property
    def aborted(self) -> EtlError | None:
        """Why this run was aborted; None: it was not."""
        return self._aborted

    def abort(self, error: EtlError) -> bool:
        """End the run from any thread: whatever blocks in its sessions fails at once. False: it was aborted before."""
        with self._lock:  # critical section: the first reason stays
            if self._aborted is not None:
                return False
            self._aborted = error
        self.lease.abort()
        return True

    def cause(self, error: BaseException) -> BaseException:
        """Return why the run failed: the reason of its abort, if there was one, else the `error` that it met."""
        return self.aborted or error
