"""The messages of an outcome: results, dead letters and deferrals, with the headers that carry a job's history.

Knows topic names and message shapes; no Kafka client, no ledger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from etl import clock as wall_clock
from etl.errors import InvalidMessage
from etl.logs import redact
from etl.models import document, header
from etl.models.field import is_label
from etl.models.header import ORPHANS, OUTAGES, PUBLISHED, RECALLABLE, WAITING_SINCE
from etl.models.letter import DLQMessage
from etl.models.message import FileTransferJob, TransferResult
from etl.models.task import Attempt, Facts, Origin, Record, Task
from etl.models.wire import Message
from etl.outcomes.foreign import select_foreign
from etl.outcomes.seal import Seal
from etl.retry import tiers
from etl.topics.names import Topics

SHORT_FORMS_BYTES = (128 * 1024, 8 * 1024, 2 * 1024)  # sizes of a dead letter, tried in turn; any topic takes the last
KEY_LIMIT_BYTES = 1024  # longer keys are left out of short forms
NO_PART = "1"  # in ORPHANS
ERROR_LIMIT = 1000  # characters of the error in the short form of a result
ATTEMPT_LIMIT = 500  # characters of an attempt in a header
HEADER_LIMIT_BYTES = 4096  # of ours that are read, except the attempts: two names of servers take half of it at most
ATTEMPTS_LIMIT, ATTEMPTS_LIMIT_BYTES = 1000, 1 << 20  # that are read: as many as ETL_RETRY_MAX_ATTEMPTS allows
NUMBER_LIMIT = 1 << 63
# Fields that are left out of a result, step by step, until its topic takes it.
RESULT_LEFT_OUT = (("metadata",), ("source", "destination", "error"))

Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class MessageBuilder:
    """Builds the messages of outcomes. `group`: the consumer group, as others skip the jobs that it defers.

    `retry_blocks`: how many blocks of partitions `T-retry` has (`retry.tiers`).
    """

    topics: Topics
    group: str
    retry_blocks: int = 1
    clock: Callable[[], float] = wall_clock.now
    seal: Seal | None = None  # made of the group's secret, if there is one

    def result(self, source: Task | Carried, result: TransferResult) -> tuple[Message, ...]:
        """Build the result of a job, keyed by its id.

        `source` is what its headers say if it could not be parsed. Failed results may have a topic of their own.
        """
        topic = self.topics.results if result.succeeded else self.topics.failed
        ours = {header.JOB_ID: result.job_id, header.GROUP: self.group, header.ORIGIN: str(source.origin)}
        if source.bundle is not None:
            ours[header.BUNDLE] = str(source.bundle)
        return (_build_result(topic, _encode(ours), result, RESULT_LEFT_OUT),)

    def dead_letter(
        self,
        source: Task | Record,
        error: BaseException | str,
        *,
        job_id: str | None = None,
        carried: Carried | None = None,
    ) -> tuple[Message, ...]:
        """Build the dead letter of a job: the original message, the error and the job's history.

        `source` is the record itself if it could not be parsed; then `carried` is its history, by default what its
        headers say.
        """
        record = source.record if isinstance(source, Task) else source
        if isinstance(source, Task):
            carried = self._carry(source)
        carried = (carried or self.read(record))._replace(group=self.group)
        carried = carried._replace(job_id=job_id or carried.job_id or str(carried.origin))
        letter = DLQMessage.from_record(
            record,
            error,
            job_id=carried.job_id,
            attempts=carried.attempts,
            retry_count=max(0, len(carried.attempts) - 1),
            origin=carried.origin,
        )
        if not isinstance(error, InvalidMessage):  # all of that one's text is from the message
            told = source.job.words if isinstance(source, Task) else ()
            letter = letter.model_copy(update={"error": redact(letter.error, told)})
        headers = select_foreign(record) + _build_headers(carried._replace(attempts=()))
        if len(record.value or b"") > document.MESSAGE.size_bytes:  # what waits for its commit takes memory
            letter = letter.shortened(SHORT_FORMS_BYTES[0])
        # Never without a key: a compacted topic refuses such messages.
        key = record.key if record.key is not None else _key_of(letter)
        message = Message(self.topics.dlq, key, letter.to_json().encode(), headers)
        return (_add_short_forms(message, letter, SHORT_FORMS_BYTES),)

    def deferral(self, task: Task, not_before: float) -> tuple[Message, ...]:
        """Build the deferral of a job until `not_before` (wall clock): its original bytes and key, the rest in headers.

        If `T-retry` refuses its size, a dead letter and a failed result replace it.
        """
        carried = self._carry(task)._replace(
            not_before=not_before, recallable=task.recallable, leaves_orphans=task.orphan_scan_since is not None
        )
        tier = tiers.tier_until(self.clock(), not_before)
        key = task.record.key
        headers = _build_headers(carried)
        if self.seal is not None:
            headers = self.seal.sign(self.topics.retry, key, task.record.value, headers)
        spread_by = key if key is not None else str(task.origin).encode()
        partition = tiers.partition_for(tier, spread_by, self.retry_blocks, recallable=task.recallable)
        value = task.record.value
        headers = select_foreign(task.record) + headers
        return (Message(self.topics.retry, key, value, headers, partition, lambda: self._replace_deferral(task)),)

    def read(self, record: Record) -> Carried:
        """Read what the headers of a record say about its job. Malformed headers count as absent.

        Outside `T-retry` only the id and the number of replays are trusted: producers could forge the rest. In it, if
        the group has a secret, only a member's headers name another origin, a bundle, or orphans.
        """
        carried = Carried(
            origin=Origin(record.topic, record.partition, record.offset),
            job_id=_read_label(record, header.JOB_ID),
            replays=_parse_count(_read_text(record, header.REPLAYS)),
        )
        if record.topic != self.topics.retry:
            return carried
        deferred = _read_deferral(record, carried)
        proven = self.seal is not None and self.seal.proves(record)
        if proven or self.seal is None:
            return deferred._replace(proven=proven)
        return deferred._replace(origin=carried.origin, leaves_orphans=False, part=None, bundle=None)

    def _replace_deferral(self, task: Task) -> tuple[Message, ...]:
        error = InvalidMessage(f"message: is too large to be deferred to {self.topics.retry}")
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

    def _carry(self, task: Task) -> Carried:
        return Carried(
            job_id=task.job.job_id or str(task.origin),
            group=self.group,
            origin=task.origin,
            attempts=tuple(task.attempts),
            replays=task.replays,
            waiting_since=task.waiting_since,
            outages=task.outages,
            part=task.part,
            published=task.published,
            verified_by=task.verified_by if task.published else None,
            checksum=task.checksum if task.published else None,
            facts=task.facts if task.published else None,
            bundle=task.bundle,
        )


class Carried(NamedTuple):
    """What the headers of a record say about its job. The defaults are those of a record without headers."""

    origin: Origin
    job_id: str | None = None
    group: str | None = None  # the consumer group that deferred the job; None if it was not deferred
    attempts: tuple[Attempt, ...] = ()
    not_before: float | None = None  # wall clock
    replays: int = 0
    waiting_since: float | None = None  # wall clock, as WAITING_SINCE
    outages: int = 0
    recallable: bool = False
    leaves_orphans: bool = False
    part: str | None = None
    published: bool = False
    verified_by: str | None = None
    checksum: str | None = None
    facts: Facts | None = None
    proven: bool = False  # a member of the group wrote all that
    bundle: Origin | None = None  # the message of several jobs that it was in; as `origin`: it has no place yet

    def task(self, record: Record, job: FileTransferJob) -> Task:
        """Create the task of a record. A job without an id is named after its origin."""
        return Task(
            record=record,
            origin=self.origin,
            job=job if job.job_id is not None else job.with_id(self.job_id or str(self.origin)),
            attempts=list(self.attempts),
            waiting_since=self.waiting_since,
            outages=self.outages,
            replays=self.replays,
            recallable=self.recallable,
            part=self.part if self.part != NO_PART else None,
            published=self.published,
            verified_by=self.verified_by,
            checksum=self.checksum,
            facts=self.facts,
            size_bytes=record.weight_bytes,
            bundle=self.bundle,
        )


# --- writing headers ------------------------------------------------------------------------------------------


def _build_headers(carried: Carried) -> Headers:
    attempts = [{"at": a.at, "where": a.where, "what": a.what[:ATTEMPT_LIMIT]} for a in carried.attempts]
    values = {
        header.JOB_ID: carried.job_id,
        header.GROUP: carried.group,
        header.ORIGIN: str(carried.origin) if carried.origin != carried.bundle else None,
        header.BUNDLE: str(carried.bundle) if carried.bundle else None,
        header.ATTEMPTS: _dump_json(attempts) if attempts else None,
        header.NOT_BEFORE: _format_time(carried.not_before),
        header.REPLAYS: str(carried.replays) if carried.replays else None,
        WAITING_SINCE: _format_time(carried.waiting_since),
        OUTAGES: str(carried.outages) if carried.outages else None,
        RECALLABLE: "1" if carried.recallable else None,
        ORPHANS: (carried.part or NO_PART) if carried.leaves_orphans else None,
        PUBLISHED: _dump_json(_describe_publication(carried)) if carried.published else None,
    }
    return _encode({name: value for name, value in values.items() if value is not None})


def _encode(values: dict[str, str]) -> Headers:
    return tuple([(name, value.encode("utf-8", "replace")) for name, value in values.items()])


def _describe_publication(carried: Carried) -> dict[str, Any]:
    facts = {"size_bytes": carried.facts.size_bytes, "mtime": carried.facts.mtime} if carried.facts else {}
    checksum = {"checksum": carried.checksum} if carried.checksum else {}
    return {"verified_by": carried.verified_by, **checksum, **facts}


def _dump_json(data: object) -> str:
    return json.dumps(data, separators=(",", ":"))


def _format_time(wall: float | None) -> str | None:
    # Microseconds, so that a time stays the same number however often it is written and read.
    return None if wall is None else document.moment(wall).isoformat(timespec="microseconds")


# --- reading headers: none of them, however malformed, may stop a job -----------------------------------------


def _read_deferral(record: Record, carried: Carried) -> Carried:
    published = _read_object(record, PUBLISHED)
    return carried._replace(
        origin=_parse_origin(_read_text(record, header.ORIGIN) or "") or carried.origin,
        group=_read_text(record, header.GROUP),
        attempts=_read_attempts(record),
        not_before=_parse_time(_read_text(record, header.NOT_BEFORE)),
        waiting_since=_parse_time(_read_text(record, WAITING_SINCE)),
        outages=_parse_count(_read_text(record, OUTAGES)),
        recallable=record.header(RECALLABLE) is not None,
        leaves_orphans=record.header(ORPHANS) is not None,
        part=_read_text(record, ORPHANS),
        published=published is not None,
        verified_by=_parse_label(published, "verified_by"),
        checksum=_parse_label(published, "checksum"),
        facts=_parse_facts(published),
        bundle=_parse_origin(_read_text(record, header.BUNDLE) or ""),
    )


def _read_text(record: Record, name: str, limit_bytes: int = HEADER_LIMIT_BYTES) -> str | None:
    value = record.header(name)
    return value.decode("utf-8", "replace") if value and len(value) <= limit_bytes else None


def _read_label(record: Record, name: str) -> str | None:
    text = _read_text(record, name)
    return text if text is not None and is_label(text) else None


def _parse_origin(text: str) -> Origin | None:
    topic, *numbers = text.rsplit("-", 2)
    if not is_label(topic) or len(numbers) < 2 or not all(_is_number(number) for number in numbers):
        return None
    return Origin(topic, int(numbers[0]), int(numbers[1]))


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 19  # digits of the largest 64-bit number


def _parse_count(text: str | None) -> int:
    return int(text) if text and _is_number(text) else 0


def _parse_time(text: str | None) -> float | None:
    try:
        moment = datetime.fromisoformat(text or "")
        return moment.timestamp() if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _read_attempts(record: Record) -> tuple[Attempt, ...]:
    found = _read_json(record, header.ATTEMPTS, ATTEMPTS_LIMIT_BYTES)
    lines = [line for line in found if isinstance(line, dict)] if isinstance(found, list) else []
    return tuple(
        Attempt(**{name: _cut(line.get(name)) for name in ("at", "where", "what")}) for line in lines[-ATTEMPTS_LIMIT:]
    )


def _cut(value: object) -> str:
    return document.printable(value[:ATTEMPT_LIMIT]) if isinstance(value, str) else ""


def _read_object(record: Record, name: str) -> dict[str, Any] | None:
    found = _read_json(record, name)
    return found if isinstance(found, dict) else None


def _read_json(record: Record, name: str, limit_bytes: int = HEADER_LIMIT_BYTES) -> object:
    try:
        return json.loads(_read_text(record, name, limit_bytes) or "null")
    except (ValueError, RecursionError):
        return None


def _parse_label(published: dict[str, Any] | None, name: str) -> str | None:
    value = (published or {}).get(name)
    return value if isinstance(value, str) and is_label(value) else None


def _parse_facts(published: dict[str, Any] | None) -> Facts | None:
    if not published or not {"size_bytes", "mtime"} & set(published):
        return None
    size_bytes, mtime = (_parse_number(published.get(name)) for name in ("size_bytes", "mtime"))
    return Facts(size_bytes if isinstance(size_bytes, int) else None, mtime)


def _parse_number(value: object) -> int | float | None:
    """Return a number that a 64-bit integer could hold; None for anything else, such as an integer beyond floats."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and -NUMBER_LIMIT < value < NUMBER_LIMIT else None  # type: ignore[operator,return-value]  # a number


