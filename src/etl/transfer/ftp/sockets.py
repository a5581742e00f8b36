"""The sockets of one FTP session: how they are set, opened, and cut by another thread."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import select
import socket
import struct
import threading
import time
from typing import Any

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER, zero seconds: close() sends RST and forgets what was not sent
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))  # s, s, times

_ESTABLISHED, _CLOSED, _CLOSE_WAIT = 1, 7, 8  # of tcpi_state, the first byte of struct tcp_info
_RTT_AT = 68  # of tcpi_rtt (microseconds) in struct tcp_info, linux/tcp.h
_RECEIVED_AT = 128  # of tcpi_bytes_received (64 bits), which Linux has since 4.1


_NEXT_SECONDS = 0.25  # before the next address of a host is tried beside the one before


class CutError(OSError):
    """Raised when a socket is opened in a session that was aborted."""


class Sockets:
    """Every open socket of a session. One thread opens and closes them, any thread may cut them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below: `cut` runs beside `add` and `close`
        self._open: set[socket.socket] = set()
        self._is_cut = False

    @property
    def is_cut(self) -> bool:
        """Was the session aborted?"""
        return self._is_cut

    def add(self, sock: socket.socket) -> socket.socket:
        """Take a socket in; raises CutError, and closes it, when the session was aborted."""
        with self._lock:
            if not self._is_cut:
                self._open.add(sock)
                return sock
        sock.close()
        raise CutError("the session was aborted")

    def replace(self, sock: socket.socket, successor: socket.socket) -> None:
        """Take in the socket that another one was made into. Raises CutError as `add` does."""
        with self._lock:
            self._open.discard(sock)
        self.add(successor)

    def close(self, sock: socket.socket, *, reset: bool = False) -> None:
        """Close a socket; `reset`: by RST, so that the other side does not take it for the end of a file."""
        with self._lock:
            self._open.discard(sock)
        try:
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()
        except OSError:  # the peer's reset may be reported once more here
            with contextlib.suppress(OSError):
                sock.close()

    def cut(self) -> None:
        """Make whatever blocks in one of the sockets return at once. Any thread; never raises."""
        with self._lock:
            self._is_cut = True
            for sock in self._open:
                # shutdown, not close: the owner may be inside a call, and a closed descriptor's number is reused
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close_all(self) -> None:
        """Close what is open; data sockets that are still here belong to a broken transfer."""
        for sock in list(self._open):
            self.close(sock)


def tune(sock: socket.socket, silence_seconds: float) -> None:
    """Set what every TCP socket of ours has. `silence_seconds`: how long sent bytes may stay unacknowledged.

    Never SO_RCVBUF or SO_SNDBUF: setting them ends the kernel's own sizing, and with it the speed on long ways.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(silence_seconds * 1000)))


def acknowledge_at_once(sock: socket.socket) -> None:
    """Acknowledge what came, and what comes next, without the kernel's usual 40 ms.

    A server that leaves Nagle's algorithm on keeps the second of two replies back until then: twice as many files a
    second where one does.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def is_readable(sock: socket.socket, seconds: float = 0.0) -> bool:
    """Has something come, or the end? Waits for it so many seconds at most."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(seconds * 1000))


def is_connected(sock: socket.socket) -> bool:
    """Does a TCP connection stand? Costs less than waiting for it, where it is made at once."""
    return _state(sock) == _ESTABLISHED


def has_heard_end(sock: socket.socket) -> bool:
    """Has the other side ended a TCP connection? Its last bytes may wait to be read. Costs less than waiting for it."""
    return _state(sock) in {_CLOSED, _CLOSE_WAIT}


def was_closed_well(sock: socket.socket) -> bool | None:
    """Have both sides ended a TCP connection? False: by a reset; None: not yet. Costs less than waiting for it."""
    return None if _state(sock) != _CLOSED else not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _state(sock: socket.socket) -> int:
    """Return the state of a TCP connection. Unlike poll, this never lets the interpreter go to another thread."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def is_silent(sock: socket.socket, received_bytes: int) -> bool:
    """Does a TCP connection stand, and has nothing come beyond the bytes received so far? False: not surely.

    Unlike a look with recv or poll, this never lets the interpreter go to another thread.
    """
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED_AT + 8)
    except OSError:  # not TCP
        return False
    if len(told) < _RECEIVED_AT + 8 or told[0] != _ESTABLISHED:
        return False
    return bool(struct.unpack_from("=Q", told, _RECEIVED_AT)[0] == received_bytes)


