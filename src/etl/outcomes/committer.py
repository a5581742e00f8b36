"""The thread that commits outcomes, one transaction at a time, and handles every way in which a commit can fail.

Knows no Kafka client: a `TransactionSink` carries the transactions out.
"""

from __future__ import annotations

import base64
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import structlog

from etl import logs
from etl.errors import (
    BrokerRefused,
    BrokerUnavailable,
    CommitRejected,
    CommitUnknown,
    Fenced,
    MessageRefused,
    TopicRefused,
)
from etl.models.wire import Batch, Partition
from etl.outcomes.ledger import Ledger
from etl.outcomes.totals import Totals

log = structlog.get_logger(__name__)

FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 0.05, 5.0
SHORTEST_INTERVAL = 0.25  # part of the interval that passes at least between two batches, even if no outcome is missing
FIRST_HOLD_SECONDS, LAST_HOLD_SECONDS = 1.0, 30.0  # for which a topic that refuses everything is left alone
PATIENCE_SECONDS = 15.0  # for which commits may fail before this process counts as unwell
RIVAL_FENCES, RIVAL_SECONDS = 5, 60.0  # being fenced so often in that time means: another process has this identity


class _Refusal(NamedTuple):
    """Since when (monotonic) commits are refused, and why."""

    since: float
    why: str


class _Flush:
    """A request to commit everything; `done` is set once that has happened."""

    def __init__(self, clean: bool) -> None:
        self.clean = clean
        self.done = threading.Event()


class TransactionSink(Protocol):
    """Carries transactions out: the seam to the broker. One thread calls it; every call has a time limit."""

    def commit(self, batch: Batch) -> None:
        """Send a batch's messages and offsets in one transaction.

        Raises:
            CommitRejected: it was certainly not committed.
            MessageRefused: not committed, as the broker refuses a message (its `index` in the batch) for what it is.
            TopicRefused: not committed, as one topic accepts no message now.
            CommitUnknown: whether it was committed is unknown. Any OSError means the same.
        """
        ...

    def recover(self, batch: Batch) -> Mapping[Partition, tuple[int, str]]:
        """Make sure that a batch's transaction has ended; return the group's offset and metadata of its partitions.

        Raises:
            BrokerUnavailable: the outcome is still unknown: call again.
        """
        ...


