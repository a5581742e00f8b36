"""Parts of contract tests: a parcel made of bytes, reading one to its end, limits, what a fake server was sent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etl.config import ServerConfig, TransferSettings
from etl.models.message import FileTransferJob
from etl.models.task import Facts, Origin, Record, Task
from etl.transfer import partials, receipts, relay
from etl.transfer.base import BaseTransfer
from etl.transfer.s3.options import placed
from servers.certificates import Authority
from servers.fake import FakeFTP

SHORT = TransferSettings(connect_timeout=0.3, login_timeout=0.3, reply_timeout=0.3, stall_timeout=0.3)
PATIENT = "220 (vsFTPd 3.0.3)"  # the welcome of a server that reads no command before its last word on a transfer
LONG = TransferSettings(connect_timeout=5, login_timeout=5, reply_timeout=5, stall_timeout=5)


# Every answer in the wrong order, no extension at all, a code that version 3 does not have.
POOR: dict[str, Any] = {
    "short_reads": 10_000,
    "swaps_answers": True,
    "lowest_handles": True,
    "hides": (b"",),
    "refusal": 11,
}


# Takes every condition and heeds none, knows no checksums, and gives a listing in small pages.
POOR_STORE: dict[str, Any] = {"keeps_conditions": False, "checksums": "refused", "keeps_sizes": False, "page": 2}


class Four(BaseTransfer):
    """A user's protocol: the four methods, and foreign exceptions."""

    def connect(self) -> None:
        """Nothing to reach."""

    def disconnect(self) -> None:
        """Nothing to close."""

    def download(self, remote_path: str, local_path: str) -> None:
        shutil.copyfile(remote_path, local_path)

    def upload(self, local_path: str, remote_path: str) -> None:
        Path(remote_path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(local_path, remote_path)


class Rich(Four):
    """The same with everything that `Staged` can use."""

    def size(self, path: str) -> int:
        if not Path(path).is_file() and Path(path).exists():
            raise IsADirectoryError(path)
        return Path(path).stat().st_size

    def rename(self, old: str, new: str) -> None:
        Path(new).parent.mkdir(parents=True, exist_ok=True)
        Path(old).rename(new)

    def remove(self, path: str) -> None:
        Path(path).unlink()

    def names(self, folder: str) -> list[str]:
        return os.listdir(folder)  # noqa: PTH208 - names are wanted


class Bytes:
    """A parcel in memory."""

    held = None

    def __init__(self, content: bytes, facts: Facts | None = None) -> None:
        self.path = "/memory"
        self.facts = facts or Facts(len(content), None)
        self._rest = memoryview(content)

    def load(self, limit_bytes: int) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self, *, complete: bool) -> None:
        """Nothing is open."""


def drain(parcel, buffer: memoryview) -> bytes:
    """Read a parcel to its end."""
    content = b""
    while count := parcel.readinto(buffer):
        content += buffer[:count]
    return content


def content_of(session, path: str, buffer: memoryview) -> bytes:
    """Read a whole file."""
    parcel = session.read(path)
    content = drain(parcel, buffer)
    parcel.close(complete=True)
    return content


def writes_of(server: FakeFTP, action: Callable[[], object]) -> list[list[str]]:
    """Return what a client wrote during an action, write by write."""
    before = len(server.writes)
    action()
    return server.writes[before:]


def sftp_config(server: Any, base_path: str = "", password: str = "", **options: str) -> ServerConfig:
    """Return the settings of a server of SSH, logged in to by its key unless there is a password."""
    given = {"HOST_KEY": server.fingerprint} | ({} if password else {"KEY_FILE": str(server.key)}) | options
    return ServerConfig(
        "FILES", "sftp", server.host, server.port, server.username, password, base_path=base_path, options=given
    )


def s3_config(store: Any, name: str = "FILES", base_path: str = "", **options: str) -> ServerConfig:
    """Return the settings of a bucket."""
    return placed(ServerConfig(name, "s3", base_path=base_path, options=store.settings(**options)))


def ftps_config(server: Any, authority: Authority, base_path: str = "", **options: str) -> ServerConfig:
    """Return the settings of a server of TLS, trusted by its authority."""
    given = {"TLS_CA_FILE": str(authority.ca)} | options
    return ServerConfig(
        "FILES", "ftps", server.host, server.port, server.username, server.password, base_path=base_path, options=given
    )


def a_task(**options: Any) -> Task:
    """Make a task out of `/a` of one server and `/out/b` of another."""
    job = {
        "source": {"hostname": "A", "path": "/a"},
        "destination": {"hostname": "FAKE", "path": "/out/b"},
        "options": options,
    }
    return Task(Record("jobs", 0, 0, None, b"{}"), Origin("jobs", 0, 0), FileTransferJob.from_dict(job))


def moved(task: Task, source: Any, destination: Any, buffer: memoryview, token: str = "t") -> receipts.Receipt:
    """Carry a task out."""
    return relay.run(task, source, destination, token, relay.Limits(buffer, 0, 0), partials.OrphanIndex())
