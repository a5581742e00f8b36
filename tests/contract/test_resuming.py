"""Large files that are cut: each next attempt, of any process, goes on where the last one stopped."""

from __future__ import annotations

import contextlib
import ftplib
import itertools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import xxhash
from contract_parts import LONG, Bytes, a_task, drain, ftps_config, s3_config, sftp_config

import stack
from etl.config import ServerConfig, TransferSettings
from etl.errors import ConnectionLost, EtlError, PartHeld, SessionFault
from etl.models.task import Facts, Task
from etl.transfer import FTPSTransfer, FTPTransfer, LocalTransfer, S3Transfer, SFTPTransfer, relay, resuming
from etl.transfer.base import Session
from etl.transfer.ftp import known
from etl.transfer.partials import OrphanIndex
from etl.transfer.resumable import Foothold, Resumable
from etl.transfer.s3 import known as s3_known
from etl.transfer.s3 import ranges, upload
from servers.certificates import Authority
from servers.crossing import FAR, Crossing, block_of_ports
from servers.pyftpd import DeafHandler, PyFTPD
from servers.s3 import FakeStore
from servers.zoo.stores import Versitygw

pytestmark = pytest.mark.contract

MIB = 1 << 20
LIMITS = replace(LONG, resume_from_bytes=4 * MIB)
BUFFER = memoryview(bytearray(MIB))
OLD = 1_500_000_000


@dataclass
class End:
    """One side of a job: how sessions with it are opened, where its `/` is, and the proxy before it."""

    open: Callable[[TransferSettings], Session]
    root: Path
    way: Crossing | None = None
    store: FakeStore | None = None


@pytest.fixture(autouse=True)
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have parts of uploads, and pieces of objects, in proportion to the files of these tests; not in long ones."""
    if request.node.get_closest_marker("long") is None:
        monkeypatch.setattr(upload, "PART_BYTES", 5 * MIB)  # no store takes smaller ones
        monkeypatch.setattr(ranges, "BEGINNING_BYTES", 2 * MIB)
        monkeypatch.setattr(ranges, "PIECE_BYTES", MIB)
        monkeypatch.setattr(ranges, "ROOM_BYTES", MIB)


@pytest.fixture
def make_end(
    request: pytest.FixtureRequest, tmp_path: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str], End]]:
    """Make a side of a kind under a name."""
    with contextlib.ExitStack() as ending:
        yield lambda kind, name: _end(kind, name, request, tmp_path, authority, ending)
    known.forget()
    s3_known.forget()


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
        far = FAR if name == "A" else "127.0.0.4"  # both sides may be this one server, each over a way of its own
        way = ending.enter_context(Crossing([server.port], far))
        config = replace(sftp_config(server, base_path=str(server.root / folder)), hostname=name, host=far)
        return End(lambda limits: SFTPTransfer(config, limits), server.root / folder, way)
    if kind == "s3":
        store = ending.enter_context(contextlib.closing(FakeStore(tmp_path / f"{name}-store")))
        (store.root / folder).mkdir()
        way = ending.enter_context(Crossing([store.port], FAR))
        bucket = s3_config(store, name, folder, ENDPOINT=f"http://{FAR}:{store.port}")
        return End(lambda limits: S3Transfer(bucket, limits), store.root / folder, way, store)
    if kind == "versitygw":
        real = ending.enter_context(Versitygw(tmp_path / f"{name}-store").for_the_session())
        real.below(folder).mkdir()
        way = ending.enter_context(Crossing([real.port], FAR))
        bucket = s3_config(real, name, folder, ENDPOINT=f"http://{FAR}:{real.port}")
        return End(lambda limits: S3Transfer(bucket, limits), real.below(folder), way)
    ports = block_of_ports()
    if kind in HANDLERS:
        ftpd = PyFTPD(tmp_path / f"{name}-ftp", HANDLERS[kind], passive_ports=ports)
        server = ending.enter_context(contextlib.closing(ftpd))
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


class NoRest(DeafHandler):
    """Knows no REST."""

    def ftp_REST(self, line: str) -> None:  # noqa: N802 - pyftpdlib's name
        self.respond(f"502 REST {line}: not implemented.")


class NoRestart(DeafHandler):
    """Takes no upload behind a REST, as ProFTPD does unless told."""

    def ftp_STOR(self, file: str, mode: str = "w") -> Any:  # noqa: N802 - pyftpdlib's name
        offset, self._restart_position = self._restart_position, 0
        if offset:
            return self.respond("451 Append/Restart not permitted, try again.")
        return super().ftp_STOR(file, mode)


class Ignoring(DeafHandler):
    """Says yes to REST, and stores from the start: the rest alone is there."""

    def ftp_STOR(self, file: str, mode: str = "w") -> Any:  # noqa: N802 - pyftpdlib's name
        self._restart_position = 0
        return super().ftp_STOR(file, mode)


class Overwriting(DeafHandler):
    """Stores from the start, over what is there: the size is right in the end."""

    def ftp_STOR(self, file: str, mode: str = "w") -> Any:  # noqa: N802 - pyftpdlib's name
        offset, self._restart_position = self._restart_position, 0
        return super().ftp_STOR(file, "r+" if offset else mode)


class Appending(DeafHandler):
    """Stores behind what is there, wherever REST says."""

    def ftp_STOR(self, file: str, mode: str = "w") -> Any:  # noqa: N802 - pyftpdlib's name
        offset, self._restart_position = self._restart_position, 0
        return super().ftp_STOR(file, "a" if offset else mode)


class Zeroing(DeafHandler):
    """Fills with zeros what is before the place."""

    def ftp_STOR(self, file: str, mode: str = "w") -> Any:  # noqa: N802 - pyftpdlib's name
        if self._restart_position:
            os.truncate(file, 0)
            os.truncate(file, self._restart_position)
        return super().ftp_STOR(file, mode)


class FromTheStart(DeafHandler):
    """Says yes to REST, and sends from the start."""

    def ftp_RETR(self, file: str) -> Any:  # noqa: N802 - pyftpdlib's name
        self._restart_position = 0
        return super().ftp_RETR(file)


class Holding(DeafHandler):
    """Begins no upload behind a REST, as one does that waits for a lock; small files are nobody's."""

    def ftp_STOR(self, file: str, mode: str = "w") -> Any:  # noqa: N802 - pyftpdlib's name
        return None if self._restart_position > MIB else super().ftp_STOR(file, mode)


