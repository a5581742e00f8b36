"""Where a job's path lies on its server: below the base path, and never above it. Lexical only."""

from __future__ import annotations

from etl.errors import InvalidPath


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
