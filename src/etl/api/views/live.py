"""What the processes say of themselves on `etl-status`, in memory: who runs, what is in flight, how servers are.

Nobody declares another process dead: it is *silent* once it has missed three of its own intervals, by the clock here.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from etl.models import document
from etl.models.task import Record

SILENT_INTERVALS = 3
FORGET_SECONDS = 3600.0  # a process that stopped or fell silent is shown for so long
BREAKERS = ("closed", "half_open", "open")  # from good to bad


@dataclass
class Process:
    """The last word of one process."""

    key: str
    told: dict[str, Any]
    heard: float  # by our monotonic clock; for words from before our start, as old as the broker's time stamps say
    stamp: float  # the broker's

    def state(self, now: float) -> str:
        """Return its state; `silent` if it should have spoken again by now."""
        state = str(self.told.get("state") or "running")
        interval = _number(self.told.get("interval_seconds")) or 10.0
        return "silent" if state != "stopped" and now - self.heard > SILENT_INTERVALS * interval else state

    @property
    def name(self) -> str:
        """The id of the process, INSTANCE/SLOT."""
        return str(self.told.get("id") or self.key)


class Live:
    """The processes, as of now. Any thread may read; one thread takes records."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows
        self._processes: dict[str, Process] = {}
        self._version = 0
        self._newest = 0.0  # time stamp of the newest record, by the broker's clock
        self._caught_up = False

    def take(self, records: Sequence[Record], *, caught_up: bool) -> None:
        """Take in new records, in their order. The first ones are as old as the broker's time stamps say."""
        now = self._clock()
        with self._lock:
            for record in records:
                self._newest = max(self._newest, record.timestamp)
                key = (record.key or b"").decode("utf-8", "replace")
                if record.value is None:
                    self._processes.pop(key, None)
                    continue
                try:
                    told = json.loads(record.value)
                except (ValueError, RecursionError):
                    continue
                if isinstance(told, dict) and self._is_newer(key, told):
                    self._processes[key] = Process(key, told, now, record.timestamp)
            if caught_up and not self._caught_up:
                self._caught_up = True
                for process in self._processes.values():  # relative to each other: no clock of ours is asked
                    process.heard = now - (self._newest - process.stamp)
            self._processes = {
                key: process for key, process in self._processes.items() if now - process.heard < FORGET_SECONDS
            }
            if records:
                self._version += 1

    def _is_newer(self, key: str, told: dict[str, Any]) -> bool:
        """Is this a later word of the same run, or another run? Decided by run and number, not by clocks."""
        known = self._processes.get(key)
        if known is None or known.told.get("incarnation") != told.get("incarnation"):
            return True
        return (_number(told.get("seq")) or 0) >= (_number(known.told.get("seq")) or 0)

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        with self._lock:
            return self._version

    def all(self) -> list[Process]:
        """Return the processes, by name."""
        with self._lock:
            return sorted(self._processes.values(), key=lambda process: process.key)

    def consumers(self) -> list[Process]:
        """Return the consumers that speak."""
        now = self._clock()
        return [
            process
            for process in self.all()
            if process.told.get("kind") == "consumer" and process.state(now) not in ("silent", "stopped")
        ]

    def processes(self) -> list[dict[str, Any]]:
        """Return what each process says, without its transfers and servers, and how old that is."""
        now = self._clock()
        left_out = {"transfers", "servers", "partitions", "totals", "v"}
        return [
            {
                **{name: value for name, value in process.told.items() if name not in left_out},
                "id": process.name,
                "key": process.key,
                "state": process.state(now),
                "age_seconds": round(max(0.0, now - process.heard), 1),
                "running": len(_list(process.told, "transfers")),
            }
            for process in self.all()
        ]

    def transfers(self) -> list[dict[str, Any]]:
        """Return the running transfers of all processes: those that stand still first, then the oldest."""
        now = self._clock()
        found = []
        for process in self.all():
            state = process.state(now)
            if process.told.get("kind") == "consumer" and state != "stopped":
                for transfer in _list(process.told, "transfers"):
                    age = round(max(0.0, now - process.heard), 1)
                    found.append({**transfer, "process": process.name, "process_state": state, "age_seconds": age})
        found.sort(key=lambda one: (-(_number(one.get("stalled_seconds")) or 0), str(one.get("began_at"))))
        return found

    def running(self) -> dict[str, dict[str, Any]]:
        """Return the running transfers of processes that speak, by their place (TOPIC-PARTITION-OFFSET)."""
        return {
            str(transfer.get("place")): {**transfer, "process": process.name}
            for process in self.consumers()
            for transfer in _list(process.told, "transfers")
        }

    def servers(self, configured: Iterable[str] = ()) -> list[dict[str, Any]]:
        """Return each server as all processes together see it, those in trouble first."""
        merged: dict[str, dict[str, Any]] = {name: _server(name) for name in configured}
        for process in self.consumers():
            for told in _list(process.told, "servers"):
                name = str(told.get("name"))
                _merge(merged.setdefault(name, _server(name)), told, process.name)
        for server in merged.values():
            seen = len(server["processes"])
            server["error_share"] = round(server["error_share"] / seen, 4) if seen else None
        return sorted(merged.values(), key=lambda one: (-BREAKERS.index(one["breaker"]), one["name"]))

    def partitions(self) -> list[dict[str, Any]]:
        """Return each partition as its owner sees it."""
        found = {}
        for process in sorted(self.consumers(), key=lambda process: process.heard):
            for told in _list(process.told, "partitions"):
                found[str(told.get("topic")), str(told.get("partition"))] = {**told, "process": process.name}
        return sorted(found.values(), key=lambda one: (str(one.get("topic")), _number(one.get("partition")) or 0))

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
                inner = told.get(part)
                sums[name] += (_number(inner.get(field)) or 0) if isinstance(inner, dict) else 0
        return sums

    def as_of(self) -> str | None:
        """Return the time of the newest word, by the broker's clock."""
        with self._lock:
            return document.iso(datetime.fromtimestamp(self._newest, UTC)) if self._newest else None


