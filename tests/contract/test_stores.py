"""What the fakes of test_s3.py only claim: parts, conditions, time stamps and tidying up on stores of other people."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_parts import LONG, Bytes, a_task, content_of, moved, s3_config

from etl.config import ServerConfig
from etl.errors import IOFailure
from etl.models.task import Facts
from etl.transfer import LocalTransfer, S3Transfer, receipts
from etl.transfer.s3 import known, upload
from servers.zoo.server import place
from servers.zoo.stores import STORES, Store

pytestmark = [pytest.mark.contract, pytest.mark.zoo, pytest.mark.long]

LARGE = upload.PART_BYTES + 5
MTIME = 1_600_000_000.123456


@pytest.fixture(params=list(STORES), scope="session")
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Each store in turn."""
    with place() as folder, STORES[request.param](folder).for_the_session() as server:
        yield server


@pytest.fixture
def base() -> str:
    """The folder of a test."""
    return f"base-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def session(store: Store, base: str) -> Iterator[S3Transfer]:
    """A session in that folder."""
    made = S3Transfer(s3_config(store, base_path=base), LONG)
    made.connect()
    yield made
    made.disconnect()
    known.forget()


def write(session: S3Transfer, final: str, content: bytes, buffer: memoryview, mtime: float | None = None) -> Any:
    """Write a file as the relay does."""
    session.foresee(final, mtime)
    return session.write(f"/.etl-{uuid.uuid4().hex}.part", Bytes(content), buffer)


@pytest.mark.parametrize("size_bytes", [0, 5, LARGE])
def test_files_arrive_with_their_time(session: S3Transfer, buffer: memoryview, size_bytes: int) -> None:
    """In one request, and in parts that nobody sees before they are completed."""
    content = os.urandom(size_bytes)
    stored = write(session, "/in/x", content, buffer, MTIME)
    assert session.look("/in/x") is None
    assert session.publish(stored, "/in/x", MTIME).result().stamped
    assert session.look("/in/x") == Facts(size_bytes, MTIME)
    assert content_of(session, "/in/x", buffer) == content
    assert session.names("") == ["in"]


@pytest.mark.parametrize("key", ["a//b", "a b+c", "é/ü", "q?x=1&y#z", "%41", "~-._!'()"])
def test_a_key_is_kept_as_it_is(session: S3Transfer, buffer: memoryview, key: str) -> None:
    """Written, read, moved and deleted under its own name."""
    session.publish(write(session, f"/{key}", b"1", buffer), f"/{key}", None).result()
    assert content_of(session, f"/{key}", buffer) == b"1"
    session.dispose(f"/{key}", f"/moved/{key}").result()
    assert session.look(f"/{key}") is None
    assert content_of(session, f"/moved/{key}", buffer) == b"1"
    assert session.remove(f"/moved/{key}")


def test_what_the_store_keeps_to_is_found_out(session: S3Transfer, store: Store) -> None:
    """As it was measured by hand; nothing of the trial is left."""
    told = session.traits()
    assert told["conditions on writing"] == store.keeps["put"]
    assert told["conditions on parts"] == store.keeps["parts"]
    assert told["size of parts"] == store.keeps["size"]
    assert told["checksums"] == store.keeps["checksums"]
    assert told["uploads that were cut"] == "gone on with"
    assert session.names("") == []
    assert upload.left_of(session._link, session._link.key("/x")) == []


@pytest.mark.parametrize("size_bytes", [5, LARGE])
def test_what_came_meanwhile_is_not_replaced(session, store: Store, buffer: memoryview, size_bytes: int) -> None:
    """Where the store keeps to that; it says so, or the file is replaced as one that nobody saw coming."""
    kept = store.keeps["put" if size_bytes == 5 else "parts"] == "kept"
    stored = write(session, "/x", bytes(size_bytes), buffer)
    session.publish(write(session, "/x", b"somebody's", buffer), "/x", None).result()
    if kept:
        with pytest.raises(IOFailure, match="appeared while"):
            session.publish_new(stored, "/x", None)
        session.remove(stored.partial)
    else:
        session.publish_new(stored, "/x", None).result()
    assert session.look("/x").size_bytes == (10 if kept else size_bytes)


@pytest.mark.parametrize("size_bytes", [5, LARGE])
def test_the_store_itself_proves_a_copy(
    session: S3Transfer, tmp_path: Path, buffer: memoryview, size_bytes: int
) -> None:
    """It checks the checksum of each request: nothing is read back."""
    (tmp_path / "a").write_bytes(os.urandom(size_bytes))
    source = LocalTransfer(ServerConfig("A", "local", base_path=str(tmp_path)))
    assert moved(a_task(verify="checksum"), source, session, buffer).verified_by == receipts.STORE
    assert content_of(session, "/out/b", buffer) == (tmp_path / "a").read_bytes()
    assert session.names("") == ["out"]
    assert session.names("out") == ["b"]


def test_uploads_that_were_left_are_aborted(session: S3Transfer, buffer: memoryview) -> None:
    """Those to the very key."""
    for final in ("/out/x", "/out/x2"):
        write(session, final, bytes(LARGE), buffer)
    known.forget()
    session.remove_leftovers("/out/x")
    link = session._link
    assert upload.left_of(link, link.key("/out/x")) == []
    assert len(upload.left_of(link, link.key("/out/x2"))) == 1
    session.remove_leftovers("/out/x2")
    assert session.names("") == []
