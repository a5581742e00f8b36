"""How an FTPS session is encrypted: the control connection before the password is sent, then each data connection.

Nothing is ever sent in clear that was to be encrypted.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

from etl.errors import ConnectionLost, EtlError
from etl.transfer.ftp import known
from etl.transfer.ftp.security import Security
from etl.transfer.ftp.sockets import is_readable
from etl.transfer.ftps import refusals
from etl.transfer.ftps.agreement import Agreement
from etl.transfer.ftps.opening import SecureDataConnections
from etl.transfer.ftps.tunnel import SecureSocket

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from etl.models.server import ServerConfig, TransferSettings
    from etl.transfer.ftp.control import Control
    from etl.transfer.ftp.known import ServerQuirks
    from etl.transfer.ftp.opening import DataConnections
    from etl.transfer.ftp.sockets import Sockets

_ENCRYPTED = 234
_LATE_SECONDS = 0.1  # for a server that says so before it is ready to encrypt


class Encrypted(Security):
    """TLS for one session.

    Args:
        ask: asks the server for the certificate that it shows, in a connection that serves nothing else.
    """

    def __init__(
        self, sockets: Sockets, server: ServerConfig, settings: TransferSettings, ask: Callable[[], bytes | None]
    ) -> None:
        super().__init__(sockets)
        self.agreement = Agreement(server)
        self.was_welcomed = False
        self.secure_ways: SecureDataConnections | None = None
        self._server = server
        self._ask = ask
        self._limit = settings.login_timeout

    def meet(self, sock: socket.socket) -> socket.socket:
        """Encrypt at once, where TLS is implicit."""
        return self._encrypt(sock) if self.agreement.options.is_implicit else sock

    def before_login(self, control: Control) -> None:
        """Ask for TLS, and encrypt; a refusal is an error, never a login in clear."""
        self.was_welcomed = True
        if self.agreement.options.is_implicit:
            return
        reply = control.send("AUTH", b"TLS").result()
        if reply.code != _ENCRYPTED:
            raise refusals.no_auth(self._server, reply)
        if control.pipelining.quirks.encrypts_late:
            is_readable(control.sock, _LATE_SECONDS)
        control.require_silence()  # what came with the reply may not be taken for an answer that was encrypted
        control.use(self._encrypt(control.sock))

    def after_login(self, control: Control) -> None:
        """Have data connections encrypted, or not, as it is set."""
        control.send("PBSZ", b"0").result()
        level = b"P" if self.agreement.options.encrypts_data else b"C"
        reply = control.send("PROT", level).result()
        if not reply.is_success:
            what = f"the server does not take PROT {level.decode()}: {reply.text}"
            raise refusals.refused(self._server, what)

    def ways(
        self, control: Control, settings: TransferSettings, quirks: ServerQuirks, *, passive: bool, epsv: bool
    ) -> DataConnections:
        """Return what opens data connections."""
        if not self.agreement.options.encrypts_data:
            return super().ways(control, settings, quirks, passive=passive, epsv=epsv)
        self.secure_ways = SecureDataConnections(
            self.agreement, self.sockets, control, settings, quirks, passive=passive, epsv=epsv
        )
        return self.secure_ways

    def _encrypt(self, sock: socket.socket) -> SecureSocket:
        secure = SecureSocket(sock, self.agreement.new_tunnel())
        self.sockets.replace(sock, secure)
        try:
            secure.shake_hands(self._limit)
        except ssl.SSLCertVerificationError as error:
            raise refusals.not_trusted(self._server, error, self._seen()) from error
        except OSError as error:
            if self.sockets.is_cut:
                raise ConnectionLost(
                    f"{self._server.hostname}: the session was aborted", server=self._server.hostname
                ) from error
            is_implicit = self.agreement.options.is_implicit
            if refusals.was_clear(error) and not is_implicit:
                known.of(self._server.address).encrypts_late = True  # it took our first words for a command
            raise refusals.no_handshake(self._server, error, is_implicit=is_implicit) from error
        self.agreement.met(secure.tunnel.tls)
        return secure

    def _seen(self) -> str:
        """Return the fingerprint that the server shows: asked for in a connection that serves nothing else."""
        with contextlib.suppress(EtlError, OSError):
            if certificate := self._ask():
                return refusals.fingerprint_of(certificate)
        return ""
