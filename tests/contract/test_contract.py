"""What every protocol must do; one suite over all of them."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from contract_parts import Bytes, drain

from etl.errors import EtlError, FileMissing, InvalidPath, IOFailure, NotAFile, SettingsError
from etl.models.task import Facts
from etl.transfer.base import Session, Stored

pytestmark = pytest.mark.contract

SIZES = [0, 1, 100_000, 3 * 1024 * 1024 + 7]
NAMES = [
    "plain.bin",
    "a name with spaces.bin",
    " leading",
    "trailing ",
    "한글 파일.tif",
    "50%20off#1.bin",
    "-rf",
    "-a",
    ".hidden",
    "a[1]*?{x}.bin",
    "quote'\"s",
    "x" * 200,
]


def copy_in(session: Session, final: str, content: bytes, buffer: memoryview, mtime: float | None = None) -> Stored:
    """Write and publish a file."""
    partial = f"{final.rpartition('/')[0]}/.etl-test.part".lstrip("/")
    session.foresee(final, mtime)
    stored = session.write("/" + partial if final.startswith("/") else partial, Bytes(content), buffer)
    session.publish(stored, final, mtime).result()
    return stored


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_file_comes_back_as_it_was_sent(subject, buffer: memoryview, size_bytes: int) -> None:
    """Bytes are kept, of empty files too; sizes are told where the server can."""
    content = os.urandom(size_bytes)
    session = subject.open()
    stored = copy_in(session, "/in/file.bin", content, buffer)
    assert stored.sent_bytes == size_bytes
    assert stored.size_bytes == (size_bytes if "size" in subject.can else None)
    assert (subject.root / "in/file.bin").read_bytes() == content
    parcel = session.read("/in/file.bin")
    assert drain(parcel, buffer) == content
    parcel.close(complete=True)
    assert parcel.facts.size_bytes == (size_bytes if "size" in subject.can else None)
    assert subject.files() == {"in/file.bin"}


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_are_kept_exactly(subject, buffer: memoryview, name: str) -> None:
    """A file is stored, listed, read and deleted under the very name it was given, in an odd folder too."""
    session = subject.open()
    path = f"/-f {name[:20]}/{name}"
    copy_in(session, path, b"odd", buffer)
    assert subject.files() == {path.lstrip("/")}
    parcel = session.read(path)
    assert drain(parcel, buffer) == b"odd"
    parcel.close(complete=True)
    if "names" in subject.can:
        assert session.names(path.rpartition("/")[0]) == [name]
    if "remove" in subject.can:
        assert session.remove(path)
        assert subject.files() == set()


def test_nothing_has_the_final_name_before_it_is_published(subject, buffer: memoryview) -> None:
    """The old file stays, whole, while the new one is written."""
    old = subject.put("in/file.bin", b"old")
    session = subject.open()
    stored = session.write("/in/.etl-1.part", Bytes(b"new and longer"), buffer)
    assert old.read_bytes() == b"old"
    session.publish(stored, "/in/file.bin", None).result()
    assert old.read_bytes() == b"new and longer"
    assert subject.files() == {"in/file.bin"}


def test_replacing_twice_in_one_session_works(subject, buffer: memoryview) -> None:
    """What a session learnt of its server by the first replacement is right for the second, and for a new file."""
    session = subject.open()
    for content in (b"1", b"22", b"333"):
        copy_in(session, "/in/file.bin", content, buffer)
        assert (subject.root / "in/file.bin").read_bytes() == content
    copy_in(session, "/in/fresh.bin", b"4444", buffer)
    assert subject.files() == {"in/file.bin", "in/fresh.bin"}


def test_missing_folders_are_made_again_when_somebody_deletes_them(subject, buffer: memoryview) -> None:
    """Folders may vanish between two files of one session."""
    session = subject.open()
    for _ in range(2):
        copy_in(session, "/a/b/c/d/file.bin", b"x", buffer)
        assert subject.files() == {"a/b/c/d/file.bin"}
        (subject.root / "a/b/c/d/file.bin").unlink()
        for folder in ("a/b/c/d", "a/b/c", "a/b", "a"):
            (subject.root / folder).rmdir()


def test_several_sessions_make_the_same_folders_at_once(subject, buffer: memoryview) -> None:
    """No session fails because another made the folder between its question and its command."""
    sessions = [subject.open() for _ in range(4)]
    errors: list[BaseException] = []
    start = threading.Barrier(len(sessions))

    def work(number: int, session: Session) -> None:
        try:
            mine = memoryview(bytearray(1024))
            for turn in range(3):
                start.wait(10)
                stored = session.write(f"/new{turn}/deep/er/.etl-{number}.part", Bytes(b"x"), mine)
                session.publish(stored, f"/new{turn}/deep/er/{number}", None).result()
        except BaseException as error:
            errors.append(error)
            start.abort()

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert subject.files() == {f"new{turn}/deep/er/{number}" for turn in range(3) for number in range(4)}


@pytest.mark.needs("time")
def test_a_time_stamp_is_kept(subject, buffer: memoryview) -> None:
    """The published file has the source's time, to the second."""
    session = subject.open()
    stored = session.write("/in/.etl-1.part", Bytes(b"x"), buffer)
    assert session.publish(stored, "/in/file.bin", 1_600_000_000.5).result().stamped
    assert int((subject.root / "in/file.bin").stat().st_mtime) == 1_600_000_000
    found = session.look("/in/file.bin")
    assert found is not None
    assert found.size_bytes == 1
    assert int(found.mtime or 0) == 1_600_000_000


