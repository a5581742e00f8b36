"""The partitions this process holds: taken over, woken, paused. Decides which of them are fetched from.

Belongs to the consumer's main thread; only `revoked` and `owned` are called from others.
"""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from etl.broker import GroupConsumer, TakenOver
    from etl.models.wire import Partition
    from etl.outcomes.ledger import Ledger

log = structlog.get_logger(__name__)

TAKE_OVER_SECONDS = 2.0  # for each question about a partition, and for all partitions before the next poll
OUTSTANDING = 2000  # records without a committed outcome, at least as many are allowed
POLLED = 200  # records of one poll: so many may still come when no more are wanted


@dataclass
class _Held:
    epoch: int
    taken_over_at: float  # monotonic
    to_scan: int  # of its next jobs, how many look for partial files of a predecessor
    scan_until: int  # offset: what its predecessors received lies before it
    paused_until: float | None = None  # wall clock: when its next record is due; None: it is awake
    paused_at: int = 0  # the offset of that record
    may_recall: Callable[[], bool] | None = None  # may that record come before its time?


class Partitions:
    """What is held; `window` is how many jobs a process has at work at most.

    With what is done and not committed there are twice as many at most: so many files a dead process may have left.
    """

    def __init__(
        self, group: GroupConsumer, ledger: Ledger, window: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._group = group
        self._ledger = ledger
        self._outstanding_limit = max(2 * window, OUTSTANDING)
        self._clock = clock
        self._lock = threading.Lock()  # guards which are held; what is in a _Held belongs to the main thread
        self._held: dict[Partition, _Held] = {}
        self._failed_at: dict[Partition, float] = {}  # those that could not be taken over (monotonic): tried last
        self._paused: set[Partition] = set()

    def take_over_new(self) -> None:
        """Take over what was newly assigned: learn where it stands, and what its last owner left."""
        new = self._group.new_partitions()
        self._failed_at = {partition: at for partition, at in self._failed_at.items() if partition in new}
        deadline = time.monotonic() + TAKE_OVER_SECONDS
        for partition in sorted(new, key=lambda partition: self._failed_at.get(partition, 0.0)):
            if time.monotonic() >= deadline:
                break  # poll, and come back
            taken = self._group.take_over(partition, functools.partial(self._set_up, partition), TAKE_OVER_SECONDS)
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
        """Hold a partition from now on, so that `revoked` finds it."""
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
        to_scan = 0 if self._ledger.was_clean(partition) else self._outstanding_limit + POLLED
        with self._lock:
            self._held[partition] = _Held(epoch, time.monotonic(), to_scan, taken.end)
        self._paused.add(partition)  # the group paused it when it was assigned

    def revoked(self, partitions: Iterable[Partition]) -> None:
        """Drop partitions at once. Any thread."""
        gone = list(partitions)
        self._ledger.revoke(gone)
        with self._lock:
            for partition in gone:
                self._held.pop(partition, None)

    def epoch(self, partition: Partition) -> int | None:
        """Return under which number a partition is held; None: it is not."""
        with self._lock:
            held = self._held.get(partition)
            return None if held is None else held.epoch

    def is_delayed(self, partition: Partition) -> bool:
        """Does the partition wait for the time of its next record?"""
        with self._lock:
            held = self._held.get(partition)
            return held is not None and held.paused_until is not None

    def owned(self, partition: Partition, epoch: int) -> bool:
        """Can nobody else have this partition, as far as this process can know? Any thread."""
        return self._ledger.owns(partition, epoch) and self._group.is_member()

    def orphan_scan_since(self, partition: Partition, offset: int) -> float | None:
        """Should the job at `offset`, the next of this partition, look for partial files that its last owner left?

        Then this returns since when (monotonic) that owner has written none.
        """
        with self._lock:
            held = self._held.get(partition)
            if held is None or held.to_scan <= 0 or offset >= held.scan_until:
                return None
            held.to_scan -= 1
            return held.taken_over_at

    def has_scanned(self) -> bool:
        """Was every job received that a predecessor of ours may have had at work?"""
        with self._lock:
            left = {partition: held.scan_until for partition, held in self._held.items() if held.to_scan > 0}
        return all((self._group.position(partition) or 0) >= end for partition, end in left.items())

    def delay(
        self,
        partition: Partition,
        offset: int,
        until: float,
        *,
        seen_by_predecessor: bool,
        may_recall: Callable[[], bool] | None = None,
    ) -> None:
        """Go on with a partition at `offset`, but not before `until` (wall clock), unless it `may_recall` earlier.

        Not `seen_by_predecessor`: our predecessors came no further, either.
        """
        with self._lock:
            held = self._held.get(partition)
            if held is None:
                return
            if not seen_by_predecessor:
                held.scan_until = min(held.scan_until, offset)
            held.paused_until, held.paused_at, held.may_recall = until, offset, may_recall
        self._group.pause([partition])
        self._paused.add(partition)
        self._group.seek(partition, offset)

    def steer(self, *, window_full: bool) -> None:
        """Pause and resume so that nothing comes that could not be worked on; tell the ledger how far reading is."""
        now = self._clock()
        window_full = window_full or self._ledger.outstanding >= self._outstanding_limit
        with self._lock:
            held = dict(self._held)
        for partition, state in held.items():
            if state.paused_until is None:
                continue
            may_recall = state.may_recall is not None and not window_full and state.may_recall()
            if may_recall or state.paused_until <= now:
                state.paused_until = None
                self._group.seek(partition, state.paused_at)  # the client may have put an older position back
        to_be_taken_over = set(self._group.new_partitions())  # anew: what was read of them may be gone
        wanted = {
            partition
            for partition, state in held.items()
            if not window_full
            and partition not in to_be_taken_over
            and state.paused_until is None
            and self._ledger.started(partition)
            and not self._ledger.full(partition)
        }
        self._paused &= held.keys()
        resumed = self._paused & wanted
        paused = held.keys() - wanted - self._paused
        self._group.resume(resumed)
        self._group.pause(paused)
        self._paused = set(held.keys() - wanted)
        for partition, state in held.items():
            is_awake = state.paused_until is None
            position = self._group.position(partition) if is_awake else state.paused_at
            if position is not None:
                self._ledger.moved(partition, position)

    def pause_all(self) -> None:
        """Take no more records at all."""
        self._group.pause(self._group.assigned())

    def deferred(self, topic: str) -> tuple[int, float | None]:
        """Return how many records of `topic` wait in the partitions held here, and when the next is due (wall)."""
        with self._lock:
            held = {p: s for p, s in self._held.items() if p.topic == topic}
        count = sum(self._group.behind(partition) for partition in held)
        return count, min((s.paused_until for s in held.values() if s.paused_until is not None), default=None)
