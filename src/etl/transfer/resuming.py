"""Which files are gone on with where they were cut: their partial files are kept, found again, and proven.

The name of such a partial file has a digest of its source's facts: a source that changed never finds the old one.
No threads, no protocol.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from typing import TYPE_CHECKING, Any

import structlog

from etl.errors import (
    ConnectionLost,
    EtlError,
    Fate,
    PartHeld,
    PermissionRefused,
    SessionFault,
    SizeMismatch,
    SourceChanged,
    TransferTimeout,
    fate_of,
)
from etl.models.checksum import OWN
from etl.transfer import hashing
from etl.transfer.partials import is_of_the_job, partial_path, remove_if_allowed
from etl.transfer.paths import basename, beside
from etl.transfer.receipts import needs_hash
from etl.transfer.resumable import Resumable
from etl.transfer.trail import Trail

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.server import ServerConfig
    from etl.models.task import Facts, Task
    from etl.transfer.base import Parcel, Session, Stored
    from etl.transfer.hashing import Hash
    from etl.transfer.partials import OrphanIndex

log = structlog.get_logger(__name__)

_FRESH_SECONDS = 2.0  # a file that was written so shortly ago may be written again within the same second
_VERSION_BYTES = 8
_PART = re.compile(rf"-[0-9a-f]{{{2 * _VERSION_BYTES}}}-([0-9a-f]+)$")
_NO_CHECKSUM = "the checksum of its beginning is not known any more"
# Of a local file, hashed anew before its copy goes on: some seconds, as the destination's session idles meanwhile.
_HASHED_ANEW_BYTES = 2 << 30
_DOUBTS = 1  # times that a connection may break while a partial file is proven, or it is held, before it is given up


def plan(task: Task, source: Session, facts: Facts) -> None:
    """Decide whether a file that is read from its start is worth going on with, should it be cut."""
    task.resumed_at, task.trail, task.held = 0, None, 0
    task.version = _version(task, facts) if _pays(task, source, facts) and _is_dated(facts) else None


def name(task: Task, destination: Session, token: str) -> str:
    """Return the path of the run's partial file, and note it if it is to be kept when the file is cut."""
    if task.version is None or not _can_write(destination):
        task.part = None
        return partial_path(task, destination.server, token)
    task.part = partial_path(task, destination.server, f"{task.version}-{token}")
    return task.part


def write(task: Task, hidden: str, content: Parcel, destination: Session, buffer: memoryview) -> Stored:
    """Write a parcel to its partial file, from where it begins."""
    if task.part is None or not isinstance(destination, Resumable):
        return destination.write(hidden, content, buffer)
    try:
        return destination.write_on(hidden, content, buffer, task.resumed_at)
    except PartHeld:
        task.held += 1
        raise


def running(task: Task) -> dict[str, Hash]:
    """Return the hashes that go on with a file that may be cut, or was."""
    if task.part is None:
        return {}
    if not task.resumed_at:
        task.trail = Trail(task.version or "")
    return {} if task.trail is None else {OWN: task.trail}


def find(task: Task, source: Session, destination: Session, orphans: OrphanIndex) -> str | None:
    """Return the path of what an earlier run of the job left of the file that is the source now; None: nothing.

    The largest, if there are several. What else is known of its partial files is removed.
    """
    final, known = task.job.destination.path, _noted(task, destination.server)
    listed = set(orphans.of(task, destination))
    names = listed if known is None else listed | {basename(known)}
    found = _largest(task, names, source, destination, orphans)
    task.part = None if found is None else beside(final, found)
    if known is not None and known != task.part and basename(known) not in listed:  # some servers list no such names
        remove_if_allowed(destination, known)
    return task.part


def _largest(task: Task, names: set[str], source: Session, destination: Session, orphans: OrphanIndex) -> str | None:
    if source is destination or not _can_write(destination):
        return None
    parts = [one for one in names if _is_part(task, destination.server, one, orphans)]
    facts = source.look(task.job.source.path) if parts else None
    if facts is None or not _pays(task, source, facts):
        return None
    version = _version(task, facts)
    sizes: dict[str, int] = {}
    for one in parts:
        if _has_version(one, version):
            with contextlib.suppress(PermissionRefused):  # the job itself needs no such right
                there = destination.look(beside(task.job.destination.path, one))
                sizes[one] = (there.size_bytes or 0) if there is not None else -1
    return max(sizes, key=sizes.__getitem__, default=None)


