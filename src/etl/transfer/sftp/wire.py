"""Requests and their answers over one stream of bytes: requests have numbers, answers come in any order.

Knows no process, no path, no file. One thread at a time, but for what `Channel.cut` does.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from etl.errors import ConnectionLost, EtlError, IOFailure, TransferTimeout
from etl.transfer.sftp.packets import DATA, INIT, U32, VERSION, VERSION_ANSWER, WRITE, Answer, MalformedError, string

if TYPE_CHECKING:
    from etl.transfer.watch import Watch

_HEAD = struct.Struct(">IBI")  # length, kind, number
_KIND_AND_NUMBER_BYTES = 5
_INBOX_BYTES = 64 * 1024
_LONGEST_PACKET_BYTES = 4 << 20  # a READ is never asked for more; a list of names may be long
_CORK_BYTES = 512 * 1024  # of requests that wait for company


class Channel(Protocol):
    """The stream."""

    def send(self, parts: list[bytes | memoryview], limit: float) -> None:
        """Send all of it; a byte must leave within `limit` seconds. Raises TimeoutError, OSError."""
        ...

    def receive(self, place: memoryview, limit: float) -> int:
        """Receive at least one byte within `limit` seconds; 0 at the end. Raises TimeoutError, OSError."""
        ...

    def has_input(self) -> bool:
        """Is there something to receive, or the end?"""
        ...

    def why_ended(self) -> str:
        """Return what is known of why the stream ended."""
        ...


class Pending:
    """The answer to one request: a `Promise[Answer]`. A refusal is an answer too, and is returned."""

    __slots__ = ("_tell", "_wire", "answer", "error", "place")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._tell: Callable[[], None] | None = None
        self.answer: Answer | None = None
        self.error: EtlError | None = None
        self.place: memoryview | None = None  # where DATA goes, if it fits

    def result(self, watch: Watch | None = None) -> Answer:
        """Send what is corked, read answers up to this one. `watch` limits the waiting, else a reply's limit does."""
        if self.answer is None:
            if self.error is None:
                self._wire.settle(self, watch)
            if self.error is not None:
                raise self.error
        assert self.answer is not None  # noqa: S101 - settle() returns only then, or there is an error
        return self.answer

    def then(self, tell: Callable[[], None]) -> None:
        """Have `tell` called once it is answered, or never will be."""
        if self.answer is None and self.error is None:
            self._tell = tell
        else:
            tell()

    def settle(self, answer: Answer | None, error: EtlError | None = None) -> None:
        """Take the answer, or why there is none."""
        self.answer, self.error, self.place = answer, error, None
        if self._tell is not None:
            self._tell()


