"""The dead letters of a topic: their place, whether they are settled, how to choose some, and how to settle them."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from etl import broker
from etl.errors import InvalidMessage
from etl.models import DLQMessage, FileTransferJob, header
from etl.models.message import FLAT_FIELDS
from etl.models.task import Record
from etl.models.wire import Message

_AGE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_PLACE = re.compile(r"\d{1,9}:\d{1,19}")

# Most dead letters, and most bytes, in one transaction: it must end well within its time limit.
BATCH_LETTERS = 1000
BATCH_BYTES = 8 * 1024 * 1024

Place = tuple[int, int]  # partition, offset


@dataclass(frozen=True)
class Letter:
    """A dead letter in its place. `replayed` is true once it was sent back to its topic, `discarded` once given up."""

    record: Record
    message: DLQMessage
    replayed: bool
    discarded: bool = False

    @property
    def settled(self) -> bool:
        """Is nothing left to be done about it?"""
        return self.replayed or self.discarded

    @property
    def state(self) -> str:
        """What became of it, in a word."""
        return "discarded" if self.discarded else "replayed" if self.replayed else "waiting"

    @property
    def place(self) -> Place:
        """Its partition and offset in the dead-letter topic."""
        return self.record.partition, self.record.offset

    @property
    def name(self) -> str:
        """The place as a user types it: PARTITION:OFFSET."""
        return f"{self.record.partition}:{self.record.offset}"

    @property
    def job_id(self) -> str | None:
        """The id of the job: its own, or the one made from where it was first delivered."""
        message = self.message
        if message.job_id or message.original_topic is None:
            return message.job_id
        return f"{message.original_topic}-{message.original_partition}-{message.original_offset}"

    @property
    def replays(self) -> int:
        """How often the job had already been replayed before it became this dead letter."""
        count = (self.record.header(header.REPLAYS) or b"0").decode("ascii", "replace")
        return int(count) if count.isdecimal() and len(count) < 10 else 0

    def endpoint(self, side: str) -> tuple[str, str]:
        """Return server and path of `source` or `destination`; empty if the message does not name them."""
        message = self.message.original_message
        nested = message.get(side)
        found = {"hostname": "", "path": ""}
        if isinstance(nested, dict):
            found.update({part: str(nested.get(part) or "") for part in found})
        else:
            for flat_name, location in FLAT_FIELDS.items():
                if location[0] == side and message.get(flat_name):
                    found[location[1]] = str(message[flat_name])
        return found["hostname"], found["path"]

    def shown(self, side: str) -> str:
        """Return an endpoint in readable form: SERVER:/path."""
        return ":".join(self.endpoint(side)).strip(":")

    def to_dict(self) -> dict[str, Any]:
        """Return place, state and message as a JSON object."""
        return {
            "partition": self.record.partition,
            "offset": self.record.offset,
            "replayed": self.replayed,
            "discarded": self.discarded,
            "replays": self.replays,
            **self.message.to_dict(),
        }


@dataclass(frozen=True)
class Filters:
    """Which dead letters to choose. A filter that is not given matches all."""

    codes: frozenset[str] = frozenset()
    servers: frozenset[str] = frozenset()
    path: str | None = None
    job_ids: frozenset[str] = frozenset()
    places: frozenset[Place] = frozenset()  # together with `names`: one of either must match
    names: frozenset[str] = frozenset()  # job ids
    older_than: timedelta | None = None
    newer_than: timedelta | None = None
    replayed: bool = False  # include those that were already replayed or discarded
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def are_given(self) -> bool:
        """Is there any filter?"""
        return self != Filters(replayed=self.replayed, now=self.now)

    def match(self, letter: Letter) -> bool:
        """Do all filters match this dead letter?"""
        ends = [letter.endpoint(side) for side in ("source", "destination")]
        age = self.now - letter.message.timestamp
        named = bool(self.places or self.names)
        return (
            (self.replayed or not letter.settled)
            and (not self.codes or letter.message.error_code.upper() in self.codes)
            and (not self.servers or any(server.upper() in self.servers for server, _ in ends))
            and (self.path is None or any(fnmatch.fnmatchcase(path, self.path) for _, path in ends))
            and (not self.job_ids or letter.job_id in self.job_ids)
            and (not named or letter.place in self.places or letter.job_id in self.names)
            and (self.older_than is None or age >= self.older_than)
            and (self.newer_than is None or age < self.newer_than)
        )


def read(bootstrap_servers: str, topic: str) -> tuple[list[Letter], list[str]]:
    """Read all dead letters committed by now.

    Reads up to the last offsets, and waits for transactions that are still open: a marker behind one of them counts.

    Returns:
        The dead letters, oldest first, and the places (PARTITION:OFFSET) of records that are not dead letters.
    """
    with broker.Reader(bootstrap_servers, topic, committed=False) as reader:
        ends = reader.ends()
    records: list[tuple[Record, DLQMessage]] = []
    settled: dict[Place, bytes] = {}
    strangers: list[str] = []
    with broker.Reader(bootstrap_servers, topic) as reader:
        for record in reader.scan(until=ends):
            if record.header(header.MARKER) is not None:
                if (note := read_marker(record)) is not None:
                    settled.setdefault(*note)
                continue
            try:
                records.append((record, DLQMessage.from_json(record.value)))
            except InvalidMessage:
                strangers.append(f"{record.partition}:{record.offset}")
    letters = []
    for record, message in records:
        how = settled.get((record.partition, record.offset))
        letters.append(Letter(record, message, how == header.REPLAYED, how == header.DISCARDED))
    return sorted(letters, key=lambda letter: (letter.message.timestamp, letter.place)), strangers


def choose_cuts(found: Sequence[Letter], older_than: timedelta | None, keep: int | None) -> dict[int, int]:
    """Return, by partition, the offset before which dead letters may be deleted.

    A dead letter stays if it is not `older_than`, if it is among the newest `keep`, or if one before it stays. Its age
    counts from when Kafka got it.
    """
    now = datetime.now(UTC).timestamp()
    newest_first = sorted(found, key=lambda letter: (letter.record.timestamp, letter.place), reverse=True)
    cuts: dict[int, int] = {}
    first_kept: dict[int, int] = {}
    for rank, letter in enumerate(newest_first):
        partition, offset = letter.place
        is_old = older_than is None or now - letter.record.timestamp >= older_than.total_seconds()
        if is_old and (keep is None or rank >= keep):
            cuts[partition] = max(cuts.get(partition, 0), offset + 1)
        else:
            first_kept[partition] = min(first_kept.get(partition, offset), offset)
    return {partition: min(cut, first_kept.get(partition, cut)) for partition, cut in cuts.items()}


def replay(letter: Letter, source: str) -> tuple[Message, Message]:
    """Return the original message for the topic `source`, byte for byte, and the note that it was replayed."""
    original = letter.message.original_bytes()
    # Keep the producer's own headers, which belong to the message. Of ours, only these two outlast a replay.
    headers = [pair for pair in letter.record.headers if not pair[0].startswith("etl-")]
    if letter.job_id:
        headers.append((header.JOB_ID, letter.job_id.encode("utf-8", "replace")))
    headers.append((header.REPLAYS, str(letter.replays + 1).encode()))
    return Message(source, _key(original), original, tuple(headers)), _note(letter, header.REPLAYED)


def discard(letter: Letter, reason: str) -> Message:
    """Return the note that a dead letter was given up, and why."""
    return _note(letter, header.DISCARDED, reason=reason)


def transactional_id(topic: str) -> str:
    """Return the transactional id of everybody who settles dead letters of this topic: the next one fences the last."""
    return f"etl-replay-{topic}"


def batches(chosen: Iterable[Letter]) -> Iterator[list[Letter]]:
    """Yield the dead letters in batches that fit into one transaction each."""
    batch: list[Letter] = []
    size = 0
    for letter in chosen:
        weight = len(letter.record.value or b"")
        if batch and (len(batch) >= BATCH_LETTERS or size + weight > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(letter)
        size += weight
    if batch:
        yield batch


def _key(original: bytes | None) -> bytes | None:
    """Return the key that keeps jobs of one destination in order; None if the message is not a job."""
    try:
        return FileTransferJob.from_json(original).ordering_key
    except InvalidMessage:
        return None


def _note(letter: Letter, how: bytes, **more: str) -> Message:
    """Return the record beside a dead letter, in its partition, which says that it is settled and how."""
    record = letter.record
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    value = {how.decode(): {"partition": record.partition, "offset": record.offset}, "timestamp": at, **more}
    headers = ((header.MARKER, how),)
    return Message(record.topic, record.key, json.dumps(value).encode(), headers, partition=record.partition)


def read_marker(record: Record) -> tuple[Place, bytes] | None:
    """Return the place of the dead letter that a note settles, and how; None for another program's record."""
    try:
        found: Mapping[str, Any] = json.loads(record.value or b"")
        for how in (header.REPLAYED, header.DISCARDED):
            if named := found.get(how.decode()):
                return (int(named["partition"]), int(named["offset"])), how
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        pass
    return None


def parse_age(text: str) -> timedelta:
    """Return the duration meant by a text such as `90s`, `2h` or `3d`. Raises ValueError."""
    found = _AGE.fullmatch(text.strip().lower())
    if not found:
        raise ValueError(f"{text!r} is not an age such as 30m, 2h or 3d")
    return timedelta(**{_UNITS[found[2]]: float(found[1])})


def parse_names(texts: Iterable[str]) -> tuple[frozenset[Place], frozenset[str]]:
    """Return the places (PARTITION:OFFSET) and the job ids among `texts`."""
    places, names = set(), set()
    for text in texts:
        if _PLACE.fullmatch(text):
            partition, offset = text.split(":")
            places.add((int(partition), int(offset)))
        else:
            names.add(text)
    return frozenset(places), frozenset(names)
