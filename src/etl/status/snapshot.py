"""Builds the snapshot of this consumer: asks its parts, and measures rates between two snapshots.

Belongs to the thread `status`; the parts are asked without stopping any of them. Changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import math
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from etl.errors import OnHold, UnknownServer, code_of
from etl.logs import redact
from etl.models import document
from etl.models import status as record
from etl.models.task import Phase
from etl.outcomes.totals import OTHER, SERVERS_NAMED
from etl.retry import tiers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from etl.broker import GroupConsumer
    from etl.config import ConfigLoader
    from etl.dispatch.dispatcher import Dispatcher
    from etl.dispatch.servers import Report
    from etl.identity import Identity
    from etl.intake.partitions import Partitions
    from etl.lanes.lanes import Lanes
    from etl.lanes.run import Run
    from etl.models.server import ServerConfig
    from etl.outcomes.ledger import Ledger
    from etl.outcomes.totals import Totals
    from etl.sessions.pools import Pools
    from etl.topics.names import Topics

BUSY_SECONDS, IDLE_SECONDS = 2.0, 5.0  # between two snapshots: while a transfer runs, and otherwise
RATE_SECONDS = 10.0  # over which rates are measured
YOUNG_SECONDS = 2.0  # a transfer's first ones tell nothing of its rate; and so long it may pause
STATES: dict[str, record.BreakerState] = {"closed": "closed", "open": "open", "half open": "half-open"}


class Speed:
    """How fast a count has risen lately: over the last RATE_SECONDS, as far as it was looked at or since it began."""

    def __init__(self, began: float | None = None) -> None:
        self._samples: deque[tuple[float, int]] = deque([] if began is None else [(began, 0)])
        self._moved_at = -math.inf  # when it rose last

    def note(self, now: float, count: int) -> None:
        """Look at the count."""
        if not self._samples or count != self._samples[-1][1]:
            self._moved_at = now
        self._samples.append((now, count))
        while len(self._samples) > 2 and now - self._samples[1][0] >= RATE_SECONDS:
            self._samples.popleft()

    @property
    def per_second(self) -> float:
        """The rate."""
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        return max(0.0, (after - before) / (last - first)) if last > first else 0.0

    def still_for(self, now: float) -> float:
        """Return for how many seconds the count has not risen."""
        return now - self._moved_at


@dataclass
class Snapshots:
    """The snapshots of one consumer. `state` and `reason` are set by the consumer's main thread."""

    me: Identity
    topics: Topics
    config: ConfigLoader
    group: GroupConsumer
    partitions: Partitions
    ledger: Ledger
    dispatcher: Dispatcher
    pools: Pools
    lanes: Lanes
    totals: Totals
    retry_blocks: int = 1
    state: record.State = "running"
    reason: str | None = None
    held_by: str | None = None  # the hold of its topic or group
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # guards what follows
    _seq: int = 0
    _speeds: dict[int, Speed] = field(default_factory=dict)  # of transfers, by the number of the run
    _server_speeds: dict[str, Speed] = field(default_factory=dict)  # of their bytes
    _job_speeds: dict[tuple[str, str], Speed] = field(default_factory=dict)  # of their runs, and of those that failed
    _started_at: float = field(default_factory=time.time)
    _hash: str = ""
    _version: str = field(default_factory=lambda: importlib.metadata.version("etl-file-sync"))

    @property
    def key(self) -> str:
        """The key of the records."""
        return f"consumer/{self.me.group_id}/{self.me.topic}/{self.me.name}"

    def news(self) -> object:
        """Return what is told at once when it changes, and is cheap to know."""
        return self.state, self.held_by, self.dispatcher.stats()["down"], bool(self.lanes.runs())

    def build(self) -> record.Snapshot:
        """Return the snapshot of this moment. Any thread."""
        with self._lock:
            return self._build()

    def _build(self) -> record.Snapshot:
        now, wall = self.clock(), self.wall()
        self._seq += 1
        runs = self.lanes.runs()
        busy = bool(runs)
        partitions = self._partitions()
        reports = self.dispatcher.servers()
        totals = self._totals(runs, now)
        records, _ = self.dispatcher.unfinished
        settings = self.config.settings
        stats = self.dispatcher.stats()
        return record.Snapshot(
            kind="consumer",
            id=self.me.name,
            group=self.me.group_id,
            topic=self.me.topic,
            incarnation=self.me.token,
            seq=self._seq,
            at=_time(wall),
            started_at=_time(self._started_at),
            interval_seconds=BUSY_SECONDS if busy else IDLE_SECONDS,
            held_by=self.held_by and _middle(self.held_by),
            state=self._state(busy=busy),
            reason=self.reason,
            version=self._version,
            host=os.uname().nodename,
            pid=os.getpid(),
            lanes=record.Lanes(size=settings.workers, busy=len({id(run.lease) for run in runs})),
            window=record.Window(
                jobs=records,
                limit=settings.window_records,
                ready=stats["ready"],
                delayed=stats["waiting"] - stats["ready"],
                behind=sum(max(0, row.end - row.read) for row in partitions if row.topic == self.topics.source),
            ),
            parked=self._parked(partitions, reports),
            partitions=tuple(sorted(partitions, key=_by_trouble)),
            servers=tuple(self._servers(reports, now, wall)),
            transfers=tuple(self._transfers(runs, now)),
            totals=totals,
            last_error=None if self.totals.last_error is None else record.LastError(**self.totals.last_error),
            resources=resources(),
            settings_hash=self._settings_hash(),
        )

    def _state(self, *, busy: bool) -> record.State:
        if self.state != "running":
            return self.state
        return "running" if busy or self.group.assigned() else "waiting"

    def _partitions(self) -> list[record.PartitionStatus]:
        rows = []
        for standing in self.ledger.standings():
            behind = self.group.behind(standing.partition)
            rows.append(
                record.PartitionStatus(
                    topic=standing.partition.topic,
                    partition=standing.partition.partition,
                    committed=standing.committed,
                    read=standing.read,
                    end=standing.read + behind,
                    unfinished=standing.unfinished,
                    first=standing.first,
                    oldest_at=None if standing.first_at is None else _time(standing.first_at),
                )
            )
        return rows

    def _parked(self, partitions: Iterable[record.PartitionStatus], reports: Mapping[str, Report]) -> record.Parked:
        count, due = self.partitions.count_deferred(self.topics.retry)
        busy = 0
        if all(report.error is None for report in reports.values()):
            busy = sum(
                row.end - row.read
                for row in partitions
                if row.topic == self.topics.retry and tiers.kind_of(row.partition, self.retry_blocks)[1]
            )
        return record.Parked(jobs=count, busy=busy, next_due_at=None if due is None else _time(due))

    def _servers(self, reports: Mapping[str, Report], now: float, wall: float) -> list[record.ServerStatus]:
        pools = {name: pool for names, pool in self.pools.stats().items() for name in names.split("/")}
        rows = []
        for name, report in reports.items():
            pool = pools.get(name, {})
            limit, limit_now = pool.get("limit", 0), pool.get("limit_now", 0)
            speed = self._server_speeds.get(name)
            runs, failures = (self._job_speeds.setdefault((name, what), Speed()) for what in ("runs", "failures"))
            runs.note(now, report.runs)
            failures.note(now, report.failures)
            share = failures.per_second / runs.per_second if runs.per_second else 0.0
            is_down = report.state != "closed"
            hold = str(report.error) if isinstance(report.error, OnHold) else None
            rows.append(
                record.ServerStatus(
                    name=name,
                    breaker=STATES[report.state],
                    since=_time(wall - report.down_seconds) if is_down else None,
                    next_probe_at=_time(wall + report.next_probe_seconds) if is_down else None,
                    error=None if report.error is None or hold else _fault(report.error),
                    lanes=report.lanes,
                    waiting=report.waiting,
                    deferred=report.deferred,
                    sessions=record.Sessions(
                        open=pool.get("open", 0),
                        idle=pool.get("idle", 0),
                        limit=limit,
                        shrunk_to=limit_now if limit_now < limit else None,
                    ),
                    jobs_per_second=round(runs.per_second, 2),
                    bytes_per_second=0.0 if speed is None else round(speed.per_second, 1),
                    error_share=round(min(1.0, share), 3),
                    held_by=hold and _middle(hold),
                    bandwidth_limit=self._bandwidth(name),
                    round_trip_seconds=report.round_trip_seconds and round(report.round_trip_seconds, 6),
                )
            )
        rows.sort(key=lambda row: (row.breaker == "closed", -row.lanes - row.waiting, -row.jobs_per_second, row.name))
        return rows

    def _bandwidth(self, name: str) -> float | None:
        with contextlib.suppress(UnknownServer):
            return self.pools.bandwidth(self.config.get_server_config(name))
        return None

    def _transfers(self, runs: Iterable[Run], now: float) -> list[record.TransferStatus]:
        speeds: dict[int, Speed] = {}
        rows = []
        for run in sorted(runs, key=lambda run: run.start.wall):
            task, progress = run.task, run.task.progress
            speed = speeds[run.number] = self._speeds.get(run.number) or Speed(run.started)
            moved, size, phase = progress.resumed_at + progress.moved_bytes, progress.size_bytes, progress.phase
            speed.note(now, progress.moved_bytes)
            rate, age, still = speed.per_second, now - run.started, speed.still_for(now)
            has_eta = phase == Phase.STREAMING and size is not None and rate > 0 and age >= YOUNG_SECONDS
            is_stalled = phase == Phase.STREAMING and still > YOUNG_SECONDS
            rows.append(
                record.TransferStatus(
                    job_id=task.job.job_id or str(task.origin),
                    place=f"{task.record.topic}-{task.record.partition}-{task.record.offset}",
                    attempt=len(task.attempts) + 1,
                    source=_middle(str(task.job.source)),
                    destination=_middle(str(task.job.destination)),
                    phase=phase,
                    size=size,
                    moved=moved,
                    began_at=_time(run.start.wall),
                    rate=round(rate, 1),
                    eta_seconds=round(max(0, size - moved) / rate, 1) if has_eta and size is not None else None,
                    stalled_seconds=round(still, 1) if is_stalled else None,
                )
            )
        self._speeds = speeds
        return rows

    def _totals(self, runs: Iterable[Run], now: float) -> record.TotalsStatus:
        """Return the counters, and note the speed of each server; what runs now counts with the bytes that it moved."""
        told: dict[str, Any] = self.totals.to_dict()
        counts = {"bytes_in": told.pop("bytes_in"), "bytes_out": told.pop("bytes_out")}
        for run in runs:
            moved = run.task.progress.moved_bytes
            for side, end in (("bytes_in", run.task.job.source), ("bytes_out", run.task.job.destination)):
                names = counts[side]
                known = end.hostname in names or len(names) < SERVERS_NAMED
                name = end.hostname if known else OTHER
                names[name] = names.get(name, 0) + moved
        servers: dict[str, dict[str, int]] = {}
        for side, names in counts.items():
            for name, count in names.items():
                servers.setdefault(name, {})[side] = count
        for names, pool in self.pools.stats().items():
            row = servers.setdefault(names.split("/")[0], {})
            row["connects"], row["logins_refused"] = pool["connects"], pool["logins_refused"]
        for name, row in servers.items():
            speed = self._server_speeds.setdefault(name, Speed())
            speed.note(now, row.get("bytes_in", 0) + row.get("bytes_out", 0))
        return record.TotalsStatus.model_validate({**told, "servers": servers})

    def _settings_hash(self) -> str:
        self._hash = self._hash or hash_of(self.config.servers.values())
        return self._hash


