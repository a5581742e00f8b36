"""Going on with a file in the middle: what a session must be able to do for that, and the proof that it does it right.

The seam for protocols; which files are gone on with, and when, is for `resuming.py` to say. Knows no job.
"""

from __future__ import annotations

import io
import os
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etl.errors import EtlError, IOFailure, SizeMismatch
from etl.models.checksum import OWN, Checksum
from etl.models.task import Facts
from etl.transfer import hashing
from etl.transfer.hashing import MAKERS
from etl.transfer.streaming import MemoryParcel, Streaming, read_full

if TYPE_CHECKING:
    from etl.transfer.base import Parcel, Stored

BLOCK_BYTES = 1 << 20
_TAIL_BLOCKS = 3  # at most, from the block before the offset to the end of what is there
_TRIAL_BYTES = 32 << 10  # a third of the file that a server is tried with
_STILL_SECONDS = 0.25  # without growing: nobody writes what a server had received before the cut any more
_LOOKS = 40  # until then


@dataclass(frozen=True)
class Foothold:
    """Where a partial file can be gone on with: at `offset`; `checksum` is that of the `before_bytes` before it."""

    offset: int
    before_bytes: int
    checksum: Checksum

    def proves(self, parcel: Parcel, buffer: memoryview) -> bool:
        """Take the `before_bytes` that end at `offset` from a parcel of the source: are they the same?"""
        made = MAKERS[self.checksum.algorithm]()
        is_whole = hashing.take(parcel, buffer, self.before_bytes, made) == self.before_bytes
        return is_whole and made.hexdigest() == self.checksum.value


class Resumable(Streaming):
    """A session that can read and write files from the middle on.

    A protocol whose partial files are no files (the parts of an upload to a store) has a `take_over` of its own.
    """

    is_near = False  # do its files come without a network, so that reading one again costs little?
    goes_on: bool | None = None  # does the server write files on as it should? None: not known yet

    @property
    def reads_on(self) -> bool:
        """Does the server send files from the middle on, as far as is known? Asks nothing."""
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
        The bytes sent that it returns include those before `offset`. A refusal to go on makes `goes_on` false.
        """

    def is_trusted(self, partial: str, buffer: memoryview) -> bool:
        """Find out, once, with a small file of that name whether the server writes files on as it should.

        Some ignore the offset, some append, some fill with zeros; a size alone does not tell.
        """
        if self.goes_on is None:
            old, new, half = os.urandom(3 * _TRIAL_BYTES), os.urandom(_TRIAL_BYTES), _TRIAL_BYTES // 2
            right = old[half:_TRIAL_BYTES] + new
            self.write_on(partial, _parcel(old), buffer, 0).require_stored()
            try:
                self.write_on(partial, _parcel(new), buffer, _TRIAL_BYTES).require_stored()
                self.goes_on = self._tail(partial, half) in {right, right + old[2 * _TRIAL_BYTES :]}
            except EtlError as error:
                if self.goes_on is None:
                    if isinstance(error, (IOFailure, SizeMismatch)):  # the next run begins anew
                        self.goes_on = False
                    raise
            self.remove(partial)
        return self.goes_on is True

    def take_over(self, left: str, partial: str, size_bytes: int) -> Foothold | None:
        """Give what an earlier run left the name `partial`; say where to go on with it. None: nowhere, it is no use.

        What a server had not written to its disk when it crashed may be zeros: the last whole block is sent again.
        """
        self.dispose(left, partial).result()
        stored_bytes = self._size_at_rest(partial)
        offset = stored_bytes // BLOCK_BYTES * BLOCK_BYTES - BLOCK_BYTES
        if not BLOCK_BYTES <= offset < stored_bytes <= size_bytes:
            return None
        tail = self._tail(partial, offset - BLOCK_BYTES)
        if tail is None or len(tail) < BLOCK_BYTES:
            return None
        made = MAKERS[OWN]()
        made.update(memoryview(tail)[:BLOCK_BYTES])
        return Foothold(offset, BLOCK_BYTES, Checksum(OWN, made.hexdigest()))

    def _size_at_rest(self, path: str) -> int:
        """Return the size of a file once it does not grow any more; 0: it does all the time, or has none."""
        before = None
        for _ in range(_LOOKS):
            there = self.look(path)
            if there is None or there.size_bytes is None:
                return 0
            if there.size_bytes == before:
                return before
            before = there.size_bytes
            time.sleep(_STILL_SECONDS)
        return 0

    def _tail(self, path: str, offset: int) -> bytes | None:
        """Return what is there of a file from `offset` on, which is not much; None: it cannot be had."""
        parcel = self.read_on(path, offset)
        if parcel is None:
            return None
        room = memoryview(bytearray(_TAIL_BLOCKS * BLOCK_BYTES))
        count = read_full(parcel, room)
        parcel.close(complete=True)
        return bytes(room[:count])


def _parcel(content: bytes) -> MemoryParcel:
    return MemoryParcel("", Facts(None, None), io.BytesIO(content))
