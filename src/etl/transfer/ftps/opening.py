"""Opening data connections under TLS: the handshake, once the transfer's command was sent, and what it proves."""

from __future__ import annotations

import contextlib
import select
import ssl
import time
from typing import TYPE_CHECKING

from etl.errors import ConnectionLost, EtlError, SessionFault, TransferTimeout
from etl.transfer.ftp.opening import DataConnections
from etl.transfer.ftp.sockets import is_readable
from etl.transfer.ftps import refusals
from etl.transfer.ftps.data import ROOM_BYTES, SecureData
from etl.transfer.watch import Watch

if TYPE_CHECKING:
    import socket

    from etl.models.server import TransferSettings
    from etl.transfer.ftp.control import Control
    from etl.transfer.ftp.data import DataConnection
    from etl.transfer.ftp.known import ServerQuirks
    from etl.transfer.ftp.opening import Opening
    from etl.transfer.ftp.pending import Pending
    from etl.transfer.ftp.sockets import Sockets
    from etl.transfer.ftps.agreement import Agreement
    from etl.transfer.ftps.tunnel import Tunnel

_WORD_SECONDS = 2.0  # for the server's reason of a handshake that failed
_NO_CONNECTION = {425, 426, 522}
_TRIES = 1  # with a login of its own, before a server is said to accept no session


