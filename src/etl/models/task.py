"""A job at work in a process: the record it came in, what was tried before, and whether it is still ours."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from etl.models.wire import Partition

if TYPE_CHECKING:
    from etl.models.message import FileTransferJob


class Record(NamedTuple):
    """Kafka's envelope, as far as we need it. `timestamp` in seconds since the epoch, UTC."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: float = 0.0

    def header(self, name: str) -> bytes | None:
        """Return the last header of that name, or None."""
        for key, value in reversed(self.headers):
            if key == name:
                return value
        return None


@dataclass(frozen=True)
class Facts:
    """What a server says of a file: `size_bytes`, and `mtime` in seconds since the epoch (UTC); None: not told."""

    size_bytes: int | None
    mtime: float | None

    def same_file(self, other: Facts) -> bool:
        """Are size and time (to the second, all that FTP can carry) known and equal?"""
        return (
            self.size_bytes is not None
            and self.mtime is not None
            and other.mtime is not None
            and self.size_bytes == other.size_bytes
            and int(self.mtime) == int(other.mtime)
        )


@dataclass(frozen=True)
class Origin:
    """Where a job was first delivered; names its partial files and, without a `job_id`, the job."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}-{self.offset}"


@dataclass(frozen=True)
class Attempt:
    """One line of a job's history: `at` (UTC, ISO 8601), `where` (process), `what` (code and message)."""

    at: str
    where: str
    what: str


class Span(NamedTuple):
    """From when to when something lasted by the wall clock, and for how long; a clock that is set changes no length."""

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
        """Return what passed since then."""
        return Span(self.wall, time.time(), time.monotonic() - self.monotonic)


SCAN_ANEW = math.inf  # for `Task.orphan_scan_since`: no listing is new enough but one of its own


@dataclass(frozen=True)
class Unpublished:
    """A partial file that is whole and proven, and only lacks its final name."""

    partial: str
    size_bytes: int
    verified_by: str
    facts: Facts  # the source's, as it was read


@dataclass(eq=False)
class Task:
    """One job in this process. Mutable state belongs to whoever holds the task: dispatcher, lane, then outcomes."""

    record: Record  # as delivered now (from T or T-retry)
    origin: Origin
    job: FileTransferJob
    attempts: list[Attempt] = field(default_factory=list)  # those that spent an attempt
    waiting_since: float | None = None  # wall clock: since when its server has been down; None: it is not waiting
    outages: int = 0  # how often in a row it met an outage
    free_runs: int = 0  # that failed through no fault of the job, and spent no attempt
    replays: int = 0
    recallable: bool = (
        False  # when it is set aside: it may come back before its time, once its servers have room for it
    )
    published: bool = False  # the copy is under its final name and committed so; only the source action is left
    verified_by: str | None = None  # carried from publish to the result of a published job
    facts: Facts | None = None  # the same: the source's, as it was read
    start: Start | None = None  # the same: of the copying
    remarks: dict[str, Any] = field(default_factory=dict)  # fields of the result: what was not as usual
    unpublished: Unpublished | None = None  # what the next run in this process may go on with
    leaves_partial: bool = False  # a partial file of this process may lie at the destination
    epoch: int = 0  # of the assignment in which the record was received
    # Partial files of earlier runs are looked for first, by a listing that is no older (monotonic clock); None: not.
    orphan_scan_since: float | None = None
    # Is the partition of `record` still ours, as far as this process can know?
    owned: Callable[[], bool] = lambda: True
    size_bytes: int = 0  # of the record, for the window
    partition: Partition = field(init=False)  # of the record

    def __post_init__(self) -> None:
        self.partition = Partition(self.record.topic, self.record.partition)
