"""A file on its way into a bucket, seen by nobody before it is published: held in memory, or sent as parts."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etl.errors import EtlError, StorageFull
from etl.transfer.paths import basename
from etl.transfer.s3 import checksums, documents, known
from etl.transfer.s3.documents import Part
from etl.transfer.s3.reading import MTIME
from etl.transfer.streaming import read_full

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.transfer.base import Parcel
    from etl.transfer.s3.channel import Answer
    from etl.transfer.s3.link import Link

HELD_BYTES = 2 << 20  # of a file that waits in memory until it is published
PART_BYTES = 8 << 20  # of a file whose size is known: what is sent twice after a cut, and a wait for each
BLIND_PART_BYTES = 5 << 20  # of one whose size is not: gathered in memory; smaller parts no store takes
GATHERED_BYTES = 8 << 20  # of a part that waits in memory, at most
_PARTS = 9000  # at most, of the 10,000 that stores take
_PARTS_OF_STORES = 10_000
MARK = "x-amz-meta-etl-upload"  # which upload an object came by: decides when an answer was lost


@dataclass
class Plan:
    """What is known of a file before its first byte: its final key, the time that it will have."""

    key: str
    mtime: float | None = None
    checks: str = ""  # by which checksum the store is to check it as it comes
    is_staged: bool = False  # it is to be an object under its partial name first, which can be read back


@dataclass
class Writing:
    """One file on its way: what it is made of, and what its object will be made with."""

    plan: Plan
    partial: str  # the whole path of the partial name, which names the upload in this process
    mark: str
    held: memoryview | None = None  # the whole file, in memory
    upload: known.Upload | None = None
    sent_bytes: int = 0
    is_staged: bool = False  # is the object under the partial name the whole file?
    is_shown: bool = False  # is there an object under the partial name, to be removed again?


def part_bytes(size_bytes: int, least_bytes: int | None = None) -> int:
    """Return the size of the parts of a file: told by its own size alone, so that any process may go on with it."""
    return max(least_bytes or PART_BYTES, -(-size_bytes // (_PARTS << 20)) << 20)


def mark_of(partial: str) -> str:
    """Return what an object is marked with that was written as `partial`: no other run has that name."""
    return hashlib.blake2b(basename(partial).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def mtime_text(mtime: float) -> str:
    """Return a time as it is kept with an object."""
    return f"{mtime:.9f}".rstrip("0").rstrip(".")


def headers_of(link: Link, mark: str, mtime: float | None) -> dict[str, str]:
    """Return the headers that an object is made with."""
    headers = {**link.options.headers_of_new(), MARK: mark}
    if mtime is not None:
        headers[MTIME] = mtime_text(mtime)
    return headers


def send(
    link: Link, writing: Writing, parcel: Parcel, buffer: memoryview, note: Callable[[known.Upload], bool] | None = None
) -> None:
    """Take all of a parcel: into memory, or to the store as parts.

    `note` is given an upload that begins; where it writes that down, a failed upload is left to the caller, else
    nothing is left of it.
    """
    size_bytes = parcel.facts.size_bytes
    if parcel.held is not None:
        writing.held, writing.sent_bytes = parcel.held, len(parcel.held)
        return
    reader = _Reader(parcel, buffer)
    if size_bytes is not None and size_bytes <= HELD_BYTES:
        room = memoryview(bytearray(size_bytes))
        count = read_full(parcel, room)
        writing.held, writing.sent_bytes = room[:count], count + reader.more_bytes()
        return
    is_gathered = size_bytes is None or bool(writing.plan.checks)
    length = part_bytes(size_bytes or 0, BLIND_PART_BYTES) if is_gathered else part_bytes(size_bytes or 0)
    first = memoryview(bytearray(length if is_gathered else 0))
    if is_gathered:
        count = read_full(parcel, first)
        if count < len(first):
            writing.held, writing.sent_bytes = first[:count], count
            return
    upload = _begin(link, writing, length)
    try:
        writing.is_shown = note is not None and note(upload)
        if is_gathered or size_bytes is None:
            _send_gathered(link, writing, parcel, first)
        else:
            _send_known(link, writing, reader, size_bytes)
    except BaseException:
        upload.is_live = False
        if not writing.is_shown:
            with contextlib.suppress(EtlError):
                abort(link, writing.partial)
        raise


def send_on(
    link: Link, writing: Writing, parcel: Parcel, buffer: memoryview, note: Callable[[known.Upload], bool]
) -> None:
    """Send the rest of a file, behind the parts that its upload has. What is there is left to the caller.

    `note` is given the upload once the parts are sent that its last sender may have had under way.
    """
    upload, size_bytes = writing.upload, parcel.facts.size_bytes
    assert upload is not None  # noqa: S101 - it was taken over
    assert size_bytes is not None  # noqa: S101 - else it would not be gone on with
    upload.is_live = True
    try:
        _send_known(link, writing, _Reader(parcel, buffer), size_bytes, note)
    except BaseException:
        upload.is_live = False
        raise


class _EndedEarlyError(Exception):
    """Raised in the middle of a part for which no bytes are left."""


class _Reader:
    """A parcel, read through a buffer."""

    def __init__(self, parcel: Parcel, buffer: memoryview) -> None:
        self._parcel = parcel
        self._buffer = buffer

    def pass_on(self, count_bytes: int, give: Callable[[memoryview], None]) -> int:
        """Give so many bytes away, block by block; fewer if the parcel ends before."""
        passed = 0
        while passed < count_bytes:
            count = self._parcel.readinto(self._buffer[: count_bytes - passed])
            if not count:
                break
            give(self._buffer[:count])
            passed += count
        return passed

    def more_bytes(self) -> int:
        """Return whether there is more than the size in the facts, as a number of bytes: the relay compares."""
        return self._parcel.readinto(self._buffer[:1])


def _begin(link: Link, writing: Writing, size_of_parts: int) -> known.Upload:
    headers = headers_of(link, writing.mark, writing.plan.mtime) | checksums.headers_of_upload(writing.plan.checks)
    answer = link.ask("POST", writing.plan.key, [("uploads", "")], headers, once=True)
    link.require_success(writing.plan.key, answer)
    upload_id = link.parsed(documents.required, answer, "UploadId")
    writing.upload = known.Upload(writing.plan.key, upload_id, size_of_parts, writing.mark)
    known.begun(link.server, writing.partial, writing.upload)
    return writing.upload


def _send_known(
    link: Link,
    writing: Writing,
    reader: _Reader,
    size_bytes: int,
    note: Callable[[known.Upload], bool] | None = None,
) -> None:
    """Send the parts as they are read: nothing of them stays in memory."""
    upload = writing.upload
    assert upload is not None  # noqa: S101 - begun above
    while writing.sent_bytes < size_bytes:
        length = min(upload.part_bytes, size_bytes - writing.sent_bytes)

        def give(send_block: Callable[[memoryview], None], length: int = length) -> None:
            passed = reader.pass_on(length, send_block)
            if passed < length:
                writing.sent_bytes += passed
                raise _EndedEarlyError

        try:
            answer = link.stream(upload.key, _of_part(upload), {}, length, give)
        except _EndedEarlyError:
            return
        _take(link, writing, answer, length)
        if note is not None and len(upload.parts) in upload.doubtful:
            upload.taken[len(upload.parts)] = upload.parts[-1].etag
            if len(upload.parts) == upload.doubtful[-1]:
                note(upload)
    writing.sent_bytes += reader.more_bytes()


def _send_gathered(link: Link, writing: Writing, parcel: Parcel, room: memoryview) -> None:
    """Send parts that are gathered first, as nobody knows how long the last one is."""
    upload = writing.upload
    assert upload is not None  # noqa: S101 - begun above
    count = len(room)
    while count:
        if len(upload.parts) == _PARTS_OF_STORES:
            most = _PARTS_OF_STORES * len(room)
            raise StorageFull(f"{link.name}:{upload.key}: more than {most} bytes of unknown size", server=link.name)
        told = checksums.headers_of(writing.plan.checks, room[:count])
        answer = link.ask("PUT", upload.key, _of_part(upload), told, room[:count])
        _take(link, writing, answer, count, told.get(checksums.CRC32C_HEADER, ""))
        count = read_full(parcel, room)


def _of_part(upload: known.Upload) -> list[tuple[str, str]]:
    return [("partNumber", str(len(upload.parts) + 1)), ("uploadId", upload.upload_id)]


def _take(link: Link, writing: Writing, answer: Answer, length: int, crc32c: str = "") -> None:
    """Note a part that the store has taken."""
    upload = writing.upload
    assert upload is not None  # noqa: S101 - begun above
    link.require_success(upload.key, answer)
    etag = answer.headers.get("etag", "")
    upload.parts.append(Part(len(upload.parts) + 1, etag, length, crc32c))
    writing.sent_bytes += length


def abort(link: Link, partial: str) -> bool:
    """Have the store forget an upload of this process; False: there is none.

    If that fails nobody is busy with it any more: whoever tidies up after a run of the job aborts it.
    """
    upload = known.upload(link.server, partial)
    if upload is None:
        return False
    upload.is_live = False
    abort_by_id(link, upload.key, upload.upload_id)
    known.ended(link.server, partial)
    return True


def abort_by_id(link: Link, key: str, upload_id: str) -> None:
    """Have the store forget an upload. One that it does not know is forgotten."""
    answer = link.ask("DELETE", key, [("uploadId", upload_id)])
    if answer.status != 404:
        link.require_success(key, answer)


def left_of(link: Link, key: str) -> list[documents.Begun]:
    """Return the uploads to a key that nobody in this process is busy with."""
    live, found = known.live_ids(link.server), []
    marker: tuple[str, str] | None = ("", "")
    while marker is not None:
        query = [("uploads", ""), ("prefix", key), ("encoding-type", "url")]
        if marker != ("", ""):
            query += [("key-marker", marker[0]), ("upload-id-marker", marker[1])]
        answer = link.require_success(key, link.ask("GET", query=query))
        page, marker = link.parsed(documents.uploads_of, answer)
        found += [one for one in page if one.key == key and one.upload_id not in live]
        if any(one.key > key for one in page):  # they are sorted, and begin with the key itself
            break
    return found