def test_a_time_that_cannot_be_stamped_fails_nothing(subject, buffer: memoryview) -> None:
    """Stamping is best effort."""
    session = subject.open()
    copy_in(session, "/in/file.bin", b"x", buffer, mtime=1e300)
    assert subject.files() == {"in/file.bin"}


@pytest.mark.parametrize("path", ["/nothing", "/no/such/folder/file", "relative/nothing"])
def test_a_missing_file_is_told(subject, path: str) -> None:
    """FileMissing, whether the file or its folder is missing."""
    with pytest.raises(FileMissing) as caught:
        subject.open().read(path)
    assert caught.value.server in {"FILES", "OWN"}


@pytest.mark.needs("folders")
def test_a_folder_is_no_file(subject) -> None:
    """Reading a folder fails, and not as a missing file."""
    (subject.root / "folder").mkdir()
    with pytest.raises(IOFailure) as caught:
        subject.open().read("/folder")
    assert isinstance(caught.value, NotAFile) or "base" not in subject.can


@pytest.mark.needs("folders")
def test_a_file_on_the_way_to_a_new_one_is_told(subject, buffer: memoryview) -> None:
    """A path that needs a folder where a file is cannot be written, and the file stays."""
    subject.put("file", b"x")
    with pytest.raises(EtlError) as caught:
        copy_in(subject.open(), "/file/below", b"y", buffer)
    assert isinstance(caught.value, NotAFile) or "base" not in subject.can
    assert subject.files() == {"file"}


@pytest.mark.needs("look")
def test_looking_tells_files_from_nothing(subject) -> None:
    """`look` gives facts, or None."""
    subject.put("in/file.bin", b"12345")
    session = subject.open()
    assert session.look("/in/file.bin").size_bytes == 5
    assert session.look("/in/other") is None
    assert session.look("/no/such/folder/other") is None


@pytest.mark.needs("look", "folders")
def test_looking_at_a_folder_is_refused(subject) -> None:
    """It is something, but no file."""
    subject.put("in/file.bin", b"12345")
    with pytest.raises(IOFailure):
        subject.open().look("/in")


@pytest.mark.needs("poverty")
def test_a_class_that_cannot_tell_says_so(subject) -> None:
    """What a user's class lacks is named, as a wrong setting of the job's server."""
    session = subject.open()
    with pytest.raises(SettingsError, match="size"):
        session.look("/x")
    with pytest.raises(SettingsError, match="remove"):
        session.dispose("/x")
    with pytest.raises(SettingsError, match="rename"):
        session.dispose("/x", "/y")
    assert not session.remove("/x")
    assert session.names("/") == []


@pytest.mark.needs("unchanged")
def test_a_source_that_changed_is_seen(subject, buffer: memoryview) -> None:
    """`unchanged` is true for the same file and for one that is gone since, as it was read; false for a longer one."""
    place = subject.put("in/file.bin", b"12345")
    session = subject.open()
    parcel = session.read("/in/file.bin")
    drain(parcel, buffer)
    parcel.close(complete=True)
    assert session.unchanged(parcel).result()
    place.write_bytes(b"123456")
    assert not session.unchanged(parcel).result()
    place.unlink()
    assert session.unchanged(parcel).result()


