"""The lanes: threads that take a job with its two sessions, run it, and say that it is finished.

    Lanes(work, run, count, *, buffer_bytes, transfer_timeout=0.0, clock=time.monotonic, on_bug=None, stages=None)
    run(flight) -> None     given by the consumer: flight.lease.open(), relay, release, report; never raises
    Flight: .task .lease .number .started .deadline .buffer .aborted .abort(error) .cause(error)
    lanes.start() .abort(predicate, error) -> int .tick(now) -> int .flights()
    lanes.drain(deadline) -> bool  .stop(timeout) -> bool

With `stages` (row.py) a lane goes on with its sessions as long as there are jobs for them, and delivers one file while
it fetches the next; jobs that cannot be split are still given to `run`.

`work` is the dispatcher, as far as a lane needs it (`Work`). Knows no Kafka, no protocol, no queue.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Protocol

import structlog

from etl.errors import EtlError, TransferTimeout
from etl.models.task import Start
from etl.transfer.row import Delivery, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.message import FileTransferJob
    from etl.models.task import Task
    from etl.transfer.base import Elsewhere, Parcel
    from etl.transfer.lease import Lease
    from etl.transfer.row import Stages

TAKE_SECONDS = 1.0  # how long a lane waits for work before it looks whether it should end
JOIN_SECONDS = 1.0  # for a lane's second thread, once its line is empty
PAUSE_SECONDS = 0.01  # after it got none: a dispatcher that was stopped answers at once

log = structlog.get_logger(__name__)


class Work(Protocol):
    """Where jobs come from."""

    def take(self, timeout: float) -> tuple[Task, Lease] | None:
        """Return the next job with its sessions; blocks at most `timeout` seconds."""
        ...

    def another(self, task: Task) -> Task | None:
        """Return one more job for the sessions of a running one; None: give them back."""
        ...

    def finish(self, task: Task) -> None:
        """Give back the place of a job that ran."""
        ...

    def later(self, task: Task, delay: float) -> None:
        """Have a running job wait and run again."""
        ...


class Flight:
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
        self.started = started  # of the lanes' clock, as is `deadline`
        self.deadline = deadline
        self.number = next(self._numbers)  # unique in the process
        self.row = Row(lease)
        self.parcel: Parcel | None = None  # in a row: what was fetched
        self.unchanged: Elsewhere[bool] | None = None  # and, of a file in memory, what its source says at the end
        self.held_bytes = 0  # of the store
        self.start = Start.now()  # for the result; in a row: when it had its turn
        self._buffer = buffer
        self._lock = threading.Lock()  # guards _aborted: the first reason stays
        self._aborted: EtlError | None = None

    @property
    def buffer(self) -> memoryview:
        """The lane's one buffer, made when first asked for; good until `run` returns."""
        return self._buffer()

    @property
    def aborted(self) -> EtlError | None:
        """Why this run was ended from outside; None: it was not."""
        return self._aborted

    def abort(self, error: EtlError) -> bool:
        """End the run, from any thread: what blocks in its sessions fails at once. False: it was aborted before."""
        with self._lock:
            if self._aborted is not None:
                return False
            self._aborted = error
        self.lease.abort()
        return True

    def cause(self, error: BaseException) -> BaseException:
        """Return why the run really failed: the reason of the abort if there was one, else the `error` it met."""
        return self.aborted or error


