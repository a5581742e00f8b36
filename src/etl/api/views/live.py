"""What the processes say of themselves on `etl-status`, in memory: who runs, what is in flight, how servers are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from etl.api.views.hour import Hour
from etl.models.status import Snapshot
from etl.models.task import Record
from etl.status import fleet

BREAKERS = ("closed", "half_open", "open")  # from good to bad
GONE_SECONDS = 3600.0  # a process that stopped or fell silent is shown for so long


@dataclass(frozen=True)
class Process:
    """One process: its name, its state as of now, how old its last word is, and that word as a JSON object."""

    key: str
    name: str
    state: str
    age_seconds: float
    told: dict[str, Any]


class Live:
    """The processes, as of now. Any thread may read; one thread takes records."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows
        self._fleet = fleet.Fleet()
        self._told: dict[str, tuple[Snapshot, dict[str, Any]]] = {}  # what was said last, and that as a JSON object
        self._hour = Hour()
        self._version = 0

    def take(self, records: Sequence[Record], *, caught_up: bool) -> list[tuple[Snapshot, float]]:
        """Take in new records, in their order; return what was said in them, and when by the broker's clock.

        `caught_up`: everything that was there at our start is read by now.
        """
        found: list[tuple[Snapshot, float]] = []
        with self._lock:
            for record in records:
                if not self._fleet.accept(record, self._clock()):
                    continue
                self._version += 1
                if (said := self._fleet.snapshot((record.key or b"").decode("utf-8", "replace"))) is not None:
                    self._hour.accept(said, record.timestamp)
                    found.append((said, record.timestamp))
            if caught_up:
                self._fleet.caught_up(self._clock())
        return found

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        with self._lock:
            return self._version

    def all(self) -> list[Process]:
        """Return the processes, by name."""
        with self._lock:
            known, self._told = self._told, {}
            found = []
            for one in self._fleet.processes(self._clock()):
                snapshot, told = known.get(one.key, (None, {}))
                if snapshot is not one.snapshot:
                    told = one.snapshot.model_dump(mode="json", exclude_none=True)
                self._told[one.key] = (one.snapshot, told)
                if one.state not in ("silent", "stopped") or one.age_seconds < GONE_SECONDS:
                    found.append(Process(one.key, one.snapshot.id, one.state, round(one.age_seconds, 1), told))
            return found

    def fleet(self) -> list[fleet.Process]:
        """Return the processes as snapshots, for metrics."""
        with self._lock:
            return self._fleet.processes(self._clock())

    def consumers(self) -> list[Process]:
        """Return the consumers that speak."""
        gone = ("silent", "stopped")
        return [one for one in self.all() if one.told["kind"] == "consumer" and one.state not in gone]

    def processes(self) -> list[dict[str, Any]]:
        """Return what each process says, without its transfers and servers, and how old that is."""
        left_out = {"transfers", "servers", "partitions", "totals", "v"}
        return [
            {
                **{name: value for name, value in process.told.items() if name not in left_out},
                "id": process.name,
                "key": process.key,
                "state": process.state,
                "age_seconds": process.age_seconds,
                "running": len(process.told["transfers"]) + process.told["more"]["transfers"],
            }
            for process in self.all()
        ]

    def transfers(self) -> list[dict[str, Any]]:
        """Return the running transfers of all processes: those that stand still first, then the oldest."""
        found = [
            {**transfer, "process": one.name, "process_state": one.state, "age_seconds": one.age_seconds}
            for one in self.all()
            if one.state != "stopped"
            for transfer in one.told["transfers"]
        ]
        return sorted(found, key=lambda one: (-one.get("stalled_seconds", 0.0), one["began_at"]))

    def running(self) -> dict[str, dict[str, Any]]:
        """Return the running transfers of processes that speak, by their place (TOPIC-PARTITION-OFFSET)."""
        return {
            transfer["place"]: {**transfer, "process": process.name}
            for process in self.consumers()
            for transfer in process.told["transfers"]
        }

    def servers(self, configured: Iterable[str] = ()) -> list[dict[str, Any]]:
        """Return each server as all processes together see it, those in trouble first."""
        merged: dict[str, dict[str, Any]] = {name: _server(name) for name in configured}
        for process in self.consumers():
            for told in process.told["servers"]:
                name = told["name"].upper()
                _merge(merged.setdefault(name, _server(name)), told, process.name)
        for server in merged.values():
            seen = len(server["processes"])
            server["error_share"] = round(server["error_share"] / seen, 4) if seen else None
        return sorted(merged.values(), key=lambda one: (-BREAKERS.index(one["breaker"]), one["name"]))

    def hour(self, server: str) -> list[dict[str, Any]]:
        """Return the last hour of a server, minute by minute."""
        with self._lock:
            return self._hour.of(server, time.time())

    def partitions(self) -> list[dict[str, Any]]:
        """Return each partition as its owner sees it."""
        found = {}
        for process in sorted(self.consumers(), key=lambda process: -process.age_seconds):
            for told in process.told["partitions"]:
                mine = {**told, "group": process.told["group"], "process": process.name}
                found[mine["group"], told["topic"], told["partition"]] = mine
        return [found[key] for key in sorted(found)]

    def totals(self) -> dict[str, float]:
        """Return lanes, window and parked jobs of all processes that speak, added up."""
        sums = {"lanes": 0.0, "lanes_busy": 0.0, "window_jobs": 0.0, "parked_jobs": 0.0, "behind": 0.0}
        for process in self.consumers():
            told = process.told
            for name, part, field in (
                ("lanes", "lanes", "size"),
                ("lanes_busy", "lanes", "busy"),
                ("window_jobs", "window", "jobs"),
                ("behind", "window", "behind"),
                ("parked_jobs", "parked", "jobs"),
            ):
                sums[name] += told[part][field]
        return sums


def _server(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "breaker": "closed",
        "since": None,
        "next_probe_at": None,
        "error": None,
        "held_by": None,
        "lanes": 0,
        "waiting": 0,
        "deferred": 0,
        "sessions": {"open": 0, "idle": 0, "limit": 0},
        "jobs_per_second": 0.0,
        "bytes_per_second": 0.0,
        "error_share": 0.0,
        "round_trip_seconds": None,
        "bandwidth_limit": None,
        "processes": [],
    }


def _merge(server: dict[str, Any], told: dict[str, Any], process: str) -> None:
    """Add what one process says of a server: the worst breaker, sums of what adds up, the longest round trip.

    It is down since the first of them found it so.
    """
    state = told["breaker"].replace("-", "_")
    since = [one["since"] for one in (server, told) if one["breaker"] != "closed" and one.get("since")]
    if BREAKERS.index(state) > BREAKERS.index(server["breaker"]):
        server |= {name: told.get(name) for name in ("next_probe_at", "error")} | {"breaker": state}
    server["since"] = min(since, key=datetime.fromisoformat, default=None)
    for name in ("jobs_per_second", "bytes_per_second", "lanes", "waiting", "deferred", "error_share"):
        server[name] += told[name]
    if (trip := told.get("round_trip_seconds")) is not None:
        server["round_trip_seconds"] = max(trip, server["round_trip_seconds"] or 0.0)
    if (limit := told.get("bandwidth_limit")) is not None:
        server["bandwidth_limit"] = limit + (server["bandwidth_limit"] or 0.0)
    for name in server["sessions"]:
        server["sessions"][name] += told["sessions"][name]
    server["held_by"] = server["held_by"] or told.get("held_by")
    server["processes"].append({"process": process, "breaker": state, "sessions": told["sessions"]})
