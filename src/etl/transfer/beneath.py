"""Opening what lies below a folder, so that no link leads out of it, not even one that changes at the same moment.

A path that was checked first and opened by its name afterwards may be another one by then. Here the system itself
resolves it below the folder (openat2, Linux 5.6), by one call if no part of it is a link; elsewhere it is opened part
by part. And what its errors mean.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
from typing import Any

from etl.errors import (
    ConnectionLost,
    EtlError,
    FileMissing,
    InvalidPath,
    IOFailure,
    NotAFile,
    PermissionRefused,
    StorageFull,
)
from etl.transfer.paths import basename, parent

_OPENAT2 = 437  # the number of the system call, on all machines that we know
_NO_LINKS, _BENEATH = 0x04, 0x08  # RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH
_NOWHERE = -100  # AT_FDCWD: the path is absolute
_TRIES = 16  # of a path of which parts are renamed at the same time
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_MODE = 0o666  # of a new file, before the umask

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


class LeadsOutError(PermissionError):
    """Raised when a path leads out of its folder."""


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


# Not `PyDLL`: other threads run on while a share does not answer.
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.POINTER(_How), ctypes.c_size_t)
_syscall.restype = ctypes.c_long


def kind_of(error: OSError) -> type[EtlError]:
    """Return which error of ours an error of the system is."""
    return _KINDS.get(error.errno or 0, IOFailure)


def open_beneath(root: str, path: str, flags: int) -> int:
    """Open an existing file or folder; return its descriptor. Links inside are followed. `path` is relative.

    Raises LeadsOutError, and OSError as `os.open` does.
    """
    flags |= os.O_CLOEXEC
    if not root.strip("/"):
        return os.open(f"/{path}", flags)
    if (opened := _open_linkless(root, path, flags)) is not None:
        return opened
    top = os.open(root, _FOLDER)
    try:
        if _has_openat2:
            # EXDEV: it leads out, or by a link with an absolute path, which may lead inside all the same.
            with contextlib.suppress(_AbsoluteError):
                return _openat2(top, path, flags, _BENEATH)
        return _walk(top, root, path, flags)
    finally:
        os.close(top)


def create_beneath(root: str, path: str, flags: int) -> int:
    """Open a file to be written, which is made if need be, but is no link; return its descriptor. As `open_beneath`."""
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    if (opened := _open_linkless(root, path, flags, _MODE)) is not None:
        return opened
    with Folder(root, parent(path)) as folder:
        return os.open(basename(path), flags, _MODE, dir_fd=folder)


class Folder:
    """A folder below `root`, open for a `with` block, which has its descriptor, for `dir_fd` only.

    Raises what `open_beneath` does.
    """

    __slots__ = ("_opened",)

    def __init__(self, root: str, path: str) -> None:
        self._opened = open_beneath(root, path or ".", os.O_PATH | os.O_DIRECTORY)

    def __enter__(self) -> int:
        return self._opened

    def __exit__(self, *_: object) -> None:
        os.close(self._opened)


def make_folders(root: str, path: str) -> None:
    """Make a folder and those above it, below `root`, which must exist; what exists may stay."""
    parts = path.split("/")
    for count in range(len(parts)):
        with Folder(root, "/".join(parts[:count])) as above, contextlib.suppress(FileExistsError):
            os.mkdir(parts[count] or ".", dir_fd=above)


def unlink_if_there(name: str, folder: int) -> None:
    """Delete a file of a folder, which is given as a descriptor."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def stamp(name: str, folder: int, mtime: float) -> bool:
    """Give a file of a folder its time; return whether that could be done."""
    try:
        os.utime(name, (mtime, mtime), dir_fd=folder, follow_symlinks=False)
    except (OSError, OverflowError, ValueError):
        return False
    return True


def sync_to_disk(name: str, folder: int) -> None:
    """Have the system write a file of a folder to the disk, or the folder itself (`.`), all of it."""
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some file systems know no such thing of folders
            raise
    finally:
        os.close(descriptor)


class _AbsoluteError(Exception):
    """Raised when only the path's real form can tell whether it leads out."""


def _open_linkless(root: str, path: str, flags: int, mode: int = 0) -> int | None:
    """Open a path of which no part is a link, `root` included, by one call. None: it takes a closer look.

    Without links and `..` each part lies in the one before it, so that none leads out.
    """
    if not _has_openat2 or ".." in path:
        return None
    try:
        return _openat2(_NOWHERE, f"{root}/{path}", flags, _NO_LINKS, mode)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENAMETOOLONG}:  # a link; or too long only together with `root`
            return None
        raise


def _openat2(top: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    name, how = os.fsencode(path), _how(flags, mode, resolve)
    for _ in range(_TRIES):
        opened: int = _syscall(_OPENAT2, top, name, how, ctypes.sizeof(_How))
        if opened >= 0:
            return opened
        number = ctypes.get_errno()
        if number == errno.EXDEV:
            raise _AbsoluteError
        if number not in {errno.EAGAIN, errno.EINTR}:
            raise OSError(number, os.strerror(number), path)
    raise LeadsOutError(errno.EAGAIN, "changes all the time", path)


@functools.cache
def _how(flags: int, mode: int, resolve: int) -> Any:
    """Return what a call is told, as its argument: there are few of them, and the system only reads them."""
    return ctypes.byref(_How(flags, mode, resolve))


def _walk(top: int, root: str, path: str, flags: int) -> int:
    """Open the real form of a path part by part, none of which may be a link by now."""
    real_root, real = os.path.realpath(root), os.path.realpath(f"{root}/{path}")
    if os.path.commonpath([real_root, real]) != real_root:
        raise LeadsOutError(errno.EXDEV, "leads out", path)
    *folders, last = os.path.relpath(real, real_root).split("/")
    here = os.dup(top)
    try:
        for folder in folders:
            above, here = here, os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
            os.close(above)
        return os.open(last, flags | os.O_NOFOLLOW, dir_fd=here)
    finally:
        os.close(here)


def _probe() -> bool:
    """Has the system the call, and does a container's filter let it pass?"""
    top = os.open("/", _FOLDER)
    try:
        os.close(_openat2(top, ".", _FOLDER, _BENEATH))
    except (OSError, _AbsoluteError):
        return False
    finally:
        os.close(top)
    return True


_has_openat2 = _probe()
