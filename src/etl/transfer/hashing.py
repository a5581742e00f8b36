"""Hashes of files that pass: of each block once, without a copy. Knows no server and no job."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import xxhash

if TYPE_CHECKING:
    from etl.transfer.base import Parcel


class Hash(Protocol):
    """A hash that runs; the interpreter is free for other threads while it works on a large block."""

    def update(self, block: memoryview, /) -> None:
        """Take some bytes."""
        ...

    def hexdigest(self) -> str:
        """Return what all bytes so far come to, in lower-case hexadecimal digits."""
        ...

    def copy(self) -> Hash:
        """Return another one that goes on from here."""
        ...


class _Crc32:
    def __init__(self, value: int = 0) -> None:
        self._value = value

    def update(self, block: memoryview, /) -> None:
        self._value = zlib.crc32(block, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"

    def copy(self) -> _Crc32:
        return _Crc32(self._value)


# By the names in `models.checksum`. None of them guards a secret: they find damage, and what was exchanged.
MAKERS: dict[str, Callable[[], Hash]] = {
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "sha1": partial(hashlib.sha1, usedforsecurity=False),
    "md5": partial(hashlib.md5, usedforsecurity=False),
    "crc32": _Crc32,
    "xxh3-128": xxhash.xxh3_128,
}


class _Hashed:
    """A parcel that is streamed, and whose bytes are hashed on their way."""

    held: memoryview | None = None

    def __init__(self, parcel: Parcel, updates: tuple[Callable[[memoryview], None], ...]) -> None:
        self.path, self.facts = parcel.path, parcel.facts
        self.load, self.close = parcel.load, parcel.close
        self._readinto, self._updates = parcel.readinto, updates

    def readinto(self, buffer: memoryview) -> int:
        """Read once."""
        count = self._readinto(buffer)
        if count:
            block = buffer[:count]
            for update in self._updates:
                update(block)
        return count


def hashed(
    parcel: Parcel, algorithms: Iterable[str], running: Mapping[str, Hash] = MappingProxyType({})
) -> tuple[Parcel, Callable[[], dict[str, str]]]:
    """Return a parcel to be read once, and what tells its hashes afterwards: by algorithm.

    `running`: those that are there already, and go on.
    """
    hashes = {name: running[name] if name in running else MAKERS[name]() for name in algorithms}

    def tell() -> dict[str, str]:
        return {name: made.hexdigest() for name, made in hashes.items()}

    if parcel.held is None:
        return _Hashed(parcel, tuple(made.update for made in hashes.values())), tell
    for made in hashes.values():
        made.update(parcel.held)
    return parcel, tell


def take(parcel: Parcel, buffer: memoryview, most_bytes: int, made: Hash) -> int:
    """Read as much of a parcel into a hash, unless it ends before; return how many bytes."""
    taken_bytes = 0
    while taken_bytes < most_bytes and (count := parcel.readinto(buffer[: most_bytes - taken_bytes])):
        made.update(buffer[:count])
        taken_bytes += count
    return taken_bytes


def drained(parcel: Parcel, buffer: memoryview, made: Hash) -> str:
    """Read a parcel to its end, and close it; return what its bytes come to."""
    try:
        while count := parcel.readinto(buffer):
            made.update(buffer[:count])
        parcel.close(complete=True)
    finally:
        parcel.close(complete=False)
    return made.hexdigest()