class SecureDataConnections(DataConnections):
    """Opens the data connections of one session; each offers the control connection's TLS session."""

    def __init__(
        self,
        agreement: Agreement,
        sockets: Sockets,
        control: Control,
        settings: TransferSettings,
        quirks: ServerQuirks,
        *,
        passive: bool,
        epsv: bool,
    ) -> None:
        super().__init__(control, sockets, settings, quirks, passive=passive, epsv=epsv)
        self._agreement = agreement
        self._room = memoryview(bytearray(ROOM_BYTES))
        self._resumed = False  # has a data connection taken up the control connection's session
        self._doubtful: Pending | None = None  # the last transfer whose data connection did not
        self._last: tuple[SecureData, Pending] | None = None
        self._tunnel: Tunnel | None = None  # for the connection that is on its way

    def open(self) -> Opening:
        """Queue the opening command; in a session that has aged some servers would take up its TLS, and refuse it."""
        if self._agreement.has_aged:
            raise SessionFault(f"{self.server}: its TLS session has aged", server=self.server)
        self._tunnel = None
        return super().open()

    def prepare(self) -> None:
        """Make the next connection's TLS: to copy the session for it takes OpenSSL half a millisecond."""
        self._tunnel = self._agreement.new_tunnel(self._agreement.session())

    def adopt(self, sock: socket.socket) -> DataConnection:
        """Wrap a connected socket; its handshake waits for `secure`."""
        watch = Watch(self.settings.stall_timeout, self.settings.min_bytes_per_second)
        tunnel, self._tunnel = self._tunnel, None
        tunnel = tunnel or self._agreement.new_tunnel(self._agreement.session())
        return SecureData(sock, self.sockets, self.server, watch, tunnel, self._room)

    def secure(self, data: DataConnection, command: Pending) -> bool:
        """Do the handshake; False when `command` was refused meanwhile, or has failed for want of it.

        Servers begin it once they have accepted the command. The reason for one that fails comes on the control
        connection, a little later.
        """
        assert isinstance(data, SecureData)  # noqa: S101 - see `adopt`
        deadline = time.monotonic() + self.settings.connect_timeout
        if self._last is not None and self._last[1].reply is not None:
            self.quirks.crashes = 0
        self._last = data, command
        data.sock.setblocking(False)
        self.control.peek()  # the refusal may have come with the reply that named the port
        try:
            while not data.tunnel.shake_hands():
                data.push_handshake()
                if not self.wait(data.sock, select.POLLIN, command, deadline):
                    return self._is_over(data, command, None)
                data.hear()
            if command.command == "RETR" and self.control.pipelining.may_overtake:
                data.say_end()  # vsftpd waits for it, a round trip long, behind its last byte, and reads it no sooner
            data.push_handshake()
        except EtlError:  # of the control connection: what it says already is all there is to say
            raise
        except TimeoutError as error:
            limit = self.settings.connect_timeout
            raise TransferTimeout(
                f"{self.server}: no TLS handshake on the data connection within {limit:g} s "
                "(ETL_CONNECT_TIMEOUT_SECONDS)",
                server=self.server,
            ) from error
        except ssl.SSLCertVerificationError as error:
            raise refusals.another_one(self._agreement.server) from error
        except OSError as error:
            return self._is_over(data, command, error)
        return self._is_accepted(data, command)

    def _is_accepted(self, data: SecureData, command: Pending) -> bool:
        """See that whoever took up the session, or shows the same certificate, is the server; False as in `secure`."""
        if data.tunnel.tls.session_reused:
            self._resumed, self.quirks.refused_sessions = True, 0
            return True
        if data.tunnel.tls.getpeercert(binary_form=True) != self._agreement.certificate:
            raise refusals.another_one(self._agreement.server)
        self._agreement.look_again()
        if self._doubtful is not None and self._doubtful.reply is not None and self._doubtful.reply.is_success:
            self.quirks.takes_any_session = True
        self._doubtful = command
        if self.quirks.takes_any_session and not self._resumed:
            return True
        # Such a handshake may be done, and be refused all the same: the word on that is on its way.
        deadline = time.monotonic() + _WORD_SECONDS
        with contextlib.suppress(TimeoutError):
            while command.reply is None and not data.has_something():
                if self.wait(data.sock, select.POLLIN, command, deadline):
                    data.hear()
        return self._is_over(data, command, None) if data.tunnel.has_ended or command.has_failed else True

    def _is_over(self, data: SecureData, command: Pending, error: OSError | None) -> bool:
        """Find out what it means that a data connection ended so early; `error`: before its handshake was done.

        The server's word on the transfer tells, as the control connection is encrypted. True: all is well, there was
        nothing to send.
        """
        if self.sockets.is_cut:
            raise self.lost("") from error
        deadline = time.monotonic() + _WORD_SECONDS
        while (command.reply or command.error) is None and is_readable(
            self.control.sock, max(0.0, deadline - time.monotonic())
        ):
            self.control.peek()
        reply = command.reply
        if reply is None and error is not None:
            raise self.lost(f"no TLS on the data connection: {error}") from error
        if reply is None:  # some say it only once our side is closed, too
            return True
        if reply.is_success:
            if isinstance(error, (ConnectionError, ssl.SSLEOFError)):  # closed, or reset as our greeting was not read
                data.tunnel.put(b"")
                data.tunnel.is_closed = True
            return True
        if reply.code in _NO_CONNECTION and (self._resumed or refusals.says_reuse(reply)):
            raise self._why_not_taken_up(reply.text) from error
        return False

    @property
    def has_died_behind_data(self) -> bool:
        """Did the session end between the end of a download and the word on it? ProFTPD crashes there with TLS 1.3."""
        if self._last is None or self.sockets.is_cut:
            return False
        data, command = self._last
        return data.tunnel.is_closed and command.reply is None and isinstance(command.error, ConnectionLost)

    def _why_not_taken_up(self, text: str) -> EtlError:
        """Return the error for a session that was offered and not accepted: it has aged, or that never works."""
        self.quirks.refused_sessions += 1
        if self._resumed or self.quirks.refused_sessions <= _TRIES:
            return SessionFault(f"{self.server}: its TLS session is not accepted any more: {text}", server=self.server)
        return refusals.refused(
            self._agreement.server,
            "the server wants data connections to take up the TLS session of the control connection, and does not "
            f"accept the one that it gave ({text}); {self.server}_TLS_MAX=1.2 may help",
        )
