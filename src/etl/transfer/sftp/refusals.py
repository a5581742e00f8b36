"""What a refusal means: its code says little (4 is any failure), so the server is asked about the path."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from etl.errors import EtlError, FileMissing, IOFailure, NotAFile, PermissionRefused, StorageFull
from etl.transfer.paths import parent
from etl.transfer.sftp.link import STATVFS
from etl.transfer.sftp.packets import EXTENDED_ANSWER, MKDIR, NO_SUCH_FILE, PERMISSION_DENIED, STAT, U32

if TYPE_CHECKING:
    from etl.transfer.sftp.link import Link
    from etl.transfer.sftp.packets import Answer, Attributes

# With those of later versions of the protocol.
_MISSING = {NO_SUCH_FILE, 10}
_FORBIDDEN = {PERMISSION_DENIED, 12}  # 12: write protect
_FULL = {14, 15}  # no space, quota
_NO_FILE = {19, 24}  # not a folder, is a folder
_NO_ATTRIBUTES = U32.pack(0)
_STATVFS = struct.Struct(">11Q")  # as OpenSSH's PROTOCOL file has it, section 4.4


def is_missing(answer: Answer) -> bool:
    """Does an answer say that there is no such file, or folder on its way?"""
    return answer.code in _MISSING


def plain_error(link: Link, whole: str, answer: Answer) -> EtlError:
    """Return the error that the code alone tells."""
    kinds: list[tuple[set[int], type[EtlError]]] = [
        (_MISSING, FileMissing),
        (_FORBIDDEN, PermissionRefused),
        (_FULL, StorageFull),
        (_NO_FILE, NotAFile),
    ]
    kind = next((kind for codes, kind in kinds if answer.code in codes), IOFailure)
    return kind(f"{link.name}:{whole}: {answer.text}", server=link.name)


def attributes_of(link: Link, whole: str) -> Attributes | None:
    """Ask what is at a path; None when there is nothing, or nothing is told."""
    return link.ask(STAT, whole).result().attributes


def no_file(link: Link, whole: str, found: Attributes) -> NotAFile:
    """Return the error for something that is no ordinary file."""
    what = "a folder" if found.is_folder else "no ordinary file"
    return NotAFile(f"{link.name}:{whole} is {what}", server=link.name)


def why_not_read(link: Link, whole: str, answer: Answer, seen: Answer | None = None) -> EtlError:
    """Return why a file cannot be opened for reading. `seen`: the answer to STAT, if it was asked already."""
    seen = link.ask(STAT, whole).result() if seen is None else seen
    found = seen.attributes
    if found is not None and not found.is_file:
        return no_file(link, whole, found)
    if is_missing(answer) or is_missing(seen):
        return FileMissing(f"{link.name}:{whole} is not there: {answer.text}", server=link.name)
    above, found = _first_above(link, whole)  # mod_sftp calls what lies below a file forbidden
    if found is not None and not found.is_folder and found.mode is not None:
        return no_file(link, above, found)
    return plain_error(link, whole, answer)


def why_not_written(link: Link, whole: str, answer: Answer, more_bytes: int = 0) -> EtlError:
    """Return why a file cannot be made, written or changed, or be given this name; `more_bytes` were to be written."""
    error = plain_error(link, whole, answer)
    if isinstance(error, StorageFull):
        return error
    found = attributes_of(link, whole)
    if found is not None and not found.is_file:
        return no_file(link, whole, found)
    above, found = _first_above(link, whole)
    if found is not None and not found.is_folder and found.mode is not None:
        return no_file(link, above, found)
    if isinstance(error, PermissionRefused) or (room := _room(link, above or ".")) is None:
        return error
    if room.is_read_only:
        return PermissionRefused(f"{error}; the file system is read-only", server=link.name)
    if room.bytes_left <= more_bytes or room.files_left == 0:
        return StorageFull(f"{error}; there is no room left", server=link.name)
    return error


def _first_above(link: Link, whole: str) -> tuple[str, Attributes | None]:
    """Return the lowest of the folders on the way to a path of which the server tells what it is; None: of none."""
    above = parent(whole)
    while above and above != parent(above):
        found = attributes_of(link, above)
        if found is not None:
            return above, found
        above = parent(above)
    return above, None


def make_folders(link: Link, whole: str) -> Answer | None:
    """Make the folders on the way to a path, all in one write; return why they are not there, None: they are."""
    missing, above = [], parent(whole)
    while above and above != parent(above):
        missing.append(above)
        above = parent(above)
    answers = [link.ask(MKDIR, folder, _NO_ATTRIBUTES) for folder in reversed(missing)]
    if not answers or answers[-1].result().is_success:
        return None
    found = attributes_of(link, missing[0])
    if found is not None and (found.is_folder or found.mode is None):
        return None
    refusals = [answer.result() for answer in reversed(answers)]
    return next((refusal for refusal in refusals if not is_missing(refusal)), refusals[0])


class _Room(NamedTuple):
    """What a file system has left."""

    bytes_left: int
    files_left: int | None  # None: it does not count them
    is_read_only: bool


def _room(link: Link, folder: str) -> _Room | None:
    """Ask what a folder's file system has left; None: the server does not tell."""
    if not link.offers(STATVFS):
        return None
    answer = link.extended(STATVFS, link.wire_name(folder)).result()
    if answer.kind != EXTENDED_ANSWER or len(answer.body) < _STATVFS.size:
        return None
    _, fragment, _, _, available, inodes, _, free_inodes, _, flags, _ = _STATVFS.unpack_from(answer.body)
    return _Room(available * fragment, free_inodes if inodes else None, is_read_only=bool(flags & 1))
