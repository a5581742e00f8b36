"""Uploads that were cut: found again by the object that names them, proven by their parts, or begun anew."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from contract_parts import Bytes, a_task, moved

from etl.config import ServerConfig, TransferSettings
from etl.errors import ConnectionLost, EtlError, IOFailure, PermissionRefused, SourceChanged
from etl.models.task import Facts
from etl.transfer import LocalTransfer, S3Transfer
from etl.transfer.s3 import known, upload
from servers.s3 import FakeStore

pytestmark = pytest.mark.contract

PART = 5 << 20  # no store takes smaller ones
CONTENT = os.urandom(4 * PART + 12345)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have parts in proportion to the file."""
    monkeypatch.setattr(upload, "PART_BYTES", PART)


def cut(store: FakeStore, session: S3Transfer, buffer: memoryview, behind: int = 3, how: str = "cut") -> None:
    """Have an upload end behind so many parts."""
    store.faults["PART"] = [*[""] * behind, how]
    session.foresee("/out/b", 1.0)
    with pytest.raises(ConnectionLost):
        session.write_on("/out/.left", Bytes(CONTENT), buffer, 0)
    assert store.objects() == ["out/.left"]
    assert len(store.uploads) == 1


def go_on(session: S3Transfer, buffer: memoryview, offset: int) -> None:
    """Send the rest, and publish it."""
    session.foresee("/out/b", 1.0)
    stored = session.write_on("/out/.part", Bytes(CONTENT[offset:], Facts(len(CONTENT), None)), buffer, offset)
    assert (stored.sent_bytes, stored.size_bytes) == (len(CONTENT), len(CONTENT))
    assert session.publish(stored, "/out/b", 1.0).result().stamped


@pytest.mark.parametrize("is_another_process", [False, True])
@pytest.mark.parametrize("page", [1000, 1])
def test_an_upload_is_gone_on_with(
    make_store, enter_store, buffer: memoryview, page: int, is_another_process: bool
) -> None:
    """In the process that began it, and in another one; of what is there one part is sent again."""
    store = make_store(page=page)
    cut(store, enter_store(store), buffer)
    if is_another_process:
        known.forget()
    session = enter_store(store)
    assert session.is_trusted("/out/.part", buffer)
    session.remove_leftovers("/out/b", "/out/.left")
    session.foresee("/out/b", None)
    foothold = session.take_over("/out/.left", "/out/.part", len(CONTENT))
    assert foothold is not None
    assert (foothold.offset, foothold.before_bytes) == (2 * PART, PART)
    assert foothold.proves(Bytes(CONTENT[PART:]), buffer)
    assert not foothold.proves(Bytes(CONTENT[PART + 1 :]), buffer)
    assert not foothold.proves(Bytes(CONTENT[PART : 2 * PART - 1]), buffer)
    store.requests.clear()
    go_on(session, buffer, foothold.offset)
    assert store.requests.count("PART") == 3
    assert (store.root / "out/b").read_bytes() == CONTENT
    assert store.objects() == ["out/b"]
    assert not store.uploads
    assert session.look_published("/out/.part", "/out/b") is None  # the mark is that of the run that began
    assert session.look_published("/out/.left", "/out/b") == Facts(len(CONTENT), 1.0)


def test_a_file_all_of_whose_parts_are_there_is_gone_on_with(make_store, enter_store, buffer: memoryview) -> None:
    """The last part is sent again, whole or not."""
    session, content = enter_store(make_store()), CONTENT[: 4 * PART]
    session.foresee("/out/b", None)
    session.write_on("/out/.left", Bytes(content), buffer, 0)
    session.foresee("/out/b", None)
    foothold = session.take_over("/out/.left", "/out/.part", len(content))
    assert foothold is not None
    assert foothold.offset == 2 * PART