ODD = {kind.__name__: kind for kind in (NoRest, NoRestart, Ignoring, Overwriting, Appending, Zeroing, FromTheStart)}
HANDLERS = {"pyftpdlib": DeafHandler, "Holding": Holding, **ODD}


def attempt(task: Task, source: End, destination: End, token: str) -> relay.Receipt | EtlError:
    """Run a job as a process does that knows nothing of the last one's."""
    task.orphan_scan_since = 0.0
    s3_known.forget()
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


def names(end: End) -> list[str]:
    """Return the names of all files at the destination, and the keys of what is not whole."""
    files = [path.name for path in end.root.rglob("*") if path.is_file()]
    return files + ([one["key"] for one in end.store.uploads.values()] if end.store else [])


def put(end: End, content: bytes, at: int = OLD) -> None:
    """Make the source."""
    (end.root / "a").write_bytes(content)
    os.utime(end.root / "a", (at, at))


KINDS = ["local", "vsftpd", "pyftpdlib", "vsftpd_tls", "sshd"]
SPANNING = [("local", "vsftpd"), ("vsftpd", "vsftpd_tls"), ("vsftpd_tls", "sshd"), ("sshd", "local")]
STORES = [("local", "s3"), ("s3", "local")]  # a part that is sent again is larger than a block
REAL_STORES = [("local", "versitygw"), ("versitygw", "local"), ("versitygw", "versitygw")]
LONG_PAIRS = [
    pytest.param(*pair, 1024, 10, marks=[pytest.mark.long, pytest.mark.timeout(600)])
    for pair in [*itertools.product(KINDS, KINDS), *REAL_STORES]
    if pair != ("local", "local")
]


