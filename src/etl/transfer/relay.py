"""The checklist of one transfer: fetch, deliver, verify, publish; and what follows at the source.

No threads, no Kafka, no protocol: two sessions in, a receipt or an `etl.errors` out.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from etl.errors import (
    AlreadyExists,
    ConnectionLost,
    CopyDamaged,
    EtlError,
    FileMissing,
    InvalidPath,
    IOFailure,
    OwnershipLost,
    SourceChanged,
    StorageFull,
)
from etl.models.task import Facts, Phase, Unpublished
from etl.transfer import receipts, resuming
from etl.transfer.base import Stored
from etl.transfer.hashing import hashed
from etl.transfer.partials import TellingTheName, partial_path, remove_if_allowed, remove_orphans
from etl.transfer.receipts import CONTENT, NOTHING, SIZE_AND_TIME, Proof, Receipt
from etl.transfer.sameness import is_direct, is_newer, look_if_possible, may_be_itself, refuse_itself, same_content
from etl.transfer.streaming import MemoryParcel, bounded, counted, require_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.task import Task
    from etl.transfer.base import Answer, Parcel, Promise, Session
    from etl.transfer.partials import OrphanIndex

COMPARED_BYTES = 1 << 20  # at a time, of two files that may be the same


@dataclass(frozen=True)
class Limits:
    """Memory and disk of one transfer: a reused `buffer`, and what may be kept where one session does both sides."""

    buffer: memoryview
    memory_bytes: int
    spool_bytes: int


def run(task: Task, source: Session, destination: Session, token: str, limits: Limits, orphans: OrphanIndex) -> Receipt:
    """Bring the job's file under its final name, whole and verified; or raise, leaving what was there.

    `source` may be `destination`: then the file goes through memory or a spool file.
    """
    receipt = _bring(task, source, destination, token, limits, orphans)
    if task.job.options.write_checksum_file is not None and not receipt.skipped:
        hidden = partial_path(task, destination.server, token)
        receipts.write_checksum_file(task, receipt, destination, hidden, limits.buffer, require_owned)
    return receipt


def _bring(
    task: Task, source: Session, destination: Session, token: str, limits: Limits, orphans: OrphanIndex
) -> Receipt:
    require_disposal(task, source)
    if task.unpublished is not None:  # an earlier run of this process sent and proved a file
        known = task.unpublished
        receipt = _publish_known(task, known, source, destination, limits.buffer, orphans)
        task.unpublished = None
        if receipt is not None:
            return receipt
        if known.partial != task.part and not is_direct(destination):  # a store's parts are in no listing
            remove_if_allowed(destination, known.partial)
    task.digests = {}
    receipts.look_for_checksum(task, source, limits.buffer)
    left = None
    if task.orphan_scan_since is not None:
        left = resuming.find(task, source, destination, orphans)
        remove_orphans(task, destination, orphans, but=left)
    if (receipt := _already_there(task, source, destination, limits.buffer)) is not None:
        resuming.drop(task, destination)
        if not receipt.skipped:
            receipts.require_expected(task, source, limits.buffer)
            if not is_direct(destination):
                _probe_for_itself(task, source, destination, token, limits.buffer, orphans)
        return receipt
    if is_direct(destination) and (receipt := _already_written(task, source, destination, limits.buffer)) is not None:
        receipts.require_expected(task, source, limits.buffer)
        return receipt
    if source is not destination:
        destination.prepare()
        destination.push()
    parcel = resuming.go_on(task, left, source, destination, token, limits.buffer) or fetch(task, source)
    try:
        if source is destination:
            return _deliver_through_spool(task, parcel, source, token, limits, orphans)
        confirmed = partial(confirm, task, parcel, source, destination, orphans)
        return deliver(task, parcel, confirmed, destination, token, limits.buffer)
    finally:
        parcel.close(complete=False)


def can_pipeline(task: Task, orphans: OrphanIndex) -> bool:
    """Is this a copy that asks its destination nothing before the file is there, nor its source more than its facts?"""
    if task.published or task.unpublished or task.job.options.overwrite != "replace" or may_be_itself(task, orphans):
        return False
    if receipts.asks_more(task) or task.part is not None:
        return False
    return task.orphan_scan_since is None or orphans.known(task) == []


def require_disposal(task: Task, source: Session) -> None:
    """Raise SettingsError when the source's protocol can never do the job's source action: before a file is copied."""
    if task.job.options.source_action != "keep":
        source.require_disposal(move=task.job.options.move_to is not None)


def fetch(task: Task, source: Session) -> Parcel:
    """Open the job's source file. Raises FileMissing, PermissionRefused, TooLarge ..."""
    parcel = source.read(task.job.source.path)
    require_size(parcel, source.settings.max_file_bytes)
    resuming.plan(task, source, parcel.facts)
    return parcel


