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
from etl.outcomes.offsets import Choice, Progress, State

POSITION_INTERVAL_SECONDS = 1.0  # between commits of a partition that only say that its position moved


class Outcome(NamedTuple):
    """How a record ended. `incarnation` is the one of the partition's assignment in which it was received.

    PUBLISHED: its copy is in place, the source action is left. Commits that state, with no message; then
    `on_commit` starts the action, and a DONE outcome of the same record follows.
    DONE: nothing is left. No message at all is right for a record that is none of ours.

    `on_commit` is called once, without any lock, when the commit is in and the partition still ours.
    `write` says the messages in place of `messages`: called once, without any lock, by the committer or at the stop.
    """

    partition: Partition
    offset: int
    incarnation: int
    state: State = State.DONE
    messages: tuple[Message, ...] = ()
    on_commit: Callable[[], None] | None = None
    write: Callable[[], tuple[Message, ...]] | None = None


@dataclass
class _Book:
    """One assigned partition."""

    incarnation: int
    progress: Progress
    committed_offset: int
    sent_at: float = float("-inf")
    says_clean: bool = False  # the committed metadata says that its owner ended in good order
    at_rest: bool = False  # and that is still true: it was us, and nothing was received since
    waiting: dict[int, Outcome] = field(default_factory=dict)


@dataclass
class _Share:
    """What a batch in flight holds of one partition."""

    incarnation: int
    choice: Choice


