"""A private temporary folder that does not outlive its process for long: the next one removes what a kill left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

_PREFIX = "etl-spool-"
_LOCK = "lock"


class SpoolFolder:
    """Temporary files of one session. Its lock file is held as long as the process lives."""

    def __init__(self) -> None:
        remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))  # mode 0700
        self._count = 0
        # Locked before it has its name: whoever finds a lock file nobody holds deletes the folder.
        unnamed = self.path / f"{_LOCK}.new"
        self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(self.path / _LOCK)

    def new_path(self) -> Path:
        """Return a path that no file has."""
        self._count += 1
        return self.path / str(self._count)

    def remove(self) -> None:
        """Delete the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned() -> None:
    """Delete folders of processes that were killed: those whose lock nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():  # others' may hold anything
                _remove_unless_locked(folder)


def _remove_unless_locked(folder: Path) -> None:
    # A folder without its lock file yet belongs to a process that is just making it: FileNotFoundError.
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError while its process lives
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
