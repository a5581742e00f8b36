"""Carries out operations, one step at a time: each letter at most once, whoever else settles letters at the same time.

How that is sure: everybody who settles letters has the same transactional id. Opening the producer ends the transaction
of whoever had it before, and a later one fences us. So a letter that is not settled in the view, once the view has all
that was written before the producer was open, stays so until our own transaction, which writes job, note and progress
together. After any error the producer is opened anew, and the view is waited for again.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from etl import broker
from etl.api.acts.marks import catch_up
from etl.api.acts.operation import Operation, unpack
from etl.api.acts.submitting import KEY_SECONDS
from etl.api.views.rows import letter_of
from etl.errors import BrokerUnavailable, Fenced, InvalidMessage, MessageRefused
from etl.models import document
from etl.models.wire import Message
from etl.topics import letters

if TYPE_CHECKING:
    from etl.api.acts.marks import Marks
    from etl.api.views.following import Following
    from etl.api.views.search import Search
    from etl.api.views.store import Store
    from etl.topics.letters import Letter, Place
    from etl.topics.names import Topics

log = structlog.get_logger(__name__)

STEP_LETTERS = 200  # of one transaction at most
LOOK_SECONDS = 1.0  # between two looks for something to do, and two steps of an operation with a rate
AGAIN_SECONDS = 2.0  # after an error
FENCED_SECONDS = 5.0  # after somebody else began to settle letters: he shall come to his end
KEEP_SECONDS = 30 * 24 * 3600.0  # that operations are kept when they are over
TIDY_SECONDS = 3600.0
JOBS_KEPT = 500_000  # in the cache
STOP_SECONDS = 20.0


@dataclass
class _Work:
    """What this process remembers of an operation that it carries out."""

    places: list[Place]
    most: int = STEP_LETTERS  # letters of one step
    refused: set[Place] = field(default_factory=set)  # letters that Kafka refuses
    due: float = 0.0  # monotonic: when the next step is due


class Engine:
    """The thread that carries out operations."""

    def __init__(
        self, bootstrap_servers: str, topics: Topics, marks: Marks, search: Search, history: Following, store: Store
    ) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topics = topics
        self._marks = marks
        self._search = search
        self._history = history
        self._store = store
        self._producer = broker.TransactionalProducer(bootstrap_servers, letters.transactional_id(topics.dlq))
        self._is_sure = False  # does the view have all that was written before our producer was open?
        self._settled: set[Place] = set()  # by us, since then: the view may not have it yet
        self._work: dict[str, _Work] = {}
        self._tidied = time.monotonic()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="operations", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Look for something to do now."""
        self._wake.set()

    def stop(self) -> None:
        """End after the step under way. What is left goes on after the next start."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def operations(self) -> list[Operation]:
        """Return all operations, newest first."""
        found = []
        for value in self._marks.all("operation/").values():
            try:
                found.append(Operation.model_validate_json(value))
            except ValidationError:
                log.warning("operation cannot be read", value=value[:200])
        return sorted(found, key=lambda operation: operation.at, reverse=True)

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause = LOOK_SECONDS
            try:
                pause = self._round()
            except Fenced:
                log.info("somebody else settles dead letters: waiting for him")
                pause = FENCED_SECONDS
                self._give_up()
            except BrokerUnavailable as error:
                log.info("operations wait for the broker", error=str(error))
                pause = AGAIN_SECONDS
                self._give_up()
            except Exception:
                log.exception("operation failed, trying again")
                pause = AGAIN_SECONDS
                self._give_up()
            self._wake.wait(pause)
            self._wake.clear()
        self._producer.close()

    def _give_up(self) -> None:
        self._producer.discard()
        self._is_sure = False
        self._settled.clear()

    def _round(self) -> float:
        """Make a step of each operation that has one to make; return the seconds until the next."""
        if not self._history.caught_up:
            return LOOK_SECONDS
        if time.monotonic() - self._tidied > TIDY_SECONDS:
            self._tidied = time.monotonic()
            self._tidy()
        waiting = [operation for operation in self.operations() if not operation.is_over]
        if not waiting:
            if self._is_sure:
                self._producer.close()
                self._is_sure = False
                self._settled.clear()
            self._work.clear()
            return LOOK_SECONDS
        if not self._is_sure:
            self._producer.open()
            for topic, following in ((self._topics.dlq, self._history),):
                catch_up(self._bootstrap_servers, topic, following, self._stopping.is_set)
            self._marks.catch_up()
            self._is_sure = True
            waiting = [operation for operation in self.operations() if not operation.is_over]
        for operation in reversed(waiting):  # the oldest one first
            if self._stopping.is_set():
                break
            self._step(operation)
        now = time.monotonic()
        dues = [work.due - now for work in self._work.values()]
        return min([LOOK_SECONDS, *(due for due in dues if due >= 0)])

    def _step(self, operation: Operation) -> None:
        """Make one step of an operation, if one is due."""
        packed = self._marks.get(f"set/{operation.id}")
        if packed is None:
            self._end(operation, "stopped", "its set is gone")
            return
        work = self._work.get(operation.id)
        if work is None:
            work = self._work[operation.id] = _Work(unpack(packed))
        if self._marks.get(f"stop/{operation.id}") is not None:
            self._end(operation, "stopped", "stopped by an operator")
        elif operation.state == "canary" and not self._passes(operation):
            work.due = time.monotonic() + LOOK_SECONDS
        elif time.monotonic() >= work.due:
            started = time.monotonic()
            self._send(operation, work)
            work.due = started + (LOOK_SECONDS if operation.per_second else 0.0)
            self._wake.set()

    def _passes(self, operation: Operation) -> bool:
        """May an operation go on after its first letters? Ends it if one of them failed again."""
        if self._marks.get(f"go/{operation.id}") is not None:
            return True
        states = []
        for place in operation.canary_jobs:
            topic, partition, offset = place.rsplit("/", 2)
            job = self._search.job(topic, int(partition), int(offset))
            states.append(job["state"] if job is not None else "queued")
        if failed := sum(state in ("failed", "discarded") for state in states):
            self._end(operation, "stopped", f"{failed} of the first {len(states)} failed again")
            return False
        return all(state == "done" for state in states)

    def _send(self, operation: Operation, work: _Work) -> None:
        """Settle the next letters of an operation, with its progress, in one transaction."""
        start = operation.next
        is_first = operation.canary > 0 and start < operation.canary
        size = min(
            STEP_LETTERS, max(1, int(operation.per_second * LOOK_SECONDS)) if operation.per_second else STEP_LETTERS
        )
        size = min(size, work.most)
        if is_first:
            size = min(size, operation.canary - start)
        places = work.places[start : start + size]
        chosen = [letter for place in places if (letter := self._waiting_letter(place, work)) is not None]
        batch = next(iter(letters.batches(chosen)), [])
        if len(batch) < len(chosen):  # too large together: the rest comes with the next step
            places = places[: places.index(batch[-1].place) + 1]
        refused = sum(place in work.refused for place in places)
        after = operation.model_copy(
            update={
                "next": start + len(places),
                "done": operation.done + len(batch),
                "failed": operation.failed + refused,
                "skipped": operation.skipped + len(places) - len(batch) - refused,
                "state": "running",
            }
        )
        messages: list[Message] = []
        for letter in batch:
            messages += self._messages(operation, letter)

        def note(sent: list[broker.Place]) -> list[Message]:
            told = after
            if is_first and operation.kind == "replay" and after.next < operation.total and batch:
                jobs = [f"{p.topic}/{p.partition}/{at}" for p, at in sent if p.topic == self._topics.source]
                told = after.model_copy(update={"state": "canary", "canary_jobs": jobs})
            elif after.next >= operation.total:
                told = after.model_copy(update={"state": "done", "ended_at": _now()})
            return [self._marks.message(f"operation/{operation.id}", told.model_dump_json())]

        try:
            sent = self._producer.transact(messages, note)
        except MessageRefused as error:
            per_letter = 2 if operation.kind == "replay" else 1
            if not error.is_alone and len(batch) > 1:
                work.most = 1  # so that it shows which one it is
            elif error.index < len(messages):
                work.refused.add(batch[error.index // per_letter].place)
            raise
        self._settled |= {letter.place for letter in batch}
        self._marks.wait_for(sent[-1])
        log.info("operation", id=operation.id, kind=operation.kind, done=after.done, of=operation.total)

    def _waiting_letter(self, place: Place, work: _Work) -> Letter | None:
        """Return a letter that is still to be settled; None if it is settled, gone, or cannot be."""
        row = None if place in self._settled or place in work.refused else self._search.letter(*place)
        if row is None or row["settled"] is not None:
            return None
        try:
            letter = letter_of(row)
        except InvalidMessage:
            return None
        return letter

    def _messages(self, operation: Operation, letter: Letter) -> tuple[Message, ...]:
        if operation.kind == "replay":
            return letters.replay(letter, self._topics.source)
        return (letters.discard(letter, operation.reason),)

    def _end(self, operation: Operation, state: str, remark: str) -> None:
        """Note that an operation is over."""
        ended = operation.model_copy(update={"state": state, "remark": remark, "ended_at": _now()})
        sent = self._producer.transact([self._marks.message(f"operation/{operation.id}", ended.model_dump_json())])
        self._marks.wait_for(sent[-1])

    def _tidy(self) -> None:
        """Forget operations that are long over, old keys of requests, and jobs beyond those that are kept."""
        self._store.prune(JOBS_KEPT)
        old = {key.partition("/")[2] for key in self._marks.older_than("operation/", KEEP_SECONDS)}
        over = [operation.id for operation in self.operations() if operation.is_over and operation.id in old]
        gone: dict[str, None] = {f"{name}/{id_}": None for id_ in over for name in ("operation", "set", "stop", "go")}
        gone |= dict.fromkeys(self._marks.older_than("idempotency/", KEY_SECONDS))
        if gone:
            self._marks.put(gone)


def _now() -> str:
    return document.iso(datetime.now(UTC))
