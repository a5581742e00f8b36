"""A user's own class: its exceptions, its spool files, and how it gets in."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_parts import Bytes, content_of

from etl.config import PROTOCOLS, ProtocolSpec, ServerConfig
from etl.errors import (
    EtlError,
    FileMissing,
    IOFailure,
    PermissionRefused,
    ServerUnavailable,
    SettingsError,
    SizeMismatch,
    StorageFull,
)
from etl.models.server import TransferSettings
from etl.transfer import plugins
from etl.transfer.base import BaseTransfer, TransferFactory
from etl.transfer.spool import SpoolFolder
from etl.transfer.staged import Staged

pytestmark = pytest.mark.contract


class Memory(BaseTransfer):
    """Four methods over a dictionary."""

    spec = ProtocolSpec(default_port=4242, needs_login=False, settings={"COLOUR": "any"})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.files: dict[str, bytes] = {}
        self.error: BaseException | None = None

    def connect(self) -> None:
        self.fail()

    def disconnect(self) -> None:
        self.fail()

    def download(self, remote_path: str, local_path: str) -> None:
        self.fail()
        if remote_path not in self.files:
            raise FileNotFoundError(remote_path)
        Path(local_path).write_bytes(self.files[remote_path])

    def upload(self, local_path: str, remote_path: str) -> None:
        self.fail()
        self.files[remote_path] = Path(local_path).read_bytes()

    def fail(self) -> None:
        if self.error is not None:
            raise self.error


class NoReplace(Memory):
    """One that tells sizes, deletes, and refuses to rename over a file."""

    def size(self, path: str) -> int:
        if path not in self.files:
            raise FileNotFoundError(path)
        return len(self.files[path])

    def remove(self, path: str) -> None:
        del self.files[path]

    def rename(self, old: str, new: str) -> None:
        if new in self.files:
            raise FileExistsError(new)
        self.files[new] = self.files.pop(old)


@pytest.fixture
def buffer() -> memoryview:
    return memoryview(bytearray(1000))


@pytest.fixture
def spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep temporary files in a folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def wrapped(spools: Path) -> Iterator[Staged]:
    session = Staged(Memory(ServerConfig("OWN", "own", "host")), spool_limit_bytes=5000)
    session.connect()
    yield session
    session.disconnect()


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (FileNotFoundError("x"), FileMissing),
        (PermissionError("x"), PermissionRefused),
        (ConnectionResetError("x"), IOFailure),
        (TimeoutError("x"), IOFailure),
        (EOFError("x"), IOFailure),
        (KeyError("x"), IOFailure),
        (StorageFull("x"), StorageFull),
    ],
)
def test_foreign_exceptions_are_translated_once(wrapped: Staged, buffer, foreign, ours: type[EtlError]) -> None:
    """Whatever a user's class raises, the consumer can ask what becomes of the job."""
    memory = wrapped.transfer
    assert isinstance(memory, Memory)
    memory.error = foreign
    for action in (
        lambda: wrapped.read("/a"),
        lambda: wrapped.publish(wrapped.write("/.p", Bytes(b"x"), buffer), "/a", None).result(),
    ):
        with pytest.raises(EtlError) as caught:
            action()
        assert type(caught.value) is ours
    memory.error = None


@pytest.mark.parametrize("foreign", [ConnectionRefusedError("x"), TimeoutError("x"), OSError("x"), EOFError("x")])
def test_a_server_out_of_reach_is_an_outage(spools: Path, foreign: Exception) -> None:
    """No attempt is spent."""
    memory = Memory(ServerConfig("OWN", "own", "host"))
    memory.error = foreign
    session = Staged(memory, spool_limit_bytes=5000)
    with pytest.raises(ServerUnavailable):
        session.connect()
    session.disconnect()
    session.abort()