class Ledger:
    """What is known of every assigned partition, and what of it goes into the next transaction.

    Thread-safe: the consumer assigns, receives and revokes, lanes add outcomes, the committer takes batches.
    No method blocks but for the lock. At most one batch is in flight; each ends with `settle`.
    `token` is unique to this life of the process.
    """

    def __init__(self, token: str | None = None) -> None:
        self._token = token or secrets.token_hex(8)
        self._lock = threading.Lock()  # guards all below, and makes offsets and membership one moment
        self._books: dict[Partition, _Book] = {}
        self._turn: deque[Partition] = deque()  # which partition is served first
        self._unwritten: list[Outcome] = []
        self._incarnations = 0
        self._batches = 0
        self._in_flight: tuple[Batch, dict[Partition, _Share]] | None = None
        self.on_complete: Callable[[], None] | None = None  # called without the lock when no outcome is missing

    # --- the consumer's side

    def assign(self, partition: Partition, start: int, metadata: str = "") -> int:
        """Take a partition over at the committed `start` with its metadata; return its incarnation.

        The incarnation is never the same twice. A partition that is assigned already starts anew.
        """
        progress = Progress(start, metadata)
        with self._lock:
            self._incarnations += 1
            self._books[partition] = _Book(self._incarnations, progress, start, says_clean=progress.was_clean)
            if partition not in self._turn:
                self._turn.append(partition)
            return self._incarnations

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """Drop everything about partitions at once; what is in flight is settled for the rest."""
        with self._lock:
            for partition in partitions:
                if self._books.pop(partition, None) is not None:
                    self._turn.remove(partition)

    def receive(self, partition: Partition, offset: int) -> State:
        """Take note of a record; NEW: do it, PUBLISHED: do its source action, DONE: nothing is left to do.

        Raises:
            KeyError: the partition is not assigned.
            ValueError: the offset is before the position.
        """
        with self._lock:
            book = self._books[partition]
            book.at_rest = False
            return book.progress.receive(offset)

    def is_done(self, partition: Partition, offset: int) -> bool:
        """Does a commit say that a record is done? Asked before it is received."""
        with self._lock:
            book = self._books.get(partition)
            return book is not None and book.progress.is_done(offset)

    def moved(self, partition: Partition, position: int) -> None:
        """Take note of the consumer's position. Call it only when every record before it was received."""
        with self._lock:
            if (book := self._books.get(partition)) is not None:
                book.progress.position = position

    def owns(self, partition: Partition, incarnation: int) -> bool:
        """Is that assignment of the partition still in force?

        Read without the lock: the answer is old a moment later anyway, and no lane has to wait for a batch.
        """
        return self._owned(partition, incarnation) is not None

    def was_clean(self, partition: Partition) -> bool:
        """Did the last owner end in good order, so that no partial file can lie about?"""
        with self._lock:
            book = self._books.get(partition)
            return book is not None and book.progress.was_clean

    def started(self, partition: Partition) -> bool:
        """Is it on record that somebody works on it? Before that, a kill would pass for a clean end."""
        with self._lock:
            book = self._books.get(partition)
            return book is not None and not book.says_clean

    def full(self, partition: Partition) -> bool:
        """Should no more of this partition be received for now?"""
        with self._lock:
            book = self._books.get(partition)
            return book is not None and book.progress.full

    @property
    def partitions(self) -> list[Partition]:
        """The assigned partitions."""
        with self._lock:
            return list(self._books)

    @property
    def outstanding(self) -> int:
        """How many received records have no committed outcome."""
        with self._lock:
            return sum(book.progress.outstanding for book in self._books.values())

    # --- the lanes' side

    def add(self, outcome: Outcome) -> bool:
        """Take an outcome; False when it is dropped.

        Dropped is what belongs to an assignment that is over (the new owner repeats it), and a second outcome
        of a record.
        """
        with self._lock:
            book = self._owned(outcome.partition, outcome.incarnation)
            if book is None or outcome.offset in book.waiting or not book.progress.knows(outcome.offset):
                return False
            book.waiting[outcome.offset] = outcome
            if outcome.write is not None:
                self._unwritten.append(outcome)
            complete = len(book.waiting) == book.progress.outstanding and self._is_complete()
        if complete and self.on_complete is not None:
            self.on_complete()
        return True

    @property
    def complete(self) -> bool:
        """Is there an outcome of every received record, and one at least to commit?"""
        with self._lock:
            return self._is_complete() and any(book.waiting for book in self._books.values())

    @property
    def waiting(self) -> int:
        """How many outcomes are not committed, those in flight included."""
        with self._lock:
            return sum(len(book.waiting) for book in self._books.values())

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
                if (book := self._owned(outcome.partition, outcome.incarnation)) is not None:
                    book.waiting[outcome.offset] = outcome

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
            shares = self._shares(limit, now, everything=clean)
            if not shares or (fence := membership()) is None:
                return None
            self._batches += 1
            self._turn.rotate(-1)
            batch = Batch(
                messages=tuple(
                    message for partition, share in shares.items() for message in self._messages(partition, share)
                ),
                offsets={partition: self._commit(partition, share, clean) for partition, share in shares.items()},
                membership=fence,
                number=self._batches,
                clean=clean,
            )
            self._in_flight = batch, shares
            for partition in shares:
                self._books[partition].sent_at = now
            return batch

    def settle(self, batch: Batch, committed: bool) -> None:
        """End a batch; then call `on_commit` of what is in, unlocked. Not committed: its outcomes come again.

        Raises:
            RuntimeError: it is not in flight.
        """
        with self._lock:
            shares = self._flying(batch)
            self._in_flight = None
            settled: list[Outcome] = []
            for partition, share in shares.items():
                book = self._owned(partition, share.incarnation)
                if committed and book is not None:
                    book.progress.settle(*share.choice)
                    book.committed_offset = batch.offsets[partition].offset
                    book.says_clean = book.at_rest = batch.clean
                    settled += [
                        book.waiting.pop(offset) for offset in sorted(share.choice.done | share.choice.published)
                    ]
        for outcome in settled:
            if outcome.on_commit is not None:
                outcome.on_commit()

    def resolve(self, batch: Batch, read_back: Mapping[Partition, tuple[int, str]]) -> bool | None:
        """Tell from what the group's offsets are now whether a batch with an unknown end was committed.

        All partitions of a transaction share its end, so one that reads exactly as sent says it for all. Only
        those that are still ours count: another owner moves its own. None: `read_back` says nothing of them.
        """
        with self._lock:
            shares = self._flying(batch)
            mine = [tp for tp, share in shares.items() if self._owned(tp, share.incarnation) is not None]
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
            for partition, share in self._flying(batch).items():
                book = self._owned(partition, share.incarnation)
                if book is None:
                    continue
                for offset, outcome in book.waiting.items():
                    if any(candidate is message for candidate in outcome.messages):
                        at = next(i for i, candidate in enumerate(outcome.messages) if candidate is message)
                        messages = outcome.messages[:at] + shorter + outcome.messages[at + 1 :]
                        book.waiting[offset] = outcome._replace(messages=messages)
                        return True
        return True  # revoked meanwhile: its next owner will meet it

    def _owned(self, partition: Partition, incarnation: int) -> _Book | None:
        book = self._books.get(partition)
        return book if book is not None and book.incarnation == incarnation else None

    # --- the caller holds the lock

    def _is_complete(self) -> bool:
        return all(len(book.waiting) == book.progress.outstanding for book in self._books.values())

    def _flying(self, batch: Batch) -> dict[Partition, _Share]:
        if self._in_flight is None or self._in_flight[0] is not batch:
            raise RuntimeError(f"batch {batch.number} is not in flight")
        return self._in_flight[1]

    def _shares(self, limit: int, now: float, *, everything: bool) -> dict[Partition, _Share]:
        shares: dict[Partition, _Share] = {}
        for partition in self._turn:
            book = self._books[partition]
            ready = {offset: outcome.state for offset, outcome in book.waiting.items() if outcome.write is None}
            choice = book.progress.plan(ready, limit)
            limit -= len(choice.done) + len(choice.published)
            if choice.done or choice.published or everything or self._has_news(book, now):
                shares[partition] = _Share(book.incarnation, choice)
        return shares

    def _has_news(self, book: _Book, now: float) -> bool:
        if book.says_clean and not book.at_rest:
            return True  # else a kill before the first outcome would pass for a clean end
        due = now - book.sent_at >= POSITION_INTERVAL_SECONDS
        return due and book.progress.committable > book.committed_offset

    def _messages(self, partition: Partition, share: _Share) -> Iterable[Message]:
        waiting = self._books[partition].waiting
        for offset in sorted(share.choice.done | share.choice.published):
            yield from waiting[offset].messages

    def _commit(self, partition: Partition, share: _Share, clean: bool) -> Commit:
        progress = self._books[partition].progress
        return progress.snapshot(*share.choice, self._batches, self._token, clean=clean)
