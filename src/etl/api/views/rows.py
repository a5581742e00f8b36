"""Turns records of topics into rows of the cache. Whatever a record holds, it raises nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from etl.errors import InvalidMessage
from etl.models import DLQMessage, FileTransferJob, TransferResult, bundle, document, header
from etl.models.task import Record
from etl.topics import letters
from etl.topics.companions import SystemTopics
from etl.topics.letters import Letter
from etl.topics.names import Topics

PREVIEW_CHARACTERS = 500  # of an error, in a list


class Rows:
    """Writes the records of a topic and its companions into the cache's tables."""

    def __init__(self, topics: Topics, system: SystemTopics) -> None:
        self._topics = topics
        self._notes = {system.control, system.marks}
        self._audit = system.audit

    def write(self, connection: sqlite3.Connection, records: Sequence[Record]) -> None:
        """Write these records, in their order."""
        topics = self._topics
        for record in records:
            if record.topic == topics.dlq:
                _write_letter(connection, record)
            elif record.topic == topics.source:
                _write_job(connection, record)
            elif record.topic in (topics.results, topics.failed):
                _write_result(connection, record)
            elif record.topic == topics.retry:
                _write_wait(connection, record)
            elif record.topic in self._notes:
                _write_note(connection, record)
            elif record.topic == self._audit:
                _write_audit(connection, record)


def letter_of(row: sqlite3.Row) -> Letter:
    """Return the dead letter of a row that has key, value and headers."""
    headers = tuple((name, value.encode("latin-1")) for name, value in json.loads(row["headers"]))
    record = Record(
        row["topic"], row["partition"], row["offset"], row["key"], row["value"], headers, row["timestamp"] or 0.0
    )
    settled = row["settled"]
    return Letter(record, DLQMessage.from_json(record.value), settled == "replayed", settled == "discarded")


