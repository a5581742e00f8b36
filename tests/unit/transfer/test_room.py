"""What must stay free on a local server's disk."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from etl.config import ServerConfig
from etl.errors import StorageFull
from etl.transfer import room

pytestmark = pytest.mark.unit

LEAST_BYTES = 1_000_000
HERE = ServerConfig("HERE", "local", options={"MIN_FREE": str(LEAST_BYTES)})


class Disk:
    """A disk by the clock: how much is free, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free_bytes, self.now, self.looks = 100 << 30, 1000.0, 0
        monkeypatch.setattr(os, "fstatvfs", self._look)
        monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: self.now))

    def _look(self, _descriptor: int) -> SimpleNamespace:
        self.looks += 1
        return SimpleNamespace(f_bavail=self.free_bytes, f_frsize=1)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_disk_with_plenty_is_asked_once_a_moment(disk: Disk) -> None:
    """Small files into one folder share a look; it is forgotten after a tenth of a second."""
    found = room.Room()
    for _ in range(10):
        found.require(HERE, 0, 10_000, "/in")
    assert disk.looks == 1
    disk.free_bytes, disk.now = 0, disk.now + 0.1
    with pytest.raises(StorageFull, match="HERE_MIN_FREE"):
        found.require(HERE, 0, 10_000, "/in")


def test_a_look_serves_neither_another_folder_nor_another_server_nor_a_large_file(disk: Disk) -> None:
    """A folder below may be another disk, and a large file takes what is free."""
    found = room.Room()
    found.require(HERE, 0, 10_000, "/in")
    disk.free_bytes = 0
    other = ServerConfig("OTHER", "local", options=HERE.options)
    for server, more_bytes, folder in (
        (HERE, 1, "/in/below"),
        (other, 1, "/in"),
        (HERE, 2 << 20, "/in"),
        (HERE, 0, ""),
    ):
        with pytest.raises(StorageFull):
            found.require(server, 0, more_bytes, folder)


def test_a_disk_that_may_soon_be_full_is_asked_each_time(disk: Disk) -> None:
    """Less than 4 GiB more than must stay free."""
    disk.free_bytes = 4 << 30
    found = room.Room()
    for _ in range(10):
        found.require(HERE, 0, 10_000, "/in")
    assert disk.looks == 10


def test_without_a_limit_nothing_is_asked(disk: Disk) -> None:
    """The ordinary server."""
    room.Room().require(ServerConfig("HERE", "local"), 0, 10_000, "/in")
    assert disk.looks == 0