class Lanes:
    """The threads `lane-00`, `lane-01` and so on, `count` of them."""

    def __init__(
        self,
        work: Work,
        run: Callable[[Flight], None],
        count: int,
        *,
        buffer_bytes: int,
        transfer_timeout: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        on_bug: Callable[[Task, BaseException], None] | None = None,
        stages: Stages | None = None,
    ) -> None:
        self._work = work
        self._run = run
        self._buffer_bytes = buffer_bytes
        self._transfer_timeout = transfer_timeout
        self._clock = clock
        self._on_bug = on_bug
        self._stages = stages
        self._lock = threading.Lock()  # guards _flights; _ending is set under it, so that none starts afterwards
        self._landed = threading.Condition(self._lock)
        self._flights: set[Flight] = set()
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._loop, name=f"lane-{number:02d}", daemon=True) for number in range(count)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def flights(self) -> list[Flight]:
        """Return what runs now."""
        with self._lock:
            return list(self._flights)

    def abort(self, predicate: Callable[[Task], bool], error: EtlError) -> int:
        """Abort the running jobs that `predicate` picks; return how many. Does not wait for their end."""
        return sum(flight.abort(error) for flight in self.flights() if predicate(flight.task))

    def tick(self, now: float) -> int:
        """Abort what runs longer than it may; return how many there were."""
        count = 0
        for flight in self.flights():
            if flight.deadline is not None and now >= flight.deadline:
                count += flight.abort(self._too_long(flight.task.job, now - flight.started))
        return count

    def drain(self, deadline: float) -> bool:
        """Start nothing more; wait for what runs until `deadline` (of the clock). Return whether all ended."""
        with self._landed:
            self._ending.set()
            return self._landed.wait_for(lambda: not self._flights, max(0.0, deadline - self._clock()))

    def stop(self, timeout: float) -> bool:
        """Start nothing more and join the threads. Returns whether all ended within `timeout` seconds.

        A lane that waits for work ends within a second, sooner when the dispatcher was stopped first.
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
        delivery = None if self._stages is None else Delivery(name, self._stages, self._land, self._report)
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
            except Exception:  # a bug in the dispatcher must not silently cost a lane
                log.exception("lane could not take a job")
                self._ending.wait(TAKE_SECONDS)
                continue
            if taken is None:
                memory.clear()  # a lane at rest holds none
                self._ending.wait(PAUSE_SECONDS)
            elif (flight := self._take_off(*taken, buffer)) is None:
                taken[1].release(clean=True)
            elif delivery is None or self._stages is None or not self._is_plain(flight, self._stages):
                self._fly(flight)
            else:
                self._fly_row(flight, self._stages, delivery, buffer)

    def _take_off(self, task: Task, lease: Lease, buffer: Callable[[], memoryview]) -> Flight | None:
        now = self._clock()
        flight = Flight(task, lease, now, self._deadline(task, now), buffer)
        with self._lock:
            ending = self._ending.is_set()
            if not ending:
                self._flights.add(flight)
        if not ending:
            return flight
        # taken in the instant of the stop: back in its queue, where it ends with the process
        self._work.later(task, 0.0)
        self._work.finish(task)
        return None

    def _is_plain(self, flight: Flight, stages: Stages) -> bool:
        try:
            return stages.is_plain(flight)
        except Exception:  # a bug must not silently cost a lane; run by itself, the job tells whose it is
            log.exception("lane could not tell what a job needs", job_id=flight.task.job.job_id)
            return False

    def _fly(self, flight: Flight) -> None:
        try:
            self._run(flight)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the lane goes on; reported below
            self._report(flight.task, error)
        finally:
            flight.lease.release(clean=False)  # does nothing when `run` released it, as it should
            self._land(flight)

    def _fly_row(self, flight: Flight, stages: Stages, delivery: Delivery, buffer: Callable[[], memoryview]) -> None:
        """Fetch file after file for the same sessions; the delivery of each goes on beside the next fetch."""
        row = flight.row
        coming: Flight | None = flight
        try:
            while coming is not None and not row.is_over and self._is_plain(coming, stages):
                flight, coming = coming, None  # from here on it is fetched, delivered or failed, and landed
                task = self._fetch(flight, stages, delivery)
                coming = None if task is None else self._take_off(task, row.lease, buffer)
                if coming is not None:
                    coming.row = row
        finally:
            stages.settle(row)
            delivery.wait()
            row.end()
        if coming is not None:  # it waits its turn: a lease of its own is what it needs
            self._work.later(coming.task, 0.0)
            self._land(coming)

    def _fetch(self, flight: Flight, stages: Stages, delivery: Delivery) -> Task | None:
        """Fetch one file and hand it to the delivery, which lands it; return the job that follows in the row."""
        row = flight.row
        try:
            is_fetched = stages.open(flight)
            if is_fetched:
                delivery.announce(row)  # its sessions are open: the destination can get ready
                is_fetched = stages.fetch(flight)
        except BaseException as error:  # noqa: BLE001 - a bug in the stages; the lane goes on
            self._report(flight.task, error)
            row.lease.abort()
            is_fetched = False
        if not is_fetched:
            task = self._another(flight) if row.is_open else None  # the row goes on, if its sessions do
            self._land(flight)
            return task
        if flight.unchanged is None:
            return self._stream(flight, delivery)
        task = self._another(flight)
        delivery.put(flight)
        stages.confirm(flight)
        return task

    def _stream(self, flight: Flight, delivery: Delivery) -> Task | None:
        """Have a file delivered that is not in memory, and wait for it; return the job that follows in the row.

        That one is asked for only when the file has arrived: it would wait behind it, though other lanes are free.
        """
        following: list[Task] = []

        def follow() -> bool:
            if (task := self._another(flight)) is not None:
                following.append(task)
            return task is not None

        delivery.put(flight, follow)
        delivery.wait()
        return following[0] if following else None

    def _another(self, flight: Flight) -> Task | None:
        """Ask for the job that follows, while this one runs: once it has landed its sessions are another's."""
        try:
            return None if flight.row.is_over else self._work.another(flight.task)
        except Exception:  # a bug in the dispatcher must not silently cost a lane
            log.exception("lane could not take another job")
            return None

    def _land(self, flight: Flight) -> None:
        self._work.finish(flight.task)
        with self._lock:
            self._flights.discard(flight)
            if not self._flights:
                self._landed.notify_all()

    def _report(self, task: Task, error: BaseException) -> None:
        log.error("lane met a bug", job_id=task.job.job_id, origin=str(task.origin), exc_info=error)
        if self._on_bug is not None:
            try:
                self._on_bug(task, error)
            except Exception:  # the report of a bug has a bug: logged, and the lane goes on
                log.exception("report of a bug failed", job_id=task.job.job_id)

    def _too_long(self, job: FileTransferJob, seconds: float) -> TransferTimeout:
        own, limit = job.options.timeout_seconds, self._transfer_timeout
        passed = "options.timeout_seconds" if own and (not limit or own <= limit) else "ETL_TRANSFER_TIMEOUT_SECONDS"
        where = f"{job.source.hostname} to {job.destination.hostname}"
        return TransferTimeout(f"{where}: the transfer was not done after {seconds:.1f} s ({passed})")

    def _deadline(self, task: Task, now: float) -> float | None:
        limits = [seconds for seconds in (task.job.options.timeout_seconds, self._transfer_timeout) if seconds]
        return now + min(limits) if limits else None