class Committer:
    """Commits the ledger's outcomes, by time or count, in the thread `committer`.

    A rejected batch is taken anew, with fresh membership. While the outcome of a commit is unknown, nothing else is
    sent. An error that waiting cannot mend goes to `on_fatal`, once, and the committer stops: nothing more is
    committed, and the next life of the process repeats the work.
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
        totals: Totals | None = None,
        on_refused: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._totals = totals or Totals()
        self._sink = sink
        self._membership = membership
        self._on_fatal = on_fatal
        self._interval_seconds = interval_seconds
        self._max_records = max_records
        self._clock = clock  # monotonic
        self._due = float("-inf")  # when the next batch, or the next attempt to recover, is due
        self._committed_at = float("-inf")
        self._failures = 0  # consecutive ones
        self._limit = max_records  # outcomes in a batch; fewer while a refused message is looked for
        self._on_refused = on_refused  # must not block
        self._refusing: dict[str, int] = {}  # topics that accept nothing now, and how often they have refused
        self._refusal: _Refusal | None = None  # since when commits fail, and why; None once one has succeeded
        self.given_up = 0  # messages that no topic takes in any form
        self._fences: deque[float] = deque(maxlen=RIVAL_FENCES)  # when the last commits were fenced
        self._unknown: Batch | None = None  # sent, and perhaps committed
        self._flush: _Flush | None = None  # set by any thread, removed by `step`
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def __repr__(self) -> str:
        unknown = "" if self._unknown is None else f", outcome of batch {self._unknown.number} unknown"
        return f"Committer(due in {self._due - self._clock():.3f} s, {self._failures} failures{unknown})"

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def flush(self, deadline: float, *, clean: bool = False) -> bool:
        """Commit everything that waits, at once; return whether that was done before `deadline` (monotonic).

        `clean`: this is the last commit, which marks every partition as left cleanly. Outcomes whose metadata does not
        fit into it are left out.
        """
        flush = self.request_flush(clean=clean)
        return flush.done.wait(max(0.0, deadline - self._clock()))

    def request_flush(self, *, clean: bool = False) -> _Flush:
        """Request a flush without waiting for it."""
        self._flush = flush = _Flush(clean)
        self._wake.set()
        return flush

    def hurry(self) -> None:
        """Check at once whether a batch is due, as the last missing outcome has come. Any thread."""
        self._wake.set()

    def stop(self, deadline: float) -> bool:
        """End the thread; return whether it ended before `deadline` (monotonic). What is not committed is repeated."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - self._clock()))
        return not self._thread.is_alive()

    def step(self, now: float) -> float:
        """Run one iteration; return the seconds until the next one is due. Blocks as long as the sink does.

        `now`: monotonic.
        """
        try:
            self._step(now)
        except Exception as error:  # a bug, or a batch that the broker will never accept: the process must stop
            log.critical("committer stopped", error=str(error), exc_info=error)
            self._stopping.set()
            self._on_fatal(error)
            return float("inf")
        return max(0.0, self._due - now)

    def _step(self, now: float) -> None:
        with logs.together():
            self._ledger.write()
        if self._unknown is not None:
            if now >= self._due:
                self._recover(self._unknown, now)
            return
        flush = self._flush
        may_hurry = not self._failures and (
            flush is not None or self._ledger.waiting >= self._max_records or self._is_complete(now)
        )
        if now < self._due and not may_hurry:
            return
        self._due = now + self._interval_seconds
        clean = flush is not None and flush.clean
        waiting = self._ledger.waiting
        batch = self._ledger.batch(self._limit, now=now, membership=self._membership, clean=clean)
        if batch is not None and not self._commit(batch, now):
            return
        if batch is not None and (flush is not None or self._ledger.waiting >= self._max_records):
            self._due = now
        if flush is not None and self._is_flushed(flush, batch, waiting):
            self._flush = None
            flush.done.set()

    def _is_complete(self, now: float) -> bool:
        """Return whether waiting would add no outcome to the batch, and the last commit is not too recent."""
        return now - self._committed_at >= self._interval_seconds * SHORTEST_INTERVAL and self._ledger.complete

    def _is_flushed(self, flush: _Flush, batch: Batch | None, waiting_before: int) -> bool:
        waiting = self._ledger.waiting
        if not self._ledger.partitions:
            return True
        if flush.clean:
            return batch is not None and (waiting == 0 or waiting >= waiting_before)
        return waiting == 0

    def _commit(self, batch: Batch, now: float) -> bool:
        began = self._clock()
        succeeded = self._try_commit(batch, now)
        self._totals.committed(self._clock() - began, succeeded=succeeded)
        return succeeded

    def _try_commit(self, batch: Batch, now: float) -> bool:
        try:
            self._sink.commit(batch)
        except (CommitUnknown, OSError) as error:
            log.warning("commit outcome unknown: reading it back", batch=batch.number, error=str(error))
            self._unknown = batch
            self._fences.clear()
            self._due = now
            return False
        except MessageRefused as error:
            self._single_out(batch, error)
            self._due = now
            return False
        except TopicRefused as error:
            self._tell_refusal(error, now)
            self._ledger.end_batch(batch, committed=False)
            count = self._refusing.get(error.topic, 0)
            self._refusing[error.topic] = count + 1
            self._ledger.hold(error.topic, now + min(FIRST_HOLD_SECONDS * 2**count, LAST_HOLD_SECONDS))
            self._due = now
            return False
        except CommitRejected as error:
            self._tell_refusal(error, now)
            self._ledger.end_batch(batch, committed=False)
            self._require_no_rival(error, now)
            self._back_off(now)
            return False
        with logs.together():  # the lines of jobs that are done
            self._ledger.end_batch(batch, committed=True)
        self._committed_at = now
        self._limit = min(2 * self._limit, self._max_records)
        for topic in {message.topic for message in batch.messages}.intersection(self._refusing):
            del self._refusing[topic]
        if not self._refusing:
            self._refusal = None
        log.debug("committed", batch=batch.number, messages=len(batch.messages), partitions=len(batch.offsets))
        self._failures = 0
        return True

    def _single_out(self, batch: Batch, error: MessageRefused) -> None:
        """Replace a refused message by its next form, or give it up; find out first which one it is."""
        message = batch.messages[error.index]
        if not error.is_alone and self._limit > 1:
            self._limit = max(1, min(self._limit, len(batch.messages)) // 2)
        elif self._ledger.shrink(batch, error.index):
            log.warning("message refused: trying a shorter form", topic=message.topic, error=str(error))
        else:
            # Here it is decided that no outcome holds up others for ever: the log is the last place that takes it.
            self.given_up += 1
            whole = message.whole or message
            log.critical(
                "message given up: no form of it is accepted",
                topic=message.topic,
                error=str(error),
                key=_as_text(whole.key),
                value=_as_text(whole.value),
                headers={name: _as_text(value) for name, value in whole.headers},
            )
        self._ledger.end_batch(batch, committed=False)

    def problem(self, now: float) -> str:
        """Say what is not committed although it should be; empty if all is well. `now`: monotonic. Any thread."""
        if (refusal := self._refusal) is not None and now - refusal.since >= PATIENCE_SECONDS:
            seconds = round(now - refusal.since)
            return f"{self._ledger.waiting} outcomes wait for their commit, for {seconds} s now: {refusal.why}"
        if self.given_up:
            return f"{self.given_up} messages were given up since the start; the log has them whole"
        return ""

    def _tell_refusal(self, error: BaseException, now: float) -> None:
        """Log why a commit failed, once for each reason; note since when none succeeds."""
        known, why = self._refusal, str(error)
        if known is None or known.why != why:
            log.warning("commit rejected", error=why, waiting=self._ledger.waiting)
        self._refusal = _Refusal(now if known is None else known.since, why)
        self._on_refused()

    def _recover(self, batch: Batch, now: float) -> None:
        try:
            read_back = self._sink.recover(batch)
        except (BrokerUnavailable, OSError) as error:
            log.warning("commit outcome still unknown", batch=batch.number, error=str(error))
            self._refusal = _Refusal(now if self._refusal is None else self._refusal.since, str(error))
            self._back_off(now)
            return
        committed = self._ledger.resolve(batch, read_back)
        if committed is None:
            log.warning("commit outcome still unknown", batch=batch.number, error="the broker did not return offsets")
            self._back_off(now)
            return
        log.info("commit resolved", batch=batch.number, committed=committed)
        self._unknown = None
        self._failures = 0
        self._due = now
        with logs.together():
            self._ledger.end_batch(batch, committed)

    def _require_no_rival(self, error: CommitRejected, now: float) -> None:
        """Raise BrokerRefused if this process is fenced repeatedly: another live process has the same identity."""
        if not isinstance(error, Fenced):
            self._fences.clear()
            return
        self._fences.append(now)
        if len(self._fences) == RIVAL_FENCES and now - self._fences[0] <= RIVAL_SECONDS:
            raise BrokerRefused(
                f"another live process uses the same identity; give each its own ETL_INSTANCE_ID or slot: {error}"
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


def _as_text(data: bytes | None) -> str | None:
    """Return bytes as text, in base64 where they are none."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(data).decode()}"
