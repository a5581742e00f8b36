"""A refusal may pass, and when it comes means nothing: what is there is looked at, what was proven is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from contract_parts import Bytes, content_of, writes_of

from etl.errors import EtlError, Fate, FileMissing, IOFailure, PermissionRefused, StorageFull
from etl.models.message import FileTransferJob
from etl.models.task import Origin, Record, Task
from etl.transfer import partials, receipts, relay
from etl.transfer.base import Stored
from etl.transfer.ftp import known, publishing
from servers.fake import FakeSession

pytestmark = pytest.mark.contract


def a_task(**options: Any) -> Task:
    job = {
        "source": {"hostname": "A", "path": "/a"},
        "destination": {"hostname": "B", "path": "/out/b"},
        "options": options,
    }
    return Task(Record("jobs", 0, 0, None, b"{}"), Origin("jobs", 0, 0), FileTransferJob.from_dict(job))


def moved(task: Task, source: Any, destination: Any, buffer: memoryview) -> receipts.Receipt:
    return relay.run(task, source, destination, "t", relay.Limits(buffer, 0, 0), partials.OrphanIndex())


# --- a folder that is not there, said late -------------------------------------------------------------------------


def late(reply: str, *, begins: bool = True) -> Callable[[FakeSession, str], str]:
    """STOR of a server that finds out about the folder only when it has the bytes."""

    def stor(its: FakeSession, argument: str) -> str:
        if (argument.rpartition("/")[0] or "/") in its.server.folders:
            return its.stor(argument)
        if begins:
            its.reply("150 Go on.")
        its.receive_data()
        return reply

    return stor


@pytest.mark.parametrize(
    ("reply", "begins"),
    [
        ("551 Error on output file.", True),
        ("550 ENOENT: no such file or directory", True),
        ("450 error during transfer: open /new/.p: no such file or directory", True),
        ("550 File not found.", True),
        ("426 Connection closed; transfer aborted.", False),
        ("451 Local error.", True),
    ],
)
@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_uploads_into_a_new_folder_work_whenever_the_server_says_that_it_is_missing(
    fake, session, buffer, reply: str, begins: bool, size: int
) -> None:
    """After its 150, or by 426 (Apache FtpServer, ftp-srv, goftp.io, libunftp, nodeftpd): made, and sent once more."""
    server = fake(answers={"STOR": late(reply, begins=begins)})
    ftp = session(server)
    stored = ftp.write("/new/deep/.p", Bytes(bytes(size)), buffer)
    assert stored.size_bytes == size
    assert server.files == {"/new/deep/.p": bytes(size)}


def test_a_folder_that_another_job_made_meanwhile_is_no_reason_to_fail(fake, session, buffer) -> None:
    """Missing at the STOR, whose refusal comes after its 150, and there when it is asked for: sent once more."""

    def stor(its: FakeSession, argument: str) -> str:
        if "/new" in its.server.folders:
            return its.stor(argument)
        its.reply("150 Go on.")
        its.receive_data()
        its.server.folders.add("/new")
        return "551 Error on output file."

    server = fake(answers={"STOR": stor})
    ftp = session(server)
    known.of(ftp.server.address).bare_names = False
    assert ftp.write("/new/.p", Bytes(b"12345"), buffer).size_bytes == 5


def test_a_file_too_large_to_be_sent_again_finds_its_folder_at_the_next_attempt(fake, session, buffer) -> None:
    """What was read of the source is gone by then; the folder is made all the same."""
    server = fake(answers={"STOR": late("550 ENOENT")})
    content = bytes(len(buffer) * 3)
    with pytest.raises(IOFailure, match="is made now") as caught:
        session(server).write("/new/.p", Bytes(content), buffer)
    assert caught.value.fate is Fate.RETRY
    assert session(server).write("/new/.p", Bytes(content), buffer).size_bytes == len(content)
    assert session(server).write("/newer/.p", Bytes(content), buffer).size_bytes == len(content)  # looked for before


def test_a_426_before_a_150_is_taken_for_confusion(fake, session, buffer) -> None:
    """Twisted says so to a STOR that shared a write with EPSV, though it stores the file: one by one it does not."""

    def stor(its: FakeSession, argument: str) -> str:
        if "EPSV" in its.write:
            its.receive_data()
            return "426 Data connection closed."
        return its.stor(argument)

    server = fake(files={"/a": b"1"}, answers={"STOR": stor})
    ftp = session(server)
    content_of(ftp, "/a", buffer)
    for number in range(3):
        assert ftp.write(f"/b{number}", Bytes(b"xyz"), buffer).size_bytes == 3
    assert writes_of(server, lambda: ftp.write("/c", Bytes(b"xyz"), buffer))[-2:] == [["EPSV"], ["STOR"]]


# --- what is full, and what is not ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["STOR", "MKD", "RNTO"])
@pytest.mark.parametrize("reply", ["550 Disk full.", "553 Quota exceeded.", "550 No space left on device"])
def test_a_full_disk_is_told_by_its_words_whatever_the_code(
    fake, session, buffer, verb: str, reply: str, monkeypatch
) -> None:
    """550 and 553 at STOR, MKD, RNTO: STORAGE_FULL, which is tried again."""
    monkeypatch.setattr(publishing, "_PAUSES", (0.0, 0.0))
    server = fake(files={"/.p": b"1"}, answers={verb: reply})
    ftp = session(server)

    def act() -> None:
        if verb == "RNTO":
            ftp.publish(Stored("/.p", 1, 1), "/f", None).result()
        else:
            ftp.write("/new/.p" if verb == "MKD" else "/.q", Bytes(b"1"), buffer)

    with pytest.raises(StorageFull):
        act()


@pytest.mark.parametrize("reply", ["450 error during transfer: permission denied", "451 No.", "426 No."])
def test_a_file_of_which_nothing_was_stored_says_nothing_of_the_disk(fake, session, buffer, reply: str) -> None:
    """The next block is refused as well, and that proves nothing about room (goftp.io)."""

    def refuse(its: FakeSession, _: str) -> str:
        its.reply("150 Go on.")
        its.receive_data()
        return reply

    server = fake(answers={"STOR": refuse, "APPE": refuse})
    with pytest.raises(EtlError) as caught:
        session(server).write("/.p", Bytes(b"1"), buffer)
    assert not isinstance(caught.value, StorageFull)


# --- in use -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["RETR", "STOR", "DELE", "RNTO"])
def test_a_file_that_is_in_use_may_be_free_at_the_next_attempt(fake, session, buffer, verb: str, monkeypatch) -> None:
    """550 of Windows, an antivirus, the writer itself: PERMISSION_DENIED spends attempts."""
    monkeypatch.setattr(publishing, "_PAUSES", (0.0, 0.0))
    server = fake(files={"/a": b"1"}, answers={verb: "550 The process cannot access the file: it is being used."})
    ftp = session(server)
    actions: dict[str, Callable[[], object]] = {
        "RETR": lambda: ftp.read("/a"),
        "STOR": lambda: ftp.write("/b", Bytes(b"1"), buffer),
        "DELE": lambda: ftp.dispose("/a").result(),
        "RNTO": lambda: ftp.dispose("/a", "/done/a").result(),
    }
    with pytest.raises(PermissionRefused) as caught:
        actions[verb]()
    assert caught.value.fate is Fate.RETRY
    assert server.files == {"/a": b"1"}


def test_what_is_proven_missing_is_not_tried_again(fake, session) -> None:
    """Its folder may be entered, and SIZE does not know it."""
    with pytest.raises(FileMissing) as caught:
        session(fake(answers={"RETR": "550 No."})).read("/a")
    assert caught.value.fate is Fate.DEAD


# --- renames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["RNFR", "RNTO"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_rename_refused_just_after_the_upload_is_tried_again_alone(fake, session, verb: str, times: int) -> None:
    """Somebody looks at the new file: some seconds later the rename works; nothing is sent again."""

    def busy(its: FakeSession, argument: str) -> str:
        nonlocal times
        times -= 1
        return "550 In use." if times >= 0 else getattr(its, verb.lower())(argument)

    server = fake(files={"/.p": b"new"}, answers={verb: busy})
    assert not session(server).publish(Stored("/.p", 3, 3), "/f", None).result().swapped
    assert server.files == {"/f": b"new"}


def test_a_server_that_never_renames_is_not_waited_for_each_time(fake, session, monkeypatch) -> None:
    """The seconds are spent once, and again after a rename that worked."""
    pauses: list[float] = []
    monkeypatch.setattr("etl.transfer.ftp.link.Link.rest", lambda _, seconds: pauses.append(seconds))
    server = fake(files={"/.p": b"new"}, answers={"RNFR": "550 Renaming is off."})
    ftp = session(server)
    for _ in range(2):
        with pytest.raises(PermissionRefused, match="renaming is not permitted"):
            ftp.publish(Stored("/.p", 3, 3), "/f", None).result()
    assert pauses == [*publishing._PAUSES, *publishing._PAUSES[:2]]


def test_a_rename_that_was_done_though_it_was_refused_is_recognised(fake, session) -> None:
    """The partial file is gone, and the file under its name is as long."""

    def done(its: FakeSession, argument: str) -> str:
        its.rnto(argument)
        return "550 Failed."

    server = fake(files={"/.p": b"new"}, answers={"RNTO": done})
    session(server).publish(Stored("/.p", 3, 3), "/f", None).result()
    assert server.files == {"/f": b"new"}


@pytest.mark.parametrize("is_done", [True, False])
def test_a_rename_without_an_answer_is_looked_at_before_anything_is_sent_again(
    fake, session, buffer, is_done: bool
) -> None:
    """Slow RNTO, a rename across file systems: one upload, whether or not the rename was carried out."""

    def silent(its: FakeSession, argument: str) -> None:
        if is_done:
            its.rnto(argument)
        its.drop()

    source, destination = fake(files={"/a": b"12345"}), fake(files={"/out/x": b""}, answers={"RNTO": silent})
    task = a_task()
    with pytest.raises(EtlError):
        moved(task, session(source), session(destination), buffer)
    destination.answers.clear()
    assert moved(task, session(source), session(destination), buffer).size_bytes == 5
    assert destination.files == {"/out/x": b"", "/out/b": b"12345"}
    assert sum(command.startswith("STOR") for command in destination.commands) == 1


def test_a_session_that_ends_behind_the_226_loses_no_upload(fake, session, buffer) -> None:
    """Each one does: the next session finds the file whole, and renames it; nothing is sent twice."""

    def stor(its: FakeSession, argument: str) -> None:
        its.reply(its.stor(argument))
        its.drop()

    source, destination = fake(files={"/a": b"12345"}), fake(files={"/out/x": b""}, answers={"STOR": stor})
    task = a_task()
    with pytest.raises(EtlError):
        moved(task, session(source), session(destination), buffer)
    receipt = moved(task, session(source), session(destination), buffer)
    assert (receipt.size_bytes, receipt.verified_by) == (5, receipts.SIZE)
    assert destination.files == {"/out/x": b"", "/out/b": b"12345"}
    assert sum(command.startswith("STOR") for command in destination.commands) == 1


@pytest.mark.parametrize("publish", ["rename", "direct"])
def test_a_hook_that_takes_uploads_away_does_not_get_copy_after_copy(fake, session, buffer, publish: str) -> None:
    """Once it may be an accident, twice is dead; written directly the file was delivered, once."""
    taken: list[bytes] = []

    def stor(its: FakeSession, argument: str) -> str:
        said = its.stor(argument)
        taken.append(its.server.files.pop(argument))
        return said

    source, destination = fake(files={"/a": b"12345"}), fake(files={"/out/x": b""}, answers={"STOR": stor})
    fates = []
    for _ in range(2):
        try:
            assert moved(a_task(), session(source), session(destination, publish=publish), buffer).size_bytes == 5
            break
        except EtlError as error:
            fates.append(error.fate)
    assert fates == ([Fate.RETRY, Fate.DEAD] if publish == "rename" else [])
    assert taken == [b"12345"] * (2 if publish == "rename" else 1)


def test_a_refusal_of_one_server_costs_no_session_of_the_other(fake, session, buffer) -> None:
    """The file came whole, and was not wanted: its source's session goes on."""
    source, destination = fake(files={"/a": b"12345"}), fake(files={"/out/x": b""}, answers={"STOR": "550 No."})
    reading = session(source)
    for _ in range(2):
        with pytest.raises(PermissionRefused) as caught:
            moved(a_task(), reading, session(destination), buffer)
        assert reading.survives(caught.value)


