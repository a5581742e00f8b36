"""From a record to a task: what it says, whose it is, whether it is due. What is no job is dead-lettered here.

Belongs to the consumer's main thread. Knows no Kafka client.
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
from etl.models.message import FileTransferJob
from etl.models.wire import Partition
from etl.outcomes.ledger import Outcome
from etl.outcomes.offsets import RecordState
from etl.retry.tiers import DEFERRED_READS_PER_SECOND, due_at, tier_for

if TYPE_CHECKING:
    from etl.config import ConfigLoader
    from etl.dispatch.dispatcher import Dispatcher
    from etl.intake.partitions import Partitions
    from etl.models.task import Record, Task
    from etl.outcomes.ledger import Ledger
    from etl.outcomes.messages import Carried, MessageBuilder
    from etl.outcomes.reporter import Reporter
    from etl.topics.companions import Topics


DEFERRED_READ_PAUSE_SECONDS = (
    1.0  # before a partition goes on whose next job would be set back too soon: all are read again
)


class TokenBucket:
    """So many a second, a second's worth at once."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._left = per_second
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take one; False when there is none."""
        self._left = min(self._per_second, self._left + max(0.0, now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass
class Admission:
    """Lets records in: each becomes a task for the dispatcher, an outcome, or waits where it is."""

    topics: Topics
    group_id: str
    config: ConfigLoader
    builder: MessageBuilder
    partitions: Partitions
    ledger: Ledger
    dispatcher: Dispatcher
    reporter: Reporter
    clock: Callable[[], float] = time.time
    deferred_reads: TokenBucket = field(default_factory=lambda: TokenBucket(DEFERRED_READS_PER_SECOND))

    def accept(self, record: Record) -> None:
        """Take one polled record."""
        partition = Partition(record.topic, record.partition)
        epoch = self.partitions.epoch(partition)
        if epoch is None or self.partitions.is_delayed(partition):
            return  # revoked since it was polled; or behind a record that is not due: it is polled again
        carried = self.builder.read(record)
        deferred = record.topic == self.topics.retry
        is_ours = not deferred or carried.group == self.group_id
        if deferred and is_ours and not self.ledger.is_done(partition, record.offset):
            if carried.recallable and self.dispatcher.has_capacity(carried.servers):
                carried = carried._replace(not_before=self.clock())
            if not self._may_come(partition, record, carried):
                return
        try:
            state = self.ledger.receive(partition, record.offset)
        except KeyError:
            return  # revoked this very moment
        if state is RecordState.DONE:
            return
        if not is_ours:
            self.ledger.add(Outcome(partition, record.offset, epoch))
            return
        self._admit(record, carried, epoch, published=state is RecordState.PUBLISHED)

    def _may_come(self, partition: Partition, record: Record, carried: Carried) -> bool:
        """Is it time for a record of T-retry? If not, its partition sleeps."""
        now = self.clock()
        if (due := due_at(record.partition, record.timestamp, carried.not_before)) > now:
            # Woken at half of what is taken then: its partition is read again each time.
            may_recall = partial(self.dispatcher.has_capacity, carried.servers, 0.5) if carried.recallable else None
            self.partitions.delay(
                partition, record.offset, due, seen_by_predecessor=carried.recallable, may_recall=may_recall
            )
            return False
        if self.dispatcher.would_defer(carried.servers) and not self.deferred_reads.take(now):
            self.partitions.delay(partition, record.offset, now + DEFERRED_READ_PAUSE_SECONDS, seen_by_predecessor=True)
            return False
        return True

    def _admit(self, record: Record, carried: Carried, epoch: int, *, published: bool) -> None:
        try:
            job = FileTransferJob.from_json(record.value)
        except InvalidMessage as error:
            self.reporter.refuse(record, carried, epoch, error)
            return
        task = carried.task(record, job)
        task.epoch = epoch
        task.published = task.published or published
        if carried.leaves_orphans or task.attempts or task.outages > 0:
            task.orphan_scan_since = time.monotonic()
        else:
            task.orphan_scan_since = self.partitions.orphan_scan_since(task.partition, record.offset)
        task.owned = partial(self.partitions.owned, task.partition, epoch)  # holds no task: it would be a cycle
        self._offer(task, carried)

    def _offer(self, task: Task, carried: Carried) -> None:
        options, now = task.job.options, self.clock()
        asked = options.not_before.timestamp() if isinstance(options.not_before, datetime) else now
        remaining = max(carried.not_before or now, asked) - now
        try:
            if tier_for(remaining) is not None:
                for end in (task.job.source, task.job.destination):
                    self.config.get_server_config(end.hostname)  # told of now if it is unknown, not when the job is due
                task.recallable = task.recallable and asked <= now  # what a producer asked for holds
                level = logging.INFO if carried.not_before is None else logging.DEBUG  # else it was said before
                self.reporter.defer(task, now + remaining, "not due yet", level=level)
            else:
                self.dispatcher.offer(task, max(0.0, remaining))
        except Exception as error:  # noqa: BLE001 - a bug met by one record must not end the process, again and again
            self.reporter.dead(task, error)
