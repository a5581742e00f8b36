"""The record that a process writes of itself to `etl-status`: its shape, its key and its bounds.

One record is a whole snapshot, and the newest one of a key counts. Fields without a value are left out, readers ignore
what they do not know, and every list is cut: `more` says how many entries were left off. Times are ISO 8601 in UTC by
the clock of the writing process; those called `oldest_at` by the broker's or the producer's. Knows no Kafka client, and
nothing of how a process works.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from etl.errors import InvalidMessage
from etl.models import document
from etl.models.field import Moment

LIMIT_BYTES = 16_000  # of a record
TRANSFERS, SERVERS, PARTITIONS = 32, 64, 64  # listed at most
TEXT_CHARACTERS = 300  # of a path or an error
BOUNDS = document.Bounds(256_000, 20_000, 8)  # what is larger is not ours

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=4096)]
Counts = Annotated[dict[str, Count], Field(max_length=200)]

Kind = Literal["consumer", "api", "scheduler", "appliance"]
State = Literal["starting", "waiting", "running", "draining", "stopped"]
BreakerState = Literal["closed", "open", "half-open"]


class Part(BaseModel):
    """Base of everything below."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Lanes(Part):
    """How many transfers can run at once, and how many do."""

    size: Count = 0
    busy: Count = 0


class Window(Part):
    """The unfinished jobs in memory; `behind`: records of its partitions that were not read yet."""

    jobs: Count = 0
    limit: Count = 0
    ready: Count = 0
    delayed: Count = 0
    behind: Count = 0


class Parked(Part):
    """What waits in T-retry, in the partitions of this process; `next_due_at`: when the next of them is read.

    `busy` of them wait for a server that is up, and has no room. While a server is down it is 0: nothing tells then
    which of them wait for that one.
    """

    jobs: Count = 0
    busy: Count = 0
    next_due_at: Moment | None = None


class PartitionStatus(Part):
    """One partition: everything before `committed` is done, `read` is the next record to be read, `end` the end.

    `unfinished` counts received records without a committed outcome. `first` is the offset of the first of them, and
    `oldest_at` its time; both are missing where none was received.
    """

    topic: Text
    partition: Count
    committed: Count = 0
    read: Count = 0
    end: Count = 0
    unfinished: Count = 0
    first: Count | None = None
    oldest_at: Moment | None = None

    @property
    def backlog(self) -> int:
        """Records that are not done: received ones, and those behind."""
        return self.unfinished + max(0, self.end - self.read)


class Sessions(Part):
    """The sessions with a server; `shrunk_to`: what the server's refusals left of the limit."""

    open: Count = 0
    idle: Count = 0
    limit: Count = 0
    shrunk_to: Count | None = None


class Fault(Part):
    """An error: its code and text."""

    code: Text
    text: Text = ""


class LastError(Fault):
    """The last job that failed for good."""

    at: Moment
    place: Text = ""


class ServerStatus(Part):
    """One server as this process sees it, under the name by which it was met first.

    `waiting` jobs are here in memory, `deferred` ones were put off untried since it has been down. `error_share` is 0
    to 1, of the runs of the last minute. `held_by` names whoever holds it, or its jobs, back. `bandwidth_limit` is what
    this process may move now, in bytes per second and each direction.
    """

    name: Text
    breaker: BreakerState = "closed"
    since: Moment | None = None  # since when it has been down
    next_probe_at: Moment | None = None
    error: Fault | None = None  # that opened the breaker
    lanes: Count = 0
    waiting: Count = 0
    deferred: Count = 0
    sessions: Sessions = Sessions()
    jobs_per_second: Number = 0.0
    bytes_per_second: Number = 0.0
    error_share: Number = 0.0
    round_trip_seconds: Number | None = None
    held_by: Text | None = None
    bandwidth_limit: Number | None = None


def down_since(rows: Iterable[ServerStatus]) -> datetime | None:
    """Return since when a server is down, of which these are the words of several processes: the first to find it."""
    return min((row.since for row in rows if row.since is not None and row.breaker != "closed"), default=None)


class TransferStatus(Part):
    """A running job. `rate` is in bytes per second, over the last ten seconds.

    `eta_seconds` is missing while the size is unknown, nothing moves, or the transfer is younger than two seconds.
    `stalled_seconds`: for how long no byte has moved, once that is longer than two seconds.
    """

    job_id: Text | None = None
    place: Text
    attempt: Count = 1
    source: Text
    destination: Text
    phase: Text
    size: Count | None = None
    moved: Count = 0
    began_at: Moment
    rate: Number = 0.0
    eta_seconds: Number | None = None
    stalled_seconds: Number | None = None
    group_id: Text | None = None


