"""What is known of a copy, and how: from sizes to checksums. No threads, no Kafka, no protocol.

The rungs, from weak to strong: none < size < size+time < store = hash < content. One hash of the bytes is made while
they pass; `algorithms` chooses it before the first byte, `prove` compares it after the last.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from etl.errors import ChecksumMismatch, CopyDamaged, EtlError, FileMissing, IOFailure, SettingsError, SizeMismatch
from etl.models.checksum import OWN, Checksum
from etl.models.task import Facts, Unpublished
from etl.transfer import sumfiles
from etl.transfer.hashing import MAKERS, drained
from etl.transfer.partials import TellingTheName
from etl.transfer.paths import basename
from etl.transfer.sameness import is_direct
from etl.transfer.streaming import MemoryParcel

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.task import Task
    from etl.transfer.base import Session, Stored

NOTHING = "none"
SIZE = "size"
SIZE_AND_TIME = "size+time"
STORE = "store"  # the server compared the bytes with checksums that it was told with them
HASH = "hash"  # the server made a checksum of the file, which is that of our bytes
CONTENT = "content"  # the file was read back


@dataclass(frozen=True)
class Receipt:
    """What a transfer came to: `size_bytes` of the file now at the destination, and how that is known.

    None: another process published it, and it was taken away since; or the server tells no sizes.
    """

    size_bytes: int | None
    verified_by: str
    skipped: bool = False  # `overwrite` left a different file alone: the source is left alone as well
    facts: Facts | None = None  # the source's, as it was read
    checksum: str | None = None  # of the bytes that were sent, as `models.checksum` writes it
    partial: str | None = field(default=None, compare=False)  # its path before a run of this process published it


class Proof(NamedTuple):
    """How a stored file is known to be whole, and what its bytes come to."""

    verified_by: str
    checksum: str | None


def asks_more(task: Task) -> bool:
    """Does the job ask more of its servers than a copy that is compared by size?"""
    options = task.job.options
    return options.verify == "checksum" or options.checksum_file != "ignore" or options.write_checksum_file is not None


def needs_hash(task: Task) -> bool:
    """Does the job ask for a checksum of the whole file, or compare one?"""
    return asks_more(task) or bool(expected(task))


def expected(task: Task) -> tuple[Checksum, ...]:
    """Return what the source's bytes must come to: as the job says, and a checksum file beside the source."""
    own = task.job.options.checksum
    return (*((Checksum(**own),) if own else ()), *task.expected)


def look_for_checksum(task: Task, source: Session, buffer: memoryview) -> None:
    """Look for a checksum file beside the source, if the job wants that, and note what it says.

    Raises FileMissing when there must be one and is none.
    """
    job = task.job
    if job.options.checksum_file == "ignore":
        return
    found = sumfiles.find(source, job.source.path, buffer)
    if found is None and job.options.checksum_file == "require":
        raise FileMissing(f"{job.source}: no checksum file beside it tells its checksum", server=job.source.hostname)
    task.expected = () if found is None else (found,)


def require_expected(task: Task, source: Session, buffer: memoryview) -> None:
    """Raise ChecksumMismatch for a source that is not what it must be. Reads it: for when no byte of it was sent."""
    for checksum in expected(task):
        _require(task, checksum, drained(source.read(task.job.source.path), buffer, MAKERS[checksum.algorithm]()))


def _require(task: Task, checksum: Checksum, came: str) -> None:
    if came != checksum.value:
        raise ChecksumMismatch(f"{task.job.source}: its {checksum.algorithm} is {came}, not {checksum.value}")


def algorithms(task: Task, destination: Session, size_bytes: int | None) -> tuple[str, ...]:
    """Choose the hashes that are made while the file passes; the first one is that of the receipt.

    Raises SettingsError for a file that cannot be proven as the job wants it.
    """
    if task.resumed_at:  # what passes is not the whole; jobs that need its hash are never gone on with
        return (OWN,) if task.trail is not None else ()
    options = task.job.options
    wanted = [checksum.algorithm for checksum in expected(task)]
    if options.write_checksum_file is not None:
        wanted.append(options.write_checksum_file)
    if options.verify == "checksum":
        offered = destination.hashes()
        if not offered and not destination.prepare_proof(size_bytes):
            _require_room_to_read_back(task, destination, size_bytes)
        both = [name for name in wanted if name in offered]
        wanted = [*(both or offered[:1]), *wanted]
    return tuple(dict.fromkeys(wanted)) or (OWN,)