@pytest.mark.parametrize(
    ("source", "destination", "size_mib", "cuts"),
    [*((*pair, 128, 5) for pair in SPANNING), *((*pair, 128, 2) for pair in STORES), *LONG_PAIRS],
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
    assert names(theirs) == ["b"]
    assert task.remarks["resumed_at"] > len(content) // 3
    for way in ways:
        print(f"{source} to {destination}: {way.moved_bytes / len(content):.3f} of its size, {number + 1} attempts")
        assert way.moved_bytes < 1.3 * len(content)


def cut_once(ours: End, theirs: End, content: bytes, at: int = OLD) -> None:
    """Have a job be cut in the middle."""
    put(ours, content, at)
    way = ours.way or theirs.way
    assert way is not None
    way.cut_at = [way.moved_bytes + len(content) // 2]
    assert isinstance(attempt(a_task(), ours, theirs, "0"), EtlError)


def part(end: End) -> Path:
    """Return the one partial file, once its server has written all that it received."""
    (found,) = list(end.root.rglob(".etl-*.part"))
    stack.wait_until(lambda: not is_open(found), 10, f"{found} is still written")
    return found


def is_open(path: Path) -> bool:
    """Has any process a file open?"""
    for opened in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if opened.readlink() == path:
                return True
    return False


def finished(ours: End, theirs: End) -> tuple[Task, int]:
    """Run a job until it is done; return it, and how many attempts that took."""
    for number in range(1, 5):
        ended = attempt(task := a_task(), ours, theirs, f"{number:x}")
        if isinstance(ended, relay.Receipt):
            assert names(theirs) == ["b"]
            return task, number
    raise AssertionError(ended)


@pytest.mark.parametrize(("source", "destination"), [("local", "FTP"), ("FTP", "local")])
@pytest.mark.parametrize("kind", ["vsftpd", "pyftpdlib", "vsftpd_tls"])
def test_a_data_connection_that_ends_alone_is_gone_on_with(
    make_end: Callable[[str, str], End], kind: str, source: str, destination: str
) -> None:
    """Whatever the server says of it then: some call what they have a whole file."""
    ours, theirs = make_end(source.replace("FTP", kind), "A"), make_end(destination.replace("FTP", kind), "FAKE")
    way = ours.way or theirs.way
    assert way is not None
    way.spared = {way.ports[0]}
    put(ours, content := os.urandom(16 * MIB))
    way.cut_at = [way.moved_bytes + len(content) // 2]
    error = attempt(task := a_task(), ours, theirs, "0")
    assert isinstance(error, EtlError)
    assert resuming.is_kept(task, error, is_last=False), repr(error)
    task, attempts = finished(ours, theirs)
    assert (theirs.root / "out/b").read_bytes() == content
    assert attempts == 1
    assert task.remarks["resumed_at"] >= 4 * MIB


@pytest.mark.parametrize("side", ["source", "destination"])
@pytest.mark.parametrize("kind", list(ODD))
def test_a_server_that_cannot_go_on_gets_the_file_from_its_start(
    make_end: Callable[[str, str], End], kind: str, side: str
) -> None:
    """It refuses, or does another thing than it says: that is found out, and the file is right."""
    far, near = make_end(kind, "FAKE" if side == "destination" else "A"), make_end("local", "HERE")
    ours, theirs = (near, far) if side == "destination" else (far, near)
    content = os.urandom(16 * MIB)
    cut_once(ours, theirs, content)
    task, attempts = finished(ours, theirs)
    assert (theirs.root / "out/b").read_bytes() == content
    assert attempts <= 2
    reads_only = kind not in {"NoRest", "FromTheStart"}
    assert ("resumed_at" in task.remarks) == (side == "source" and reads_only)


PAIRS = [
    ("local", "vsftpd"),
    ("vsftpd", "local"),
    ("local", "sshd"),
    ("sshd", "local"),
    ("local", "s3"),
    ("s3", "local"),
]


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_a_source_that_was_replaced_is_never_mixed_with_what_it_was(
    make_end: Callable[[str, str], End], source: str, destination: str
) -> None:
    """Another time, another size; or both the same: then the bytes tell."""
    ours, theirs = make_end(source, "A"), make_end(destination, "FAKE")
    size_bytes = 16 * MIB
    for at, more_bytes in ((OLD + 1, 0), (OLD, 1), (OLD, 0)):
        cut_once(ours, theirs, os.urandom(size_bytes))
        put(ours, content := os.urandom(size_bytes + more_bytes), at)
        task, _ = finished(ours, theirs)
        assert (theirs.root / "out/b").read_bytes() == content
        assert "resumed_at" not in task.remarks
        (theirs.root / "out/b").unlink()


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_a_part_that_somebody_changed_is_not_gone_on_with(
    make_end: Callable[[str, str], End], source: str, destination: str
) -> None:
    """Filled with zeros, replaced by another file, longer than the whole, nearly nothing, gone: from the start."""
    ours, theirs = make_end(source, "A"), make_end(destination, "FAKE")
    size_bytes = 16 * MIB
    changes: list[Callable[[Path], object]] = [
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
        lambda path: path.write_bytes(os.urandom(size_bytes + 1)),
        lambda path: path.write_bytes(b"x"),
        Path.unlink,
    ]
    for change in changes:
        cut_once(ours, theirs, content := os.urandom(size_bytes))
        change(part(theirs))
        task, attempts = finished(ours, theirs)
        assert (theirs.root / "out/b").read_bytes() == content
        assert "resumed_at" not in task.remarks
        assert attempts <= 2
        (theirs.root / "out/b").unlink()


@pytest.mark.parametrize(
    ("source", "destination", "is_same_process", "hashed_anew_bytes"),
    [
        ("pyftpdlib", "local", True, 0),
        ("local", "pyftpdlib", False, 16 * MIB),
        ("local", "pyftpdlib", False, MIB),
        ("pyftpdlib", "local", False, 16 * MIB),
    ],
)
def test_the_checksum_of_a_file_that_was_cut(
    make_end: Callable[[str, str], End],
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    destination: str,
    is_same_process: bool,
    hashed_anew_bytes: int,
) -> None:
    """The hash goes on where the copy does; another process makes it anew from a folder, or says that there is none.

    It makes it of no more than it can read in seconds.
    """
    monkeypatch.setattr(resuming, "_HASHED_ANEW_BYTES", hashed_anew_bytes)
    ours, theirs = make_end(source, "A"), make_end(destination, "FAKE")
    content = os.urandom(16 * MIB + 1234)
    put(ours, content)
    way = ours.way or theirs.way
    assert way is not None
    way.cut_at = [len(content) // 2]
    task = a_task()
    assert isinstance(attempt(task, ours, theirs, "0"), EtlError)
    if not is_same_process:
        task = a_task()
    receipt = attempt(task, ours, theirs, "1")
    assert isinstance(receipt, relay.Receipt)
    assert task.remarks["resumed_at"] > 0
    if is_same_process or (source == "local" and hashed_anew_bytes > len(content) // 2):
        assert receipt.checksum == f"xxh3-128:{xxhash.xxh3_128(content).hexdigest()}"
        assert "checksum_error" not in task.remarks
    else:
        assert receipt.checksum is None
        assert "not known any more" in task.remarks["checksum_error"]


def test_a_source_that_breaks_while_it_is_proven_is_closed(
    make_end: Callable[[str, str], End], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else knows of it yet."""
    ours, theirs = make_end("local", "A"), make_end("pyftpdlib", "FAKE")
    cut_once(ours, theirs, os.urandom(16 * MIB))
    broken = ConnectionLost("gone")

    def breaks(*_: object) -> bool:
        assert is_open(ours.root / "a")
        raise broken

    monkeypatch.setattr(Foothold, "proves", breaks)
    ended = attempt(a_task(), ours, theirs, "1")
    assert ended is broken
    assert not is_open(ours.root / "a")


def test_a_part_that_its_server_still_holds_is_given_up(
    make_end: Callable[[str, str], End], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload that was cut may hold it for minutes. Two short looks, that spend no attempt; then anew."""
    monkeypatch.setattr("etl.transfer.ftp.upload._HELD_SECONDS", 0.3)
    ours, theirs = make_end("local", "A"), make_end("Holding", "FAKE")
    cut_once(ours, theirs, content := os.urandom(16 * MIB))
    part(theirs)
    task = a_task()
    for token, is_kept in (("1", True), ("2", False)):
        error = attempt(task, ours, theirs, token)
        assert isinstance(error, PartHeld)
        assert not error.spends_attempt
        assert resuming.is_kept(task, error, is_last=False) == is_kept
    part(theirs).unlink()  # as whoever runs the job does
    assert isinstance(attempt(task, ours, theirs, "3"), relay.Receipt)
    assert (theirs.root / "out/b").read_bytes() == content
    assert "resumed_at" not in task.remarks


def test_what_a_crash_left_unwritten_behind_the_place_is_sent_again(make_end: Callable[[str, str], End]) -> None:
    """A server that lost its power may have zeros at the end of a file."""
    ours, theirs = make_end("local", "A"), make_end("vsftpd", "FAKE")
    cut_once(ours, theirs, content := os.urandom(16 * MIB))
    left = part(theirs)
    stored_bytes = left.stat().st_size
    with left.open("r+b") as file:
        file.truncate(stored_bytes - MIB)
        file.truncate(stored_bytes)
    task, _ = finished(ours, theirs)
    assert (theirs.root / "out/b").read_bytes() == content
    assert task.remarks["resumed_at"] < stored_bytes - MIB + 1


def test_an_upload_that_was_cut_and_goes_on_at_the_server_is_waited_for(make_end: Callable[[str, str], End]) -> None:
    """As after a lost network, or a process that is frozen: vsftpd has the file locked, and then it is longer.

    That costs no attempt, and what is there is gone on with.
    """
    ours, theirs = make_end("local", "A"), make_end("vsftpd", "FAKE")
    cut_once(ours, theirs, content := os.urandom(16 * MIB))
    left = part(theirs)
    stored_bytes, config = left.stat().st_size, theirs.open(LIMITS).server
    with ftplib.FTP() as cut:
        cut.connect(config.host, config.port, 10)
        cut.login(config.username, config.password)
        with cut.transfercmd(f"APPE {config.base_path}/out/{left.name}") as upload:
            stack.wait_until(lambda: is_open(left), 10, "an upload that goes on")
            rest = content[stored_bytes : stored_bytes + MIB]
            ending = threading.Timer(2, lambda: (upload.sendall(rest), upload.shutdown(socket.SHUT_WR)))
            ending.start()
            task = a_task()
            first = attempt(task, ours, theirs, "1")
            ending.join()
        cut.voidresp()
    assert isinstance(first, SessionFault)
    assert resuming.is_kept(task, first, is_last=False)
    task, attempts = finished(ours, theirs)
    assert (theirs.root / "out/b").read_bytes() == content
    assert attempts == 1
    assert task.remarks["resumed_at"] >= stored_bytes - 2 * MIB


def test_a_source_of_this_moment_is_sent_from_its_start(make_end: Callable[[str, str], End]) -> None:
    """It may be written again within the second that its time tells."""
    ours, theirs = make_end("local", "A"), make_end("vsftpd", "FAKE")
    cut_once(ours, theirs, content := os.urandom(16 * MIB), int(time.time()))
    task, _ = finished(ours, theirs)
    assert (theirs.root / "out/b").read_bytes() == content
    assert "resumed_at" not in task.remarks


@pytest.mark.needs("resume", "size", "remove", "partial")
def test_what_is_trusted_goes_on_right(subject: Any, buffer: memoryview) -> None:
    """On every server: a part is gone on with at its own offset and right to the byte, or not at all."""
    session = subject.open()
    assert isinstance(session, Resumable)
    content, cut_at = os.urandom(8 * MIB), 5 * MIB + 12345
    session.write_on("/out/left", Bytes(content[:cut_at]), buffer, 0).require_stored()
    facts = session.look("/out/left")
    if not session.is_trusted("/out/part", buffer):
        assert session.goes_on is False
        assert session.look("/out/part") is None
        return
    foothold = session.take_over("/out/left", "/out/part", len(content))
    assert facts is not None
    assert foothold is not None
    assert foothold.offset == 4 * MIB
    assert session.look("/out/left") is None
    assert foothold.proves(Bytes(content[3 * MIB :]), buffer)
    assert not foothold.proves(Bytes(content[2 * MIB :]), buffer)
    parcel = session.read_on("/out/part", 4 * MIB)
    assert parcel is not None
    assert drain(parcel, buffer) == content[4 * MIB : cut_at]
    parcel.close(complete=True)
    rest = Bytes(content[4 * MIB :], Facts(len(content), None))
    stored = session.write_on("/out/part", rest, buffer, 4 * MIB)
    assert (stored.sent_bytes, stored.size_bytes) == (len(content), len(content))
    session.publish(stored, "/out/whole", None).result()
    assert (subject.root / "out/whole").read_bytes() == content
    assert subject.files() == {"out/whole"}
