"""One connection to a store: bytes out and in, each wait limited, TLS or not, cut by another thread by its socket.

Also the form of answers (HTTP/1.1, RFC 9112): their heads, and where their bodies end. Knows nothing of S3.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
from typing import TYPE_CHECKING

from etl.transfer.ftp.sockets import Sockets, round_trip
from etl.transfer.watch import Watch

if TYPE_CHECKING:
    from etl.transfer.ftps.tunnel import Tunnel

LENGTH = re.compile(r"[0-9]{1,18}")
_STATUS = re.compile(r"(HTTP/1\.[01]) ([1-9][0-9]{2})(?: |$)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15}) *(?:;|$)")

_BLOCK_BYTES = 256 * 1024  # encrypted at once
_HEAD_BYTES = 64 * 1024  # of an answer at most
_ROOM_BYTES = 128 * 1024


class EndedError(ConnectionError):
    """Raised when the connection ends before an answer has; `began`: something of the answer had come."""

    def __init__(self, what: str, *, began: bool) -> None:
        super().__init__(what)
        self.began = began


class MalformedError(ConnectionError):
    """Raised for what is no HTTP."""


class Channel:
    """One connected socket. Raises OSError, of which TimeoutError for what took too long."""

    def __init__(self, sockets: Sockets, sock: socket.socket, tunnel: Tunnel | None = None) -> None:
        self._sockets = sockets
        self._sock = sock
        self._tunnel = tunnel
        self._ahead = bytearray()  # received, and not taken yet
        self._room = memoryview(bytearray(_ROOM_BYTES))
        self._has_ended = False  # nothing more will come
        self._is_closed = False
        sock.setblocking(False)

    @property
    def is_idle(self) -> bool:
        """May another request go this way: open, and nothing came that nobody asked for?"""
        return not self._is_closed and not self.has_answer

    @property
    def has_answer(self) -> bool:
        """Has something come, or the end? Before a request was sent whole that is a refusal."""
        if not (self._ahead or self._has_ended):
            room = memoryview(bytearray(1024))  # of TLS it may be neither: a ticket
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._ahead += room[: self._receive_once(room)]
        return bool(self._ahead) or self._has_ended

    def round_trip_seconds(self) -> float | None:
        """Return the kernel's measure of it."""
        return None if self._is_closed else round_trip(self._sock)

    def close(self) -> None:
        """Close the socket."""
        if not self._is_closed:
            self._is_closed = True
            self._sockets.close(self._sock)

    def send(self, data: bytes | memoryview, watch: Watch) -> None:
        """Send all, as long as enough of it moves."""
        if self._tunnel is None:
            self._send(memoryview(data), watch)
            return
        rest = memoryview(data)
        while rest:
            self._tunnel.write(rest[:_BLOCK_BYTES])
            self._send(memoryview(self._tunnel.take()), watch)
            rest = rest[_BLOCK_BYTES:]

    def _send(self, rest: memoryview, watch: Watch) -> None:
        while rest:
            try:
                # SecureSocket's own would encrypt.
                sent = socket.socket.send(self._sock, rest)
            except BlockingIOError:
                started = time.monotonic()
                self._wait(select.POLLOUT, watch.left(), watch)
                watch.note(time.monotonic() - started, 0)
                continue
            watch.note(0.0, sent)
            rest = rest[sent:]

    def fileno(self) -> int:
        """Return the socket's number, to wait for it among others."""
        return self._sock.fileno()

    def _take_ahead(self, view: memoryview) -> int:
        count = min(len(view), len(self._ahead))
        view[:count] = self._ahead[:count]
        del self._ahead[:count]
        return count

    def receive_ready(self, view: memoryview) -> int | None:
        """Receive what has come, 0 at the end, None: nothing has."""
        if self._ahead:
            return self._take_ahead(view)
        try:
            return self._receive_once(view)
        except BlockingIOError:
            return None

    def receive(self, view: memoryview, watch: Watch) -> int:
        """Receive some bytes, 0 at the end."""
        if self._ahead:
            return self._take_ahead(view)
        while True:
            try:
                count = self._receive_once(view)
            except BlockingIOError:
                started = time.monotonic()
                self._wait(select.POLLIN, watch.left(), watch)
                watch.note(time.monotonic() - started, 0)
                continue
            watch.note(0.0, count)
            return count

    def _receive_once(self, view: memoryview) -> int:
        """Receive what is there, 0: the end. Raises BlockingIOError when nothing has come yet."""
        if self._has_ended:
            return 0
        if self._tunnel is None:
            count = socket.socket.recv_into(self._sock, view)
        else:
            while not (count := self._tunnel.read_into(view)) and not self._tunnel.has_ended:
                self._tunnel.put(self._room[: socket.socket.recv_into(self._sock, self._room)])
                if data := self._tunnel.take():  # TLS itself has something to say
                    socket.socket.send(self._sock, data)
        self._has_ended = not count
        return count

    def _wait(self, event: int, seconds: float, watch: Watch) -> None:
        poll = select.poll()
        poll.register(self._sock, event)
        if not poll.poll(seconds * 1000):
            raise watch.stalled()

    def read_head(self, watch: Watch) -> bytes:
        """Return the lines of an answer up to the empty one. Raises EndedError, MalformedError."""
        room = memoryview(bytearray(16 * 1024))
        head = bytearray()
        while (end := head.find(b"\r\n\r\n")) < 0:
            if len(head) > _HEAD_BYTES:
                raise MalformedError("the head of an answer does not end")
            count = self.receive(room, watch)
            if not count:
                raise EndedError("the connection ended before an answer", began=bool(head))
            head += room[:count]
        self._ahead[:0] = head[end + 4 :]
        return bytes(head[:end])

    def read_line(self, watch: Watch) -> bytes:
        """Return a short line without its end."""
        line, room = bytearray(), memoryview(bytearray(1))
        while not line.endswith(b"\r\n"):
            if len(line) > 1024 or not self.receive(room, watch):
                raise EndedError("the connection ended within an answer", began=True)
            line += room
        return bytes(line[:-2])