@pytest.mark.parametrize("what", ["forgotten", "another size", "another key", "garbled", "empty", "gone", "large"])
def test_what_is_no_use_is_not_gone_on_with(make_store, enter_store, buffer: memoryview, what: str) -> None:
    """Nothing of it is left, but what is not ours to abort."""
    store = make_store()
    cut(store, enter_store(store), buffer)
    known.forget()
    session = enter_store(store)
    place, size_bytes = store.root / "out/.left", len(CONTENT)
    if what == "forgotten":
        store.uploads.clear()
    elif what == "another size":
        size_bytes = PART
    elif what == "another key":
        place.write_text(json.dumps(json.loads(place.read_text()) | {"key": "out/other"}))
    elif what == "gone":
        place.unlink()
    else:
        place.write_bytes({"garbled": b'["key"]', "empty": b"", "large": b" " * 20_000}[what])
    session.foresee("/out/b", None)
    assert session.take_over("/out/.left", "/out/.part", size_bytes) is None
    session.remove("/out/.part")
    assert store.objects() == []
    session.remove_leftovers("/out/b")
    assert not store.uploads


def resumed(store: FakeStore, session: S3Transfer, left: str, partial: str) -> int:
    """Take an upload over; return the offset."""
    known.forget()
    session.foresee("/out/b", None)
    foothold = session.take_over(left, partial, len(CONTENT))
    assert foothold is not None
    assert foothold.proves(Bytes(CONTENT[foothold.offset - PART :]), memoryview(bytearray(1 << 20)))
    return foothold.offset


def test_a_torn_part_is_not_taken_for_one(make_store, enter_store, buffer: memoryview) -> None:
    """It looks like a whole one: what is last is sent again."""
    store = make_store()
    session = enter_store(store)
    cut(store, session, buffer, how="torn")
    assert [len(part) for one in store.uploads.values() for part in one["parts"].values()] == [PART] * 4
    go_on(session, buffer, resumed(store, session, "/out/.left", "/out/.part"))
    assert (store.root / "out/b").read_bytes() == CONTENT


@pytest.mark.parametrize("number", [3, 4])
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_torn_part_that_appears_late_is_found(
    make_store, enter_store, buffer: memoryview, number: int, is_killed: bool
) -> None:
    """Over one that was sent again since: no object is made of it, by this process or the next."""
    store = make_store()
    session = enter_store(store)
    cut(store, session, buffer)
    offset = resumed(store, session, "/out/.left", "/out/.part")
    rest = Bytes(CONTENT[offset:], Facts(len(CONTENT), None))
    session.foresee("/out/b", None)
    if is_killed:
        store.faults["PART"] = ["", "", "cut"]
        with pytest.raises(ConnectionLost):
            session.write_on("/out/.part", rest, buffer, offset)
    else:
        stored = session.write_on("/out/.part", rest, buffer, offset)
    (begun,) = store.uploads.values()
    begun["parts"][number] = os.urandom(PART)
    if not is_killed:
        with pytest.raises(IOFailure, match="not the one that was sent"):
            session.publish(stored, "/out/b", None)
        assert not store.uploads
        return
    known.forget()
    session.foresee("/out/b", None)
    foothold = session.take_over("/out/.part", "/out/.next", len(CONTENT))
    assert foothold is None or foothold.offset < number * PART


def test_a_store_that_completes_any_parts_is_not_trusted(make_store, enter_store, buffer: memoryview) -> None:
    """What appears late in an upload would not be found."""
    session = enter_store(make_store(checks_tags=False))
    assert not session.is_trusted("/out/.part", buffer)


def test_a_store_that_tags_parts_otherwise_is_not_trusted(make_store, enter_store, buffer: memoryview) -> None:
    """As with encryption by a key of its own: no part can be proven."""
    session = enter_store(make_store(tags_parts=False))
    assert session.goes_on is None
    assert not session.is_trusted("/out/.part", buffer)
    assert session.goes_on is False


