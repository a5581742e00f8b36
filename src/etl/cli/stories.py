"""Finds jobs in their topic, and reads what became of them from its companions: results, deferrals, dead letters.

Reads topics alone. Whatever a record holds, it raises nothing for it.
"""

from __future__ import annotations

import fnmatch
import heapq
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from etl import broker
from etl.errors import BrokerUnavailable, InvalidMessage
from etl.models import DLQMessage, FileTransferJob, TransferResult, bundle, document, header
from etl.models.status import TransferStatus
from etl.models.task import Record
from etl.topics import letters
from etl.topics.letters import Letter
from etl.topics.names import Topics

PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:")  # written as they are in JSON


@dataclass(frozen=True)
class Event:
    """One thing that happened to a job; `at` is missing where nobody noted the time."""

    at: datetime | None
    what: str
    text: str = ""


@dataclass
class Story:
    """One job as it was first sent, and all that happened to it."""

    record: Record
    job: FileTransferJob | None  # None: the record holds no job
    result: TransferResult | None = None
    letter: Letter | None = None
    deferral: Record | None = None  # the last one
    running: TransferStatus | None = None
    events: list[Event] = field(default_factory=list)
    message_id: str | None = None  # of the message of several jobs that it was in
    own_place: str | None = None  # of such a job, once the message was split

    @property
    def place(self) -> str:
        """TOPIC-PARTITION-OFFSET: where it was first delivered."""
        return self.own_place or place_of(self.record)

    @property
    def key(self) -> str:
        """What its companions name it by."""
        return self.place if self.message_id is None else f"{place_of(self.record)} {self.job_id}"

    @property
    def job_id(self) -> str:
        """Its id, or the one that it gets from its place."""
        return (None if self.job is None else self.job.job_id) or self.place

    @property
    def state(self) -> str:
        """What became of it: done, skipped, failed, replayed, discarded, running, deferred or unfinished."""
        if self.letter is not None:
            return self.letter.state if self.letter.settled else "failed"
        if self.result is not None:
            return "failed" if not self.result.succeeded else "skipped" if self.result.skipped else "done"
        return "running" if self.running is not None else "deferred" if self.deferral is not None else "unfinished"

    def end(self, side: str) -> str:
        """Return source or destination: SERVER:/path."""
        return "" if self.job is None else str(getattr(self.job, side))


@dataclass(frozen=True)
class Query:
    """Which jobs to find. What is not given matches all. `pattern` is a path or a pattern of fnmatch."""

    names: frozenset[str] = frozenset()  # ids or places
    servers: frozenset[str] = frozenset()
    pattern: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def may_match(self, record: Record) -> bool:
        """Is it worth while to read the record? Cheap, and never wrong when it says no."""
        if not self.names or place_of(record) in self.names or any(not PLAIN.issuperset(name) for name in self.names):
            return True
        value = document.unpacked(record.value or b"", strict=False)
        given = record.header(header.JOB_ID) or b""
        may_be_several = b'"files"' in value  # whose jobs have ids that are not written in it
        return may_be_several or any(name.encode() in value or name.encode() == given for name in self.names)

    def matches(self, story: Story) -> bool:
        """Do all conditions hold?"""
        if self.until is not None and story.record.timestamp > self.until.timestamp():
            return False
        names = {place_of(story.record), story.place, story.job_id, _given_id(story.record), story.message_id}
        if self.names and not self.names & names:
            return False
        ends = [] if story.job is None else [story.job.source, story.job.destination]
        if self.servers and not any(end.hostname in self.servers for end in ends):
            return False
        pattern = self.pattern
        return pattern is None or any(end.path == pattern or fnmatch.fnmatchcase(end.path, pattern) for end in ends)


def place_of(record: Record) -> str:
    """Return TOPIC-PARTITION-OFFSET."""
    return f"{record.topic}-{record.partition}-{record.offset}"


def find(bootstrap_servers: str, topics: Topics, query: Query, limit: int) -> tuple[list[Story], int]:
    """Return the newest jobs that match, newest first, at most `limit`; and how many match in all."""
    found: list[tuple[float, int, Story]] = []  # a heap: the oldest is the first to make room
    count = 0
    for record in _records(bootstrap_servers, topics.source, query.since):
        if query.may_match(record):
            for story in _stories(record):
                if query.matches(story):
                    count += 1
                    push = heapq.heappush if len(found) < limit else heapq.heappushpop
                    push(found, (record.timestamp, -count, story))
    stories = [story for _, _, story in sorted(found, reverse=True, key=lambda one: one[:2])]
    _tell(bootstrap_servers, topics, {story.key: story for story in stories})
    return stories, count