def _write_letter(connection: sqlite3.Connection, record: Record) -> None:
    if record.header(header.MARKER) is not None:
        if (note := letters.read_marker(record)) is not None:
            _settle(connection, record, *note)
        return
    try:
        letter = Letter(record, DLQMessage.from_json(record.value), replayed=False)
    except InvalidMessage:
        return
    message = letter.message
    (source, source_path), (destination, destination_path) = letter.endpoint("source"), letter.endpoint("destination")
    origin = None
    if message.original_topic is not None:
        origin = f"{message.original_topic}-{message.original_partition}-{message.original_offset}"
    values = (
        *(record.partition, record.offset, message.timestamp.timestamp(), message.error_code.upper(), letter.job_id),
        *(source.upper(), source_path, destination.upper(), destination_path, message.error, letter.replays),
        *(message.truncated, record.topic, origin, record.timestamp, record.key, record.value),
        json.dumps([(name, value.decode("latin-1")) for name, value in record.headers]),
    )
    connection.execute(
        "INSERT OR REPLACE INTO letters (partition, offset, at, code, job_id, source, source_path, destination,"
        " destination_path, error, replays, truncated, topic, origin, timestamp, key, value, headers)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )
    if message.original_topic is not None:
        place = (message.original_topic, message.original_partition, message.original_offset)
        history = json.dumps([{"at": a.at, "where": a.where, "what": a.what} for a in message.attempts])
        connection.execute(
            "INSERT INTO jobs (topic, partition, offset, at, job_id, source, source_path, destination,"
            " destination_path, state, code, error, finished_at, history, letter, group_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'failed', ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET letter = excluded.letter, history = excluded.history,"
            " state = 'failed', code = excluded.code, error = excluded.error,"
            " finished_at = coalesce(finished_at, excluded.finished_at), not_before = NULL",
            (
                *(*place, message.timestamp.timestamp(), letter.job_id),
                *(source.upper(), source_path, destination.upper(), destination_path),
                *(message.error_code.upper(), message.error[:PREVIEW_CHARACTERS], message.timestamp.timestamp()),
                *(history, letter.name, _group_of(record)),
            ),
        )


def _settle(connection: sqlite3.Connection, record: Record, place: letters.Place, how: bytes) -> None:
    """Note how a dead letter was settled; the first note counts, as for the command."""
    word = how.decode()
    connection.execute(
        "UPDATE letters SET settled = ?, settled_at = ?, note = ?"
        " WHERE partition = ? AND offset = ? AND settled IS NULL",
        (word, record.timestamp, (record.value or b"").decode("utf-8", "replace"), *place),
    )
    if how == header.DISCARDED:
        connection.execute(
            "UPDATE jobs SET state = 'discarded' WHERE letter = ? AND state = 'failed'", (f"{place[0]}:{place[1]}",)
        )


def _write_job(connection: sqlite3.Connection, record: Record) -> None:
    place = f"{record.topic}-{record.partition}-{record.offset}"
    fields: dict[str, Any] = {"job_id": _text(record.header(header.JOB_ID)) or place}
    try:
        job = FileTransferJob.from_json(record.value)
    except InvalidMessage as error:
        if _write_group(connection, record, str(fields["job_id"])):
            return  # each of its jobs has a record of its own, and so a row
        fields["job_id"] = error.job_id or fields["job_id"]
    else:
        fields |= {
            "job_id": job.job_id or fields["job_id"],
            "source": job.source.hostname.upper(),
            "source_path": job.source.path,
            "destination": job.destination.hostname.upper(),
            "destination_path": job.destination.path,
            "priority": job.priority,
        }
    replays = _text(record.header(header.REPLAYS)) or "0"
    fields |= {"replays": int(replays) if replays.isdecimal() and len(replays) < 10 else 0}
    _upsert(
        connection,
        (record.topic, record.partition, record.offset),
        record.timestamp,
        fields | {"submitted_at": record.timestamp, "at": record.timestamp},
    )


def _write_group(connection: sqlite3.Connection, record: Record, name: str) -> bool:
    """Note a message of several jobs; False if it is none, or not a valid one."""
    if not bundle.is_bundle(record.value):
        return False
    try:
        data = document.parse(record.value)
        jobs = bundle.of(data, name)
    except InvalidMessage:
        return False
    connection.execute(
        "INSERT OR REPLACE INTO groups VALUES (?, ?, ?, ?, ?, ?)",
        (record.topic, record.partition, record.offset, record.timestamp, data.get("job_id") or name, len(jobs)),
    )
    return True


def _write_result(connection: sqlite3.Connection, record: Record) -> None:
    place = _place_of(_text(record.header(header.ORIGIN)))
    if place is None:
        return
    try:
        result = TransferResult.from_json(record.value)
    except InvalidMessage:
        return
    source, destination = result.source, result.destination
    fields: dict[str, Any] = {
        "job_id": result.job_id,
        "state": "done" if result.succeeded else "failed",
        "code": result.error_code,
        "error": result.error[:PREVIEW_CHARACTERS] if result.error else None,
        "bytes": result.bytes,
        "started_at": _seconds(result.started_at),
        "finished_at": _seconds(result.finished_at) or record.timestamp,
        "worker": result.worker,
        "attempts": result.attempts,
        "result": result.to_json(flat=False),
        "not_before": None,
    }
    if group := _group_of(record):
        fields["group_id"] = group
    if source and destination:
        fields |= {"source": source.hostname.upper(), "source_path": source.path}
        fields |= {"destination": destination.hostname.upper(), "destination_path": destination.path}
    _upsert(connection, place, _seconds(result.started_at) or record.timestamp, fields)


def _write_wait(connection: sqlite3.Connection, record: Record) -> None:
    """Note that a job was set aside; what is finished already stays so: T-retry is read beside the results."""
    place, group = _place_of(_text(record.header(header.ORIGIN))), _group_of(record)
    if place is None and group is None:
        return
    # A job of a message that holds several begins here: from now on this place is its own.
    begins = None if place else record.timestamp
    place = place or (record.topic, record.partition, record.offset)
    ends = _ends_of(record) if group else (None, None, None, None)
    connection.execute(
        "INSERT INTO jobs (topic, partition, offset, at, job_id, state, not_before, history, group_id,"
        " submitted_at, source, source_path, destination, destination_path, waits)"
        " VALUES (?, ?, ?, ?, ?, 'waiting', ?, ?, ?, ?, ?, ?, ?, ?, 1)"
        " ON CONFLICT DO UPDATE SET not_before = excluded.not_before, history = excluded.history, waits = waits + 1,"
        " state = 'waiting' WHERE state IN ('queued', 'waiting')",
        (
            *place,
            record.timestamp,
            _text(record.header(header.JOB_ID)) or "-".join(map(str, place)),
            _moment(_text(record.header(header.NOT_BEFORE))),
            _text(record.header(header.ATTEMPTS)),
            group,
            begins,
            *ends,
        ),
    )


def _ends_of(record: Record) -> tuple[str | None, ...]:
    """Return servers and paths of source and destination, as far as the record holds a job."""
    try:
        job = FileTransferJob.from_json(record.value)
    except InvalidMessage:
        return (None, None, None, None)
    return (job.source.hostname.upper(), job.source.path, job.destination.hostname.upper(), job.destination.path)


def _group_of(record: Record) -> str | None:
    """Return the place of the message of several jobs that a job was in, TOPIC/PARTITION/OFFSET."""
    place = _place_of(_text(record.header(header.BUNDLE)))
    return None if place is None else "/".join(map(str, place))


def _write_note(connection: sqlite3.Connection, record: Record) -> None:
    key = _text(record.key) or ""
    if record.value is None:
        connection.execute("DELETE FROM notes WHERE topic = ? AND key = ?", (record.topic, key))
    else:
        values = (record.topic, key, record.timestamp, record.value.decode("utf-8", "replace"))
        connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?)", values)


