"""The thread that commits: one transaction after the other, through failures of every kind.

Knows no Kafka client: the transaction itself is a `TransactionSink`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from etl import logs
from etl.errors import BrokerRefused, BrokerUnavailable, CommitRejected, CommitUnknown, Fenced, MessageTooLarge
from etl.models.wire import Batch, Partition
from etl.outcomes.ledger import Ledger

log = structlog.get_logger(__name__)

FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 0.05, 5.0
SHORTEST_INTERVAL = 0.25  # of the usual one, between two batches that nothing more could join
RIVAL_FENCES, RIVAL_SECONDS = 5, 60.0  # so often fenced in that time: no chance, but a rival


class _Flush:
    """A wish to have everything committed; `done` once it is."""

    def __init__(self, clean: bool) -> None:
        self.clean = clean
        self.done = threading.Event()


class TransactionSink(Protocol):
    """What carries a transaction out: the seam to the broker. One thread calls it; every call has a limit."""

    def commit(self, batch: Batch) -> None:
        """Send a batch's messages and offsets in one transaction.

        Raises:
            CommitRejected: it was surely not committed.
            MessageTooLarge: a message is too large for its topic, by its place in the batch; not committed.
            CommitUnknown: its end is not known (any OSError means the same).
        """
        ...

    def recover(self, batch: Batch) -> Mapping[Partition, tuple[int, str]]:
        """End a batch's transaction one way or the other, then read the group's offsets of its partitions.

        Raises:
            BrokerUnavailable: not known yet, ask again.
        """
        ...


class Committer:
    """Commits what the ledger holds, by time or count, in the thread `committer`.

    Rejected batches are taken anew, with fresh membership. After an unknown end nothing else is sent until
    the end is known. What no waiting can help goes to `on_fatal`, once, and the committer stops: nothing more
    is committed, the next life of the process repeats it.
    """

    def __init__(
        self,
        ledger: Ledger,
        sink: TransactionSink,
        membership: Callable[[], object | None],
        on_fatal: Callable[[BaseException], None],
        *,
        interval_seconds: float,
        max_records: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._sink = sink
        self._membership = membership
        self._on_fatal = on_fatal
        self._interval_seconds = interval_seconds
        self._max_records = max_records
        self._clock = clock
        self._due = float("-inf")  # of the next batch
        self._committed_at = float("-inf")
        self._failures = 0  # in a row
        self._fences: deque[float] = deque(maxlen=RIVAL_FENCES)
        self._unknown: Batch | None = None
        self._flush: _Flush | None = None  # set by `flush`, taken by `step`
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def flush(self, deadline: float, *, clean: bool = False) -> bool:
        """Commit all that waits, without regard to time and count; was that done before the deadline?

        `clean`: the last time: every partition is said to have ended in good order. Outcomes whose metadata
        does not fit stay behind then.
        """
        flush = self.request_flush(clean=clean)
        return flush.done.wait(max(0.0, deadline - self._clock()))

    def request_flush(self, *, clean: bool = False) -> _Flush:
        """Ask for a flush; its `done` is set by the step that ends it."""
        self._flush = flush = _Flush(clean)
        self._wake.set()
        return flush

    def hurry(self) -> None:
        """Look at once whether there is something to commit: the outcome came that all waited for. Any thread."""
        self._wake.set()

    def stop(self, deadline: float) -> bool:
        """End the thread; has it ended before the deadline? What it leaves undone is repeated, not lost."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - self._clock()))
        return not self._thread.is_alive()

    def step(self, now: float) -> float:
        """Do one iteration; return in how many seconds the next is wanted. Blocks as long as the sink does."""
        try:
            self._step(now)
        except Exception as error:  # a bug, or a broker that will never take it: the process must stop
            log.critical("committer stopped", error=str(error), exc_info=error)
            self._stopping.set()
            self._on_fatal(error)
            return float("inf")
        return max(0.0, self._due - now)

    def _step(self, now: float) -> None:
        with logs.together():
            self._ledger.write()  # also while the end of a commit is unknown: jobs go on, and are told of
        if self._unknown is not None:
            if now >= self._due:
                self._recover(self._unknown, now)
            return
        flush = self._flush
        hurried = not self._failures and (
            flush is not None or self._ledger.waiting >= self._max_records or self._is_all_there(now)
        )
        if now < self._due and not hurried:
            return
        self._due = now + self._interval_seconds
        clean = flush is not None and flush.clean
        waiting = self._ledger.waiting
        batch = self._ledger.batch(self._max_records, now=now, membership=self._membership, clean=clean)
        if batch is not None and not self._commit(batch, now):
            return
        if batch is not None and (flush is not None or self._ledger.waiting >= self._max_records):
            self._due = now
        if flush is not None and self._is_flushed(flush, batch, waiting):
            self._flush = None
            flush.done.set()

    def _is_all_there(self, now: float) -> bool:
        """Would waiting gain nothing: no job runs whose outcome could come along? Not right after the last batch."""
        return now - self._committed_at >= self._interval_seconds * SHORTEST_INTERVAL and self._ledger.complete

    def _is_flushed(self, flush: _Flush, batch: Batch | None, waiting_before: int) -> bool:
        waiting = self._ledger.waiting
        if not self._ledger.partitions:
            return True
        if flush.clean:
            return batch is not None and (waiting == 0 or waiting >= waiting_before)
        return waiting == 0

    def _commit(self, batch: Batch, now: float) -> bool:
        try:
            self._sink.commit(batch)
        except (CommitUnknown, OSError) as error:
            log.warning("commit outcome unknown: reading it back", batch=batch.number, error=str(error))
            self._unknown = batch
            self._fences.clear()
            self._due = now
            return False
        except MessageTooLarge as error:
            log.warning("message too large", topic=batch.messages[error.index].topic, error=str(error))
            if not self._ledger.shrink(batch, error.index):
                raise
            self._ledger.end_batch(batch, committed=False)
            self._due = now
            return False
        except CommitRejected as error:
            log.warning("commit rejected", batch=batch.number, error=str(error))
            self._ledger.end_batch(batch, committed=False)
            self._look_for_a_rival(error, now)
            self._back_off(now)
            return False
        self._ledger.end_batch(batch, committed=True)
        self._committed_at = now
        log.debug("committed", batch=batch.number, messages=len(batch.messages), partitions=len(batch.offsets))
        self._failures = 0
        return True

    def _recover(self, batch: Batch, now: float) -> None:
        try:
            read_back = self._sink.recover(batch)
        except (BrokerUnavailable, OSError) as error:
            log.warning("commit outcome still unknown", batch=batch.number, error=str(error))
            self._back_off(now)
            return
        committed = self._ledger.resolve(batch, read_back)
        if committed is None:
            log.warning("commit outcome still unknown", batch=batch.number, error="offsets of its partitions not told")
            self._back_off(now)
            return
        log.info("commit resolved", batch=batch.number, committed=committed)
        self._unknown = None
        self._failures = 0
        self._due = now
        self._ledger.end_batch(batch, committed)

    def _look_for_a_rival(self, error: CommitRejected, now: float) -> None:
        """Raise BrokerRefused when fenced again and again while the broker answers: two live processes, one id."""
        if not isinstance(error, Fenced):
            self._fences.clear()
            return
        self._fences.append(now)
        if len(self._fences) == RIVAL_FENCES and now - self._fences[0] <= RIVAL_SECONDS:
            raise BrokerRefused(
                f"another live process has our identity, each needs its own ETL_INSTANCE_ID or slot: {error}"
            ) from error

    def _back_off(self, now: float) -> None:
        self._due = now + min(FIRST_BACKOFF_SECONDS * 2**self._failures, LAST_BACKOFF_SECONDS)
        self._failures = min(self._failures + 1, 20)

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause = self.step(self._clock())
            if pause > 0:
                self._wake.wait(min(pause, self._interval_seconds))
                self._wake.clear()
