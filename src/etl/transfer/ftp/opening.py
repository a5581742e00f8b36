"""Opening data connections, passive or active: the command, what its reply says, and the connection it leads to.

Knows the control connection they are agreed on, and no file.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import time
from typing import TYPE_CHECKING, Protocol

from etl.errors import ConnectionLost, EtlError, IOFailure, TransferTimeout
from etl.transfer.ftp.data import DataConnection
from etl.transfer.ftp.sockets import dial_peer, is_connected, tune
from etl.transfer.watch import Watch

if TYPE_CHECKING:
    from etl.models.server import TransferSettings
    from etl.transfer.ftp.control import Control
    from etl.transfer.ftp.known import ServerQuirks
    from etl.transfer.ftp.pending import Pending
    from etl.transfer.ftp.replies import Reply
    from etl.transfer.ftp.sockets import Sockets

_PORT_LINE_BYTES = 500  # of a reply that are searched for a port
_FIRST_SECONDS = 5.0  # for the first data connection by EPSV, before PASV is tried
_OF_FILES = {550, 551, 553}  # no refusal of a port, where one was given before: the transfer's, out of order
_WORD_SECONDS = 2.0  # for the refusal that made a server close its port
# The address is not read: see dial_peer().
_PORT = re.compile(rb"(?:[0-9]{1,3}, *){4}([0-9]{1,3}), *([0-9]{1,3})(?![0-9])")
# RFC 2428 section 3: (|||6446|); some leave out a delimiter, or the parentheses.
_EXTENDED_PORT = re.compile(rb"([^\s\w,.:()\[\]])[0-9]?\1(?:[0-9a-zA-Z.:]*\1)? *([0-9]{1,5}) *\1")


class Opening(Protocol):
    """A data connection on its way: `agree`, then `connection`; the transfer command may be sent before either."""

    born: float  # when the opening command was queued (monotonic)

    def agree(self) -> None:
        """Read the reply to the opening command, and begin to connect if that is ours to do."""
        ...

    def connection(self, command: Pending | None = None) -> DataConnection | None:
        """Wait for the connection; None when `command`, sent before, was refused meanwhile."""
        ...

    def cancel(self) -> None:
        """Give up what is open; after a refused transfer command, or any error."""
        ...


class DataConnections:
    """Opens the data connections of one session, in the one way that its server accepts."""

    def __init__(
        self,
        control: Control,
        sockets: Sockets,
        settings: TransferSettings,
        quirks: ServerQuirks,
        *,
        passive: bool,
        epsv: bool = True,
    ) -> None:
        self.control = control
        self.sockets = sockets
        self.settings = settings
        self._passive = passive
        self._epsv = epsv
        self.quirks = quirks
        self.is_proven = False  # a transfer has begun in this way, in this session
        self.family = control.sock.family  # each look at it makes an enum anew
        try:
            self.peer = control.sock.getpeername()
        except OSError as error:
            raise self.lost(f"the connection ended: {error}") from error

    @property
    def server(self) -> str:
        """The server's name, for errors."""
        return self.control.server

    @property
    def is_extended(self) -> bool:
        """Is EPSV asked for, and not PASV, which knows no IPv6?"""
        return self.family != socket.AF_INET or (self._epsv and self.quirks.takes_epsv is not False)

    def fall_back(self) -> bool:
        """Go on with PASV, for all sessions of this server; False where there is no other way."""
        if not self.is_extended or self.family != socket.AF_INET:
            return False
        self.quirks.takes_epsv = False
        return True

    @property
    def is_passive(self) -> bool:
        """Do we connect to the server?"""
        return self._passive

    def open(self) -> Opening:
        """Queue the opening command."""
        try:
            return Passive(self) if self._passive else Active(self)
        except OSError as error:
            raise self.lost(f"no port for a data connection: {error}") from error

    def dial(self, port: int) -> socket.socket:
        """Begin to connect to a port of the server. Raises OSError."""
        return dial_peer(self.sockets, self.family, self.peer, port, self.settings.stall_timeout)

    def prepare(self) -> None:
        """Do what can be done for a connection while it is on its way."""

    def adopt(self, sock: socket.socket) -> DataConnection:
        """Wrap a connected socket."""
        watch = Watch(self.settings.stall_timeout, self.settings.min_bytes_per_second)
        return DataConnection(sock, self.sockets, self.server, watch)

    def secure(self, data: DataConnection, command: Pending) -> bool:  # noqa: ARG002 - for those who encrypt
        """Make a connection ready for the bytes of `command`, which was sent; False when that was refused meanwhile."""
        return True

    def wait(self, own: socket.socket, event: int, command: Pending | None, deadline: float) -> bool:
        """Wait for something to happen to a socket; False when `command` was refused first. Raises TimeoutError."""
        poll = select.poll()
        poll.register(own, event)
        control = self.control.sock
        if command is not None:
            poll.register(control, select.POLLIN)
        while command is None or not command.is_refused:
            left = deadline - time.monotonic()
            ready = dict(poll.poll(left * 1000)) if left > 0 else {}
            if own.fileno() in ready:
                return True
            if not ready:
                raise TimeoutError
            self.control.peek()
        return False

    def lost(self, what: str) -> ConnectionLost:
        """Return the error for a connection that does not come about."""
        if self.sockets.is_cut:
            what = "the session was aborted"
        return ConnectionLost(f"{self.server}: {what}", server=self.server)


