"""One large object, asked for in pieces by several connections side by side; its bytes are given out in their order.

A connection alone is as fast as its window allows. One thread serves them all: each takes the next piece that nobody
has asked for, and what has come of it waits in memory until it is its turn. All lanes share that memory: where none is
left, an object is read by one connection.
"""

from __future__ import annotations

import mmap
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from etl.errors import EtlError, IOFailure, ServerBusy, SessionFault, SourceChanged
from etl.transfer.s3 import refusals

if TYPE_CHECKING:
    from etl.transfer.s3.channel import Answer, Body
    from etl.transfer.s3.link import Link

FROM_BYTES = 64 << 20  # of what is left to read: with less, the further connections do not pay
BEGINNING_BYTES = 8 << 20  # come by the connection that told the facts, while the others connect
CALM_BYTES = 256 << 20  # of one that was cut before: what is asked for ahead is lost by the next cut
PIECE_BYTES = 8 << 20  # the larger, the fewer waits for an answer
ROOM_BYTES = 3 << 19  # of a piece whose turn it is not; more of it waits in the kernel
MEMORY_BYTES = 15 << 20  # for the pieces of all lanes
_RENEWED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"}  # codes: the next request has other keys
_LEAST = 2  # connections, else one alone does as well


class _Memory:
    """Counts the rooms that are taken. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next
        self._taken = 0

    def take(self, count: int) -> int:
        """Take at most so many rooms, and no fewer than two connections need; return how many, 0: none is left."""
        with self._lock:  # critical section: decide how many there are
            count = min(count, MEMORY_BYTES // ROOM_BYTES - self._taken)
            if count < _LEAST:
                return 0
            self._taken += count
            return count

    def give(self, count: int) -> None:
        """Give rooms back."""
        with self._lock:
            self._taken -= count


_MEMORY = _Memory()


class _Piece:
    """A part of the object that one connection was asked for."""

    def __init__(self, lane: _Lane, start: int, length: int) -> None:
        self.lane = lane
        self.start, self.length = start, length
        self.came = self.given = 0
        self.body: Body | None = None

    @property
    def is_whole(self) -> bool:
        """Has all of it come?"""
        return self.came == self.length


class _Lane:
    """One connection, and room for the beginning of its piece. Once that is whole, the next one is asked for."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.room = memoryview(mmap.mmap(-1, ROOM_BYTES))  # no heap keeps it once it is given back
        self.asked: deque[_Piece] = deque()  # a second one waits in the kernel, where the first is not longer than room

    def is_full(self, first: _Piece) -> bool:
        """Is there no room for more, unless it is the turn of its piece, `first`?"""
        return (
            not self.asked
            or self.asked[0].is_whole
            or (self.asked[0] is not first and self.asked[0].came == ROOM_BYTES)
        )


