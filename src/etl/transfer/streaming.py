"""What sessions that stream have in common: whole files to and from this disk, made of their streams."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING

from etl.errors import FileMissing, NotAFile, SizeMismatch, TooLarge
from etl.models.task import Facts, Phase
from etl.transfer.base import Session
from etl.transfer.paths import beside

if TYPE_CHECKING:
    from etl.models.task import Progress
    from etl.transfer.base import Parcel

_BUFFER_BYTES = 1 << 20


class FileParcel:
    """A file of this disk, by name or descriptor, as a parcel. Opening never hangs, whatever it is; raises OSError."""

    def __init__(
        self, file: str | int, path: str | None = None, facts: Facts | None = None, *, offset: int = 0
    ) -> None:
        self.path = path if path is not None else str(file)
        # O_NONBLOCK: opening a FIFO nobody writes to, or a device, would wait for ever
        how = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        descriptor = os.open(file, how) if isinstance(file, str) else file
        try:
            self.stat = os.fstat(descriptor)
            if stat.S_ISDIR(self.stat.st_mode):
                raise NotAFile(f"{self.path} is a folder")
            if not stat.S_ISREG(self.stat.st_mode):
                raise NotAFile(f"{self.path} is no ordinary file")
            os.lseek(descriptor, offset, os.SEEK_SET)
            self._file = os.fdopen(descriptor, "rb", buffering=0)
        except BaseException:
            os.close(descriptor)
            raise
        self.facts = facts or Facts(self.stat.st_size, self.stat.st_mtime)
        self.held: memoryview | None = None
        self._left = memoryview(b"")  # of `held`: what `readinto` did not give out yet
        size_bytes = self.facts.size_bytes
        # One byte more than there should be shows that it grew; a file that never stops growing would fill a disk.
        self._readable_bytes = sys.maxsize if size_bytes is None else size_bytes + 1 - offset

    def load(self, limit_bytes: int) -> bool:
        """Take the file into memory if it is small enough."""
        if self.held is not None:
            return True
        if self.stat.st_size > limit_bytes:
            return False
        content = self._file.read(limit_bytes + 1) or b""
        while len(content) <= limit_bytes and (more := self._file.read(limit_bytes + 1 - len(content))):
            content += more
        if len(content) > limit_bytes:  # it has grown: read it as a stream
            self._file.seek(0)
            return False
        self.held = self._left = memoryview(content)
        self._file.close()
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Read once."""
        if self.held is None:
            count = self._file.readinto(buffer[: self._readable_bytes]) or 0
            self._readable_bytes -= count
            return count
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self, *, complete: bool) -> None:  # noqa: ARG002 - the contract's argument; a file has no last word
        """Close the file."""
        self._file.close()


