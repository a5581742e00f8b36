"""From a record to a task: whether it is due, which group it belongs to, and what it says.

Dead-letters records that hold no valid job. Belongs to the consumer's main thread; knows no Kafka client.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from etl.errors import InvalidMessage
from etl.models import header
from etl.models.message import FileTransferJob
from etl.models.task import Origin
from etl.models.wire import Partition
from etl.outcomes.ledger import Outcome
from etl.outcomes.messages import Carried, require_few_headers
from etl.outcomes.offsets import RecordState
from etl.retry.tiers import DEFERRED_READS_PER_SECOND, due_at, tier_for

if TYPE_CHECKING:
    from etl.config import ConfigLoader
    from etl.dispatch.dispatcher import Dispatcher
    from etl.intake.partitions import Partitions
    from etl.models.task import Record, Task
    from etl.outcomes.ledger import Ledger
    from etl.outcomes.messages import MessageBuilder
    from etl.outcomes.reporter import Reporter
    from etl.topics.companions import Topics


# Pause of a partition whose next record would be deferred too soon; resuming refetches its buffered records.
DEFERRED_READ_PAUSE_SECONDS = 1.0
# A delayed partition is resumed early only once less than this part of its servers' stock waits here, as its buffered
# records are then fetched again.
RECALL_BELOW = 0.5
# How far ahead a job may ask for its time: until then it is written to T-retry anew each hour.
HORIZON_SECONDS = 366 * 86400


class TokenBucket:
    """Limits a rate to `per_second`; bursts of up to one second's worth are allowed."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._tokens = per_second
        self._refilled_at = 0.0  # by the clock of `take`

    def __repr__(self) -> str:
        return f"TokenBucket({self._tokens:.1f} of {self._per_second:g})"

    def take(self, now: float) -> bool:
        """Take a token; return False if none is left. `now`: seconds of any clock, always the same one."""
        passed = max(0.0, now - self._refilled_at)
        self._tokens = min(self._per_second, self._tokens + passed * self._per_second)
        self._refilled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


