"""Servers and sessions at the seam of `Session`, and tasks for them: what lanes, pools and dispatcher are tested with.

A `PretendServer` counts its connections and fails the test's claim by itself when there are too many.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from etl.config import ServerConfig, Settings, TransferSettings
from etl.models.message import FileTransferJob
from etl.models.task import Facts, Origin, Record, Task
from etl.transfer.base import Parcel, Promise, Published, Session, Settled, Stored


class Clock:
    """A clock that moves when told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class PretendServer:
    """What the sessions of one server have in common. `lock` guards the counts."""

    lock: Any = field(default_factory=threading.Lock)
    open: int = 0
    peak: int = 0
    connects: int = 0
    dialing: int = 0
    dialing_peak: int = 0
    refusal: BaseException | None = None  # raised by connect
    deaf: bool = False  # pings fail
    stubborn: set[str] = field(default_factory=set)  # paths whose removal fails
    removed: list[str] = field(default_factory=list)
    gate: threading.Event | None = None  # connects wait for it
    sessions: list[PretendSession] = field(default_factory=list)


class PretendSession(Session):
    """A session whose server is a count."""

    is_over = False  # a test may say otherwise

    def __init__(self, server: ServerConfig, settings: TransferSettings, world: PretendServer) -> None:
        super().__init__(server, settings)
        self.world = world
        self.is_open = False
        self.aborted = threading.Event()
        self.pings = 0
        self.spoilt = False  # a test's mark: this session saw an error

    def connect(self) -> None:
        with self.world.lock:
            self.world.dialing += 1
            self.world.dialing_peak = max(self.world.dialing_peak, self.world.dialing)
        try:
            if self.world.gate is not None:
                while not (self.world.gate.wait(0.001) or self.aborted.is_set()):
                    pass
            if self.aborted.is_set():
                raise ConnectionResetError("aborted")
            if self.world.refusal is not None:
                raise self.world.refusal
        finally:
            with self.world.lock:
                self.world.dialing -= 1
        with self.world.lock:
            self.world.connects += 1
            self.world.open += 1
            self.world.peak = max(self.world.peak, self.world.open)
            self.world.sessions.append(self)
        self.is_open = True

    def disconnect(self) -> None:
        if self.is_open:
            self.is_open = False
            with self.world.lock:
                self.world.open -= 1

    def abort(self) -> None:
        self.aborted.set()

    def ping(self) -> None:
        self.pings += 1
        if self.world.deaf:
            raise ConnectionResetError("no answer")

    def remove(self, path: str) -> bool:
        if path in self.world.stubborn:
            raise PermissionError(path)
        self.world.removed.append(path)
        return True

    def download(self, remote_path: str, local_path: str) -> None:
        raise NotImplementedError

    def upload(self, local_path: str, remote_path: str) -> None:
        raise NotImplementedError

    def look(self, path: str) -> Facts | None:
        raise NotImplementedError

    def read(self, path: str) -> Parcel:
        raise NotImplementedError

    def unchanged(self, parcel: Parcel) -> Promise[bool]:
        raise NotImplementedError

    def dispose(self, path: str, move_to: str | None = None) -> Promise[None]:
        return Settled(None)

    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        raise NotImplementedError

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        raise NotImplementedError

    def names(self, folder: str, prefix: str = "") -> list[str]:
        return []


class World:
    """Servers by address; `create` is what pools are given."""

    def __init__(self, **limits: int) -> None:
        self.configs = {name: server(name, max_connections=limit) for name, limit in limits.items()}
        self.servers: dict[object, PretendServer] = {}

    def unpaced(self) -> World:
        """Let connects come as fast as they can: for tests in which sessions are lost all the time."""
        self.configs = {name: replace(config, connects_per_minute=60_000) for name, config in self.configs.items()}
        return self

    def __getitem__(self, name: str) -> PretendServer:
        return self.servers.setdefault(self.configs[name].address, PretendServer())

    def config(self, name: str) -> ServerConfig:
        return self.configs[name]

    def create(self, config: ServerConfig, settings: TransferSettings) -> Session:
        return PretendSession(config, settings, self.servers.setdefault(config.address, PretendServer()))


def server(name: str, **properties: Any) -> ServerConfig:
    values = {"type": "pretend", "host": name.lower(), "port": 21, "username": "u"} | properties
    return ServerConfig(hostname=name, **values)


def settings(**values: Any) -> Settings:
    return Settings(**values)


def task(
    number: int = 0,
    source: str = "A",
    destination: str = "B",
    path: str | None = None,
    *,
    priority: str = "normal",
    timeout: float | None = None,
    size_bytes: int = 100,
    owned: Callable[[], bool] = lambda: True,
) -> Task:
    job = FileTransferJob.from_dict(
        {
            "job_id": f"job-{number}",
            "source": {"hostname": source, "path": f"/in/{number}"},
            "destination": {"hostname": destination, "path": path or f"/out/{number}"},
            "priority": priority,
            "options": {} if timeout is None else {"timeout_seconds": timeout},
        }
    )
    record = Record("jobs", 0, number, None, b"{}")
    return Task(record, Origin("jobs", 0, number), job, size_bytes=size_bytes, owned=owned)
