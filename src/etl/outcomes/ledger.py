"""How records ended, and what of it goes into the next transaction: messages and offsets in one.

Knows no Kafka client, no job and no clock; sends nothing: that is `committer`.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from etl.models.wire import Batch, Commit, Message, Partition
from etl.outcomes.offsets import CommitPlan, OffsetTracker, RecordState

POSITION_INTERVAL_SECONDS = 1.0  # between commits of a partition that only say that its position moved


class Outcome(NamedTuple):
    """How a record ended. `epoch` is the one of the partition's assignment in which it was received.

    PUBLISHED: its copy is in place, the source action is left. Commits that state, with no message; then
    `on_commit` starts the action, and a DONE outcome of the same record follows.
    DONE: nothing is left. No message at all is right for a record that is none of ours.

    `on_commit` is called once, without any lock, when the commit is in and the partition still ours.
    `write` says the messages in place of `messages`: called once, without any lock, by the committer or at the stop.
    """

    partition: Partition
    offset: int
    epoch: int
    state: RecordState = RecordState.DONE
    messages: tuple[Message, ...] = ()
    on_commit: Callable[[], None] | None = None
    write: Callable[[], tuple[Message, ...]] | None = None


@dataclass
class PartitionState:
    """One assigned partition."""

    epoch: int
    tracker: OffsetTracker
    committed_offset: int
    sent_at: float = float("-inf")
    says_clean: bool = False  # the committed metadata says that its owner ended in good order
    at_rest: bool = False  # and that is still true: it was us, and nothing was received since
    waiting: dict[int, Outcome] = field(default_factory=dict)


@dataclass
class BatchPart:
    """What a batch in flight holds of one partition."""

    epoch: int
    plan: CommitPlan


class Ledger:
    """What is known of every assigned partition, and what of it goes into the next transaction.

    Thread-safe: the consumer assigns, receives and revokes, lanes add outcomes, the committer takes batches.
    No method blocks but for the lock. At most one batch is in flight; each ends with `settle`.
    `token` is unique to this life of the process.
    """

    def __init__(self, token: str | None = None) -> None:
        self._token = token or secrets.token_hex(8)
        self._lock = threading.Lock()  # guards all below, and makes offsets and membership one moment
        self._partitions: dict[Partition, PartitionState] = {}
        self._turn: deque[Partition] = deque()  # which partition is served first
        self._unwritten: list[Outcome] = []
        self._epochs = 0
        self._batches = 0
        self._in_flight: tuple[Batch, dict[Partition, BatchPart]] | None = None
        self.on_complete: Callable[[], None] | None = None  # called without the lock when no outcome is missing

    # --- the consumer's side

    def assign(self, partition: Partition, start: int, metadata: str = "") -> int:
        """Take a partition over at the committed `start` with its metadata; return its epoch.

        The epoch is never the same twice. A partition that is assigned already starts anew.
        """
        tracker = OffsetTracker(start, metadata)
        with self._lock:
            self._epochs += 1
            self._partitions[partition] = PartitionState(self._epochs, tracker, start, says_clean=tracker.was_clean)
            if partition not in self._turn:
                self._turn.append(partition)
            return self._epochs

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """Drop everything about partitions at once; what is in flight is settled for the rest."""
        with self._lock:
            for partition in partitions:
                if self._partitions.pop(partition, None) is not None:
                    self._turn.remove(partition)

    def receive(self, partition: Partition, offset: int) -> RecordState:
        """Take note of a record; NEW: do it, PUBLISHED: do its source action, DONE: nothing is left to do.

        Raises:
            KeyError: the partition is not assigned.
            ValueError: the offset is before the position.
        """
        with self._lock:
            state = self._partitions[partition]
            state.at_rest = False
            return state.tracker.receive(offset)

    def is_done(self, partition: Partition, offset: int) -> bool:
        """Does a commit say that a record is done? Asked before it is received."""
        with self._lock:
            state = self._partitions.get(partition)
            return state is not None and state.tracker.is_done(offset)

    def moved(self, partition: Partition, position: int) -> None:
        """Take note of the consumer's position. Call it only when every record before it was received."""
        with self._lock:
            if (state := self._partitions.get(partition)) is not None:
                state.tracker.position = position

    def owns(self, partition: Partition, epoch: int) -> bool:
        """Is that assignment of the partition still in force?

        Read without the lock: the answer is old a moment later anyway, and no lane has to wait for a batch.
        """
        return self._owned(partition, epoch) is not None

    def was_clean(self, partition: Partition) -> bool:
        """Did the last owner end in good order, so that no partial file can lie about?"""
        with self._lock:
            state = self._partitions.get(partition)
            return state is not None and state.tracker.was_clean

    def started(self, partition: Partition) -> bool:
        """Is it on record that somebody works on it? Before that, a kill would pass for a clean end."""
        with self._lock:
            state = self._partitions.get(partition)
            return state is not None and not state.says_clean

    def full(self, partition: Partition) -> bool:
        """Should no more of this partition be received for now?"""
        with self._lock:
            state = self._partitions.get(partition)
            return state is not None and state.tracker.full

    @property
    def partitions(self) -> list[Partition]:
        """The assigned partitions."""
        with self._lock:
            return list(self._partitions)

    @property
    def outstanding(self) -> int:
        """How many received records have no committed outcome."""
        with self._lock:
            return sum(state.tracker.outstanding for state in self._partitions.values())

    # --- the lanes' side

    def add(self, outcome: Outcome) -> bool:
        """Take an outcome; False when it is dropped.

        Dropped is what belongs to an assignment that is over (the new owner repeats it), and a second outcome
        of a record.
        """
        with self._lock:
            state = self._owned(outcome.partition, outcome.epoch)
            if state is None or outcome.offset in state.waiting or not state.tracker.knows(outcome.offset):
                return False
            state.waiting[outcome.offset] = outcome
            if outcome.write is not None:
                self._unwritten.append(outcome)
            complete = len(state.waiting) == state.tracker.outstanding and self._is_complete()
        if complete and self.on_complete is not None:
            self.on_complete()
        return True

    @property
    def complete(self) -> bool:
        """Is there an outcome of every received record, and one at least to commit?"""
        with self._lock:
            return self._is_complete() and any(state.waiting for state in self._partitions.values())

    @property
    def waiting(self) -> int:
        """How many outcomes are not committed, those in flight included."""
        with self._lock:
            return sum(len(state.waiting) for state in self._partitions.values())

    # --- the committer's side

    def write(self) -> None:
        """Have the messages written of all outcomes that left it to us.

        All at once: in a lane, between two files, each would cost three times as much, as no cache holds the code.
        """
        with self._lock:
            unwritten, self._unwritten = self._unwritten, []
        written = [outcome._replace(messages=outcome.write(), write=None) for outcome in unwritten if outcome.write]
        with self._lock:
            for outcome in written:
                if (state := self._owned(outcome.partition, outcome.epoch)) is not None:
                    state.waiting[outcome.offset] = outcome

    def batch(
        self,
        limit: int,
        *,
        now: float,
        membership: Callable[[], object | None],
        clean: bool = False,
    ) -> Batch | None:
        """Take the next transaction: at most `limit` outcomes, from all partitions; None: nothing to say.

        `membership` is called under the lock, so that what it returns fences exactly these offsets; it must
        not block, nor wait for whoever calls `revoke`. None from it: no member now, nothing can be committed.

        `clean`: the last one: says of every partition that its owner ended in good order, also when nothing
        else is new.

        Raises:
            RuntimeError: a batch is in flight.
        """
        self.write()
        with self._lock:
            if self._in_flight is not None:
                raise RuntimeError("a batch is in flight")
            parts = self._parts(limit, now, everything=clean)
            if not parts or (fence := membership()) is None:
                return None
            self._batches += 1
            self._turn.rotate(-1)
            batch = Batch(
                messages=tuple(
                    message for partition, part in parts.items() for message in self._messages(partition, part)
                ),
                offsets={partition: self._commit(partition, part, clean) for partition, part in parts.items()},
                membership=fence,
                number=self._batches,
                clean=clean,
            )
            self._in_flight = batch, parts
            for partition in parts:
                self._partitions[partition].sent_at = now
            return batch

    def end_batch(self, batch: Batch, committed: bool) -> None:
        """End a batch; then call `on_commit` of what is in, unlocked. Not committed: its outcomes come again.

        Raises:
            RuntimeError: it is not in flight.
        """
        with self._lock:
            parts = self._flying(batch)
            self._in_flight = None
            settled: list[Outcome] = []
            for partition, part in parts.items():
                state = self._owned(partition, part.epoch)
                if committed and state is not None:
                    state.tracker.mark_committed(*part.plan)
                    state.committed_offset = batch.offsets[partition].offset
                    state.says_clean = state.at_rest = batch.clean
                    settled += [state.waiting.pop(offset) for offset in sorted(part.plan.done | part.plan.published)]
        for outcome in settled:
            if outcome.on_commit is not None:
                outcome.on_commit()

    def resolve(self, batch: Batch, read_back: Mapping[Partition, tuple[int, str]]) -> bool | None:
        """Tell from what the group's offsets are now whether a batch with an unknown end was committed.

        All partitions of a transaction part its end, so one that reads exactly as sent says it for all. Only
        those that are still ours count: another owner moves its own. None: `read_back` says nothing of them.
        """
        with self._lock:
            parts = self._flying(batch)
            mine = [tp for tp, part in parts.items() if self._owned(tp, part.epoch) is not None]
        if any(tuple(read_back[tp]) == tuple(batch.offsets[tp]) for tp in mine if tp in read_back):
            return True
        return False if all(tp in read_back for tp in mine) else None

    def shrink(self, batch: Batch, index: int) -> bool:
        """Replace a message that is too large for its topic by its shorter form; False when there is none.

        The batch is in flight, and surely not committed: settle it so, then take the next.
        """
        message = batch.messages[index]
        if message.shrink is None:
            return False
        shorter = message.shrink()
        with self._lock:
            for partition, part in self._flying(batch).items():
                state = self._owned(partition, part.epoch)
                if state is None:
                    continue
                for offset, outcome in state.waiting.items():
                    if any(candidate is message for candidate in outcome.messages):
                        at = next(i for i, candidate in enumerate(outcome.messages) if candidate is message)
                        messages = outcome.messages[:at] + shorter + outcome.messages[at + 1 :]
                        state.waiting[offset] = outcome._replace(messages=messages)
                        return True
        return True  # revoked meanwhile: its next owner will meet it

    def _owned(self, partition: Partition, epoch: int) -> PartitionState | None:
        state = self._partitions.get(partition)
        return state if state is not None and state.epoch == epoch else None

    # --- the caller holds the lock

    def _is_complete(self) -> bool:
        return all(len(state.waiting) == state.tracker.outstanding for state in self._partitions.values())

    def _flying(self, batch: Batch) -> dict[Partition, BatchPart]:
        if self._in_flight is None or self._in_flight[0] is not batch:
            raise RuntimeError(f"batch {batch.number} is not in flight")
        return self._in_flight[1]

    def _parts(self, limit: int, now: float, *, everything: bool) -> dict[Partition, BatchPart]:
        parts: dict[Partition, BatchPart] = {}
        for partition in self._turn:
            state = self._partitions[partition]
            ready = {offset: outcome.state for offset, outcome in state.waiting.items() if outcome.write is None}
            plan = state.tracker.plan(ready, limit)
            limit -= len(plan.done) + len(plan.published)
            if plan.done or plan.published or everything or self._has_news(state, now):
                parts[partition] = BatchPart(state.epoch, plan)
        return parts

    def _has_news(self, state: PartitionState, now: float) -> bool:
        if state.says_clean and not state.at_rest:
            return True  # else a kill before the first outcome would pass for a clean end
        due = now - state.sent_at >= POSITION_INTERVAL_SECONDS
        return due and state.tracker.committable > state.committed_offset

    def _messages(self, partition: Partition, part: BatchPart) -> Iterable[Message]:
        waiting = self._partitions[partition].waiting
        for offset in sorted(part.plan.done | part.plan.published):
            yield from waiting[offset].messages

    def _commit(self, partition: Partition, part: BatchPart, clean: bool) -> Commit:
        tracker = self._partitions[partition].tracker
        return tracker.snapshot(*part.plan, self._batches, self._token, clean=clean)
