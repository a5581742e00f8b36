"""Disks that are really full or read-only, and folders that really may not be written: code, clean-up, recovery."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contract_parts import LONG, Bytes, sftp_config

import stack
from etl.config import ServerConfig
from etl.errors import PermissionRefused, StorageFull
from etl.transfer import FTPTransfer, LocalTransfer, SFTPTransfer
from etl.transfer.base import Session
from mounts import make_read_only, small_disk
from servers.pyftpd import PyFTPD, UnbufferedFS

pytestmark = pytest.mark.contract

DISK_BYTES = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    with small_disk(tmp_path / "disk", DISK_BYTES) as folder:
        yield folder


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that other users may enter; those of pytest are closed to them."""
    if os.geteuid() != 0:
        pytest.skip("a server with the rights of another user takes root")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(params=["local", "vsftpd", "pyftpdlib", "sshd"])
def open_one(
    request: pytest.FixtureRequest,
    disk: Path,
    make_vsftpd: Callable[..., stack.Vsftpd],
    make_sshd: Callable[..., stack.Sshd],
) -> Iterator[Callable[[], Session]]:
    """Open sessions whose `/` is the disk."""
    sessions: list[Session] = []
    server: Any = None
    if request.param == "vsftpd":
        server = make_vsftpd(local_root=str(disk))
    elif request.param == "sshd":
        server = make_sshd()  # after the disk: what is mounted later it does not see
    elif request.param == "pyftpdlib":
        server = PyFTPD(disk, abstracted_fs=UnbufferedFS)

    def make() -> Session:
        if server is None:
            sessions.append(LocalTransfer(ServerConfig("DISK", "local", base_path=str(disk)), LONG))
        elif request.param == "sshd":
            config = replace(sftp_config(server, base_path=str(disk)), hostname="DISK")
            sessions.append(SFTPTransfer(config, LONG))
        else:
            address = (server.host, server.port, server.username, server.password)
            sessions.append(FTPTransfer(ServerConfig("DISK", "ftp", *address), LONG))
        sessions[-1].connect()
        return sessions[-1]

    yield make
    for session in sessions:
        session.disconnect()
    if isinstance(server, PyFTPD):
        server.close()


def test_a_full_disk_is_storage_full_and_leaves_nothing(open_one, disk: Path, buffer) -> None:
    """The room that the partial file took is there again, and what fits goes on being written."""
    (disk / "there").write_bytes(b"old")
    for size in (2 << 20, 64 << 20):
        with pytest.raises(StorageFull) as caught:
            open_one().write("/.p", Bytes(bytes(size)), buffer)
        assert caught.value.server == "DISK"
        assert [path.name for path in disk.iterdir()] == ["there"]
    session = open_one()
    stored = session.write("/.p", Bytes(bytes(900_000)), buffer)
    assert stored.size_bytes == 900_000
    session.publish(stored, "/fits", None).result()
    assert {path.name for path in disk.iterdir()} == {"there", "fits"}


def test_a_disk_that_may_not_be_written_is_permission_denied(open_one, disk: Path, buffer) -> None:
    """Root or not: a read-only file system takes nothing, in no folder."""
    (disk / "there").write_bytes(b"old")
    make_read_only(disk)
    for path in ("/.p", "/new/.p"):
        with pytest.raises(PermissionRefused) as caught:
            open_one().write(path, Bytes(b"1"), buffer)
        assert caught.value.server == "DISK"
    with pytest.raises(PermissionRefused):
        open_one().remove("/there")
    assert [path.name for path in disk.iterdir()] == ["there"]


def test_a_folder_of_somebody_else_is_permission_denied(
    make_vsftpd: Callable[..., stack.Vsftpd], common: Path, buffer
) -> None:
    """Of a server whose sessions are no root's: the mode of a folder is enough."""
    server = make_vsftpd(local_root=str(common), guest_username="daemon")
    mine, other = common / "mine", common / "other"
    mine.mkdir()
    mine.chmod(0o777)
    other.mkdir(0o755)
    (other / "secret").write_bytes(b"x")
    (other / "secret").chmod(0o600)
    config = ServerConfig("DISK", "ftp", server.host, server.port, server.username, server.password)
    for path in ("/other/.p", "/other/new/.p"):
        with FTPTransfer(config, LONG) as ftp, pytest.raises(PermissionRefused):
            ftp.write(path, Bytes(b"1"), buffer)
    with FTPTransfer(config, LONG) as ftp, pytest.raises(PermissionRefused):
        ftp.read("/other/secret")
    with FTPTransfer(config, LONG) as ftp:
        assert ftp.write("/mine/.p", Bytes(b"1"), buffer).size_bytes == 1
    assert [path.name for path in other.iterdir()] == ["secret"]