def test_who_may_not_write_beside_the_file_still_copies(make_store, enter_store, buffer: memoryview) -> None:
    """A cut begins anew then, and leaves nothing."""
    store = make_store(faults={"PUT": ["denied", "denied"], "PART": ["", "cut"]})
    session = enter_store(store)
    session.foresee("/out/b", None)
    with pytest.raises(ConnectionLost):
        session.write_on("/out/.left", Bytes(CONTENT), buffer, 0)
    assert not store.uploads
    session.foresee("/out/b", None)
    stored = session.write_on("/out/.left", Bytes(CONTENT), buffer, 0)
    session.publish(stored, "/out/b", None).result()
    assert store.objects() == ["out/b"]


def source_in(folder: Path) -> LocalTransfer:
    """Return a local server with a large file `a` of some years ago, of which an upload may go on."""
    (folder / "a").write_bytes(CONTENT)
    os.utime(folder / "a", (1_600_000_000, 1_600_000_000))
    return LocalTransfer(
        ServerConfig("A", "local", base_path=str(folder)), TransferSettings(resume_from_bytes=len(CONTENT))
    )


@pytest.mark.parametrize("is_another_process", [False, True])
@pytest.mark.parametrize("kinds", [("DELETE",), ("HEAD", "GET"), ("PARTS",), ("DELETE", "HEAD", "GET", "PARTS")])
def test_who_lacks_a_right_for_resuming_begins_anew(
    make_store, enter_store, tmp_path, buffer, kinds, is_another_process
) -> None:
    """The job itself needs none of them."""
    store, task = make_store(), a_task()
    source = source_in(tmp_path)
    store.faults = {kind: ["denied"] * 50 for kind in kinds} | {"PART": ["", "", "", "cut"]}
    with pytest.raises(ConnectionLost):
        moved(task, source, enter_store(store), buffer, token="aa")
    if is_another_process:
        known.forget()
    task.orphan_scan_since = time.monotonic()
    moved(task, source, enter_store(store), buffer, token="bb")
    assert (store.root / "out/b").read_bytes() == CONTENT
    assert not store.uploads


def test_two_notes_of_one_upload_do_not_cost_it(make_store, enter_store, buffer: memoryview) -> None:
    """A crash may leave them; the one that is gone on with is removed with its upload all the same."""
    store = make_store()
    cut(store, enter_store(store), buffer)
    known.forget()
    (store.root / "out/.other").write_bytes((store.root / "out/.left").read_bytes())
    session = enter_store(store)
    session.remove_leftovers("/out/b", "/out/.left")
    assert session.remove("/out/.other")
    assert store.objects() == ["out/.left"]
    assert len(store.uploads) == 1
    assert session.remove("/out/.left")
    assert not store.uploads


def test_a_note_about_another_folder_is_not_believed(make_store, enter_store, buffer: memoryview) -> None:
    """Its upload is none of ours to abort."""
    store = make_store()
    cut(store, enter_store(store), buffer)
    known.forget()
    place = store.root / "out/.left"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"key": "elsewhere/b"}))
    next(iter(store.uploads.values()))["key"] = "elsewhere/b"
    assert enter_store(store).remove("/out/.left")
    assert store.objects() == []
    assert len(store.uploads) == 1


def test_an_upload_that_was_published_unanswered_is_not_sent_again(
    make_store, enter_store, tmp_path, buffer: memoryview
) -> None:
    """The mark tells, though the note still has the partial name."""
    store, task = make_store(), a_task()
    source = source_in(tmp_path)
    session = enter_store(store)
    session.traits()
    store.faults = {"COMPLETE": ["lost"], "HEAD": ["cut"] * 20}
    with pytest.raises(ConnectionLost):
        moved(task, source, session, buffer, token="aa")
    assert len(store.objects()) == 2
    store.faults.clear()
    session = enter_store(store)
    store.requests.clear()
    assert moved(task, source, session, buffer, token="bb").size_bytes == len(CONTENT)
    assert "PART" not in store.requests
    assert store.objects() == ["out/b"]
    assert not known.live_ids(session.server)


