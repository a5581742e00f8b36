"""SFTP servers as they are found: refusals, odd codes, missing extensions; and how many waits a file costs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from contract_parts import LONG, Bytes, content_of, drain, sftp_config

import stack
from etl.errors import FileMissing, InvalidPath, IOFailure, NotAFile, PermissionRefused
from etl.models.task import Facts
from etl.transfer import SFTPTransfer
from servers.sftp import SFTPServer

pytestmark = pytest.mark.contract

SMALL = 100_000


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., SFTPTransfer]]:
    """Open a session with a server that has quirks; `/` is the root of the test's folder."""
    servers: list[SFTPServer] = []
    sessions: list[SFTPTransfer] = []
    (tmp_path / "root").mkdir(exist_ok=True)

    def start(options: dict[str, str] | None = None, limits=LONG, **quirks) -> SFTPTransfer:
        servers.append(SFTPServer(tmp_path / "root", **quirks))
        config = sftp_config(servers[-1], password=servers[-1].password, **(options or {}))
        sessions.append(SFTPTransfer(config, limits))
        sessions[-1].connect()
        return sessions[-1]

    start.servers = servers
    yield start
    for session in sessions:
        session.disconnect()
    for server in servers:
        server.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where `/` is."""
    return tmp_path / "root"


@pytest.fixture
def real(sshd: stack.Sshd, tmp_path: Path) -> Iterator[SFTPTransfer]:
    """A session with sshd, whose `/` is the root of the test's folder."""
    (tmp_path / "root").mkdir(exist_ok=True)
    session = SFTPTransfer(sftp_config(sshd, base_path=str(tmp_path / "root")), LONG)
    session.connect()
    yield session
    session.disconnect()


def copy_in(session: SFTPTransfer, final: str, content: bytes, buffer: memoryview, mtime: float | None = None):
    """Write a file from memory, as small ones are, and publish it."""
    parcel = Bytes(content, Facts(len(content), mtime))
    parcel.held = memoryview(content)
    stored = session.write("/.etl-1.part", parcel, buffer)
    return stored, session.publish(stored, final, mtime).result()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


# --- replacing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [4, 11])
def test_without_posix_rename_the_old_file_is_swapped_out(serve, root: Path, buffer: memoryview, code: int) -> None:
    """And the result says so; nothing is left beside it."""
    session = serve(hides=(b"posix-rename",), refusal=code)
    assert not copy_in(session, "/x", b"1", buffer)[1].swapped
    assert copy_in(session, "/x", b"22", buffer)[1].swapped
    assert (root / "x").read_bytes() == b"22"
    assert names(root) == {"x"}
    assert session.traits()["missing"] == "posix-rename@openssh.com"


def test_a_rename_that_replaces_is_good_enough(serve, root: Path, buffer: memoryview) -> None:
    """Some servers' RENAME does, whatever the protocol says."""
    session = serve(hides=(b"posix-rename",), overwrites=True)
    for content in (b"1", b"22"):
        assert not copy_in(session, "/x", content, buffer)[1].swapped
        assert (root / "x").read_bytes() == content


def test_a_folder_is_never_swapped_out(serve, root: Path, buffer: memoryview) -> None:
    """It stays, with what is in it."""
    session = serve(hides=(b"posix-rename",))
    (root / "x").mkdir()
    (root / "x" / "inside").touch()
    with pytest.raises(NotAFile):
        copy_in(session, "/x", b"1", buffer)
    assert names(root) == {"x", "inside", ".etl-1.part"}


def test_what_must_not_replace_does_not(real: SFTPTransfer, root: Path, buffer: memoryview) -> None:
    """`overwrite: fail` is one step at the server: it makes the name, or refuses."""
    stored = real.write("/.etl-1.part", Bytes(b"ours"), buffer)
    (root / "x").write_bytes(b"theirs")
    with pytest.raises(IOFailure, match="appeared"):
        real.publish_new(stored, "/x", None).result()
    assert (root / "x").read_bytes() == b"theirs"
    assert not real.publish_new(stored, "/new/folder/y", None).result().swapped
    assert (root / "new/folder/y").read_bytes() == b"ours"


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_file_that_vanishes_when_it_is_closed_is_no_success(serve, root: Path, buffer: memoryview) -> None:
    """Drop-box servers take it away: nobody can say that it arrived."""
    session = serve(takes_away=True)
    with pytest.raises(IOFailure, match="PUBLISH=direct"):
        copy_in(session, "/x", b"1", buffer)


