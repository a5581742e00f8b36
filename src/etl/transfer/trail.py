"""The hash of a file that may be cut: what it was at the places where a copy can go on. Knows no server."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from etl.models.checksum import OWN
from etl.transfer.hashing import MAKERS

if TYPE_CHECKING:
    from etl.transfer.hashing import Hash

MARK_BYTES = 1 << 20  # between two places; copies go on at whole ones
_MARKS_KEPT = 256  # more than a network and a server hold that was sent and not stored


class Trail:
    """A hash that runs over one version of a file, and remembers its last places."""

    def __init__(self, version: str) -> None:
        self.version = version
        self._hash = MAKERS[OWN]()
        self._passed_bytes = 0
        self._marks: deque[tuple[int, Hash]] = deque(maxlen=_MARKS_KEPT)

    def update(self, block: memoryview, /) -> None:
        """Take some bytes."""
        while block:
            piece = block[: MARK_BYTES - self._passed_bytes % MARK_BYTES]
            block = block[len(piece) :]
            self._hash.update(piece)
            self._passed_bytes += len(piece)
            if self._passed_bytes % MARK_BYTES == 0:
                self._marks.append((self._passed_bytes, self._hash.copy()))

    def hexdigest(self) -> str:
        """Return what all bytes so far come to."""
        return self._hash.hexdigest()

    def copy(self) -> Hash:
        """Return the hash as it is now."""
        return self._hash.copy()

    def go_back(self, offset: int) -> bool:
        """Forget what was taken behind a place; False: what the hash was there is not known."""
        while self._marks and self._marks[-1][0] > offset:
            self._marks.pop()
        if not self._marks or self._marks[-1][0] != offset:
            return False
        self._passed_bytes, self._hash = offset, self._marks[-1][1].copy()
        return True
