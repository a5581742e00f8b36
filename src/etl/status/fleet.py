"""All processes as their records in `etl-status` tell: the newest of each, and which of them are silent.

    Fleet()
    .accept(record, now) -> bool       a record of the topic, in order; False: it tells nothing new
    .processes(now) -> [Process]       sorted by key
    .caught_up(now)                    the topic was read to its end: from here on our own clock counts

Nobody writes "dead" for another: a process is silent when it has not spoken for three of its own intervals. That is
measured by the reader's monotonic clock; what was there when the reader came is as old as the broker's times say,
compared with the newest record of the topic. Pure: knows no Kafka client.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from etl.errors import InvalidMessage
from etl.models.status import Snapshot

if TYPE_CHECKING:
    from etl.models.task import Record

SILENT_INTERVALS = 3
SLACK_SECONDS = 1.0  # for the way through the broker
MOST_PROCESSES = 10_000  # a topic that is not ours, or was flooded, fills no memory


@dataclass(frozen=True)
class Process:
    """One process: what it said last, and how long ago that was."""

    key: str
    snapshot: Snapshot
    age_seconds: float
    spoken: bool  # while we listened: its age is certain

    @property
    def silent(self) -> bool:
        """Has it not spoken when it should have? A process that stopped in order is not silent."""
        limit = SILENT_INTERVALS * self.snapshot.interval_seconds + SLACK_SECONDS
        return self.snapshot.state != "stopped" and self.age_seconds > limit

    @property
    def state(self) -> str:
        """What it said of its state, or `silent`."""
        return "silent" if self.silent else self.snapshot.state


@dataclass
class _Heard:
    snapshot: Snapshot
    appended: float  # by the broker's clock
    heard_at: float | None  # monotonic; None: it was there before we were


@dataclass
class Fleet:
    """The processes. One thread at a time."""

    unreadable: int = 0  # records that are no snapshots
    _heard: dict[str, _Heard] = field(default_factory=dict)
    _newest: float = 0.0  # the broker's time of the newest record
    _caught_up_at: float | None = None  # monotonic
    _caught_up_with: float = 0.0  # the broker's time of the newest record at that moment

    def accept(self, record: Record, now: float) -> bool:
        """Take in a record; return whether it says something newer than what was known. `now`: monotonic."""
        self._newest = max(self._newest, record.timestamp)
        key = (record.key or b"").decode("utf-8", "replace")
        if record.value is None and record.fault is None:
            return self._heard.pop(key, None) is not None
        try:
            snapshot = Snapshot.from_json(record.value)
        except InvalidMessage:
            self.unreadable += 1
            return False
        known = self._heard.get(key)
        if snapshot.key != key or (known is None and len(self._heard) >= MOST_PROCESSES):
            self.unreadable += 1
            return False
        is_same_life = known is not None and known.snapshot.incarnation == snapshot.incarnation
        if is_same_life and known is not None and snapshot.seq <= known.snapshot.seq:
            return False
        self._heard[key] = _Heard(snapshot, record.timestamp, None if self._caught_up_at is None else now)
        return True

    def snapshot(self, key: str) -> Snapshot | None:
        """Return what a process said last."""
        return self._heard[key].snapshot if key in self._heard else None

    def appended_at(self, key: str) -> float:
        """Return when the broker got the last record of a process, by its clock."""
        return self._heard[key].appended

    def caught_up(self, now: float) -> None:
        """Note that the topic was read to its end. `now`: monotonic."""
        if self._caught_up_at is None:
            self._caught_up_at, self._caught_up_with = now, self._newest

    def processes(self, now: float) -> list[Process]:
        """Return all that are known. `now`: monotonic."""
        return [Process(key, one.snapshot, *self._age(one, now)) for key, one in sorted(self._heard.items())]

    def _age(self, one: _Heard, now: float) -> tuple[float, bool]:
        if one.heard_at is not None:
            return max(0.0, now - one.heard_at), True
        if self._caught_up_at is None:
            return max(0.0, self._newest - one.appended), False
        return max(0.0, self._caught_up_with - one.appended) + max(0.0, now - self._caught_up_at), False