def test_no_spool_file_is_left(wrapped: Staged, spools: Path, buffer) -> None:
    """Neither after good work, nor after an error, nor after the session."""
    wrapped.publish(wrapped.write("/.p", Bytes(b"12345"), buffer), "/a", None).result()
    assert content_of(wrapped, "/a", buffer) == b"12345"
    wrapped.write("/.q", Bytes(b"12345"), buffer)
    assert wrapped.remove("/.q")
    assert [path.name for path in spools.glob("etl-spool-*/*")] == ["lock"]
    wrapped.write("/.r", Bytes(b"12345"), buffer)
    wrapped.disconnect()
    assert list(spools.iterdir()) == []


def test_a_folder_that_is_just_being_made_is_nobody_elses(spools: Path) -> None:
    """Sessions that begin side by side sweep side by side: none takes the other's new folder for a dead one's."""
    errors: list[BaseException] = []

    def make() -> None:
        try:
            for _ in range(100):
                folder = SpoolFolder()
                folder.new_path().write_bytes(b"x")
                folder.remove()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_what_a_killed_process_left_is_removed_by_the_next(spools: Path) -> None:
    """A spool folder whose process is gone belongs to nobody; a living one's is left alone."""
    code = "from etl.transfer.spool import *; import os; SpoolFolder().new_path().write_bytes(b'x'); os._exit(9)"
    result = subprocess.run(
        [sys.executable, "-c", code], check=False, env={"TMPDIR": str(spools), "PYTHONPATH": ":".join(sys.path)}
    )
    assert result.returncode == 9
    (left,) = spools.iterdir()
    first = SpoolFolder()
    assert not left.exists()
    second = SpoolFolder()
    assert first.path.exists()
    first.remove()
    second.remove()
    assert list(spools.iterdir()) == []


def test_files_larger_than_the_spool_may_be_are_refused(wrapped: Staged, spools: Path, buffer) -> None:
    """Both ways, and nothing is left of them."""
    with pytest.raises(StorageFull, match="ETL_SPOOL_LIMIT_BYTES"):
        wrapped.write("/.p", Bytes(bytes(6000)), buffer)
    wrapped.transfer.files["/a"] = bytes(6000)
    with pytest.raises(StorageFull, match="ETL_SPOOL_LIMIT_BYTES"):
        wrapped.read("/a")
    able = Staged(NoReplace(ServerConfig("OWN", "own", "host")), spool_limit_bytes=5000)
    able.transfer.files["/a"] = bytes(6000)
    with pytest.raises(StorageFull):
        able.read("/a")
    able.disconnect()


def test_a_rename_that_refuses_to_replace_is_helped(spools: Path, buffer) -> None:
    """The old file is deleted first: the one place where the final name may be absent for a moment."""
    session = Staged(NoReplace(ServerConfig("OWN", "own", "host", base_path="/base")), spool_limit_bytes=5000)
    for content in (b"1", b"22"):
        stored = session.write("/.p", Bytes(content), buffer)
        assert stored.size_bytes == len(content)
        session.publish(stored, "/a", None).result()
        assert session.transfer.files == {"/base/a": content}
    session.disconnect()


def test_a_size_that_differs_after_the_upload_is_told(spools: Path, buffer) -> None:
    """A class that tells sizes is believed."""

    class Short(Memory):
        def size(self, path: str) -> int:
            return 1

    session = Staged(Short(ServerConfig("OWN", "own", "host")), spool_limit_bytes=5000)
    with pytest.raises(SizeMismatch):
        session.publish(session.write("/.p", Bytes(b"123"), buffer), "/a", None).result()
    session.disconnect()


def test_a_registered_class_is_known_to_the_settings() -> None:
    """Its default port and its own properties are checked like those of built-in protocols."""
    TransferFactory.register("Mine", Memory)
    try:
        assert PROTOCOLS["mine"] is Memory.spec
        assert type(TransferFactory.create(ServerConfig("OWN", "MINE", "host"))) is Memory
    finally:
        TransferFactory._classes.pop("mine")
        PROTOCOLS.pop("mine")
    with pytest.raises(TypeError):
        TransferFactory.register("other", dict)  # type: ignore[arg-type]


