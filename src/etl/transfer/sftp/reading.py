"""Files on their way out of an SFTP server: large ones as READs asked ahead, small ones in one round trip."""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING

from etl.models.task import Facts
from etl.transfer.sftp.link import AT_ONCE_BYTES
from etl.transfer.sftp.packets import DATA, END_OF_FILE, FOR_READING, FSTAT, READ, STAT, STATUS, string
from etl.transfer.sftp.refusals import no_file, plain_error, why_not_read

if TYPE_CHECKING:
    from etl.transfer.sftp.link import Link
    from etl.transfer.sftp.wire import Pending

_UNKNOWN = Facts(None, None)


def open_file(link: Link, path: str, offset: int = 0) -> SFTPParcel | HeldParcel:
    """Open a file for reading, from `offset` on. Raises FileMissing, NotAFile, PermissionRefused."""
    whole = link.whole(path)
    small = link.expected_bytes <= AT_ONCE_BYTES and link.reads_at_once and not offset
    handle = link.handles.foreseen() if small else None
    if handle is not None and (held := _read_at_once(link, path, whole, handle)) is not None:
        return held
    opened, asked = link.handles.open(link.wire_name(whole), FOR_READING), link.ask(STAT, whole)
    handle = link.handles.opened(opened.result())
    seen = asked.result()
    if handle is None:
        raise why_not_read(link, whole, opened.result(), seen)
    found = seen.attributes or link.ask_handle(FSTAT, handle).result().attributes
    if found is not None and not found.is_file:  # OpenSSH opens folders, too
        link.handles.close(handle)
        raise no_file(link, whole, found)
    parcel = SFTPParcel(link, path, handle, _UNKNOWN if found is None else found.facts, offset)
    link.expected_bytes = parcel.facts.size_bytes or 0
    return parcel


def _read_at_once(link: Link, path: str, whole: str, handle: bytes) -> HeldParcel | None:
    """Send all that reads a small file in one write; None when it is not that small, or the handle is another one."""
    block = link.read_block
    opened, before = link.handles.open(link.wire_name(whole), FOR_READING), link.ask_handle(FSTAT, handle)
    offsets = range(0, max(1, link.expected_bytes), block)
    parts = [_ask_to_read(link, handle, offset, block) for offset in offsets]
    after, closed = link.ask_handle(FSTAT, handle), link.handles.close(handle)
    given = link.handles.opened(opened.result(), but_closed=handle)
    if given is None:
        raise why_not_read(link, whole, opened.result())
    found = before.result().attributes
    if given != handle:
        return None
    if found is None or found.size_bytes is None:
        link.reads_at_once = False
        return None
    if not found.is_file:
        raise no_file(link, whole, found)
    link.expected_bytes = size_bytes = found.size_bytes
    if size_bytes > block * len(parts):
        return None
    content = memoryview(bytearray(size_bytes))
    for offset, part in zip(offsets, parts, strict=True):
        if offset >= size_bytes:
            break
        place = content[offset : offset + block]
        count = _receive(part, place)
        if count < len(place):  # it was cut short, by somebody or by the server: the other way finds out
            link.reads_at_once = False
            return None
    again = after.result().attributes
    closed.result()
    return HeldParcel(path, found.facts, content, is_same=again is not None and again.facts == found.facts)


def _ask_to_read(link: Link, handle: bytes, offset: int, count: int) -> Pending:
    return link.wire.ask(READ, string(handle) + struct.pack(">QI", offset, count))


def _receive(part: Pending, place: memoryview) -> int:
    """Have the bytes of one READ in a place; return how many came, at most as many as fit."""
    if part.answer is None:
        part.place = place
    answer = part.result()
    if answer.placed_bytes is not None:
        return answer.placed_bytes
    if answer.kind == STATUS:
        return 0
    content = answer.expect(DATA).string()[: len(place)]
    place[: len(content)] = content
    return len(content)


