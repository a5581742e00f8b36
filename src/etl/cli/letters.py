"""The dead letters of a topic as commands see them: their place, whether they were replayed, and how to choose some."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from etl import broker
from etl.errors import InvalidMessage
from etl.models import DLQMessage, header
from etl.models.message import FLAT_FIELDS
from etl.models.task import Record

_AGE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_PLACE = re.compile(r"\d{1,9}:\d{1,19}")

Place = tuple[int, int]  # partition, offset


@dataclass(frozen=True)
class Letter:
    """A dead letter in its place. `replayed` is true once it was sent back to its topic."""

    record: Record
    message: DLQMessage
    replayed: bool

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
    replayed: bool = False  # include those that were already replayed
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
            (self.replayed or not letter.replayed)
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
    replayed: set[Place] = set()
    strangers: list[str] = []
    with broker.Reader(bootstrap_servers, topic) as reader:
        for record in reader.scan(until=ends):
            if record.header(header.MARKER) is not None:
                replayed |= _marked(record)
                continue
            try:
                records.append((record, DLQMessage.from_json(record.value)))
            except InvalidMessage:
                strangers.append(f"{record.partition}:{record.offset}")
    letters = [Letter(record, message, (record.partition, record.offset) in replayed) for record, message in records]
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


def marker(letter: Letter) -> bytes:
    """Return the value of the note that a dead letter was replayed."""
    partition, offset = letter.place
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"replayed": {"partition": partition, "offset": offset}, "timestamp": at}).encode()


def _marked(record: Record) -> set[Place]:
    try:
        named: Mapping[str, Any] = json.loads(record.value or b"")["replayed"]
        return {(int(named["partition"]), int(named["offset"]))}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return set()  # another program's record


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
