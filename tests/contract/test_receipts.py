"""What a receipt says, and what is not published for its sake; between two folders of this machine."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from contract_parts import Bytes, a_task, drain, moved

from etl import errors
from etl.config import ServerConfig
from etl.models.checksum import DIGITS
from etl.transfer import LocalTransfer, partials, receipts, relay
from etl.transfer.base import Promise, Published, Stored
from etl.transfer.hashing import MAKERS, hashed

pytestmark = pytest.mark.contract

CONTENT = b"the content of a file"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
RIGHT = {"algorithm": "sha256", "value": SHA256}
WRONG = {"algorithm": "sha256", "value": "0" * 64}


class Bent(LocalTransfer):
    """A folder whose server makes checksums; what is in `fails` goes wrong once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(ServerConfig("FAKE", "local", base_path=str(folder)))
        self.folder = folder
        self.fails: set[str] = set()
        self.lies: Callable[[str], str | None] = lambda digest: digest

    def _go_wrong(self, what: str) -> None:
        if what in self.fails:
            self.fails.remove(what)
            raise errors.ConnectionLost("it is gone", server="FAKE")

    def hashes(self) -> tuple[str, ...]:
        return ("sha256", "md5")

    def hash_of(self, path: str, algorithm: str, size_bytes: int) -> str | None:
        self._go_wrong("hash")
        content = (self.folder / path.lstrip("/")).read_bytes()
        assert len(content) == size_bytes
        return self.lies(hashlib.new(algorithm, content).hexdigest())

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        self._go_wrong(final)
        return super().publish(stored, final, mtime)

    def files(self) -> dict[str, bytes]:
        """Return what is there."""
        return {path.name: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> LocalTransfer:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a").write_bytes(CONTENT)
    return LocalTransfer(ServerConfig("A", "local", base_path=str(tmp_path / "source")))


@pytest.fixture
def there(tmp_path: Path) -> Bent:
    return Bent(tmp_path / "there")


@pytest.mark.parametrize("algorithm", DIGITS)
def test_every_algorithm_in_the_pass(algorithm: str, buffer: memoryview) -> None:
    """Of a file that is streamed, and of one that is held."""
    content = bytes(range(256)) * 5000
    expected = {
        "crc32": lambda: f"{zlib.crc32(content):08x}",
        "xxh3-128": lambda: xxhash.xxh3_128_hexdigest(content),
    }.get(algorithm, lambda: hashlib.new(algorithm, content).hexdigest())()
    assert MAKERS.keys() == DIGITS.keys()
    parcel, digests = hashed(Bytes(content), [algorithm])
    assert drain(parcel, buffer) == content
    assert digests() == {algorithm: expected}
    held = Bytes(content)
    held.held = memoryview(content)  # type: ignore[assignment]
    passed, digests = hashed(held, [algorithm])
    assert passed is held
    assert digests() == {algorithm: expected}


def test_one_hash_serves_all(source: LocalTransfer, there: Bent) -> None:
    """The destination makes what the job expects, so no second one is made."""
    task = a_task(verify="checksum", checksum={"algorithm": "MD5", "value": "0" * 32}, write_checksum_file="md5")
    assert receipts.algorithms(task, there, 1) == ("md5",)
    assert receipts.algorithms(a_task(), there, 1) == ("xxh3-128",)
    assert receipts.algorithms(a_task(verify="checksum"), there, 1) == ("sha256",)
    other = a_task(verify="checksum", checksum={"algorithm": "sha1", "value": "0" * 40})
    assert receipts.algorithms(other, there, 1) == ("sha256", "sha1")


def test_a_job_that_asks_more_runs_by_itself() -> None:
    """Its questions would hold up the files behind it; an expected checksum asks nothing of a server."""
    orphans = partials.OrphanIndex()
    asking = ({"verify": "checksum"}, {"checksum_file": "use"}, {"write_checksum_file": "md5"})
    assert [relay.can_pipeline(a_task(**options), orphans) for options in asking] == [False] * 3
    assert relay.can_pipeline(a_task(checksum=RIGHT), orphans)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_session_lost_at_the_checksum_is_asked_again(
    source: LocalTransfer, there: Bent, buffer: memoryview, is_damaged: bool
) -> None:
    """All bytes were stored: they are sent again only where they turn out to be others."""
    task = a_task(verify="checksum")
    there.fails.add("hash")
    with pytest.raises(errors.ConnectionLost):
        moved(task, source, there, buffer)
    (partial,) = there.folder.rglob("*.part")
    if is_damaged:
        partial.write_bytes(b"?" * len(CONTENT))
    inode = partial.stat().st_ino
    receipt = moved(task, source, there, buffer)
    assert (receipt.verified_by, receipt.checksum) == (receipts.HASH, f"sha256:{SHA256}")
    assert is_damaged or (there.folder / "out/b").stat().st_ino == inode
    assert there.files()["b"] == CONTENT


def test_a_session_lost_before_the_checksum_was_compared_publishes_no_wrong_one(
    source: LocalTransfer, there: Bent, buffer: memoryview
) -> None:
    """The next run has no byte to send, and still compares what the job expects."""
    task = a_task(checksum=RIGHT, verify="checksum")
    there.fails.add("hash")
    with pytest.raises(errors.ConnectionLost):
        moved(task, source, there, buffer)
    task.job = a_task(checksum=WRONG, verify="checksum").job
    with pytest.raises(errors.ChecksumMismatch):
        moved(task, source, there, buffer)
    assert "b" not in there.files()


def test_what_a_server_does_not_tell_is_read_back(source: LocalTransfer, there: Bent, buffer: memoryview) -> None:
    """It offers checksums, and makes none of this file."""
    there.lies = lambda _: None
    receipt = moved(a_task(verify="checksum"), source, there, buffer)
    assert (receipt.verified_by, receipt.checksum) == (receipts.CONTENT, f"sha256:{SHA256}")


def test_a_checksum_file_that_fails_is_written_alone_the_next_time(
    source: LocalTransfer, there: Bent, buffer: memoryview, tmp_path: Path
) -> None:
    """The file itself is published by then, and is not sent twice."""
    task = a_task(write_checksum_file="sha256")
    there.fails.add("/out/b.sha256")
    with pytest.raises(errors.ConnectionLost):
        moved(task, source, there, buffer)
    assert there.files() == {"b": CONTENT}
    inode = (there.folder / "out/b").stat().st_ino
    receipt = moved(task, source, there, buffer)
    assert there.files() == {"b": CONTENT, "b.sha256": f"{SHA256}  b\n".encode()}
    assert (there.folder / "out/b").stat().st_ino == inode
    assert receipt.verified_by == receipts.SIZE


def test_what_is_left_of_a_checksum_file_is_never_published_as_the_file(
    source: LocalTransfer, there: Bent, buffer: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have the same partial name, one after the other, and here the same size, too."""
    content = b"x" * len(f"{SHA256}  b\n")
    Path(source.server.base_path, "a").write_bytes(content)
    task = a_task(write_checksum_file="sha256")
    there.fails.add("/out/b.sha256")
    with monkeypatch.context() as patch, pytest.raises(errors.ConnectionLost):
        patch.setattr(there, "remove", lambda _path: there._go_wrong("remove"))
        there.fails.add("remove")
        moved(task, source, there, buffer)
    assert len(there.files()) == 2  # the file, and the partial one
    moved(task, source, there, buffer)
    line = f"{hashlib.sha256(content).hexdigest()}  b\n".encode()
    assert there.files() == {"b": content, "b.sha256": line}


def test_a_checksum_file_tells_of_the_file_that_is_there(
    source: LocalTransfer, there: Bent, buffer: memoryview
) -> None:
    """Not of the one that an earlier run of the job has sent."""
    task = a_task(write_checksum_file="md5", overwrite="newer")
    there.fails.add("/out/b")
    with pytest.raises(errors.ConnectionLost):
        moved(task, source, there, buffer)
    content = CONTENT[::-1] + b"!"
    for place in (Path(source.server.base_path, "a"), there.folder / "out/b"):
        place.write_bytes(content)
        os.utime(place, (1_600_000_000, 1_600_000_000))
    moved(task, source, there, buffer)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert there.files()["b.md5"] == f"{md5}  b\n".encode()


@pytest.mark.parametrize("overwrite", ["fail", "skip", "newer"])
def test_a_file_that_is_there_already_is_held_to_the_same(
    source: LocalTransfer, there: Bent, buffer: memoryview, overwrite: str
) -> None:
    """It is no success of a job that expects other bytes; and its checksum file is written all the same."""
    moved(a_task(), source, there, buffer)
    with pytest.raises(errors.ChecksumMismatch):
        moved(a_task(overwrite=overwrite, checksum=WRONG), source, there, buffer)
    options: dict[str, Any] = {"overwrite": overwrite, "checksum": RIGHT, "verify": "checksum"}
    receipt = moved(a_task(**options, write_checksum_file="md5"), source, there, buffer)
    assert receipt.verified_by == receipts.CONTENT
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    assert there.files()["b.md5"] == f"{md5}  b\n".encode()


def test_of_a_file_that_was_left_alone_no_checksum_file_is_written(
    source: LocalTransfer, there: Bent, buffer: memoryview
) -> None:
    """It is another file."""
    (there.folder / "out").mkdir()
    (there.folder / "out/b").write_bytes(b"another one")
    assert moved(a_task(overwrite="skip", write_checksum_file="md5"), source, there, buffer).skipped
    assert there.files() == {"b": b"another one"}