class MemoryParcel:
    """A parcel read to its end before, and served from a seekable binary file: one in memory, or a spool file."""

    held: memoryview | None = None

    def __init__(self, path: str, facts: Facts, file: IO[bytes]) -> None:
        self.path, self.facts, self._file = path, facts, file

    def load(self, limit_bytes: int) -> bool:  # noqa: ARG002 - the contract's argument; it is loaded already
        """Say that nothing is left to read at the source."""
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Read once."""
        return self._file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]  # IO[bytes] hides it

    def close(self, *, complete: bool) -> None:
        """Nothing is open at the source."""


class _Bounded:
    """A parcel of unknown size, of which at most `limit_bytes` come: a server that sends on and on fills no disk."""

    def __init__(self, parcel: Parcel, limit_bytes: int) -> None:
        self.path, self.facts, self.held = parcel.path, parcel.facts, parcel.held
        self._parcel = parcel
        self._limit_bytes = self._left_bytes = limit_bytes

    def load(self, limit_bytes: int) -> bool:
        """Pass on."""
        return self._parcel.load(limit_bytes)

    def readinto(self, buffer: memoryview) -> int:
        """Read once."""
        count = self._parcel.readinto(buffer)
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise _too_large(self._parcel, self._limit_bytes)
        return count

    def close(self, *, complete: bool) -> None:
        """Pass on."""
        self._parcel.close(complete=complete)


def require_size(parcel: Parcel, limit_bytes: int) -> None:
    """Close a parcel and raise TooLarge if it is known to be larger than allowed. 0: there is no limit."""
    if limit_bytes and (parcel.facts.size_bytes or 0) > limit_bytes:
        parcel.close(complete=False)
        raise _too_large(parcel, limit_bytes)


def bounded(parcel: Parcel, limit_bytes: int) -> Parcel:
    """Return a parcel whose reading raises TooLarge beyond the limit, if its size is not known."""
    return _Bounded(parcel, limit_bytes) if limit_bytes and parcel.facts.size_bytes is None else parcel


def _too_large(parcel: Parcel, limit_bytes: int) -> TooLarge:
    return TooLarge(f"{parcel.path} has more than {limit_bytes} bytes (ETL_MAX_FILE_BYTES)")


class _Counted:
    """A parcel that is streamed, and whose bytes are counted on their way."""

    held: memoryview | None = None

    def __init__(self, parcel: Parcel, progress: Progress) -> None:
        self.path, self.facts = parcel.path, parcel.facts
        self.load, self.close = parcel.load, parcel.close
        self._readinto, self._progress = parcel.readinto, progress

    def readinto(self, buffer: memoryview) -> int:
        """Read once."""
        count, progress = self._readinto(buffer), self._progress
        progress.moved_bytes += count
        if not count or progress.resumed_at + progress.moved_bytes == progress.size_bytes:
            progress.phase = Phase.VERIFYING
        return count


def counted(parcel: Parcel, progress: Progress) -> Parcel:
    """Return a parcel to be written; `progress` says from now on how much of it has been."""
    progress.phase, progress.size_bytes = Phase.STREAMING, parcel.facts.size_bytes
    if parcel.held is None:
        return _Counted(parcel, progress)
    progress.moved_bytes = len(parcel.held)
    return parcel


class Streaming(Session):
    """A session whose `download` and `upload` are made of its streams."""

    def download(self, remote_path: str, local_path: str) -> None:
        """Copy a file of the server to a local one, which appears whole or not at all. Raises FileMissing, ..."""
        partial = f"{local_path}.{uuid.uuid4().hex}.part"
        parcel = self.read(remote_path)
        try:
            with Path(partial).open("wb") as file:
                count_bytes = _pump(parcel, file.fileno())
            parcel.close(complete=True)
            if parcel.facts.size_bytes not in {None, count_bytes}:
                raise SizeMismatch(f"{remote_path}: {count_bytes} of {parcel.facts.size_bytes} bytes came")
            Path(partial).replace(local_path)
        finally:
            parcel.close(complete=False)
            Path(partial).unlink(missing_ok=True)

    def upload(self, local_path: str, remote_path: str) -> None:
        """Copy a local file to the server under a hidden name, compare sizes, then rename it; makes its folders."""
        try:
            parcel = FileParcel(local_path)
        except FileNotFoundError as error:
            raise FileMissing(f"{local_path}: no such local file") from error
        try:
            hidden = self.server.partial_pattern.replace("{id}", uuid.uuid4().hex)
            partial = beside(remote_path, hidden)
            self.foresee(remote_path, None)
            stored = self.write(partial, parcel, memoryview(bytearray(_BUFFER_BYTES)))
            if stored.size_bytes not in {None, stored.sent_bytes}:
                self.remove(partial)
                raise SizeMismatch(
                    f"{remote_path}: {stored.size_bytes} of {stored.sent_bytes} bytes were stored",
                    server=self.server.hostname,
                )
            self.publish(stored, remote_path, None).result()
        finally:
            parcel.close(complete=True)


def _pump(parcel: Parcel, descriptor: int) -> int:
    """Write all of a parcel to a file descriptor; return the number of bytes."""
    buffer, count_bytes = memoryview(bytearray(_BUFFER_BYTES)), 0
    while count := parcel.readinto(buffer):
        write_all(descriptor, buffer[:count])
        count_bytes += count
    return count_bytes


def write_all(descriptor: int, block: memoryview) -> None:
    """Write a block to a file descriptor, however many calls that takes."""
    while block:
        block = block[os.write(descriptor, block) :]


def copy_whole(source: int, target: int, found: os.stat_result) -> None:
    """Copy an open file to another one, with mode, times and attributes, and have all of it on the disk."""
    with os.fdopen(source, "rb", closefd=False) as content, os.fdopen(target, "wb", closefd=False) as copy:
        shutil.copyfileobj(content, copy, _BUFFER_BYTES)
    with contextlib.suppress(OSError):  # some file systems know none
        for attribute in os.listxattr(source):
            os.setxattr(target, attribute, os.getxattr(source, attribute))
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    os.fsync(target)


def read_full(parcel: Parcel, room: memoryview) -> int:
    """Read until there is no more room, or nothing more comes; return how many bytes."""
    filled = 0
    while filled < len(room) and (count := parcel.readinto(room[filled:])):
        filled += count
    return filled
