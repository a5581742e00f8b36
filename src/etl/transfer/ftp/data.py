"""Data connections: passive or active, opened, filled or emptied, closed or reset.

Knows the control connection it is agreed on, and no file.
"""

from __future__ import annotations

import fcntl
import ftplib
import select
import socket
import struct
import time
from functools import partial
from typing import TYPE_CHECKING, Protocol

from etl.errors import ConnectionLost, EtlError, IOFailure, TransferTimeout
from etl.transfer.ftp.sockets import Sockets, dial_peer, tune

if TYPE_CHECKING:
    from etl.config import TransferSettings
    from etl.transfer.ftp.control import Control, Pending
    from etl.transfer.ftp.replies import Reply

_SIOCOUTQ = 0x5411  # <linux/sockios.h>: bytes sent and not yet acknowledged


class DataConnection:
    """An open data connection."""

    def __init__(self, sock: socket.socket, sockets: Sockets, server: str, stall_limit: float) -> None:
        self._sock = sock
        self._sockets = sockets
        self._server = server
        self._stall_limit = stall_limit
        sock.settimeout(stall_limit)

    def readinto(self, buffer: memoryview) -> int:
        """Receive once; 0 at the end of the file. Raises TransferTimeout, ConnectionLost."""
        try:
            count = self._sock.recv_into(buffer)
        except OSError as error:
            raise self._fault(error) from error
        if not count and self._sockets.is_cut:  # an aborted session must not look like the end of a file
            raise self._fault(ConnectionAbortedError())
        return count

    def write(self, block: memoryview, *, is_last: bool) -> None:
        """Send a block; the stall limit starts anew with every piece the kernel takes.

        `is_last`: more will not come, so that the end of the file travels with the last bytes.
        """
        flags = socket.MSG_MORE if is_last else 0
        try:
            while block:
                block = block[self._sock.send(block, flags) :]
        except OSError as error:
            raise self._fault(error) from error

    def finish_writing(self) -> None:
        """Send the end of the file. The descriptor stays open, for `unsent_bytes`."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._fault(error) from error

    def unsent_bytes(self) -> int:
        """Return how many bytes the other side has not acknowledged yet; 0 when that is not known."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._sock, _SIOCOUTQ, b"\0" * 4))[0])
        except OSError:
            return 0

    def close(self) -> None:
        """Close in good order."""
        self._sockets.close(self._sock)

    def reset(self) -> None:
        """Close so that the other side knows the file is not whole (FTP.md: an early FIN is a normal end)."""
        self._sockets.close(self._sock, reset=True)

    def _fault(self, error: OSError) -> EtlError:
        if self._sockets.is_cut:
            return ConnectionLost(f"{self._server}: the session was aborted", server=self._server)
        if isinstance(error, TimeoutError):
            return TransferTimeout(
                f"{self._server}: no byte moved for {self._stall_limit:g} s (ETL_STALL_TIMEOUT_SECONDS)",
                server=self._server,
            )
        return ConnectionLost(f"{self._server}: the data connection broke: {error}", server=self._server)


class Opening(Protocol):
    """A data connection on its way. Made before its transfer command: `agree`, then the command, then `connection`."""

    def agree(self) -> None:
        """Read the reply to the opening command, and connect if that is ours to do."""
        ...

    def connection(self) -> DataConnection:
        """Return the connection, once the transfer command was answered with 1xx."""
        ...

    def cancel(self) -> None:
        """Give up what is open; after a refused transfer command, or any error."""
        ...


class DataConnections:
    """Opens the data connections of one session, in the one way that its server accepts."""

    def __init__(
        self, control: Control, sockets: Sockets, settings: TransferSettings, server: str, *, passive: bool
    ) -> None:
        self.control = control
        self.sockets = sockets
        self.settings = settings
        self.server = server
        self._passive = passive
        self.extended = True  # EPSV/EPRT; False once the server refused it

    def open(self) -> Opening:
        """Queue the opening command."""
        return Passive(self) if self._passive else Active(self)

    def adopt(self, sock: socket.socket) -> DataConnection:
        """Wrap a connected socket."""
        return DataConnection(sock, self.sockets, self.server, self.settings.stall_timeout)

    def dial(self, port: int) -> DataConnection:
        """Connect to a port of the server's, at the address the control connection has."""
        limit = self.settings.connect_timeout
        try:
            sock = dial_peer(self.sockets, self.control.sock, port, limit, self.settings.stall_timeout)
        except TimeoutError as error:
            raise TransferTimeout(
                f"{self.server}: no data connection to port {port} within {limit:g} s (ETL_CONNECT_TIMEOUT_SECONDS)",
                server=self.server,
            ) from error
        except OSError as error:
            raise self.lost(f"no data connection to port {port}: {error}") from error
        return self.adopt(sock)

    def lost(self, what: str) -> ConnectionLost:
        """Return the error for a connection that does not come about."""
        if self.sockets.is_cut:
            what = "the session was aborted"
        return ConnectionLost(f"{self.server}: {what}", server=self.server)


class Passive:
    """EPSV (RFC 2428), or PASV where that is refused; we connect, always to the control connection's peer."""

    def __init__(self, connections: DataConnections) -> None:
        self._connections = connections
        self._pending: Pending = self._ask()
        self._data: DataConnection | None = None

    def _ask(self) -> Pending:
        return self._connections.control.send("EPSV" if self._connections.extended else "PASV")

    def agree(self) -> None:
        """Read the reply and connect."""
        reply = self._pending.result()
        if self._connections.extended and reply.code >= 500 and self._connections.control.sock.family == socket.AF_INET:
            self._connections.extended = False
            reply = self._ask().result()
        self._data = self._connections.dial(self._port_in(reply))

    def connection(self) -> DataConnection:
        """Return the connection."""
        assert self._data is not None  # noqa: S101 - agree() was called
        return self._data

    def cancel(self) -> None:
        """Close what is open."""
        if self._data is not None:
            self._data.close()

    def _port_in(self, reply: Reply) -> int:
        text = reply.lines[-1].decode("ascii", "replace")
        server = self._connections.server
        if not reply.is_success:
            raise IOFailure(f"{server}: no data connection: {reply.text}", server=server)
        try:
            # Of PASV's reply the port alone is used: dial_peer() says why.
            parse = partial(ftplib.parse229, peer=("", 0)) if self._connections.extended else ftplib.parse227
            port = parse(text)[1]
        except (ftplib.Error, ValueError) as error:
            raise IOFailure(f"{server}: no port in {reply.text}", server=server) from error
        if not 0 < port < 65536:
            raise IOFailure(f"{server}: no port in {reply.text}", server=server)
        return port


class Active:
    """PORT or EPRT (RFC 2428): the server connects to us; only its own address is let in."""

    def __init__(self, connections: DataConnections) -> None:
        self._connections = connections
        control = connections.control.sock
        self._is_old = control.family == socket.AF_INET
        own = control.getsockname()
        self._listener: socket.socket = socket.socket(control.family, socket.SOCK_STREAM)
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

    def connection(self) -> DataConnection:
        """Take the server's connection; others are turned away."""
        peer = self._connections.control.sock.getpeername()[0]
        limit = self._connections.settings.connect_timeout
        deadline = time.monotonic() + limit
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                server = self._connections.server
                raise TransferTimeout(
                    f"{server}: the server opened no data connection within {limit:g} s "
                    "(ETL_CONNECT_TIMEOUT_SECONDS; active mode)",
                    server=server,
                )
            poll.poll(left * 1000)
            try:
                self._listener.settimeout(0)
                sock, address = self._listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._connections.lost(f"no data connection: {error}") from error
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
