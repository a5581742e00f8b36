"""How jobs end: as a result, a retry, a dead letter, or not at all as they are ours no more; told to the ledger.

Called by lanes, admission and the main thread. Knows no Kafka client, no session and no protocol.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from etl.errors import EtlError, InvalidMessage, code_of
from etl.logs import redact
from etl.models import document
from etl.models.message import TransferResult
from etl.models.task import SCAN_ANEW, Attempt, Start
from etl.models.wire import Partition
from etl.outcomes.ledger import Outcome
from etl.outcomes.offsets import RecordState
from etl.retry.policy import Abandon, DeadLetter, Defer, RetryHere

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.dispatch.dispatcher import Dispatcher
    from etl.models.task import Record, Span, Task
    from etl.models.wire import Message
    from etl.outcomes.ledger import Ledger
    from etl.outcomes.messages import Carried, MessageBuilder
    from etl.retry.policy import Policy
    from etl.transfer.relay import Receipt

log = structlog.get_logger(__name__)

ABANDONED_PAUSE_SECONDS = 1.0  # before a job is tried again whose partition is ours after all


@dataclass
class Reporter:
    """Turns what became of a job into an outcome, its messages and a line in the log."""

    worker: str
    dispatcher: Dispatcher
    ledger: Ledger
    policy: Policy
    builder: MessageBuilder
    is_stopping: Callable[[], bool]
    leaves_orphans: bool = (
        False  # something may be left behind at a server, and no job of this process will look for it
    )
    done: int = 0  # jobs that ended in this process; approximate: lanes count without a lock

    def succeeded(self, task: Task, receipt: Receipt, start: Start) -> None:
        """Report a transfer; of a job with a source action, as published: the action follows its commit."""
        has_action = task.job.options.source_action != "keep" and not receipt.skipped and not task.published
        task.verified_by = receipt.verified_by
        task.facts = receipt.facts
        task.start = start if has_action else None
        if has_action:
            self._add(task, RecordState.PUBLISHED, on_commit=lambda: self._published(task))
            return
        if self._add(task, RecordState.DONE, write=partial(self._write_success, task, receipt, start.until_now())):
            self.done += 1

    def _write_success(self, task: Task, receipt: Receipt, span: Span) -> tuple[Message, ...]:
        """Write of a job that is done: the line in the log, and the result. Called by the committer."""
        try:
            result = self._result(
                task,
                "SUCCESS",
                span,
                bytes=receipt.size_bytes,
                verified_by=receipt.verified_by,
                skipped=receipt.skipped,
                swapped=receipt.swapped,
            )
            messages = self.builder.result(task, result)
        except Exception as error:  # a bug met by one job must not end the process, again and again
            log.exception("job failed", **context(task), error=str(error), error_code=code_of(error))
            return self._failure(task, error, span)
        told = {"skipped": True} if receipt.skipped else {}
        seconds = round(span.seconds, 3)
        log.info("job done", **context(task), bytes=receipt.size_bytes, seconds=seconds, **told, at=span.finished_at)
        return messages

    def _published(self, task: Task) -> None:
        # A task of its own: the lane may still be ending the run that published it.
        self.dispatcher.offer(replace(task, published=True))

    def failed(self, task: Task, error: BaseException, start: Start, breaker_wait: float = 0.0) -> float | None:
        """Report an attempt that failed; return after how many seconds the job is to run again here, if it is.

        `breaker_wait`: for how many seconds nobody tries the server that failed.
        """
        now = time.time()
        # Of a job that another process may have finished by now the error proves nothing: its source may be gone.
        verdict = self.policy.verdict(task, error, now, breaker_wait) if task.owned() else Abandon()
        if isinstance(verdict, RetryHere | Defer):
            self._note(task, error, spent=verdict.spent)
            task.waiting_since, task.outages = verdict.waiting_since, verdict.outages
            if isinstance(verdict, Defer):
                task.recallable = breaker_wait > 0  # it waits for that: when it closes, the job may come
                self.defer(task, verdict.not_before, str(error))
            else:
                log.info("job waits", **context(task), error=str(error), seconds=round(verdict.delay, 3))
                task.orphan_scan_since = SCAN_ANEW
                return verdict.delay
        elif isinstance(verdict, DeadLetter):
            self._note(task, verdict.error, spent=True)
            self.dead(task, verdict.error, start)
        elif self.ledger.owns(task.partition, task.epoch) and not self.is_stopping():
            # Nobody took the partition away: we only cannot be sure that it is ours, while the broker is silent.
            task.orphan_scan_since = SCAN_ANEW
            return ABANDONED_PAUSE_SECONDS
        else:
            # When a partition is taken away its next owner looks anyway; when the process stops, it must be told to.
            if task.orphan_scan_since is not None and self.is_stopping():
                self.leaves_orphans = True
            log.info("job abandoned", **context(task), error=str(error))
        return None

    def defer(self, task: Task, not_before: float, reason: str, *, level: int = logging.INFO) -> None:
        """Set a job aside in T-retry until `not_before` (wall clock)."""
        if self._add(task, RecordState.DONE, self.builder.deferral(task, not_before)):
            log.log(level, "job deferred", **context(task), error=reason, until=_utc(not_before))

    def defer_untried(self, task: Task, seconds: float, outage: BaseException | None) -> None:
        """Set a job aside that was not tried: its server is busy, or down since it was met with `outage`."""
        now = time.time()
        # Of a job that comes back it was said before: a million may be set aside again and again.
        level, task.recallable = logging.DEBUG if task.recallable else logging.INFO, True
        if outage is None:
            task.waiting_since, task.outages = None, 0  # its servers are up
            self.defer(task, now + seconds, "server busy", level=level)
            return
        verdict = self.policy.defer_untried(task, outage, now, seconds)
        if isinstance(verdict, DeadLetter):
            self.dead(task, verdict.error)
            return
        task.waiting_since = verdict.waiting_since
        self.defer(task, verdict.not_before, str(outage), level=level)

    def dead(self, task: Task, error: BaseException, start: Start | None = None) -> None:
        """Report a job as failed for good: a dead letter and a failed result."""
        span = (start or Start.now()).until_now()
        if self._add(task, RecordState.DONE, self._failure(task, error, span)):
            self.done += 1
            bug = None if isinstance(error, EtlError) else error
            log.error("job failed", **context(task), error=str(error), error_code=code_of(error), exc_info=bug)

    def _failure(self, task: Task, error: BaseException, span: Span) -> tuple[Message, ...]:
        result = self._result(task, "FAILED", span, error=redact(str(error)), error_code=code_of(error))
        return self.builder.dead_letter(task, error) + self.builder.result(task, result)

    def refuse(self, record: Record, carried: Carried, epoch: int, error: InvalidMessage) -> None:
        """Report a message that is no job."""
        job_id = carried.job_id or error.job_id or str(carried.origin)
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
        messages = self.builder.dead_letter(record, error, job_id=job_id)
        messages += self.builder.result(record, result)
        partition = Partition(record.topic, record.partition)
        if self.ledger.add(Outcome(partition, record.offset, epoch, RecordState.DONE, messages)):
            self.done += 1
            log.error(
                "invalid message dead-lettered",
                job_id=job_id,
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                error=str(error),
                error_code=error.code,
            )

    def _add(
        self,
        task: Task,
        state: RecordState,
        messages: tuple[Message, ...] = (),
        on_commit: Callable[[], None] | None = None,
        write: Callable[[], tuple[Message, ...]] | None = None,
    ) -> bool:
        """Hand an outcome to the ledger; False when the job is not ours any more."""
        return self.ledger.add(
            Outcome(task.partition, task.record.offset, task.epoch, state, messages, on_commit, write)
        )

    def _result(self, task: Task, status: str, span: Span, **more: Any) -> TransferResult:
        job = task.job
        return TransferResult(
            job_id=job.job_id or str(task.origin),
            status=status,  # type: ignore[arg-type]  # one of the two literals, by the callers
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

    def _note(self, task: Task, error: BaseException, *, spent: bool) -> None:
        if spent:
            what = redact(f"{code_of(error)}: {error}")
            task.attempts.append(Attempt(_utc(time.time()), self.worker, what[:2000]))

    def give_up_waiting(self) -> bool:
        """Drop the jobs that were to look for orphans first; return whether the next owners need not look, either.

        Called once all lanes have ended.
        """
        unscanned = self.dispatcher.drop(lambda task: task.orphan_scan_since is not None and not task.published)
        return not (self.leaves_orphans or unscanned)


def context(task: Task) -> dict[str, object]:
    """Return what a line in the log says of a job."""
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