def round_trip(sock: socket.socket) -> float | None:
    """Return the kernel's smoothed round-trip time of a TCP connection, in seconds; None: not known."""
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + 4)
    except OSError:  # closed meanwhile
        return None
    return struct.unpack_from("=I", told, _RTT_AT)[0] / 1e6 if len(told) == _RTT_AT + 4 else None


def limit_waits(sock: socket.socket, option: int, seconds: float) -> None:
    """Have the kernel end every wait in a blocking call (BlockingIOError) after so many seconds.

    `option`: SO_RCVTIMEO or SO_SNDTIMEO. Python's own time limits cost two calls more for each receive or send, and
    at each the interpreter may go to another thread.
    """
    whole, rest = divmod(max(seconds, 0.001), 1.0)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(whole), int(rest * 1_000_000)))


def dial(
    sockets: Sockets,
    host: str,
    port: int,
    limit: float,
    silence_seconds: float,
    preferred: tuple[Any, ...] | None = None,
) -> socket.socket:
    """Connect to a host by name, `limit` seconds in all; `preferred` is the address that is tried first.

    Its other addresses are tried beside it, each a little later (RFC 8305): a dead one costs no time. Raises OSError.
    """
    deadline = time.monotonic() + limit
    found = sorted(_resolve(host, port, limit), key=lambda one: one[4] != preferred)
    if not found:
        raise OSError(f"{host} has no address")
    waiting: dict[int, socket.socket] = {}
    try:
        winner = _race(sockets, found, waiting, deadline, silence_seconds)
    finally:
        for sock in waiting.values():
            sockets.close(sock)
    winner.setblocking(True)
    return winner


def _race(
    sockets: Sockets, found: list[Any], waiting: dict[int, socket.socket], deadline: float, silence_seconds: float
) -> socket.socket:
    """Return the first connection that stands; the others are left in `waiting`."""
    next_at, error, poll = 0.0, OSError("no address"), select.poll()
    while found or waiting:
        now = time.monotonic()
        if now >= deadline:
            raise TimeoutError("timed out")
        if found and (now >= next_at or not waiting):
            family, kind, proto, _, address = found.pop(0)
            sock = sockets.add(socket.socket(family, kind | socket.SOCK_NONBLOCK, proto))
            waiting[sock.fileno()], next_at = sock, now + _NEXT_SECONDS
            tune(sock, silence_seconds)
            if (number := sock.connect_ex(address)) not in {0, errno.EINPROGRESS}:
                error = OSError(number, os.strerror(number))
                sockets.close(waiting.pop(sock.fileno()))
                continue
            poll.register(sock, select.POLLOUT)
        for descriptor, _ in poll.poll(max(0.0, (min(deadline, next_at) if found else deadline) - now) * 1000):
            sock = waiting.pop(descriptor)
            poll.unregister(descriptor)
            if sockets.is_cut:
                sockets.close(sock)
                raise CutError("the session was aborted")
            if not (number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                return sock
            error = OSError(number, os.strerror(number))
            sockets.close(sock)
    raise error


def _resolve(host: str, port: int, limit: float) -> list[Any]:
    """Look a name up. The system's resolver knows no limit of ours: it is left behind in a thread until it gives up."""
    with contextlib.suppress(socket.gaierror):  # an address needs no resolver
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    answers: queue.SimpleQueue[list[Any] | BaseException] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except BaseException as error:  # noqa: BLE001 - raised again, by whoever waits
            answers.put(error)

    threading.Thread(target=ask, name=f"resolver-{host}", daemon=True).start()
    try:
        answer = answers.get(timeout=limit)
    except queue.Empty:
        raise TimeoutError(f"the name {host} was not resolved") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def dial_peer(
    sockets: Sockets, family: socket.AddressFamily, peer: tuple[Any, ...], port: int, silence_seconds: float
) -> socket.socket:
    """Begin to connect to another port of the host of `peer`, the control connection's, whatever it claims to be.

    An address taken from a reply would let a server point us at third hosts (FTP bounce, RFC 2577). Does not wait: the
    socket can be written to once the connection stands, or has failed (SO_ERROR). Raises OSError.
    """
    sock = sockets.add(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    try:
        tune(sock, silence_seconds)
        failure = sock.connect_ex((peer[0], port, *peer[2:]))
        if failure not in {0, errno.EINPROGRESS}:
            raise OSError(failure, os.strerror(failure))
        if sockets.is_cut:
            raise CutError("the session was aborted")
    except BaseException:
        sockets.close(sock)
        raise
    return sock
