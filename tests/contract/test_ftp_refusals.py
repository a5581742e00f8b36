"""How FTP transfers fail, and how refusals are told apart by asking; against a server that does as told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest
from contract_parts import SHORT, Bytes, drain

from etl.config import TransferSettings
from etl.errors import (
    ConnectionLost,
    EtlError,
    Fate,
    FileMissing,
    IOFailure,
    PermissionRefused,
    StorageFull,
    TransferTimeout,
)
from servers.fake import SILENCE, FakeSession, wait_for

pytestmark = pytest.mark.contract

# --- transfers that fail ----------------------------------------------------------------------------------------


def test_a_stalled_download_is_a_timeout(fake, session, buffer) -> None:
    """No byte for the stall limit, and the lane is free again."""

    def hang(its: FakeSession, _: str) -> str:
        its.reply("150 Soon.")
        with its.data() as sock:
            sock.sendall(b"123")
            sock.recv(1)
        return "426 Well."

    ftp = session(fake(files={"/a": b"12345"}, answers={"RETR": hang}), SHORT)
    parcel = ftp.read("/a")
    with pytest.raises(TransferTimeout, match="ETL_STALL_TIMEOUT_SECONDS"):
        drain(parcel, buffer)
    with pytest.raises(EtlError):
        ftp.ping()


def test_a_stalled_upload_is_a_timeout(fake, session) -> None:
    """The same for a server that takes no more."""
    done = threading.Event()

    def hang(its: FakeSession, _: str) -> str:
        its.reply("150 Soon.")
        with its.data():
            done.wait(10)
        return "426 Well."

    ftp = session(fake(answers={"STOR": hang}), SHORT)
    with pytest.raises(TransferTimeout, match="ETL_STALL_TIMEOUT_SECONDS"):
        ftp.write("/.p", Bytes(bytes(64 << 20)), memoryview(bytearray(1 << 20)))
    done.set()


def test_a_slow_server_may_take_its_time_after_the_last_byte(fake, session) -> None:
    """The kernel holds megabytes when we are done: the final reply's limit counts from when they stop moving."""

    def slowly(its: FakeSession, argument: str) -> str:
        its.reply("150 Soon.")
        count = 0
        with its.data() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            while orphan := sock.recv(1 << 20):
                count += len(orphan)
                time.sleep(0.05)
        its.server.files[argument] = bytes(count)
        return "226 Done."

    limits = TransferSettings(connect_timeout=5, login_timeout=5, reply_timeout=1.2, stall_timeout=5)
    ftp = session(fake(answers={"STOR": slowly}), limits)
    stored = ftp.write("/.p", Bytes(bytes(3 << 20)), memoryview(bytearray(1 << 20)))
    assert stored.size_bytes == 3 << 20


def test_a_cut_download_is_never_a_whole_file(fake, session, buffer) -> None:
    """End of file and then 426: closing says so. End of file and a lying 226: the size differs."""

    def cut(final: str) -> Callable[[FakeSession, str], str]:
        def retr(its: FakeSession, _: str) -> str:
            its.reply("150 Soon.")
            its.send_data(b"123")
            return final

        return retr

    ftp = session(fake(files={"/a": b"12345"}, answers={"RETR": cut("426 Broken.")}))
    parcel = ftp.read("/a")
    assert drain(parcel, buffer) == b"123"
    with pytest.raises(ConnectionLost):
        parcel.close(complete=True)
    ftp = session(fake(files={"/a": b"12345"}, answers={"RETR": cut("226 Fine.")}))
    parcel = ftp.read("/a")
    assert len(drain(parcel, buffer)) != parcel.facts.size_bytes


def test_a_download_of_more_than_was_read_is_an_error(fake, session) -> None:
    """Whoever closes early as complete is told that there was more."""
    ftp = session(fake(files={"/a": b"12345"}))
    parcel = ftp.read("/a")
    assert parcel.readinto(memoryview(bytearray(2))) == 2
    with pytest.raises(EtlError, match="more bytes"):
        parcel.close(complete=True)


