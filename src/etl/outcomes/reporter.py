"""Turns the end of a run into what follows: a result, a retry, a dead letter, or nothing if the job is another's now.

Called by lanes, admission, the committer and the main thread. Knows no Kafka client, no session and no protocol.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from etl import clock as wall_clock
from etl.errors import EtlError, InvalidMessage, OnHold, code_of
from etl.logs import redact
from etl.models import document
from etl.models.message import TransferResult
from etl.models.task import SCAN_ANEW, Attempt, Start
from etl.models.wire import Partition
from etl.outcomes import parts
from etl.outcomes.ledger import Outcome
from etl.outcomes.offsets import RecordState
from etl.outcomes.totals import Totals
from etl.retry import tiers
from etl.retry.policy import Abandon, DeadLetter, Defer, RetryHere

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from etl.dispatch.dispatcher import Dispatcher
    from etl.models.message import FileTransferJob
    from etl.models.task import Record, Span, Task
    from etl.models.wire import Message
    from etl.outcomes.ledger import Ledger
    from etl.outcomes.messages import Carried, MessageBuilder
    from etl.retry.policy import Policy
    from etl.transfer.receipts import Receipt

log = structlog.get_logger(__name__)

ABANDONED_PAUSE_SECONDS = 1.0  # until an abandoned job is tried again, if its partition is still assigned here
ATTEMPT_CHARACTERS = 2000  # longer errors are cut in a job's list of attempts
ERROR_SHOWN = 300  # characters of the last error in the status of a process


@dataclass
class _Success:
    """A run that succeeded, until its commit. `is_failure`: its result could not be built, and a dead letter was."""

    task: Task
    receipt: Receipt
    span: Span
    is_failure: bool = False


@dataclass
class Reporter:
    """Reports how jobs ended: as outcomes to the ledger, as retries to the dispatcher, as lines in the log."""

    worker: str  # this process, as results name it
    dispatcher: Dispatcher
    ledger: Ledger
    policy: Policy
    builder: MessageBuilder
    is_stopping: Callable[[], bool]
    forget_part: Callable[[Task], None] = lambda _task: None  # has a partial file removed that no job goes on with
    leaves_orphans: bool = False  # an orphan may remain at a server that no job of this process will look for
    started: float = field(default_factory=time.monotonic)
    done: int = 0  # finished jobs; approximate, as lanes count without a lock
    bugs: int = 0  # jobs and records that met a bug of ours, of those; as approximate
    totals: Totals = field(default_factory=Totals)
    # Bound once, as every job writes a line: binding takes nearly as long as the line itself.
    _log: Any = field(default_factory=log.bind)

    def __repr__(self) -> str:
        return f"Reporter({self.worker}, {self.done} done, leaves_orphans={self.leaves_orphans})"

    def succeeded(self, task: Task, receipt: Receipt, start: Start) -> None:
        """Report a run that succeeded: as done, or as published if its source action must follow the commit."""
        has_action = task.job.options.source_action != "keep" and not receipt.skipped and not task.published
        task.verified_by, task.checksum = receipt.verified_by, receipt.checksum
        task.facts = receipt.facts
        self.totals.moved(task)
        task.start = start if has_action else None
        if has_action:
            self._add(task, RecordState.PUBLISHED, on_commit=lambda: self._start_action(task))
            return
        success = _Success(task, receipt, start.until_now())
        write, tell = partial(self._write_success, success), partial(self._tell_success, success)
        if self._add(task, RecordState.DONE, on_commit=tell, write=write):
            self.done += 1

    def _write_success(self, success: _Success) -> tuple[Message, ...]:
        """Return the result of a job that is done. Called by the committer."""
        task, receipt, span = success.task, success.receipt, success.span
        try:
            result = self._build_result(
                task,
                "SUCCESS",
                span,
                bytes=receipt.size_bytes,
                verified_by=receipt.verified_by,
                checksum=receipt.checksum,
                skipped=receipt.skipped,
                **task.remarks,
            )
            return self.builder.result(task, result)
        except Exception as error:  # a job that hits a bug must not stop the process at every restart
            log.exception("job failed", **context(task), error=str(error), error_code=code_of(error))
            self._count_failure(error, _place(task.record), task.job.words)
            success.is_failure = True
            return self._build_failure(task, error, span)

    def _tell_success(self, success: _Success) -> None:
        """Log a job as done, once its outcome is committed."""
        if success.is_failure:
            return
        task, receipt, span = success.task, success.receipt, success.span
        skipped = {"skipped": True} if receipt.skipped else {}
        if (why := task.remarks.get("source_action_error")) is not None:
            log.warning("source action not done", **context(task), error=why)
        self.totals.succeeded(task, receipt.size_bytes, span, skipped=receipt.skipped)
        seconds = round(span.seconds, 3)
        self._log.info(
            "job done", **context(task), bytes=receipt.size_bytes, seconds=seconds, **skipped, at=span.finished_at
        )

    def _start_action(self, task: Task) -> None:
        # A copy of the task: the lane may still be ending the run that published it.
        self.dispatcher.offer(replace(task, published=True))

    def failed(self, task: Task, error: BaseException, start: Start, breaker_wait: float = 0.0) -> float | None:
        """Report a run that failed; let the policy decide whether the job is retried, deferred or dead-lettered.

        `breaker_wait`: the seconds for which the breaker of the failed server stays open. Return the seconds after
        which the job is to run again in this process, or None if it is over here.
        """
        now = self._believable_now(task)
        self.totals.moved(task)
        # Unless this process still owns the partition, the error proves nothing: the new owner may have finished the
        # job and removed its source.
        verdict = self.policy.verdict(task, error, now, breaker_wait) if task.owned() else Abandon()
        if isinstance(verdict, RetryHere | Defer):
            if verdict.spent:
                self._add_attempt(task, error)
            task.waiting_since, task.outages = verdict.waiting_since, verdict.outages
            task.free_runs += not verdict.spent and not verdict.outages
            self.totals.retried("outage" if verdict.outages else "attempt")
            if isinstance(verdict, Defer):
                task.recallable = breaker_wait > 0  # a job that waits for the breaker may run as soon as it closes
                self.defer(task, verdict.not_before, str(error))
            else:
                log.info("job waits", **context(task), error=str(error), seconds=round(verdict.delay, 3))
                task.orphan_scan_since = SCAN_ANEW
                return verdict.delay
        elif isinstance(verdict, DeadLetter):
            self._add_attempt(task, verdict.error)
            self.dead(task, verdict.error, start)
        elif self.ledger.owns(task.partition, task.epoch) and not self.is_stopping():
            # The partition was not revoked: ownership is only uncertain, while the broker does not answer.
            task.orphan_scan_since = SCAN_ANEW
            return ABANDONED_PAUSE_SECONDS
        else:
            # After a revocation the next owner looks for orphans anyway. After a stop it does so only if the last
            # commit does not mark the partition as left cleanly.
            if task.orphan_scan_since is not None and self.is_stopping():
                self.leaves_orphans = True
            log.info("job abandoned", **context(task), error=str(error))
        return None

    def defer(self, task: Task, not_before: float, reason: str, *, level: int = logging.INFO) -> None:
        """Defer a job to T-retry until `not_before` (wall clock), and log it at `level`."""
        if self._add(task, RecordState.DONE, self.builder.deferral(task, not_before)):
            log.log(level, "job deferred", **context(task), error=reason, until=_format_utc(not_before))

    def defer_untried(self, task: Task, seconds: float, outage: BaseException | None) -> None:
        """Defer a job for `seconds` without running it: its server is busy, or, if `outage` is given, down."""
        now = self._believable_now(task)
        # Only the first deferral is logged at INFO: a million jobs may be deferred again and again.
        level = logging.DEBUG if task.recallable else logging.INFO
        task.recallable = True
        if outage is None or isinstance(outage, OnHold):
            task.waiting_since, task.outages = None, 0  # it waits for no server that is down
            self.totals.retried("busy" if outage is None else "held")
            self.defer(task, now + seconds, "server busy" if outage is None else str(outage), level=level)
            return
        verdict = self.policy.defer_untried(task, outage, now, seconds)
        if isinstance(verdict, DeadLetter):
            self.dead(task, verdict.error)
            return
        task.waiting_since = verdict.waiting_since
        self.totals.retried("outage")
        self.defer(task, verdict.not_before, str(outage), level=level)

    def _believable_now(self, task: Task) -> float:
        """Return the wall clock, but no later for a job that waits than it can be by what Kafka and this process saw.

        A job read from T-retry has waited there for the longest tier at most, and since then in this process: a clock
        that was wrong from the start does not end its patience. If nobody was there to read it, it waits a little more.
        """
        now = wall_clock.now()
        if task.waiting_since is None:
            return now
        seen = max(task.record.timestamp, task.waiting_since)
        return min(now, seen + tiers.TIERS[-1] + time.monotonic() - self.started)

    def dead(self, task: Task, error: BaseException, start: Start | None = None) -> None:
        """Report that a job failed for good: a dead letter and a failed result. `start`: of its last run, if any."""
        span = (start or Start.now()).until_now()
        self.forget_part(task)
        if self._add(task, RecordState.DONE, self._build_failure(task, error, span)):
            self.done += 1
            self._count_failure(error, _place(task.record), task.job.words)
            bug = self._trace_bug(error)
            log.error("job failed", **context(task), error=str(error), error_code=code_of(error), **bug)

    def _build_failure(self, task: Task, error: BaseException, span: Span) -> tuple[Message, ...]:
        text, more = str(error), {}
        if task.published:  # the copy is there, and stays
            action = "moved" if task.job.options.move_to is not None else "deleted"
            text = f"the file was copied, but its source is not {action}: {text}"
            more = {"bytes": task.facts.size_bytes if task.facts else None, "source_action_done": False}
        result = self._build_result(
            task, "FAILED", span, error=redact(text, task.job.words), error_code=code_of(error), **more
        )
        return self.builder.dead_letter(task, error) + self.builder.result(task, result)

    def split(self, record: Record, carried: Carried, epoch: int, jobs: Sequence[FileTransferJob]) -> None:
        """Report a record that holds several jobs: its outcome is a record for each, in the same transaction."""
        messages = parts.build(self.builder, record, carried, jobs)
        if self.ledger.add(
            Outcome(Partition(record.topic, record.partition), record.offset, epoch, RecordState.DONE, messages)
        ):
            log.info(
                "message split",
                jobs=len(jobs),
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                first=jobs[0].job_id,
            )

    def reject(self, record: Record, carried: Carried, epoch: int, error: BaseException) -> None:
        """Report a record that holds no valid job, or that met a bug: a dead letter and a failed result."""
        job_id = carried.job_id or (error.job_id if isinstance(error, InvalidMessage) else None) or str(carried.origin)
        now = datetime.now(UTC)
        result = TransferResult(
            job_id=job_id,
            status="FAILED",
            attempts=0,
            duration_seconds=0.0,
            error=document.printable(str(error) if isinstance(error, InvalidMessage) else redact(str(error))),
            error_code=code_of(error),
            started_at=now,
            finished_at=now,
            worker=self.worker,
        )
        messages = self.builder.dead_letter(record, error, job_id=job_id, carried=carried)
        messages += self.builder.result(carried, result)
        partition = Partition(record.topic, record.partition)
        if self.ledger.add(Outcome(partition, record.offset, epoch, RecordState.DONE, messages)):
            self.done += 1
            self._count_failure(error, _place(record))
            log.error(
                "invalid message dead-lettered" if isinstance(error, EtlError) else "record dead-lettered after a bug",
                job_id=job_id,
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                error=str(error),
                error_code=code_of(error),
                **self._trace_bug(error),
            )

    def _count_failure(self, error: BaseException, place: str, words: Collection[str] = ()) -> None:
        text = document.printable(redact(str(error), words))[:ERROR_SHOWN]
        self.totals.failed(code_of(error), _format_utc(time.time()), text, place)

    def _trace_bug(self, error: BaseException) -> dict[str, Any]:
        """Count a bug; return what the log says of it: nothing if the error is none."""
        if isinstance(error, EtlError):
            return {}
        self.bugs += 1
        return {"bugs": self.bugs, "exc_info": error}

    def _add(
        self,
        task: Task,
        state: RecordState,
        messages: tuple[Message, ...] = (),
        on_commit: Callable[[], None] | None = None,
        write: Callable[[], tuple[Message, ...]] | None = None,
    ) -> bool:
        """Add an outcome to the ledger; return False if the assignment has ended, or the record has one already."""
        return self.ledger.add(
            Outcome(task.partition, task.record.offset, task.epoch, state, messages, on_commit, write)
        )

    def _build_result(self, task: Task, status: str, span: Span, **more: Any) -> TransferResult:
        job = task.job
        return TransferResult(
            job_id=job.job_id or str(task.origin),
            status=status,  # type: ignore[arg-type]  # the callers pass one of the two literals
            source=job.source,
            destination=job.destination,
            duration_seconds=round(span.seconds, 6),
            attempts=len(task.attempts) + (status == "SUCCESS"),
            started_at=datetime.fromtimestamp(span.started_at, UTC),
            finished_at=datetime.fromtimestamp(span.finished_at, UTC),
            worker=self.worker,
            metadata=job.metadata,
            flat=job.flat,
            **more,
        )

    def _add_attempt(self, task: Task, error: BaseException) -> None:
        what = redact(f"{code_of(error)}: {error}", task.job.words)
        task.attempts.append(Attempt(_format_utc(time.time()), self.worker, what[:ATTEMPT_CHARACTERS]))

    def drop_unscanned(self) -> bool:
        """Drop the jobs that still had to look for orphans; return whether this process leaves no orphans.

        To be called once all lanes have ended.
        """
        unscanned = self.dispatcher.drop(lambda task: task.orphan_scan_since is not None and not task.published)
        return not (self.leaves_orphans or unscanned)


def context(task: Task) -> dict[str, object]:
    """Return the fields that identify a job in the log."""
    return {
        "job_id": task.job.job_id,
        "source": str(task.job.source),
        "destination": str(task.job.destination),
        "topic": task.record.topic,
        "partition": task.record.partition,
        "offset": task.record.offset,
    }


def _place(record: Record) -> str:
    return f"{record.topic}-{record.partition}-{record.offset}"


def _format_utc(wall: float) -> str:
    return document.moment(wall).isoformat(timespec="milliseconds").replace("+00:00", "Z")
