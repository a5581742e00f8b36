"""Whether two names are one file: found out by looking, never from the names themselves.

Letter case, normal forms, links, base paths, two names of one host: a source that is its own destination must not be
taken away.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from etl.errors import InvalidPath, SettingsError
from etl.transfer.hashing import drained
from etl.transfer.paths import basename, beside, parent

if TYPE_CHECKING:
    from etl.models.task import Facts, Task
    from etl.transfer.base import Session, Stored
    from etl.transfer.partials import OrphanIndex


def may_be_itself(task: Task, orphans: OrphanIndex) -> bool:
    """Might the source action take the copy away, as both sides are one folder, or not known to be two?"""
    return task.job.options.source_action != "keep" and not orphans.apart.knows(task)


def refuse_itself(task: Task, source: Session, destination: Session, stored: Stored, orphans: OrphanIndex) -> None:
    """Refuse to go on where the source is the destination under another name: its action would leave no file at all.

    Names and addresses do not tell (links, base paths, letter case, normal forms, two names of one host): our partial
    file seen beside the source does. Within one folder two names are two files if the folder shows both, or if the
    destination is not there yet.
    """
    if not may_be_itself(task, orphans) or is_direct(destination):
        return
    job = task.job
    destination.show(stored)
    if look_if_possible(source, beside(job.source.path, basename(stored.partial))) is None:
        orphans.apart.note(task)
        return
    ours, theirs = basename(job.source.path), basename(job.destination.path)
    if ours != theirs:
        if look_if_possible(destination, job.destination.path) is None:
            return
        shown = source.names(parent(job.source.path))
        if ours in shown and theirs in shown:
            return
    raise InvalidPath(f"{job.destination} is the source {job.source} itself, which is not to be kept")


def is_direct(destination: Session) -> bool:
    """Is a file written under its final name at once?"""
    return destination.server.publish == "direct"


def is_newer(wanted: Facts, found: Facts) -> bool:
    """Is a source newer than the file at its destination? Where times are unknown the size is all there is to tell."""
    if wanted.mtime is None or found.mtime is None:
        return wanted.size_bytes != found.size_bytes
    return int(wanted.mtime) > int(found.mtime)


def look_if_possible(session: Session, path: str) -> Facts | None:
    """Look, with a user's class that may not be able to."""
    try:
        return session.look(path)
    except SettingsError:
        return None


def same_content(task: Task, source: Session, destination: Session, buffer: memoryview) -> bool:
    """Compare both files, each read once."""
    ours = drained(source.read(task.job.source.path), buffer, hashlib.blake2b())
    return ours == drained(destination.read(task.job.destination.path), buffer, hashlib.blake2b())
