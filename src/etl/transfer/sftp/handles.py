"""Open files of a session: how many there may be, and which handle the server will give next.

OpenSSH gives the lowest number that is free. Where a server was seen to give the same handle again, a whole small file
goes in one write with its OPEN, and waits for nothing. No request can meet another file so: what is foreseen is used
while no other handle is open or being closed, and nothing counts before the OPEN has given that very handle.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from etl.transfer.sftp.packets import CLOSE, OPEN, U32, string

if TYPE_CHECKING:
    from etl.transfer.sftp.packets import Answer
    from etl.transfer.sftp.wire import Pending, Wire

_NO_ATTRIBUTES = U32.pack(0)


class Handles:
    """The open files of one session. `at_once`: open or being closed, at most; 1: nothing is foreseen."""

    def __init__(self, wire: Wire, at_once: int) -> None:
        self._wire = wire
        self._at_once = at_once
        self._open: set[bytes] = set()
        self._closing: deque[Pending] = deque()
        self._last: bytes | None = None  # given last
        self._repeats = False  # it was the same as the one before
        self._may_foresee = at_once > 1

    def open(self, name: bytes, flags: int) -> Pending:
        """Queue an OPEN of a name as the wire has it; its answer is told to `opened`."""
        while self._closing and len(self._open) + len(self._closing) >= self._at_once:
            self._closing.popleft().result()
        return self._wire.ask(OPEN, name + U32.pack(flags) + _NO_ATTRIBUTES)

    def opened(self, answer: Answer, *, but_closed: bytes | None = None) -> bytes | None:
        """Return the handle that an OPEN, or OPENDIR, gave; None: it was refused.

        `but_closed`: the handle that was foreseen, whose CLOSE left with the OPEN. Another one is closed now.
        """
        handle = answer.handle
        if handle is not None:
            if but_closed is None:
                self._open.add(handle)
            elif handle != but_closed:
                self.misjudged()
                self.close(handle)
            self._repeats = handle == self._last
            self._last = handle
        return handle

    def close(self, handle: bytes) -> Pending:
        """Queue a CLOSE. Whatever it will say, the handle is no more."""
        self._open.discard(handle)
        pending = self._wire.ask(CLOSE, string(handle))
        self._closing.append(pending)
        return pending

    def misjudged(self) -> None:
        """Foresee nothing more."""
        self._may_foresee = False

    def foreseen(self) -> bytes | None:
        """Return the handle that the next OPEN will give if it gives one; None: that is not known."""
        if not self._may_foresee or not self._repeats or self._open:
            return None
        while self._closing:
            self._closing.popleft().result()
        return self._last