def _write_audit(connection: sqlite3.Connection, record: Record) -> None:
    try:
        found = document.parse(record.value, document.OURS)
    except InvalidMessage:
        return
    parts = [found.get(name) for name in ("actor", "action", "target", "result")]
    texts = [part if part is None or isinstance(part, str) else json.dumps(part) for part in parts]
    connection.execute(
        "INSERT OR REPLACE INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (record.partition, record.offset, record.timestamp, *texts, document.write(found)),
    )


def _upsert(connection: sqlite3.Connection, place: tuple[str, int, int], at: float, fields: dict[str, Any]) -> None:
    """Insert or complete the row of a job. `at` is the time that it is sorted by, unless it is known already."""
    names = [name for name in fields if name != "at"]
    sets = [f"{name} = excluded.{name}" for name in names]
    if "at" in fields:
        sets.append("at = excluded.at")
    if "submitted_at" in fields:  # the record of T is read beside the results: it knows less of what became of it
        sets = [f"{name} = coalesce(nullif({name}, 0), excluded.{name})" for name in names] + ["at = excluded.at"]
    columns = ["topic", "partition", "offset", "at", *names]
    connection.execute(
        f"INSERT INTO jobs ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - our names
        f" ON CONFLICT DO UPDATE SET {', '.join(sets)}",
        (*place, at, *(fields[name] for name in names)),
    )


def _place_of(origin: str | None) -> tuple[str, int, int] | None:
    topic, *numbers = (origin or "").rsplit("-", 2)
    if len(numbers) < 2 or not all(number.isdecimal() and len(number) <= 18 for number in numbers):
        return None
    return topic, int(numbers[0]), int(numbers[1])


def _text(value: bytes | None) -> str | None:
    return value.decode("utf-8", "replace") if value else None


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _moment(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except (ValueError, OverflowError):
        return None
