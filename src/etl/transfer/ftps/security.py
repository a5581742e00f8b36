"""How an FTPS session is encrypted: the control connection before the password is sent, then each data connection.

A TLS session belongs to one control connection: it is offered by each of its data connections, by no other, and is
not used for longer than its ticket lives. Nothing is ever sent in clear that was to be encrypted.
"""

from __future__ import annotations

import contextlib
import math
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.errors import ConnectionLost, EtlError, SettingsError
from etl.transfer.ftp.security import Security
from etl.transfer.ftps import refusals
from etl.transfer.ftps.data import ROOM_BYTES
from etl.transfer.ftps.opening import SecureDataConnections
from etl.transfer.ftps.options import OptionError, Options, context_of
from etl.transfer.ftps.tunnel import SecureSocket, Tunnel

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from etl.models.server import ServerConfig, TransferSettings
    from etl.transfer.ftp.control import Control
    from etl.transfer.ftp.known import ServerQuirks
    from etl.transfer.ftp.opening import DataConnections
    from etl.transfer.ftp.sockets import Sockets

_LIFETIME_PART = 0.8  # of a ticket's life, in which jobs may begin; the rest is for those that run
_UNTOLD_SECONDS = 1800.0  # of a session without a ticket: as long as ProFTPD keeps one
_AGAIN_SECONDS = 60.0  # between two looks for a newer ticket: each costs 0.4 ms
_ENCRYPTED = 234

_lock = threading.Lock()  # guards `_contexts`
_contexts: dict[Options, tuple[tuple[object, ...], ssl.SSLContext]] = {}


