"""A data connection under TLS: the same as a plain one, its bytes encrypted. Knows its socket, and no file."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import TYPE_CHECKING

from etl.transfer.ftp.data import DataConnection
from etl.transfer.ftps.tunnel import RECORD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.transfer.ftp.sockets import Sockets
    from etl.transfer.ftps.tunnel import Tunnel
    from etl.transfer.watch import Watch

ROOM_BYTES = 16 * RECORD_BYTES  # received or encrypted at once
_LAST_READS = 4


class SecureData(DataConnection):
    """A data connection that is used once its handshake is done (`tunnel.shake_hands`).

    `room`: where encrypted bytes are received, of ROOM_BYTES; one for all data connections of a session.
    """

    ends_last = True  # ftp-srv takes one that has ended by then, without a byte, for none

    def __init__(
        self, sock: socket.socket, sockets: Sockets, server: str, watch: Watch, tunnel: Tunnel, room: memoryview
    ) -> None:
        super().__init__(sock, sockets, server, watch)
        self.tunnel = tunnel
        self._room = room
        self._unsent = memoryview(b"")  # encrypted, and not taken by the kernel yet
        self._ahead = b""  # a byte that was decrypted to see whether there is one
        self._is_said = False  # that no more will be sent

    @property
    def sock(self) -> socket.socket:
        """The socket, for whoever waits."""
        return self._sock

    @property
    def holds(self) -> bool:
        """Is something encrypted that the kernel did not take yet?"""
        return bool(self._unsent)

    @property
    def is_cut_off(self) -> bool:
        """Did the connection end without the word that ends TLS?"""
        return self.tunnel.has_ended and not self.tunnel.is_closed

    def push_handshake(self) -> None:
        """Send what the handshake has to say. Raises OSError."""
        if data := self.tunnel.take():
            self._sock.send(data, socket.MSG_DONTWAIT)

    # --- receiving ------------------------------------------------------------------------------------------

    def _receive(self, buffer: memoryview, has_ended: Callable[[float], bool], flags: int) -> int:
        filled = len(self._ahead)
        buffer[:filled], self._ahead = self._ahead, b""
        while True:
            filled += self.tunnel.read_into(buffer[filled:])
            if filled == len(buffer) or (filled and not flags & socket.MSG_WAITALL) or self.tunnel.has_ended:
                return filled
            # What is encrypted is never shorter: so much must come in any case, and one call waits for it.
            least_bytes = len(buffer) - filled - self.tunnel.unread_bytes if flags & socket.MSG_WAITALL else 0
            room, how = (self._room[:least_bytes], flags) if least_bytes > 0 else (self._room, 0)
            self.tunnel.put(room[: super()._receive(room, has_ended, how)])

    def hear(self) -> None:
        """Take what has come, if anything has. Raises OSError."""
        with contextlib.suppress(BlockingIOError):
            self.tunnel.put(self._room[: self._sock.recv_into(self._room, 0, socket.MSG_DONTWAIT)])

    def has_something(self) -> bool:
        """Is there a byte, or the end? What comes may be neither: a ticket."""
        if not self._ahead:
            one = bytearray(1)
            self._ahead = bytes(one[: self.tunnel.read_into(memoryview(one))])
        return bool(self._ahead) or self.tunnel.has_ended

    def wait(self, control: socket.socket | None, seconds: float) -> bool:
        """Wait until there is something to receive, or the end."""
        deadline = time.monotonic() + seconds
        while not self._heard_something():
            if not super().wait(control, max(0.0, deadline - time.monotonic())):
                return False
        return True

    def _heard_something(self) -> bool:
        """Take what has come; is there a byte, or the end?"""
        try:
            if not self.has_something():
                self.hear()
            return self.has_something()
        except OSError as error:
            raise self._fault(error) from error

    def wait_for_end(self, control: socket.socket, seconds: float) -> bool | None:
        """After `finish_writing`: wait until the server has ended its side, too."""
        deadline = time.monotonic() + seconds
        try:
            while not self.has_something():
                if not (has_ended := super().wait_for_end(control, deadline - time.monotonic())):
                    return has_ended
                self.hear()
        except OSError:
            return None
        return True

    # --- sending --------------------------------------------------------------------------------------------

    def send(self, block: memoryview, *, is_last: bool) -> int:
        """Encrypt of a block what is sent at once; 0: the kernel does not even take what is left of the last one."""
        try:
            if self._unsent:
                self._push(socket.MSG_MORE if is_last else 0)
            if self._unsent or not block:
                return 0
            piece = block[:ROOM_BYTES]
            self.tunnel.write(piece)
            if is_last and len(piece) == len(block):
                self.say_end()
            self._unsent = memoryview(self.tunnel.take())
            self._push(socket.MSG_MORE if is_last else 0)
        except OSError as error:
            raise self._fault(error) from error
        return len(piece)

    def _push(self, flags: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._unsent = self._unsent[self._sock.send(self._unsent, socket.MSG_DONTWAIT | flags) :]

    def say_end(self) -> None:
        """Say in TLS that no more will be sent, with what is sent next; what comes can still be read."""
        if not self._is_said:
            self._is_said = True
            self.tunnel.close()

    def finish_writing(self) -> None:
        """Say in TLS that this is the end, then send the end itself; the server's own is not waited for.

        Some servers call an upload broken that ends without the one, others wait for the other.
        """
        try:
            self.say_end()
            self._unsent = memoryview(bytes(self._unsent) + self.tunnel.take())
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            self._push(socket.MSG_MORE)
            while self._unsent:
                began = time.monotonic()
                is_ready = bool(poll.poll(self._watch.left() * 1000))
                self._watch.note(time.monotonic() - began, int(is_ready))
                self._push(socket.MSG_MORE)
        except OSError as error:
            raise self._fault(error) from error
        super().finish_writing()

    def close(self) -> None:
        """Close in good order: a close with bytes unread, as tickets are, would take back what was sent."""
        with contextlib.suppress(OSError):
            self.say_end()
            if (rest := self.tunnel.take()) and not self._unsent:
                self._sock.send(rest, socket.MSG_DONTWAIT)
            for _ in range(_LAST_READS):
                if not self._sock.recv_into(self._room, 0, socket.MSG_DONTWAIT):
                    break
        super().close()