class HeldParcel:
    """A small file that came whole, with what its server said of it before and afterwards."""

    def __init__(self, path: str, facts: Facts, content: memoryview, *, is_same: bool) -> None:
        self.path = path
        self.facts = facts
        self.is_same = is_same
        self.held: memoryview | None = None
        self._content = self._left = content

    def load(self, limit_bytes: int) -> bool:
        """Say whether it counts as small."""
        if len(self._content) <= limit_bytes:
            self.held = self._content
        return self.held is not None

    def readinto(self, buffer: memoryview) -> int:
        """Give the next bytes."""
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self, *, complete: bool) -> None:
        """Nothing is open at the server."""


class _Part:
    """A READ that was asked: `count` bytes from `offset` on."""

    __slots__ = ("count", "offset", "pending")

    def __init__(self, link: Link, handle: bytes, offset: int, count: int) -> None:
        self.offset, self.count = offset, count
        self.pending = _ask_to_read(link, handle, offset, count)


class SFTPParcel:
    """An open file, its next blocks asked for ahead."""

    def __init__(self, link: Link, path: str, handle: bytes, facts: Facts, offset: int = 0) -> None:
        self.path = path
        self.facts = facts
        self.handle = handle
        self.held: memoryview | None = None
        self._link = link
        self._watch = link.watch()
        self._parts: deque[_Part] = deque()
        self._asked_bytes = offset  # of the file, from its start
        self._asked_at_once = 0  # bytes that are on their way
        self._rest = memoryview(b"")  # of a block that came, or of what is held: not given out yet
        self._at_end = False
        self._is_closed = False
        self._ask_ahead()
        link.wire.push()

    def load(self, limit_bytes: int) -> bool:
        """Take the whole file into memory if it is known to be small enough."""
        size_bytes = self.facts.size_bytes
        if self.held is not None or size_bytes is None or size_bytes > limit_bytes:
            return self.held is not None
        room, filled = memoryview(bytearray(size_bytes)), 0
        while filled < size_bytes and (count := self._receive(room[filled:])):
            filled += count
        self.held = self._rest = room[:filled]
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Give what has come, wait only for the first of it; never more than the file's size."""
        if self._rest or self.held is not None:
            return self._give(buffer)
        filled = count = self._receive(buffer)
        while count and len(buffer) - filled >= self._link.read_block and self._link.wire.has_more():
            count = self._receive(buffer[filled:])
            filled += count
        return filled

    def close(self, *, complete: bool) -> None:  # noqa: ARG002 - the contract's argument; a CLOSE says nothing of reads
        """Close the file at the server; what is still on its way comes, and is dropped."""
        if not self._is_closed:
            self._is_closed = True
            self._parts.clear()
            if self._link.wire.lost is None:
                self._link.handles.close(self.handle)

    def _ask_ahead(self) -> None:
        size_bytes, block = self.facts.size_bytes, self._link.read_block
        while not self._at_end and self._asked_at_once + block <= max(self._link.window_bytes, block):
            count = block if size_bytes is None else min(block, size_bytes - self._asked_bytes)
            if count <= 0:
                return
            self._parts.append(_Part(self._link, self.handle, self._asked_bytes, count))
            self._asked_bytes += count
            self._asked_at_once += count

    def _receive(self, buffer: memoryview) -> int:
        """Receive the next block, of which as much goes into the buffer as there is room; 0 at the end."""
        if self._is_closed or self._at_end or not self._parts or not buffer:
            return self._give(buffer)
        part = self._parts.popleft()
        if len(buffer) >= part.count and part.pending.answer is None:
            part.pending.place = buffer[: part.count]
        answer = part.pending.result(self._watch)
        self._asked_at_once -= part.count
        count, content = answer.placed_bytes, b""
        if answer.kind == STATUS:
            if answer.code != END_OF_FILE:
                raise plain_error(self._link, self._link.whole(self.path), answer)
        elif count is None:
            content = answer.expect(DATA).string()[: part.count]
            count = len(content)
        if not count:  # earlier than its size said, or its size is not known
            self._at_end = True
            return 0
        if count < part.count:  # a short read: servers may give less than was asked for
            self._parts.appendleft(_Part(self._link, self.handle, part.offset + count, part.count - count))
            self._asked_at_once += part.count - count
        self._ask_ahead()
        self._link.wire.push()
        if not content:
            return count
        self._rest = memoryview(content)
        return self._give(buffer)

    def _give(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