def confirm(
    task: Task, parcel: Parcel, source: Session, destination: Session, orphans: OrphanIndex, stored: Stored
) -> Promise[bool]:
    """End the reading of a parcel and ask whether its file is still what it was; the answer is not waited for."""
    unchanged = source.confirm(parcel)
    source.push()
    try:
        refuse_itself(task, source, destination, stored, orphans)
    except ConnectionLost:
        if stored.is_ended and unchanged.result():  # the bytes are proven: a new session looks, and publishes
            task.unpublished = Unpublished(stored.partial, stored.sent_bytes, NOTHING, parcel.facts)
        raise
    return unchanged


def deliver(
    task: Task,
    parcel: Parcel,
    confirmed: Callable[[Stored], Answer[bool]],
    destination: Session,
    token: str,
    buffer: memoryview,
    is_followed: Callable[[], bool] = lambda: False,
    meanwhile: Callable[[], object] = lambda: None,
) -> Receipt:
    """Write the parcel beside its final name, prove it complete and ours, then publish it.

    `confirmed` is the source's part, done once the file is stored: is it still what it was? `is_followed`: is another
    file sure to come for this destination? `meanwhile` is done while the rename is under way.
    """
    job = task.job
    destination.foresee(job.destination.path, parcel.facts.mtime if job.options.preserve_mtime else None)
    task.leaves_partial = not is_direct(destination)
    hidden = resuming.name(task, destination, token)
    content = counted(bounded(parcel, destination.settings.max_file_bytes), task.progress)
    algorithms = receipts.algorithms(task, destination, parcel.facts.size_bytes)
    content, digests = hashed(content, algorithms, resuming.running(task))
    with TellingTheName(task, hidden):
        stored = resuming.write(task, hidden, content, destination, buffer)
    task.digests = digests()
    try:
        unchanged = confirmed(stored)
        if is_followed():
            destination.prepare()
        destination.push()  # both sides are asked before either answer is waited for
        # In this order: of a file that was cut short while it was read, that is the reason.
        if not unchanged.result():
            raise SourceChanged(f"{job.source} changed while it was read")
        proof = receipts.prove(task, parcel.facts, stored, destination, buffer)
        if job.options.overwrite != "replace" and not is_direct(destination):
            _look_again(task, parcel.facts, destination)
        require_owned(task)
    except EtlError as error:
        if isinstance(error, ConnectionLost) and error.server == destination.server.hostname and stored.is_ended:
            # All bytes and the last word came: a session that ends there says nothing of the file.
            task.unpublished = Unpublished(stored.partial, stored.sent_bytes, NOTHING, parcel.facts)
        elif task.unpublished is None and not resuming.is_kept(task, error, is_last=False):
            _remove_if_possible(task, destination, stored)
        raise
    return _publish(task, destination, stored, proof, parcel.facts, meanwhile)


def _publish(
    task: Task, destination: Session, stored: Stored, proof: Proof, facts: Facts, meanwhile: Callable[[], object]
) -> Receipt:
    """Give a partial file its final name. What is proven is noted first: if this fails only this is done again."""
    task.progress.phase = Phase.PUBLISHING
    options = task.job.options
    mtime = facts.mtime if options.preserve_mtime else None
    task.unpublished = Unpublished(stored.partial, stored.sent_bytes, proof.verified_by, facts, proof.checksum)
    publish = destination.publish_new if options.overwrite == "fail" else destination.publish
    with TellingTheName(task, stored.partial):
        answer = publish(stored, task.job.destination.path, mtime)
        meanwhile()
        published = answer.result()
    task.unpublished, task.leaves_partial, task.part = None, False, None
    task.remarks = ({"swapped": True} if published.swapped else {}) | resuming.remark(task)
    if is_direct(destination):
        task.remarks["published_by"] = "direct"
    if options.preserve_mtime and not published.stamped:
        task.remarks["mtime_kept"] = False
    return Receipt(stored.sent_bytes, proof.verified_by, facts=facts, checksum=proof.checksum, partial=stored.partial)