@pytest.mark.parametrize("code", [452, 552])
@pytest.mark.parametrize("when", ["first", "last"])
def test_a_full_disk_is_told(fake, session, buffer, code: int, when: str) -> None:
    """Before the data or after it; what was stored of the file is removed."""

    def last(its: FakeSession, argument: str) -> str:
        its.stor(argument)
        return f"{code} No room."

    server = fake(answers={"STOR": f"{code} No room." if when == "first" else last})
    with pytest.raises(StorageFull):
        session(server).write("/.p", Bytes(b"x" * 100), buffer)
    assert server.files == {}


def test_a_full_disk_in_the_middle_is_told(fake, session) -> None:
    """The server resets the data connection; its reason is read all the same."""

    def middle(its: FakeSession, argument: str) -> str:
        its.reply("150 Go on.")
        its.server.files[argument] = b"part"
        with its.data() as sock:
            sock.recv(1000)
        return "552 Quota."

    server = fake(answers={"STOR": middle})
    with pytest.raises(StorageFull, match="Quota"):
        session(server).write("/.p", Bytes(bytes(32 << 20)), memoryview(bytearray(1 << 20)))
    assert server.files == {}


def test_what_the_server_stored_is_what_counts(fake, session, buffer) -> None:
    """A 226 proves nothing: the size is asked for, and told."""

    def half(its: FakeSession, argument: str) -> str:
        answer = its.stor(argument)
        its.server.files[argument] = its.server.files[argument][:5]
        return answer

    stored = session(fake(answers={"STOR": half})).write("/.p", Bytes(b"1234567890"), buffer)
    assert (stored.sent_bytes, stored.size_bytes) == (10, 5)


def test_a_server_without_size_is_asked_by_listing(fake, session, buffer) -> None:
    """The size is unknown then; a file that is not even listed was not stored."""
    server = fake(answers={"SIZE": "500 What?"})
    stored = session(server).write("/.p", Bytes(b"12"), buffer)
    assert (stored.sent_bytes, stored.size_bytes) == (2, None)

    def elsewhere(its: FakeSession, argument: str) -> str:
        answer = its.stor(argument)
        its.server.files["/other"] = its.server.files.pop(argument)
        return answer

    with pytest.raises(IOFailure, match="is gone, though it was stored"):
        _ = session(fake(answers={"STOR": elsewhere})).write("/.p", Bytes(b"12"), buffer).size_bytes


@pytest.mark.parametrize("place", ["welcome", "reply", "download", "upload", "accept"])
def test_an_abort_ends_whatever_blocks(fake, session, buffer, place: str) -> None:
    """From another thread, at once, wherever the session waits; connecting included."""

    def hang(its: FakeSession, _: str) -> None:
        its.reply("150 Soon.")
        data = its.data() if place != "accept" else None
        blocked.set()
        release.wait(10)
        if data is not None:
            data.close()

    blocked, release = threading.Event(), threading.Event()
    server = fake(
        files={"/a": b"12345"},
        welcome=SILENCE if place == "welcome" else "220 Hi.",
        answers={"NOOP": SILENCE, "RETR": hang, "STOR": hang},
    )
    limits = TransferSettings(connect_timeout=20, login_timeout=20, reply_timeout=20, stall_timeout=20)
    ftp = session(server, limits, connect=place != "welcome", passive=place != "accept")
    endless = Bytes(bytes(64 << 20))
    actions: dict[str, Callable[[], object]] = {
        "welcome": ftp.connect,
        "reply": ftp.ping,
        "download": lambda: drain(ftp.read("/a"), buffer),
        "upload": lambda: ftp.write("/.p", endless, memoryview(bytearray(1 << 20))),
        "accept": lambda: ftp.read("/a"),
    }

    def stop() -> None:
        wait_for(lambda: blocked.is_set() or place in {"welcome", "reply"})
        time.sleep(0.1)
        ftp.abort()

    stopper = threading.Thread(target=stop)
    stopper.start()
    started = time.monotonic()
    with pytest.raises(EtlError, match="aborted"):
        actions[place]()
    stopper.join()
    assert time.monotonic() - started < 5
    release.set()
    with pytest.raises(EtlError):
        ftp.connect()


# --- refusals, told apart by asking -----------------------------------------------------------------------------


def test_a_file_that_may_not_be_read_is_not_missing(fake, session) -> None:
    """550 to RETR, and SIZE knows the file: no permission, whatever the text says."""
    server = fake(files={"/a": b"1"}, answers={"RETR": "550 No such file or directory"})
    with pytest.raises(PermissionRefused):
        session(server).read("/a")


