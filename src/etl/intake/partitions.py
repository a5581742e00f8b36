"""The partitions assigned to this process: takes them over, and decides which of them are fetched from.

Belongs to the consumer's main thread; other threads call only `revoke` and `owns`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog

from etl import clock as wall_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from etl.broker import GroupConsumer, TakenOver
    from etl.models.wire import Partition
    from etl.outcomes.ledger import Ledger

log = structlog.get_logger(__name__)

TAKE_OVER_SECONDS = 2.0  # limit of each request about a partition, and of all take-overs between two polls
MIN_OUTSTANDING_LIMIT = 2000  # records without a committed outcome that are allowed however small the window is
WAITING_LIMIT_BYTES = 32 << 20  # of messages that wait for a commit: nothing more is received until some are in
MAX_POLL_RECORDS = 200  # records that one poll may return, even if fetching was paused just before


def may_receive(ledger: Ledger) -> bool:
    """Is there room for more messages that wait for their commit?"""
    return ledger.waiting_bytes < WAITING_LIMIT_BYTES


@dataclass
class _HeldPartition:
    epoch: int
    taken_over_at: float  # monotonic
    to_scan: int  # how many of its next jobs must look for orphans of the last owner
    scan_until: int  # offset: the last owners received no record at or after it
    paused_until: float | None = None  # wall clock: when its next record is due; None unless it is delayed
    paused_at: int = 0  # the offset of that record
    paused_since: float = 0.0  # wall clock
    may_go: Callable[[], bool] | None = None  # whether that record need not wait so long
    stands: bool = False  # it is due, and waits for room


class Partitions:
    """The partitions held now. `window`: how many unfinished jobs a process may have.

    Records without a committed outcome are limited to twice the window, as finished jobs may still await their commit.
    The same number limits how many orphans a process that dies can leave.
    """

    def __init__(
        self, group: GroupConsumer, ledger: Ledger, window: int, clock: Callable[[], float] = wall_clock.now
    ) -> None:
        self._group = group
        self._ledger = ledger
        self._outstanding_limit = max(2 * window, MIN_OUTSTANDING_LIMIT)
        self._clock = clock  # wall clock
        self._lock = threading.Lock()  # guards the keys of `_held`; the values belong to the main thread
        self._held: dict[Partition, _HeldPartition] = {}
        self._failed_at: dict[Partition, float] = {}  # monotonic, of take-overs that failed: they are retried last
        self._paused: set[Partition] = set()

    def __repr__(self) -> str:
        states = list(self._held.values())  # no lock: its holder may want to print it
        delayed = sum(state.paused_until is not None for state in states)
        return f"Partitions({len(states)} held, {len(self._paused)} paused, {delayed} of them delayed)"

    def take_over_new(self) -> None:
        """Take over newly assigned partitions: read the committed offset, and whether the last owner ended cleanly."""
        new = self._group.new_partitions()
        self._failed_at = {partition: at for partition, at in self._failed_at.items() if partition in new}
        deadline = time.monotonic() + TAKE_OVER_SECONDS
        for partition in sorted(new, key=lambda partition: self._failed_at.get(partition, 0.0)):
            if time.monotonic() >= deadline:
                break  # the rest after the next poll, which keeps the membership alive
            taken = self._group.take_over(partition, partial(self._set_up, partition), TAKE_OVER_SECONDS)
            if taken is None:
                self._failed_at[partition] = time.monotonic()
                continue
            log.info(
                "partition taken over",
                topic=partition.topic,
                partition=partition.partition,
                offset=taken.committed.offset,
                clean=self._ledger.was_clean(partition),
            )

    def _set_up(self, partition: Partition, taken: TakenOver) -> None:
        """Hold a partition from now on, so that `revoke` finds it."""
        committed = taken.committed
        if taken.lost is not None:
            log.error(
                "records lost: the topic no longer holds the committed offset",
                topic=partition.topic,
                partition=partition.partition,
                lost=taken.lost,
                goes_on_at=committed.offset,
            )
        epoch = self._ledger.assign(partition, committed.offset, committed.metadata)
        to_scan = 0 if self._ledger.was_clean(partition) else self._outstanding_limit + MAX_POLL_RECORDS
        with self._lock:
            self._held[partition] = _HeldPartition(epoch, time.monotonic(), to_scan, taken.end)
        self._paused.add(partition)  # the group paused it on assignment

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """Drop partitions at once. Any thread."""
        gone = list(partitions)
        self._ledger.revoke(gone)
        with self._lock:
            for partition in gone:
                self._held.pop(partition, None)

    def epoch(self, partition: Partition) -> int | None:
        """Return the epoch of the partition's assignment; None if it is not held."""
        with self._lock:
            held = self._held.get(partition)
            return None if held is None else held.epoch

    def is_delayed(self, partition: Partition) -> bool:
        """Return whether the partition waits until its next record is due."""
        with self._lock:
            held = self._held.get(partition)
            return held is not None and held.paused_until is not None

    def owns(self, partition: Partition, epoch: int) -> bool:
        """Return whether no other process can hold this partition, as far as this one can know. Any thread."""
        return self._ledger.owns(partition, epoch) and self._group.is_member()

    def orphan_scan_since(self, partition: Partition, offset: int) -> float | None:
        """Return the monotonic time since which the last owner cannot have written, if the job must look for orphans.

        None if it need not look. `offset` is the next record of the partition: each call counts as one job.
        """
        with self._lock:  # critical section: decide whether this job is among those that the last owner may have run
            held = self._held.get(partition)
            if held is None or held.to_scan <= 0 or offset >= held.scan_until:
                return None
            held.to_scan -= 1
            return held.taken_over_at

    def has_scanned(self) -> bool:
        """Return whether every job that an earlier owner may have run was received here, and so looks for orphans."""
        with self._lock:
            unfinished = {partition: held.scan_until for partition, held in self._held.items() if held.to_scan > 0}
        return all((self._group.position(partition) or 0) >= end for partition, end in unfinished.items())

    def delay(
        self,
        partition: Partition,
        offset: int,
        until: float,
        *,
        seen_by_predecessor: bool,
        may_go: Callable[[], bool] | None = None,
        stands: bool = False,
    ) -> None:
        """Pause a partition at `offset` until `until` (wall clock), or until `may_go` returns True.

        `seen_by_predecessor=False`: no earlier owner can have received this record, so nothing from `offset` on can
        have left orphans. `stands`: the record is due, and waits for room.
        """
        with self._lock:  # critical section: decide whether the partition is still held; a revoked one is not delayed
            held = self._held.get(partition)
            if held is None:
                return
            if not seen_by_predecessor:
                held.scan_until = min(held.scan_until, offset)
            held.paused_until, held.paused_at, held.paused_since = until, offset, self._clock()
            held.may_go, held.stands = may_go, stands
        self._group.pause([partition])
        self._paused.add(partition)
        self._group.seek(partition, offset)

    def standing(self) -> dict[Partition, int]:
        """Return the partitions whose next record is due and waits for room, and its offset."""
        with self._lock:
            held = self._held.items()
            return {p: s.paused_at for p, s in held if s.stands and s.paused_until is not None}

    def steer(self, *, window_full: bool) -> None:
        """Fetch only what can be processed: pause and resume partitions; record their positions in the ledger."""
        window_full = window_full or self._ledger.outstanding >= self._outstanding_limit
        window_full = window_full or not may_receive(self._ledger)
        with self._lock:
            held = dict(self._held)
        self._end_delays(held, window_full=window_full)
        # What is to be taken over again may have lost records that were read before.
        to_take_over = set(self._group.new_partitions())
        active = {
            partition
            for partition, state in held.items()
            if not window_full
            and partition not in to_take_over
            and state.paused_until is None
            and self._ledger.is_claimed(partition)
            and not self._ledger.is_full(partition)
        }
        self._paused &= held.keys()
        self._group.resume(self._paused & active)
        self._group.pause(held.keys() - active - self._paused)
        self._paused = set(held.keys() - active)
        for partition, state in held.items():
            position = self._group.position(partition) if state.paused_until is None else state.paused_at
            if position is not None:
                self._ledger.advance(partition, position)

    def _end_delays(self, held: dict[Partition, _HeldPartition], *, window_full: bool) -> None:
        """End the delays of partitions whose next record is due; and one whose record may go, the oldest of these.

        What one brings may take all the room there is: of the others it would be fetched in vain.
        """
        now = self._clock()
        delayed = [
            (state.paused_since, partition) for partition, state in held.items() if state.paused_until is not None
        ]
        may_one_go = not window_full
        for _, partition in sorted(delayed):
            state = held[partition]
            is_due = state.paused_until is not None and state.paused_until <= now
            if not is_due and may_one_go and state.may_go is not None and state.may_go():
                is_due, may_one_go = True, False
            if is_due:
                state.paused_until = None
                self._group.seek(partition, state.paused_at)  # the client may have restored an older position

    def pause_all(self) -> None:
        """Stop fetching from every partition."""
        self._group.pause(self._group.assigned())

    def count_deferred(self, topic: str) -> tuple[int, float | None]:
        """Return how many records of `topic` wait in the partitions held here, and when the next is due (wall clock).

        The time is None if no partition is delayed.
        """
        with self._lock:
            held = {p: s for p, s in self._held.items() if p.topic == topic}
        count = sum(self._group.behind(partition) for partition in held)
        due = [s.paused_until for s in held.values() if s.paused_until is not None and not s.stands]
        return count, min(due, default=None)