class HistogramStatus(Part):
    """Counts of each bucket alone, the last one beyond all bounds; `etl.outcomes.totals` has the bounds."""

    counts: tuple[Count, ...] = ()
    sum: Number = 0.0


class ServerTotals(Part):
    """What went on with a server since the start of the process."""

    bytes_in: Count = 0  # read from it
    bytes_out: Count = 0  # written to it
    connects: Count = 0
    logins_refused: Count = 0


class TotalsStatus(Part):
    """Counters since the start of the process; they only rise."""

    jobs: Counts = {}  # done, skipped, failed
    failures: Counts = {}  # by error code
    retries: Counts = {}  # attempt, outage, busy, not_before, held
    servers: Annotated[dict[str, ServerTotals], Field(max_length=200)] = {}  # those beyond 64 under "other"
    commits: Count = 0
    commits_failed: Count = 0
    duration_seconds: HistogramStatus = HistogramStatus()
    size_bytes: HistogramStatus = HistogramStatus()
    wait_seconds: HistogramStatus = HistogramStatus()
    commit_seconds: HistogramStatus = HistogramStatus()


class More(Part):
    """How many entries of each list were left off."""

    transfers: Count = 0
    servers: Count = 0
    partitions: Count = 0


class Resources(Part):
    """What the process takes."""

    rss_bytes: Count = 0
    cpu_seconds: Number = 0.0
    threads: Count = 0
    fds: Count = 0


class Snapshot(Part):
    """Everything that a process says of itself. `incarnation` and `seq`, not clocks, say which of two is newer."""

    v: Literal[1] = 1
    kind: Kind
    id: Text  # INSTANCE/SLOT
    group: Text = ""
    topic: Text = ""
    incarnation: Text
    seq: Count
    at: Moment
    started_at: Moment
    interval_seconds: Annotated[float, Field(gt=0, le=3600)]  # the next record comes within that time
    state: State
    reason: Text | None = None
    held_by: Text | None = None  # whoever holds its topic or its group back
    version: Text = ""
    host: Text = ""
    pid: Count = 0
    lanes: Lanes = Lanes()
    window: Window = Window()
    parked: Parked = Parked()
    partitions: tuple[PartitionStatus, ...] = ()
    servers: tuple[ServerStatus, ...] = ()
    transfers: tuple[TransferStatus, ...] = ()
    more: More = More()
    totals: TotalsStatus = TotalsStatus()
    last_error: LastError | None = None
    resources: Resources = Resources()
    settings_hash: Text = ""

    @property
    def key(self) -> str:
        """The key of its records: the same after a restart of the process."""
        return f"{self.kind}/{self.group}/{self.topic}/{self.id}"

    def to_json(self) -> bytes:
        """Return the record; while it is too large, the list that takes the most loses the end of it."""
        kept = _cut(self, transfers=TRANSFERS, servers=SERVERS, partitions=PARTITIONS)
        written = _dump(kept)
        while len(written) > LIMIT_BYTES:
            lists = {name: getattr(kept, name) for name in More.model_fields}
            largest = max(lists, key=lambda name: sum(len(_dump(row)) for row in lists[name]))
            if not lists[largest]:
                kept = kept.model_copy(update={"totals": kept.totals.model_copy(update={"servers": {}})})
                return _dump(kept)
            kept = _cut(kept, **{largest: len(lists[largest]) * 3 // 4})
            written = _dump(kept)
        return written

    @classmethod
    def from_json(cls, text: bytes | None) -> Self:
        """Read a record. Raises InvalidMessage."""
        try:
            return cls.model_validate(document.parse(text, BOUNDS))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in fault["loc"])
            raise InvalidMessage(f"{where[:100]}: {fault['msg'][:200]}") from None


def _cut(snapshot: Snapshot, **most: int) -> Snapshot:
    """Return a snapshot with at most so many entries of each list, and the others counted."""
    lists = {name: getattr(snapshot, name) for name in most}
    more = {name: getattr(snapshot.more, name) + max(0, len(rows) - most[name]) for name, rows in lists.items()}
    kept = {name: rows[: most[name]] for name, rows in lists.items()}
    return snapshot.model_copy(update={**kept, "more": snapshot.more.model_copy(update=more)})


def _dump(part: Part) -> bytes:
    return part.model_dump_json(exclude_none=True).encode()