def test_a_file_hidden_from_size_is_found_by_listing(fake, session) -> None:
    """Some servers refuse SIZE for what may not be read; the folder shows the file all the same."""
    server = fake(files={"/d/a": b"1"}, answers={"RETR": "550 No.", "SIZE": "550 No."})
    with pytest.raises(PermissionRefused):
        session(server).read("/d/a")


def test_a_missing_file_is_missing_whatever_the_server_says(fake, session) -> None:
    """The text of a refusal is never believed."""
    server = fake(answers={"RETR": "550 Permission denied"})
    with pytest.raises(FileMissing, match="no such file"):
        session(server).read("/a")
    with pytest.raises(FileMissing, match="no such folder: /b"):
        session(server).read("/b/c/d")


@pytest.mark.parametrize(
    ("base", "kind", "said"),
    [
        ("/no", FileMissing, "FAKE: the base path /no is no folder"),
        ("/no/where", FileMissing, "FAKE: the base path /no/where is no folder: /no is not there"),
        ("/d/a", PermissionRefused, "FAKE:/d/a: /d/a may not be entered"),
        ("/d/b", IOFailure, "FAKE:/d/b: /d/b is a file, not a folder"),
    ],
)
def test_what_keeps_us_from_the_base_path_is_told(fake, session, base: str, kind: type[EtlError], said: str) -> None:
    """It is not there, or may not be entered (its folder shows it, and SIZE does not know it), or is a file."""
    hidden = {"SIZE": lambda its, path: "550 No." if path == "/d/a" else its.size(path)}
    server = fake(files={"/d/a": b"1", "/d/b": b"1"}, answers=hidden)
    with pytest.raises(kind) as caught:
        session(server, base_path=base).require_base()
    assert str(caught.value) == said
    assert not any(command.startswith("MKD") for command in server.commands)


def test_a_folder_that_may_not_be_entered_is_told(fake, session) -> None:
    """Its parent lists it, so it is there."""
    server = fake(
        files={"/closed/a": b"1"},
        answers={
            "CWD": lambda its, path: "550 No." if path.startswith("/closed") else its.cwd(path),
            "SIZE": "550 No.",
            "RETR": "550 No.",
        },
    )
    with pytest.raises(PermissionRefused, match="/closed may not be entered"):
        session(server).read("/closed/a")


def test_a_busy_file_may_be_tried_again(fake, session) -> None:
    """450 for a file that is there is no permanent refusal."""
    server = fake(files={"/a": b"1"}, answers={"RETR": "450 In use."})
    with pytest.raises(IOFailure) as caught:
        session(server).read("/a")
    assert caught.value.fate is Fate.RETRY


def test_a_folder_that_may_not_be_written_is_told(fake, session, buffer) -> None:
    """553 to STOR where the folder is there."""
    server = fake(answers={"STOR": "553 Could not create file."})
    with pytest.raises(PermissionRefused, match="not permitted"):
        session(server).write("/.p", Bytes(b"1"), buffer)


def test_a_folder_that_may_not_be_made_is_told(fake, session, buffer) -> None:
    """550 to MKD, and no folder there then."""
    server = fake(answers={"MKD": "550 No."})
    with pytest.raises(PermissionRefused):
        session(server).write("/a/b/.p", Bytes(b"1"), buffer)


def test_a_folder_that_others_make_meanwhile_is_used(fake, session, buffer) -> None:
    """MKD says 550 for a folder that exists by now."""

    def late(its: FakeSession, argument: str) -> str:
        its.mkd(argument)
        return "550 File exists."

    server = fake(answers={"MKD": late})
    session(server).write("/a/b/.p", Bytes(b"1"), buffer)
    assert server.files == {"/a/b/.p": b"1"}


def test_deleting_what_may_not_be_deleted_is_told(fake, session) -> None:
    """The file is still there: that is no success."""
    server = fake(files={"/a": b"1"}, answers={"DELE": "550 No."})
    with pytest.raises(PermissionRefused):
        session(server).remove("/a")
    with pytest.raises(PermissionRefused):
        session(server).dispose("/a").result()
    assert not session(server).remove("/b")