@dataclass
class Admission:
    """Accepts polled records: each becomes a task of the dispatcher or an outcome, or delays its partition."""

    topics: Topics
    group_id: str
    config: ConfigLoader
    builder: MessageBuilder
    partitions: Partitions
    ledger: Ledger
    dispatcher: Dispatcher
    reporter: Reporter
    clock: Callable[[], float] = time.time  # wall clock
    require_wanted: Callable[[Task], None] = lambda _task: None  # raises Cancelled
    deferred_reads: TokenBucket = field(default_factory=lambda: TokenBucket(DEFERRED_READS_PER_SECOND))
    # Offset of the last record of T-retry that was met in each partition, and when that was (wall clock).
    _first_seen: dict[Partition, tuple[int, float]] = field(default_factory=dict)

    def accept(self, record: Record) -> None:
        """Process one polled record. If it meets a bug, it becomes a dead letter, and the process goes on."""
        partition = Partition(record.topic, record.partition)
        epoch = self.partitions.epoch(partition)
        if epoch is None or self.partitions.is_delayed(partition):
            return  # revoked since the poll, or behind a record that is not due: it will be polled again
        is_deferred = record.topic == self.topics.retry
        is_for_this_group = not is_deferred or record.header(header.GROUP) == self.group_id.encode()
        carried = Carried(Origin(record.topic, record.partition, record.offset))
        bug: Exception | None = None
        if is_for_this_group:
            try:
                carried = self.builder.read(record)
                if is_deferred and not self.ledger.is_done(partition, record.offset):
                    if carried.recallable and self.dispatcher.has_capacity(carried.servers):
                        carried = carried._replace(not_before=self.clock())
                    if self._delay_if_early(partition, record, carried):
                        return
            except Exception as error:  # noqa: BLE001 - or the same record would end every process, again and again
                bug = error
        try:
            state = self.ledger.receive(partition, record.offset, record.timestamp)
        except KeyError:
            return  # revoked by another thread since `epoch` was read
        if state is RecordState.DONE:
            return
        if not is_for_this_group:
            self.ledger.add(Outcome(partition, record.offset, epoch))
            return
        try:
            if bug is not None:
                raise bug
            self._admit(record, carried, epoch, published=state is RecordState.PUBLISHED)
        except Exception as error:  # noqa: BLE001 - as above; or the record holds no valid job
            self.reporter.reject(record, carried, epoch, error)

    def _delay_if_early(self, partition: Partition, record: Record, carried: Carried) -> bool:
        """Delay the partition if this record of T-retry must not run yet; return whether it was delayed."""
        now = self.clock()
        offset, since = self._first_seen.get(partition, (None, now))
        since = since if offset == record.offset else now
        self._first_seen[partition] = record.offset, since
        # Not later than it was first seen: a time in the future, forged or of another clock, would hold the partition.
        appended = min(record.timestamp, since)
        if (due := due_at(record.partition, appended, carried.not_before)) > now:
            may_recall = (
                partial(self.dispatcher.has_capacity, carried.servers, RECALL_BELOW) if carried.recallable else None
            )
            self.partitions.delay(
                partition, record.offset, due, seen_by_predecessor=carried.recallable, may_recall=may_recall
            )
            return True
        if self.dispatcher.would_defer(carried.servers) and not self.deferred_reads.take(now):
            self.partitions.delay(partition, record.offset, now + DEFERRED_READ_PAUSE_SECONDS, seen_by_predecessor=True)
            return True
        return False

    def _admit(self, record: Record, carried: Carried, epoch: int, *, published: bool) -> None:
        if record.fault is not None:
            raise InvalidMessage(f"message: {record.fault}")
        require_few_headers(record)
        job = FileTransferJob.from_json(record.value)
        earliest = job.options.not_before.timestamp() if job.options.not_before is not None else 0.0
        if max(earliest, carried.not_before or 0.0) - self.clock() > HORIZON_SECONDS:
            days = f"{HORIZON_SECONDS / 86400:g} days"
            raise InvalidMessage(f"options.not_before: is more than {days} away", job_id=job.job_id)
        task = carried.task(record, job)
        task.epoch = epoch
        # Here it is decided what is believed: the group's own commit proves a publication, a header alone does not.
        task.unproven = task.published and not published
        task.published = task.published or published
        if carried.leaves_orphans or task.attempts or task.outages > 0:
            task.orphan_scan_since = time.monotonic()
        else:
            task.orphan_scan_since = self.partitions.orphan_scan_since(task.partition, record.offset)
        # Bound to the partition, not to the task: a task that refers to itself would need the garbage collector.
        task.owned = partial(self.partitions.owns, task.partition, epoch)
        self._dispatch(task, carried)

    def _dispatch(self, task: Task, carried: Carried) -> None:
        """Offer the task to the dispatcher, or defer it if it must wait for at least the shortest tier."""
        options, now = task.job.options, self.clock()
        earliest = options.not_before.timestamp() if isinstance(options.not_before, datetime) else now
        remaining = max(carried.not_before or now, earliest) - now
        try:
            self.require_wanted(task)
            if tier_for(remaining) is not None:
                for end in (task.job.source, task.job.destination):
                    self.config.get_server_config(end.hostname)  # reject unknown servers now, not when the job is due
                task.recallable = task.recallable and earliest <= now  # never before the time its producer asked for
                # The first deferral is logged at INFO, the next hops of the same wait at DEBUG.
                level = logging.INFO if carried.not_before is None else logging.DEBUG
                self.reporter.totals.retried("not_before")
                self.reporter.defer(task, now + remaining, "not due yet", level=level)
            else:
                self.dispatcher.offer(task, max(0.0, remaining))
        except Exception as error:  # noqa: BLE001 - a record that hits a bug must not stop the process at every restart
            self.reporter.dead(task, error)
