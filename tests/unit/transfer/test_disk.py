"""How seldom a session looks at what is free on its disk, and when it must."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from etl.errors import StorageFull
from etl.models.server import ServerConfig
from etl.transfer import disk

MIN_FREE = 1000
HERE, THERE = 1, 2  # disks
DESCRIPTOR = 99


class Disk:
    """What the system says of a disk, how often it was asked, and the time."""

    free_bytes = 10**12
    looks = 0
    now = 50.0

    def fstatvfs(self, descriptor: int) -> SimpleNamespace:
        """Answer as the system does."""
        assert descriptor == DESCRIPTOR
        self.looks += 1
        return SimpleNamespace(f_bavail=self.free_bytes, f_frsize=1)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Have a disk with plenty of room, and a clock that stands."""
    made = Disk()
    monkeypatch.setattr(os, "fstatvfs", made.fstatvfs)
    monkeypatch.setattr(disk.time, "monotonic", lambda: made.now)
    return made


def reserve(min_free: int = MIN_FREE) -> disk.Reserve:
    """Return the reserve of a new session."""
    return disk.Reserve(ServerConfig("HERE", "local", base_path="/in", options={"MIN_FREE": str(min_free)}))


def write(one: disk.Reserve, size_bytes: int, device: int = HERE, *, said_bytes: int | None = None) -> None:
    """Write a file, which may have another size than it was said to have."""
    one.begin(DESCRIPTOR, device, size_bytes if said_bytes is None else said_bytes)
    one.wrote(DESCRIPTOR, size_bytes)


def test_many_small_files_take_one_look(system: Disk) -> None:
    """While there is plenty of room."""
    one = reserve()
    for _ in range(100):
        write(one, 10_000)
    assert system.looks == 1


def test_without_a_reserve_nobody_looks(system: Disk) -> None:
    """Whatever is written."""
    write(reserve(0), 1 << 40)
    assert system.looks == 0


def test_a_look_serves_for_a_second(system: Disk) -> None:
    """Others fill the disk, too."""
    one = reserve()
    write(one, 10)
    system.free_bytes = MIN_FREE
    system.now += 1.0
    with pytest.raises(StorageFull, match="HERE_MIN_FREE"):
        write(one, 10)


def test_each_disk_below_a_base_path_is_looked_at(system: Disk) -> None:
    """Room on one disk says nothing of another one that is mounted there."""
    one = reserve()
    write(one, 10)
    system.free_bytes = MIN_FREE
    with pytest.raises(StorageFull):
        write(one, 10, THERE)


@pytest.mark.parametrize("said_bytes", [0, 10])
def test_what_is_written_counts_not_what_was_said(system: Disk, said_bytes: int) -> None:
    """A file of unknown size, and one that is longer than its server says."""
    one = reserve()
    write(one, 10)
    system.free_bytes = MIN_FREE - 1
    with pytest.raises(StorageFull):
        write(one, 1 << 40, said_bytes=said_bytes)


def test_where_little_is_to_spare_a_session_takes_a_small_share_unseen(system: Disk) -> None:
    """Of the others, each may do the same before it looks."""
    system.free_bytes, one = MIN_FREE + 6400, reserve()
    for _ in range(10):
        write(one, 10)
    assert system.looks == 1
    write(one, 10)
    assert system.looks == 2


def test_a_file_that_does_not_fit_is_refused_before_it_is_written(system: Disk) -> None:
    """Also when a look a moment ago found room for smaller ones."""
    system.free_bytes, one = MIN_FREE + 6400, reserve()
    write(one, 10)
    with pytest.raises(StorageFull):
        one.begin(DESCRIPTOR, HERE, 6401)
