"""Checksums that an SFTP server makes of its files: `check-file` (draft-ietf-secsh-filexfer-extensions, section 3)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from etl.models.checksum import DIGITS
from etl.transfer.sftp.packets import EXTENDED_ANSWER, MalformedError, string
from etl.transfer.watch import Watch

if TYPE_CHECKING:
    from etl.transfer.sftp.link import Link
    from etl.transfer.sftp.packets import Answer

_EXTENSION = b"check-file-name"
_ALGORITHMS = ("sha256", "sha512", "sha1", "md5")  # of the draft, best first
_UNKNOWN_REQUEST = 8  # status OP_UNSUPPORTED
_WHOLE_FILE = struct.pack(">QQI", 0, 0, 0)  # from byte, as many bytes, in blocks of; 0: all of them, as one
_BYTES_PER_SECOND = 10_000_000  # that the slowest server reads and hashes; it says nothing meanwhile


def offered(link: Link) -> tuple[str, ...]:
    """Return the algorithms, best first; none where the request is not known, asked once about a folder."""
    if link.checks_files is None:
        link.checks_files = _ask(link, link.top, _ALGORITHMS[0], 0.0).code != _UNKNOWN_REQUEST
    return _ALGORITHMS if link.checks_files else ()


def hash_of(link: Link, whole: str, algorithm: str, size_bytes: int, silence_limit: float) -> str | None:
    """Ask for the checksum of a file; None: the server refuses, or answers with something else.

    It may be silent for `silence_limit` seconds, and as long as it needs to read the file.
    """
    answer = _ask(link, whole, algorithm, silence_limit + size_bytes / _BYTES_PER_SECOND)
    if answer.code == _UNKNOWN_REQUEST:
        link.checks_files = False
    if answer.kind != EXTENDED_ANSWER:
        return None
    try:
        return _value_in(answer, algorithm)
    except MalformedError:
        return None


def _ask(link: Link, whole: str, algorithm: str, limit: float) -> Answer:
    body = link.wire_name(whole) + string(algorithm.encode("ascii")) + _WHOLE_FILE
    return link.extended(_EXTENSION, body).result(Watch(limit, 0.0) if limit else None)


def _value_in(answer: Answer, algorithm: str) -> str | None:
    """Return the checksum behind the name of its algorithm; some say `check-file` before that, as the draft does."""
    body = answer.expect(EXTENDED_ANSWER)
    name = body.string()
    if name == b"check-file":
        name = body.string()
    value = body.rest().hex()
    return value if name == algorithm.encode("ascii") and len(value) == DIGITS[algorithm] else None
