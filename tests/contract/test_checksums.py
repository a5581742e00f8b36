"""`verify: checksum`, checksum files and the like at every protocol, and at real servers that make checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_parts import LONG, a_task, moved

from etl import errors
from etl.config import ServerConfig
from etl.transfer import FTPTransfer, LocalTransfer, SFTPTransfer, receipts
from etl.transfer.base import Session
from etl.transfer.ftp import known
from servers.zoo import place
from servers.zoo.server import ProFTPD, ProFTPDSftp

pytestmark = pytest.mark.contract

CONTENT = b"the content of a file" * 100_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def here(tmp_path: Path) -> LocalTransfer:
    """A source with the file `a`."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").write_bytes(CONTENT)
    return LocalTransfer(ServerConfig("A", "local", base_path=str(tmp_path / "here")))


def task_to(path: str, **options: Any) -> Any:
    """Make a task that copies `a` to a path."""
    task = a_task(**options)
    task.job = task.job.model_copy(update={"destination": task.job.destination.model_copy(update={"path": path})})
    return task


@pytest.mark.needs("look", "remove")
def test_a_copy_is_proven_by_its_bytes(subject, here: LocalTransfer, buffer: memoryview) -> None:
    """By a checksum that the server makes, or by reading it back; and one that differs is found."""
    session = subject.open()
    task = task_to("/out here/b", verify="checksum", write_checksum_file="sha256")
    receipt = moved(task, here, session, buffer)
    assert receipt.verified_by in {receipts.STORE, receipts.HASH, receipts.CONTENT}
    assert receipt.checksum == f"sha256:{SHA256}"
    assert subject.files() == {"out here/b", "out here/b.sha256"}
    assert (subject.root / "out here/b.sha256").read_text() == f"{SHA256}  b\n"
    rung = receipts.CONTENT if receipt.verified_by == receipts.STORE else receipt.verified_by
    assert receipts.digest_at(session, "/out here/b", "sha256", len(CONTENT), buffer) == (SHA256, rung)
    place = subject.root / "out here/b"
    place.write_bytes(CONTENT[:-1] + b"?")
    assert receipts.digest_at(session, "/out here/b", "sha256", len(CONTENT), buffer)[0] != SHA256


@pytest.mark.needs("look")
def test_what_a_checksum_file_beside_the_source_says_counts(subject, tmp_path: Path, buffer: memoryview) -> None:
    """A right one lets the file pass, a wrong one does not, and one that must be there is missed."""
    there = LocalTransfer(ServerConfig("FAKE", "local", base_path=str(tmp_path / "there")))
    (tmp_path / "there").mkdir()
    source = subject.open()
    subject.put("a", CONTENT)
    with pytest.raises(errors.FileMissing, match="no checksum file"):
        moved(a_task(checksum_file="require"), source, there, buffer)
    subject.put("MD5SUMS", b"# none\n" + hashlib.md5(CONTENT, usedforsecurity=False).hexdigest().encode() + b"  a\n")
    assert moved(a_task(checksum_file="require"), source, there, buffer).checksum.startswith("md5:")
    subject.put("a.sha256", SHA256.encode())
    assert moved(a_task(checksum_file="use"), source, there, buffer).checksum == f"sha256:{SHA256}"
    subject.put("a.sha256", b"00" * 32)
    (tmp_path / "there/out/b").unlink()
    with pytest.raises(errors.ChecksumMismatch):
        moved(a_task(checksum_file="use"), source, there, buffer)
    assert list((tmp_path / "there/out").iterdir()) == []


@pytest.mark.needs("look", "folders")
def test_a_folder_of_the_name_of_a_checksum_file_says_nothing(subject, tmp_path: Path, buffer: memoryview) -> None:
    """As if it were not there, and the session goes on."""
    (tmp_path / "there").mkdir()
    there = LocalTransfer(ServerConfig("FAKE", "local", base_path=str(tmp_path / "there")))
    source = subject.open()
    subject.put("a", CONTENT)
    subject.put("a.sha256/x")
    assert moved(a_task(checksum_file="use"), source, there, buffer).checksum.startswith("xxh3-128:")
    with pytest.raises(errors.FileMissing, match="no checksum file"):
        moved(a_task(checksum_file="require"), source, there, buffer)


# --- servers that make checksums --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["ftp", "sftp"])
def proftpd(request: pytest.FixtureRequest) -> Iterator[ProFTPD]:
    """ProFTPD with mod_digest, and with mod_sftp, which knows `check-file`."""
    with place() as folder:
        digests = (f"ModulePath {ProFTPDSftp.needs.parent}", "LoadModule mod_digest.c")
        server = ProFTPD(folder, *digests) if request.param == "ftp" else ProFTPDSftp(folder)
        with server.for_the_session():
            yield server


@pytest.fixture
def session(proftpd: ProFTPD) -> Iterator[Session]:
    """Open a session with it."""
    known.forget()
    login = (proftpd.host, proftpd.port, proftpd.username, proftpd.password)
    opened: Session
    if isinstance(proftpd, ProFTPDSftp):
        opened = SFTPTransfer(ServerConfig("FAKE", "sftp", *login, options={"HOST_KEY": proftpd.fingerprint}), LONG)
    else:
        opened = FTPTransfer(ServerConfig("FAKE", "ftp", *login), LONG)
    opened.connect()
    yield opened
    opened.disconnect()


def test_a_real_server_proves_what_it_stored(session: Session, here: LocalTransfer, buffer: memoryview) -> None:
    """Without one byte of it being read back."""
    receipt = moved(task_to("/proven/a b", verify="checksum"), here, session, buffer)
    assert (receipt.verified_by, receipt.checksum) == (receipts.HASH, f"sha256:{SHA256}")


@pytest.mark.parametrize("name", ["plain", "with blanks", 'with "quotes"', "한글", "f" * 64])
def test_every_way_of_a_real_server_tells_the_truth(
    session: Session, proftpd: ProFTPD, name: str, buffer: memoryview
) -> None:
    """By each algorithm, for every name; of a file that is not there it tells nothing."""
    path = proftpd.root / name
    path.write_bytes(CONTENT)
    path.chmod(0o644)
    for algorithm in session.hashes():
        told = session.hash_of(f"/{name}", algorithm, len(CONTENT))
        if told is None and '"' in name:
            continue  # no X command takes such a name: then the file is read back
        assert told is not None
        if algorithm != "crc32":
            assert told == hashlib.new(algorithm, CONTENT).hexdigest()
        assert session.hash_of(f"/{name}.none", algorithm, 0) is None
    assert set(session.hashes()) >= {"sha256", "sha512", "sha1", "md5"}


@pytest.mark.parametrize("proftpd", ["ftp"], indirect=True)
@pytest.mark.parametrize("way", ["HASH", "XSHA256", "XMD5", "XCRC", "MD5"])
def test_each_command_alone(session: Session, proftpd: ProFTPD, way: str) -> None:
    """Where the others were refused."""
    assert isinstance(session, FTPTransfer)
    (proftpd.root / "a b").write_bytes(CONTENT)
    link = session.link
    link._features = {name: rest for name, rest in link._features.items() if name == way}
    for algorithm in session.hashes():
        told = session.hash_of("/a b", algorithm, len(CONTENT))
        assert told is not None
        if algorithm in hashlib.algorithms_available:
            assert told == hashlib.new(algorithm, CONTENT).hexdigest()
