"""How records ended, and what of it goes into the next transaction: messages and offsets together.

Sends nothing: that is the committer's task. Knows no Kafka client, no job and no clock.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from etl.models.wire import Batch, Commit, Message, Partition
from etl.outcomes.offsets import CommitPlan, OffsetTracker, RecordState, Standing

POSITION_INTERVAL_SECONDS = 1.0  # between two commits of a partition that contain nothing but a new position


class Outcome(NamedTuple):
    """How a record ended. `epoch` is the assignment of its partition in which it was received.

    PUBLISHED: the copy has its final name, the source action remains. Its commit carries no message; then `on_commit`
    starts the action, and a DONE outcome of the same record follows.
    DONE: nothing remains. A record of another group has no message at all.

    `on_commit` is called once, without any lock, after the commit, if the partition is still assigned here.
    `write`, if given, builds the messages in place of `messages`. The committer calls it once, without any lock.
    """

    partition: Partition
    offset: int
    epoch: int
    state: RecordState = RecordState.DONE
    messages: tuple[Message, ...] = ()
    on_commit: Callable[[], None] | None = None
    write: Callable[[], tuple[Message, ...]] | None = None

    @property
    def size_bytes(self) -> int:
        """Size of its messages: dead letters and deferrals hold whole ones."""
        return sum([len(message.value or b"") for message in self.messages]) if self.messages else 0


@dataclass
class PartitionState:
    """One assigned partition."""

    epoch: int
    tracker: OffsetTracker
    committed_offset: int
    sent_at: float = float("-inf")  # `now` of its last batch
    marked_clean: bool = False  # the committed metadata states that the owner ended cleanly
    is_unchanged: bool = False  # this process committed that mark, and has received nothing since
    waiting: dict[int, Outcome] = field(default_factory=dict)  # by offset; not committed yet
    waiting_bytes: int = 0  # of the messages of those

    def put(self, outcome: Outcome) -> None:
        """Have an outcome wait for its commit, in place of an earlier form of it."""
        if (earlier := self.waiting.get(outcome.offset)) is not None:
            self.waiting_bytes -= earlier.size_bytes
        self.waiting[outcome.offset] = outcome
        self.waiting_bytes += outcome.size_bytes if outcome.messages else 0

    def take(self, offset: int) -> Outcome:
        """Take out the outcome of a record."""
        outcome = self.waiting.pop(offset)
        self.waiting_bytes -= outcome.size_bytes
        return outcome


@dataclass
class BatchPart:
    """What the batch in flight contains of one partition."""

    epoch: int
    plan: CommitPlan


class Ledger:
    """The state of every assigned partition, and the source of transactions.

    Thread-safe: the consumer assigns, receives and revokes, lanes add outcomes, the committer takes batches. No method
    blocks, except briefly for the lock. At most one batch is in flight; each ends with `end_batch`. `token` is unique
    to this life of the process.
    """

    def __init__(self, token: str | None = None) -> None:
        self._token = token or secrets.token_hex(8)
        self._lock = threading.Lock()  # guards all below; offsets and membership are read under it as of one moment
        self._partitions: dict[Partition, PartitionState] = {}
        self._order: deque[Partition] = deque()  # in which partitions contribute to a batch; rotates for fairness
        self._unwritten: list[Outcome] = []
        self._epochs = 0
        self._batches = 0
        self._held: dict[str, float] = {}  # topics that accept nothing for now, and until when (monotonic)
        self._in_flight: tuple[Batch, dict[Partition, BatchPart]] | None = None
        self.on_complete: Callable[[], None] | None = None  # called without the lock when no outcome is missing

    def __repr__(self) -> str:
        states, in_flight = list(self._partitions.values()), self._in_flight  # no lock: its holder may want to print it
        waiting, outstanding = sum(len(one.waiting) for one in states), sum(one.tracker.outstanding for one in states)
        batch = "no batch" if in_flight is None else f"batch {in_flight[0].number}"
        return (
            f"Ledger({len(states)} partitions, {outstanding} outstanding, {waiting} not committed, {batch} in flight)"
        )

    # --- called by the consumer

    def assign(self, partition: Partition, start: int, metadata: str = "") -> int:
        """Begin an assignment at the committed offset `start` with its metadata; return its epoch.

        Epochs are never repeated. A partition that is assigned already begins anew.
        """
        tracker = OffsetTracker(start, metadata)
        with self._lock:
            self._epochs += 1
            self._partitions[partition] = PartitionState(self._epochs, tracker, start, marked_clean=tracker.was_clean)
            if partition not in self._order:
                self._order.append(partition)
            return self._epochs

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """Forget partitions at once; a batch in flight ends for the others alone."""
        with self._lock:  # critical section: from here on, no outcome of these partitions counts
            for partition in partitions:
                if self._partitions.pop(partition, None) is not None:
                    self._order.remove(partition)

    def receive(self, partition: Partition, offset: int, at: float = 0.0) -> RecordState:
        """Register a record; return what remains: all of it (NEW), its source action (PUBLISHED), or nothing (DONE).

        Raises:
            KeyError: the partition is not assigned.
            ValueError: the offset is before the position.
        """
        with self._lock:  # critical section: decide how far the record has come; from here on it is outstanding
            state = self._partitions[partition]
            state.is_unchanged = False
            return state.tracker.receive(offset, at)

    def is_done(self, partition: Partition, offset: int) -> bool:
        """Return whether a commit covers this record. To be called before the record is received."""
        with self._lock:
            state = self._partitions.get(partition)
            return state is not None and state.tracker.is_done(offset)

    def advance(self, partition: Partition, position: int) -> None:
        """Set the consumer's position. Every record before it must have been received."""
        with self._lock:
            if (state := self._partitions.get(partition)) is not None:
                state.tracker.position = position

    def owns(self, partition: Partition, epoch: int) -> bool:
        """Return whether that assignment of the partition is still in force.

        Reads without the lock: the answer may be out of date a moment later anyway, and no lane waits for a batch.
        """
        return self._assigned(partition, epoch) is not None

    def was_clean(self, partition: Partition) -> bool:
        """Return whether the last owner ended cleanly, so that it left no orphans."""
        with self._lock:
            state = self._partitions.get(partition)
            return state is not None and state.tracker.was_clean

    def is_claimed(self, partition: Partition) -> bool:
        """Return whether the committed metadata states that the partition is in use.

        Until then no record may be received: if the process died, its work would be taken for a clean end.
        """
        with self._lock:
            state = self._partitions.get(partition)
            return state is not None and not state.marked_clean

    def is_full(self, partition: Partition) -> bool:
        """Return whether no more records of this partition should be received for now."""
        with self._lock:
            state = self._partitions.get(partition)
            return state is not None and state.tracker.is_full

    @property
    def partitions(self) -> list[Partition]:
        """The assigned partitions."""
        with self._lock:
            return list(self._partitions)

    @property
    def outstanding(self) -> int:
        """Number of received records whose outcome is not committed."""
        with self._lock:
            return sum(state.tracker.outstanding for state in self._partitions.values())

    def standings(self) -> list[Standing]:
        """Return how far each assigned partition is."""
        with self._lock:
            return [one.tracker.standing(tp, one.committed_offset) for tp, one in self._partitions.items()]

    # --- called by lanes

    def add(self, outcome: Outcome) -> bool:
        """Accept an outcome; return False if it is dropped.

        Dropped are outcomes of an assignment that has ended (the new owner repeats the record), and the second
        outcome of a record.
        """
        with self._lock:  # critical section: decide whether the outcome counts, and whether it is the last one missing
            state = self._assigned(outcome.partition, outcome.epoch)
            if state is None or outcome.offset in state.waiting or not state.tracker.has(outcome.offset):
                return False
            state.put(outcome)
            if outcome.write is not None:
                self._unwritten.append(outcome)
            complete = len(state.waiting) == state.tracker.outstanding and self._is_complete()
        if complete and self.on_complete is not None:
            self.on_complete()
        return True

    @property
    def complete(self) -> bool:
        """Whether every received record has an outcome, and at least one waits for its commit."""
        with self._lock:
            return self._is_complete() and any(state.waiting for state in self._partitions.values())

    @property
    def waiting(self) -> int:
        """Number of outcomes that are not committed, including those in flight."""
        with self._lock:
            return sum(len(state.waiting) for state in self._partitions.values())

    # --- called by the committer

    @property
    def waiting_bytes(self) -> int:
        """Size of the messages of uncommitted outcomes."""
        with self._lock:
            return sum(state.waiting_bytes for state in self._partitions.values())

    def write(self) -> None:
        """Build the messages of all outcomes that left it to the committer.

        Together, as the code then stays in the processor's caches: in a lane, between two files, building a message
        takes three times as long.
        """
        with self._lock:  # critical section: decide who builds the messages; no other thread finds these outcomes now
            unwritten, self._unwritten = self._unwritten, []
        written = [outcome._replace(messages=outcome.write(), write=None) for outcome in unwritten if outcome.write]
        with self._lock:  # critical section: decide whose partitions are still assigned; other messages are dropped
            for outcome in written:
                if (state := self._assigned(outcome.partition, outcome.epoch)) is not None:
                    state.put(outcome)

    def batch(
        self,
        limit: int,
        *,
        now: float,
        membership: Callable[[], object | None],
        clean: bool = False,
    ) -> Batch | None:
        """Take the next transaction: at most `limit` outcomes of all partitions; None if there is nothing to commit.

        `now`: monotonic seconds. `membership` returns the consumer's group metadata, or None while it is no member,
        when nothing can be committed. It is called under the lock, so that its answer fences exactly these offsets;
        it must not block, nor wait for a thread that calls `revoke`.

        `clean`: this is the last batch. It marks every partition as left cleanly, also those without other news.

        Raises:
            RuntimeError: a batch is in flight.
        """
        self.write()
        with self._lock:  # critical section: decide what the transaction contains, and as which member it is sent
            if self._in_flight is not None:
                raise RuntimeError("a batch is in flight")
            parts = self._select(limit, now, every_partition=clean)
            if not parts or (fence := membership()) is None:
                return None
            self._batches += 1
            self._order.rotate(-1)
            batch = self._build(parts, fence, clean=clean)
            self._in_flight = batch, parts
            for partition in parts:
                self._partitions[partition].sent_at = now
            return batch

    def end_batch(self, batch: Batch, committed: bool) -> None:
        """End the batch in flight, then call `on_commit` of its outcomes without the lock.

        Unless it was committed, its outcomes are in the next batch again.

        Raises:
            RuntimeError: it is not in flight.
        """
        with self._lock:  # critical section: decide which outcomes are committed, for partitions still assigned
            parts = self._require_in_flight(batch)
            self._in_flight = None
            ended: list[Outcome] = []
            for partition, part in parts.items():
                state = self._assigned(partition, part.epoch)
                if committed and state is not None:
                    state.tracker.mark_committed(*part.plan)
                    state.committed_offset = batch.offsets[partition].offset
                    state.marked_clean = state.is_unchanged = batch.clean
                    ended += [state.take(offset) for offset in sorted(part.plan.done | part.plan.published)]
        for outcome in ended:
            if outcome.on_commit is not None:
                outcome.on_commit()

    def resolve(self, batch: Batch, read_back: Mapping[Partition, tuple[int, str]]) -> bool | None:
        """Decide whether a batch with an unknown outcome was committed, given the group's offsets as `read_back`.

        A transaction is committed for all of its partitions or for none, so a single one that reads back as sent
        proves the commit. Only partitions that are still assigned count: another owner commits its own offsets.

        Returns None if `read_back` lacks one of them and none proves the commit.
        """
        with self._lock:  # critical section: decide which partitions may prove the commit
            parts = self._require_in_flight(batch)
            assigned = [tp for tp, part in parts.items() if self._assigned(tp, part.epoch) is not None]
        if any(tuple(read_back[tp]) == tuple(batch.offsets[tp]) for tp in assigned if tp in read_back):
            return True
        return False if all(tp in read_back for tp in assigned) else None

    def shrink(self, batch: Batch, index: int) -> bool:
        """Replace a message that the broker refuses by its next form; return False, and drop it, if it has none.

        The batch must be in flight and certainly not committed: end it as such, then take the next.
        """
        message = batch.messages[index]
        whole = message.whole or message
        instead = tuple([one._replace(whole=whole) for one in message.shrink()]) if message.shrink is not None else ()
        with self._lock:  # critical section: decide which outcome the message belongs to, if its partition is assigned
            for partition, part in self._require_in_flight(batch).items():
                state = self._assigned(partition, part.epoch)
                if state is None:
                    continue
                for outcome in state.waiting.values():
                    if any(candidate is message for candidate in outcome.messages):
                        at = next(i for i, candidate in enumerate(outcome.messages) if candidate is message)
                        messages = outcome.messages[:at] + instead + outcome.messages[at + 1 :]
                        state.put(outcome._replace(messages=messages))
                        return message.shrink is not None
        # Not found: the partition was revoked meanwhile, and its next owner meets the same message.
        return message.shrink is not None

    def hold(self, topic: str, until: float) -> None:
        """Leave outcomes with a message for `topic` out of batches until `until` (monotonic): others go on."""
        with self._lock:
            self._held[topic] = until

    def _assigned(self, partition: Partition, epoch: int) -> PartitionState | None:
        state = self._partitions.get(partition)
        return state if state is not None and state.epoch == epoch else None

    # --- the caller holds the lock

    def _is_complete(self) -> bool:
        return all(len(state.waiting) == state.tracker.outstanding for state in self._partitions.values())

    def _require_in_flight(self, batch: Batch) -> dict[Partition, BatchPart]:
        if self._in_flight is None or self._in_flight[0] is not batch:
            raise RuntimeError(f"batch {batch.number} is not in flight")
        return self._in_flight[1]

    def _select(self, limit: int, now: float, *, every_partition: bool) -> dict[Partition, BatchPart]:
        """Return what each partition contributes to the next batch; those without news are left out."""
        parts: dict[Partition, BatchPart] = {}
        self._held = held = {topic: until for topic, until in self._held.items() if until > now}
        for partition in self._order:
            state = self._partitions[partition]
            ready = {
                offset: outcome.state
                for offset, outcome in state.waiting.items()
                if outcome.write is None and not (held and any(one.topic in held for one in outcome.messages))
            }
            plan = state.tracker.plan(ready, limit)
            limit -= len(plan.done) + len(plan.published)
            if plan.done or plan.published or every_partition or self._has_news(state, now):
                parts[partition] = BatchPart(state.epoch, plan)
        return parts

    def _has_news(self, state: PartitionState, now: float) -> bool:
        """Return whether a partition has something to commit although none of its outcomes is ready."""
        # The last owner's mark must go before work begins: see `is_claimed`.
        if state.marked_clean and not state.is_unchanged:
            return True
        is_due = now - state.sent_at >= POSITION_INTERVAL_SECONDS
        return is_due and state.tracker.committable > state.committed_offset

    def _build(self, parts: dict[Partition, BatchPart], fence: object, *, clean: bool) -> Batch:
        messages: list[Message] = []
        offsets: dict[Partition, Commit] = {}
        for partition, part in parts.items():
            state = self._partitions[partition]
            for offset in sorted(part.plan.done | part.plan.published):
                messages += state.waiting[offset].messages
            offsets[partition] = state.tracker.snapshot(*part.plan, self._batches, self._token, clean=clean)
        return Batch(tuple(messages), offsets, membership=fence, number=self._batches, clean=clean)
