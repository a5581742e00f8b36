"""A job inside a process: its record, its history, and whether it is still ours."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from etl.models.wire import Partition

if TYPE_CHECKING:
    from etl.models.checksum import Checksum
    from etl.models.message import FileTransferJob


# What reading costs in memory beside the bytes themselves, measured: a value of a message, as Python objects, and a
# header of a record.
VALUE_BYTES, HEADER_BYTES = 100, 150


class Record(NamedTuple):
    """The parts of a Kafka record that we need. `timestamp` is in seconds since the epoch, UTC.

    `fault` says why the record was not read whole; what was left out is missing from `value` or `headers`.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: float = 0.0
    fault: str | None = None

    def header(self, name: str) -> bytes | None:
        """Return the last header of that name, or None."""
        for key, value in reversed(self.headers):
            if key == name:
                return value
        return None

    @property
    def weight_bytes(self) -> int:
        """Roughly how much memory the record takes together with the job in it; hardly ever less."""
        value = self.value or b""
        values = value.count(b",") + value.count(b"{") + value.count(b"[")
        weight_bytes = len(value) + values * VALUE_BYTES + len(self.key or b"")
        if self.headers:
            weight_bytes += sum([len(name) + len(content) + HEADER_BYTES for name, content in self.headers])
        return weight_bytes


@dataclass(frozen=True)
class Facts:
    """What a server tells about a file: size, and `mtime` in seconds since the epoch (UTC); None if it does not."""

    size_bytes: int | None
    mtime: float | None
    version: str = field(default="", compare=False)  # what the server itself names this version of the file

    def same_file(self, other: Facts) -> bool:
        """Are both sizes and times known and equal? Times are compared to the second: FTP tells no more."""
        return (
            self.size_bytes is not None
            and self.mtime is not None
            and other.mtime is not None
            and self.size_bytes == other.size_bytes
            and int(self.mtime) == int(other.mtime)
        )


@dataclass(frozen=True)
class Origin:
    """Where a job was first delivered. It names the job's partial files, and the job itself if it has no `job_id`."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}-{self.offset}"


@dataclass(frozen=True)
class Attempt:
    """One entry of a job's history: `at` is ISO 8601 in UTC, `where` a process, `what` an error code and message."""

    at: str
    where: str
    what: str


class Span(NamedTuple):
    """A period by the wall clock, and its length by the monotonic clock, which is right even if the clock is set."""

    started_at: float  # seconds since the epoch, UTC; so is `finished_at`
    finished_at: float
    seconds: float


class Start(NamedTuple):
    """When a run began, by both clocks."""

    wall: float  # seconds since the epoch, UTC
    monotonic: float

    @classmethod
    def now(cls) -> Start:
        """Return this instant."""
        return cls(time.time(), time.monotonic())

    def until_now(self) -> Span:
        """Return the period from this start until now."""
        return Span(self.wall, time.time(), time.monotonic() - self.monotonic)


class Phase:
    """What a run is busy with."""

    CONNECTING = "connecting"
    READING = "reading"
    STREAMING = "streaming"
    VERIFYING = "verifying"
    PUBLISHING = "publishing"
    SOURCE_ACTION = "source-action"


class Progress:
    """How far one run of a job has come. Written by its lane, read by any thread without a lock: for display only."""

    __slots__ = ("moved_bytes", "phase", "resumed_at", "size_bytes")

    def __init__(self) -> None:
        self.phase = Phase.CONNECTING
        self.size_bytes: int | None = None  # of the source, once it is known
        self.resumed_at = 0  # the run goes on at this offset
        self.moved_bytes = 0  # read at the source, from there on


SCAN_ANEW = math.inf  # for `Task.orphan_scan_since`: no listing that exists is new enough


@dataclass(frozen=True)
class Unpublished:
    """A partial file that is whole and proven, and only lacks its final name."""

    partial: str
    size_bytes: int
    verified_by: str
    facts: Facts  # the source's, as it was read
    checksum: str | None = None  # None: nothing but its size was proven, or it was sent by several runs
    published_as: str | None = None  # the partial name it had: only its checksum file, under `partial`, is left to do

    @property
    def written_as(self) -> str:
        """The partial name that the file itself had."""
        return self.published_as or self.partial

    @property
    def is_proven(self) -> bool:
        """Was all that can be compared?"""
        return self.checksum is not None or self.verified_by != "none"


@dataclass(eq=False)
class Task:
    """One job in this process. Its mutable state belongs to its holder: dispatcher, then lane, then outcomes."""

    record: Record  # as delivered last, from T or T-retry
    origin: Origin
    job: FileTransferJob
    attempts: list[Attempt] = field(default_factory=list)  # only failures that spent an attempt
    waiting_since: float | None = None  # wall clock: when its server went down; None if the job is not waiting for one
    outages: int = 0  # outages met in a row
    free_runs: int = 0  # failed runs that were not the job's fault, and spent no attempt
    replays: int = 0
    bundle: Origin | None = None  # the message of several jobs that it was in
    recallable: bool = False  # once deferred, it may come back before its time, when its servers have room for it
    published: bool = False  # the publication of the copy is committed; only the source action is left
    unproven: bool = False  # that it is published was read from a header of T-retry, which others may have written
    # These four belong to the copy of a published job; they are kept for its result.
    verified_by: str | None = None
    checksum: str | None = None
    facts: Facts | None = None  # size and time of the source, as it was read
    start: Start | None = None  # when the copying began
    remarks: dict[str, Any] = field(default_factory=dict)  # fields of the result that say what was not as usual
    unpublished: Unpublished | None = None  # an upload whose rename failed: this process goes on with it
    digests: dict[str, str] = field(default_factory=dict)  # by algorithm: of the bytes that were sent last
    expected: tuple[Checksum, ...] = ()  # beside the job's own: of the checksum file that was found beside the source
    leaves_partial: bool = False  # a partial file of this process may be left at the destination
    # These six are `resuming.py`'s.
    version: str | None = None  # of the source: a digest of its facts; None: the file is not gone on with
    part: str | None = None  # the path of a partial file that is kept when the file is cut
    resumed_at: int = 0  # the offset at which the copy went on, of the run that is on, or was last
    trail: Any = None  # the hash of what was read of that version of the source, a `Trail`
    held: int = 0  # runs at whose beginning its server still held the partial file
    doubts: int = 0  # runs that failed, one after the other, before the partial file was proven
    epoch: int = 0  # number of the partition's assignment in which the record was received
    # Before copying, look for partial files of earlier runs in a folder listing taken at or after this time
    # (monotonic); None if there is no need to.
    orphan_scan_since: float | None = None
    owned: Callable[[], bool] = lambda: True  # is the record's partition still ours, as far as this process can know?
    size_bytes: int = 0  # weight of the record, counted against the window
    progress: Progress = field(default_factory=Progress)  # of the run that is on, or was last
    partition: Partition = field(init=False)

    def __post_init__(self) -> None:
        self.partition = Partition(self.record.topic, self.record.partition)
