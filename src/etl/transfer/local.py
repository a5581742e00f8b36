"""Files of this machine, or of a mounted share, as a server: the protocol `local`.

Below its base path; a symbolic link that leads out of a base path is refused, however quickly it is put in place:
files are opened, renamed and deleted by descriptors of their folders.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from etl.errors import (
    ConnectionLost,
    EtlError,
    InvalidPath,
    IOFailure,
    NotAFile,
    PermissionRefused,
    ServerUnavailable,
)
from etl.models.server import ProtocolSpec, ServerConfig, TransferSettings
from etl.models.task import Facts
from etl.transfer.base import ANSWERS, Promise, Published, Settled, Stored
from etl.transfer.beneath import (
    Folder,
    LeadsOutError,
    create_beneath,
    kind_of,
    make_folders,
    open_beneath,
    stamp,
    sync_to_disk,
    unlink_if_there,
)
from etl.transfer.budget import LISTINGS
from etl.transfer.paths import basename, parent, refuse_unusable
from etl.transfer.resumable import Resumable
from etl.transfer.room import Room
from etl.transfer.streaming import FileParcel, copy_whole, write_all

if TYPE_CHECKING:
    from etl.transfer.base import Parcel

_TRIES = 5  # of making folders that somebody deletes at the same time
_READING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # opening a FIFO nobody writes to would wait for ever
_WRITING = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_ROOM_BYTES = 64 << 20  # written between two looks at what is free


def _problems(server: ServerConfig) -> Mapping[str, str]:
    text = server.options.get("MIN_FREE", "0")
    is_size = text.isascii() and text.isdigit() and len(text) <= 18
    return {} if is_size else {"MIN_FREE": "is no whole number of bytes"}


class LocalTransfer(Resumable):
    """A folder of this machine."""

    is_near = goes_on = True

    spec: ClassVar[ProtocolSpec] = ProtocolSpec(
        needs_host=False,
        needs_login=False,
        needs_base=True,
        base_is_absolute=True,
        settings={"MIN_FREE": "bytes that must stay free on its disk; a file that would take them fails"},
        problems=_problems,
    )

    def __init__(self, server: ServerConfig, settings: TransferSettings | None = None) -> None:
        super().__init__(server, settings)
        self._is_aborted = False
        self._room = Room()

    def connect(self) -> None:
        """Look whether the base path is there: a share may not be mounted yet, or not any more."""
        if not Path(self._root).is_dir():
            raise ServerUnavailable(f"{self.server.hostname}: {self._root} is no folder", server=self.server.hostname)

    def disconnect(self) -> None:
        """Nothing is open between calls."""

    def abort(self) -> None:
        """Stop a copy at its next block."""
        self._is_aborted = True

    def survives(self, error: BaseException) -> bool:
        """After an answer about the file: there is no session that it could have broken."""
        return isinstance(error, ANSWERS) and not self._is_aborted

    def ping(self) -> None:
        """Look for the base path."""
        self.connect()

    def look(self, path: str) -> Facts | None:
        """Return size and time."""
        with self._translated(path):
            try:
                found = self._open(path, os.O_PATH)
            except (FileNotFoundError, NotADirectoryError):
                self.connect()  # else it is not the file that is gone
                return None
            try:
                return self._facts(path, os.fstat(found))
            finally:
                os.close(found)

    def read(self, path: str) -> Parcel:
        """Open a file."""
        with self._translated(path):
            return _Guarded(self, self._open(path, _READING), path)

    def unchanged(self, parcel: Parcel) -> Promise[bool]:
        """Compare size and time."""
        # The file that was opened may be looked at by its name: it was below the base, and all of it is known.
        if isinstance(parcel, FileParcel):
            with contextlib.suppress(OSError, ValueError):
                found = os.lstat(f"{self._root}/{parcel.path.lstrip('/')}")
                if stat.S_ISREG(found.st_mode) and os.path.samestat(found, parcel.stat):
                    return Settled(Facts(found.st_size, found.st_mtime) == parcel.facts)
        try:
            return Settled(self.look(parcel.path) in {None, parcel.facts})
        except NotAFile:  # a folder has its name now
            return Settled(value=False)

    def dispose(self, path: str, move_to: str | None = None) -> Promise[None]:
        """Delete or move."""
        if move_to is None:
            self.remove(path)
            return Settled(None)
        with self._translated(path):
            try:
                self._rename(path, move_to)
            except LeadsOutError:
                raise
            except OSError as error:
                if error.errno == errno.EXDEV:
                    self._move_across(path, move_to)
                elif self._is_there(path):
                    raise
                else:
                    self.connect()
        return Settled(None)

    def read_on(self, path: str, offset: int) -> Parcel | None:
        """Open a file from an offset on."""
        with self._translated(path):
            return _Guarded(self, self._open(path, _READING), path, offset)

    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        """Write a parcel to a new file; what is there of it after a failure is removed."""
        return self._write(partial, parcel, buffer)

    def write_on(self, partial: str, parcel: Parcel, buffer: memoryview, offset: int) -> Stored:
        """Write a parcel from an offset on; what is there of it after a failure stays."""
        return self._write(partial, parcel, buffer, offset)

    def _write(self, partial: str, parcel: Parcel, buffer: memoryview, offset: int | None = None) -> Stored:
        sent_bytes = looked_bytes = offset or 0
        with self._translated(partial):
            descriptor, is_new = self._create(partial)
            try:
                if not is_new:
                    self._require_own(descriptor, partial, sent_bytes)
                more_bytes = (parcel.facts.size_bytes or 0) - sent_bytes
                self._room.require(self.server, descriptor, more_bytes, parent(partial))
                while count := parcel.readinto(buffer):
                    self.require_not_aborted()
                    write_all(descriptor, buffer[:count])
                    sent_bytes += count
                    if sent_bytes - looked_bytes >= _ROOM_BYTES:
                        looked_bytes = sent_bytes
                        self._room.require(self.server, descriptor, 0)
                # Before the rename: else a power cut may leave an empty file under the final name (ext4, XFS). The
                # folder is not synced: the rename may be lost then, as may the broker's record of it; no half file is.
                os.fsync(descriptor)
                size_bytes = os.fstat(descriptor).st_size
            except BaseException:
                if offset is None:
                    with contextlib.suppress(OSError), self._folder(partial) as folder:
                        os.unlink(basename(partial), dir_fd=folder)
                raise
            finally:
                os.close(descriptor)
        return Stored(partial, sent_bytes, size_bytes)

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        """Stamp, then rename."""
        with self._translated(final):
            try:
                with self._folder(stored.partial) as folder:
                    stamped = mtime is not None and stamp(basename(stored.partial), folder, mtime)
                    self._rename(stored.partial, final, folder)
            except FileNotFoundError as error:
                self.connect()
                # Not FileMissing: it is our own partial file that is gone, and another attempt makes a new one.
                raise IOFailure(f"{self.server.hostname}:{stored.partial} is gone") from error
            return Settled(Published(stamped=stamped))

    def sync(self, path: str) -> None:
        """Have the folder know the file's name."""
        # Nothing can be kept of a folder that somebody deleted since.
        gone = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with self._translated(path), gone, self._folder(path) as folder:
            sync_to_disk(".", folder)

    def remove(self, path: str) -> bool:
        """Delete a file."""
        with self._translated(path):
            try:
                with self._folder(path) as folder:
                    os.unlink(basename(path), dir_fd=folder)
            except (FileNotFoundError, NotADirectoryError):
                self.connect()
                return False
            return True

    def remove_folder(self, path: str) -> bool:
        """Remove an empty folder."""
        with self._translated(path), contextlib.suppress(OSError), self._folder(path) as folder:
            os.rmdir(basename(path), dir_fd=folder)
            return True
        return False

    def require_base(self) -> None:
        """Look for the base path."""
        self.connect()

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """List a folder."""
        with self._translated(folder):
            try:
                opened = self._open(folder if folder.strip("/.") else "/.", os.O_RDONLY | os.O_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                return []
            try:
                with os.scandir(opened) as entries:
                    return LISTINGS.kept(entry.name for entry in entries if entry.name.startswith(prefix))
            finally:
                os.close(opened)

    def require_not_aborted(self) -> None:
        """Raise ConnectionLost once the session was aborted."""
        if self._is_aborted:
            raise ConnectionLost(f"{self.server.hostname}: the session was aborted", server=self.server.hostname)

    @property
    def _root(self) -> str:
        return self.server.base_path or "/"

    def _open(self, path: str, flags: int) -> int:
        """Open what is there; the last part may be a link, and must lead inside, too."""
        refuse_unusable(path)
        return open_beneath(self._root, path.lstrip("/"), flags)

    def _folder(self, path: str) -> Folder:
        """Open the folder that a path's last part is in."""
        refuse_unusable(path)
        return Folder(self._root, parent(path).lstrip("/"))

    def _is_there(self, path: str) -> bool:
        """Is there anything of that name?"""
        try:
            with self._folder(path) as folder:
                os.lstat(basename(path), dir_fd=folder)
        except OSError:
            return False
        return True

    def _facts(self, path: str, found: os.stat_result) -> Facts:
        if not stat.S_ISREG(found.st_mode):
            raise NotAFile(f"{self.server.hostname}:{path} is no ordinary file", server=self.server.hostname)
        return Facts(found.st_size, found.st_mtime)

    def _require_own(self, descriptor: int, path: str, offset: int) -> None:
        """Go where we write. Raises IOFailure for a file that is not our own, or shorter; else it begins anew at 0."""
        found = os.fstat(descriptor)
        is_own = stat.S_ISREG(found.st_mode) and (found.st_nlink <= 1 or self.server.publish == "direct")
        if not is_own or found.st_size < offset:
            raise IOFailure(f"{self.server.hostname}:{path} is no ordinary file of our own, or has become shorter")
        if found.st_size and not offset:
            os.ftruncate(descriptor, 0)
        os.lseek(descriptor, offset, os.SEEK_SET)

    def _create(self, path: str) -> tuple[int, bool]:
        """Open a file to be written; return its descriptor, and whether it is new, and so our own."""
        refuse_unusable(path)
        for tries_left in reversed(range(_TRIES + 1)):
            try:
                with contextlib.suppress(FileExistsError):
                    return create_beneath(self._root, path.lstrip("/"), _WRITING | os.O_EXCL), True
                return create_beneath(self._root, path.lstrip("/"), _WRITING), False
            except FileNotFoundError:
                if not tries_left:
                    raise
                self._make_folder(parent(path))
        raise AssertionError("the last try returns or raises")

    def _make_folder(self, folder: str) -> None:
        self.connect()  # a base path that is gone is not made: files would land on the disk below a lost mount
        # FileNotFoundError: somebody deletes folders as we make them; the caller tries again
        with contextlib.suppress(FileNotFoundError):
            make_folders(self._root, folder.strip("/") or ".")

    def _rename(self, source: str, target: str, opened: int | None = None) -> None:
        """Rename a file. `opened`: its folder, which need not be opened again if the target is in it, too."""
        if opened is not None and parent(source) == parent(target):
            refuse_unusable(target)
            os.replace(basename(source), basename(target), src_dir_fd=opened, dst_dir_fd=opened)
            return
        for tries_left in reversed(range(_TRIES + 1)):
            try:
                with self._folder(source) as here, self._folder(target) as there:
                    os.replace(basename(source), basename(target), src_dir_fd=here, dst_dir_fd=there)
                    return
            except FileNotFoundError:
                if not (tries_left and self._is_there(source)):
                    raise
                self._make_folder(parent(target))

    def _move_across(self, source: str, target: str) -> None:
        """Move to another file system: copy under a hidden name, rename, delete.

        First goes what an earlier try left; one that still runs somewhere fails then, and finds the file moved.
        """
        begin = hashlib.blake2b(f"{source}\0{target}".encode(errors="surrogateescape"), digest_size=8).hexdigest()
        before, after = self.server.partial_pattern.split("{id}")
        partial = f"{before}{begin}-{uuid.uuid4().hex}{after}"
        with self._folder(target) as there:
            for name in self.names(parent(target) or "/", f"{before}{begin}-"):
                if name.endswith(after):
                    unlink_if_there(name, there)
            try:
                self._copy(source, partial, there)
                os.replace(partial, basename(target), src_dir_fd=there, dst_dir_fd=there)
            except FileNotFoundError as error:
                if not self._is_there(source):
                    raise
                raise ConnectionLost(f"{partial} is gone: somebody else moves the same file") from error
            finally:
                unlink_if_there(partial, there)
            sync_to_disk(".", there)
        with self._folder(source) as here:
            os.unlink(basename(source), dir_fd=here)

    def _copy(self, source: str, name: str, folder: int) -> None:
        """Copy a file with its mode, times and attributes."""
        opened = [self._open(source, _READING)]
        try:
            found = os.fstat(opened[0])
            self._facts(source, found)
            opened.append(os.open(name, _WRITING | os.O_EXCL, 0o600, dir_fd=folder))
            self._room.require(self.server, opened[1], found.st_size)
            copy_whole(opened[0], opened[1], found)
        finally:
            for descriptor in opened:
                os.close(descriptor)

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        """Turn the system's errors into ours."""
        where, name = f"{self.server.hostname}:{path}", self.server.hostname
        try:
            yield
        except EtlError:
            raise
        except LeadsOutError as error:
            raise PermissionRefused(f"{where} leads out of its BASE_PATH", server=name) from error
        except OSError as error:
            if error.errno == errno.ENOENT:
                self.connect()  # else it is not the file that is gone
            raise kind_of(error)(f"{where}: {error.strerror or error}", server=name) from error
        except UnicodeError as error:
            raise InvalidPath(f"{where} is no name on this system: {error}", server=name) from error


class _Guarded(FileParcel):
    """A local file whose reading stops when its session is aborted."""

    def __init__(self, session: LocalTransfer, descriptor: int, path: str, offset: int = 0) -> None:
        super().__init__(descriptor, path, offset=offset)
        self._session = session

    def readinto(self, buffer: memoryview) -> int:
        """Read once."""
        self._session.require_not_aborted()
        with self._session._translated(self.path):  # noqa: SLF001 - one translation for the module
            return super().readinto(buffer)