# --- what only confirms --------------------------------------------------------------------------------------------


def cut(its: FakeSession, _: str) -> str:
    """NLST of a server that shows some names only."""
    its.reply("150 Listing.")
    its.send_data(b"other\r\n")
    return "226 Done."


@pytest.mark.parametrize("verify", ["auto", "none"])
@pytest.mark.parametrize("nlst", ["502 No.", "425 No.", cut])
def test_an_upload_that_no_question_confirms_is_one(fake, session, buffer, verify: str, nlst: Any) -> None:
    """No SIZE, and lists that are refused, broken or cut: 226 was said, so `verified_by` is none."""
    destination = fake(files={"/out/x": b""}, answers={"SIZE": "502 No.", "NLST": nlst}, features=("EPSV",))
    source = fake(files={"/a": b"12345"})
    receipt = moved(a_task(verify=verify), session(source), session(destination), buffer)
    assert receipt.verified_by == receipts.NOTHING
    assert destination.files["/out/b"] == b"12345"


def test_a_source_that_its_server_removes_after_the_download_is_not_changed(fake, session, buffer) -> None:
    """All bytes and the 226 came: whole, as of a mailbox."""

    def retr(its: FakeSession, argument: str) -> str:
        said = its.retr(argument)
        its.server.files.pop(argument)
        return said

    source, destination = fake(files={"/a": b"12345"}, answers={"RETR": retr}), fake()
    assert moved(a_task(), session(source), session(destination), buffer).size_bytes == 5
    assert destination.files == {"/out/b": b"12345"}


def test_a_source_that_is_another_file_by_now_has_changed(fake, session, buffer) -> None:
    """Gone is one thing, replaced another."""

    def retr(its: FakeSession, argument: str) -> str:
        said = its.retr(argument)
        its.server.files[argument] = b"other content"
        return said

    source, destination = fake(files={"/a": b"12345"}, answers={"RETR": retr}), fake()
    with pytest.raises(EtlError, match="changed"):
        moved(a_task(), session(source), session(destination), buffer)
    assert destination.files == {}