# --- results and dead letters that are too large --------------------------------------------------------------


def _build_result(topic: str, headers: Headers, result: TransferResult, left_out: Sequence[Sequence[str]]) -> Message:
    """Return the message of a result, with its short forms."""
    message = Message(topic, result.job_id.encode(), result.to_json().encode(), headers)
    if not left_out:
        return message

    def shrink() -> tuple[Message, ...]:
        error = result.error[:ERROR_LIMIT] if result.error else None
        short = result.model_copy(update={"error": error, **dict.fromkeys(left_out[0])})
        return (_build_result(topic, headers, short, left_out[1:]),)

    return message._replace(shrink=shrink)


def _add_short_forms(message: Message, letter: DLQMessage, limits_bytes: tuple[int, ...]) -> Message:
    """Return the message with its short forms, each of which replaces the previous one.

    The last one consists of coordinates alone: whatever a record holds, its outcome must not stop the committer.
    """
    if not limits_bytes:
        return message._replace(shrink=lambda: (_build_minimum(message.topic, letter),))

    def shrink() -> tuple[Message, ...]:
        limit_bytes, shorter = limits_bytes[0], limits_bytes[1:]
        key = message.key if message.key is not None and len(message.key) <= KEY_LIMIT_BYTES else _key_of(letter)
        headers = tuple(pair for pair in message.headers if pair[0].startswith("etl-"))
        value = letter.shortened(limit_bytes).to_json().encode()
        return (_add_short_forms(Message(message.topic, key, value, headers), letter, shorter),)

    return message._replace(shrink=shrink)


def _build_minimum(topic: str, letter: DLQMessage) -> Message:
    bare = letter.model_copy(update={"job_id": None, "error": "message: is too large for any form", "attempts": ()})
    return Message(topic, _key_of(letter), bare.shortened(0).to_json().encode())


def _key_of(letter: DLQMessage) -> bytes:
    """Return the key of a letter whose message has none, or one that is too long: where the message was."""
    return f"{letter.original_topic}-{letter.original_partition}-{letter.original_offset}".encode()