@pytest.mark.needs("unchanged", "time")
def test_a_source_with_another_time_has_changed(subject, buffer: memoryview) -> None:
    """The same size does not hide a rewritten file."""
    place = subject.put("in/file.bin", b"12345")
    os.utime(place, (1_600_000_000, 1_600_000_000))
    session = subject.open()
    parcel = session.read("/in/file.bin")
    drain(parcel, buffer)
    parcel.close(complete=True)
    os.utime(place, (1_700_000_000, 1_700_000_000))
    assert not session.unchanged(parcel).result()


@pytest.mark.needs("dispose")
def test_disposing_deletes_moves_and_does_not_mind_repetition(subject) -> None:
    """A repeated source action finds its work done: that is success."""
    session = subject.open()
    subject.put("in/gone")
    subject.put("in/moved", b"new")
    subject.put("done/deep/moved", b"old")
    for _ in range(2):
        session.dispose("/in/gone").result()
        session.dispose("/in/moved", "/done/deep/moved").result()
        assert subject.files() == {"done/deep/moved"}
    assert (subject.root / "done/deep/moved").read_bytes() == b"new"
    subject.put("in/other")
    session.dispose("/in/other", "/new/folder/-x").result()
    assert subject.files() == {"done/deep/moved", "new/folder/-x"}


@pytest.mark.needs("remove")
def test_removing_says_whether_there_was_something(subject) -> None:
    """True once, False then; a missing folder is no error."""
    subject.put("in/file")
    session = subject.open()
    assert session.remove("/in/file")
    assert not session.remove("/in/file")
    assert not session.remove("/no/such/file")


@pytest.mark.needs("base")
def test_a_base_path_that_is_no_folder_is_told(subject) -> None:
    """Its names would be those of an empty folder; asked for, it is not made."""
    session = subject.open()
    session.require_base()
    shutil.rmtree(subject.root)
    assert session.names("") == []
    with pytest.raises(EtlError, match=r"^FILES: .* is no folder$"):
        session.require_base()
    assert not subject.root.exists()


@pytest.mark.needs("names")
def test_names_are_bare_and_hidden_ones_are_among_them(subject) -> None:
    """Partial files are hidden, and must be found by whoever tidies up."""
    for name in (".etl-1.part", "a", "한글", " lead", "-a"):
        subject.put(f"in/{name}")
    subject.put("top")
    session = subject.open()
    assert sorted(session.names("/in")) == sorted([".etl-1.part", "a", "한글", " lead", "-a"])
    assert session.names("/nothing/here") == []
    assert sorted(session.names("/")) == sorted(session.names("")) == ["in", "top"]


@pytest.mark.parametrize("limit_bytes", [0, 4, 5, 6, 1 << 20])
@pytest.mark.parametrize("content", [b"", b"12345", os.urandom(700_000)], ids=["empty", "small", "large"])
def test_loading_takes_small_files_whole(subject, buffer: memoryview, content: bytes, limit_bytes: int) -> None:
    """`load` is true for what fits, and whatever it says, the bytes come once and in order."""
    subject.put("in/file.bin", content)
    session = subject.open()
    parcel = session.read("/in/file.bin")
    is_held = parcel.load(limit_bytes)
    assert is_held == (len(content) <= limit_bytes)
    assert (parcel.held == content) if is_held else (parcel.held is None)
    assert drain(parcel, buffer[:1000] if len(content) < 1000 else buffer) == content
    parcel.close(complete=True)
    parcel.close(complete=True)
    session.ping()


def test_a_file_in_memory_arrives_as_it_is(subject, buffer: memoryview) -> None:
    """Also in folders that must be made first, so that the server has to be asked twice."""
    content = os.urandom(90_000)
    subject.put("in/file.bin", content)
    session, target = subject.open(), subject.open()
    parcel = session.read("/in/file.bin")
    assert parcel.load(len(content))
    stored = target.write("/new/folder/.etl-1.part", parcel, buffer)
    parcel.close(complete=True)
    assert stored.sent_bytes == len(content)
    target.publish(stored, "/new/folder/file.bin", None).result()
    assert (subject.root / "new/folder/file.bin").read_bytes() == content


def test_a_session_serves_many_files(subject, buffer: memoryview) -> None:
    """Reading and writing alternate in one session, errors of the not-found kind between them."""
    session = subject.open()
    for number in range(10):
        copy_in(session, f"/in/{number}", bytes([number]) * number, buffer)
        parcel = session.read(f"/in/{number}")
        assert drain(parcel, buffer) == bytes([number]) * number
        parcel.close(complete=True)
        with pytest.raises(FileMissing):
            session.read("/in/none")
        session.ping()
        session.flush()


