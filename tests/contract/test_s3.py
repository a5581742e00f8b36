"""What is particular to objects: parts, conditions, lost answers, refusals of each kind, and what is left behind."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contract_parts import LONG, SHORT, Bytes, a_task, content_of, drain, moved, s3_config

from etl.config import ServerConfig
from etl.errors import (
    AuthenticationFailed,
    CertificateRefused,
    ConnectionLost,
    EtlError,
    Fate,
    InvalidPath,
    IOFailure,
    ServerBusy,
    ServerUnavailable,
    SourceChanged,
    StorageFull,
    TransferTimeout,
)
from etl.models.task import Facts
from etl.transfer import LocalTransfer, S3Transfer
from etl.transfer.s3 import known, publishing, upload
from servers.certificates import Authority

pytestmark = pytest.mark.contract

LARGE = upload.HELD_BYTES + 1
MTIME = 1_600_000_000.5


class Unsized(Bytes):
    """A source that does not tell its size."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content, Facts(None, None))


def copy_in(session: S3Transfer, final: str, parcel: Any, buffer: memoryview, mtime: float | None = None) -> None:
    """Write and publish as the relay does."""
    session.foresee(final, mtime)
    stored = session.write("/.etl-test.part", parcel, buffer)
    session.publish(stored, final, mtime).result()


# --- how files get there


def test_a_small_file_is_one_request(make_store, enter_store, buffer: memoryview) -> None:
    """Sent when it is published, with a checksum that the store has checked: nothing more is asked."""
    store = make_store()
    session = enter_store(store)
    store.requests.clear()
    copy_in(session, "/in/x", Bytes(b"12345"), buffer, MTIME)
    assert store.requests == ["PUT"]
    assert store.heads[-1]["x-amz-meta-mtime"] == "1600000000.5"
    assert "x-amz-checksum-crc32c" in store.heads[-1]
    facts = session.look("/in/x")
    assert facts == Facts(5, MTIME)


