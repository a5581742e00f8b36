"""`verify: checksum` to a bucket: proven by a store that checks what it is told, else read back before it is seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from contract_parts import a_task, moved

from etl.config import ServerConfig, TransferSettings
from etl.errors import CopyDamaged, EtlError, IOFailure, ServerBusy, SettingsError
from etl.transfer import LocalTransfer, receipts
from etl.transfer.s3 import upload

pytestmark = pytest.mark.contract

SMALL, IN_PARTS = 1000, 2 * upload.BLIND_PART_BYTES + 77
MTIME = 1_600_000_000


@pytest.fixture
def here(tmp_path: Path) -> Callable[[int], LocalTransfer]:
    """Make a source with a file of some size."""

    def make_one(size_bytes: int) -> LocalTransfer:
        (tmp_path / "a").write_bytes(os.urandom(size_bytes))
        os.utime(tmp_path / "a", (MTIME, MTIME))
        return LocalTransfer(ServerConfig("A", "local", base_path=str(tmp_path)))

    return make_one


KINDS = [("checked", "checked", "x-amz-checksum-crc32c"), ("refused", "checked", "content-md5")]


@pytest.mark.parametrize("size_bytes", [0, SMALL, IN_PARTS])
@pytest.mark.parametrize(("crc32c", "md5", "header"), KINDS)
def test_a_store_that_checks_proves(
    make_store, enter_store, here, tmp_path, buffer, crc32c, md5, header, size_bytes
) -> None:
    """Each request that carries bytes of the file tells their checksum; what checks is found out once."""
    store = make_store(checksums=crc32c, md5=md5)
    session = enter_store(store)
    for _ in range(2):
        store.requests.clear()
        store.heads.clear()
        receipt = moved(a_task(verify="checksum"), here(size_bytes), session, buffer)
        assert receipt.verified_by == receipts.STORE
        assert receipt.checksum.startswith("xxh3-128:")
    told = [head for kind, head in zip(store.requests, store.heads, strict=True) if kind in {"PUT", "PART"}]
    assert len(told) == (3 if size_bytes == IN_PARTS else 1)
    assert all(header in head for head in told)
    assert store.objects() == ["out/b"]
    assert not store.uploads
    assert (store.root / "out/b").read_bytes() == (tmp_path / "a").read_bytes()
    assert session.look("/out/b").mtime == MTIME


@pytest.mark.parametrize("size_bytes", [SMALL, IN_PARTS])
@pytest.mark.parametrize(("crc32c", "md5", "header"), KINDS)
def test_bytes_that_are_damaged_on_their_way_are_no_object(
    make_store, enter_store, here, buffer, crc32c, md5, header, size_bytes
):
    """The store refuses them: the attempt fails, and nothing is left."""
    store = make_store(checksums=crc32c, md5=md5)
    session = enter_store(store)
    moved(a_task(verify="checksum"), here(1), session, buffer)
    (store.root / "out/b").unlink()
    store.damages = {"PUT", "PART"}
    with pytest.raises(CopyDamaged) as caught:
        moved(a_task(verify="checksum"), here(size_bytes), session, buffer)
    assert caught.value.server == "FAKE"
    assert store.objects() == []
    assert not store.uploads


@pytest.mark.parametrize("size_bytes", [SMALL, IN_PARTS])
def test_a_store_that_checks_nothing_is_read_back(
    make_store, enter_store, here, tmp_path, buffer, size_bytes: int
) -> None:
    """As an object under the hidden partial name: what is under the final one is replaced by what was proven."""
    store = make_store(checksums="ignored", md5="ignored")
    session = enter_store(store)
    for _ in range(2):
        receipt = moved(a_task(verify="checksum"), here(size_bytes), session, buffer)
        assert receipt.verified_by == receipts.CONTENT
    assert store.objects() == ["out/b"]
    assert not store.uploads
    assert (store.root / "out/b").read_bytes() == (tmp_path / "a").read_bytes()
    assert session.look("/out/b").mtime == MTIME
    before = (store.root / "out/b").read_bytes()
    store.damages = {"PUT", "PART"}
    with pytest.raises(CopyDamaged):
        moved(a_task(verify="checksum"), here(size_bytes), session, buffer)
    assert store.objects() == ["out/b"]
    assert (store.root / "out/b").read_bytes() == before


@pytest.mark.parametrize("size_bytes", [SMALL, IN_PARTS])
@pytest.mark.parametrize(
    ("kind", "how"), [("COPY", "cut"), ("COPY", "internal"), ("COPY", "lost"), ("DELETE", "cut"), ("GET", "cut")]
)
def test_a_staged_file_is_published_by_another_session(
    make_store, enter_store, here, tmp_path, buffer, kind, how, size_bytes
):
    """It is there, and proven or to be proven: no byte is sent again."""
    store, task, source = make_store(checksums="ignored", md5="ignored"), a_task(verify="checksum"), here(size_bytes)
    moved(a_task(verify="checksum"), source, enter_store(store), buffer)
    (store.root / "out/b").unlink()
    store.faults = {kind: [how] * 3}  # a request is sent again by a connection that was idle
    with pytest.raises(EtlError):
        moved(task, source, enter_store(store), buffer)
    store.faults.clear()
    store.requests.clear()
    assert moved(task, source, enter_store(store), buffer, token="u").size_bytes == size_bytes
    assert not {"PUT", "PART"} & set(store.requests)
    assert store.objects() == ["out/b"]
    assert (store.root / "out/b").read_bytes() == (tmp_path / "a").read_bytes()
    assert "mtime_kept" not in task.remarks


def test_what_is_too_large_to_be_read_back_is_refused_before_its_first_byte(
    make_store, enter_store, here, buffer
) -> None:
    """Where the store checks nothing."""
    store = make_store(checksums="ignored", md5="ignored")
    with pytest.raises(SettingsError, match="ETL_VERIFY_READ_BACK_LIMIT_BYTES"):
        moved(
            a_task(verify="checksum"),
            here(SMALL),
            enter_store(store, TransferSettings(read_back_limit_bytes=10)),
            buffer,
        )
    assert store.objects() == []


def test_a_trial_that_fails_says_nothing_about_the_store(make_store, enter_store, here, buffer: memoryview) -> None:
    """The next job tries again."""
    store = make_store(faults={"PUT": ["slow_down"]})
    session = enter_store(store)
    with pytest.raises(ServerBusy):
        moved(a_task(verify="checksum"), here(SMALL), session, buffer)
    assert store.objects() == []
    assert moved(a_task(verify="checksum"), here(SMALL), session, buffer).verified_by == receipts.STORE


@pytest.mark.parametrize("fault", ["denied", "too_many", "conflict", "slow"])
def test_a_refusal_of_another_kind_is_not_taken_for_a_check(
    make_store, enter_store, here, buffer: memoryview, fault: str
) -> None:
    """A store that checks nothing is found out all the same, by the next attempt."""
    store = make_store(checksums="ignored", md5="ignored", faults={"PUT": [fault]})
    session = enter_store(store)
    with pytest.raises(EtlError):
        moved(a_task(verify="checksum"), here(SMALL), session, buffer)
    assert moved(a_task(verify="checksum"), here(SMALL), session, buffer).verified_by == receipts.CONTENT


def test_parts_too_large_to_be_gathered_are_read_back(make_store, enter_store) -> None:
    """Within the limit, which such a file is beyond."""
    session = enter_store(make_store())
    session.foresee("/out/b", None)
    assert session.prepare_proof(1 << 30)
    assert session.prepare_proof(None)
    assert not session.prepare_proof(1 << 40)


@pytest.mark.parametrize(("fault", "is_refused"), [("odd", False), ("internal", False), ("unknown", True)])
def test_only_a_store_that_refuses_checksums_gets_none(
    make_store, enter_store, here, buffer, fault: str, is_refused: bool
) -> None:
    """Any other refusal says nothing about them."""
    store = make_store(faults={"PUT": [fault]})
    session = enter_store(store)
    if is_refused:
        moved(a_task(), here(SMALL), session, buffer)
        assert session._link.store.takes_checksums is False
        return
    with pytest.raises(IOFailure):
        moved(a_task(), here(SMALL), session, buffer)
    moved(a_task(), here(SMALL), session, buffer)
    assert session._link.store.takes_checksums is True


def test_a_checksum_file_that_fails_twice_copies_nothing_again(
    make_store, enter_store, here, buffer: memoryview
) -> None:
    """The file is published: each further attempt writes what is left alone."""
    store, task = make_store(), a_task(write_checksum_file="sha256")
    session, source = enter_store(store), here(SMALL)
    store.faults["PUT"] = ["", "internal"]
    for token in ("1", "2", "3"):
        store.requests.clear()
        if token == "3":
            store.faults.clear()
            assert moved(task, source, session, buffer, token=token).size_bytes == SMALL
        else:
            with pytest.raises(IOFailure):
                moved(task, source, session, buffer, token=token)
            store.faults["PUT"] = ["internal"]
    assert store.requests.count("PUT") == 1
    assert store.objects() == ["out/b", "out/b.sha256"]
