"""Uploads that are gone on with: a small object under the partial name says which upload it stands for.

Parts are seen by nobody, and have no name of their own. What the names of other protocols' partial files tell, this
object's name tells any process: the job, the version of its source, the run. It goes with the upload.

A part that was cut may be there all the same: versitygw shows it a moment later, with the size that was told, and with
garbage in it. So the last part that is there is sent again, and the one before must have the MD5 of the source's bytes.
The two that the last sender may have had under way may still be overwritten: their tags are written down once they are
sent. A store is gone on with only if it completes no parts with other tags.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from etl.errors import PermissionRefused
from etl.models.checksum import Checksum
from etl.transfer.resumable import Foothold
from etl.transfer.s3 import documents, known, publishing
from etl.transfer.s3.upload import abort_by_id, part_bytes

if TYPE_CHECKING:
    from etl.transfer.s3.documents import Part
    from etl.transfer.s3.link import Link

_LIMIT_BYTES = 16 << 10  # of such an object: keys have 1024 bytes at most
_PAGES = 11  # of parts, with 1000 each
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


def note(link: Link, partial: str, upload: known.Upload) -> bool:
    """Write down which upload a partial name stands for; False: we may not, or could not remove it again."""
    if not link.store.deletes:
        return False
    taken = {str(number): etag for number, etag in upload.taken.items()}
    text = json.dumps({"key": upload.key, "upload_id": upload.upload_id, "mark": upload.mark, "taken": taken})
    try:
        link.require_success(partial, link.ask("PUT", partial, body=text.encode()))
    except PermissionRefused:
        return False
    return True


def find(link: Link, partial: str) -> known.Upload | None:
    """Return the upload that a partial name stands for: of this process, or as it was written down."""
    upload = known.upload(link.server, partial)
    if upload is not None:
        return upload
    answer = link.begin("GET", partial)
    if answer.status != 200 or not 0 < (answer.body.left_bytes or 0) <= _LIMIT_BYTES:
        answer.body.drop()
        return None
    link.read_whole(answer)
    found = _read(answer.content)
    # Whoever else may write there shall not have us abort uploads elsewhere.
    return found if found is not None and found.key.rpartition("/")[0] == partial.rpartition("/")[0] else None


def give_up(link: Link, partial: str, spared: tuple[str, str]) -> bool:
    """Abort the upload that a partial name stands for; False: there is none.

    `spared`: partial name and id of one that is gone on with. After a crash two names may stand for it.
    """
    upload = find(link, partial)
    if upload is None:
        return False
    if partial == spared[0] or upload.upload_id != spared[1]:
        upload.is_live = False  # also if it cannot be aborted now
        abort_by_id(link, upload.key, upload.upload_id)
        known.ended(link.server, partial)
    return True


def _read(content: bytes) -> known.Upload | None:
    """Read what `note` wrote; None for anything else."""
    try:
        told = json.loads(content)
        key, upload_id, mark = (told[name] for name in ("key", "upload_id", "mark"))
        taken = {int(number): str(etag) for number, etag in told["taken"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not all(isinstance(text, str) and text for text in (key, upload_id, mark)):
        return None
    return known.Upload(key, upload_id, 0, mark, is_live=False, taken=taken)


def take_over(link: Link, left: str, partial: str, key: str, size_bytes: int) -> Foothold | None:
    """Give the upload of the name `left`, which is one to `key`, the name `partial`; say where to go on with it."""
    upload = find(link, left)
    is_right = upload is not None and upload.key == key and note(link, partial, upload)
    known.ended(link.server, left)
    try:
        publishing.delete(link, left)
    except PermissionRefused:
        link.store.deletes = False
        raise
    if upload is None or not is_right:
        return None
    known.begun(link.server, partial, upload)
    length = part_bytes(size_bytes)
    whole: list[Part] = []
    for part in _listed(link, upload):
        is_next = part.number == len(whole) + 1 and length * part.number < size_bytes
        if not is_next or part.size_bytes != length or upload.taken.get(part.number, part.etag) != part.etag:
            break
        whole.append(part)
    del whole[-1:]
    tag = _MD5.fullmatch(whole[-1].etag) if whole else None
    if tag is None:
        return None
    upload.parts, upload.part_bytes = whole, length
    upload.doubtful = range(len(whole) + 1, min(len(whole) + 2, -(-size_bytes // length)) + 1)
    return Foothold(length * len(whole), length, Checksum("md5", tag[1]))


def _listed(link: Link, upload: known.Upload) -> list[Part]:
    """Return the parts that the store has, in their order; none where it may not tell, or cannot (s3proxy)."""
    found: list[Part] = []
    marker = ""
    for _ in range(_PAGES):
        query = [("uploadId", upload.upload_id)] + ([("part-number-marker", marker)] if marker else [])
        answer = link.ask("GET", upload.key, query)
        if answer.status in {403, 404, 500, 501}:
            return []
        page, marker = link.parsed(documents.parts_of, link.require_success(upload.key, answer))
        found += page
        if not marker:
            break
    return sorted(found)