def test_entry_points_are_registered_and_broken_ones_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is installed needs no setting; one that cannot be imported is a wrong setting."""

    class Entry:
        def __init__(self, name: str, found: object) -> None:
            self.name, self.value, self._found = name, "some.module:Class", found

        def load(self) -> object:
            if isinstance(self._found, Exception):
                raise self._found
            return self._found

    found: list[Entry] = [Entry("installed", Memory)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found if group == "etl.transfers" else [])
    plugins.register_installed()
    try:
        assert PROTOCOLS["installed"] is Memory.spec
    finally:
        TransferFactory._classes.pop("installed")
        PROTOCOLS.pop("installed")
    for broken in (ImportError("no module named shoe"), dict):
        found[:] = [Entry("broken", broken)]
        with pytest.raises(EtlError, match="broken"):
            plugins.register_installed()


@pytest.mark.parametrize(("move", "missing"), [(False, "size"), (True, "size")])
def test_a_source_action_that_the_class_lacks_is_refused_before_anything_is_copied(
    wrapped: Staged, *, move: bool, missing: str
) -> None:
    """Four methods cannot delete: a job that asks for it must not be copied first and fail then."""
    with pytest.raises(SettingsError, match=rf"has no {missing}\(\)"):
        wrapped.require_disposal(move=move)


class Plain(BaseTransfer):
    """A class that knows its server alone, and keeps it itself."""

    def __init__(self, config):
        self.config = config
        self.is_connected = False

    def connect(self):
        self.is_connected = bool(
            self.config.host and self.config.port and self.config.username and self.config.password
        )
        return self.is_connected

    def disconnect(self):
        self.is_connected = False

    def download(self, remote_path, local_path):
        Path(local_path).write_bytes(self.files[remote_path])

    def upload(self, local_path, remote_path):
        self.files[remote_path] = Path(local_path).read_bytes()

    files: dict[str, bytes] = {}  # noqa: RUF012 - the one server of all sessions


class Calling(Plain):
    def __init__(self, config: ServerConfig) -> None:
        super().__init__(config)


class WithDefaults(Plain):
    def __init__(self, config, passive=True, chunk=8192):
        BaseTransfer.__init__(self, config)
        assert passive is True


class WithOptions(Plain):
    def __init__(self, config, **options):
        BaseTransfer.__init__(self, config, **options)


class WithoutInit(Plain):
    __init__ = BaseTransfer.__init__


@pytest.mark.parametrize("kind", [Plain, Calling, WithDefaults, WithOptions, WithoutInit])
def test_a_class_that_knows_its_server_alone_works(
    kind: type[Plain], spools: Path, buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`__init__(self, config)` in any form: registered, made, connected; files go down and up; limits are known."""
    monkeypatch.setattr(TransferFactory, "_classes", dict(TransferFactory._classes))
    monkeypatch.setattr(Plain, "files", {"/in": b"content"})
    TransferFactory.register("plain", kind)
    monkeypatch.delitem(PROTOCOLS, "plain")
    server = ServerConfig(hostname="S", type="plain", host="h", port=21, username="u", password="p")
    limits = TransferSettings(reply_timeout=7)
    made = TransferFactory.create(server, limits)
    assert made.config is made.server is server
    assert made.settings is limits or kind is WithOptions
    session = Staged(made, 1 << 20)
    session.connect()
    parcel = session.read("/in")
    stored = session.write("part", parcel, buffer)
    parcel.close(complete=True)
    session.publish(stored, "/out", None)
    session.disconnect()
    assert Plain.files == {"/in": b"content", "/out": b"content"}


def test_false_is_a_failure(spools: Path, buffer) -> None:
    """Some classes return it instead of raising: never a success without the file."""

    class Saying(Plain):
        def upload(self, local_path, remote_path):
            return False

    session = Staged(Saying(ServerConfig(hostname="S", type="plain")), 1 << 20)
    with pytest.raises(ServerUnavailable, match="False"):
        session.connect()
    stored = session.write("part", Bytes(b"x"), buffer)
    with pytest.raises(IOFailure, match="False"):
        session.publish(stored, "/out", None)
    session.disconnect()
