"""TLS over one connected socket, by memory: what the socket brings is put in, what it is to send is taken out.

So a TLS connection can be polled, read without waiting, limited by the kernel and cut by another thread, as a plain one
can (`SSLSocket` hides decrypted bytes from poll, and waits for ever where the kernel's limit has passed).
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time

RECORD_BYTES = 16 * 1024  # of plain text in a TLS record at most
_RECEIVE_BYTES = 32 * 1024


class BrokenHandshakeError(ConnectionError):
    """Raised when the other side ends the connection before the handshake is done; most say why elsewhere."""


class Tunnel:
    """The state of TLS on one socket, without any waiting. Raises ssl.SSLError for what is no TLS or a refusal."""

    def __init__(self, context: ssl.SSLContext, name: str | None, session: ssl.SSLSession | None = None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name, session=session)
        self.is_closed = False  # the other side said that no more will come
        self.has_ended = False  # no more comes, said or not
        self._has_rest = False  # of a record there may be more than there was room for

    def shake_hands(self) -> bool:
        """Go on with the handshake as far as it goes; True when it is done. What is to be sent is in `take`."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def put(self, received: bytes | memoryview) -> None:
        """Take what the socket brought; nothing: its end."""
        if received:
            self._incoming.write(received)
        else:
            self._incoming.write_eof()
            self.has_ended = True

    @property
    def unread_bytes(self) -> int:
        """What came and was not decrypted: once all was read, a part of a record."""
        return self._incoming.pending

    @property
    def holds_something(self) -> bool:
        """Has anything come that was not read? Costs less than an attempt to read; a part of a record counts."""
        return self._has_rest or bool(self._incoming.pending)

    def take(self) -> bytes:
        """Return what is to be sent."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def read_into(self, buffer: memoryview) -> int:
        """Decrypt what has come, as far as there is room; return the number of bytes. 0: more must come, or none will.

        Whether that end was said, or a mere end of the connection that anybody could have made, `is_closed` tells.
        """
        filled, size = 0, len(buffer)
        while filled < size and not self.is_closed and self.holds_something:
            count, self._has_rest = 0, False
            try:
                count = int(self.tls.read(size - filled, buffer[filled:]))  # an int, as there is a buffer
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                pass
            except ssl.SSLEOFError:
                break
            if not count:
                self.is_closed = self.has_ended = True
            filled += count
            self._has_rest = filled == size
        return filled

    def write(self, block: bytes | memoryview) -> None:
        """Encrypt a block; `take` returns it."""
        rest = memoryview(block)
        while rest:
            rest = rest[self.tls.write(rest) :]

    def close(self) -> None:
        """Say that no more will be sent; wait for nothing."""
        with contextlib.suppress(ssl.SSLError, ValueError):  # the other side has not said so yet, or all is over
            self.tls.unwrap()


class SecureSocket(socket.socket):
    """A connected socket whose bytes are encrypted; made of one that is given up for it. Replies go through it."""

    def __init__(self, sock: socket.socket, tunnel: Tunnel) -> None:
        super().__init__(fileno=sock.detach())
        self.tunnel = tunnel
        self._room = memoryview(bytearray(RECORD_BYTES))

    def shake_hands(self, limit: float) -> None:
        """Do the handshake, within so many seconds. Raises TimeoutError, BrokenHandshakeError, ssl.SSLError."""
        deadline, poll = time.monotonic() + limit, select.poll()
        poll.register(self, select.POLLIN)
        try:
            while not self.tunnel.shake_hands():
                self._flush()
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise TimeoutError("no TLS handshake in time")
                received = super().recv(_RECEIVE_BYTES)
                if not received:
                    raise BrokenHandshakeError("the server ended the connection")
                self.tunnel.put(received)
        finally:
            self._flush()

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:  # noqa: ARG002 - see `_decrypted`
        """Receive once, what has come already or else as the flags say; empty at the end."""
        while not (data := self._decrypted()) and not self.tunnel.has_ended:
            self.tunnel.put(super().recv(_RECEIVE_BYTES, flags))
        self._flush()
        return data

    def _decrypted(self) -> bytes:
        """Return all that has come: of what stayed here poll would know nothing."""
        data = b""
        while self.tunnel.holds_something and (count := self.tunnel.read_into(self._room)):
            data += self._room[:count]
        return data

    def sendall(self, data: bytes, flags: int = 0, /) -> None:  # type: ignore[override]  # bytes will do
        """Send all; where the other side has closed the connection, raise the reason that it gave, if it did."""
        self.tunnel.write(data)
        try:
            super().sendall(self.tunnel.take(), flags)
        except ConnectionError:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                while not self.tunnel.has_ended:
                    self.tunnel.put(super().recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT))
                    self.tunnel.read_into(self._room)
            raise

    def send(self, data: bytes, flags: int = 0, /) -> int:  # type: ignore[override]  # bytes will do
        """Send something short, once: what the kernel does not take is lost."""
        self.tunnel.write(data)
        super().send(self.tunnel.take(), flags)
        return len(data)

    def _flush(self) -> None:
        if data := self.tunnel.take():
            super().sendall(data)
