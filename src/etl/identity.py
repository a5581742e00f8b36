"""The identity of this process: an instance name, and a slot number that no other live process on this host holds.

Knows only files and locks. A restarted process gets the same slot, so that it can end at once what its predecessor left
open in Kafka.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from etl.errors import SettingsError

FIRST_FREE_SLOT = 100  # for processes without ETL_SLOT: supervisord assigns the slots below
MAX_SLOTS = 1000
PROBLEM_BYTES = 300  # of a problem, in a heartbeat
BEAT_SECONDS = 1.0  # between two heartbeats in the slot file


@dataclass
class Identity:
    """An identity that this process holds until `release`, or until it ends, however it ends."""

    group_id: str
    topic: str
    instance_id: str
    slot: int
    token: str = field(default_factory=lambda: secrets.token_hex(4))  # unique to this run: part of partial file names
    _lock: IO[str] | None = field(default=None, repr=False)
    _beaten: float = field(default=0.0, repr=False)

    @property
    def name(self) -> str:
        """The name of this process in logs and results."""
        return f"{self.instance_id}/{self.slot}"

    @property
    def transactional_id(self) -> str:
        """The id of the transactional producer: unique among live processes, and the same after a restart."""
        return f"etl-{self.group_id}-{self.topic}-{self.instance_id}-{self.slot}"

    @property
    def group_instance_id(self) -> str:
        """The name of this process as a static member of the group."""
        return f"{self.instance_id}-{self.slot}"

    def beat(self, *, polls: bool, problem: str = "") -> None:
        """Record a heartbeat of the main loop in the slot file, at most once a second.

        `polls`: it has reached its broker and polls. `problem`: why it gets no work done all the same.
        """
        now = time.monotonic()
        if self._lock is not None and now - self._beaten >= BEAT_SECONDS:
            self._beaten = now
            _note(self._lock, now, polls=polls, problem=problem)

    def release(self) -> None:
        """Release the slot. Idempotent."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def claim(group_id: str, topic: str, instance_id: str, slot: int | None, bootstrap_servers: str = "") -> Identity:
    """Hold `slot`, or the first free one if it is None. Raises SettingsError if a live process holds it."""
    names = (group_id, topic, instance_id, bootstrap_servers)
    if slot is not None:
        if (lock := _try_lock(names, slot)) is None:
            raise SettingsError(f"ETL_SLOT: slot {slot} is held by another live process of {instance_id}")
        return Identity(group_id, topic, instance_id, slot, _lock=lock)
    for free in range(FIRST_FREE_SLOT, FIRST_FREE_SLOT + MAX_SLOTS):
        if (lock := _try_lock(names, free)) is not None:
            return Identity(group_id, topic, instance_id, free, _lock=lock)
    raise SettingsError(f"ETL_SLOT: more than {MAX_SLOTS} consumers of one group and topic on this host")


class Beat(NamedTuple):
    """A heartbeat of a process: its age in seconds, and whether the process polled or still waited for its broker.

    `problem` says why a process that polls gets no work done; empty if all is well.
    """

    age: float
    polls: bool
    problem: str = ""


def beats() -> dict[int, Beat]:
    """Return the last heartbeat of each live process of this user on this host, by process id."""
    found: dict[int, Beat] = {}
    now = time.monotonic()
    folder = _folder()
    for slot in folder.glob("*") if _is_private(folder) else ():
        with contextlib.suppress(OSError, ValueError):  # the process is dead, or the file is still empty
            pid, beaten, polls, *problem = slot.read_text(errors="replace").split(maxsplit=3)
            os.kill(int(pid), 0)
            # The file rounds to milliseconds, so a heartbeat may seem to lie in the future.
            beat = Beat(max(0.0, now - float(beaten)), polls == "polls", "".join(problem).strip())
            found[int(pid)] = min(beat, found.get(int(pid), beat))
    return found


def _note(lock: IO[str], now: float, *, polls: bool, problem: str = "") -> None:
    # One write of a fixed length: a reader finds either the old heartbeat or the new one.
    said = " ".join(problem.split()).encode("ascii", "replace")[:PROBLEM_BYTES]
    line = b"%10d %20.3f %5s %-*s\n" % (os.getpid(), now, b"polls" if polls else b"waits", PROBLEM_BYTES, said)
    os.pwrite(lock.fileno(), line, 0)


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"etl-slots-{os.getuid()}"


def _is_private(folder: Path) -> bool:
    """Is it a folder of this user, not a link to one, that nobody else can write to? Others could put links in it."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    writable_by_others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not writable_by_others


def _try_lock(names: tuple[str, ...], slot: int) -> IO[str] | None:
    folder = _folder()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not _is_private(folder):
        raise SettingsError(
            f"{folder} must be a folder that belongs to this user and that nobody else can write to: "
            f"remove it, or set TMPDIR to another folder"
        )
    name = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    path = folder / f"{name}-{slot}"
    try:
        lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SettingsError(f"{path} is a link, but must be an ordinary file: remove it") from error
        raise
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    _note(lock, time.monotonic(), polls=False)
    return lock