@pytest.mark.parametrize("is_another_process", [False, True])
def test_an_upload_that_is_given_up_is_aborted(
    make_store, enter_store, buffer: memoryview, is_another_process: bool
) -> None:
    """By its partial name, as a partial file of any protocol is removed."""
    store = make_store()
    cut(store, enter_store(store), buffer)
    if is_another_process:
        known.forget()
    assert enter_store(store).remove("/out/.left")
    assert store.objects() == []
    assert not store.uploads
    assert not enter_store(store).remove("/out/.left")


@pytest.mark.parametrize("is_kept", [False, True])
def test_an_upload_that_could_not_be_aborted_is_aborted_by_the_next_run(
    make_store, enter_store, buffer, is_kept: bool
) -> None:
    """Nobody is busy with it any more."""
    store = make_store(faults={"PART": ["cut"], "ABORT": ["internal"] * 2})
    session = enter_store(store)
    session.foresee("/out/b", None)
    write = (lambda *given: session.write_on(*given, 0)) if is_kept else session.write
    with pytest.raises(EtlError):
        write("/out/.left", Bytes(CONTENT), buffer)
    assert len(store.uploads) == 1
    if is_kept:
        with pytest.raises(IOFailure):
            session.remove("/out/.left")
    store.faults.clear()
    session.remove_leftovers("/out/b")
    assert not store.uploads


def test_an_upload_that_another_process_aborted_is_an_error(make_store, enter_store, buffer: memoryview) -> None:
    """The next attempt begins anew."""
    store = make_store()
    session = enter_store(store)
    cut(store, session, buffer)
    session.foresee("/out/b", None)
    foothold = session.take_over("/out/.left", "/out/.part", len(CONTENT))
    assert foothold is not None
    store.uploads.clear()
    session.foresee("/out/b", None)
    with pytest.raises(IOFailure):
        session.write_on("/out/.part", Bytes(CONTENT[2 * PART :], Facts(len(CONTENT), None)), buffer, 2 * PART)
    session.foresee("/out/b", None)
    with pytest.raises(IOFailure, match="is gone"):
        session.write_on("/out/.other", Bytes(CONTENT[2 * PART :], Facts(len(CONTENT), None)), buffer, 2 * PART)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_source_that_was_replaced_since_it_was_looked_at_is_not_read_on(
    make_store, enter_store, buffer, keeps: bool
) -> None:
    """The store says so where it keeps to the condition; else the tags do."""
    store = make_store(keeps_read_conditions=keeps)
    store.keep("a", CONTENT, {"x-amz-meta-mtime": "1600000000"})
    session = enter_store(store)
    before = session.look("/a")
    parcel = session.read_on("/a", PART)
    assert parcel.facts.version == before.version
    parcel.close(complete=False)
    session.look("/a")
    store.keep("a", CONTENT[::-1], {"x-amz-meta-mtime": "1600000000"})
    with pytest.raises(SourceChanged):
        session.read_on("/a", PART)
    after = session.look("/a")
    assert after == before
    assert after.version != before.version  # so that a part of the old one is never gone on with


def test_a_store_without_ranges_is_read_from_the_start(make_store, enter_store) -> None:
    """That is known then."""
    store = make_store(sends_ranges=False)
    store.keep("a", CONTENT, {})
    session = enter_store(store)
    assert session.reads_on
    assert session.read_on("/a", PART) is None
    assert not session.reads_on
    assert session.look("/a").size_bytes == len(CONTENT)


def test_a_source_that_may_not_be_read_says_so(make_store, enter_store) -> None:
    """From the middle, too."""
    store = make_store(faults={"GET": ["denied"]})
    store.keep("a", CONTENT, {})
    with pytest.raises(PermissionRefused):
        enter_store(store).read_on("/a", PART)