def go_on(
    task: Task, left: str | None, source: Session, destination: Session, token: str, buffer: memoryview
) -> Parcel | None:
    """Open the source where an earlier run was cut, once that is proven; None: begin at the start.

    Proven is: the source has the facts that the partial file's name tells, and both have the same bytes before the
    place. Else the partial file is removed.

    Raises:
        SessionFault: the bytes differ, and the source's session cannot be used again: the job runs anew at once.
    """
    if left is None or not isinstance(source, Resumable) or not isinstance(destination, Resumable):
        return None
    job = task.job
    facts = source.look(job.source.path)
    if facts is None or facts.size_bytes is None or not _has_version(left, _version(task, facts)):
        drop(task, destination)
        return None
    task.version, task.leaves_partial = _version(task, facts), True
    task.doubts += 1
    hidden = partial_path(task, destination.server, f"{task.version}-{token}")
    destination.foresee(job.destination.path, None)
    foothold = parcel = None
    if destination.is_trusted(hidden, buffer):
        task.part = hidden
        try:
            foothold = destination.take_over(left, hidden, facts.size_bytes)
        except PermissionRefused as error:  # the job itself needs no such right
            log.warning("a partial file is not gone on with", destination=str(job.destination), error=str(error))
        except (SizeMismatch, SourceChanged) as error:  # the upload that was cut had not ended: nothing about the job
            raise SessionFault(
                f"{job.destination}: what is there of it still grew", server=destination.server.hostname
            ) from error
    if foothold is not None:
        _follow_trail(task, source, foothold.offset, buffer)
        parcel = source.read_on(job.source.path, foothold.offset - foothold.before_bytes)
    if foothold is None or parcel is None:
        drop(task, destination)
        return None
    is_proven = False
    try:
        is_proven = _has_version(hidden, _version(task, parcel.facts)) and foothold.proves(parcel, buffer)
    finally:
        if not is_proven:
            parcel.close(complete=False)
    if not is_proven:
        drop(task, destination)
        raise SessionFault(f"{job.destination}: what is there of it is not of {job.source}", server=job.source.hostname)
    task.doubts = 0
    task.resumed_at = task.progress.resumed_at = foothold.offset
    log.info("transfer resumed", job_id=job.job_id, destination=str(job.destination), offset=foothold.offset)
    return parcel


def _follow_trail(task: Task, source: Resumable, offset: int, buffer: memoryview) -> None:
    """Have the hash of what comes before a place: as it was there, or made anew where that takes seconds; else none."""
    trail, task.trail = task.trail, None
    if trail is not None and trail.version == task.version and trail.go_back(offset):
        task.trail = trail
    elif source.is_near and offset <= _HASHED_ANEW_BYTES:
        parcel, trail = source.read(task.job.source.path), Trail(task.version or "")
        try:
            task.trail = trail if hashing.take(parcel, buffer, offset, trail) == offset else None
        finally:
            parcel.close(complete=False)


def is_kept(task: Task, error: BaseException, *, is_last: bool) -> bool:
    """Is the partial file of a run that failed kept, for the next one to go on with? `is_last`: no attempt is left."""
    if task.part is None or max(task.doubts, task.held) > _DOUBTS:
        return False
    if fate_of(error) in {Fate.OUTAGE, Fate.ABANDON}:
        return True
    return not is_last and isinstance(error, (ConnectionLost, TransferTimeout))


def drop(task: Task, destination: Session) -> None:
    """Remove the partial file that was kept, if there is one: the job does not go on with it."""
    if task.part is not None:
        remove_if_allowed(destination, task.part)
        task.part, task.leaves_partial, task.doubts = None, False, 0


def remark(task: Task) -> dict[str, Any]:
    """Return what the result says of a copy that did not begin at the start of its file."""
    if not task.resumed_at:
        return {}
    return {"resumed_at": task.resumed_at} | ({} if task.trail is not None else {"checksum_error": _NO_CHECKSUM})


def forget(task: Task, server_of: Callable[[str], ServerConfig], remember: Callable[[ServerConfig, str], None]) -> None:
    """Have the partial file of a job that failed for good removed, by whoever next connects to its server."""
    with contextlib.suppress(EtlError):  # a server that is not known any more
        server = server_of(task.job.destination.hostname)
        unpublished = task.unpublished.partial if task.unpublished and task.leaves_partial else None
        for left in {_noted(task, server), unpublished}:
            if left is not None:
                remember(server, left)
    task.part = task.unpublished = None


def _noted(task: Task, server: ServerConfig) -> str | None:
    """Return the path of the partial file that is known; None for one that is none of the job's: it was in a header."""
    if task.part is None or not is_of_the_job(task, server, basename(task.part)):
        return None
    return task.part if task.part == beside(task.job.destination.path, basename(task.part)) else None


def _pays(task: Task, source: Session, facts: Facts) -> bool:
    """Is a file large enough, its source able to be read from the middle on, and no hash of the whole asked for?"""
    return (
        isinstance(source, Resumable)
        and source.reads_on
        and facts.size_bytes is not None
        and facts.mtime is not None
        and facts.size_bytes >= source.settings.resume_from_bytes
        and not needs_hash(task)
    )


def _is_dated(facts: Facts) -> bool:
    """Does the time of a file tell one version of it from the next? Asked when the file is first seen."""
    return facts.mtime is not None and abs(time.time() - facts.mtime) > _FRESH_SECONDS


def _can_write(destination: Session) -> bool:
    is_able = isinstance(destination, Resumable) and destination.goes_on is not False
    return is_able and destination.server.publish == "rename"


def _version(task: Task, facts: Facts) -> str:
    """Return what names one version of the job's source."""
    text = f"{task.job.source}\0{facts}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_VERSION_BYTES).hexdigest()


def _has_version(name_or_path: str, version: str) -> bool:
    return f"-{version}-" in basename(name_or_path)


def _is_part(task: Task, server: ServerConfig, one: str, orphans: OrphanIndex) -> bool:
    """Is a name that of a partial file of the job that tells a version, and is not written just now?"""
    after = server.partial_pattern.split("{id}")[1]
    match = _PART.search(one.removesuffix(after))
    return is_of_the_job(task, server, one) and match is not None and match[1] not in orphans.live