def test_a_file_that_vanishes_may_be_written_directly(serve, root: Path, buffer: memoryview) -> None:
    """Under its final name at once: its size was told before it was closed."""
    session = serve(takes_away=True)
    session.adopt(replace(session.server, publish="direct"))
    stored = session.write("/x", Bytes(b"22"), buffer)
    assert stored.size_bytes == 2
    assert not session.publish(stored, "/x", 1e9).result().swapped
    assert not session.publish_new(stored, "/x", None).result().swapped


def test_one_file_at_a_time_is_a_setting(serve, root: Path, buffer: memoryview) -> None:
    """Without it such a server's reason is told; with it files are read and written in a row."""
    session = serve({"PIPELINE": "1"}, one_at_a_time=True)
    for number in range(4):
        copy_in(session, f"/{number}", os.urandom(SMALL), buffer)
        assert content_of(session, f"/{number}", buffer) == (root / str(number)).read_bytes()
    opened = session.read("/1")
    with pytest.raises(PermissionRefused, match="there is a file transfer in progress"):
        session.write("/.etl-2.part", Bytes(b"x"), buffer)
    opened.close(complete=False)


def test_a_time_that_is_refused_fails_nothing(serve, root: Path, buffer: memoryview) -> None:
    """The result says so."""
    session = serve(refuses={"setstat"})
    assert not copy_in(session, "/x", b"1", buffer, 1e9)[1].stamped
    assert names(root) == {"x"}


@pytest.mark.parametrize("refused", [{"stat"}, {"fstat"}, {"stat", "fstat"}])
def test_facts_that_are_refused_are_asked_in_another_way_or_not_known(
    serve, root: Path, buffer: memoryview, refused: set[str]
) -> None:
    """A file without a size is read to its end; one that was written has no size to compare."""
    (root / "x").write_bytes(content := os.urandom(3 * SMALL))
    session = serve(refuses=refused)
    parcel = session.read("/x")
    assert parcel.facts.size_bytes == (None if len(refused) == 2 else 3 * SMALL)
    assert drain(parcel, buffer) == content
    assert session.confirm(parcel).result()
    stored, _ = copy_in(session, "/y", b"22", buffer)
    assert stored.size_bytes == (None if len(refused) == 2 else 2)


@pytest.mark.parametrize("refused", ["write", "close"])
def test_a_file_that_is_refused_at_its_end_is_removed(serve, root: Path, buffer: memoryview, refused: str) -> None:
    """It is not published, and the session goes on."""
    session = serve(refuses={refused})
    with pytest.raises(PermissionRefused) as caught:
        copy_in(session, "/x", b"1", buffer)
    assert names(root) == set()
    assert session.survives(caught.value)
    assert session.look("/x") is None


def test_a_slow_server_is_not_taken_for_one_that_stands_still(serve, root: Path, buffer: memoryview) -> None:
    """The answers to a file's blocks are few and small, however fast it is written."""
    limits = replace(LONG, stall_timeout=1.0, min_bytes_per_second=10_000.0)
    session = serve({"BLOCK": "10000"}, limits=limits, write_seconds=0.3)
    stored = session.write("/x", Bytes(os.urandom(80_000)), buffer)
    assert stored.size_bytes == 80_000


def test_a_write_only_account_can_be_written_to(serve, root: Path, buffer: memoryview) -> None:
    """Reading is refused with the server's reason."""
    session = serve(write_only=True)
    copy_in(session, "/x", b"1", buffer)
    with pytest.raises(PermissionRefused, match="write only") as caught:
        session.read("/x")
    assert session.survives(caught.value)
    session.sync("/x")


# --- waits ----------------------------------------------------------------------------------------------------------


