"""Checksums that an FTP server makes of its files: HASH (draft-ietf-ftpext2-hash), XSHA256, XMD5, XCRC ... and MD5.

What each of them says, and how a name is written there, differs from server to server; which ways work is learnt once
per address.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from etl.errors import ConnectionLost, TransferTimeout
from etl.models.checksum import DIGITS
from etl.transfer.ftp.refusals import UNKNOWN_COMMAND

if TYPE_CHECKING:
    from etl.transfer.ftp.link import Link
    from etl.transfer.ftp.replies import Reply

# Best first: by algorithm, its name for HASH, and the commands of its own.
_WAYS = {
    "sha256": ("SHA-256", ("XSHA256",)),
    "sha512": ("SHA-512", ("XSHA512",)),
    "sha1": ("SHA-1", ("XSHA1", "XSHA")),
    "md5": ("MD5", ("XMD5", "MD5")),
    "crc32": ("CRC32", ("XCRC",)),
}
_NAMES = {name for name, _ in _WAYS.values()}
_BYTES_PER_SECOND = 10_000_000  # that the slowest server reads and hashes; it says nothing meanwhile
_ENDS = 2  # sessions in a row that end, or are silent, at a way: it is not gone any more
_NOT_SO = 501  # of HASH: it does not have the algorithm; of the others perhaps that a name must be in quotes
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]+")


def offered(link: Link) -> tuple[str, ...]:
    """Return the algorithms that the server has a way for, best first."""
    return tuple(algorithm for algorithm in _WAYS if _open_ways(link, algorithm))


def hash_of(link: Link, whole: str, algorithm: str, size_bytes: int, silence_limit: float) -> str | None:
    """Ask for the checksum of a file in one way after the other; None: in none of them it was told.

    The server may be silent for `silence_limit` seconds, and as long as it needs to read the file.
    """
    limit = silence_limit + size_bytes / _BYTES_PER_SECOND
    for way in _open_ways(link, algorithm):
        try:
            reply = _asked(link, way, whole, limit)
        except (ConnectionLost, TransferTimeout):
            link.quirks.hash_ends[way] = link.quirks.hash_ends.get(way, 0) + 1
            raise
        if reply.code in UNKNOWN_COMMAND and (reply.code != _NOT_SO or way.startswith("HASH")):
            link.quirks.hash_ends[way] = _ENDS
        elif reply.is_success:
            link.quirks.hash_ends.pop(way, None)
            if (value := value_in(reply, algorithm, link.locate(whole))) is not None:
                return value
    return None


def _open_ways(link: Link, algorithm: str) -> list[str]:
    """Return the commands that the server offers and was not seen to refuse: HASH, and those with its own names."""
    name, commands = _WAYS[algorithm]
    names = {one.strip().rstrip("*") for one in link.feature("HASH").upper().split(";")}
    ways = [f"HASH {name}"] if name in names else []
    ways += [command for command in commands if link.offers(command)]
    return [way for way in ways if link.quirks.hash_ends.get(way, 0) < _ENDS]


def _asked(link: Link, way: str, whole: str, limit: float) -> Reply:
    """Ask in one way; with the name as it is, and in quotes, until that is a success."""
    verb, _, name = way.partition(" ")
    if verb == "HASH":
        return _asked_by_hash(link, name, whole, limit)
    path = link.locate(whole)
    for is_quoted in _quoting(link, verb, path):
        reply = link.command(verb, b'"' + path + b'"' if is_quoted else path).result(limit=limit)
        if reply.is_success and b" " in path:
            link.quirks.quotes_hashed[verb] = is_quoted
        if reply.is_success or reply.code in UNKNOWN_COMMAND - {_NOT_SO}:
            break
    return reply


def _asked_by_hash(link: Link, name: str, whole: str, limit: float) -> Reply:
    """Ask by HASH, which is set to an algorithm before, in one write with it."""
    selected = None if link.hash_name == name else link.command("OPTS", f"HASH {name}".encode("ascii"))
    asked = link.ask("HASH", whole)
    if selected is not None and not selected.result().is_success:
        link.hash_name = None
        asked.result(limit=limit)
        return selected.result()
    link.hash_name = name
    return asked.result(limit=limit)


def _quoting(link: Link, verb: str, path: bytes) -> tuple[bool, ...]:
    """Return how a name is written, best first. ProFTPD takes one with blanks in quotes for XMD5, without for MD5.

    In quotes first: to who takes them for a part of the name it is no file, and never another one.
    """
    if b'"' in path:
        return (False,)
    if b" " not in path:
        return (False, True)
    known = link.quirks.quotes_hashed.get(verb)
    return (True, False) if known is None else (known,)


def value_in(reply: Reply, algorithm: str, name: bytes) -> str | None:
    """Return the checksum that a reply holds; None when it holds none, several, or one of another algorithm.

    HASH says `SHA-256 0-49 VALUE name`, the others `VALUE`, `"name" VALUE`, `XCRC VALUE` and the like.
    """
    words = [word.strip(b"\"'()[]<>,;") for word in reply.line.split()]
    if words and words[0].decode("ascii", "replace").upper() in _NAMES - {_WAYS[algorithm][0]}:
        return None
    digits = DIGITS[algorithm]
    if algorithm == "crc32" and len(words) == 1:  # as a number: without its leading zeros
        words = [words[0].removeprefix(b"0x").rjust(digits, b"0")]
    found = {word.lower() for word in words if len(word) == digits and _HEXADECIMAL.fullmatch(word)}
    if len(found) > 1:
        found -= {part.lower() for part in re.split(rb"[/\s]", name)}
    return found.pop().decode("ascii") if len(found) == 1 else None