def _publish_known(
    task: Task, known: Unpublished, source: Session, destination: Session, buffer: memoryview, orphans: OrphanIndex
) -> Receipt | None:
    """Look what became of the rename, and do it if need be; None: begin anew.

    One that was not answered may have been carried out: then the partial file is gone, and the final name is as long.
    A source that is another file by now begins anew; one that is gone was read to its end.
    """
    here = look_if_possible(source, task.job.source.path)
    if here is not None and here != known.facts:
        return None
    is_gone = known.published_as is not None and not is_direct(destination)
    if is_gone:  # what still has its partial name is half a checksum file
        remove_if_allowed(destination, known.partial)
    there = None if is_gone else look_if_possible(destination, known.partial)
    if there is None or (destination.marks_files and there.size_bytes != known.size_bytes):
        final = destination.look_published(was := known.written_as, task.job.destination.path)
        if final is None or final.size_bytes != known.size_bytes or not known.is_proven:
            return None
        task.leaves_partial, task.part = False, None
        if task.job.options.preserve_mtime and not known.facts.same_file(final):
            task.remarks = {"mtime_kept": False}
        return Receipt(known.size_bytes, known.verified_by, facts=known.facts, checksum=known.checksum, partial=was)
    if there.size_bytes not in {None, known.size_bytes} or known.facts.size_bytes not in {None, known.size_bytes}:
        return None
    stored = Stored(known.partial, known.size_bytes, there.size_bytes)
    proof = Proof(known.verified_by, known.checksum)
    if not known.is_proven:  # the session was lost before more than its size was compared
        try:
            proof = receipts.prove(task, known.facts, stored, destination, buffer)
        except CopyDamaged:
            return None
    refuse_itself(task, source, destination, stored, orphans)
    if task.job.options.overwrite != "replace":
        _look_again(task, known.facts, destination)
    require_owned(task)
    return _publish(task, destination, stored, proof, known.facts, lambda: None)


def _remove_if_possible(task: Task, destination: Session, stored: Stored) -> None:
    """Remove a partial file; where that fails it is still noted: the runner removes it by another session."""
    if not task.leaves_partial:
        return
    with contextlib.suppress(EtlError):
        destination.remove(stored.partial)
        task.leaves_partial, task.part = False, None


def finish(task: Task, source: Session, destination: Session, facts: Facts | None) -> int | None:
    """Do the source action of a published job; return the size of the published file, None if nobody can tell it.

    `facts` are the source's as it was read, None when another process read it. A source that is gone was dealt with
    before; one that is another file by now (a new one under the old name) is left alone. If the publication is
    unproven, facts do not count either, and a source without a copy at the destination is left alone.

    Raises:
        FileMissing: nothing is at the destination of a job whose publication is unproven.
    """
    job, options = task.job, task.job.options
    facts = None if task.unproven else facts
    published = facts or look_if_possible(destination, job.destination.path)
    size_bytes = published.size_bytes if published else None
    here = source.look(job.source.path)
    require_owned(task)
    if options.source_action == "keep" or here is None:
        return size_bytes
    if published is None and task.unproven:
        raise FileMissing(
            f"{job.destination} is not there: {job.source} is left alone", server=job.destination.hostname
        )
    is_another = published is not None and here.size_bytes != published.size_bytes
    if facts is not None:
        is_another = is_another or here.mtime != facts.mtime
    elif published is not None and not is_another and not here.same_file(published):
        # Not every server keeps time stamps: what is deleted is, to the byte, what was copied.
        is_another = not same_content(task, source, destination, memoryview(bytearray(COMPARED_BYTES)))
        require_owned(task)
    if is_another:
        left_alone = {"source_action_done": False, "source_action_error": "the source is another file by now"}
        task.remarks = task.remarks | left_alone
        return size_bytes
    destination.sync(job.destination.path)
    source.dispose(job.source.path, options.move_to).result()
    return size_bytes