def test_a_source_that_breaks_leaves_no_partial_file(subject, buffer: memoryview) -> None:
    """The parcel's own error comes through, and what was stored of it is removed."""
    session = subject.open()
    (subject.root / "in").mkdir()

    class Broken(Bytes):
        def readinto(self, buffer: memoryview) -> int:
            if len(self._rest) < len(content) // 4:
                raise IOFailure("the source broke", server="SOURCE")
            return super().readinto(buffer)

    # More than sockets hold: the server is surely reading. (pyftpdlib never answers a STOR whose data connection is
    # reset before it was accepted; such a session is given up after some seconds, its partial file left to others.)
    content = bytes(24 << 20)
    with pytest.raises(IOFailure, match="the source broke"):
        session.write("/in/.etl-1.part", Broken(content), buffer)
    session.disconnect()
    assert subject.files() == set()


def test_an_abandoned_parcel_can_be_closed_twice(subject) -> None:
    """Closing without completion never raises."""
    subject.put("in/file.bin", os.urandom(3_000_000))
    session = subject.open()
    parcel = session.read("/in/file.bin")
    parcel.close(complete=False)
    parcel.close(complete=False)
    session.disconnect()
    session.disconnect()


def test_the_four_methods_copy_whole_files(subject, tmp_path: Path) -> None:
    """`download` and `upload` are usable by themselves, and raise the FileNotFoundError that everybody knows."""
    session = subject.open()
    local = tmp_path / "local.bin"
    local.write_bytes(b"12345")
    session.upload(str(local), "/new/folder/file.bin")
    session.upload(str(local), "/new/folder/file.bin")
    assert subject.files() == {"new/folder/file.bin"}
    session.download("/new/folder/file.bin", str(tmp_path / "back.bin"))
    assert (tmp_path / "back.bin").read_bytes() == b"12345"
    with pytest.raises(FileNotFoundError):
        session.download("/new/none", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        session.upload(str(tmp_path / "none"), "/new/none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.bin", "local.bin", "root"] or (
        sorted(path.name for path in tmp_path.iterdir()) == ["back.bin", "local.bin"]
    )


@pytest.mark.parametrize("path", ["/../x", "/a/../../x", "a\r\nDELE b", "a\0b", "/a\nb", "", "/"])
def test_paths_that_no_file_can_have_are_refused(subject, buffer: memoryview, path: str) -> None:
    """No path leaves its base, and none carries a second command."""
    subject.put("b", b"stays")
    session = subject.open()
    with pytest.raises(InvalidPath):
        session.read(path)
    with pytest.raises(InvalidPath):
        copied = session.write("/ok.part", Bytes(b"x"), buffer)
        session.publish(copied, path, None).result()
    assert "b" in subject.files()


@pytest.mark.needs("abort")
def test_an_aborted_session_stops(subject, buffer: memoryview) -> None:
    """After `abort` from another thread a running copy ends with an error, soon."""
    subject.put("in/file.bin", os.urandom(1000))
    session = subject.open()

    class Endless(Bytes):
        def readinto(self, buffer: memoryview) -> int:
            started.set()
            return len(buffer)

    started = threading.Event()
    stopper = threading.Thread(target=lambda: (started.wait(10), session.abort()))
    stopper.start()
    with pytest.raises(EtlError):
        session.write("/in/.etl-1.part", Endless(b"", Facts(None, None)), buffer)
    stopper.join()


def test_a_session_can_work_under_another_name(subject, buffer: memoryview) -> None:
    """Names of one address share sessions: base path and partial names are those of the name in use."""
    session = subject.open()
    config = session.server
    other = type(config)(**{**vars(config), "hostname": "OTHER", "base_path": (config.base_path or "") + "/other"})
    session.adopt(other)
    if not config.host:  # a base path on this machine may be a lost mount: it is never made
        Path(other.base_path).mkdir()
    copy_in(session, "/file", b"x", buffer)
    assert subject.files() == {"other/file"}
    session.adopt(config)
    copy_in(session, "/file", b"x", buffer)
    assert subject.files() == {"other/file", "file"}


def test_facts_that_are_not_known_are_never_the_same_file() -> None:
    """The relay stands on it."""
    assert not Facts(None, None).same_file(Facts(None, None))
