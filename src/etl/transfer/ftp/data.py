"""A data connection that stands: filled or emptied, closed or reset. Knows its socket, and no file."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

from etl.errors import ConnectionLost, EtlError, TransferTimeout
from etl.transfer.ftp.sockets import Sockets, has_heard_end, limit_waits, was_closed_well
from etl.transfer.watch import PROGRESS_TICK, StalledError, Watch

if TYPE_CHECKING:
    from collections.abc import Callable

_SIOCOUTQ = 0x5411  # <linux/sockios.h>: bytes sent and not yet acknowledged


class DataConnection:
    """An open data connection: receives with a limit, sends what there is room for, and notices who stands still."""

    ends_last = False  # may not end before its transfer has begun

    def __init__(self, sock: socket.socket, sockets: Sockets, server: str, watch: Watch) -> None:
        self._sock = sock
        self._sockets = sockets
        self._server = server
        self._watch = watch
        self._unsent_bytes: int | None = None  # when last looked at
        self._receives = False  # set up to: who sends never blocks

    @property
    def holds(self) -> bool:
        """Is something of what was sent not with the kernel yet, so that `send` must be called again?"""
        return False

    @property
    def is_cut_off(self) -> bool:
        """Did it end in a way that anybody on the network could have ended it, so that this proves nothing?"""
        return False

    def readinto(self, buffer: memoryview, has_ended: Callable[[float], bool], *, fill: bool = False) -> int:
        """Receive once; 0 at the end of the file. Raises TransferTimeout, ConnectionLost.

        `has_ended`: asked when nothing came for so many seconds; is this the end, though the connection stands? `fill`:
        return only when the buffer is full, or nothing more came for a while.
        """
        try:
            count = self._receive(buffer, has_ended, socket.MSG_WAITALL if fill else 0)
        except OSError as error:
            raise self._fault(error) from error
        if not count and self._sockets.is_cut:  # an aborted session must not look like the end of a file
            raise self._fault(ConnectionAbortedError())
        return count

    def _receive(self, buffer: memoryview, has_ended: Callable[[float], bool], flags: int) -> int:
        if not self._receives:
            self._sock.setblocking(True)
            limit_waits(self._sock, socket.SO_RCVTIMEO, min(self._watch.left(), PROGRESS_TICK))
            self._receives = True
        called = time.monotonic()
        while True:
            began, count = time.monotonic(), 0
            try:
                count = self._sock.recv_into(buffer, 0, flags)
                if not count:
                    return 0
            except BlockingIOError:
                pass
            self._watch.note(time.monotonic() - began, count)
            if count or has_ended(time.monotonic() - called):
                return count

    def send(self, block: memoryview, *, is_last: bool) -> int:
        """Send what the kernel takes of a block; return how many bytes, 0: it takes none now.

        `is_last`: more than this block will not come, so that the end of the file travels with its last bytes.
        """
        try:
            return self._sock.send(block, socket.MSG_DONTWAIT | (socket.MSG_MORE if is_last else 0))
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._fault(error) from error

    def wait_to_send(self, control: socket.socket) -> bool:
        """Wait until bytes can be sent; False when the server says something on `control` first.

        The kernel has room again only when a good part of what it holds was taken: to tell slow from still, it is
        asked in between how much is left.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        poll.register(control, select.POLLIN)
        unsent_bytes = self.unsent_bytes()
        while True:
            began = time.monotonic()
            ready = dict(poll.poll(min(self._watch.left(), PROGRESS_TICK) * 1000))
            before, unsent_bytes = unsent_bytes, self.unsent_bytes()
            self._note(time.monotonic() - began, max(before - unsent_bytes, int(self._sock.fileno() in ready)))
            if ready:
                return control.fileno() not in ready

    def finish_writing(self) -> None:
        """Send the end of the file. The descriptor stays open, for `drained`."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._fault(error) from error

    def wait(self, control: socket.socket | None, seconds: float) -> bool:
        """Wait until there is something to receive, or the end; False when not in so many seconds, or `control` has.

        Raises TransferTimeout once a stall limit has passed.
        """
        if has_heard_end(self._sock):
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if control is not None:
            poll.register(control, select.POLLIN)
        began = time.monotonic()
        ready = dict(poll.poll(seconds * 1000))
        self._note(time.monotonic() - began, len(ready))
        return self._sock.fileno() in ready

    def wait_for_end(self, control: socket.socket, seconds: float) -> bool | None:
        """After `finish_writing`: wait until the server has ended its side, too.

        False: it says something on `control` first; None: neither in so many seconds.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(control, select.POLLIN)
        ready = dict(poll.poll(max(0.0, seconds) * 1000))
        event = ready.get(self._sock.fileno(), 0)
        return None if not ready or event & select.POLLERR else bool(event)

    def was_taken(self, seconds: float) -> bool | None:
        """After the server's last word: did it close in good order? None: it has not closed in so many seconds.

        False: it reset the connection, as the system of one does that closes with bytes unread.
        """
        if (was_closed := was_closed_well(self._sock)) is not None:
            return was_closed
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        ready = dict(poll.poll(seconds * 1000))
        return not ready[self._sock.fileno()] & select.POLLERR if ready else None

    def unsent_bytes(self) -> int:
        """Return how many bytes the other side has not acknowledged yet; 0 when that is not known."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._sock, _SIOCOUTQ, b"\0" * 4))[0])
        except OSError:
            return 0

    def drained(self, seconds: float) -> bool:
        """Did the other side take bytes in the `seconds` that were just waited? Raises when it is too slow."""
        before, self._unsent_bytes = self._unsent_bytes, self.unsent_bytes()
        if before is None:  # the first look; whether they move the next one tells
            return self._unsent_bytes > 0
        if before:
            self._note(seconds, max(0, before - self._unsent_bytes))
        return self._unsent_bytes < before

    def _note(self, seconds: float, moved_bytes: int) -> None:
        try:
            self._watch.note(seconds, moved_bytes)
        except OSError as error:
            raise self._fault(error) from error

    def close(self) -> None:
        """Close in good order."""
        self._sockets.close(self._sock)

    def reset(self) -> None:
        """Close so that the other side knows the file is not whole (FTP.md: an early FIN is a normal end)."""
        self._sockets.close(self._sock, reset=True)

    def _fault(self, error: OSError) -> EtlError:
        if self._sockets.is_cut:
            return ConnectionLost(f"{self._server}: the session was aborted", server=self._server)
        if isinstance(error, TimeoutError):  # by TCP_USER_TIMEOUT, too: the kernel has seen that nothing moves
            stalled = error if isinstance(error, StalledError) else self._watch.stalled()
            return TransferTimeout(f"{self._server}: {stalled}", server=self._server)
        return ConnectionLost(f"{self._server}: the data connection broke: {error}", server=self._server)
