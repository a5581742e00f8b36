"""A user's own protocol as a session: its four methods move whole files, so a temporary file stands between.

What such a class may offer beside the four, and is used when it does (paths are the server's, base path included):

    size(path) -> int            sizes are compared with it; `overwrite` other than replace needs it
    rename(old, new)             files are uploaded under the hidden partial name and renamed; without it an upload goes
                                 to the final name at once, and is as whole as the class makes it
    remove(path)                 `source_action` and tidying up
    names(folder) -> list[str]   tidying up after a crash
    ping(), abort()              signs of life; ending what blocks, from another thread (else `disconnect` does)

Each raises FileNotFoundError for what is not there, and IsADirectoryError for a folder.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.errors import (
    EtlError,
    FileMissing,
    IOFailure,
    NotAFile,
    PermissionRefused,
    ServerUnavailable,
    SettingsError,
    SizeMismatch,
    StorageFull,
)
from etl.models.task import Facts
from etl.transfer.base import BaseTransfer, Promise, Published, Session, Settled, Stored
from etl.transfer.budget import LISTINGS
from etl.transfer.paths import below
from etl.transfer.spool import SpoolFolder
from etl.transfer.streaming import FileParcel, write_all

if TYPE_CHECKING:
    from etl.transfer.base import Parcel


class Staged(Session):
    """Any `BaseTransfer` as a session, through files in a private temporary folder."""

    def __init__(self, transfer: BaseTransfer, spool_limit_bytes: int) -> None:
        super().__init__(transfer.server, transfer.settings)
        self.transfer = transfer
        self.spec = transfer.spec  # type: ignore[misc]  # the wrapped class's, of this one object
        self.spool_limit_bytes = spool_limit_bytes
        self._folder: SpoolFolder | None = None
        self._spooled: dict[str, Path] = {}  # partial path -> the file it waits in until it is published

    # --- the four methods, passed on ------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect the wrapped transfer. Raises ServerUnavailable for any failure to reach its server."""
        with self._translated("connect", unreachable=True):
            _require_done(self.transfer.connect())

    def disconnect(self) -> None:
        """Disconnect the wrapped transfer, whatever it says to that; remove the temporary folder."""
        with contextlib.suppress(Exception):
            self.transfer.disconnect()
        folder, self._folder = self._folder, None
        self._spooled.clear()
        if folder is not None:
            folder.remove()

    def download(self, remote_path: str, local_path: str) -> None:
        """Pass on."""
        with self._translated(remote_path):
            _require_done(self.transfer.download(self._whole(remote_path), local_path))

    def upload(self, local_path: str, remote_path: str) -> None:
        """Pass on."""
        with self._translated(remote_path):
            _require_done(self.transfer.upload(local_path, self._whole(remote_path)))

    # --- the session ----------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Ask the wrapped transfer to abort, or else disconnect it under the feet of whatever runs."""
        with contextlib.suppress(Exception):
            (self._offered("abort") or self.transfer.disconnect)()

    def ping(self) -> None:
        """Pass on, if the wrapped transfer can."""
        ping = self._offered("ping")
        if ping is not None:
            with self._translated("ping"):
                ping()

    def look(self, path: str) -> Facts | None:
        """Return the size; times are not known here. Raises SettingsError when the class cannot tell sizes."""
        size = self._need("size")
        with self._translated(path):
            try:
                return Facts(int(size(self._whole(path))), None)
            except FileNotFoundError:
                return None

    def look_published(self, partial: str, final: str) -> Facts | None:
        """Look, if the class can."""
        return super().look_published(partial, final) if self._offered("size") is not None else None

    def read(self, path: str) -> Parcel:
        """Download the file, then serve it."""
        size_bytes = self._size(path)
        if size_bytes is not None and size_bytes > self.spool_limit_bytes:
            raise self._too_large(path)
        spool = self._new_spool()
        self.download(path, str(spool))
        with self._translated(path):
            if spool.stat().st_size > self.spool_limit_bytes:
                raise self._too_large(path)
            # The server's facts alone, None where it tells none: nothing is compared with itself.
            parcel = FileParcel(str(spool), path, Facts(size_bytes, None))
            spool.unlink()  # its content lives as long as the parcel is open
        return parcel

    def unchanged(self, parcel: Parcel) -> Promise[bool]:
        """Compare sizes, if the class tells them."""
        try:
            return Settled(self._size(parcel.path) == parcel.facts.size_bytes)
        except FileMissing:
            return Settled(value=True)

    def require_disposal(self, *, move: bool) -> None:
        """Look for the methods that the class would need."""
        self._need("size")
        self._need("rename" if move else "remove")

    def dispose(self, path: str, move_to: str | None = None) -> Promise[None]:
        """Delete or move. Raises SettingsError when the class cannot."""
        if move_to is None:
            self._need("remove")
            self.remove(path)
        else:
            rename = self._need("rename")
            with self._translated(path), contextlib.suppress(FileNotFoundError):
                rename(self._whole(path), self._whole(move_to))
        return Settled(None)

    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        """Spool the parcel; upload it under its partial name if the class can rename it later."""
        spool = self._new_spool()
        with self._translated(partial):
            sent_bytes = self._fill(spool, parcel, buffer)
            if self._offered("rename") is None:
                self._spooled[partial] = spool
                return Stored(partial, sent_bytes, None)
            self.upload(str(spool), partial)
            spool.unlink()
        return Stored(partial, sent_bytes, self._size(partial))

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:  # noqa: ARG002 - no time stamps here
        """Rename, or upload what was spooled and compare sizes."""
        spool = self._spooled.pop(stored.partial, None)
        if spool is None:
            self._replace(stored.partial, final)
            return Settled(Published())
        self.upload(str(spool), final)
        with self._translated(final):
            spool.unlink()
        size_bytes = self._size(final)
        if size_bytes not in {None, stored.sent_bytes}:
            raise SizeMismatch(
                f"{self._name}:{final}: {size_bytes} of {stored.sent_bytes} bytes were stored", server=self._name
            )
        return Settled(Published())

    def remove(self, path: str) -> bool:
        """Delete a file, or the spool file that stands for it; False when that cannot be done."""
        spool = self._spooled.pop(path, None)
        remove = self._offered("remove")
        with self._translated(path):
            if spool is not None:
                spool.unlink(missing_ok=True)
                return True
            try:
                if remove is not None:
                    remove(self._whole(path))
            except FileNotFoundError:
                return False
        return remove is not None

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """List a folder, if the class can."""
        names = self._offered("names")
        if names is None:
            return []
        with self._translated(folder):
            try:
                found = names(self._whole(folder) if folder.strip("/.") else self.server.base_path or "/")
                return LISTINGS.kept(name for name in found if name.startswith(prefix))
            except FileNotFoundError:
                return []

    def lacks(self) -> tuple[str, ...]:
        """Return which of the methods the class has not."""
        return tuple(method for method in ("names", "size", "remove") if self._offered(method) is None)

    # --- parts ----------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self.server.hostname

    def _whole(self, path: str) -> str:
        return below(self.server.base_path, path)

    def _offered(self, method: str) -> Callable[..., Any] | None:
        found = getattr(self.transfer, method, None)
        return found if callable(found) else None

    def _need(self, method: str) -> Callable[..., Any]:
        found = self._offered(method)
        if found is None:
            kind = type(self.transfer).__name__
            raise SettingsError(f"{self._name}: {kind} has no {method}(), which this job needs", server=self._name)
        return found

    def _size(self, path: str) -> int | None:
        size = self._offered("size")
        if size is None:
            return None
        with self._translated(path):
            return int(size(self._whole(path)))

    def _replace(self, partial: str, final: str) -> None:
        rename = self._need("rename")
        with self._translated(final):
            try:
                rename(self._whole(partial), self._whole(final))
            except FileExistsError:
                remove = self._offered("remove")
                if remove is None:
                    raise
                remove(self._whole(final))
                rename(self._whole(partial), self._whole(final))

    def _new_spool(self) -> Path:
        if self._folder is None:
            with self._translated("spool"):
                self._folder = SpoolFolder()
        return self._folder.new_path()

    def _fill(self, spool: Path, parcel: Parcel, buffer: memoryview) -> int:
        """Write a parcel to a spool file; return the number of bytes."""
        sent_bytes = 0
        descriptor = os.open(spool, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while count := parcel.readinto(buffer):
                sent_bytes += count
                if sent_bytes > self.spool_limit_bytes:
                    raise self._too_large(parcel.path)
                write_all(descriptor, buffer[:count])
        except BaseException:
            spool.unlink()
            raise
        finally:
            os.close(descriptor)
        return sent_bytes

    def _too_large(self, path: str) -> StorageFull:
        return StorageFull(
            f"{self._name}:{path} is larger than a spool file may be ({self.spool_limit_bytes} bytes, "
            "ETL_SPOOL_LIMIT_BYTES)",
            server=self._name,
        )

    @contextlib.contextmanager
    def _translated(self, what: str, *, unreachable: bool = False) -> Iterator[None]:
        """Turn whatever a user's class raises into our errors, once."""
        message, name = f"{self._name}:{what}", self._name
        try:
            yield
        except EtlError:
            raise
        except FileNotFoundError as error:
            raise FileMissing(f"{message}: {error}", server=name) from error
        except IsADirectoryError as error:
            raise NotAFile(f"{message} is a folder", server=name) from error
        except PermissionError as error:
            raise PermissionRefused(f"{message}: {error}", server=name) from error
        except Exception as error:
            if unreachable and isinstance(error, (OSError, EOFError)):
                raise ServerUnavailable(f"{message}: {error!r}", server=name) from error
            raise IOFailure(f"{message}: {error!r}", server=name) from error


def _require_done(answer: object) -> None:
    """Raise OSError when a user's method returned False: some tell a failure so instead of raising."""
    if answer is False:
        raise OSError("it returned False")
