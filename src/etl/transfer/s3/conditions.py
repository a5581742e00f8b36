"""What a store keeps to, found out once: conditions on which it replaces, and the size that parts must come to.

Some take a condition without a word, and overwrite all the same: only an object of our own shows it.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import structlog

from etl.errors import EtlError, IOFailure, PermissionRefused
from etl.transfer.s3 import checksums, documents, refusals
from etl.transfer.s3.upload import abort_by_id

if TYPE_CHECKING:
    from etl.transfer.s3.link import Link

_CONTENT = b"etl"
_OF_CHECKSUMS = {"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch"}  # codes, whatever the status

NOTHING_THERE = {"if-none-match": "*"}

log = structlog.get_logger(__name__)


def kept(link: Link, condition: dict[str, str], beside: str, *, is_parts: bool) -> dict[str, str]:
    """Return a condition if the store is known to keep to it, else none; `beside`: a key in whose folder to try."""
    if condition or is_parts:
        try_out(link, beside)
    store = link.store
    return condition if (store.keeps_complete_conditions if is_parts else store.keeps_put_conditions) else {}


def traits(link: Link) -> dict[str, str]:
    """Return in words what was found out, as far as anything was."""
    store = link.store
    if not store.is_tried:
        return {}
    words = {True: "kept", False: "ignored or refused"}
    return {
        "conditions on writing": words[store.keeps_put_conditions],
        "conditions on parts": words[store.keeps_complete_conditions],
        "size of parts": words[store.keeps_object_sizes],
        "uploads that were cut": "gone on with" if store.proves_parts else "begun anew",
        **({} if store.checks is None else {"checksums": store.checks or "none"}),
    }


def try_out(link: Link, beside: str) -> None:
    """Try the store out with an object of our own, which is removed again; what is refused is not believed.

    Sessions that do so at the same time learn the same.
    """
    store = link.store
    if store.is_tried:
        return
    key = _trial_key(link, beside)
    try:
        link.require_success(key, link.ask("PUT", key, body=_CONTENT))
        store.keeps_put_conditions = all(
            _is_refused_for(link, key, condition) for condition in (NOTHING_THERE, {"if-match": f'"{"0" * 32}"'})
        )
        store.keeps_complete_conditions = store.keeps_put_conditions and _refuses_parts(link, key, NOTHING_THERE)
        store.keeps_object_sizes = _refuses_parts(link, key, {"x-amz-mp-object-size": "7"})
        store.proves_parts = _refuses_parts(link, key, {}, tag=f'"{"0" * 32}"')
    except (PermissionRefused, IOFailure) as error:
        log.warning("store could not be tried out", server=link.name, error=str(error))
    finally:
        store.deletes = link.ask("DELETE", key).status != 403
    store.is_tried = True
    log.info("store tried out", server=link.name, **traits(link))


def checked(link: Link, beside: str) -> str:
    """Return the checksum that the store is known to check, empty: none; found out once, by a key beside another.

    Only one that lets right bytes pass and refuses wrong ones counts, of an object and of a part.
    """
    store = link.store
    if store.checks is None:
        key = _trial_key(link, beside)
        try:
            store.checks = next((one for one in (checksums.CRC32C, checksums.MD5) if _checks(link, key, one)), "")
        finally:
            link.ask("DELETE", key)
        log.info("store tried out", server=link.name, checksums=store.checks or "ignored or refused")
    return store.checks


def _checks(link: Link, key: str, algorithm: str) -> bool:
    wrong, right = (checksums.headers_of(algorithm, content) for content in (_CONTENT + b"!", _CONTENT))

    def is_taken(query: list[tuple[str, str]], told: dict[str, str]) -> bool:
        answer = link.ask("PUT", key, query, told, _CONTENT)
        says_nothing = answer.status in {401, 403, 404, 408, 409, 429, 500} or answer.status > 501
        if says_nothing and refusals.code_of(answer) not in _OF_CHECKSUMS:
            raise link.refused(key, answer)
        return not refusals.is_refused(answer)

    def tells_apart(query: list[tuple[str, str]]) -> bool:
        return not is_taken(query, wrong) and is_taken(query, right)

    if not tells_apart([]):
        return False
    headers = checksums.headers_of_upload(algorithm) | link.options.headers_of_new()
    begun = link.ask("POST", key, [("uploads", "")], headers)
    if refusals.is_refused(begun):
        return False
    upload_id = link.parsed(documents.required, begun, "UploadId")
    try:
        return tells_apart([("partNumber", "1"), ("uploadId", upload_id)])
    finally:
        abort_by_id(link, key, upload_id)


def _trial_key(link: Link, beside: str) -> str:
    """Return a key beside another that nothing else has.

    Beside a partial file it is a further one of the same job, by its name: what a crash leaves of a trial is an orphan.
    """
    folder, slash, name = beside.rpartition("/")
    before, after = link.server.partial_pattern.split("{id}")
    words = ["try" + secrets.token_hex(6)]
    if name.startswith(before) and name.endswith(after):
        own = name.removeprefix(before).removesuffix(after).split("-")
        words = [own[0], *words, own[-1]]
    return f"{folder}{slash}{before}{'-'.join(words)}{after}"


def _is_refused_for(link: Link, key: str, condition: dict[str, str]) -> bool:
    return link.ask("PUT", key, headers=condition, body=_CONTENT).status == 412


def _refuses_parts(link: Link, key: str, headers: dict[str, str], tag: str = "") -> bool:
    """Is the completion of an upload with one part refused for these headers, or for another tag of the part?

    For the latter the part must have been tagged with the MD5 of its content.
    """
    begun = link.require_success(key, link.ask("POST", key, [("uploads", "")], link.options.headers_of_new()))
    upload_id = link.parsed(documents.required, begun, "UploadId")
    try:
        part = link.ask("PUT", key, [("partNumber", "1"), ("uploadId", upload_id)], body=_CONTENT)
        right = link.require_success(key, part).headers.get("etag", "")
        if tag and right.strip('"') != hashlib.md5(_CONTENT, usedforsecurity=False).hexdigest():
            return False
        body = documents.completion([documents.Part(1, tag or right)])
        done = link.ask("POST", key, [("uploadId", upload_id)], headers, body)
        return done.status in {400, 412}
    finally:
        try:
            abort_by_id(link, key, upload_id)
        except EtlError:
            """It was completed."""
