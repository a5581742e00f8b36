"""Files of this machine, or of a mounted share, as a server: the protocol `local`.

Below its base path; a symbolic link that leads out of a base path is refused.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from etl.errors import (
    ConnectionLost,
    EtlError,
    FileMissing,
    InvalidPath,
    IOFailure,
    NotAFile,
    PermissionRefused,
    ServerUnavailable,
    StorageFull,
)
from etl.models.server import ProtocolSpec, ServerConfig, TransferSettings
from etl.models.task import Facts
from etl.transfer.base import ANSWERS, Promise, Published, Settled, Stored
from etl.transfer.paths import below, parent
from etl.transfer.streaming import FileParcel, Streaming, write_all

if TYPE_CHECKING:
    from etl.transfer.base import Parcel

_KINDS: dict[int, type[EtlError]] = {
    errno.ENOENT: FileMissing,
    errno.EACCES: PermissionRefused,
    errno.EPERM: PermissionRefused,
    errno.EROFS: PermissionRefused,
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EFBIG: StorageFull,
    errno.EISDIR: NotAFile,
    errno.ENOTDIR: NotAFile,
    errno.EEXIST: NotAFile,  # of a folder that is to be made
    errno.ENAMETOOLONG: InvalidPath,
    errno.ESTALE: ConnectionLost,
}
_TRIES = 5  # of making folders that somebody deletes at the same time


class LocalTransfer(Streaming):
    """A folder of this machine."""

    spec: ClassVar[ProtocolSpec] = ProtocolSpec(
        needs_host=False, needs_login=False, needs_base=True, base_is_absolute=True
    )

    def __init__(self, server: ServerConfig, settings: TransferSettings | None = None) -> None:
        super().__init__(server, settings)
        self._is_aborted = False

    def connect(self) -> None:
        """Look whether the base path is there: a share may not be mounted yet, or not any more."""
        base = self.server.base_path or "/"
        if not Path(base).is_dir():
            raise ServerUnavailable(f"{self.server.hostname}: {base} is no folder", server=self.server.hostname)

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
                found = Path(self._inside(path, follow=True)).stat()
            except (FileNotFoundError, NotADirectoryError):
                self.connect()  # else it is not the file that is gone
                return None
            return self._facts(path, found)

    def read(self, path: str) -> Parcel:
        """Open a file."""
        with self._translated(path):
            return _Guarded(self, self._inside(path, follow=True), path)

    def unchanged(self, parcel: Parcel) -> Promise[bool]:
        """Compare size and time."""
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
            source, target = self._inside(path), self._inside(move_to)
            try:
                self._rename(source, target)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    self._move_across(source, target)
                elif os.path.lexists(source):
                    raise
                else:
                    self.connect()
        return Settled(None)

    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        """Write a parcel to a new file; what is there of it after a failure is removed."""
        sent_bytes = 0
        with self._translated(partial):
            real = self._inside(partial)
            descriptor = self._create(real)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise IOFailure(f"{self.server.hostname}:{partial} is no ordinary file")
                while count := parcel.readinto(buffer):
                    self.require_not_aborted()
                    write_all(descriptor, buffer[:count])
                    sent_bytes += count
                # Before the rename: else a power cut may leave an empty file under the final name (ext4, XFS). The
                # folder is not synced: the rename may be lost then, as may the broker's record of it; no half file is.
                os.fsync(descriptor)
                size_bytes = os.fstat(descriptor).st_size
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(real).unlink()
                raise
            finally:
                os.close(descriptor)
        return Stored(partial, sent_bytes, size_bytes)

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        """Stamp, then rename."""
        with self._translated(final):
            partial, target = self._inside(stored.partial), self._inside(final)
            stamped = mtime is not None and self._stamp(partial, mtime)
            try:
                self._rename(partial, target)
            except FileNotFoundError as error:
                self.connect()
                # Not FileMissing: it is our own partial file that is gone, and another attempt makes a new one.
                raise IOFailure(f"{self.server.hostname}:{stored.partial} is gone") from error
            return Settled(Published(stamped=stamped))

    def sync(self, path: str) -> None:
        """Have the folder know the file's name."""
        # Nothing can be kept of a folder that somebody deleted since.
        with self._translated(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            _sync(parent(self._inside(path)))

    def remove(self, path: str) -> bool:
        """Delete a file."""
        with self._translated(path):
            try:
                Path(self._inside(path)).unlink()
            except (FileNotFoundError, NotADirectoryError):
                self.connect()
                return False
            return True

    def remove_folder(self, path: str) -> bool:
        """Remove an empty folder."""
        try:
            Path(self._inside(path)).rmdir()
        except OSError:
            return False
        return True

    def require_base(self) -> None:
        """Look for the base path."""
        self.connect()

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """List a folder."""
        with self._translated(folder):
            inside = self._inside(folder, follow=True) if folder.strip("/.") else self.server.base_path or "/"
            try:
                with os.scandir(inside) as entries:
                    return [entry.name for entry in entries if entry.name.startswith(prefix)]
            except (FileNotFoundError, NotADirectoryError):
                return []

    def require_not_aborted(self) -> None:
        """Raise ConnectionLost once the session was aborted."""
        if self._is_aborted:
            raise ConnectionLost(f"{self.server.hostname}: the session was aborted", server=self.server.hostname)

    def _inside(self, path: str, *, follow: bool = False) -> str:
        """Return the real place of a path. `follow`: the last part may be a link, and must lead inside too."""
        base = self.server.base_path
        place = below(base or "/", path)
        if not base.strip("/"):
            return place
        root = os.path.realpath(base)
        folder = os.path.realpath(place if follow else parent(place))
        if os.path.commonpath([root, folder]) != root:
            raise PermissionRefused(f"{self.server.hostname}:{path} leads out of {base}", server=self.server.hostname)
        return place

    def _facts(self, path: str, found: os.stat_result) -> Facts:
        if not stat.S_ISREG(found.st_mode):
            raise NotAFile(f"{self.server.hostname}:{path} is no ordinary file", server=self.server.hostname)
        return Facts(found.st_size, found.st_mtime)

    def _create(self, real: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        for _ in range(_TRIES):
            try:
                return os.open(real, flags, 0o666)
            except FileNotFoundError:
                self._make_folder(parent(real))
        return os.open(real, flags, 0o666)

    def _make_folder(self, folder: str) -> None:
        self.connect()  # a base path that is gone is not made: files would land on the disk below a lost mount
        # FileNotFoundError: somebody deletes folders as we make them; the caller tries again
        with contextlib.suppress(FileNotFoundError):
            Path(folder).mkdir(parents=True, exist_ok=True)

    def _rename(self, source: str, target: str) -> None:
        for _ in range(_TRIES):
            try:
                Path(source).replace(target)
            except FileNotFoundError:
                if not os.path.lexists(source):
                    raise
                self._make_folder(parent(target))
            else:
                return
        Path(source).replace(target)

    def _move_across(self, source: str, target: str) -> None:
        """Move to another file system: copy under a hidden name, rename, delete.

        First goes what an earlier try left; one that still runs somewhere fails then, and finds the file moved.
        """
        folder = Path(parent(target))
        begin = hashlib.blake2b(f"{source}\0{target}".encode(errors="surrogateescape"), digest_size=8).hexdigest()
        before, after = self.server.partial_pattern.split("{id}")
        for path in folder.iterdir():
            if path.name.startswith(f"{before}{begin}-") and path.name.endswith(after):
                path.unlink(missing_ok=True)
        partial = folder / f"{before}{begin}-{uuid.uuid4().hex}{after}"
        try:
            shutil.copy2(source, partial)
            _sync(str(partial))
            partial.replace(target)
        except FileNotFoundError as error:
            if not os.path.lexists(source):
                raise
            raise ConnectionLost(f"{partial.name} is gone: somebody else moves the same file") from error
        finally:
            partial.unlink(missing_ok=True)
        _sync(parent(target))
        Path(source).unlink()

    def _stamp(self, real: str, mtime: float) -> bool:
        try:
            os.utime(real, (mtime, mtime))
        except (OSError, OverflowError, ValueError):
            return False
        return True

    @contextlib.contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        """Turn the system's errors into ours."""
        where, name = f"{self.server.hostname}:{path}", self.server.hostname
        try:
            yield
        except EtlError:
            raise
        except OSError as error:
            if error.errno == errno.ENOENT:
                self.connect()  # else it is not the file that is gone
            kind = _KINDS.get(error.errno or 0, IOFailure)
            raise kind(f"{where}: {error.strerror or error}", server=name) from error
        except UnicodeError as error:
            raise InvalidPath(f"{where} is no name on this system: {error}", server=name) from error


def _sync(real: str) -> None:
    """Have the system write a file or a folder to the disk, all of it."""
    descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some file systems know no such thing of folders
            raise
    finally:
        os.close(descriptor)


class _Guarded(FileParcel):
    """A local file whose reading stops when its session is aborted."""

    def __init__(self, session: LocalTransfer, local_path: str, path: str) -> None:
        super().__init__(local_path, path)
        self._session = session

    def readinto(self, buffer: memoryview) -> int:
        """Read once."""
        self._session.require_not_aborted()
        with self._session._translated(self.path):  # noqa: SLF001 - one translation for the module
            return super().readinto(buffer)
