"""Does a server keep a name as it was sent? Some drop quotes, trim blanks, or bend what they do not know.

Asking by the same name proves nothing: it is bent in the same way. The folder's list does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from etl.errors import IOFailure, NameNotKept
from etl.transfer.ftp.listing import names_in
from etl.transfer.ftp.names import folders_above
from etl.transfer.ftp.telnet import IAC
from etl.transfer.paths import basename, beside, parent

if TYPE_CHECKING:
    from etl.transfer.ftp.link import Link

_LONG_BYTES = 63  # a name that no server cuts off
_CUT_BYTES = 31  # of a name that was
_ESCAPED = re.compile(r"%[0-9A-Fa-f]{2}")  # which some take for a letter, as in addresses of the web
# A sign that some drop or bend anywhere, a blank around a name, a dot behind it.
_RISKY = re.compile(r"""["\\'`<>|:?*\x00-\x1f\x7f]|(?:\A|/)\s|\s(?:/|\Z)|\.(?:/|\Z)""")


def is_at_risk(link: Link, path: str) -> bool:
    """May the server keep this name as another one? Names beyond ASCII are looked at until one was shown as sent."""
    if _RISKY.search(path) is not None or _is_long(link, path):
        return True
    if not link.quirks.keeps_escapes and _ESCAPED.search(path) is not None:
        return True
    if path.isascii():
        return False
    return not (link.quirks.keeps_ff if IAC in link.names.wire(path) else link.quirks.keeps_names)


def shown_beside(link: Link, path: str) -> set[str] | None:
    """Return the names in a file's folder; None where they cannot be had: then nothing is proven."""
    try:
        return set(names_in(link, parent(path) or "/", "") or ())
    except IOFailure:
        return None


def require_kept(link: Link, path: str, before: set[str], source: str | None = None) -> None:
    """Raise NameNotKept when a file just renamed to `path` has another name there.

    A file that no list shows may be there all the same, or be taken by whoever waits for it.

    Args:
        link: the session.
        path: the name that was sent.
        before: the names in its folder before the rename.
        source: the name it gets back; without one it is a copy, and taken away.
    """
    name, after, has_ff = basename(path), shown_beside(link, path), IAC in link.names.wire(path)
    if not after or name in after:
        if not link.quirks.keeps_names and (folder := _bent_folder(link, path)) is not None:
            is_undone = _undo(link, path, source)
            raise _not_kept(link, path, folder, None if is_undone else source)
        link.quirks.keeps_names = link.quirks.keeps_names or not path.isascii()
        link.quirks.keeps_ff = link.quirks.keeps_ff or has_ff
        link.quirks.keeps_escapes = link.quirks.keeps_escapes or _ESCAPED.search(name) is not None
        link.quirks.kept_bytes = max(link.quirks.kept_bytes, len(link.names.wire(name)))
        return
    new = after - before
    alike = sorted(other for other in after if _is_bent(link, name, other))
    bent = next((other for other in alike if other in new), None)
    if bent is not None:
        # First by the name that was sent: it is bent once more, as what is shown might be, too.
        is_undone = _undo(link, path, source) or _undo(link, beside(path, bent), source)
    elif alike:
        bent, is_undone = alike[0], source is not None and _undo(link, path, source)
    elif len(new) == 1 and (is_undone := _undo(link, path, source)):  # it was there, and no list showed it
        bent = new.pop()
    elif has_ff and link.ask("SIZE", path).result().is_success:
        is_undone = source is not None and _undo(link, path, source)
    else:
        return
    raise _not_kept(link, path, bent, None if is_undone else source)


def _not_kept(link: Link, path: str, bent: str | None, lost: str | None) -> NameNotKept:
    """Return the error; `lost` is a source that is under the bent name now."""
    shown = "another name" if bent is None else f"another name: {bent!r}"
    moved = "" if lost is None else f"; {lost} is there under that name now"
    return NameNotKept(f"{link.name}:{path}: the server keeps it under {shown}{moved}", server=link.name)


def _bent_folder(link: Link, path: str) -> str | None:
    """Return what a server shows in place of a folder above a file; a folder that none shows may be hidden."""
    for folder in folders_above(path):
        name = basename(folder)
        shown = set() if name.isascii() else shown_beside(link, folder) or set()
        if name not in shown and (bent := shown & _misread(link, name)):
            return bent.pop()
    return None


def _undo(link: Link, path: str, source: str | None) -> bool:
    """Delete a copy, or give a source its name back."""
    if source is None:
        return link.ask("DELE", path).result().is_success
    link.command("RNFR", link.wire(path)).result()
    return link.command("RNTO", link.wire(source)).result().is_success


def _is_long(link: Link, path: str) -> bool:
    """Is the name longer than any that the server was seen to keep?"""
    name = basename(path)
    if len(name) <= _LONG_BYTES // 4:  # of UTF-8 at most
        return False
    return len(link.names.wire(name)) > max(_LONG_BYTES, link.quirks.kept_bytes)


def _is_bent(link: Link, name: str, other: str) -> bool:
    """May a server have made this other name of it?"""
    is_cut = len(link.names.wire(other)) >= _CUT_BYTES and name.startswith(other)
    return is_cut or _core(other) == _core(name) or other in _misread(link, name)


def _core(name: str) -> str:
    """Return what is left of a name when everything is dropped that a server may drop."""
    return "".join(sign for sign in name if sign.isalnum())


def _misread(link: Link, name: str) -> set[str]:
    """Return what a server shows that took a name for Latin-1, for bad UTF-8, or for a part of an address."""
    wire = link.names.wire(name)
    texts = (wire.decode("latin-1"), wire.decode("utf-8", "replace"))
    return {link.names.read(text) for text in (*(text.encode() for text in texts), unquote_to_bytes(wire))}