class Passive:
    """EPSV (RFC 2428), or PASV where that leads nowhere; we connect, always to the control connection's peer."""

    def __init__(self, connections: DataConnections) -> None:
        self.born = time.monotonic()
        self._connections = connections
        self._pending: Pending = self._ask()
        self._sock: socket.socket | None = None
        self._port, self._deadline = 0, 0.0

    def _ask(self) -> Pending:
        return self._connections.control.send("EPSV" if self._connections.is_extended else "PASV")

    def agree(self) -> None:
        """Read the reply, begin to connect."""
        if self._sock is not None:
            return
        connections = self._connections
        try:
            reply = self._pending.result()
        except TransferTimeout:  # the next session does without
            connections.fall_back()
            raise
        if not reply.is_success and self._pending.follows:
            connections.control.pipelining.failed(transfers=True)
        if connections.is_proven and reply.code in _OF_FILES:
            raise connections.control.out_of_step(f"the server answered {self._pending.command} with {reply.text}")
        # What shared a write with it may be a transfer that runs by now: then nothing can be asked any more.
        if (port := port_in(reply)) is None and not connections.is_proven and connections.fall_back():
            reply = self._ask().result()
            port = port_in(reply)
        if port is None:
            what = f"no port in {reply.text}" if reply.is_success else f"no data connection: {reply.text}"
            raise IOFailure(f"{connections.server}: {what}", server=connections.server)
        self._dial(port)

    def _dial(self, port: int) -> None:
        connections, self._port = self._connections, port
        self._deadline = time.monotonic() + connections.settings.connect_timeout
        try:
            self._sock = connections.dial(port)
        except OSError as error:
            raise connections.lost(f"no data connection to port {port}: {error}") from error

    def connection(self, command: Pending | None = None) -> DataConnection | None:
        """Wait until it stands. Where EPSV's port cannot be reached, and nothing waits for it yet, PASV's is tried."""
        connections = self._connections
        if command is not None or connections.is_proven or not connections.is_extended:
            return self._connection(command)
        self._deadline = min(self._deadline, time.monotonic() + _FIRST_SECONDS)
        try:
            return self._connection(None)
        except (ConnectionLost, TransferTimeout):
            if connections.sockets.is_cut or not connections.fall_back():
                raise
        self.cancel()
        self._sock, self._pending = None, self._ask()
        self.agree()
        return self._connection(None)

    def _connection(self, command: Pending | None) -> DataConnection | None:
        connections, sock = self._connections, self._sock
        assert sock is not None  # noqa: S101 - agree() was called
        try:
            if is_connected(sock):
                return connections.adopt(sock)
            connections.prepare()
            if not connections.wait(sock, select.POLLOUT, command, self._deadline):
                return None
        except TimeoutError as error:
            limit = connections.settings.connect_timeout
            raise TransferTimeout(
                f"{connections.server}: no data connection to port {self._port} within {limit:g} s "
                "(ETL_CONNECT_TIMEOUT_SECONDS)",
                server=connections.server,
            ) from error
        if connections.sockets.is_cut:
            raise connections.lost("")
        if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            if command is not None and self._is_refused(command):
                return None
            if connections.control.broken is not None:  # its port went with the session
                raise connections.control.broken
            raise connections.lost(f"no data connection to port {self._port}: {os.strerror(number)}")
        return connections.adopt(sock)

    def _is_refused(self, command: Pending) -> bool:
        """Did the server close its port because it refuses the command? Its word on that may come a little later."""
        with contextlib.suppress(EtlError):
            self._connections.control.settle(command, preliminary=True, limit=_WORD_SECONDS)
        return command.is_refused

    def cancel(self) -> None:
        """Close what is open."""
        if self._sock is not None:
            self._connections.sockets.close(self._sock)