def prove(task: Task, facts: Facts, stored: Stored, destination: Session, buffer: memoryview) -> Proof:
    """Compare what was read, sent and stored, after the server's last word on it: sizes, and hashes as the job wants.

    `task.digests` are those of the bytes that were sent; `facts` the source's.
    """
    rung = _compare_sizes(task, facts, stored)
    for checksum in expected(task):
        _require(task, checksum, task.digests[checksum.algorithm])
    if not task.digests:
        return Proof(rung, None)
    sent = Checksum(*next(iter(task.digests.items())))
    if stored.is_checked:
        rung = STORE
    elif task.job.options.verify == "checksum":
        with TellingTheName(task, stored.partial):
            there, rung = digest_at(destination, stored.partial, sent.algorithm, stored.sent_bytes, buffer)
        if there != sent.value:
            where, name = task.job.destination, destination.server.hostname
            raise CopyDamaged(f"{where}: its {sent.algorithm} is {there}, {sent.value} was sent", server=name)
    return Proof(rung, str(sent))


def digest_at(session: Session, path: str, algorithm: str, size_bytes: int, buffer: memoryview) -> tuple[str, str]:
    """Return what a file at a server comes to, and the rung: the server makes the checksum, or the file is read back.

    Raises IOFailure when it may not be read back.
    """
    if algorithm in session.hashes() and (made := session.hash_of(path, algorithm, size_bytes)) is not None:
        return made, HASH
    if size_bytes > session.settings.read_back_limit_bytes:
        name = session.server.hostname
        raise IOFailure(
            f"{name}:{path}: the server makes no {algorithm} of it, and its {size_bytes} bytes are too many to be "
            "read back (ETL_VERIFY_READ_BACK_LIMIT_BYTES)",
            server=name,
        )
    return drained(session.read(path), buffer, MAKERS[algorithm]()), CONTENT


def write_checksum_file(
    task: Task,
    receipt: Receipt,
    destination: Session,
    hidden: str,
    buffer: memoryview,
    require_owned: Callable[[Task], None],
) -> None:
    """Write what a published file comes to beside it, under a hidden name first. If this fails it alone is done again.

    `hidden` is the partial file's path, which is free again.
    """
    path, algorithm = task.job.destination.path, task.job.options.write_checksum_file or ""
    value = task.digests.get(algorithm)
    if value is None:  # nothing was sent: the file was there
        value, _ = digest_at(destination, path, algorithm, receipt.size_bytes or 0, buffer)
    if receipt.facts is not None:
        task.unpublished = Unpublished(
            hidden,
            receipt.size_bytes or 0,
            receipt.verified_by,
            receipt.facts,
            receipt.checksum,
            published_as=receipt.partial or hidden,
        )
    content, final = sumfiles.line_of(Checksum(algorithm, value), basename(path)), sumfiles.path_of(path, algorithm)
    begun = final if is_direct(destination) else hidden
    task.leaves_partial = not is_direct(destination)
    stored = destination.write(begun, MemoryParcel("", Facts(len(content), None), io.BytesIO(content)), buffer)
    try:
        if stored.size_bytes not in {None, len(content)}:
            raise SizeMismatch(f"{task.job.destination}: {stored.size_bytes} bytes of its checksum file were stored")
        require_owned(task)
        destination.publish(stored, final, None).result()
    except EtlError:
        if task.leaves_partial:
            with contextlib.suppress(EtlError):
                destination.remove(hidden)
                task.leaves_partial = False
        raise
    task.unpublished, task.leaves_partial = None, False


def _require_room_to_read_back(task: Task, destination: Session, size_bytes: int | None) -> None:
    """Raise SettingsError when neither the server makes checksums, nor may a file of that size be read back."""
    name = task.job.destination.hostname
    limit_bytes = destination.settings.read_back_limit_bytes
    if (size_bytes or 0) > limit_bytes:
        raise SettingsError(
            f"options.verify: {name} makes no checksums, and {task.job.source} has more than {limit_bytes} bytes to be "
            "read back (ETL_VERIFY_READ_BACK_LIMIT_BYTES)",
            server=name,
        )


def _compare_sizes(task: Task, facts: Facts, stored: Stored) -> str:
    job = task.job
    if facts.size_bytes is not None and facts.size_bytes != stored.sent_bytes:
        raise SizeMismatch(f"{job.source}: {stored.sent_bytes} of {facts.size_bytes} bytes came")
    if job.options.verify == "none":
        stored.require_stored()
        return NOTHING
    size_bytes = stored.size_bytes
    if size_bytes is None:
        if job.options.verify == "size":
            raise SizeMismatch(f"{job.destination}: the server does not tell the size", server=job.destination.hostname)
        return NOTHING
    if size_bytes != stored.sent_bytes:
        raise SizeMismatch(
            f"{job.destination}: {size_bytes} of {stored.sent_bytes} bytes were stored",
            server=job.destination.hostname,
        )
    return SIZE
