"""Names and times as a server writes them: encoding, folders, facts, time stamps. Pure."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from etl.errors import InvalidPath, SettingsError
from etl.transfer.paths import below, parent

_TIME = re.compile(rb"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\.\d+)?(?:\D|$)")
_QUOTED = re.compile(rb'"((?:[^"]|"")*)"')


@dataclass(frozen=True)
class Names:
    """How paths of a job become names on one server, and back.

    `home` is the folder after login, empty: not known. Every path is sent whole, so that none can look like an option
    (`-x`) and the working folder may change at any time.
    """

    encoding: str
    base: str = ""
    home: str = "/"

    def whole(self, path: str) -> str:
        """Return a job's path as the server's absolute path."""
        if path.startswith("/") and not self.base:
            return below("", path)
        if not self.home and not self.base.startswith("/"):
            raise SettingsError(
                f"{path!r} begins in the folder after login, which the server does not tell (PWD): use a path or a "
                "BASE_PATH that begins with /"
            )
        return below(self.top, path)

    @property
    def top(self) -> str:
        """The folder that relative paths begin in."""
        base = self.base if self.base.startswith("/") else f"{self.home.rstrip('/')}/{self.base}"
        return base.rstrip("/") or "/"

    def wire(self, whole_path: str) -> bytes:
        """Return the bytes of a path. Raises InvalidPath when the server's encoding cannot express it."""
        try:
            return whole_path.encode(self.encoding, "surrogateescape")
        except UnicodeError as error:
            raise InvalidPath(f"{whole_path!r} cannot be written in {self.encoding}") from error

    def read(self, name: bytes) -> str:
        """Return a name that the server sent; bytes that its encoding does not know come back unharmed by `wire`."""
        return name.decode(self.encoding, "surrogateescape")


def check_encoding(encoding: str, server: str) -> str:
    """Return a usable encoding's name; raises SettingsError for an unknown one, or one without ASCII in it."""
    try:
        if "/a.b".encode(encoding) == b"/a.b":
            return encoding
    except LookupError:
        pass
    raise SettingsError(f"{server}_ENCODING: {encoding!r} is no encoding for file names", server=server)


def folders_above(whole_path: str) -> Iterator[str]:
    """Yield the folders of an absolute path, nearest first, without the root."""
    folder = parent(whole_path.rstrip("/"))
    while folder.strip("/"):
        yield folder
        folder = parent(folder.rstrip("/"))


def quoted_path(line: bytes) -> bytes | None:
    """Return the path in a reply to PWD: in double quotes, a quote in it doubled (RFC 959 appendix II)."""
    found = _QUOTED.search(line)
    return found[1].replace(b'""', b'"') if found else None


@functools.lru_cache(maxsize=64)  # each file's is read twice: before it is read and afterwards
def time_in(line: bytes, zone: tzinfo = UTC) -> float | None:
    """Return the time of a reply to MDTM or of a fact, as seconds since the epoch; None when there is none."""
    found = _TIME.match(line.strip())
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(digits) for digits in found.groups()[:6])
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=zone).timestamp() + float(found[7] or 0)
    except ValueError:
        return None


def stamp(mtime: float, zone: tzinfo = UTC) -> bytes | None:
    """Return a time as MFMT wants it, in the server's zone, to the second; None for one that has no such form."""
    try:
        text = datetime.fromtimestamp(math.floor(mtime), zone).strftime("%Y%m%d%H%M%S")
    except (ValueError, OverflowError, OSError):
        return None
    return text.encode("ascii") if len(text) == 14 else None


def size_in(line: bytes) -> int | None:
    """Return the number in a reply to SIZE."""
    digits = line.strip().split(b" ")[0]
    return int(digits) if digits.isdigit() and len(digits) < 20 else None


def facts_in(line: bytes) -> tuple[dict[str, bytes], bytes]:
    """Split a line of MLSD or MLST (RFC 3659 section 7.2) into its facts, names lower case, and the file's name."""
    head, _, name = line.partition(b" ")
    facts = {}
    for fact in head.split(b";"):
        key, sign, value = fact.partition(b"=")
        if sign:
            facts[key.decode("ascii", "replace").lower()] = value
    return facts, name
