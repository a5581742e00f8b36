"""From a record to a task: which group it belongs to, what it says, whether it is due and there is room for it.

Dead-letters records that hold no valid job. Belongs to the consumer's main thread; knows no Kafka client.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from etl import clock as wall_clock
from etl.dispatch.dispatcher import Room
from etl.errors import InvalidMessage
from etl.intake.partitions import may_receive
from etl.models import bundle, document, header
from etl.models.task import Origin
from etl.models.wire import Partition
from etl.outcomes.foreign import require_few_headers, require_room_for_copies
from etl.outcomes.ledger import Outcome
from etl.outcomes.messages import Carried
from etl.outcomes.offsets import RecordState
from etl.retry import tiers

if TYPE_CHECKING:
    from etl.config import ConfigLoader
    from etl.dispatch.dispatcher import Dispatcher
    from etl.intake.lookahead import LookAhead
    from etl.intake.partitions import Partitions
    from etl.models.message import FileTransferJob
    from etl.models.task import Record, Task
    from etl.outcomes.ledger import Ledger
    from etl.outcomes.messages import MessageBuilder
    from etl.outcomes.reporter import Reporter
    from etl.topics.names import Topics

# How far ahead a job may ask for its time: until then it is written to T-retry anew each hour.
HORIZON_SECONDS = 366 * 86400
ROOMY = (Room.SCARCE, Room.FREE, Room.PROBE)


class Turn(Enum):
    """What becomes of a job now."""

    RUN = "run"
    WAIT = "wait"  # where its record is
    MAKE_WAY = "make way"  # it goes to T-retry, as somebody else's jobs stand behind it
    DEFER = "defer"  # it goes to T-retry until its time


@dataclass
class Admission:
    """Accepts polled records: each becomes a task of the dispatcher or an outcome, or has its partition wait."""

    topics: Topics
    group_id: str
    config: ConfigLoader
    builder: MessageBuilder
    partitions: Partitions
    ledger: Ledger
    dispatcher: Dispatcher
    reporter: Reporter
    look_ahead: LookAhead
    clock: Callable[[], float] = wall_clock.now
    # Does an outcome show that a record is done, where the group's offsets do not tell?
    is_done: Callable[[Partition, Record, Origin], bool] = lambda *_: False
    require_wanted: Callable[[Task], None] = lambda _task: None  # raises Cancelled
    # Offset of the last record of T-retry that was met in each partition, and when that was (wall clock).
    _first_seen: dict[Partition, tuple[int, float]] = field(default_factory=dict)

    def accept(self, record: Record) -> None:
        """Process one polled record. If it meets a bug, it becomes a dead letter, and the process goes on."""
        partition = Partition(record.topic, record.partition)
        epoch = self.partitions.epoch(partition)
        if epoch is None or self.partitions.is_delayed(partition):
            return  # revoked since the poll, or behind a record that waits: it will be polled again
        is_for_this_group = record.topic != self.topics.retry or record.header(header.GROUP) == self.group_id.encode()
        carried, task = Carried(Origin(record.topic, record.partition, record.offset)), None
        jobs: tuple[FileTransferJob, ...] = ()
        turn, seconds = Turn.RUN, 0.0
        bug: Exception | None = None
        if is_for_this_group:
            try:
                carried = self.builder.read(record)
                if not self.ledger.is_done(partition, record.offset):
                    value = record.value and document.unpacked(record.value)
                    if value is not record.value:
                        record = record._replace(value=value)
                    found = self._read(record, carried)
                    if isinstance(found, tuple):
                        task, jobs = carried.task(record, found[0]), found
                        turn = self._turn_to_split(partition, record.offset)
                    else:
                        task = found
                        turn, seconds = self._decide(task, carried)
            except Exception as error:  # noqa: BLE001 - or the same record would end every process, again and again
                bug = error
        if turn is Turn.WAIT:
            return
        try:
            state = self.ledger.receive(partition, record.offset, record.timestamp)
        except KeyError:
            return  # revoked by another thread since `epoch` was read
        if state is RecordState.DONE:
            return
        if not is_for_this_group or (bug is None and self.is_done(partition, record, carried.origin)):
            self.ledger.add(Outcome(partition, record.offset, epoch))
            return
        try:
            if bug is not None or task is None:
                raise bug or AssertionError("a record that is not done has no task")
            if jobs:
                self.require_wanted(task)
                self.reporter.split(record, carried, epoch, jobs)
                return
            self._prepare(task, carried, epoch, published=state is RecordState.PUBLISHED)
        except Exception as error:  # noqa: BLE001 - as above; or the record holds no valid job
            self.reporter.reject(record, carried, epoch, error)
            return
        finally:
            bug = None  # its traceback refers to this frame: together they would keep the record in memory
        try:
            self._dispatch(task, carried, turn, seconds)
        except Exception as error:  # noqa: BLE001 - a record that hits a bug must not stop the process at every restart
            self.reporter.dead(task, error)

    def _read(self, record: Record, carried: Carried) -> Task | tuple[FileTransferJob, ...]:
        """Return the job of a record as a task, or all jobs of one that holds several. Raises InvalidMessage."""
        if record.fault is not None:
            raise InvalidMessage(f"message: {record.fault}")
        foreign = require_few_headers(record)
        job = bundle.read(record.value, carried.job_id or str(carried.origin))
        if isinstance(job, tuple):
            require_room_for_copies(foreign, len(job))
            return job
        latest = max(_earliest(job), carried.not_before or 0.0)
        if latest and latest - self.clock() > HORIZON_SECONDS:
            days = f"{HORIZON_SECONDS / 86400:g} days"
            raise InvalidMessage(f"options.not_before: is more than {days} away", job_id=job.job_id)
        return carried.task(record, job)

    def _decide(self, task: Task, carried: Carried) -> tuple[Turn, float]:
        """Decide what becomes of a job, and for how many seconds it must not run; have its partition wait if it waits.

        A job for which there is no room waits where every member of the group can get it, until jobs of its pair end.
        But it makes way if somebody else's jobs stand behind it in its partition.
        """
        now, names = self.clock(), (task.job.source.hostname, task.job.destination.hostname)
        room, is_deferred = self.dispatcher.room(names), task.record.topic == self.topics.retry
        earliest = _earliest(task.job) or now
        seconds = max(carried.not_before or now, earliest) - now
        if carried.recallable and room in ROOMY:
            seconds = max(0.0, earliest - now)  # only its servers keep it from running
        elif is_deferred and (due := self._due(task.record, carried, now)) > now:
            may_go = partial(self._has_room, names) if carried.recallable else None
            self.partitions.delay(
                task.partition, task.record.offset, due, seen_by_predecessor=carried.recallable, may_go=may_go
            )
            return Turn.WAIT, seconds
        if tiers.tier_for(seconds) is not None:
            return Turn.DEFER, seconds
        if room is not Room.CROWDED and not (room is Room.DOWN and is_deferred):
            return Turn.RUN, seconds
        patience_ends = math.inf
        if room is Room.DOWN:
            patience_ends = (carried.waiting_since or now) + self.reporter.policy.patience_seconds
        if patience_ends > now and not self._is_in_the_way(task.partition, task.record.offset):
            self.partitions.delay(
                task.partition,
                task.record.offset,
                patience_ends,
                seen_by_predecessor=True,
                may_go=partial(self._may_go, names, task.partition, task.record.offset),
                stands=True,
            )
            return Turn.WAIT, seconds
        # For a server that is down the dispatcher decides: it knows how long that has been so.
        return (Turn.MAKE_WAY if room is Room.CROWDED else Turn.RUN), seconds

    def _turn_to_split(self, partition: Partition, offset: int) -> Turn:
        """Decide whether a message of several jobs is split now: few bytes, if packed, become megabytes of records."""
        if may_receive(self.ledger):
            return Turn.RUN
        may_go = partial(may_receive, self.ledger)
        self.partitions.delay(partition, offset, math.inf, seen_by_predecessor=True, may_go=may_go)
        return Turn.WAIT

    def _due(self, record: Record, carried: Carried, now: float) -> float:
        """Return when a record of T-retry leaves its tier (wall clock)."""
        partition = Partition(record.topic, record.partition)
        offset, since = self._first_seen.get(partition, (None, now))
        since = since if offset == record.offset else now
        self._first_seen[partition] = record.offset, since
        # Not later than it was first seen: a time in the future, forged or of another clock, would hold the partition.
        return tiers.due_at(record.partition, min(record.timestamp, since), carried.not_before)

    def _has_room(self, names: tuple[str, str]) -> bool:
        return self.dispatcher.room(names) in ROOMY

    def _may_go(self, names: tuple[str, str], partition: Partition, offset: int) -> bool:
        return self._has_room(names) or self._is_in_the_way(partition, offset)

    def _is_in_the_way(self, partition: Partition, offset: int) -> bool:
        """Do jobs of a pair that may soon have nothing to do here stand behind the one at this offset?"""
        return any(self.dispatcher.room(pair) is Room.SCARCE for pair in self.look_ahead.behind(partition, offset))

    def _prepare(self, task: Task, carried: Carried, epoch: int, *, published: bool) -> None:
        task.epoch = epoch
        # Here it is decided what is believed: the group's commit or seal proves a publication, headers alone do not.
        task.unproven = task.published and not (published or carried.proven)
        task.published = task.published or published
        if carried.leaves_orphans or task.attempts or task.outages > 0:
            task.orphan_scan_since = time.monotonic()
        else:
            task.orphan_scan_since = self.partitions.orphan_scan_since(task.partition, task.record.offset)
        # Bound to the partition, not to the task: a task that refers to itself would need the garbage collector.
        task.owned = partial(self.partitions.owns, task.partition, epoch)

    def _dispatch(self, task: Task, carried: Carried, turn: Turn, seconds: float) -> None:
        self.config.require_allowed(task.job)
        self.require_wanted(task)
        if turn is Turn.RUN:
            self.dispatcher.offer(task, seconds)
        elif turn is Turn.MAKE_WAY:
            self.reporter.defer_untried(task, tiers.TIERS[0], None)
        else:
            now = self.clock()
            for end in (task.job.source, task.job.destination):
                self.config.get_server_config(end.hostname)  # reject unknown servers now, not when the job is due
            # Never before the time that its producer asked for.
            task.recallable = task.recallable and _earliest(task.job) <= now
            # The first deferral is logged at INFO, the next hops of the same wait at DEBUG.
            level = logging.INFO if carried.not_before is None else logging.DEBUG
            self.reporter.totals.retried("not_before")
            self.reporter.defer(task, now + seconds, "not due yet", level=level)


def _earliest(job: FileTransferJob) -> float:
    """Return the time that its producer asked for (wall clock); 0: none."""
    return job.options.not_before.timestamp() if job.options.not_before is not None else 0.0
