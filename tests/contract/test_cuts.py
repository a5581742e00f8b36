"""Connections of SFTP and FTPS that are cut or stand still, anywhere: noticed in time, nothing half is ever seen."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contract_parts import a_task, ftps_config, moved, sftp_config

import stack
from etl.config import ServerConfig, TransferSettings
from etl.errors import EtlError, Fate
from etl.transfer import FTPSTransfer, LocalTransfer, SFTPTransfer
from etl.transfer.base import Parcel, Session
from etl.transfer.ftp import known
from etl.transfer.ftps.data import SecureData
from servers.certificates import Authority
from servers.passing import Passing
from servers.pyftpd import PyFTPD, under_tls
from servers.sftp import SFTPServer

pytestmark = pytest.mark.contract

# Of connections that are to break, of which one that stands still is known by its limit alone; and of all others.
BRISK = TransferSettings(connect_timeout=1, login_timeout=1, reply_timeout=0.5, stall_timeout=0.5)
CALM = TransferSettings(connect_timeout=10, login_timeout=20, reply_timeout=10, stall_timeout=10)
CONTENT = os.urandom(1_500_000)
LIMIT = 12.0  # seconds for a failure, a login among them
# Of all bytes, in both directions: in the banner, the key exchange, the login, the first requests, the file, its end.
SFTP_CUTS = [10, 1500, 3000, 4500, 6000, 50_000, 1_000_000, 1_503_000]
# Of the control connection: in the welcome, the handshake, the login, the transfer, the rename.
FTPS_CUTS = [10, 100, 1500, 2300, 2800, 3200, 3500]


@pytest.fixture(params=["sshd", "asyncssh", "vsftpd_tls", "pyftpdlib_tls"])
def far(
    request: pytest.FixtureRequest, authority: Authority, tmp_path: Path
) -> Iterator[tuple[Callable[[TransferSettings], Session], Passing, Path]]:
    """Give a way to open sessions through a proxy, the proxy, and where `/` is."""
    with contextlib.ExitStack() as ending:
        if request.param == "asyncssh":
            server: Any = ending.enter_context(contextlib.closing(SFTPServer(tmp_path / "root")))
        elif request.param == "pyftpdlib_tls":
            certificate = authority.sign("pyftpdlib", "127.0.0.1")
            server = ending.enter_context(contextlib.closing(PyFTPD(tmp_path / "root", **under_tls(certificate))))
        else:
            server = request.getfixturevalue(request.param)
        yield from _through_proxy(server, authority, tmp_path)
    known.forget()


def _through_proxy(
    server: Any, authority: Authority, tmp_path: Path
) -> Iterator[tuple[Callable[[TransferSettings], Session], Passing, Path]]:
    top = tmp_path / "root" if isinstance(server, SFTPServer) else server.root
    root = top / f"cuts-{uuid.uuid4().hex[:8]}"
    root.mkdir(parents=True)
    with Passing(server.port) as way:
        if isinstance(server, SFTPServer):
            config = replace(sftp_config(server, f"/{root.name}", server.password), port=way.port)
            yield lambda limits: SFTPTransfer(config, limits), way, root
        elif isinstance(server, stack.Sshd):
            config = replace(sftp_config(server, base_path=str(root)), port=way.port)
            yield lambda limits: SFTPTransfer(config, limits), way, root
        else:
            config = replace(ftps_config(server, authority, base_path=f"/{root.name}"), port=way.port)
            yield lambda limits: FTPSTransfer(config, limits), way, root


@pytest.mark.parametrize("fault", ["cut", "end", "stall"])
@pytest.mark.parametrize("way_of_file", ["up", "down"])
def test_a_connection_that_breaks_anywhere(far, buffer, tmp_path: Path, fault: str, way_of_file: str) -> None:
    """Each is one truthful error within its limit, nothing is under the final name, and the next try is right."""
    opener, way, root = far
    here = tmp_path / "here"
    ours, theirs = (here, root) if way_of_file == "up" else (root, here)
    for folder in (here, root):
        folder.mkdir(exist_ok=True)
    (ours / "a").write_bytes(CONTENT)
    final = theirs / "out/b"
    is_sftp = opener(BRISK).server.type == "sftp"
    for after in SFTP_CUTS if is_sftp else FTPS_CUTS:
        way.fault, way.after, before = fault, after, way.happened
        began = time.monotonic()
        error = attempt(opener, here, way_of_file, buffer, BRISK)
        if way.happened > before:  # else all was done before
            assert error is not None, after
            assert time.monotonic() - began < LIMIT, after
            assert error.fate in {Fate.RETRY, Fate.OUTAGE}, (after, error)
            # The answer to a rename may be what is lost; whatever is there is whole.
            assert not final.exists() or final.read_bytes() == CONTENT, after
        way.fault = ""
        assert attempt(opener, here, way_of_file, buffer, CALM) is None, after
        assert final.read_bytes() == CONTENT
        final.unlink()
        known.forget()
    assert way.happened >= 5


def attempt(
    opener: Callable[[TransferSettings], Session],
    here: Path,
    way_of_file: str,
    buffer: memoryview,
    limits: TransferSettings,
) -> EtlError | None:
    """Do a job with new sessions; return how it failed."""
    far, near = opener(limits), LocalTransfer(ServerConfig("HERE", "local", base_path=str(here)), limits)
    try:
        far.connect()
        near.connect()
        source, destination = (near, far) if way_of_file == "up" else (far, near)
        moved(a_task(), source, destination, buffer)
    except EtlError as error:
        return error
    finally:
        far.disconnect()
        near.disconnect()
    return None


class Breaking(LocalTransfer):
    """Has something done when half of a file was read."""

    def __init__(self, folder: Path, act: Callable[[], None]) -> None:
        super().__init__(ServerConfig("HERE", "local", base_path=str(folder)), CALM)
        self._act = act

    def read(self, path: str) -> Parcel:
        parcel = super().read(path)
        readinto, given = parcel.readinto, []

        def breaking(buffer: memoryview) -> int:
            if given:
                self._act()
            given.append(readinto(buffer[: len(CONTENT) // 2]))
            return given[-1]

        parcel.readinto = breaking  # type: ignore[method-assign]
        return parcel


@pytest.mark.parametrize("how", ["reset", "end"])
def test_an_upload_that_is_cut_in_the_middle_is_no_file(
    far, buffer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Also where only the connection of its bytes ends, which a server may take for the end of the file."""
    opener, _, root = far
    here = tmp_path / "here"
    here.mkdir()
    (here / "a").write_bytes(CONTENT)
    made: list[SecureData] = []
    make = SecureData.__init__
    monkeypatch.setattr(SecureData, "__init__", lambda data, *rest: (make(data, *rest), made.append(data))[0])

    with opener(CALM) as session:

        def cut() -> None:
            if how == "end" and made:
                made[-1].sock.shutdown(socket.SHUT_RDWR)  # without the word that ends TLS
            else:
                session.abort()

        with Breaking(here, cut) as source, pytest.raises(EtlError) as caught:
            moved(a_task(), source, session, buffer)
    assert caught.value.fate in {Fate.RETRY, Fate.OUTAGE}
    assert not (root / "out/b").exists()
    assert attempt(opener, here, "up", buffer, CALM) is None
    assert (root / "out/b").read_bytes() == CONTENT
