"""A session with an FTPS server: an FTP session whose connections are encrypted."""

from __future__ import annotations

import ssl
from dataclasses import replace
from typing import ClassVar

import structlog

from etl.errors import EtlError, ServerUnavailable
from etl.models.server import ProtocolSpec
from etl.transfer.ftp import known
from etl.transfer.ftp.control import Control
from etl.transfer.ftp.pipelining import Pipelining
from etl.transfer.ftp.session import FTPTransfer
from etl.transfer.ftp.sockets import dial
from etl.transfer.ftps import refusals
from etl.transfer.ftps.agreement import name_of
from etl.transfer.ftps.options import SECRETS, SETTINGS, Options, context_of, problems
from etl.transfer.ftps.security import Encrypted
from etl.transfer.ftps.tunnel import SecureSocket, Tunnel

_CRASHES = 2  # in a row, after which they are no accident

log = structlog.get_logger(__name__)


class FTPSTransfer(FTPTransfer):
    """One login at an FTPS server (RFC 4217), explicit or implicit."""

    spec: ClassVar[ProtocolSpec] = ProtocolSpec(
        default_port=21,
        other_ports={("TLS", "implicit"): 990},
        settings=SETTINGS,
        secrets=SECRETS,
        problems=problems,
    )
    _security: Encrypted | None = None

    def _new_security(self) -> Encrypted:
        self._security = Encrypted(self._sockets, self.server, self.settings, self._certificate_shown)
        return self._security

    def _connect(self, pipelining: Pipelining) -> None:
        self._security = None
        try:
            super()._connect(pipelining)
        except ServerUnavailable as error:
            raise self._explained(error) from error

    def _explained(self, error: ServerUnavailable) -> EtlError:
        """Return the error that tells more than a connection which ended, or stays silent."""
        security = self._security
        if security is None or self._sockets.is_cut:
            return error
        if isinstance(error.__cause__, ssl.SSLError):  # with TLS 1.3 a refusal comes behind the handshake
            return refusals.no_handshake(
                self.server, error.__cause__, is_implicit=security.agreement.options.is_implicit
            )
        if not (security.was_welcomed or security.agreement.options.is_implicit):
            hint = f"if TLS is expected from the first byte on, set {self.server.hostname}_TLS=implicit"
            return type(error)(f"{error}; {hint}", server=error.server)
        return error

    def disconnect(self) -> None:
        """Close everything, and note a server that seems to crash."""
        security = self._security
        if security is not None and security.secure_ways is not None and security.secure_ways.has_died_behind_data:
            quirks = known.of(self.server.address)
            quirks.crashes += 1
            if quirks.crashes == _CRASHES and security.agreement.version == "TLSv1.3":
                name = self.server.hostname
                log.warning("server ends its sessions behind downloads", server=name, hint=f"{name}_TLS_MAX=1.2")
            security.secure_ways = None  # it is counted once
        super().disconnect()

    def lifetime_seconds(self) -> float:
        """Return for how long data connections may offer the TLS session of this login."""
        return super().lifetime_seconds() if self._security is None else self._security.agreement.lifetime_seconds()

    def _certificate_shown(self) -> bytes | None:
        """Ask the server for its certificate only: nothing is sent in that connection, nor believed."""
        options = replace(Options.of(self.server), verifies=False, fingerprints=())
        settings, sockets = self.settings, self._sockets  # closed by whoever found the certificate wanting
        port = self.server.port or self.spec.port(self.server.options)
        sock = dial(sockets, self.server.host, port, settings.connect_timeout, settings.reply_timeout)
        if not options.is_implicit:
            limits = {"login": settings.login_timeout, "reply": settings.reply_timeout}
            control = Control(sock, sockets, self.server.hostname, Pipelining(self.server), **limits)
            control.expect_welcome().result()
            control.send("AUTH", b"TLS").result()
        secure = SecureSocket(sock, Tunnel(context_of(options), name_of(options, self.server)))
        sockets.replace(sock, secure)
        secure.shake_hands(settings.login_timeout)
        return secure.tunnel.tls.getpeercert(binary_form=True)

    def traits(self) -> dict[str, str]:
        """Ask what the server is like, and tell what was agreed on."""
        return super().traits() | (self._security.agreement.traits() if self._security is not None else {})
