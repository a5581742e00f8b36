"""Checksum files: `a.tif.sha256` beside a file, `SHA256SUMS` in its folder. Read in all usual forms, written in one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from etl.errors import NotAFile
from etl.models.checksum import WRITABLE, Checksum
from etl.transfer.paths import basename, beside
from etl.transfer.sameness import look_if_possible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etl.transfer.base import Session

_LIMIT_BYTES = 4 << 20  # of a checksum file that are kept
# `VALUE  name` and `VALUE *name` (coreutils; behind a backslash the name is escaped), `SHA256 (name) = VALUE` (BSD).
_LINE_ENDS = re.compile(r"[\r\n]+")  # alone: a name may hold U+2028, which `splitlines` takes for one
_LINE = re.compile(r"(?P<escaped>\\?)(?P<value>[0-9A-Fa-f]+)(?: [ *]|[ \t]+)(?P<name>.+)")
_TAGGED = re.compile(r"(?P<algorithm>[\w-]+) ?\((?P<name>.+)\) ?= ?(?P<value>[0-9A-Fa-f]+)")


def find(source: Session, path: str, buffer: memoryview) -> Checksum | None:
    """Return what a checksum file beside a file says that it must be; None: there is none that speaks of it."""
    for algorithm, where, is_own in _places(path):
        try:
            if look_if_possible(source, where) is None:
                continue
        except NotAFile:  # a folder of that name says nothing
            continue
        if (found := read(_text(source, where, buffer), basename(path), algorithm, is_own=is_own)) is not None:
            return found
    return None


def read(text: str, name: str, algorithm: str, *, is_own: bool) -> Checksum | None:
    """Return what a checksum file says of the file `name`. `is_own`: it is of no other, so a value may stand alone."""
    for line in (line.strip(" \t") for line in _LINE_ENDS.split(text)):
        try:
            if (tagged := _TAGGED.fullmatch(line)) is not None:
                found, about = Checksum.read(tagged["algorithm"], tagged["value"]), tagged["name"]
            elif (usual := _LINE.fullmatch(line)) is not None:
                found, about = Checksum.read(algorithm, usual["value"]), _unescaped(usual["name"], usual["escaped"])
            elif is_own:
                found, about = Checksum.read(algorithm, line), name
            else:
                continue
        except ValueError:  # a comment, or of another algorithm
            continue
        if name == (basename(about) if is_own else about.removeprefix("./")):
            return found
    return None


def line_of(checksum: Checksum, name: str) -> bytes:
    """Return the content of a checksum file, as coreutils write and check it."""
    escaped = "\\" if "\\" in name else ""
    return f"{escaped}{checksum.value}  {name.replace(chr(92), chr(92) * 2)}\n".encode("utf-8", "surrogateescape")


def path_of(path: str, algorithm: str) -> str:
    """Return the path of the checksum file of one file."""
    return f"{path}.{algorithm}"


def _places(path: str) -> Iterator[tuple[str, str, bool]]:
    """Yield where to look, best first: algorithm, path, and whether that file is about ours alone."""
    for algorithm in WRITABLE:
        yield algorithm, path_of(path, algorithm), True
    for algorithm in WRITABLE:
        yield algorithm, beside(path, f"{algorithm.upper()}SUMS"), False


def _text(source: Session, path: str, buffer: memoryview) -> str:
    """Read a checksum file to its end, which its session would not survive else; keep what is enough."""
    parcel, content = source.read(path), b""
    try:
        while count := parcel.readinto(buffer):
            if len(content) < _LIMIT_BYTES:
                content += buffer[:count]
        parcel.close(complete=True)
    finally:
        parcel.close(complete=False)
    return content.decode("utf-8-sig", "surrogateescape")


def _unescaped(name: str, mark: str) -> str:
    return name.replace("\\n", "\n").replace("\\\\", "\\") if mark else name
