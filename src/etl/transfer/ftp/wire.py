"""The bytes of a control connection, out and in: each wait has its limit. Knows no command and no reply."""

from __future__ import annotations

import re
import socket

from etl.errors import InvalidPath
from etl.transfer.ftp.sockets import acknowledge_at_once, is_silent, limit_waits

_CHUNK_BYTES = 8 * 1024
_BREAK = re.compile(rb"[\r\n\0]")


class Wire:
    """A connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._is_tcp = sock.family != socket.AF_UNIX
        self._receive_limit = self._send_limit = 0.0  # seconds, as they are set now; 0: none
        self._received_bytes = 0
        self._has_heard = False  # something was received since the last write
        sock.setblocking(True)

    def send(self, data: bytes, limit: float) -> None:
        """Send all of it. Raises BlockingIOError, or TimeoutError, after `limit` seconds."""
        if limit != self._send_limit:
            limit_waits(self._sock, socket.SO_SNDTIMEO, limit)
            self._send_limit = limit
        self._has_heard = False
        self._sock.sendall(data)

    def receive(self, limit: float) -> bytes:
        """Return what comes; nothing at the end. Raises BlockingIOError after `limit` seconds."""
        if limit != self._receive_limit:
            limit_waits(self._sock, socket.SO_RCVTIMEO, limit)
            self._receive_limit = limit
        if self._is_tcp and self._has_heard:  # the next command acknowledges a single reply
            acknowledge_at_once(self._sock)
        data = self._sock.recv(_CHUNK_BYTES)
        self._received_bytes += len(data)
        self._has_heard = True
        return data

    def receive_at_once(self) -> bytes | None:
        """Return what has come, None: nothing; no bytes at the end."""
        try:
            data = self._sock.recv(_CHUNK_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        self._received_bytes += len(data)
        return data

    def is_silent(self) -> bool:
        """Does the connection stand, and was all received that has come? False: not surely."""
        return is_silent(self._sock, self._received_bytes)


def line_of(verb: str, argument: bytes | None, server: str) -> bytes:
    """Return a command as it is sent. Raises InvalidPath when the argument holds a line break or NUL."""
    if argument is None:
        return verb.encode("ascii") + b"\r\n"
    if _BREAK.search(argument):
        raise InvalidPath(f"the argument of {verb} holds a line break or NUL", server=server)
    return verb.encode("ascii") + b" " + argument + b"\r\n"