def _already_written(task: Task, source: Session, destination: Session, buffer: memoryview) -> Receipt | None:
    """Before a file is written under its final name: None, unless what is there has the same content.

    It may be the source itself under another name, which writing would cut off.
    """
    job = task.job
    found, wanted = destination.look(job.destination.path), source.look(job.source.path)
    if found is None or wanted is None or found.size_bytes != wanted.size_bytes:
        return None
    if not same_content(task, source, destination, buffer):
        return None
    if job.options.source_action != "keep":
        raise InvalidPath(f"{job.destination} may be the source {job.source} itself, which is not to be kept")
    return Receipt(found.size_bytes, CONTENT)


def _already_there(task: Task, source: Session, destination: Session, buffer: memoryview) -> Receipt | None:
    """Answer `overwrite` where something is at the destination: a receipt, an error, or None: go on."""
    job, options = task.job, task.job.options
    if options.overwrite == "replace":
        return None
    found = destination.look(job.destination.path)
    if found is None:
        return None
    wanted = source.look(job.source.path)
    if wanted is None:
        if options.overwrite == "skip":
            return Receipt(found.size_bytes, NOTHING, skipped=True)
        raise FileMissing(f"{job.source} is not there", server=job.source.hostname)
    # Where a wrong answer would cost a file, only the content tells: two images of one size and one second may differ,
    # and our own file, published just before a crash, may have another time where a server keeps none.
    truth_matters = options.overwrite == "fail" or options.source_action != "keep" or options.verify == "checksum"
    if not truth_matters and wanted.same_file(found):
        return Receipt(found.size_bytes, SIZE_AND_TIME)
    if truth_matters and wanted.size_bytes == found.size_bytes and same_content(task, source, destination, buffer):
        return Receipt(found.size_bytes, CONTENT)
    if options.overwrite == "newer" and is_newer(wanted, found):
        return None
    if options.overwrite == "fail":
        raise AlreadyExists(f"{job.destination} exists and is another file", server=job.destination.hostname)
    return Receipt(found.size_bytes, NOTHING, skipped=True)


def _probe_for_itself(
    task: Task, source: Session, destination: Session, token: str, buffer: memoryview, orphans: OrphanIndex
) -> None:
    """When the copy was skipped, find out with an empty partial file whether both sides are one folder."""
    if not may_be_itself(task, orphans):
        return
    empty = MemoryParcel("", Facts(0, None), io.BytesIO())
    task.leaves_partial = True
    stored = destination.write(partial_path(task, destination.server, token), empty, buffer)
    try:
        stored.require_stored()
        refuse_itself(task, source, destination, stored, orphans)
    except EtlError:
        _remove_if_possible(task, destination, stored)
        raise
    destination.remove(stored.partial)
    task.leaves_partial = False


def _look_again(task: Task, wanted: Facts, destination: Session) -> None:
    """Refuse to publish over what came to the destination while we transferred; the next attempt decides on it."""
    found = destination.look(task.job.destination.path)
    if found is None or (task.job.options.overwrite == "newer" and is_newer(wanted, found)):
        return
    raise IOFailure(
        f"{task.job.destination} appeared while the file was on its way", server=task.job.destination.hostname
    )


def require_owned(task: Task) -> None:
    """Raise OwnershipLost unless the job is surely still ours."""
    if not task.owned():
        raise OwnershipLost(f"the partition of job {task.job.job_id} may not be ours any more")


# --- one session for both sides -------------------------------------------------------------------------------


def _deliver_through_spool(
    task: Task, parcel: Parcel, session: Session, token: str, limits: Limits, orphans: OrphanIndex
) -> Receipt:
    task.version = None  # it would be read into the spool anew
    size_bytes = parcel.facts.size_bytes or 0
    if size_bytes > limits.spool_bytes:
        raise StorageFull(f"{task.job.source} has {size_bytes} bytes, the spool may take {limits.spool_bytes}")
    with tempfile.SpooledTemporaryFile(max(1, limits.memory_bytes), prefix="etl-") as file:
        count_bytes = 0
        while count := parcel.readinto(limits.buffer):
            count_bytes += count
            if count_bytes > limits.spool_bytes:
                raise StorageFull(f"{task.job.source} is larger than the spool's {limits.spool_bytes} bytes")
            file.write(limits.buffer[:count])
        parcel.close(complete=True)
        file.seek(0)
        spooled = MemoryParcel(parcel.path, parcel.facts, file)
        confirmed = partial(confirm, task, spooled, session, session, orphans)
        return deliver(task, spooled, confirmed, session, token, limits.buffer)