class Body:
    """The body of an answer. `left_bytes`: what is still to come, None where only its end tells."""

    def __init__(self, channel: Channel, watch: Watch, length: int | None, *, is_chunked: bool, keeps: bool) -> None:
        self._channel = channel
        self._watch = watch
        self._is_chunked = is_chunked
        self._keeps = keeps and (is_chunked or length is not None)  # the connection, once the body has ended
        self._chunk_left = 0
        self._is_first = True
        self.left_bytes = None if is_chunked else length
        self.has_ended = self.left_bytes == 0
        if self.has_ended:
            self._end()

    def readinto(self, view: memoryview) -> int:
        """Receive some bytes, 0 at the end of the body. Raises EndedError for an end before that."""
        if self.has_ended or not view:
            return 0
        if self._is_chunked:
            return self._read_chunk(view)
        if self.left_bytes is not None:
            view = view[: self.left_bytes]
        count = self._channel.receive(view, self._watch)
        if self.left_bytes is None:
            if not count:
                self._end()
            return count
        return self._counted(count)

    def read_ready(self, view: memoryview) -> int:
        """Take what has come of a body whose length was told, 0: nothing has. Raises EndedError."""
        if self.has_ended or not view:
            return 0
        count = self._channel.receive_ready(view[: self.left_bytes])
        return 0 if count is None else self._counted(count)

    def _counted(self, count: int) -> int:
        """Count bytes of a body whose length was told."""
        assert self.left_bytes is not None  # noqa: S101 - it was
        if not count:
            raise EndedError(f"the connection ended {self.left_bytes} bytes before the end", began=True)
        self.left_bytes -= count
        if not self.left_bytes:
            self._end()
        return count

    def _read_chunk(self, view: memoryview) -> int:
        if not self._chunk_left:
            if not self._is_first:
                self._channel.read_line(self._watch)
            self._is_first = False
            size = _CHUNK.match(self._channel.read_line(self._watch))
            if size is None:
                raise MalformedError("a chunk of an answer has no length")
            self._chunk_left = int(size[1], 16)
            if not self._chunk_left:
                while self._channel.read_line(self._watch):
                    """Pass over what follows the last chunk."""
                self._end()
                return 0
        count = self._channel.receive(view[: self._chunk_left], self._watch)
        if not count:
            raise EndedError("the connection ended within a chunk", began=True)
        self._chunk_left -= count
        return count

    def _end(self) -> None:
        self.has_ended = True
        if not self._keeps:
            self._channel.close()

    def drop(self) -> None:
        """Give up what is still to come, and the connection with it."""
        if not self.has_ended:
            self.has_ended = True
            self._channel.close()

    def read_all(self, limit_bytes: int) -> bytes:
        """Return all of it. Raises MalformedError beyond the limit."""
        content, room = bytearray(), memoryview(bytearray(64 * 1024))
        while count := self.readinto(room):
            content += room[:count]
            if len(content) > limit_bytes:
                self.drop()
                raise MalformedError(f"an answer of more than {limit_bytes} bytes")
        return bytes(content)


class Answer:
    """The head of an answer, and its body."""

    def __init__(self, status: int, headers: dict[str, str], body: Body) -> None:
        self.status = status
        self.headers = headers  # by name in lower case
        self.body = body
        self.content = b""  # the body, where it was read whole


def read_answer(channel: Channel, method: str, wait: Watch, flow: Watch) -> Answer:
    """Wait for an answer; its body is read by `Body`. `wait`: for the head, `flow`: for the body."""
    while True:
        head = channel.read_head(wait).decode("latin-1").split("\r\n")
        found = _STATUS.match(head[0])
        if found is None:
            raise MalformedError(f"no HTTP: {head[0][:60]!r}")
        version, status = found[1], int(found[2])
        if status >= 200:
            break
    headers: dict[str, str] = {}
    for line in head[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    keeps = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    length = headers.get("content-length", "")
    if method == "HEAD" or status in {204, 304}:
        body = Body(channel, flow, 0, is_chunked=False, keeps=keeps)
    elif "chunked" in headers.get("transfer-encoding", "").lower():
        body = Body(channel, flow, None, is_chunked=True, keeps=keeps)
    elif length and not LENGTH.fullmatch(length):
        raise MalformedError("an answer's length is no number")
    else:
        body = Body(channel, flow, int(length) if length else None, is_chunked=False, keeps=keeps)
    return Answer(status, headers, body)