def at_place(bootstrap_servers: str, topics: Topics, topic: str, partition: int, offset: int) -> list[Story]:
    """Return the jobs of the message at one place, of T or T-retry; none if the topic does not hold it any more."""
    with broker.Reader(bootstrap_servers, topic) as reader:
        ends = reader.ends()
        if not 0 <= offset < ends.get(partition, 0):
            return []
        for record in reader.scan(until={partition: offset + 1}, start={partition: offset}):
            if (record.partition, record.offset) == (partition, offset):
                break
        else:
            return []
    if topic != topics.retry:
        return _stories(record)
    message = _text(record, header.BUNDLE)
    first, *numbers = (message or _text(record, header.ORIGIN)).rsplit("-", 2)
    if first != topics.source or [number.isdecimal() and len(number) < 20 for number in numbers] != [True, True]:
        return []
    jobs = at_place(bootstrap_servers, topics, first, int(numbers[0]), int(numbers[1]))
    return [story for story in jobs if not message or story.job_id == _given_id(record)]


def tell(bootstrap_servers: str, topics: Topics, stories: Collection[Story]) -> None:
    """Read everything that happened to some jobs."""
    _tell(bootstrap_servers, topics, {story.key: story for story in stories}, deferrals=True)
    for story in stories:
        story.events.sort(key=lambda event: (event.at is None, event.at or 0))


def _stories(record: Record) -> list[Story]:
    """Return the job of a record, or each of those in a message of several."""
    name = _given_id(record) or place_of(record)
    message_id: str | None = None
    try:
        found = None if record.fault else bundle.read(record.value, name)
        if isinstance(found, tuple):
            message_id = str(document.parse(record.value).get("job_id") or name)
    except InvalidMessage:
        found = None
    replays = (record.header(header.REPLAYS) or b"").decode("ascii", "replace")
    text = "as a replay of a dead letter" if replays else ""
    if found is None:
        text = "a message that is not a valid job"
    if message_id is not None:
        text = ", ".join(filter(None, (text, f"in a message of several jobs: {message_id}, {place_of(record)}")))
    return [
        Story(record, job, events=[Event(document.moment(record.timestamp), "submitted", text)], message_id=message_id)
        for job in (found if isinstance(found, tuple) else (found,))
    ]


def _given_id(record: Record) -> str:
    return (record.header(header.JOB_ID) or b"").decode("utf-8", "replace")


def _tell(bootstrap_servers: str, topics: Topics, stories: Mapping[str, Story], *, deferrals: bool = False) -> None:
    """Add to each story, by its key, what the companions of its topic tell."""
    if not stories:
        return
    since = document.moment(min(story.record.timestamp for story in stories.values()))
    _add_letters(bootstrap_servers, topics, stories, since)
    for topic in {topics.results, topics.failed}:
        for record in _records(bootstrap_servers, topic, since):
            if (story := _of(record, stories)) is not None:
                _add_result(story, record)
    if deferrals or any(story.state == "unfinished" for story in stories.values()):
        for record in _records(bootstrap_servers, topics.retry, since):
            if (story := _of(record, stories)) is not None:
                story.deferral = record
                _add_deferral(story, record)


def _add_result(story: Story, record: Record) -> None:
    try:
        result = TransferResult.from_json(record.value)
    except InvalidMessage:
        return
    story.result = result
    at = result.finished_at or document.moment(record.timestamp)
    if result.started_at is not None:
        story.events.append(Event(result.started_at, "began", f"by {result.worker}" if result.worker else ""))
    if result.succeeded:
        size = "" if result.bytes is None else f"{result.bytes} bytes"
        seconds = "" if result.duration_seconds is None else f"in {result.duration_seconds:.3f} s"
        verified = f"verified by {result.verified_by}" if result.verified_by else ""
        text = ", ".join(part for part in (" ".join(filter(None, (size, seconds))), verified) if part)
        story.events.append(Event(at, "skipped" if result.skipped else "done", text))
    else:
        story.events.append(Event(at, "failed", f"{result.error_code}: {result.error}"))
    _add_source_action(story, result, at)