def waits_of(session: SFTPTransfer, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Count how often an action waits for the server after it sent something."""
    child = session._child
    count, is_sent = 0, False
    send, receive = child.send, child.receive

    def counting_send(parts, limit: float) -> None:
        nonlocal is_sent
        is_sent = True
        send(parts, limit)

    def counting_receive(place: memoryview, limit: float) -> int:
        nonlocal is_sent, count
        count, is_sent = count + is_sent, False
        return receive(place, limit)

    with monkeypatch.context() as patched:
        patched.setattr(child, "send", counting_send)
        patched.setattr(child, "receive", counting_receive)
        action()
    return count


def test_a_small_file_costs_one_wait_at_its_source_and_two_at_its_destination(
    real: SFTPTransfer, root: Path, buffer: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSH's handles are foreseen: OPEN, the bytes, the size and CLOSE are one write; the rename is another."""
    for number in range(6):
        (root / f"in{number}").write_bytes(os.urandom(SMALL + number))

    confirmed = []

    def fetch(number: int) -> None:
        parcel = real.read(f"/in{number}")
        assert parcel.load(1 << 20)
        confirmed.append(real.confirm(parcel))  # its answer comes with the next file
        assert parcel.held == (root / f"in{number}").read_bytes()

    assert [waits_of(real, lambda n=n: fetch(n), monkeypatch) for n in range(6)][3:] == [1, 1, 1]
    assert all(promise.result() for promise in confirmed)
    waits = [
        waits_of(real, lambda n=n: copy_in(real, f"/out{n}", os.urandom(SMALL), buffer, 1e9), monkeypatch)
        for n in range(6)
    ]
    assert waits[3:] == [2, 2, 2]


def held(content: bytes) -> Bytes:
    """A file in memory."""
    parcel = Bytes(content)
    parcel.held = memoryview(content)
    return parcel


def test_a_file_that_is_sent_while_the_one_before_is_renamed_costs_one_wait(
    real: SFTPTransfer, root: Path, buffer: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its OPEN, bytes, size and CLOSE follow the rename at once; all the answers come together."""
    contents = [os.urandom(SMALL + number) for number in range(8)]
    begun = []

    def step(number: int) -> None:
        stored = real.write(f"/.etl-{number}.part", held(contents[number]), buffer)
        published = real.publish(stored, f"/{number}", 1e9)
        begun.append(real.begin(f"/.etl-{number + 1}.part", held(contents[number + 1])))
        assert stored.size_bytes == len(contents[number])
        assert published.result().stamped

    waits = [waits_of(real, lambda n=n: step(n), monkeypatch) for n in range(7)]
    assert begun == [False, *[True] * 6]  # the first time nobody knows how handles are given
    assert waits[2:] == [1] * 5
    real.publish(real.write("/.etl-7.part", held(contents[7]), buffer), "/7", None).result()
    assert [(root / str(number)).read_bytes() for number in range(8)] == contents
    assert names(root) == {str(number) for number in range(8)}


def test_a_file_that_was_sent_ahead_in_vain_is_sent_again(real: SFTPTransfer, root: Path, buffer: memoryview) -> None:
    """Into a folder that is not there yet; with another handle than was foreseen; never asked for."""
    for number in range(3):
        copy_in(real, f"/{number}", b"x", buffer)
    content = os.urandom(SMALL)
    assert real.begin("/a/b/.etl-3.part", held(content))
    real.publish(real.write("/a/b/.etl-3.part", held(content), buffer), "/a/b/x", None).result()
    assert (root / "a/b/x").read_bytes() == content
    for _ in range(2):
        copy_in(real, "/y", b"y", buffer)
    real.link.handles._last = b"\0\0\0\7"  # as if the server had given this one before
    assert real.begin("/.etl-4.part", held(content))
    real.publish(real.write("/.etl-4.part", held(content), buffer), "/z", None).result()
    assert (root / "z").read_bytes() == content
    assert not real.begin("/.etl-5.part", held(content)), "nothing is foreseen any more"
    assert not real.begin("/.etl-5.part", Bytes(content)), "it is not in memory"


def test_what_is_foreseen_wrongly_is_read_in_the_other_way(real: SFTPTransfer, root: Path, buffer: memoryview) -> None:
    """Larger than the one before, empty, a folder, not there: each is itself."""
    contents = [b"1", b"2", os.urandom(3 << 20), b"3", os.urandom(700_000), b"", os.urandom(SMALL), b"4"]
    for number, content in enumerate(contents):
        (root / str(number)).write_bytes(content)
    (root / "folder").mkdir()
    for _ in range(2):
        for number, content in enumerate(contents):
            assert content_of(real, f"/{number}", buffer) == content
            with pytest.raises(FileMissing):
                real.read("/nothing")
            with pytest.raises(NotAFile):
                real.read("/folder")


@pytest.mark.parametrize("quirks", [{"short_reads": 10_000}, {"refuses": {"fstat"}}, {"swaps_answers": True}], ids=str)
def test_what_cannot_be_read_at_once_is_read_step_by_step(serve, root: Path, buffer: memoryview, quirks) -> None:
    """Where handles can be foreseen, but a server gives less than it is asked for, or tells no size."""
    session = serve(lowest_handles=True, **quirks)
    for number in range(6):
        (root / str(number)).write_bytes(content := os.urandom(SMALL + number))
        assert content_of(session, f"/{number}", buffer) == content
    assert session.link.handles.foreseen() is not None
    assert session.link.reads_at_once == ("swaps_answers" in quirks)


def test_what_is_refused_when_written_at_once_is_written_step_by_step(serve, root: Path, buffer: memoryview) -> None:
    """A server that works on several requests at once may have looked for the handle before it gave it."""
    session = serve(lowest_handles=True)
    for number in range(3):
        copy_in(session, f"/{number}", b"x", buffer)
    assert session.link.handles.foreseen() is not None
    serve.servers[-1].quirks.failing_writes = 1
    content = os.urandom(SMALL)
    copy_in(session, "/y", content, buffer)
    assert (root / "y").read_bytes() == content
    assert session.link.handles.foreseen() is None


def test_a_name_that_the_encoding_does_not_have_is_no_path(real: SFTPTransfer) -> None:
    """It cannot exist on that server."""
    real.adopt(replace(real.server, encoding="ascii"))
    with pytest.raises(InvalidPath, match="cannot be written in ascii"):
        real.look("/한글")


def test_what_is_foreseen_wrongly_is_written_in_the_other_way(
    real: SFTPTransfer, root: Path, buffer: memoryview
) -> None:
    """Folders that are missing are made; another handle costs a second write of the same bytes."""
    for number in range(3):
        copy_in(real, f"/{number}", b"x", buffer)
    assert real.link.handles.foreseen() is not None
    content = os.urandom(SMALL)
    parcel = Bytes(content)
    parcel.held = memoryview(content)
    real.publish(real.write("/a/b/.part", parcel, buffer), "/a/b/x", None).result()
    assert (root / "a/b/x").read_bytes() == content
    for _ in range(2):
        copy_in(real, "/y", b"y", buffer)
    real.link.handles._last = b"\0\0\0\7"  # as if the server had given this one before
    copy_in(real, "/z", content, buffer)
    assert (root / "z").read_bytes() == content
    assert real.link.handles.foreseen() is None
    assert real.names("/") == sorted(real.names("/"), key=real.names("/").index)


def test_a_file_that_is_cut_while_it_is_read_has_changed(real: SFTPTransfer, root: Path, buffer: memoryview) -> None:
    """Or that grows: what was asked for came, and the size at the end is another."""
    for size_bytes in (1 << 20, 20 << 20):
        (root / "x").write_bytes(bytes(8 << 20))
        parcel = real.read("/x")
        parcel.readinto(buffer)
        os.truncate(root / "x", size_bytes)
        drain(parcel, buffer)
        assert not real.confirm(parcel).result()


def test_a_small_file_that_is_still_being_written_has_changed(
    real: SFTPTransfer, root: Path, buffer: memoryview
) -> None:
    """It came in one instant, in which it did not grow; it is looked at once more, later."""
    (root / "x").write_bytes(b"12345")
    for _ in range(4):
        content_of(real, "/x", buffer)
    parcel = real.read("/x")
    assert real.confirm(parcel).result()
    parcel = real.read("/x")
    with (root / "x").open("ab") as file:
        file.write(b"6")
    assert not real.confirm(parcel).result()
    parcel = real.read("/x")
    (root / "x").unlink()
    assert real.confirm(parcel).result()


def test_a_file_that_is_replaced_while_it_is_read_is_read_whole(
    real: SFTPTransfer, root: Path, buffer: memoryview
) -> None:
    """The open file is the old one to its end; by its name it has changed."""
    (root / "x").write_bytes(content := os.urandom(8 << 20))
    parcel = real.read("/x")
    first = parcel.readinto(buffer)
    start = bytes(buffer[:first])
    (root / "y").write_bytes(b"new")
    (root / "y").rename(root / "x")
    assert start + drain(parcel, buffer) == content
    assert not real.unchanged(parcel).result()
    assert real.confirm(parcel).result()


def test_published_files_are_synced_where_the_server_can(real: SFTPTransfer, serve, root: Path) -> None:
    """One that is gone needs nothing more."""
    (root / "x").write_bytes(b"1")
    real.sync("/x")
    real.sync("/nothing")
    poor = serve(hides=(b"",))
    poor.sync("/x")


def test_long_listings_are_whole(real: SFTPTransfer, root: Path) -> None:
    """They come in many answers."""
    for number in range(1234):
        (root / f"f{number}").touch()
    assert sorted(real.names("/")) == sorted(f"f{number}" for number in range(1234))
    assert real.names("/", "f123") == [name for name in real.names("/") if name.startswith("f123")]


# --- when a swap does not go through --------------------------------------------------------------------------------


@pytest.mark.parametrize("refused", ["rename", "remove"])
def test_a_swap_that_is_refused_is_undone(serve, root: Path, buffer: memoryview, refused: str) -> None:
    """The old file has its name again, and the new one is still the partial file."""
    session = serve(hides=(b"posix-rename",), refuses={f"{refused} .etl-1.part" if refused == "rename" else "remove"})
    (root / "x").write_bytes(b"old")
    with pytest.raises(PermissionRefused):
        copy_in(session, "/x", b"new", buffer)
    assert (root / "x").read_bytes() == b"old"
    assert (root / ".etl-1.part").read_bytes() == b"new"
    assert names(root) == {"x", ".etl-1.part"}


def test_what_an_earlier_swap_left_is_in_nobodys_way(serve, root: Path, buffer: memoryview) -> None:
    """The hidden name is taken: the final name has a file, so that one may go."""
    session = serve(hides=(b"posix-rename",))
    (root / "x").write_bytes(b"old")
    (root / ".etl-1.part.old").write_bytes(b"older")
    assert copy_in(session, "/x", b"new", buffer)[1].swapped
    assert names(root) == {"x"}
    assert (root / "x").read_bytes() == b"new"


def test_a_partial_file_that_is_gone_is_told(serve, real: SFTPTransfer, root: Path, buffer: memoryview) -> None:
    """However it is renamed."""
    for session in (serve(hides=(b"posix-rename",)), real):
        for publish in (session.publish, session.publish_new):
            stored = session.write("/.etl-1.part", Bytes(b"1"), buffer)
            (root / ".etl-1.part").unlink()
            with pytest.raises(IOFailure, match="is gone"):
                publish(stored, "/x", 1e9).result()


def test_a_moved_source_replaces_what_is_there(serve, root: Path) -> None:
    """In folders that are made first; to itself it is not moved at all."""
    session = serve(hides=(b"posix-rename",))
    for content in (b"1", b"22"):
        (root / "x").write_bytes(content)
        session.dispose("/x", "/done/deep/x").result()
        assert (root / "done/deep/x").read_bytes() == content
    session.dispose("/done/deep/x", "/done/deep/x").result()
    assert names(root) == {"done", "deep", "x"}