class Encrypted(Security):
    """TLS for one session."""

    def __init__(
        self, sockets: Sockets, server: ServerConfig, settings: TransferSettings, ask: Callable[[], bytes | None]
    ) -> None:
        super().__init__(sockets)
        self.server = server
        self.options = Options.of(server)
        self.context = _context(server, self.options)
        self.name = self.name_of(self.options, server)
        self.certificate = b""  # the server's, DER
        self.room = memoryview(bytearray(ROOM_BYTES))
        self.was_welcomed = False
        self._ask = ask  # for the certificate of a server whose handshake failed
        self._limit = settings.login_timeout
        self._control: SecureSocket | None = None
        self._session: ssl.SSLSession | None = None
        self._looked = -math.inf  # when for the newest session

    @staticmethod
    def name_of(options: Options, server: ServerConfig) -> str | None:
        """Return the name that the certificate must have, and that is sent; None: none is."""
        name = options.name or server.host
        return None if name == "-" else name

    @property
    def control(self) -> SecureSocket:
        """The control connection, which is encrypted."""
        assert self._control is not None  # noqa: S101 - nothing is asked before
        return self._control

    # --- the steps of a login -------------------------------------------------------------------------------

    def meet(self, sock: socket.socket) -> socket.socket:
        """Encrypt at once, where TLS is implicit."""
        return self._encrypt(sock) if self.options.is_implicit else sock

    def before_login(self, control: Control) -> None:
        """Ask for TLS, and encrypt; a refusal is an error, never a login in clear."""
        self.was_welcomed = True
        if self.options.is_implicit:
            return
        reply = control.send("AUTH", b"TLS").result()
        if reply.code != _ENCRYPTED:
            raise refusals.no_auth(self.server, reply)
        control.require_quiet()  # what came with the reply may not be taken for an answer that was encrypted
        control.sock = self._encrypt(control.sock)

    def after_login(self, control: Control) -> None:
        """Have data connections encrypted; and take the TLS session that they shall offer: its tickets have come."""
        control.send("PBSZ", b"0").result()
        level = b"P" if self.options.encrypts_data else b"C"
        reply = control.send("PROT", level).result()
        if not reply.is_success:
            what = f"the server does not take PROT {level.decode()}: {reply.text}"
            raise refusals.refused(self.server, what)

    def ways(
        self, control: Control, settings: TransferSettings, quirks: ServerQuirks, *, passive: bool, epsv: bool
    ) -> DataConnections:
        """Return what opens data connections."""
        if not self.options.encrypts_data:
            return super().ways(control, settings, quirks, passive=passive, epsv=epsv)
        return SecureDataConnections(self, control, settings, quirks, passive=passive, epsv=epsv)

    def _encrypt(self, sock: socket.socket) -> SecureSocket:
        secure = SecureSocket(sock, Tunnel(self.context, self.name))
        self.sockets.replace(sock, secure)
        try:
            secure.shake_hands(self._limit)
        except ssl.SSLCertVerificationError as error:
            raise refusals.not_trusted(self.server, error, self._seen()) from error
        except OSError as error:
            if self.sockets.is_cut:
                raise ConnectionLost(
                    f"{self.server.hostname}: the session was aborted", server=self.server.hostname
                ) from error
            raise refusals.no_handshake(self.server, error, is_implicit=self.options.is_implicit) from error
        self._control = secure
        self.certificate = secure.tunnel.tls.getpeercert(binary_form=True) or b""
        seen = refusals.fingerprint_of(self.certificate)
        if self.options.fingerprints and seen.replace(":", "") not in self.options.fingerprints:
            raise refusals.not_pinned(self.server, seen)
        return secure

    def _seen(self) -> str:
        """Return the fingerprint that the server shows: asked for in a connection that serves nothing else."""
        with contextlib.suppress(EtlError, OSError):
            if certificate := self._ask():
                return refusals.fingerprint_of(certificate)
        return ""

    # --- the session of TLS ---------------------------------------------------------------------------------

    def session(self) -> ssl.SSLSession | None:
        """Return what data connections offer."""
        now = time.monotonic()
        if now - self._looked > _AGAIN_SECONDS:
            self._session, self._looked = self.control.tunnel.tls.session, now
        return self._session

    def look_again(self) -> None:
        """Have the next data connection offer the newest session."""
        self._looked = -math.inf

    def lifetime_seconds(self) -> float:
        """Return for how long the session may be offered."""
        session = self.session() if self.options.encrypts_data else None
        if session is None or not (session.has_ticket or self.control.tunnel.tls.version() != "TLSv1.3"):
            return math.inf
        told = session.ticket_lifetime_hint if session.has_ticket else 0
        lives = float(told or _UNTOLD_SECONDS)
        return max(0.0, session.time + lives * _LIFETIME_PART - time.time())

    def traits(self) -> dict[str, str]:
        """Return what was agreed on: topic -> words."""
        tls = self.control.tunnel.tls
        cipher = tls.cipher()
        told = {"TLS": f"{tls.version()}, {cipher[0] if cipher else 'no cipher'}"}
        if shown := tls.getpeercert():
            told["certificate"] = (
                f"{_name(shown['subject'])}, by {_name(shown['issuer'])}, valid until {shown['notAfter']}"
            )
        else:
            told["certificate"] = "trusted by its fingerprint" if self.options.fingerprints else "not checked"
        told["fingerprint"] = refusals.fingerprint_of(self.certificate)
        return told


def _context(server: ServerConfig, options: Options) -> ssl.SSLContext:
    """Return the context of these settings, a new one once a file has changed. Raises SettingsError."""
    files = (options.authorities, options.certificate, options.key)
    stamps = tuple(_stamp(path) for path in files if path)
    with _lock:
        known = _contexts.get(options)
    if known is not None and known[0] == stamps:
        return known[1]
    try:
        context = context_of(options)
    except OptionError as error:
        raise SettingsError(f"{server.hostname}_{error.setting}: {error}", server=server.hostname) from error
    with _lock:
        _contexts[options] = stamps, context
    return context


def _stamp(path: str) -> object:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _name(pairs: Any) -> str:
    """Return the common name of a subject or issuer, as `getpeercert` has it; or else all of it."""
    found = {key: value for part in pairs for key, value in part}
    return str(found.get("commonName") or ", ".join(found.values()))
