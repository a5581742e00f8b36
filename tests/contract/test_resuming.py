"""Large files that are cut: each next attempt, of any process, goes on where the last one stopped."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from contract_parts import LONG, a_task, ftps_config, sftp_config

import stack
from etl.config import ServerConfig, TransferSettings
from etl.errors import EtlError
from etl.models.task import Task
from etl.transfer import FTPSTransfer, FTPTransfer, LocalTransfer, SFTPTransfer, relay
from etl.transfer.base import Session
from etl.transfer.ftp import known
from etl.transfer.partials import OrphanIndex
from servers.certificates import Authority
from servers.crossing import Crossing
from servers.pyftpd import PyFTPD

pytestmark = pytest.mark.contract

MIB = 1 << 20
LIMITS = replace(LONG, resume_from_bytes=4 * MIB)
BUFFER = memoryview(bytearray(MIB))
OLD = 1_500_000_000
FAR = "127.0.0.2"


@dataclass
class End:
    """One side of a job: how sessions with it are opened, where its `/` is, and the proxy before it."""

    open: Callable[[TransferSettings], Session]
    root: Path
    way: Crossing | None = None


@pytest.fixture
def make_end(
    request: pytest.FixtureRequest, tmp_path: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str], End]]:
    """Make a side of a kind under a name."""
    with contextlib.ExitStack() as ending:
        yield lambda kind, name: _end(kind, name, request, tmp_path, authority, ending)
    known.forget()


def _end(
    kind: str,
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    authority: Authority,
    ending: contextlib.ExitStack,
) -> End:
    folder = f"{name.lower()}-{uuid.uuid4().hex[:8]}"
    if kind == "local":
        (tmp_path / folder).mkdir()
        config = ServerConfig(name, "local", base_path=str(tmp_path / folder))
        return End(lambda limits: LocalTransfer(config, limits), tmp_path / folder)
    if kind == "sshd":
        server = request.getfixturevalue("sshd")
        (server.root / folder).mkdir()
        way = ending.enter_context(Crossing([server.port], FAR))
        config = replace(sftp_config(server, base_path=str(server.root / folder)), hostname=name, host=FAR)
        return End(lambda limits: SFTPTransfer(config, limits), server.root / folder, way)
    ports = block_of_ports()
    if kind == "pyftpdlib":
        server = ending.enter_context(contextlib.closing(PyFTPD(tmp_path / "ftp", passive_ports=ports)))
    else:
        given = {"pasv_min_port": str(ports[0]), "pasv_max_port": str(ports[-1])}
        if kind == "vsftpd_tls":
            given |= stack.STRICT_TLS | {"rsa_cert_file": str(authority.sign("far", FAR).pem)}
        server = request.getfixturevalue("make_vsftpd")(**given)
    (server.root / folder).mkdir()
    way = ending.enter_context(Crossing([server.port, *ports], FAR))
    if kind == "vsftpd_tls":
        secure = replace(ftps_config(server, authority, base_path=f"/{folder}"), hostname=name, host=FAR)
        return End(lambda limits: FTPSTransfer(secure, limits), server.root / folder, way)
    login = (FAR, server.port, server.username, server.password)
    config = ServerConfig(name, "ftp", *login, base_path=f"/{folder}")
    return End(lambda limits: FTPTransfer(config, limits), server.root / folder, way)


def block_of_ports(count: int = 12) -> list[int]:
    """Find ports in a row that nobody listens on, beyond those of `stack.free_port`."""
    while True:
        first = random.randrange(stack.PORTS[-1].stop, 32768 - count)  # from there on come outgoing connections
        ports = list(range(first, first + count))
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for host, port in itertools.product(("127.0.0.1", FAR), ports):
                probes.enter_context(socket.create_server((host, port)))
            return ports


def attempt(task: Task, source: End, destination: End, token: str) -> relay.Receipt | EtlError:
    """Run a job as a process does that knows nothing of the last one's."""
    task.orphan_scan_since = 0.0
    sessions = [source.open(LIMITS), destination.open(LIMITS)]
    try:
        for session in sessions:
            session.connect()
        return relay.run(task, *sessions, token, relay.Limits(BUFFER, 0, 0), OrphanIndex())
    except EtlError as error:
        return error
    finally:
        for session in sessions:
            session.disconnect()


def put(end: End, content: bytes, at: int = OLD) -> None:
    """Make the source."""
    (end.root / "a").write_bytes(content)
    os.utime(end.root / "a", (at, at))


KINDS = ["local", "vsftpd", "pyftpdlib", "vsftpd_tls", "sshd"]
SPANNING = [("local", "vsftpd"), ("vsftpd", "vsftpd_tls"), ("vsftpd_tls", "sshd"), ("sshd", "local")]
LONG_PAIRS = [
    pytest.param(*pair, 1024, 10, marks=[pytest.mark.long, pytest.mark.timeout(600)])
    for pair in itertools.product(KINDS, KINDS)
    if pair != ("local", "local")
]


@pytest.mark.parametrize(
    ("source", "destination", "size_mib", "cuts"), [*((*pair, 96, 5) for pair in SPANNING), *LONG_PAIRS]
)
def test_a_file_with_many_cuts_moves_less_than_a_third_more(
    make_end: Callable[[str, str], End], source: str, destination: str, size_mib: int, cuts: int
) -> None:
    """Counted by a proxy, proofs included; and it is right to the byte, with nothing left beside it."""
    ours, theirs = make_end(source, "A"), make_end(destination, "FAKE")
    content = os.urandom(size_mib * MIB)
    put(ours, content)
    ways = [end.way for end in (ours, theirs) if end.way is not None]
    for number in range(cuts):  # at each side in turn
        way = ways[number % len(ways)]
        way.cut_at.append(len(content) * (number + 1) // (cuts + 1))
    for number in itertools.count():
        ended = attempt(task := a_task(), ours, theirs, f"{number:x}")
        if isinstance(ended, relay.Receipt):
            break
        assert number < 2 * cuts, ended
    assert sum(way.cuts for way in ways) == cuts
    assert (theirs.root / "out/b").read_bytes() == content
    assert [path.name for path in theirs.root.rglob("*") if path.is_file()] == (["b"] if theirs is not ours else [])
    assert task.remarks["resumed_at"] > len(content) // 3
    for way in ways:
        print(f"{source} to {destination}: {way.moved_bytes / len(content):.3f} of its size, {number + 1} attempts")
        assert way.moved_bytes < 1.3 * len(content)
