"""Checksums at FTP servers: which way is asked, how replies are read, what happens when they differ or do not come."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from contract_parts import SHORT, a_task, moved

from etl import errors
from etl.config import ServerConfig
from etl.transfer import FTPTransfer, LocalTransfer, receipts
from etl.transfer.base import Session
from etl.transfer.ftp import control, hashing, known
from etl.transfer.ftp.replies import Reply
from servers.fake import SILENCE, FakeFTP, FakeSession

pytestmark = pytest.mark.contract

CONTENT = b"the content of a file" * 1000
PLAIN = ("EPSV", "MDTM", "SIZE", "UTF8")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def of_file(made: Callable[[bytes], str], form: str = "250 {}") -> Callable[[Any, str], str]:
    """Return an answer that makes a checksum of the file whose name comes, as it is."""

    def answer(session: Any, name: str) -> str:
        content = session.server.files.get(name)
        return "550 No such file." if content is None else form.format(made(content), name=name)

    return answer


@pytest.fixture
def source(tmp_path) -> LocalTransfer:
    (tmp_path / "a").write_bytes(CONTENT)
    session = LocalTransfer(ServerConfig("A", "local", base_path=str(tmp_path)))
    session.connect()
    return session


@pytest.fixture
def destination(request: pytest.FixtureRequest):
    """Open a session with a fake server."""

    def serve(features: tuple[str, ...] = (), **answers: Any) -> tuple[FakeFTP, FTPTransfer]:
        known.forget()
        server = FakeFTP(features=PLAIN + features, answers=answers)
        request.addfinalizer(server.close)
        session = FTPTransfer(
            ServerConfig("FAKE", "ftp", server.host, server.port, server.username, server.password), SHORT
        )
        request.addfinalizer(session.disconnect)
        session.connect()
        return server, session

    return serve


def verbs(server: FakeFTP) -> list[str]:
    """Return the commands since the upload."""
    lines = [line.partition(" ")[0] for line in server.commands]
    return lines[lines.index("STOR") :]


def test_nobody_asks_for_a_checksum_so_none_is_asked_of_the_server(source, destination, buffer: memoryview) -> None:
    """The receipt has our own one all the same."""
    server, session = destination(("HASH SHA-1;SHA-256*", "XSHA256"))
    receipt = moved(a_task(), source, session, buffer)
    assert receipt.verified_by == receipts.SIZE
    assert receipt.checksum.startswith("xxh3-128:")
    assert not {"HASH", "OPTS", "XSHA256"} & set(verbs(server))


@pytest.mark.parametrize(
    ("features", "answers", "algorithm"),
    [
        (
            ("HASH SHA-1*;SHA-256;MD5",),
            {"HASH": of_file(sha256, "213 SHA-256 0-21000 {} {name}"), "OPTS": "200 SHA-256"},
            "sha256",
        ),
        (("XSHA256",), {"XSHA256": of_file(sha256)}, "sha256"),
        (("XMD5", "XCRC"), {"XMD5": of_file(md5, "250 XMD5 {}")}, "md5"),
        (("MD5",), {"MD5": of_file(md5, "251 {name} {}")}, "md5"),
        (("XCRC filename;start;end",), {"XCRC": of_file(lambda content: f"{zlib.crc32(content):08X}")}, "crc32"),
    ],
    ids=["HASH", "XSHA256", "XMD5", "MD5", "XCRC"],
)
def test_the_server_proves_what_was_stored(
    source, destination, buffer: memoryview, features: tuple[str, ...], answers: dict[str, Any], algorithm: str
) -> None:
    """By the best way it offers; after its last word on the upload, and before the rename."""
    server, session = destination(features, **answers)
    receipt = moved(a_task(verify="checksum"), source, session, buffer)
    assert receipt.verified_by == receipts.HASH
    assert receipt.checksum.split(":")[0] == algorithm
    asked = verbs(server)
    assert asked.index("STOR") < asked.index(next(iter(answers))) < asked.index("RNFR")
    assert server.files["/out/b"] == CONTENT


def test_a_copy_that_differs_is_not_published(source, destination, buffer: memoryview) -> None:
    """Of the same size, with another byte in it: it may come right with another attempt."""
    server, session = destination(("XSHA256",), XSHA256=f"250 {sha256(b'x')}")
    with pytest.raises(errors.CopyDamaged, match="sha256 is") as raised:
        moved(a_task(verify="checksum"), source, session, buffer)
    assert (raised.value.code, errors.fate_of(raised.value)) == ("CHECKSUM_MISMATCH", errors.Fate.RETRY)
    assert server.files == {}


def test_what_the_server_refuses_is_read_back_and_not_asked_again(source, destination, buffer: memoryview) -> None:
    """It is offered in FEAT, and unknown when it is used."""
    server, session = destination(("XSHA256",), XSHA256="502 Not here.")
    for _ in range(2):
        receipt = moved(a_task(verify="checksum"), source, session, buffer)
        assert receipt.verified_by == receipts.CONTENT
    assert [line.partition(" ")[0] for line in server.commands].count("XSHA256") == 1


def test_a_file_that_may_not_be_read_back_is_refused_before_it_is_sent(source, destination, buffer: memoryview) -> None:
    """No checksums, and a limit below its size: the job could never be done as it asks."""
    server, session = destination()
    session.settings = dataclasses.replace(session.settings, read_back_limit_bytes=10)
    with pytest.raises(errors.SettingsError, match="ETL_VERIFY_READ_BACK_LIMIT_BYTES"):
        moved(a_task(verify="checksum"), source, session, buffer)
    assert "STOR" not in [line.partition(" ")[0] for line in server.commands]


@pytest.mark.parametrize("is_right", [True, False])
def test_what_the_job_says_of_its_source_is_checked_before_publishing(
    source, destination, buffer: memoryview, is_right: bool
) -> None:
    """A mismatch is final; nothing is left of the partial file."""
    server, session = destination()
    value = sha256(CONTENT if is_right else b"another")
    task = a_task(checksum={"algorithm": "SHA-256", "value": value.upper()})
    if is_right:
        assert moved(task, source, session, buffer).checksum == f"sha256:{value}"
        return
    with pytest.raises(errors.ChecksumMismatch, match=value) as raised:
        moved(task, source, session, buffer)
    assert (raised.value.code, errors.fate_of(raised.value)) == ("CHECKSUM_MISMATCH", errors.Fate.DEAD)
    assert server.files == {}


def test_a_server_that_falls_silent_is_asked_twice(source, destination, buffer: memoryview) -> None:
    """Then the way counts as gone, and the file is read back."""
    _, session = destination(("XSHA256",), XSHA256=SILENCE)
    for _ in range(2):
        with pytest.raises(errors.TransferTimeout):
            moved(a_task(verify="checksum"), source, session, buffer)
        session.disconnect()
        session = _again(session)
    assert moved(a_task(verify="checksum"), source, session, buffer).verified_by == receipts.CONTENT
    session.disconnect()


def _again(session: Session) -> FTPTransfer:
    fresh = FTPTransfer(session.server, SHORT)
    fresh.connect()
    return fresh


def test_a_reply_that_takes_long_is_waited_for(
    source, destination, buffer: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ProFTPD sends its first line at once, and the last one when it has read the file."""
    monkeypatch.setattr(control, "_OPEN_SECONDS", 0.05)

    def slowly(session: FakeSession, name: str) -> str:
        session.reply("250-Computing SHA256 digest")
        time.sleep(0.2)
        return f"250 {sha256(session.server.files[name])}"

    _, session = destination(("XSHA256",), XSHA256=slowly)
    assert moved(a_task(verify="checksum"), source, session, buffer).verified_by == receipts.HASH


@pytest.mark.parametrize(
    ("line", "algorithm", "value"),
    [
        (f"213 SHA-256 0-21 {'ab' * 32} {'cd' * 32}", "sha256", "ab" * 32),
        (f"213 SHA-1 0-21 {'ab' * 20} a", "sha256", None),
        (f'250 "/out/{"cd" * 16}" {"AB" * 16}', "md5", "ab" * 16),
        (f"251 /out/a {'ab' * 16}.", "md5", None),
        ("250 1f", "crc32", "0000001f"),
        ("250 XCRC 3610A686", "crc32", "3610a686"),
        ("250 Done.", "crc32", None),
    ],
)
def test_what_replies_say(line: str, algorithm: str, value: str | None) -> None:
    """The checksum is told from names that look like one; one of another algorithm is none."""
    reply = Reply(int(line[:3]), (line.encode(),))
    assert hashing.value_in(reply, algorithm, f"/{'cd' * 32}".encode()) == value
