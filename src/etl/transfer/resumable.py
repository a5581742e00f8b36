"""Going on with a file in the middle: what a session must be able to do for that, and the proof that it does it right.

The seam for protocols; which files are gone on with, and when, is for `resuming.py` to say. Knows no job.
"""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etl.errors import EtlError
from etl.models.task import Facts
from etl.transfer.streaming import MemoryParcel, Streaming

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.transfer.base import Parcel, Stored

BLOCK_BYTES = 1 << 20
_MARK_BYTES = 64 << 10
_TAIL_BLOCKS = 3  # at most, from the block before the offset to the end of what is there


@dataclass(frozen=True)
class Foothold:
    """Where a partial file can be gone on with: at `offset`.

    `proves` is given the `before_bytes` bytes of the source that end there: are those in the partial file the same?
    """

    offset: int
    before_bytes: int
    proves: Callable[[memoryview], bool]


class Resumable(Streaming):
    """A session that can read and write files from the middle on.

    A protocol whose partial files are no files (the parts of an upload to a store) has a `take_over` of its own.
    """

    @property
    def reads_on(self) -> bool:
        """Does the server send files from the middle on, as far as is known? Asks nothing."""
        return True

    @property
    def writes_on(self) -> bool:
        """Does it take them so?"""
        return True

    @abstractmethod
    def read_on(self, path: str, offset: int) -> Parcel | None:
        """Open a file for reading from `offset` on; its facts are those of the whole. None: the server refuses.

        Where a protocol can ask for that, the bytes are those of the file that the facts are of.
        """

    @abstractmethod
    def write_on(self, partial: str, parcel: Parcel, buffer: memoryview, offset: int) -> Stored:
        """Write a parcel, which begins at `offset` of its file, there into a partial file; the bytes before it stay.

        At 0 the file is made, as by `write`. Whatever goes wrong, what is there of the file is left to the caller.
        The bytes sent that it returns include those before `offset`. A refusal to go on makes `writes_on` false.
        """

    def take_over(self, left: str, partial: str, size_bytes: int, buffer: memoryview) -> Foothold | None:
        """Give what an earlier run left the name `partial`; say where to go on with it. None: nowhere, it is no use.

        What a server had not written to its disk when it crashed may be zeros: the last whole block is sent again. Its
        place is used before that: a mark written there must be read there, behind bytes that nobody touched. So it is
        found out which server ignores offsets, appends, or fills with zeros.
        """
        self.dispose(left, partial).result()
        there = self.look(partial)
        stored_bytes = there.size_bytes if there is not None else None
        offset = (stored_bytes or 0) // BLOCK_BYTES * BLOCK_BYTES - BLOCK_BYTES
        if stored_bytes is None or offset < BLOCK_BYTES or stored_bytes > size_bytes:
            return None
        mark = os.urandom(_MARK_BYTES)
        try:
            marked = MemoryParcel(partial, Facts(None, None), io.BytesIO(mark))
            self.write_on(partial, marked, buffer, offset).require_stored()
        except EtlError:
            if self.writes_on:
                raise
            return None
        tail = self._tail(partial, offset - BLOCK_BYTES)
        if tail is None or tail[BLOCK_BYTES : BLOCK_BYTES + _MARK_BYTES] != mark:
            return None
        kept = bytes(tail[:BLOCK_BYTES])
        return Foothold(offset, BLOCK_BYTES, lambda before: bytes(before) == kept)

    def _tail(self, path: str, offset: int) -> memoryview | None:
        """Return what is there of a file from `offset` on, which is not much; None: it cannot be had."""
        parcel = self.read_on(path, offset)
        if parcel is None:
            return None
        room = memoryview(bytearray(_TAIL_BLOCKS * BLOCK_BYTES))
        count = read_full(parcel, room)
        parcel.close(complete=True)
        return room[:count]


def read_full(parcel: Parcel, room: memoryview) -> int:
    """Read until there is no more room, or nothing more comes; return how many bytes."""
    filled = 0
    while filled < len(room) and (count := parcel.readinto(room[filled:])):
        filled += count
    return filled
