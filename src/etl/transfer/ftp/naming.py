"""Does a server keep a name as it was sent? Some drop quotes, trim blanks, or bend what they do not know.

Asking by the same name proves nothing: it is bent in the same way. The folder's list does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl.errors import IOFailure, NameNotKept
from etl.transfer.ftp.listing import names_in
from etl.transfer.paths import basename, beside, parent

if TYPE_CHECKING:
    from etl.transfer.ftp.link import Link

_ODD = set("\"\\'`<>|:?*") | {chr(code) for code in range(32)} | {chr(127)}


def is_at_risk(link: Link, path: str) -> bool:
    """May the server keep this name as another one? Names beyond ASCII are looked at once per server."""
    if any(part != part.strip() or part.endswith(".") or _ODD & set(part) for part in path.split("/")):
        return True
    return not (path.isascii() or link.quirks.keeps_names)


def shown_beside(link: Link, path: str) -> set[str] | None:
    """Return the names in a file's folder; None where they cannot be had: then nothing is proven."""
    try:
        return set(names_in(link, parent(path) or "/", "") or ())
    except IOFailure:
        return None


def require_kept(link: Link, path: str, before: set[str]) -> None:
    """Raise NameNotKept when a file just renamed to `path` has another name there; it is taken away.

    `before`: the names in its folder before the rename. A file that no list shows may be there all the same.
    """
    name, after = basename(path), shown_beside(link, path)
    link.quirks.keeps_names = True
    if after is None or name in after:
        return
    alike = sorted(other for other in after if _core(other) == _core(name))
    new = [other for other in alike if other not in before]
    if new:
        link.ask("DELE", beside(path, new[0])).result()
    if alike:
        raise NameNotKept(f"{link.name}:{path}: the server keeps it under another name: {alike[0]!r}", server=link.name)


def _core(name: str) -> str:
    """Return what is left of a name when everything is dropped that a server may drop."""
    return "".join(sign for sign in name if sign.isalnum())
