"""The lanes: threads that take a job with its lease, run it, and end its run.

    Lanes(work, execute, count, *, buffer_bytes, transfer_timeout=0.0, clock=time.monotonic, on_bug=None, stages=None)
    execute(run) -> None     run.lease.open(), relay, release, report; never raises
    Run: .task .lease .number .started .deadline .buffer .aborted .abort(error) .cause(error)
    lanes.start() .abort(predicate, error) -> int .tick(now) -> int .runs()
    lanes.drain(deadline) -> bool  .stop(timeout) -> bool

With `stages` (delivery.py) a lane keeps its lease as long as there are jobs for it, and delivers one file while it
fetches the next; jobs that cannot be split are given to `execute`.

`work` is the dispatcher, as far as a lane needs it (`Work`). Knows no Kafka, no protocol, no queue.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

import structlog

from etl.errors import EtlError, TransferTimeout
from etl.lanes.delivery import Delivery
from etl.lanes.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.lanes.delivery import Stages
    from etl.models.message import FileTransferJob
    from etl.models.task import Task
    from etl.sessions.lease import Lease

TAKE_SECONDS = 1.0  # how long a lane waits for work before it checks whether to end
JOIN_SECONDS = 1.0  # for the end of a lane's second thread, which has nothing more to do
PAUSE_SECONDS = 0.01  # after a wait without work: a dispatcher that was stopped does not block

log = structlog.get_logger(__name__)


class Work(Protocol):
    """Where jobs come from."""

    def take(self, timeout: float) -> tuple[Task, Lease] | None:
        """Return the next job with its lease; blocks for `timeout` seconds at most."""
        ...

    def another(self, task: Task) -> Task | None:
        """Return one more job for the lease of a running one; None: give the lease back."""
        ...

    def finish(self, task: Task, again_in: float | None = None) -> None:
        """End the run of a job; without `again_in` the job is over, else it runs again after so many seconds."""
        ...


class Lanes:
    """`count` threads: `lane-00`, `lane-01` and so on."""

    def __init__(
        self,
        work: Work,
        execute: Callable[[Run], None],
        count: int,
        *,
        buffer_bytes: int,
        transfer_timeout: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        on_bug: Callable[[Task, BaseException], None] | None = None,
        stages: Stages | None = None,
    ) -> None:
        self._work = work
        self._execute_alone = execute
        self._buffer_bytes = buffer_bytes
        self._transfer_timeout = transfer_timeout
        self._clock = clock
        self._on_bug = on_bug
        self._stages = stages
        self._lock = threading.Lock()  # guards _runs; _ending is set under it, so that no run begins afterwards
        self._ended = threading.Condition(self._lock)
        self._runs: set[Run] = set()
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._loop, name=f"lane-{number:02d}", daemon=True) for number in range(count)
        ]

    def __repr__(self) -> str:
        state = "ending" if self._ending.is_set() else "running"
        return f"<Lanes {state} threads={len(self._threads)} {self.runs()}>"

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def runs(self) -> list[Run]:
        """Return what runs now."""
        with self._lock:
            return list(self._runs)

    def abort(self, predicate: Callable[[Task], bool], error: EtlError) -> int:
        """Abort the running jobs that `predicate` picks; return how many. Does not wait for their end."""
        return sum(run.abort(error) for run in self.runs() if predicate(run.task))

    def tick(self, now: float) -> int:
        """Abort the runs whose deadline has passed; return how many."""
        count = 0
        for run in self.runs():
            if run.deadline is not None and now >= run.deadline:
                count += run.abort(self._too_long(run.task.job, now - run.started))
        return count

    def drain(self, deadline: float) -> bool:
        """Begin no more runs; wait for the others until `deadline` (of the clock). Return whether all ended."""
        with self._ended:  # critical section: no run begins from here on
            self._ending.set()
            return self._ended.wait_for(lambda: not self._runs, max(0.0, deadline - self._clock()))

    def stop(self, timeout: float) -> bool:
        """Begin no more runs, and join the threads. Return whether all ended within `timeout` seconds.

        A lane that waits for work ends within a second, or at once if the dispatcher was stopped before.
        """
        with self._lock:
            self._ending.set()
        end = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _loop(self) -> None:
        name = threading.current_thread().name
        delivery = None if self._stages is None else Delivery(name, self._stages, self._end, self._report)
        if delivery is not None:
            delivery.start()
        try:
            self._work_on(delivery)
        finally:
            if delivery is not None:
                delivery.stop()
                delivery.join(JOIN_SECONDS)

    def _work_on(self, delivery: Delivery | None) -> None:
        memory: list[memoryview] = []

        def buffer() -> memoryview:
            if not memory:
                memory.append(memoryview(bytearray(self._buffer_bytes)))
            return memory[0]

        while not self._ending.is_set():
            try:
                taken = self._work.take(TAKE_SECONDS)
            except Exception:  # a bug in the dispatcher must not end the lane
                log.exception("lane could not take a job")
                self._ending.wait(TAKE_SECONDS)
                continue
            if taken is None:
                memory.clear()  # an idle lane holds none
                self._ending.wait(PAUSE_SECONDS)
            elif (run := self._begin(*taken, buffer)) is None:
                taken[1].release(reusable=True)
            elif delivery is None or self._stages is None or not self._can_pipeline(run, self._stages):
                self._execute(run)
            else:
                self._execute_lease(run, self._stages, delivery, buffer)

    def _begin(self, task: Task, lease: Lease, buffer: Callable[[], memoryview]) -> Run | None:
        now = self._clock()
        run = Run(task, lease, now, self._deadline(task, now), buffer)
        with self._lock:  # critical section: decide whether the run begins
            ending = self._ending.is_set()
            if not ending:
                self._runs.add(run)
        if not ending:
            return run
        self._work.finish(task, 0.0)  # it was taken just when the lanes were stopped: it goes back to its queue
        return None

    def _can_pipeline(self, run: Run, stages: Stages) -> bool:
        try:
            return stages.can_pipeline(run)
        except Exception:  # a bug must not end the lane; when the job is run alone, it meets and reports the bug
            log.exception("lane could not decide how to run a job", job_id=run.task.job.job_id)
            return False

    def _execute(self, run: Run) -> None:
        try:
            self._execute_alone(run)
        except BaseException as error:  # noqa: BLE001 - a bug: it is reported, and the lane goes on
            self._report(run.task, error)
        finally:
            run.lease.release(reusable=False)  # does nothing if `execute` released it, as it should
            self._end(run)

    def _execute_lease(self, run: Run, stages: Stages, delivery: Delivery, buffer: Callable[[], memoryview]) -> None:
        """Fetch file after file with one lease; while one is delivered, the next is fetched."""
        lease = run.lease
        coming: Run | None = run
        try:
            while coming is not None and not lease.is_over and self._can_pipeline(coming, stages):
                run, coming = coming, None  # `_fetch` sees to it that this run ends
                task = self._fetch(run, stages, delivery)
                coming = None if task is None else self._begin(task, lease, buffer)
        finally:
            stages.settle(lease)
            delivery.wait()
            lease.release(lease.reusable)
        if coming is not None:  # it needs a lease of its own: it goes back to its queue
            coming.again_in = 0.0
            self._end(coming)

    def _fetch(self, run: Run, stages: Stages, delivery: Delivery) -> Task | None:
        """Fetch one file and hand it to the delivery, which ends its run; return the next job for the lease."""
        lease = run.lease
        try:
            is_fetched = stages.open(run)
            if is_fetched:
                delivery.announce(lease)  # its sessions are open: the destination can get ready
                is_fetched = stages.fetch(run)
        except BaseException as error:  # noqa: BLE001 - a bug: it is reported, and the lane goes on
            self._report(run.task, error)
            lease.abort()
            is_fetched = False
        if not is_fetched:
            task = self._another(run) if lease.is_open else None  # the lease is kept if its sessions are open
            self._end(run)
            return task
        if run.unchanged is None:
            return self._stream(run, delivery)
        task = self._another(run)
        delivery.put(run)
        stages.confirm(run)
        delivery.make_room()
        return task

    def _stream(self, run: Run, delivery: Delivery) -> Task | None:
        """Have a file delivered that is not in memory, and wait for it; return the next job for the lease.

        The next job is asked for only when the file has arrived: taken earlier it would wait, though other lanes are
        free.
        """
        following: list[Task] = []

        def follow() -> bool:
            if (task := self._another(run)) is not None:
                following.append(task)
            return task is not None

        delivery.put(run, follow)
        delivery.wait()
        return following[0] if following else None

    def _another(self, run: Run) -> Task | None:
        """Ask for the next job while this one runs: once its run has ended, so has its lease."""
        try:
            return None if run.lease.is_over else self._work.another(run.task)
        except Exception:  # a bug in the dispatcher must not end the lane
            log.exception("lane could not take another job")
            return None

    def _end(self, run: Run) -> None:
        self._work.finish(run.task, run.again_in)
        with self._lock:
            self._runs.discard(run)
            if not self._runs:
                self._ended.notify_all()

    def _report(self, task: Task, error: BaseException) -> None:
        log.error("lane met a bug", job_id=task.job.job_id, origin=str(task.origin), exc_info=error)
        if self._on_bug is not None:
            try:
                self._on_bug(task, error)
            except Exception:  # even a bug in this report must not end the lane
                log.exception("bug could not be reported", job_id=task.job.job_id)

    def _too_long(self, job: FileTransferJob, seconds: float) -> TransferTimeout:
        own, limit = job.options.timeout_seconds, self._transfer_timeout
        passed = "options.timeout_seconds" if own and (not limit or own <= limit) else "ETL_TRANSFER_TIMEOUT_SECONDS"
        where = f"{job.source.hostname} to {job.destination.hostname}"
        return TransferTimeout(f"{where}: the transfer was not done after {seconds:.1f} s ({passed})")

    def _deadline(self, task: Task, now: float) -> float | None:
        limits = [seconds for seconds in (task.job.options.timeout_seconds, self._transfer_timeout) if seconds]
        return now + min(limits) if limits else None