@pytest.mark.parametrize("size_bytes", [LARGE, upload.PART_BYTES, upload.PART_BYTES + 1, 2 * upload.PART_BYTES + 5])
def test_a_large_file_goes_as_parts(make_store, enter_store, buffer: memoryview, size_bytes: int) -> None:
    """They are seen by nobody before they are completed; their size is that of the file's own kind."""
    store, content = make_store(), os.urandom(size_bytes)
    session = enter_store(store)
    session.foresee("/in/x", MTIME)
    stored = session.write("/in/.etl-1.part", Bytes(content), buffer)
    assert stored.size_bytes == size_bytes
    assert store.requests.count("PART") == -(-size_bytes // upload.PART_BYTES)
    assert store.objects() == []
    assert session.look("/in/x") is None
    session.publish(stored, "/in/x", MTIME).result()
    assert store.objects() == ["in/x"]
    assert (store.root / "in/x").read_bytes() == content
    assert not store.uploads
    assert session.look("/in/x") == Facts(size_bytes, MTIME)


@pytest.mark.parametrize("size_bytes", [0, 100, upload.BLIND_PART_BYTES, 2 * upload.BLIND_PART_BYTES + 3])
def test_a_file_of_unknown_size_arrives(make_store, enter_store, buffer: memoryview, size_bytes: int) -> None:
    """It is gathered until it is known to be small, or a part is full."""
    store, content = make_store(), os.urandom(size_bytes)
    copy_in(enter_store(store), "/x", Unsized(content), buffer)
    assert (store.root / "x").read_bytes() == content
    assert not store.uploads


def test_the_size_of_parts_is_told_by_the_file_alone() -> None:
    """So that another process can go on with them; there are never more than a store takes."""
    assert upload.part_bytes(100) == upload.part_bytes(9000 * upload.PART_BYTES) == upload.PART_BYTES
    for size_bytes in (1 << 40, 5 << 40):
        assert -(-size_bytes // upload.part_bytes(size_bytes)) <= 9000


@pytest.mark.parametrize("key", ["a//b", "a b+c", "é/ü", "/leading", "q?x=1&y#z", "%41", "~-._!*'()"])
def test_a_key_is_kept_as_it_is(make_store, enter_store, buffer: memoryview, key: str) -> None:
    """Slashes are not joined, nothing is escaped twice, on both ways and for parts."""
    store = make_store()
    session = enter_store(store)
    copy_in(session, f"/{key}", Bytes(b"1"), buffer)
    assert store.objects() == [key]
    assert content_of(session, f"/{key}", buffer) == b"1"
    session.dispose(f"/{key}", "/moved/there").result()
    assert store.objects() == ["moved/there"]
    copy_in(session, f"/{key}", Bytes(bytes(LARGE)), buffer)
    assert session.look(f"/{key}").size_bytes == LARGE
    assert session.remove(f"/{key}")


def test_no_key_is_longer_than_stores_take(make_store, enter_store) -> None:
    """It is a wrong path, told before anything is sent."""
    session = enter_store(make_store())
    with pytest.raises(InvalidPath, match="1024 bytes"):
        session.require_name("/" + "é" * 513)
    with pytest.raises(InvalidPath, match="UTF-8"):
        session.look("/\udcff")


def test_new_objects_get_what_is_set(make_store, enter_store, buffer: memoryview) -> None:
    """Storage class and encryption, of small files and of parts."""
    store = make_store()
    session = enter_store(store, STORAGE_CLASS="STANDARD_IA", SSE="aws:kms:my-key")
    copy_in(session, "/x", Bytes(b"1"), buffer)
    copy_in(session, "/y", Bytes(bytes(LARGE)), buffer)
    made = [store.heads[store.requests.index("PUT")]]
    made.append(
        next(
            head
            for kind, head in zip(store.requests, store.heads, strict=True)
            if "x-amz-meta-etl-upload" in head and kind == "CREATE"
        )
    )
    for head in made:
        assert head["x-amz-storage-class"] == "STANDARD_IA"
        assert head["x-amz-server-side-encryption"] == "aws:kms"
        assert head["x-amz-server-side-encryption-aws-kms-key-id"] == "my-key"


def test_a_listing_of_several_pages_is_whole(make_store, enter_store, buffer: memoryview) -> None:
    """Names, and those of folders, once each."""
    store = make_store(page=2)
    session = enter_store(store, base="base")
    for name in ("1", "2", "3", "deep/4", "deep/5"):
        copy_in(session, f"in/{name}", Bytes(b"x"), buffer)
    assert sorted(session.names("in")) == ["1", "2", "3", "deep"]
    assert session.names("in/deep", "5") == ["5"]
    assert sorted(session.names("")) == ["in"]


# --- conditions


@pytest.mark.parametrize("size_bytes", [5, LARGE])
def test_nothing_is_replaced_where_nothing_may_be(make_store, enter_store, buffer: memoryview, size_bytes: int) -> None:
    """What came at the last moment stays, as the store keeps to the condition."""
    store = make_store()
    session = enter_store(store)
    session.foresee("/in/x", None)
    stored = session.write("/in/.etl-1.part", Bytes(bytes(size_bytes)), buffer)
    store.keep("in/x", b"somebody's", {})
    with pytest.raises(IOFailure, match="appeared while"):
        session.publish_new(stored, "/in/x", None)
    assert (store.root / "in/x").read_bytes() == b"somebody's"
    session.remove("/in/.etl-1.part")
    assert store.objects() == ["in/x"]
    assert not store.uploads


@pytest.mark.parametrize("size_bytes", [5, LARGE])
def test_only_what_was_looked_at_is_replaced(make_store, enter_store, buffer: memoryview, size_bytes: int) -> None:
    """For `overwrite: newer`: a third file that came since stays."""
    store = make_store()
    session = enter_store(store)
    store.keep("in/x", b"old", {})
    session.foresee("/in/x", None)
    stored = session.write("/in/.etl-1.part", Bytes(bytes(size_bytes)), buffer)
    assert session.look("/in/x").size_bytes == 3
    store.keep("in/x", b"newer", {})
    with pytest.raises(IOFailure, match="appeared while"):
        session.publish(stored, "/in/x", None)
    assert (store.root / "in/x").read_bytes() == b"newer"


def test_a_store_that_ignores_conditions_is_found_out(make_store, enter_store, buffer: memoryview) -> None:
    """Once, by an object of our own that is gone afterwards; then it gets none."""
    store = make_store(keeps_conditions=False)
    session = enter_store(store)
    for name in ("x", "y"):
        stored = session.write(f"/.etl-{name}.part", Bytes(b"1"), buffer)
        session.publish_new(stored, f"/{name}", None).result()
    assert store.objects() == ["x", "y"]
    assert not any("if-none-match" in head for head in store.heads[-1:])
    assert session.traits()["conditions on writing"] == "ignored or refused"
    assert sum("if-match" in head for head in store.heads) <= 1


def test_a_store_that_lets_nothing_be_tried_out_gets_files_without_conditions(make_store, enter_store, buffer) -> None:
    """Who may not write beside the file may still write it; it is looked for before, as at any other server."""
    store = make_store(faults={"PUT": ["internal"]})
    session = enter_store(store)
    stored = session.write("/.etl-x.part", Bytes(b"1"), buffer)
    session.publish_new(stored, "/x", None).result()
    assert store.objects() == ["x"]
    assert "if-none-match" not in store.heads[-1]


def test_a_store_that_ignores_conditions_on_parts_alone_is_found_out(
    make_store, enter_store, buffer: memoryview
) -> None:
    """Each kind of condition is believed by itself."""
    session = enter_store(make_store(keeps_complete_conditions=False, keeps_sizes=False))
    stored = session.write("/.etl-x.part", Bytes(b"1"), buffer)
    session.publish_new(stored, "/x", None).result()
    told = session.traits()
    assert told["conditions on writing"] == "kept"
    assert told["conditions on parts"] == told["size of parts"] == "ignored or refused"


# --- what goes wrong


@pytest.mark.parametrize("size_bytes", [5, LARGE])
@pytest.mark.parametrize("fault", ["lost", "cut", "hang"])
def test_an_answer_that_was_lost_is_decided_by_looking(
    make_store, enter_store, buffer, size_bytes: int, fault: str
) -> None:
    """Done or not, the file is there once, and the job goes on in the same session."""
    kind = "PUT" if size_bytes == 5 else "COMPLETE"
    store = make_store(keeps_conditions=False, keeps_sizes=False)
    session = enter_store(store, replace(LONG, reply_timeout=0.5) if fault == "hang" else LONG)
    copy_in(session, "/first", Bytes(bytes(LARGE)), buffer)  # the store is tried out
    store.faults[kind] = [fault]
    store.requests.clear()
    copy_in(session, "/x", Bytes(bytes(size_bytes)), buffer)
    assert store.objects() == ["first", "x"]
    assert not store.uploads
    assert store.requests.count(kind) == (1 if fault == "lost" else 2)


def test_a_condition_that_our_own_lost_answer_fails_is_met(make_store, enter_store, buffer: memoryview) -> None:
    """The second PUT meets what the first one stored."""
    store = make_store()
    session = enter_store(store)
    stored = session.write("/.etl-a.part", Bytes(b"1"), buffer)
    session.publish_new(stored, "/a", None).result()
    store.faults["PUT"] = ["lost"]
    store.faults["HEAD"] = ["cut"]  # nor is it told at once
    stored = session.write("/.etl-b.part", Bytes(b"1"), buffer)
    session.publish_new(stored, "/b", None).result()
    assert store.objects() == ["a", "b"]


def test_an_error_in_a_success_is_an_error(make_store, enter_store, buffer: memoryview) -> None:
    """The completion of parts answers 200 before it knows."""
    store = make_store()
    session = enter_store(store)
    copy_in(session, "/first", Bytes(bytes(LARGE)), buffer)
    store.faults["COMPLETE"] = ["error_in_200"]
    session.foresee("/x", None)
    stored = session.write("/.etl-1.part", Bytes(bytes(LARGE)), buffer)
    with pytest.raises(IOFailure, match="InternalError"):
        session.publish(stored, "/x", None)
    assert store.objects() == ["first"]


@pytest.mark.parametrize("size_bytes", [5, LARGE])
def test_a_success_that_no_store_answers_is_none(make_store, enter_store, buffer: memoryview, size_bytes: int) -> None:
    """A proxy on the way says 200 to everything: the object is looked for."""
    store = make_store()
    session = enter_store(store)
    copy_in(session, "/first", Bytes(bytes(LARGE)), buffer)
    session.foresee("/x", None)
    stored = session.write("/.etl-1.part", Bytes(bytes(size_bytes)), buffer)
    store.faults["PUT" if size_bytes == 5 else "COMPLETE"] = ["garbled"]
    with pytest.raises(IOFailure, match="the object is not there"):
        session.publish(stored, "/x", None)
    assert store.objects() == ["first"]


def test_a_busy_store_spends_no_attempt(make_store, enter_store, buffer: memoryview) -> None:
    """SlowDown, of each request."""
    store = make_store()
    session = enter_store(store)
    store.keep("x", b"1", {})
    store.faults = {"GET": ["slow_down"], "PUT": ["slow_down"], "HEAD": [""]}
    with pytest.raises(ServerBusy) as caught:
        session.read("/x")
    assert caught.value.fate is Fate.OUTAGE
    with pytest.raises(ServerBusy):
        copy_in(session, "/y", Bytes(b"1"), buffer)
    assert content_of(session, "/x", buffer) == b"1"


def test_a_wrong_clock_has_a_sentence_of_its_own(make_store, enter_store) -> None:
    """It says what to set."""
    store = make_store()
    session = enter_store(store)
    store.faults["LIST"] = ["skew"]
    with pytest.raises(AuthenticationFailed, match="FAKE: the store's clock and this machine's differ too much"):
        session.names("")


def test_the_region_that_the_store_tells_is_used(make_store, enter_store, buffer: memoryview) -> None:
    """By all sessions, from the first refusal on."""
    store = make_store(region="eu-north-1")
    session = enter_store(store)
    copy_in(session, "/x", Bytes(b"1"), buffer)
    enter_store(store)
    assert sum("us-east-1" in head["authorization"] for head in store.heads) <= 2  # HEAD tells no reason


def test_the_reason_of_a_refused_login_is_told(make_store, enter_store) -> None:
    """No such bucket, a wrong key, a wrong secret."""
    store = make_store()
    with pytest.raises(ServerUnavailable, match=r"no such bucket \(FAKE_BUCKET\)"):
        enter_store(store, BUCKET="other")
    for name in ("ACCESS_KEY", "SECRET_KEY"):
        with pytest.raises(AuthenticationFailed) as caught:
            enter_store(store, **{name: "Wrong-4711"})
        assert "4711" not in str(caught.value)
    store.faults = {"HEAD": ["skew"], "LIST": ["skew"]}
    with pytest.raises(AuthenticationFailed, match="clock"):
        enter_store(store)


def test_a_token_that_has_expired_is_read_again(make_store, enter_store, tmp_path: Path) -> None:
    """Without a new login."""
    token = tmp_path / "token"
    token.write_text("old\n")
    store = make_store(token="old")
    session = enter_store(store, SESSION_TOKEN_FILE=str(token))
    store.token = "new"
    with pytest.raises(AuthenticationFailed, match="ExpiredToken"):
        session.names("")
    token.write_text("new\n")
    assert session.names("") == []


def test_a_connection_that_ended_while_idle_is_made_again(make_store, enter_store, buffer: memoryview) -> None:
    """By the same session; nobody is told."""
    store = make_store()
    session = enter_store(store)
    store._server.end_connections()
    copy_in(session, "/x", Bytes(b"1"), buffer)
    store._server.end_connections()
    assert content_of(session, "/x", buffer) == b"1"


@pytest.mark.parametrize("fault", ["slow_down", "internal", "full", "cut", "no_upload"])
def test_parts_that_fail_leave_nothing(make_store, enter_store, buffer: memoryview, fault: str) -> None:
    """The upload is aborted, and the error is the store's."""
    store = make_store(faults={"PART": ["", fault]})
    session = enter_store(store)
    kind = {"slow_down": ServerBusy, "full": StorageFull, "cut": ConnectionLost}.get(fault, IOFailure)
    if fault == "no_upload":
        kind = EtlError
    session.foresee("/x", None)
    with pytest.raises(kind):
        session.write("/.etl-1.part", Bytes(bytes(upload.PART_BYTES + 5)), buffer)
    assert store.objects() == []
    assert not store.uploads
    copy_in(session, "/x", Bytes(bytes(LARGE)), buffer)


@pytest.mark.parametrize("size_bytes", [100, upload.PART_BYTES + 100])
@pytest.mark.parametrize("more", [-50, 50])
def test_a_source_of_another_size_than_it_told_is_found(
    make_store, enter_store, buffer, size_bytes: int, more: int
) -> None:
    """Shorter or longer: the number of bytes tells, which the relay compares before anything is published."""
    store = make_store()
    session = enter_store(store)
    session.foresee("/x", None)
    parcel = Bytes(bytes(size_bytes + more), Facts(size_bytes, None))
    stored = session.write("/.etl-1.part", parcel, buffer)
    assert stored.sent_bytes == size_bytes + (more if more < 0 else 1)
    session.remove("/.etl-1.part")
    assert not store.uploads
    assert store.objects() == []


@pytest.mark.parametrize("size_bytes", [100, upload.PART_BYTES + 100])
@pytest.mark.parametrize("change_bytes", [-50, 50])
def test_a_source_that_changes_while_it_is_sent_is_named(
    make_store, enter_store, tmp_path: Path, buffer: memoryview, size_bytes: int, change_bytes: int
) -> None:
    """As with any other destination; and nothing of it is left."""
    (tmp_path / "a").write_bytes(bytes(size_bytes))
    os.utime(tmp_path / "a", (1, 1))
    source = LocalTransfer(ServerConfig("A", "local", base_path=str(tmp_path)))
    store = make_store()
    session = enter_store(store)
    parcel = source.read("/a")
    os.truncate(tmp_path / "a", size_bytes + change_bytes)
    source.read = lambda _path: parcel
    with pytest.raises(SourceChanged, match="A:/a changed while it was read"):
        moved(a_task(), source, session, buffer)
    assert store.objects() == []
    assert not store.uploads


def test_an_object_that_is_cut_short_is_no_file(make_store, enter_store, buffer: memoryview) -> None:
    """Its length was told before."""
    store = make_store(faults={"GET": ["half"]})
    store.keep("x", bytes(3_000_000), {})
    session = enter_store(store)
    parcel = session.read("/x")
    with pytest.raises(ConnectionLost):
        drain(parcel, buffer)
    parcel.close(complete=False)
    assert len(content_of(session, "/x", buffer)) == 3_000_000


def test_a_store_that_says_nothing_is_given_up(make_store, enter_store) -> None:
    """After a reply's limit, which is named."""
    store = make_store(faults={"LIST": ["hang"]})
    session = enter_store(store, SHORT)
    with pytest.raises(TransferTimeout, match="ETL_REPLY_TIMEOUT_SECONDS"):
        session.names("")


def test_the_same_size_and_time_hide_no_other_version(make_store, enter_store, buffer: memoryview) -> None:
    """A tag tells versions apart."""
    store = make_store()
    store.keep("x", b"1", {"x-amz-meta-mtime": "1600000000"})
    session = enter_store(store)
    parcel = session.read("/x")
    drain(parcel, buffer)
    parcel.close(complete=True)
    assert session.confirm(parcel).result()
    store.keep("x", b"2", {"x-amz-meta-mtime": "1600000000"})
    assert not session.unchanged(parcel).result()


def test_the_next_object_does_not_wait_for_the_question_about_the_last_one(
    make_store, enter_store, buffer: memoryview
) -> None:
    """It has a connection of its own; its answer is read with the next file, or when nothing follows."""
    store = make_store()
    for name in ("x", "y"):
        store.keep(name, name.encode(), {})
    session, told = enter_store(store), []
    first = session.read("/x")
    drain(first, buffer)
    unchanged = session.confirm(first)
    unchanged.then(lambda: told.append("x"))
    assert told == []
    second = session.read("/y")
    assert told == ["x"]
    assert unchanged.result()
    drain(second, buffer)
    store.keep("y", b"z", {})
    changed = session.confirm(second)
    changed.then(lambda: told.append("y"))
    session.flush()
    assert told == ["x", "y"]
    assert not changed.result()


def test_a_question_whose_answer_was_lost_is_asked_again(make_store, enter_store, buffer: memoryview) -> None:
    """The connection may have ended while it was idle, or the store with it."""
    store = make_store()
    store.keep("x", b"x", {})
    session = enter_store(store)
    for fault in ("", "cut", "lost"):
        store.faults["HEAD"] = [fault]
        parcel = session.read("/x")
        drain(parcel, buffer)
        assert session.confirm(parcel).result()


# --- what is left behind


def test_uploads_that_a_dead_process_left_are_aborted(make_store, enter_store, buffer: memoryview) -> None:
    """Those to the very key of the job; not those of others, nor one of this process that goes on."""
    store = make_store()
    session, other = enter_store(store), enter_store(store)
    for key in ("out/b", "out/b2", "out/b"):
        other.foresee(f"/{key}", None)
        other.write(f"/out/.etl-{len(store.uploads)}.part", Bytes(bytes(LARGE)), buffer)
    known.forget()  # whoever began them is gone
    other.foresee("/out/b", None)
    live = other.write("/out/.etl-live.part", Bytes(bytes(LARGE)), buffer)
    session.remove_leftovers("/out/b")
    assert sorted(one["key"] for one in store.uploads.values()) == ["out/b", "out/b2"]
    other.publish(live, "/out/b", None).result()
    assert store.objects() == ["out/b"]


def test_a_publication_that_fails_leaves_no_parts_when_the_job_begins_anew(
    make_store, enter_store, tmp_path: Path, buffer: memoryview
) -> None:
    """They cost money, and nobody else would abort them: this process is known to be busy with them."""
    (tmp_path / "a").write_bytes(bytes(LARGE))
    source = LocalTransfer(ServerConfig("A", "local", base_path=str(tmp_path)))
    store, task = make_store(faults={"COMPLETE": ["", "", "", "internal"]}), a_task()
    session = enter_store(store)
    with pytest.raises(IOFailure):
        moved(task, source, session, buffer)
    assert task.unpublished is not None
    moved(task, source, session, buffer)
    assert store.objects() == ["out/b"]
    assert not store.uploads


def test_who_may_not_list_still_copies(make_store, enter_store, tmp_path: Path, buffer: memoryview) -> None:
    """After a crash, too: what it left cannot be found then, and stays."""
    (tmp_path / "a").write_bytes(b"12345")
    source = LocalTransfer(ServerConfig("A", "local", base_path=str(tmp_path)))
    store, task = make_store(faults={"UPLOADS": ["denied"], "LIST": ["denied"]}), a_task()
    task.orphan_scan_since = 0.0
    moved(task, source, enter_store(store), buffer)
    assert store.objects() == ["out/b"]
    assert store.requests.count("UPLOADS") == store.requests.count("LIST") == 1


@pytest.mark.parametrize("kind", ["CREATE", "LIST", "UPLOADS"])
def test_a_success_that_is_no_answer_is_an_error_of_the_server(
    make_store, enter_store, buffer: memoryview, kind: str
) -> None:
    """Somebody on the way may say what he likes: the job is tried again."""
    store = make_store()
    session = enter_store(store)
    store.faults[kind] = ["garbled"]
    with pytest.raises(IOFailure, match="<html>"):
        session.foresee("/out/b", None)
        if kind == "LIST":
            session.names("/out")
        elif kind == "UPLOADS":
            session.remove_leftovers("/out/b")
        else:
            session.write("/out/.etl-1.part", Bytes(bytes(LARGE)), buffer)


def test_another_session_removes_what_one_that_died_has_begun(make_store, enter_store, buffer: memoryview) -> None:
    """By the partial file's name, as of any protocol."""
    store = make_store()
    session = enter_store(store)
    session.foresee("/out/b", None)
    session.write("/out/.etl-1.part", Bytes(bytes(LARGE)), buffer)
    session.disconnect()
    assert enter_store(store).remove("/out/.etl-1.part")
    assert not store.uploads


def test_a_publication_of_a_session_that_died_is_recognised(make_store, enter_store, buffer: memoryview) -> None:
    """By its mark: a file of the same size that was there before is not taken for it."""
    store = make_store()
    store.keep("x", b"old", {})
    session = enter_store(store)
    stored = session.write("/.etl-1.part", Bytes(b"new"), buffer)
    assert enter_store(store).look_published("/.etl-1.part", "/x") is None
    session.publish(stored, "/x", None).result()
    assert enter_store(store).look_published("/.etl-1.part", "/x").size_bytes == 3


def test_an_object_too_large_for_one_request_is_moved_in_parts(
    make_store, enter_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its time; where a part fails nothing is left, and the source stays."""
    monkeypatch.setattr(publishing, "_COPIED_BYTES", 1000)
    monkeypatch.setattr(publishing, "_COPIED_PART_BYTES", 5 << 20)
    store, content = make_store(faults={"PART": ["", "internal"]}), os.urandom(12 << 20)
    store.keep("in/x", content, {"x-amz-meta-mtime": "1600000000"})
    session = enter_store(store)
    with pytest.raises(IOFailure):
        session.dispose("/in/x", "/done/x")
    assert store.objects() == ["in/x"]
    assert not store.uploads
    session.dispose("/in/x", "/done/x").result()
    assert store.objects() == ["done/x"]
    assert (store.root / "done/x").read_bytes() == content
    assert session.look("/done/x") == Facts(len(content), 1_600_000_000)


# --- whole jobs


def test_two_names_of_one_bucket_do_not_delete_a_file(make_store, enter_store, buffer: memoryview) -> None:
    """A job whose destination is its source under another name is refused, and the object stays."""
    store = make_store()
    store.keep("base/a", b"content", {})
    source, destination = enter_store(store, name="A", base="base"), enter_store(store, name="FAKE", base="base")
    task = a_task(source_action="delete")
    task = replace_paths(task, "/a", "/a")
    with pytest.raises(InvalidPath, match="is the source"):
        moved(task, source, destination, buffer)
    assert store.objects() == ["base/a"]


def test_two_buckets_are_told_apart(make_store, enter_store, buffer: memoryview) -> None:
    """By an object of our own that is gone afterwards."""
    first, second = make_store(), make_store()
    first.keep("a", b"content", {})
    source, destination = enter_store(first, name="A"), enter_store(second, name="FAKE")
    assert moved(a_task(source_action="delete"), source, destination, buffer).size_bytes == 7
    assert second.objects() == ["out/b"]


def replace_paths(task: Any, source: str, destination: str) -> Any:
    """Return the task with other paths."""
    job = task.job
    ends = {
        "source": job.source.model_copy(update={"path": source}),
        "destination": job.destination.model_copy(update={"path": destination}),
    }
    return replace(task, job=job.model_copy(update=ends))


@pytest.mark.parametrize("size_bytes", [7, LARGE])
def test_a_local_file_becomes_an_object_and_comes_back(
    make_store, enter_store, tmp_path, buffer, size_bytes: int
) -> None:
    """With its time, and nothing else."""
    content = os.urandom(size_bytes)
    (tmp_path / "local").mkdir()
    (tmp_path / "local/a").write_bytes(content)
    os.utime(tmp_path / "local/a", (MTIME, MTIME))
    store = make_store()
    local = LocalTransfer(s3_config(store), LONG)
    local.server = replace(local.server, hostname="A", base_path=str(tmp_path / "local"))
    session = enter_store(store)
    assert moved(a_task(), local, session, buffer).size_bytes == size_bytes
    assert session.look("/out/b") == Facts(size_bytes, MTIME)
    back = replace_paths(a_task(), "/out/b", "/back")
    assert moved(back, session, local, buffer).size_bytes == size_bytes
    assert (tmp_path / "local/back").read_bytes() == content
    assert (tmp_path / "local/back").stat().st_mtime == MTIME


# --- encryption


def test_connections_are_encrypted_and_the_store_is_known(
    make_store, enter_store, authority: Authority, buffer
) -> None:
    """As for FTPS: by its authority or its fingerprint; the reason of a refusal shows the fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.sign("store", "127.0.0.1").pem)
    store = make_store(tls=context)
    session = enter_store(store, TLS_CA_FILE=str(authority.ca))
    content = os.urandom(LARGE)
    copy_in(session, "/x", Bytes(content), buffer)
    assert content_of(session, "/x", buffer) == content
    with pytest.raises(CertificateRefused) as caught:
        enter_store(store)
    seen = re.search(r"It shows ((?:[0-9A-F]{2}:){31}[0-9A-F]{2})", str(caught.value))
    assert seen
    assert enter_store(store, TLS_FINGERPRINT=seen[1]).look("/x").size_bytes == LARGE


def test_an_encrypted_store_is_not_talked_to_in_clear(make_store, enter_store) -> None:
    """Nor the reverse, with what to set."""
    store = make_store()
    with pytest.raises(EtlError, match="ENDPOINT=http://"):
        enter_store(store, ENDPOINT=f"https://127.0.0.1:{store.port}")
