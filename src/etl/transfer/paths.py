"""Where a job's path lies on its server: below the base path, and never above it. Lexical only."""

from __future__ import annotations

import functools
import re
import unicodedata

from etl.errors import InvalidPath

# What some server or other drops from a name, and what Windows takes for a separator.
DROPPED_BYTES, SEPARATOR_BYTES = bytes(range(33)) + b"\x7f\"'`<>|:?*", b"/\\"
_D, _S = re.escape(DROPPED_BYTES + b"\\"), re.escape(SEPARATOR_BYTES)
_CLIMBS = re.compile(rb"(?:^|[%b])[%b]*\.[%b]*\.[%b.]*(?:[%b]|$)" % (_S, _D, _D, _D, _S))


def below(base: str, path: str) -> str:
    """Return `path` put under `base`; without a base it stays as it is. Raises InvalidPath when it climbs above."""
    refuse_unusable(path)
    if not base:
        return path
    return base.rstrip("/") + "/" + path.lstrip("/")


def refuse_unusable(path: str) -> None:
    """Raise InvalidPath for an empty path, one with line breaks or NUL, or one whose `..` leave its start."""
    if not path.strip("/"):
        raise InvalidPath(f"{path!r} names no file")
    if "\r" in path or "\n" in path or "\0" in path:
        raise InvalidPath(f"{path!r} holds a line break or NUL")
    if ".." not in path:
        return
    depth = 0
    for part in path.split("/"):
        if part == "..":
            depth -= 1
        elif part not in {"", "."}:
            depth += 1
        if depth < 0:
            raise InvalidPath(f"{path!r} climbs above its start")


@functools.lru_cache(maxsize=256)  # a job sends each of its names three or four times
def refuse_misread(path: str, wire: bytes) -> None:
    """Raise InvalidPath if a server may take `wire`, the bytes of `path`, for a path that climbs.

    `below` sees text, a server sees bytes: some take a backslash for a separator, drop blanks or quotes, or read signs
    that look like dots and slashes as those.
    """
    if wire.count(b"/") != path.count("/"):
        raise InvalidPath(f"{path!r} has other folders in the server's encoding")
    if _CLIMBS.search(wire) is None and (path.isascii() or _CLIMBS.search(_alike(path)) is None):
        return
    for part, sent in zip(path.split("/"), wire.split(b"/"), strict=True):
        # `..` itself was judged before: in a job's path by `below`, in a base path by whoever set that.
        if part not in {".", ".."} and (_CLIMBS.search(sent) or _CLIMBS.search(_alike(part))):
            raise InvalidPath(f"{path!r} may be read as a path that climbs above its start")


def _alike(text: str) -> bytes:
    """Return a text as a server may read it that replaces signs it lacks, and drops invisible ones."""
    plain = unicodedata.normalize("NFKC", text)
    return "".join([sign for sign in plain if unicodedata.category(sign) != "Cf"]).encode("utf-8", "surrogateescape")


def parent(path: str) -> str:
    """Return the folder of a path, in the path's own form (`/` or the empty string at its end)."""
    head, slash, _ = path.rpartition("/")
    return head or slash


def basename(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition("/")[2]


def beside(path: str, name: str) -> str:
    """Return the path of `name` in the folder of `path`."""
    head, slash, _ = path.rpartition("/")
    return head + slash + name
