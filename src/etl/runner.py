"""What a lane does with a job: sessions, relay, and how the job ended, told to the ledger.

Runs in the lanes' threads. Knows no Kafka client and no protocol.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from etl.errors import DeadlineExceeded, EtlError, Fate, OwnershipLost, code_of, fate_of
from etl.logs import redact
from etl.models import document
from etl.models.message import TransferResult
from etl.models.task import SWEEP_ANEW, Attempt
from etl.models.wire import Partition
from etl.offsets import State
from etl.outcomes import Outcome
from etl.retry import Abandon, Again, Dead, Park
from etl.transfer import partials, relay
from etl.transfer.base import Elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.config import Settings
    from etl.dispatcher import Dispatcher
    from etl.envelopes import Carried, Envelopes
    from etl.models.message import FileTransferJob
    from etl.models.task import Record, Task
    from etl.models.wire import Message
    from etl.outcomes import Ledger
    from etl.retry import Policy
    from etl.transfer.lane import Flight
    from etl.transfer.lease import Lease
    from etl.transfer.pool import Pools
    from etl.transfer.row import Row, Store

log = structlog.get_logger(__name__)

ABANDONED_PAUSE_SECONDS = 1.0  # before a job is tried again whose partition is ours after all


@dataclass
class Runner:
    """Runs jobs and reports their outcomes."""

    settings: Settings
    worker: str
    token: str
    pools: Pools
    dispatcher: Dispatcher
    ledger: Ledger
    policy: Policy
    envelopes: Envelopes
    store: Store
    is_stopping: Callable[[], bool]
    untidy: bool = False  # something may be left behind at a server, and no job of this process will look for it
    leftovers: partials.Leftovers = field(default_factory=partials.Leftovers)
    done: int = field(default=0)  # jobs that ended in this process; approximate: lanes count without a lock

    def run(self, flight: Flight) -> None:
        """Do one job in a lane; with one side only, open it and have the job run again. Never raises."""
        task, lease = flight.task, flight.lease
        started = task.began or time.time()  # of a published job: when its copying began
        opened = False
        log.debug("job taken", job_id=task.job.job_id, attempts=len(task.attempts), published=task.published)
        try:
            _require_owned(task)
            if not task.published:
                _require_in_time(task.job)
            lease.open()
            opened = True
            self._let_in(lease)
            receipt = self._transfer(flight) if lease.is_pair else None
        except BaseException as error:  # noqa: BLE001 - a bug is an outcome, too: a dead letter with its traceback
            cause = flight.cause(error)
            self._clean_up(flight)
            lease.release(clean=False)
            self._ended_badly(task, cause, started, answered=opened)
        else:
            lease.release(clean=True)
            if receipt is None:  # the server is reached: now the job waits for both sides
                self.dispatcher.later(task, 0.0)
                return
            self._tell_dispatcher(task, None, answered=True)
            self._succeeded(task, receipt, started)

    def _transfer(self, flight: Flight) -> relay.Receipt:
        task, lease = flight.task, flight.lease
        if task.published:
            size_bytes = relay.finish(task, lease.source, lease.destination, task.facts)
            return relay.Receipt(size_bytes, task.verified_by or relay.NOTHING, facts=task.facts)
        limits = relay.Limits(
            flight.buffer, self.settings.store_bytes // self.settings.workers, self.settings.spool_limit_bytes
        )
        return relay.run(task, lease.source, lease.destination, self._token(flight), limits, self.leftovers)

    # --- the same in two stages, of a row of jobs (`row.Stages`)

    def is_plain(self, flight: Flight) -> bool:
        """May this job go through two stages?"""
        return flight.lease.is_pair and not flight.lease.shared and relay.is_plain(flight.task, self.leftovers)

    def open(self, flight: Flight) -> bool:
        """Have the sessions of its row open. False: the job failed, and was reported."""
        flight.began = time.time()
        try:
            _require_owned(flight.task)
            _require_in_time(flight.task.job)
            if not flight.row.is_open:
                flight.lease.open()
                flight.row.is_open = True
                self._let_in(flight.lease)
        except BaseException as error:  # noqa: BLE001 - a bug is an outcome, too: a dead letter with its traceback
            self._failed_in_row(flight, error, answered=False)
            return False
        return True

    def fetch(self, flight: Flight) -> bool:
        """Open the source's file; take it into memory if it is small. False: it failed, and was reported."""
        task, lease = flight.task, flight.lease
        try:
            relay.require_disposal(task, lease.source)
            flight.parcel = parcel = relay.fetch(task, lease.source)
            size_bytes = parcel.facts.size_bytes
            if size_bytes is not None and self.store.take(size_bytes):
                flight.held_bytes = size_bytes
                if parcel.load(size_bytes):
                    flight.unchanged = Elsewhere()
        except BaseException as error:  # noqa: BLE001 - a bug is an outcome, too: a dead letter with its traceback
            flight.row.source_is_clean = False
            if flight.parcel is not None:
                flight.parcel.close(complete=False)
            self.store.give(flight.held_bytes)
            self._failed_in_row(flight, error, answered=True)
            return False
        return True

    def confirm(self, flight: Flight) -> None:
        """End the reading of a file in memory, and have its source asked whether it changed."""
        parcel, unchanged, source = flight.parcel, flight.unchanged, flight.lease.source
        if parcel is None or unchanged is None:
            return
        try:
            unchanged.follow(source.confirm(parcel))
        except BaseException as error:  # noqa: BLE001 - it is the delivery's: there it is reported
            flight.row.source_is_clean = False
            unchanged.fail(error)

    def settle(self, row: Row) -> None:
        """Read all answers of the source: no file follows for now."""
        if row.is_open:
            try:
                row.lease.source.flush()
            except Exception:  # noqa: BLE001 - whoever waits for an answer is told
                row.source_is_clean = False

    def expect(self, row: Row) -> None:
        """Get the destination ready: a file is on its way."""
        if not row.is_over:
            try:
                row.lease.destination.prepare()
                row.lease.destination.flush()
            except Exception as error:  # noqa: BLE001 - the session is broken: the file that comes fails of it
                row.lost, row.destination_is_clean = error, False

    def deliver(self, flight: Flight, is_followed: Callable[[], bool]) -> None:
        """Bring a fetched file to its destination, and report."""
        task, row, parcel, held = flight.task, flight.row, flight.parcel, flight.unchanged
        assert parcel is not None  # noqa: S101 - it was fetched
        destination, source = flight.lease.destination, flight.lease.source
        try:
            if row.lost is not None:
                raise row.lost
            if not row.destination_is_clean:
                if held is None:
                    row.source_is_clean = False  # its parcel is broken off below
                self._run_again(task)
                return
            _require_owned(task)
            receipt = relay.deliver(
                task,
                parcel,
                partial(relay.confirm, task, parcel, source) if held is None else (lambda _stored: held),
                destination,
                self._token(flight),
                flight.buffer,
                is_followed,
            )
        except BaseException as error:  # noqa: BLE001 - a bug is an outcome, too
            row.destination_is_clean = False
            if held is None:
                row.source_is_clean = False
            self._clean_up(flight)
            self._failed_in_row(flight, error, answered=True)
        else:
            self._tell_dispatcher(task, None, answered=True)
            self._succeeded(task, receipt, flight.began)
        finally:
            if held is None:
                parcel.close(complete=False)
            self.store.give(flight.held_bytes)

    def _failed_in_row(self, flight: Flight, error: BaseException, *, answered: bool) -> None:
        task, cause = flight.task, flight.cause(error)
        if flight.aborted is None and flight.lease.aborted:
            self._run_again(task)  # a neighbour was reset; this job did nothing wrong
            return
        self._ended_badly(task, cause, flight.began, answered=answered)

    def _ended_badly(self, task: Task, cause: BaseException, started: float, *, answered: bool) -> None:
        """Tell dispatcher and ledger. `answered`: the sessions were open, so an error for good is the servers' word."""
        self._tell_dispatcher(task, cause, answered=answered and fate_of(cause) is Fate.DEAD)
        self._failed(task, cause, started)

    def _run_again(self, task: Task) -> None:
        """Have a job run again that was only in the way of another's failure."""
        log.info("job runs again", **_context(task))
        self.dispatcher.later(task, 0.0)

    # --- outcomes

    def _succeeded(self, task: Task, receipt: relay.Receipt, started: float) -> None:
        has_action = task.job.options.source_action != "keep" and not receipt.skipped and not task.published
        task.verified_by = receipt.verified_by
        task.facts = receipt.facts
        task.began = started if has_action else None
        if has_action:
            self.add(task, State.PUBLISHED, on_commit=lambda: self._published(task))
            return
        if self.add(task, State.DONE, write=partial(self._tell, task, receipt, started, time.time())):
            self.done += 1

    def _tell(self, task: Task, receipt: relay.Receipt, started: float, finished: float) -> tuple[Message, ...]:
        """Write of a job that is done: the line in the log, and the result. Called by the committer."""
        try:
            result = self._result(
                task,
                "SUCCESS",
                started,
                finished,
                bytes=receipt.size_bytes,
                verified_by=receipt.verified_by,
                skipped=receipt.skipped,
                swapped=receipt.swapped,
            )
            messages = self.envelopes.result(task, result)
        except Exception as error:  # a bug met by one job must not end the process, again and again
            log.exception("job failed", **_context(task), error=str(error), error_code=code_of(error))
            return self._failure(task, error, started, finished)
        told = {"skipped": True} if receipt.skipped else {}
        seconds = round(finished - started, 3)
        log.info("job done", **_context(task), bytes=receipt.size_bytes, seconds=seconds, **told, at=finished)
        return messages

    def _published(self, task: Task) -> None:
        # A task of its own: the lane may still be ending the run that published it.
        self.dispatcher.offer(replace(task, published=True))

    def _failed(self, task: Task, error: BaseException, started: float) -> None:
        now = time.time()
        # Of a job that another process may have finished by now the error proves nothing: its source may be gone.
        verdict = self.policy.verdict(task, error, now, self._breaker_wait(error)) if task.owned() else Abandon()
        if isinstance(verdict, Again | Park):
            self._note(task, error, spent=verdict.spent)
            task.waiting_since, task.outages = verdict.waiting_since, verdict.outages
            if isinstance(verdict, Park):
                self.park(task, verdict.not_before, str(error))
            else:
                log.info("job waits", **_context(task), error=str(error), seconds=round(verdict.delay, 3))
                task.sweep_since = SWEEP_ANEW
                self.dispatcher.later(task, verdict.delay)
        elif isinstance(verdict, Dead):
            self._note(task, verdict.error, spent=True)
            self.dead(task, verdict.error, started)
        elif self.ledger.owns(task.partition, task.incarnation) and not self.is_stopping():
            # Nobody took the partition away: we only cannot be sure that it is ours, while the broker is silent.
            task.sweep_since = SWEEP_ANEW
            self.dispatcher.later(task, ABANDONED_PAUSE_SECONDS)
        else:
            # When a partition is taken away its next owner looks anyway; when the process stops, it must be told to.
            if task.sweep_since is not None and self.is_stopping():
                self.untidy = True
            log.info("job abandoned", **_context(task), error=str(error))

    def park(self, task: Task, not_before: float, reason: str, *, level: int = logging.INFO) -> None:
        """Set a job aside in T-retry until `not_before` (wall clock)."""
        if self.add(task, State.DONE, self.envelopes.deferral(task, not_before)):
            log.log(level, "job parked", **_context(task), error=reason, until=_utc(not_before))

    def set_aside(self, task: Task, seconds: float, outage: BaseException | None) -> None:
        """Set a job aside that was not tried: its server is busy, or down since it was met with `outage`."""
        now = time.time()
        if outage is None:
            self.park(task, now + seconds, "server busy")
            return
        verdict = self.policy.set_back(task, outage, now, seconds)
        if isinstance(verdict, Dead):
            self.dead(task, verdict.error)
            return
        is_news = task.waiting_since is None  # else it was said before: a million may be set back again and again
        task.waiting_since = verdict.waiting_since
        self.park(task, verdict.not_before, verdict.reason, level=logging.INFO if is_news else logging.DEBUG)

    def dead(self, task: Task, error: BaseException, started: float | None = None) -> None:
        """Report a job as failed for good: a dead letter and a failed result."""
        now = time.time()
        if self.add(task, State.DONE, self._failure(task, error, now if started is None else started, now)):
            self.done += 1
            bug = None if isinstance(error, EtlError) else error
            log.error("job failed", **_context(task), error=str(error), error_code=code_of(error), exc_info=bug)

    def _failure(self, task: Task, error: BaseException, started: float, finished: float) -> tuple[Message, ...]:
        result = self._result(task, "FAILED", started, finished, error=redact(str(error)), error_code=code_of(error))
        return self.envelopes.dead_letter(task, error) + self.envelopes.result(task, result)

    def refuse(self, record: Record, carried: Carried, incarnation: int, error: EtlError) -> None:
        """Report a message that is no job."""
        job_id = carried.job_id or str(carried.origin)
        now = datetime.now(UTC)
        result = TransferResult(
            job_id=job_id,
            status="FAILED",
            attempts=0,
            duration_seconds=0.0,
            error=redact(str(error)),
            error_code=error.code,
            started_at=now,
            finished_at=now,
            worker=self.worker,
        )
        messages = self.envelopes.dead_letter(record, error, job_id=job_id)
        messages += self.envelopes.result(record, result)
        partition = Partition(record.topic, record.partition)
        if self.ledger.add(Outcome(partition, record.offset, incarnation, State.DONE, messages)):
            self.done += 1
            log.error(
                "message refused",
                job_id=job_id,
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                error=str(error),
                error_code=error.code,
            )

    def add(
        self,
        task: Task,
        state: State,
        messages: tuple[Message, ...] = (),
        on_commit: Callable[[], None] | None = None,
        write: Callable[[], tuple[Message, ...]] | None = None,
    ) -> bool:
        """Hand an outcome to the ledger; False when the job is not ours any more."""
        return self.ledger.add(
            Outcome(task.partition, task.record.offset, task.incarnation, state, messages, on_commit, write)
        )

    def _result(self, task: Task, status: str, started: float, finished: float, **more: Any) -> TransferResult:
        job = task.job
        return TransferResult(
            job_id=job.job_id or str(task.origin),
            status=status,  # type: ignore[arg-type]  # one of the two literals, by the callers
            source=job.source,
            destination=job.destination,
            duration_seconds=round(finished - started, 6),
            attempts=len(task.attempts) + (status == "SUCCESS"),
            started_at=datetime.fromtimestamp(started, UTC),
            finished_at=datetime.fromtimestamp(finished, UTC),
            worker=self.worker,
            metadata=job.metadata,
            flat=job.flat,
            **more,
        )

    def _note(self, task: Task, error: BaseException, *, spent: bool) -> None:
        if spent:
            what = redact(f"{code_of(error)}: {error}")
            task.attempts.append(Attempt(_utc(time.time()), self.worker, what[:2000]))

    # --- servers

    def _let_in(self, lease: Lease) -> None:
        """Tell that the servers are there: at once, as the transfer may take long."""
        for name in lease.servers:
            self.dispatcher.worked(name)

    def _tell_dispatcher(self, task: Task, error: BaseException | None, *, answered: bool) -> None:
        if answered:
            self.dispatcher.answered(task)
        elif isinstance(error, EtlError) and error.server is not None:
            self.dispatcher.failed(error.server, error, task)

    def _breaker_wait(self, error: BaseException) -> float:
        if isinstance(error, EtlError) and error.fate is Fate.OUTAGE and error.server is not None:
            return self.dispatcher.breaker_wait(error.server)
        return 0.0

    def _token(self, flight: Flight) -> str:
        """Name a run, as no other of any process is named."""
        return f"{self.token}{flight.number:x}"

    def give_up_waiting(self) -> bool:
        """Drop the jobs that were to look for leftovers first; return whether the next owners need not look, either.

        Called once all lanes have ended. Of a job in T-retry its record says that it was tried; one of T that was to
        look first has no other witness.
        """
        topic = self.envelopes.topics.source
        unswept = self.dispatcher.drop(
            lambda task: task.sweep_since is not None and not task.published and task.partition.topic == topic
        )
        return not (self.untidy or unswept)

    def _clean_up(self, flight: Flight) -> None:
        """Remove the partial file of a failed attempt through a new session, or have the server's next one do it."""
        task = flight.task
        if not task.littered:
            return
        task.sweep_since = SWEEP_ANEW  # what the server did with commands that were on their way nobody knows
        server = self.pools.server(task.job.destination.hostname)
        path = partials.partial_path(task, server, self._token(flight))
        flight.lease.destination.disconnect()  # its place at the server is ours until the lease is given back
        try:
            with self.pools.create(server) as session:
                session.remove(path)
        except Exception as error:  # noqa: BLE001 - the failure that matters is the transfer's
            log.info("partial file left for later", server=server.hostname, path=path, error=str(error))
            self.pools.litter(server, path)
            self.untidy = True
        task.littered = False


def _require_owned(task: Task) -> None:
    if not task.owned():
        raise OwnershipLost(f"the partition of job {task.job.job_id} may not be ours any more")


def _require_in_time(job: FileTransferJob) -> None:
    deadline = job.options.deadline
    if deadline is not None and datetime.now(UTC) >= deadline:
        raise DeadlineExceeded(f"options.deadline {deadline.isoformat()} has passed")


def _context(task: Task) -> dict[str, object]:
    return {
        "job_id": task.job.job_id,
        "source": str(task.job.source),
        "destination": str(task.job.destination),
        "topic": task.record.topic,
        "partition": task.record.partition,
        "offset": task.record.offset,
    }


def _utc(wall: float) -> str:
    return document.moment(wall).isoformat(timespec="milliseconds").replace("+00:00", "Z")
