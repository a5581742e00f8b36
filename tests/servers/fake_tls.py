"""The small FTP servers of the tests under TLS: every step of it can be bent, too.

server = FakeTLS(certificate, files={"/a": b"..."})
server.tls.data = server.tls.context(other_certificate)
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import warnings
from typing import Any

from servers.certificates import Certificate
from servers.fake import FakeFTP, FakeSession
from servers.faulty import FaultyFTP, FaultySession

_RESET = struct.pack("ii", 1, 0)


class Polite(ssl.SSLSocket):
    """Says that no more will come before it closes, and waits for nothing."""

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) != _RESET:
                self.settimeout(0)
                with contextlib.suppress(ssl.SSLError):
                    self.unwrap()
                self.shutdown(socket.SHUT_WR)
        super().close()


class Rude(ssl.SSLSocket):
    """Closes without a word."""


class TLSPlan:
    """How a server encrypts: `control` and `data` are contexts, the same one unless a test says otherwise."""

    def __init__(self, certificate: Certificate, *, version: str = "", is_implicit: bool = False) -> None:
        self.certificate = certificate
        self.version = version
        self.is_implicit = is_implicit
        self.control = self.data = self.context(certificate)
        self.behind_auth = b""  # said in clear behind the reply to AUTH
        self.resumed: list[bool] = []  # of each data connection
        self.ends: list[str] = []  # how clients ended uploads

    def context(self, certificate: Certificate, **more: Any) -> ssl.SSLContext:
        """Return a context, which resumes its own sessions alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslsocket_class = Polite
        context.load_cert_chain(certificate.pem)
        if self.version:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the old versions
                version = ssl.TLSVersion[f"TLSv{self.version.replace('.', '_')}"]
                if version < ssl.TLSVersion.TLSv1_2:
                    context.set_ciphers("DEFAULT:@SECLEVEL=0")
                context.minimum_version = context.maximum_version = version
        for name, value in more.items():
            setattr(context, name, value)
        return context


class TLSSession(FakeSession):
    """One control connection."""

    is_private = False

    @property
    def tls(self) -> TLSPlan:
        """How to encrypt."""
        plan: TLSPlan = self.server.tls  # type: ignore[attr-defined]  # of those below
        return plan

    def run(self) -> None:
        """Serve."""
        if self.tls.is_implicit:
            try:
                self.encrypt()
            except OSError:
                self.drop()
                return
        super().run()

    def encrypt(self) -> None:
        """Go on in TLS."""
        self.sock = self.server.keep(self.tls.control.wrap_socket(self.sock, server_side=True))

    def auth(self, _: str) -> None:
        self.sock.sendall(b"234 Go on.\r\n" + self.tls.behind_auth)
        self.encrypt()

    def pbsz(self, _: str) -> str:
        return "200 Ok."

    def prot(self, argument: str) -> str:
        self.is_private = argument == "P"
        return "200 Ok."

    def plain_data(self) -> socket.socket:
        """Return the agreed data connection before its handshake."""
        return super().data()

    def data(self) -> socket.socket:
        """Return the agreed data connection."""
        sock = super().data()
        if not self.is_private:
            return sock
        secure = self.tls.data.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
        self.tls.resumed.append(bool(secure.session_reused))
        return self.server.keep(secure)

    def receive_data(self) -> bytes:
        """Receive up to the end of file, and note how that came."""
        received = b""
        with self.data() as sock:
            try:
                while piece := sock.recv(65536):
                    received += piece
            except ssl.SSLEOFError:
                self.tls.ends.append("ragged")
            else:
                self.tls.ends.append("said")
        return received


class FakeTLS(FakeFTP):
    """The server with files in memory."""

    session_type = TLSSession

    def __init__(
        self, certificate: Certificate, *, version: str = "", is_implicit: bool = False, **behaviour: Any
    ) -> None:
        self.tls = TLSPlan(certificate, version=version, is_implicit=is_implicit)
        super().__init__(**behaviour)


class FaultyTLSSession(TLSSession, FaultySession):
    """One control connection of a server that goes wrong."""

    server: FaultyFTP


class FaultyTLS(FaultyFTP):
    """The server with files on the disk that goes wrong."""

    session_type = FaultyTLSSession

    def __init__(self, certificate: Certificate, *arguments: Any, version: str = "", **behaviour: Any) -> None:
        self.tls = TLSPlan(certificate, version=version)
        super().__init__(*arguments, **behaviour)