def _add_source_action(story: Story, result: TransferResult, at: datetime) -> None:
    action = None if story.job is None else story.job.options.source_action
    if action in (None, "keep") or result.skipped:
        return
    if not result.source_action_done:
        story.events.append(Event(at, "source left alone", result.source_action_error or ""))
    elif result.succeeded:
        moved = None if story.job is None else story.job.options.move_to
        story.events.append(Event(at, "source deleted" if moved is None else "source moved", moved or ""))


def _add_deferral(story: Story, record: Record) -> None:
    """Add a wait, and the attempts before it that are not told yet."""
    until = _text(record, header.NOT_BEFORE)
    servers = "" if story.job is None else f"{story.job.source.hostname}, {story.job.destination.hostname}"
    waits = "for its time" if record.header(header.RECALLABLE) is None else f"for room at {servers}"
    if since := _text(record, header.WAITING_SINCE):
        waits = f"for a server that is down since {since}: {servers}"
    is_split = story.message_id is not None and record.header(header.ORIGIN) is None
    what, text = ("split off", story.place) if is_split else ("deferred", f"waits {waits}, until {until} at the latest")
    story.events.append(Event(document.moment(record.timestamp), what, text))
    _add_attempts(story, _attempts(record))


def _add_attempts(story: Story, attempts: Collection[Mapping[str, Any]]) -> None:
    for number, attempt in enumerate(attempts, start=1):
        try:
            at = datetime.fromisoformat(str(attempt.get("at")))
        except ValueError:
            at = None
        text = f"{attempt.get('where')}: {attempt.get('what')}"
        event = Event(None if at is None or at.tzinfo is None else at, f"attempt {number} failed", text)
        if event not in story.events:
            story.events.append(event)


def _add_letters(bootstrap_servers: str, topics: Topics, stories: Mapping[str, Story], since: datetime) -> None:
    settled: dict[letters.Place, Record] = {}
    found: dict[letters.Place, tuple[Story, Record, DLQMessage]] = {}
    for record in _records(bootstrap_servers, topics.dlq, since):
        if record.header(header.MARKER) is not None:
            if (note := letters.read_marker(record)) is not None and note[0] in found:
                settled.setdefault(note[0], record)
            continue
        if (story := _of(record, stories)) is not None:
            try:
                found[record.partition, record.offset] = story, record, DLQMessage.from_json(record.value)
            except InvalidMessage:
                continue
    for place, (story, record, message) in found.items():
        marker = settled.get(place)
        how = None if marker is None else marker.header(header.MARKER)
        story.letter = Letter(record, message, how == header.REPLAYED, how == header.DISCARDED)
        attempts = [{"at": one.at, "where": one.where, "what": one.what} for one in message.attempts]
        _add_attempts(story, attempts)
        text = f"{story.letter.name} {message.error_code}: {message.error}"
        story.events.append(Event(message.timestamp, "dead letter", text))
        if marker is not None:
            why = _reason(marker)
            story.events.append(Event(document.moment(marker.timestamp), story.letter.state, why))


def _reason(marker: Record) -> str:
    try:
        return str(json.loads(marker.value or b"").get("reason") or "")
    except (ValueError, AttributeError, RecursionError):
        return ""


def _records(bootstrap_servers: str, topic: str, since: datetime | None) -> Iterator[Record]:
    """Yield the committed records of a topic from a time on; nothing if there is no such topic."""
    with broker.Reader(bootstrap_servers, topic) as reader:
        try:
            ends = reader.ends()
        except BrokerUnavailable:
            if topic in broker.Admin(bootstrap_servers).describe([topic]):
                raise
            return
        start = None if since is None else reader.offsets_at(since.timestamp())
        yield from reader.scan(until=ends, start=start)


def _of(record: Record, stories: Mapping[str, Story]) -> Story | None:
    """Return the story that an outcome belongs to; note the place of a job that was in a message of several."""
    origin = _text(record, header.ORIGIN)
    if message := _text(record, header.BUNDLE):
        story = stories.get(f"{message} {_text(record, header.JOB_ID)}")
        if story is not None:
            story.own_place = origin or place_of(record)  # its first record in T-retry is its origin itself
        return story
    return stories.get(origin)


def _text(record: Record, name: str) -> str:
    return (record.header(name) or b"").decode("utf-8", "replace")


def _attempts(record: Record) -> list[Mapping[str, Any]]:
    try:
        found = json.loads(record.header(header.ATTEMPTS) or b"[]")
    except (ValueError, RecursionError):
        return []
    return [line for line in found if isinstance(line, dict)] if isinstance(found, list) else []