def breaker(word: object) -> str:
    """Return a breaker's state in the spelling of the API; what is unknown counts as closed."""
    text = str(word).replace("-", "_")
    return text if text in BREAKERS else "closed"


def _server(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "breaker": "closed",
        "since": None,
        "next_probe_at": None,
        "error": None,
        "held_by": None,
        "lanes": 0,
        "sessions": {"open": 0, "idle": 0, "limit": 0},
        "jobs_per_second": 0.0,
        "bytes_per_second": 0.0,
        "error_share": 0.0,
        "round_trip_seconds": None,
        "processes": [],
    }


def _merge(server: dict[str, Any], told: dict[str, Any], process: str) -> None:
    """Add what one process says of a server: the worst breaker, sums of what adds up, the longest round trip."""
    state = breaker(told.get("breaker"))
    if BREAKERS.index(state) > BREAKERS.index(server["breaker"]):
        server |= {name: told.get(name) for name in ("since", "next_probe_at", "error")} | {"breaker": state}
    for name in ("jobs_per_second", "bytes_per_second", "lanes", "error_share"):
        server[name] += _number(told.get(name)) or 0
    trip = _number(told.get("round_trip_seconds"))
    if trip is not None:
        server["round_trip_seconds"] = max(trip, server["round_trip_seconds"] or 0.0)
    sessions = told.get("sessions")
    if isinstance(sessions, dict):
        for name in server["sessions"]:
            server["sessions"][name] += _number(sessions.get(name)) or 0
    server["held_by"] = server["held_by"] or told.get("held_by")
    server["processes"].append({"process": process, "breaker": state, "sessions": sessions})


def _list(told: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = told.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
