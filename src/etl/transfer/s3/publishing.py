"""Putting a file under its final name: one PUT, or the completion of its parts, on conditions; and moving objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl.errors import ConnectionLost, EtlError, IOFailure, SizeMismatch, TransferTimeout
from etl.transfer.base import Published
from etl.transfer.s3 import checksums, documents, known, refusals
from etl.transfer.s3.reading import facts_of
from etl.transfer.s3.upload import MARK, Writing, abort_by_id, headers_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.transfer.s3.channel import Answer
    from etl.transfer.s3.link import Link

_TRIES = 3  # of a publication whose answer was lost
_COPIED_BYTES = 5 << 30  # by one request at most
_COPIED_PART_BYTES = 1 << 30


def publish(link: Link, writing: Writing, key: str, mtime: float | None, condition: dict[str, str]) -> Published:
    """Bring a file under its key, on a condition that the store keeps to; empty: none.

    Raises IOFailure when the condition was not met: then nothing has changed.
    """
    if writing.held is not None:
        _put(link, writing, key, mtime, condition)
        return Published(stamped=mtime is not None)
    if writing.upload is None or writing.upload.key != key:
        raise IOFailure(f"{link.name}:{key}: its parts were sent for another name", server=link.name)
    _complete(link, writing, condition)
    known.ended(link.server, writing.partial)
    return Published(stamped=mtime is not None and writing.plan.mtime == mtime)


def _put(link: Link, writing: Writing, key: str, mtime: float | None, condition: dict[str, str]) -> None:
    content, store = writing.held, link.store
    assert content is not None  # noqa: S101 - it is what is put
    headers = headers_of(link, writing.mark, mtime) | condition

    def ask() -> Answer:
        if writing.plan.checks:
            told = checksums.headers_of(writing.plan.checks, content)
            return link.ask("PUT", key, headers=headers | told, body=content, once=True)
        told = {} if store.takes_checksums is False else checksums.headers_of(checksums.CRC32C, content)
        answer = link.ask("PUT", key, headers=headers | told, body=content, once=True)
        if told and store.takes_checksums is not True and _may_refuse_checksums(answer):
            answer = link.ask("PUT", key, headers=headers, body=content, once=True)
            if not refusals.is_refused(answer):  # that proves what was refused
                store.takes_checksums = False
        if not refusals.is_refused(answer) and checksums.CRC32C_HEADER in answer.headers:
            store.takes_checksums = True
        return answer

    answer = _asked(link, writing, key, ask)
    if answer is not None and "etag" not in answer.headers:
        _require_published(link, writing, key)
    if answer is None or checksums.CRC32C_HEADER not in answer.headers:  # nobody has said that it is what was sent
        _require_whole(link, writing, key)


def _may_refuse_checksums(answer: Answer) -> bool:
    """Does a refusal say that the store does not know a header? Any other says nothing about checksums."""
    unknown = {"NotImplemented", "InvalidRequest", "InvalidArgument", "InvalidHeader"}
    return answer.status == 501 or (answer.status == 400 and refusals.code_of(answer) in unknown)


def _complete(link: Link, writing: Writing, condition: dict[str, str]) -> None:
    upload = writing.upload
    assert upload is not None  # noqa: S101 - its parts were sent
    headers = dict(condition)
    if link.store.keeps_object_sizes:
        headers["x-amz-mp-object-size"] = str(writing.sent_bytes)
    body = documents.completion(upload.parts)

    def ask() -> Answer:
        answer = link.ask("POST", upload.key, [("uploadId", upload.upload_id)], headers, body, once=True)
        if refusals.code_of(answer) == "InvalidPart":  # somebody else's: nobody may go on with that
            abort_by_id(link, upload.key, upload.upload_id)
        return answer

    answer = _asked(link, writing, upload.key, ask)
    if answer is not None and not documents.is_completed(answer.content):
        _require_published(link, writing, upload.key)
    if answer is None or not link.store.keeps_object_sizes:
        _require_whole(link, writing, upload.key)


def _asked(link: Link, writing: Writing, key: str, ask: Callable[[], Answer]) -> Answer | None:
    """Ask for a publication until it is known what became of it; None: it is done, but nobody answered.

    An answer that was lost may have been a success: what has the key then shows by its mark.
    """
    lost: EtlError | None = None
    for _ in range(_TRIES):
        try:
            if lost is not None and is_published(link, writing.mark, key):
                return None
            answer = ask()
        except (ConnectionLost, TransferTimeout) as error:
            if link.sockets.is_cut or (lost is not None and isinstance(error, TransferTimeout)):
                raise
            lost = error
            continue
        if not refusals.is_refused(answer):
            return answer
        # A second try meets what the first has done: the condition fails, the upload is gone.
        if is_published(link, writing.mark, key):
            return None
        raise _refused(link, key, answer)
    assert lost is not None  # noqa: S101 - else it was returned or raised
    raise lost


def _refused(link: Link, key: str, answer: Answer) -> EtlError:
    code = refusals.code_of(answer)
    if answer.status == 412 or code in {"PreconditionFailed", "ConditionalRequestConflict"}:
        return IOFailure(f"{link.name}:{key} appeared while the file was on its way", server=link.name)
    if code == "InvalidPart":
        return IOFailure(f"{link.name}:{key}: a part is not the one that was sent any more", server=link.name)
    if code == "NoSuchUpload":
        return IOFailure(f"{link.name}:{key}: the store has forgotten its upload", server=link.name)
    return link.refused(key, answer)


def is_published(link: Link, mark: str, key: str) -> bool:
    """Is what has the key the file of this upload?"""
    answer = link.ask("HEAD", key)
    return answer.status == 200 and answer.headers.get(MARK) == mark


def _require_published(link: Link, writing: Writing, key: str) -> None:
    """Look for what was published, after a success that no store would word so: a proxy on the way may have."""
    if not is_published(link, writing.mark, key):
        raise IOFailure(f"{link.name}:{key}: a success was answered, and the object is not there", server=link.name)


def _require_whole(link: Link, writing: Writing, key: str) -> None:
    """Compare the size of what was published; half a file is taken away again."""
    answer = link.ask("HEAD", key)
    if answer.status in {403, 404}:  # write-only, or somebody has deleted it since
        return
    link.require_success(key, answer)
    size_bytes = facts_of(answer).size_bytes
    if answer.headers.get(MARK) == writing.mark and size_bytes != writing.sent_bytes:
        link.ask("DELETE", key)
        raise SizeMismatch(
            f"{link.name}:{key}: {size_bytes} of {writing.sent_bytes} bytes were stored", server=link.name
        )


# --- moving -------------------------------------------------------------------------------------------------------


def move(link: Link, key: str, target: str) -> None:
    """Copy an object to another key, and delete it; one that is gone was moved before."""
    if key == target:
        return
    found = link.ask("HEAD", key)
    if found.status == 404:
        return
    link.require_success(key, found)
    size_bytes, etag = facts_of(found).size_bytes or 0, found.headers.get("etag", "")
    source = {"x-amz-copy-source": link.copy_source(key), "x-amz-copy-source-if-match": etag}
    if size_bytes <= _COPIED_BYTES:
        answer = link.ask("PUT", target, headers=source | link.options.headers_of_new())
        if answer.status == 412:
            raise IOFailure(f"{link.name}:{key} changed while it was moved", server=link.name)
        link.require_success(key, answer)
    else:
        _copy_parts(link, target, source, found, size_bytes)
    delete(link, key)


def _copy_parts(link: Link, target: str, source: dict[str, str], found: Answer, size_bytes: int) -> None:
    kept = {name: value for name, value in found.headers.items() if name.startswith("x-amz-meta-")}
    if kind := found.headers.get("content-type"):
        kept["content-type"] = kind
    begun = link.require_success(
        target, link.ask("POST", target, [("uploads", "")], kept | link.options.headers_of_new())
    )
    upload_id, parts = link.parsed(documents.required, begun, "UploadId"), []
    try:
        for number, start in enumerate(range(0, size_bytes, _COPIED_PART_BYTES), 1):
            end = min(start + _COPIED_PART_BYTES, size_bytes) - 1
            place = {"x-amz-copy-source-range": f"bytes={start}-{end}"}
            query = [("partNumber", str(number)), ("uploadId", upload_id)]
            answer = link.require_success(target, link.ask("PUT", target, query, source | place))
            parts.append(documents.Part(number, link.parsed(documents.required, answer, "ETag")))
        done = link.ask("POST", target, [("uploadId", upload_id)], {}, documents.completion(parts))
        link.require_success(target, done)
    except BaseException:
        if not link.sockets.is_cut:
            abort_by_id(link, target, upload_id)
        raise


def delete(link: Link, key: str) -> None:
    """Delete an object; one that is gone is deleted."""
    answer = link.ask("DELETE", key)
    if answer.status != 404 or refusals.code_of(answer) == "NoSuchBucket":
        link.require_success(key, answer)