class Ranges:
    """The rest of one version of an object, from `start` on."""

    def __init__(self, link: Link, key: str, version: tuple[str, str], start: int, end: int, count: int) -> None:
        self.start = start
        self.step_bytes = max(1, BEGINNING_BYTES // (2 * count))  # between two connections that are made
        self._link = link
        self._key = key
        self._told_by, self._version = version
        self._next = start  # what nobody was asked for yet
        self._end = end
        self._count = self._wanted = count
        self._lanes: list[_Lane] = []
        self._pieces: deque[_Piece] = deque()  # of all lanes, in the order of the object
        self._is_closed = False
        self._watch = link.watch()

    @classmethod
    def of(cls, link: Link, key: str, version: tuple[str, str] | None, start: int, end: int) -> Ranges | None:
        """Return the ranges of what is left of an object; None: it pays not, or there is no memory for them now.

        `version`: a header that tells it from others, and its value; None: nothing does, so it is read in one.
        """
        if version is None or end - start < FROM_BYTES:
            return None
        count = _MEMORY.take(min(link.options.read_streams, link.store.read_streams))
        return None if not count else cls(link, key, version, start + BEGINNING_BYTES, end, count)

    def close(self) -> None:
        """End all connections, and give the memory back."""
        if not self._is_closed:
            self._is_closed = True
            for lane in self._lanes:
                lane.link.close()
            self._lanes.clear()
            self._pieces.clear()
            _MEMORY.give(self._count)

    def widen(self) -> None:
        """Connect once more, and ask for a piece, unless there are enough. Raises what keeps us from it, once."""
        if len(self._lanes) == self._wanted:
            return
        link = self._link.sibling()
        try:
            link.connect()
            lane = _Lane(link)
            self._ask(lane)
        except BaseException as error:
            self._wanted = len(self._lanes)
            self._remember(error, self._wanted)
            link.close()
            raise
        self._lanes.append(lane)

    def are_right(self) -> bool:
        """Does the store send what it is asked for, by more than one connection? Waits for its first answer."""
        if len(self._lanes) < _LEAST:
            return False
        first = self._pieces[0]
        try:
            while first.body is None:
                if not self._receive(first, first.lane.room):
                    self._wait()
        except EtlError as error:
            self._remember(error, 1)
            return False
        return True

    def _remember(self, error: BaseException, count: int) -> None:
        """Note how many connections the store serves at once, so that the next object need not wait for more."""
        is_of_store = isinstance(error, EtlError) and not isinstance(error, (ServerBusy, SessionFault, SourceChanged))
        if is_of_store and not self._link.sockets.is_cut:
            self._link.store.read_streams = max(1, count)

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer, unless the object ends before."""
        filled = 0
        while filled < len(buffer) and self._pieces:
            for lane in self._lanes:
                self._advance(lane)
            first = self._pieces[0]
            if first.given == first.came:  # nothing of it waits: it can go where it is wanted
                direct = self._receive(first, buffer[filled:])
                first.given += direct
                filled += direct
                if not direct:
                    self._wait()
            else:
                ready = first.lane.room[first.given : first.came][: len(buffer) - filled]
                buffer[filled : filled + len(ready)] = ready
                first.given += len(ready)
                filled += len(ready)
            if first.given == first.length:
                self._pieces.popleft()
                first.lane.asked.popleft()
        return filled

    def _ask(self, lane: _Lane) -> None:
        """Ask for the next piece that nobody was asked for, unless there is none."""
        if self._next == self._end:
            return
        piece = _Piece(lane, self._next, min(PIECE_BYTES, self._end - self._next))
        wanted = {"range": f"bytes={piece.start}-{piece.start + piece.length - 1}"}
        if self._told_by == "etag":  # versitygw compares If-Unmodified-Since with fractions of a second
            wanted["if-match"] = self._version
        lane.link.send_ahead("GET", self._key, wanted)
        self._next += piece.length
        lane.asked.append(piece)
        self._pieces.append(piece)

    def _advance(self, lane: _Lane) -> None:
        """Take what has come for a lane into its room, and have it asked for more."""
        if lane.asked and lane.asked[0] is not self._pieces[0]:
            self._receive(lane.asked[0], lane.room[lane.asked[0].came :])
        if not lane.asked or (len(lane.asked) == 1 and lane.asked[0].is_whole):
            self._ask(lane)

    def _receive(self, piece: _Piece, room: memoryview) -> int:
        """Take what has come of a piece, without waiting; return how many bytes."""
        link, moved_bytes = piece.lane.link, 0
        with link.translated():
            if piece.body is None:
                if piece.is_whole or not link.channel.has_answer:
                    return 0
                piece.body = self._checked(piece, link.receive_ahead("GET"))
            room = room[: piece.length - piece.came]
            while moved_bytes < len(room) and (count := piece.body.read_ready(room[moved_bytes:])):
                moved_bytes += count
            self._watch.note(0.0, moved_bytes)
        piece.came += moved_bytes
        return moved_bytes

    def _checked(self, piece: _Piece, answer: Answer) -> Body:
        """Return the body of an answer that is the piece."""
        link, length = piece.lane.link, piece.length
        told, _, total = answer.headers.get("content-range", "").partition("/")
        is_same = answer.headers.get(self._told_by) == self._version and total in {str(self._end), "*", ""}
        if answer.status == 412 or (answer.status == 206 and not is_same):
            raise SourceChanged(f"{link.name}:{self._key} changed while it was read", server=link.name)
        if answer.status >= 300:
            error = link.refused(self._key, answer)
            if refusals.code_of(answer) in _RENEWED:
                raise SessionFault(str(error), server=link.name) from error
            raise error
        if told != f"bytes {piece.start}-{piece.start + length - 1}" or answer.body.left_bytes != length:
            raise IOFailure(f"{link.name}:{self._key}: the store sent another part than asked for", server=link.name)
        return answer.body

    def _wait(self) -> None:
        """Wait until something comes of any piece."""
        poll = select.poll()
        for lane in self._lanes:
            if not lane.is_full(self._pieces[0]):
                poll.register(lane.link.channel.fileno(), select.POLLIN)
        began = time.monotonic()
        with self._pieces[0].lane.link.translated():  # the main link is still needed, should this one stand still
            poll.poll(self._watch.left() * 1000)
            self._watch.note(time.monotonic() - began, 0)