class Wire:
    """One SFTP conversation."""

    def __init__(self, channel: Channel, server: str, reply_limit: float) -> None:
        self.server = server  # for errors
        self.lost: EtlError | None = None
        self._channel = channel
        self._reply_limit = reply_limit
        self._number = 0
        self._due: dict[int, Pending] = {}
        self._corked: list[bytes | memoryview] = []
        self._corked_bytes = 0
        self._inbox = memoryview(bytearray(_INBOX_BYTES))
        self._start = self._end = 0  # of what the inbox holds

    # --- requests -------------------------------------------------------------------------------------------

    def ask(self, kind: int, body: bytes) -> Pending:
        """Queue a request; it leaves with the next `push` or the first wait."""
        pending, head = self._number_one(kind, len(body))
        self._cork(head, body)
        return pending

    def ask_to_write(self, handle: bytes, offset: int, block: memoryview) -> Pending:
        """Queue a WRITE; `block` may be used again after the next `push`."""
        before = string(handle) + struct.pack(">QI", offset, len(block))
        pending, head = self._number_one(WRITE, len(before) + len(block))
        self._cork(head, before, block)
        return pending

    def push(self) -> None:
        """Send what is corked."""
        if not self._corked:
            return
        parts, self._corked, self._corked_bytes = self._corked, [], 0
        try:
            self._channel.send(parts, self._reply_limit)
        except (TimeoutError, OSError) as error:
            raise self._broken(error) from error

    def greet(self, limit: float) -> dict[bytes, bytes]:
        """Agree on the version; return the server's extensions. Raises what the channel raises, and MalformedError."""
        self._channel.send([U32.pack(5) + bytes([INIT]) + U32.pack(VERSION)], limit)
        deadline = time.monotonic() + limit

        def take(count: int) -> bytes:
            while self._end - self._start < count:
                self._receive_more(deadline - time.monotonic())
            self._start += count
            return bytes(self._inbox[self._start - count : self._start])

        head = take(5)
        length, kind = struct.unpack(">IB", head)
        if kind != VERSION_ANSWER or not 5 <= length <= _INBOX_BYTES // 2:
            raise MalformedError(f"the server greets with {head + bytes(self._inbox[self._start : self._end])[:60]!r}")
        answer = Answer(kind, take(length - 1)).expect(VERSION_ANSWER)
        answer.u32()
        extensions = {}
        while not answer.is_at_end:
            name = answer.string()
            extensions[name] = answer.string()
        return extensions

    # --- answers --------------------------------------------------------------------------------------------

    def settle(self, pending: Pending, watch: Watch | None = None) -> None:
        """Read answers up to that of `pending`."""
        self.push()
        while pending.answer is None and pending.error is None:
            self._read_one(watch)

    def absorb(self) -> None:
        """Read the answers that have come, without waiting for more to come."""
        while self._due and (self._end > self._start or self._channel.has_input()):
            self._read_one()

    def flush(self) -> None:
        """Send what is corked, read every answer that is due."""
        self.push()
        while self._due:
            self._read_one()

    def has_more(self) -> bool:
        """Has something come that was not read?"""
        return self._end > self._start or self._channel.has_input()

    def abandon(self, error: EtlError) -> None:
        """End the conversation: everything that is due fails of `error`, and all that is asked later."""
        if self.lost is None:
            self.lost = error
        due, self._due = self._due, {}
        for pending in due.values():
            pending.settle(None, self.lost)

    # --- parts ----------------------------------------------------------------------------------------------

    def _number_one(self, kind: int, body_bytes: int) -> tuple[Pending, bytes]:
        if self.lost is not None:
            raise self.lost
        self._number = self._number + 1 & 0xFFFFFFFF
        pending = self._due[self._number] = Pending(self)
        return pending, _HEAD.pack(_KIND_AND_NUMBER_BYTES + body_bytes, kind, self._number)

    def _cork(self, *parts: bytes | memoryview) -> None:
        self._corked += parts
        self._corked_bytes += sum(map(len, parts))
        if self._corked_bytes > _CORK_BYTES:
            self.push()

    def _read_one(self, watch: Watch | None = None) -> None:
        """Read one answer and give it to whoever asked."""
        try:
            self._buffer(_HEAD.size, watch)
            length, kind, number = _HEAD.unpack_from(self._inbox, self._start)
            pending = self._due.pop(number, None)
            left = length - _KIND_AND_NUMBER_BYTES
            if pending is None or not 0 <= left <= _LONGEST_PACKET_BYTES:
                raise MalformedError(f"an answer of {length} bytes to request {number}, which was not asked")
            self._start += _HEAD.size
            try:
                answer = self._read_body(kind, left, pending.place, watch)
            except BaseException:
                self._due[number] = pending  # it fails with all the others
                raise
        except (TimeoutError, OSError, MalformedError) as error:
            raise self._broken(error) from error
        pending.settle(answer)

    def _read_body(self, kind: int, left: int, place: memoryview | None, watch: Watch | None) -> Answer:
        if kind == DATA and place is not None and left >= U32.size:
            self._buffer(U32.size, watch)
            (count,) = U32.unpack_from(self._inbox, self._start)
            if count <= min(len(place), left - U32.size):
                self._start += U32.size
                self._take(place[:count], watch)
                self._skip(left - U32.size - count, watch)
                return Answer(kind, b"", count)
        body = bytearray(left)
        self._take(memoryview(body), watch)
        return Answer(kind, bytes(body))

    def _buffer(self, count: int, watch: Watch | None) -> None:
        """Have this many bytes in the inbox."""
        while self._end - self._start < count:
            self._wait(self._receive_more, watch)

    def _receive_more(self, limit: float) -> int:
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._inbox) - self._end < _HEAD.size + U32.size or self._start > _INBOX_BYTES // 2:
            rest = bytes(self._inbox[self._start : self._end])
            self._inbox[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        count = self._receive_into(self._inbox[self._end :], limit)
        self._end += count
        return count

    def _receive_into(self, place: memoryview, limit: float) -> int:
        count = self._channel.receive(place, limit)
        if count == 0:
            raise ConnectionResetError(self._channel.why_ended())
        return count

    def _take(self, place: memoryview, watch: Watch | None) -> None:
        """Fill a place: first with what the inbox holds, then from the channel itself."""
        count = min(len(place), self._end - self._start)
        place[:count] = self._inbox[self._start : self._start + count]
        self._start += count
        while count < len(place):
            count += self._wait(partial(self._receive_into, place[count:]), watch)

    def _skip(self, count: int, watch: Watch | None) -> None:
        if count:
            self._take(memoryview(bytearray(count)), watch)

    def _wait(self, receive: Callable[[float], int], watch: Watch | None) -> int:
        """Receive within a limit: that of the watch, which counts the waiting, or else that of a reply."""
        if watch is None:
            return receive(self._reply_limit)
        started = time.monotonic()
        try:
            count = receive(watch.left())
        except TimeoutError:
            watch.note(time.monotonic() - started, 0)
            raise watch.stalled() from None
        watch.note(time.monotonic() - started, count)
        return count

    def _broken(self, error: Exception) -> EtlError:
        found: EtlError
        if isinstance(error, TimeoutError):
            said = str(error) or f"no answer for {self._reply_limit:g} s (ETL_REPLY_TIMEOUT_SECONDS)"
            found = TransferTimeout(f"{self.server}: {said}", server=self.server)
        elif isinstance(error, MalformedError):
            found = IOFailure(f"{self.server}: this is no SFTP: {error}", server=self.server)
        else:
            found = ConnectionLost(f"{self.server}: {error or 'the connection ended'}", server=self.server)
        self.abandon(found)
        return self.lost or found
