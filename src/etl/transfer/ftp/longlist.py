"""Lines of LIST, which no standard describes: what they say of one entry. Pure.

Unix (`ls -l`, with a date of whatever language), MS-DOS, NetWare and EPLF; a line of another form says nothing.
"""

from __future__ import annotations

import re
from enum import Enum


class Entry(Enum):
    """What a line says that something is."""

    FILE = "file"
    FOLDER = "folder"
    OTHER = "other"  # a link, a device


_UNIX = re.compile(
    rb"(?P<kind>[bcdlps-])(?:[rwxsStTlL-]{9}[.+@]?| \[[A-Z-]{8}\])\s+"
    rb"(?:\S+\s+){0,5}?\d+\s+"  # links, owner, group, size
    rb"(?:\d{4}-\d\d-\d\d\s+\d\d:\d\d(?::\d\d)?|(?:\S+\s+\d{1,2}\.?|\d{1,2}\.?\s+\S+)\s+(?:\d{1,2}:\d\d|\d{4})) "
    rb"(?P<name>.+)"
)
_DOS = re.compile(
    rb"\d{2,4}[-/.]\d\d[-/.]\d{2,4}\s+\d{1,2}:\d\d(?:\s?[AaPp][Mm])?\s+(?P<kind><\w+>|[\d,.]+)\s(?P<name>.+)"
)
_EPLF = re.compile(rb"\+(?:[^\t]*,)?(?P<kind>[/r]),[^\t]*\t(?P<name>.+)")
_KINDS = {b"d": Entry.FOLDER, b"-": Entry.FILE, b"/": Entry.FOLDER, b"r": Entry.FILE, b"<DIR>": Entry.FOLDER}
_ARROW = b" -> "


def entry_in(line: bytes) -> tuple[Entry, bytes] | None:
    """Return kind and name of an entry; None for any other line."""
    for form in (_UNIX, _DOS, _EPLF):
        if (found := form.fullmatch(line)) is not None:
            break
    else:
        return None
    kind, name = found["kind"], found["name"]
    if kind == b"l":
        return Entry.OTHER, name.partition(_ARROW)[0]
    if form is _DOS or line[2:3] == b"[":
        name = name.lstrip(b" ")  # its column is filled up with blanks
    if form is _DOS:
        return (_KINDS.get(kind.upper(), Entry.OTHER) if kind[:1] == b"<" else Entry.FILE), name
    return _KINDS.get(kind, Entry.OTHER), name