def port_in(reply: Reply) -> int | None:
    """Return the port that a reply to EPSV or PASV names; some servers answer one with the other's form."""
    if not reply.is_success:
        return None
    line = reply.lines[-1][3:_PORT_LINE_BYTES]
    if (found := _EXTENDED_PORT.search(line)) is not None:
        port = int(found[2])
    elif (found := _PORT.search(line)) is not None:
        high, low = int(found[1]), int(found[2])
        port = high * 256 + low if max(high, low) < 256 else 0
    else:
        return None
    return port if 0 < port < 65536 else None


class Active:
    """PORT or EPRT (RFC 2428): the server connects to us; only its own address is let in."""

    def __init__(self, connections: DataConnections) -> None:
        self.born = time.monotonic()
        self._connections = connections
        self._is_old = connections.family == socket.AF_INET
        own = connections.control.sock.getsockname()
        self._listener: socket.socket = socket.socket(connections.family, socket.SOCK_STREAM)
        connections.sockets.add(self._listener)
        try:
            self._listener.bind((own[0], 0, *own[2:]))
            self._listener.listen(1)
            self._pending: Pending = self._ask()
        except BaseException:
            self.cancel()
            raise

    def _ask(self) -> Pending:
        host, port = self._listener.getsockname()[:2]
        if self._is_old:
            fields = [*host.split("."), str(port >> 8), str(port & 255)]
            return self._connections.control.send("PORT", ",".join(fields).encode("ascii"))
        return self._connections.control.send("EPRT", f"|2|{host.partition('%')[0]}|{port}|".encode("ascii"))

    def agree(self) -> None:
        """Read the reply."""
        reply = self._pending.result()
        if not reply.is_success:
            server = self._connections.server
            raise IOFailure(f"{server}: the server refuses active mode: {reply.text}", server=server)

    def connection(self, command: Pending | None = None) -> DataConnection | None:
        """Take the server's connection; others are turned away."""
        connections = self._connections
        peer = connections.peer[0]
        limit = connections.settings.connect_timeout
        deadline = time.monotonic() + limit
        self._listener.settimeout(0)
        while True:
            try:
                if not connections.wait(self._listener, select.POLLIN, command, deadline):
                    return None
                sock, address = self._listener.accept()
            except BlockingIOError:
                continue
            except TimeoutError as error:
                raise TransferTimeout(
                    f"{connections.server}: the server opened no data connection within {limit:g} s "
                    "(ETL_CONNECT_TIMEOUT_SECONDS; active mode)",
                    server=connections.server,
                ) from error
            except OSError as error:
                raise connections.lost(f"no data connection: {error}") from error
            if address[0] == peer:
                break
            sock.close()
        self.cancel()
        try:
            self._connections.sockets.add(sock)
            tune(sock, self._connections.settings.stall_timeout)
        except OSError as error:
            self._connections.sockets.close(sock)
            raise self._connections.lost(f"no data connection: {error}") from error
        return self._connections.adopt(sock)

    def cancel(self) -> None:
        """Close the listening socket."""
        self._connections.sockets.close(self._listener)
