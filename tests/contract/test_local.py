"""What is peculiar to files of this machine."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import resource
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_parts import Bytes, content_of, drain

from etl.config import ServerConfig
from etl.errors import (
    ConnectionLost,
    EtlError,
    FileMissing,
    InvalidPath,
    IOFailure,
    PermissionRefused,
    ServerUnavailable,
    StorageFull,
)
from etl.models.task import Facts
from etl.transfer import LocalTransfer, TransferFactory, beneath, local
from etl.transfer.base import Stored
from etl.transfer.streaming import MemoryParcel
from mounts import small_disk

pytestmark = pytest.mark.contract


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def session(root: Path) -> LocalTransfer:
    transfer = LocalTransfer(ServerConfig("HERE", "local", base_path=str(root)))
    transfer.connect()
    return transfer


@pytest.fixture(params=["openat2", "walk"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run all of them on a system without openat2, too."""
    if request.param == "walk":
        monkeypatch.setattr(beneath, "_has_openat2", False)
    elif not beneath._has_openat2:
        pytest.skip("openat2 takes Linux 5.6, and a container that lets it pass")
    return str(request.param)


@pytest.fixture
def buffer() -> memoryview:
    return memoryview(bytearray(1000))


@pytest.fixture
def nobody() -> Iterator[Path]:
    """Give a folder and become a user without rights (as root, whom no mode stops)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        if os.geteuid() != 0 and os.getuid() == 0:
            os.seteuid(0)
        for path in folder.rglob("*"):
            path.chmod(0o700)


def lose_rights() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


def test_links_that_lead_out_of_the_base_are_refused(session: LocalTransfer, root: Path, buffer: memoryview) -> None:
    """Reading, writing, moving and listing; links inside are followed."""
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "out").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "inside").mkdir()
    (root / "inside/real").write_bytes(b"real")
    (root / "link").symlink_to("inside")
    for action in (
        lambda: session.read("/out/secret"),
        lambda: session.read("/file"),
        lambda: session.look("/file"),
        lambda: session.names("/out"),
        lambda: session.write("/out/x", Bytes(b"x"), buffer),
        lambda: session.remove("/out/secret"),
        lambda: session.dispose("/inside/real", "/out/x"),
    ):
        with pytest.raises(PermissionRefused, match="leads out"):
            action()
    assert (outside / "secret").read_bytes() == b"secret"
    assert content_of(session, "/link/real", buffer) == b"real"
    assert session.remove("/file"), "the link itself lies inside"


def test_a_partial_name_that_is_a_link_is_not_followed(session: LocalTransfer, root: Path, buffer: memoryview) -> None:
    """Whoever can write into the folder cannot make us write elsewhere."""
    (root.parent / "victim").write_bytes(b"old")
    (root / ".p").symlink_to(root.parent / "victim")
    with pytest.raises(EtlError):
        session.write("/.p", Bytes(b"x"), buffer)
    assert (root.parent / "victim").read_bytes() == b"old"


def test_a_partial_name_that_is_another_files_is_not_written(
    session: LocalTransfer, root: Path, buffer: memoryview
) -> None:
    """A hard link put there before."""
    (root.parent / "victim").write_bytes(b"old")
    (root / ".p").hardlink_to(root.parent / "victim")
    with pytest.raises(IOFailure, match="of our own"):
        session.write("/.p", Bytes(b"x"), buffer)
    assert (root.parent / "victim").read_bytes() == b"old"


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_has_the_final_name_is_replaced_and_not_followed(
    session: LocalTransfer, root: Path, buffer: memoryview, kind: str
) -> None:
    """By the rename."""
    (root.parent / "victim").write_bytes(b"old")
    if kind == "link":
        (root / "f").symlink_to(root.parent / "victim")
    else:
        os.mkfifo(root / "f")
    session.publish(session.write("/.p", Bytes(b"new"), buffer), "/f", 1000.0)
    assert (root / "f").read_bytes() == b"new"
    assert not (root / "f").is_symlink()
    assert (root.parent / "victim").read_bytes() == b"old"


def test_special_files_never_hang(session: LocalTransfer, root: Path, buffer: memoryview) -> None:
    """A FIFO without a writer, a device, a socket."""
    os.mkfifo(root / "fifo")
    for path in ("/fifo",):
        with pytest.raises(IOFailure, match="ordinary"):
            session.read(path)
        with pytest.raises(IOFailure, match="ordinary"):
            session.look(path)
        with pytest.raises(EtlError):
            session.write(path, Bytes(b"x"), buffer)
    with pytest.raises(IOFailure, match="ordinary"):
        LocalTransfer(ServerConfig("ALL", "local")).read("/dev/zero")


def test_a_full_disk_is_told() -> None:
    """ENOSPC and a quota are the same to the job."""
    with pytest.raises(StorageFull):
        raise_translated(errno.ENOSPC)
    with pytest.raises(StorageFull):
        raise_translated(errno.EDQUOT)


def raise_translated(number: int) -> None:
    with LocalTransfer(ServerConfig("HERE", "local"))._translated("/x"):
        raise OSError(number, os.strerror(number))


def test_a_file_too_large_for_the_system_is_storage_full_and_removed(
    session: LocalTransfer, root: Path, buffer: memoryview
) -> None:
    """A real refusal by the kernel in the middle of a file: a limit on its size stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageFull):
            session.write("/.p", Bytes(bytes(10_000)), buffer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(root.iterdir()) == []


def test_missing_rights_are_told(nobody: Path, buffer: memoryview) -> None:
    """To read, to enter, to write."""
    (nobody / "closed").mkdir(mode=0o700)
    (nobody / "closed/file").write_bytes(b"x")
    (nobody / "file").write_bytes(b"x")
    (nobody / "file").chmod(0o000)
    if os.geteuid() != 0:
        (nobody / "closed").chmod(0o000)
    session = LocalTransfer(ServerConfig("HERE", "local", base_path=str(nobody)))
    lose_rights()
    try:
        for action in (
            lambda: session.read("/file"),
            lambda: session.read("/closed/file"),
            lambda: session.look("/closed/file"),
            lambda: session.names("/closed"),
            lambda: session.write("/closed/x", Bytes(b"x"), buffer),
            lambda: session.remove("/closed/file"),
        ):
            with pytest.raises(PermissionRefused):
                action()
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


def test_a_base_that_is_not_there_is_an_outage(tmp_path: Path) -> None:
    """A share that is not mounted drains no job into the dead letters."""
    with pytest.raises(ServerUnavailable):
        LocalTransfer(ServerConfig("HERE", "local", base_path=str(tmp_path / "share"))).connect()


def test_names_that_are_no_text_are_kept(session: LocalTransfer, root: Path, buffer: memoryview) -> None:
    """Any bytes make a file name."""
    odd = b"\xff\xc7\x80"
    Path(os.fsdecode(os.fsencode(root) + b"/" + odd)).write_bytes(b"x")
    (name,) = session.names("/")
    assert os.fsencode(name) == odd
    assert content_of(session, name, buffer) == b"x"


def test_a_name_too_long_is_no_path(session: LocalTransfer, buffer: memoryview) -> None:
    """It will never be possible."""
    with pytest.raises(InvalidPath):
        session.write("/" + "x" * 300, Bytes(b"x"), buffer)


def refuse_to_rename(source: object, target: object) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_a_file_moves_to_another_file_system(session: LocalTransfer, root: Path) -> None:
    """By a copy under a hidden name, where a rename cannot."""
    (root / "a").write_bytes(b"content")
    (root / "sub").mkdir()

    synced: list[Path] = []

    def sync(descriptor: int) -> None:
        assert (root / "a").exists(), "a power cut would take the file"
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_rename", refuse_to_rename)
        patch.setattr(os, "fsync", sync)
        session.dispose("/a", "/sub/b").result()
    assert [path.parent for path in synced] == [root / "sub", root]
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["b"]
    assert (root / "sub/b").read_bytes() == b"content"


def test_what_a_killed_move_left_goes_with_the_next(
    session: LocalTransfer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that move the same file never make a half one: the first loses its copy, and finds the file moved."""
    (root / "a").write_bytes(b"content")
    (root / "sub").mkdir()
    (root / "sub/.other").write_bytes(b"")
    copy = session._copy
    began: list[Path] = []

    def copy_twice(source: str, name: str, folder: int) -> None:
        began.append(root / "sub" / name)
        if len(began) == 1:
            began[0].write_bytes(b"con")
            session.dispose("/a", "/sub/b").result()
        else:
            assert not began[0].exists()
            copy(source, name, folder)

    monkeypatch.setattr(session, "_rename", refuse_to_rename)
    monkeypatch.setattr(session, "_copy", copy_twice)
    with pytest.raises(FileMissing):
        session.dispose("/a", "/sub/b").result()
    assert sorted(path.name for path in root.rglob("*") if path.is_file()) == [".other", "b"]
    assert (root / "sub/b").read_bytes() == b"content"
    (root / "a").write_bytes(b"again")
    monkeypatch.setattr(session, "_copy", lambda *_: None)  # its copy is taken away while it is made
    with pytest.raises(ConnectionLost, match="somebody else"):
        session.dispose("/a", "/sub/b").result()
    assert (root / "a").exists()


def test_a_published_file_survives_a_power_cut_before_its_source_goes(session: LocalTransfer, root: Path) -> None:
    """Its name is written to the disk, too; of a folder that is gone there is nothing to keep."""
    synced: list[Path] = []
    (root / "sub").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
        session.sync("/sub/b")
        session.sync("/gone/b")
    assert synced == [root / "sub"]


def test_a_partial_file_that_is_gone_may_be_written_again(session: LocalTransfer) -> None:
    """It is not the job's missing source."""
    with pytest.raises(IOFailure, match="is gone"):
        session.publish(Stored("/.p", 1, 1), "/f", None)


def test_new_files_have_the_mode_that_the_umask_leaves(session: LocalTransfer, root: Path, buffer: memoryview) -> None:
    """As with every other program."""
    session.publish(session.write("/.p", Bytes(b"x"), buffer), "/f", None)
    (root / "by-hand").write_bytes(b"")
    assert stat.S_IMODE((root / "f").stat().st_mode) == stat.S_IMODE((root / "by-hand").stat().st_mode)


def test_an_aborted_session_reads_no_further(session: LocalTransfer, root: Path, buffer: memoryview) -> None:
    """At the next block."""
    (root / "f").write_bytes(bytes(5000))
    parcel = session.read("/f")
    parcel.readinto(buffer)
    session.abort()
    with pytest.raises(ConnectionLost):
        parcel.readinto(buffer)
    parcel.close(complete=False)


def test_a_file_that_grows_is_read_one_byte_too_far(session: LocalTransfer, root: Path, buffer: memoryview) -> None:
    """That shows it; one that grows for ever fills no disk. `load` takes no more than its limit."""
    (root / "f").write_bytes(b"12345")
    parcel = session.read("/f")
    (root / "f").write_bytes(b"1234567890")
    assert not parcel.load(7)
    assert drain(parcel, buffer) == b"123456"
    parcel.close(complete=True)


def test_the_factory_makes_the_built_in_protocols() -> None:
    """By their types, in any case."""
    assert type(TransferFactory.create(ServerConfig("HERE", "Local"))) is LocalTransfer
    with pytest.raises(ValueError, match="carrier-pigeon"):
        TransferFactory.create(ServerConfig("HERE", "carrier-pigeon"))


def test_a_base_path_that_went_away_is_an_outage(session: LocalTransfer, root: Path, buffer: memoryview) -> None:
    """A lost mount says nothing about its files, and is not filled below: jobs wait until it is back."""
    (root / "a").write_bytes(b"a")
    away = root.rename(root.with_name("away"))
    for act in (
        lambda: session.read("/a"),
        lambda: session.look("/a"),
        lambda: session.write("/new/.part", Bytes(b"x"), buffer),
        lambda: session.write("/.part", Bytes(b"x"), buffer),
        lambda: session.publish(Stored("/.part", 1, 1), "/b", None),
        lambda: session.dispose("/a", "/b"),
    ):
        with pytest.raises(ServerUnavailable, match="is no folder"):
            act()
    assert not root.exists()
    away.rename(root)
    assert session.look("/a") is not None
    assert session.look("/b") is None


def test_links_inside_are_followed_whatever_their_form(session: LocalTransfer, root: Path, buffer: memoryview) -> None:
    """With absolute paths and with `..`, as folders and as files."""
    (root / "real/sub").mkdir(parents=True)
    (root / "real/f").write_bytes(b"content")
    (root / "absolute").symlink_to(root / "real")
    (root / "real/sub/up").symlink_to("../../real")
    (root / "file").symlink_to(root / "real/f")
    assert content_of(session, "/absolute/f", buffer) == b"content"
    assert content_of(session, "/real/sub/up/f", buffer) == b"content"
    assert content_of(session, "/file", buffer) == b"content"
    assert sorted(session.names("/absolute")) == ["f", "sub"]
    session.publish(session.write("/absolute/new/.p", Bytes(b"x"), buffer), "/absolute/new/f", 1000.0)
    assert (root / "real/new/f").read_bytes() == b"x"
    assert session.dispose("/absolute/f", "/real/sub/up/moved").result() is None
    assert (root / "real/moved").read_bytes() == b"content"


def test_a_base_may_be_a_link_itself(root: Path, buffer: memoryview) -> None:
    """Whoever sets it knows where it leads; what lies below it stays inside all the same."""
    (root.parent / "name").symlink_to(root)
    (root / "out").symlink_to(root.parent)
    session = LocalTransfer(ServerConfig("HERE", "local", base_path=str(root.parent / "name")))
    session.publish(session.write("/new/.p", Bytes(b"x"), buffer), "/new/f", 1000.0)
    assert content_of(session, "/new/f", buffer) == b"x"
    for path in ("/out/f", "/out/root/new/f/../../../secret"):
        with pytest.raises(PermissionRefused, match="leads out"):
            session.write(path, Bytes(b"x"), buffer)


def test_a_name_may_be_long_below_a_long_base(tmp_path: Path, buffer: memoryview) -> None:
    """Longer than a path may be, only together with its base."""
    base, below = tmp_path, "/".join(["y" * 200] * 12)
    for _ in range(10):
        base /= "x" * 200
    base.mkdir(parents=True)
    session = LocalTransfer(ServerConfig("HERE", "local", base_path=str(base)))
    session.publish(session.write(f"/{below}/.p", Bytes(b"x"), buffer), f"/{below}/f", 1000.0)
    assert content_of(session, f"/{below}/f", buffer) == b"x"


def test_a_source_that_became_a_link_to_elsewhere_is_refused(session: LocalTransfer, root: Path) -> None:
    """Whatever size and time the other file has: nobody is told whether they are the same."""
    (root / "f").write_bytes(b"inside")
    (root.parent / "secret").write_bytes(b"secret")
    os.utime(root / "f", (1000, 1000))
    os.utime(root.parent / "secret", (1000, 1000))
    parcel = session.read("/f")
    parcel.close(complete=False)
    assert session.unchanged(parcel).result()
    (root / "f").unlink()
    (root / "f").symlink_to(root.parent / "secret")
    with pytest.raises(PermissionRefused, match="leads out"):
        session.unchanged(parcel)


def test_a_path_without_links_is_opened_in_one_call(
    session: LocalTransfer, root: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call costs a file of a few kilobytes a percent: the guard takes no more of them than plain opening does."""
    if way == "walk":
        pytest.skip("it takes a call for each part")
    (root / "in").mkdir()
    (root / "in/file").write_bytes(b"")
    modified = (root / "in/file").stat().st_mtime
    calls: list[str] = []
    for place, name in ((beneath, "_syscall"), (os, "open"), (os, "close")):
        real = getattr(place, name)

        def counted(*args: Any, name: str = name, real: Any = real, **named: Any) -> Any:
            calls.append(name)
            return real(*args, **named)

        monkeypatch.setattr(place, name, counted)
    assert session.look("/in/file") == Facts(0, modified)
    assert calls == ["_syscall", "close"]


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step (renameat2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder, swap = ctypes.c_int(-100), ctypes.c_uint(2)
    if libc.renameat2(folder, bytes(one), folder, bytes(other), swap):
        raise OSError(ctypes.get_errno(), "renameat2")


def test_a_link_swapped_in_at_any_moment_leads_nowhere(session: LocalTransfer, root: Path, buffer: memoryview) -> None:
    """Somebody who may write in the base swaps a folder and a link to elsewhere while jobs read, write and move."""
    outside = root.parent / "outside"
    outside.mkdir()
    for folder in (outside, root / "d"):
        folder.mkdir(exist_ok=True)
        (folder / "f").write_bytes(b"outside" if folder is outside else b"inside")
    (root / "link").symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            exchange(root / "d", root / "link")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        reads = 0
        for number in range(1500):
            with contextlib.suppress(EtlError):
                assert content_of(session, "/d/f", buffer) == b"inside"
                reads += 1
            with contextlib.suppress(EtlError):
                stored = session.write(f"/d/.p{number}", Bytes(b"x"), buffer)
                session.publish(stored, f"/d/n{number}", 1000.0)
            with contextlib.suppress(EtlError):
                session.dispose(f"/d/n{number}", f"/d/new/m{number}").result()
    finally:
        stop.set()
        swapper.join()
    assert reads
    assert [path.name for path in outside.iterdir()] == ["f"]


def test_a_move_to_another_file_system_copies_no_file_from_outside(session: LocalTransfer, root: Path) -> None:
    """A link is moved by a rename; its content is not brought inside."""
    (root.parent / "secret").write_bytes(b"secret")
    (root / "a").symlink_to(root.parent / "secret")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_rename", refuse_to_rename)
        with pytest.raises(PermissionRefused, match="leads out"):
            session.dispose("/a", "/b").result()
    assert not (root / "b").exists()


@pytest.mark.parametrize("size_bytes", [None, 600_000])
def test_a_disk_keeps_what_must_stay_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int | None
) -> None:
    """Whether the file's size is known before, or it goes on and on; what was written is removed."""
    monkeypatch.setattr(local, "_ROOM_BYTES", 64 * 1024)
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        session = LocalTransfer(
            ServerConfig("HERE", "local", base_path=str(disk), options={"MIN_FREE": str(512 * 1024)})
        )
        parcel = MemoryParcel("/a", Facts(size_bytes, None), io.BytesIO(bytes(600_000)))
        with pytest.raises(StorageFull, match="HERE_MIN_FREE"):
            session.write("/.p", parcel, memoryview(bytearray(10_000)))
        assert list(disk.iterdir()) == []
        small = MemoryParcel("/a", Facts(None, None), io.BytesIO(bytes(1000)))
        assert session.write("/.p", small, memoryview(bytearray(10_000))).sent_bytes == 1000