def hash_of(servers: Iterable[ServerConfig]) -> str:
    """Return a hash of servers without their passwords: the same for all processes with the same servers."""
    rows = sorted(repr(server) for server in servers)  # the repr leaves out passwords, and options of protocols
    return hashlib.sha256("\n".join(rows).encode("utf-8", "backslashreplace")).hexdigest()[:12]


def _by_trouble(row: record.PartitionStatus) -> tuple[object, ...]:
    """Sort the partitions with the oldest unfinished record first, then those with most behind."""
    oldest = math.inf if row.oldest_at is None else row.oldest_at.timestamp()
    return (oldest, -row.backlog, row.topic, row.partition)


def _fault(error: BaseException) -> record.Fault:
    return record.Fault(code=code_of(error), text=_middle(redact(document.printable(str(error)))))


def _middle(text: str) -> str:
    """Return a text cut in its middle: both ends of a path tell more."""
    text = document.printable(text)
    if len(text) <= record.TEXT_CHARACTERS:
        return text
    half = (record.TEXT_CHARACTERS - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def _time(wall: float) -> datetime:
    return document.moment(round(wall, 3))


def resources() -> record.Resources:
    """Return what this process takes."""
    rss_bytes = fds = 0
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - a file of the kernel, read every two seconds
            rss_bytes = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        fds = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as above
    except (OSError, ValueError, IndexError):
        pass  # no such file system: 0 means not known
    return record.Resources(
        rss_bytes=rss_bytes,
        cpu_seconds=round(time.process_time(), 3),
        threads=threading.active_count(),
        fds=fds,
    )
