"""One large object, asked for in pieces by several connections side by side; its bytes are given out in their order.

A connection alone is as fast as its window allows. One thread serves them all: each takes the next piece that nobody
has asked for, and what has come of it waits in memory until it is its turn. All lanes share that memory: where none is
left, an object is read by one connection.
"""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from etl.errors import EtlError, IOFailure, SourceChanged

if TYPE_CHECKING:
    from etl.transfer.s3.channel import Answer, Body
    from etl.transfer.s3.link import Link

FROM_BYTES = 64 << 20  # of what is left to read: with less, the further connections do not pay
BEGINNING_BYTES = 8 << 20  # come by the connection that told the facts, while the others connect
PIECE_BYTES = 4 << 20
MEMORY_BYTES = 32 << 20  # for the pieces of all lanes
_LEAST = 2  # connections, else one alone does as well


class _Memory:
    """Counts the bytes that pieces take. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next
        self._taken_bytes = 0

    def take(self, count_bytes: int) -> bool:
        """Take some bytes; False: there are not so many left."""
        with self._lock:  # critical section: decide whether they fit
            if self._taken_bytes + count_bytes > MEMORY_BYTES:
                return False
            self._taken_bytes += count_bytes
            return True

    def give(self, count_bytes: int) -> None:
        """Give bytes back."""
        with self._lock:
            self._taken_bytes -= count_bytes


_MEMORY = _Memory()


class _Piece:
    """What one connection was asked for, and what has come of it."""

    def __init__(self, link: Link, room: memoryview) -> None:
        self.link = link
        self._whole = room
        self.ask_for(0, 0)

    def ask_for(self, start: int, length: int) -> None:
        """Have it stand for another part of the object."""
        self.start, self.room = start, self._whole[:length]
        self.came = self.given = 0
        self.body: Body | None = None

    @property
    def is_whole(self) -> bool:
        """Has all of it come?"""
        return self.came == len(self.room)

    @property
    def ready(self) -> memoryview:
        """What came, and was not given out yet."""
        return self.room[self.given : self.came]


class Ranges:
    """The rest of one version of an object, from `start` on."""

    def __init__(self, link: Link, key: str, etag: str, start: int, end: int, count: int) -> None:
        self.start = start
        self._link = link
        self._key = key
        self._etag = etag
        self._next = start  # what nobody was asked for yet
        self._end = end
        self._count = self._wanted = count
        self._pieces: deque[_Piece] = deque()  # in the order of the object
        self._is_closed = False
        self._watch = link.watch()

    @classmethod
    def of(cls, link: Link, key: str, etag: str, start: int, end: int) -> Ranges | None:
        """Return the ranges of what is left of an object; None: it pays not, or there is no memory for them now."""
        count = link.options.read_streams
        if count < _LEAST or not etag or end - start < FROM_BYTES or not _MEMORY.take(count * PIECE_BYTES):
            return None
        return cls(link, key, etag, start + BEGINNING_BYTES, end, count)

    def close(self) -> None:
        """End all connections, and give the memory back."""
        if not self._is_closed:
            self._is_closed = True
            for piece in self._pieces:
                piece.link.close()
            self._pieces.clear()
            _MEMORY.give(self._count * PIECE_BYTES)

    def widen(self) -> None:
        """Connect once more, and ask for a piece, unless there are enough. Raises what keeps us from it, once."""
        if len(self._pieces) == self._wanted:
            return
        link = self._link.sibling()
        try:
            link.connect()
            self._ask(_Piece(link, memoryview(bytearray(PIECE_BYTES))))
        except BaseException:
            self._wanted = len(self._pieces)
            raise

    def are_right(self) -> bool:
        """Does the store send what it is asked for, by more than one connection? Waits for its first answer."""
        if len(self._pieces) < _LEAST:
            return False
        try:
            while self._pieces[0].body is None:
                if not self._advance(self._pieces[0]):
                    self._wait()
        except EtlError:
            return False
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer, unless the object ends before."""
        filled = 0
        while filled < len(buffer) and self._pieces:
            for piece in self._pieces:
                self._advance(piece)
            first = self._pieces[0]
            if not (ready := first.ready[: len(buffer) - filled]):
                self._wait()
                continue
            buffer[filled : filled + len(ready)] = ready
            filled += len(ready)
            first.given += len(ready)
            if first.given == len(first.room):
                self._pieces.popleft()
                if self._next < self._end:
                    self._ask(first)
                else:
                    first.link.close()
        return filled

    def _ask(self, piece: _Piece) -> None:
        """Ask for the next piece that nobody was asked for."""
        length = min(PIECE_BYTES, self._end - self._next)
        piece.ask_for(self._next, length)
        wanted = {"range": f"bytes={piece.start}-{piece.start + length - 1}", "if-match": self._etag}
        piece.link.send_ahead("GET", self._key, wanted)
        self._next += length
        self._pieces.append(piece)

    def _advance(self, piece: _Piece) -> bool:
        """Take what has come of a piece, without waiting; say whether anything had."""
        if piece.is_whole:
            return False
        with piece.link.translated():
            if piece.body is None:
                if not piece.link.channel.has_answer:
                    return False
                piece.body = self._checked(piece, piece.link.receive_ahead("GET"))
            moved_bytes = 0
            while not piece.is_whole and (count := piece.body.read_ready(piece.room[piece.came :])):
                piece.came += count
                moved_bytes += count
            self._watch.note(0.0, moved_bytes)
        return True

    def _checked(self, piece: _Piece, answer: Answer) -> Body:
        """Return the body of an answer that is the piece."""
        link, length = piece.link, len(piece.room)
        if answer.status == 412 or (answer.status == 206 and answer.headers.get("etag") != self._etag):
            raise SourceChanged(f"{link.name}:{self._key} changed while it was read", server=link.name)
        if answer.status >= 300:
            raise link.refused(self._key, answer)
        told = answer.headers.get("content-range", "").partition("/")[0]
        if told != f"bytes {piece.start}-{piece.start + length - 1}" or answer.body.left_bytes != length:
            raise IOFailure(f"{link.name}:{self._key}: the store sent another part than asked for", server=link.name)
        return answer.body

    def _wait(self) -> None:
        """Wait until something comes of any piece."""
        poll = select.poll()
        for piece in self._pieces:
            if not piece.is_whole:
                poll.register(piece.link.channel.fileno(), select.POLLIN)
        began = time.monotonic()
        with self._pieces[0].link.translated():
            poll.poll(self._watch.left() * 1000)
            self._watch.note(time.monotonic() - began, 0)
