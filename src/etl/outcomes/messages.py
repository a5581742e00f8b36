"""The messages of an outcome: results, dead letters and deferrals; and what a deferred record carries in its headers.

Knows topics' names and message shapes; no Kafka client, no ledger.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from etl.errors import InvalidMessage
from etl.logs import redact
from etl.models import document, header
from etl.models.letter import DLQMessage
from etl.models.message import FileTransferJob, TransferResult
from etl.models.task import Attempt, Facts, Origin, Record, Task
from etl.models.wire import Message
from etl.retry import tiers
from etl.topics.companions import Topics

WAITING_SINCE = "etl-waiting-since"  # since when its server has been down: UTC, ISO 8601
SERVERS = "etl-servers"  # the two names, so that a job of a server that is down is seen to be one without reading it
RECALLABLE = "etl-recallable"  # it only waits for its servers: it may come back as soon as they have room for it
OUTAGES = "etl-outages"  # how many in a row, decimal
ORPHANS = "etl-orphans"  # partial files of its earlier runs may lie at its destination
PUBLISHED = "etl-published"  # JSON: the copy is in place, the source action is left

SHORT_FORMS_BYTES = (128 * 1024, 8 * 1024, 2 * 1024)  # of a dead letter, tried in turn: no topic refuses the last
KEY_LIMIT_BYTES = 1024  # of the short forms
ERROR_LIMIT = 1000  # characters, of a result that was too large
ATTEMPT_LIMIT = 500  # characters, of an attempt in a header

Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class MessageBuilder:
    """Makes the messages that an outcome consists of. `group` is ours: other groups skip what we set aside.

    `retry_blocks` of partitions of `T-retry`, each with all tiers (`tier_of`): the first half of them is for jobs that
    must wait for their time, so that those that may come earlier do not stand behind them.
    """

    topics: Topics
    group: str
    retry_blocks: int = 1
    clock: Callable[[], float] = time.time  # wall clock

    def result(self, source: Task | Record, result: TransferResult) -> tuple[Message, ...]:
        """Say how a job ended, keyed by its id; successes and failures may have topics of their own.

        `source` is a record when it could not be parsed.
        """
        topic = self.topics.results if result.succeeded else self.topics.failed
        origin = source.origin if isinstance(source, Task) else self.read(source).origin
        headers = _encoded({header.JOB_ID: result.job_id, header.GROUP: self.group, header.ORIGIN: str(origin)})
        return (self._result(topic, headers, result),)

    def dead_letter(
        self, source: Task | Record, error: BaseException | str, *, job_id: str | None = None
    ) -> tuple[Message, ...]:
        """Say why a message went no further, with the message itself.

        `source` is a record when it could not be parsed: then what its headers say of it is carried along.
        """
        record = source.record if isinstance(source, Task) else source
        carried = self._carried(source) if isinstance(source, Task) else self.read(record)._replace(group=self.group)
        carried = carried._replace(job_id=job_id or carried.job_id or str(carried.origin))
        letter = DLQMessage.from_record(
            record,
            error,
            job_id=carried.job_id,
            attempts=carried.attempts,
            retry_count=max(0, len(carried.attempts) - 1),
            origin=carried.origin,
        )
        letter = letter.model_copy(update={"error": redact(letter.error)})
        headers = _foreign_headers(record) + _own_headers(carried._replace(attempts=()))
        message = Message(self.topics.dlq, record.key, letter.to_json().encode(), headers)
        return (_shrinking(message, letter, SHORT_FORMS_BYTES),)

    def deferral(self, task: Task, not_before: float) -> tuple[Message, ...]:
        """Set a job aside until `not_before` (wall clock): its original bytes and key, the rest in headers.

        Where `T-retry` refuses its size, a dead letter and a failed result take its place.
        """
        carried = self._carried(task)._replace(
            not_before=not_before, recallable=task.recallable, leaves_orphans=task.orphan_scan_since is not None
        )
        tier = tiers.tier_until(self.clock(), not_before)
        headers = _foreign_headers(task.record) + _own_headers(carried)
        key = task.record.key
        place = key if key is not None else str(task.origin).encode()
        partition = tiers.partition_for(tier, place, self.retry_blocks, recallable=task.recallable)
        value = task.record.value
        return (Message(self.topics.retry, key, value, headers, partition, lambda: self._too_large(task)),)

    def read(self, record: Record) -> Carried:
        """Read what the headers of a record say of its job. One that makes no sense counts as absent.

        A record that was not set aside has a history of its own making only in its id and its replays: what else a
        producer wrote there is not believed.
        """
        here = Carried(
            origin=Origin(record.topic, record.partition, record.offset),
            job_id=_text(record, header.JOB_ID),
            replays=_count(_text(record, header.REPLAYS)),
        )
        return _deferred(record, here) if record.topic == self.topics.retry else here

    def _too_large(self, task: Task) -> tuple[Message, ...]:
        error = InvalidMessage(f"message: is too large to be set aside in {self.topics.retry}")
        job = task.job
        result = TransferResult(
            job_id=job.job_id or str(task.origin),
            status="FAILED",
            source=job.source,
            destination=job.destination,
            attempts=len(task.attempts),
            error=str(error),
            error_code=error.code,
            finished_at=datetime.fromtimestamp(self.clock(), UTC),
            flat=job.flat,
        )
        return self.dead_letter(task, error) + self.result(task, result)

    def _result(self, topic: str, headers: Headers, result: TransferResult) -> Message:
        def shrink() -> tuple[Message, ...]:
            error = result.error[:ERROR_LIMIT] if result.error else None
            short = result.model_copy(update={"metadata": None, "error": error})
            return (self._result(topic, headers, short)._replace(shrink=None),)

        return Message(topic, result.job_id.encode(), result.to_json().encode(), headers, shrink=shrink)

    def _carried(self, task: Task) -> Carried:
        return Carried(
            job_id=task.job.job_id or str(task.origin),
            group=self.group,
            origin=task.origin,
            attempts=tuple(task.attempts),
            replays=task.replays,
            waiting_since=task.waiting_since,
            outages=task.outages,
            servers=(task.job.source.hostname, task.job.destination.hostname),
            published=task.published,
            verified_by=task.verified_by if task.published else None,
            facts=task.facts if task.published else None,
        )


class Carried(NamedTuple):
    """What the headers of a record say of its job. The defaults are those of a record without any."""

    origin: Origin
    job_id: str | None = None
    group: str | None = None  # that set it aside; None: nobody did
    attempts: tuple[Attempt, ...] = ()
    not_before: float | None = None  # wall clock
    replays: int = 0
    waiting_since: float | None = None  # wall clock
    outages: int = 0
    servers: tuple[str, ...] = ()
    recallable: bool = False
    leaves_orphans: bool = False
    published: bool = False
    verified_by: str | None = None
    facts: Facts | None = None

    def task(self, record: Record, job: FileTransferJob) -> Task:
        """Make the task of a record; a job without an id gets the one of its first delivery."""
        return Task(
            record=record,
            origin=self.origin,
            job=job if job.job_id is not None else job.with_id(self.job_id or str(self.origin)),
            attempts=list(self.attempts),
            waiting_since=self.waiting_since,
            outages=self.outages,
            replays=self.replays,
            recallable=self.recallable,
            published=self.published,
            verified_by=self.verified_by,
            facts=self.facts,
            size_bytes=len(record.value or b""),
        )


# --- headers, written -----------------------------------------------------------------------------------------


def _own_headers(carried: Carried) -> Headers:
    attempts = [{"at": a.at, "where": a.where, "what": a.what[:ATTEMPT_LIMIT]} for a in carried.attempts]
    values = {
        header.JOB_ID: carried.job_id,
        header.GROUP: carried.group,
        header.ORIGIN: str(carried.origin),
        header.ATTEMPTS: _json(attempts) if attempts else None,
        header.NOT_BEFORE: _iso(carried.not_before),
        header.REPLAYS: str(carried.replays) if carried.replays else None,
        WAITING_SINCE: _iso(carried.waiting_since),
        SERVERS: " ".join(carried.servers) if carried.not_before is not None else None,
        OUTAGES: str(carried.outages) if carried.outages else None,
        RECALLABLE: "1" if carried.recallable else None,
        ORPHANS: "1" if carried.leaves_orphans else None,
        PUBLISHED: _json(_publication(carried)) if carried.published else None,
    }
    return _encoded({name: value for name, value in values.items() if value is not None})


def _encoded(values: dict[str, str]) -> Headers:
    return tuple([(name, value.encode("utf-8", "replace")) for name, value in values.items()])


def _publication(carried: Carried) -> dict[str, Any]:
    facts = {"size_bytes": carried.facts.size_bytes, "mtime": carried.facts.mtime} if carried.facts else {}
    return {"verified_by": carried.verified_by, **facts}


def _foreign_headers(record: Record) -> Headers:
    """Return what a producer said in headers of its own: it belongs to the message."""
    return tuple(pair for pair in record.headers if not pair[0].startswith("etl-"))


def _json(data: object) -> str:
    return json.dumps(data, separators=(",", ":"))


def _iso(wall: float | None) -> str | None:
    # Microseconds, so that a time that is carried along stays the same number.
    return None if wall is None else document.moment(wall).isoformat(timespec="microseconds")


# --- headers, read: whatever stands in them, the job goes on --------------------------------------------------


def _deferred(record: Record, here: Carried) -> Carried:
    published = _object(record, PUBLISHED)
    return here._replace(
        origin=_origin(_text(record, header.ORIGIN) or "") or here.origin,
        group=_text(record, header.GROUP),
        attempts=_attempts(record),
        not_before=_moment(_text(record, header.NOT_BEFORE)),
        waiting_since=_moment(_text(record, WAITING_SINCE)),
        outages=_count(_text(record, OUTAGES)),
        servers=tuple((_text(record, SERVERS) or "").split()),
        recallable=record.header(RECALLABLE) is not None,
        leaves_orphans=record.header(ORPHANS) is not None,
        published=published is not None,
        verified_by=_kind(published, "verified_by", str),
        facts=_facts(published),
    )


def _text(record: Record, name: str) -> str | None:
    value = record.header(name)
    return value.decode("utf-8", "replace") if value else None


def _origin(text: str) -> Origin | None:
    topic, *numbers = text.rsplit("-", 2)
    if not topic or len(numbers) < 2 or not all(_is_number(number) for number in numbers):
        return None
    return Origin(topic, int(numbers[0]), int(numbers[1]))


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 19  # of 64 bits


def _count(text: str | None) -> int:
    return int(text) if text and _is_number(text) else 0


def _moment(text: str | None) -> float | None:
    try:
        moment = datetime.fromisoformat(text or "")
        return moment.timestamp() if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _attempts(record: Record) -> tuple[Attempt, ...]:
    found = _parsed(record, header.ATTEMPTS)
    lines = found if isinstance(found, list) else []
    return tuple(
        Attempt(**{name: str(line.get(name, "")) for name in ("at", "where", "what")})
        for line in lines
        if isinstance(line, dict)
    )


def _object(record: Record, name: str) -> dict[str, Any] | None:
    found = _parsed(record, name)
    return found if isinstance(found, dict) else None


def _parsed(record: Record, name: str) -> object:
    try:
        return json.loads(_text(record, name) or "null")
    except (ValueError, RecursionError):
        return None


def _kind(data: dict[str, Any] | None, name: str, kind: type[Any] | tuple[type[Any], ...]) -> Any:
    value = (data or {}).get(name)
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def _facts(published: dict[str, Any] | None) -> Facts | None:
    if not published or not {"size_bytes", "mtime"} & set(published):
        return None
    mtime = _kind(published, "mtime", (int, float))
    return Facts(_kind(published, "size_bytes", int), mtime if mtime is None or math.isfinite(mtime) else None)


# --- dead letters that are too large --------------------------------------------------------------------------


def _shrinking(message: Message, letter: DLQMessage, limits_bytes: tuple[int, ...]) -> Message:
    """Return the message, ready to be replaced by its short form, and that by a shorter one."""
    if not limits_bytes:
        return message

    def shrink() -> tuple[Message, ...]:
        limit_bytes, shorter = limits_bytes[0], limits_bytes[1:]
        key = message.key if message.key is None or len(message.key) <= KEY_LIMIT_BYTES else None
        headers = tuple(pair for pair in message.headers if pair[0].startswith("etl-"))
        value = letter.shortened(limit_bytes).to_json().encode()
        return (_shrinking(Message(message.topic, key, value, headers), letter, shorter),)

    return message._replace(shrink=shrink)
