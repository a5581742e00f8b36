"""What one FTPS session has agreed on with its server: the context, the certificate, and the TLS session to offer.

A TLS session belongs to one control connection: it is offered by each of its data connections, by no other, and is
not used for longer than its ticket lives.
"""

from __future__ import annotations

import math
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.errors import SettingsError
from etl.transfer.ftps import refusals
from etl.transfer.ftps.options import OptionError, Options, context_of
from etl.transfer.ftps.tunnel import Tunnel

if TYPE_CHECKING:
    from etl.models.server import ServerConfig

_LIFETIME_PART = 0.8  # of a ticket's life, in which jobs may begin; the rest is for those that run
_UNTOLD_SECONDS = 1800.0  # of a session without a ticket: as long as ProFTPD keeps one
_AGAIN_SECONDS = 60.0  # between two looks for a newer ticket: each costs 0.4 ms

_lock = threading.Lock()  # guards `_contexts`
_contexts: dict[Options, tuple[tuple[object, ...], ssl.SSLContext]] = {}


class Agreement:
    """TLS with one server, as one session has it."""

    def __init__(self, server: ServerConfig) -> None:
        self.server = server
        self.options = Options.of(server)
        self.context = _context(server, self.options)
        self.name = name_of(self.options, server)
        self.certificate = b""  # the server's, DER
        self.version = ""
        self._control: ssl.SSLObject | None = None
        self._session: ssl.SSLSession | None = None
        self._looked = -math.inf  # when for the newest session

    @property
    def control(self) -> ssl.SSLObject:
        """TLS of the control connection, whose handshake is done."""
        assert self._control is not None  # noqa: S101 - nothing is asked before
        return self._control

    def new_tunnel(self, session: ssl.SSLSession | None = None) -> Tunnel:
        """Return TLS for one connection more."""
        return Tunnel(self.context, self.name, session)

    def met(self, control: ssl.SSLObject) -> None:
        """Take note of the control connection's handshake. Raises CertificateRefused for one that is not pinned."""
        self._control, self.version = control, control.version() or ""
        self.certificate = control.getpeercert(binary_form=True) or b""
        seen = refusals.fingerprint_of(self.certificate)
        if self.options.fingerprints and seen.replace(":", "") not in self.options.fingerprints:
            raise refusals.not_pinned(self.server, seen)

    def session(self) -> ssl.SSLSession | None:
        """Return what data connections offer."""
        now = time.monotonic()
        if now - self._looked > _AGAIN_SECONDS:
            self._session, self._looked = self.control.session, now
        return self._session

    def look_again(self) -> None:
        """Have the next data connection offer the newest session."""
        self._looked = -math.inf

    def lifetime_seconds(self) -> float:
        """Return for how long jobs may begin that offer the session."""
        age, life = self._age_and_life()
        return max(0.0, life * _LIFETIME_PART - age)

    @property
    def has_aged(self) -> bool:
        """Is the session one that no server may know any more?"""
        age, life = self._age_and_life()
        return age > life

    def _age_and_life(self) -> tuple[float, float]:
        """Return the session's age, and how old it may become, in seconds."""
        session = self.session() if self.options.encrypts_data else None
        if session is None or not (session.has_ticket or self.version != "TLSv1.3"):
            return 0.0, math.inf
        told = session.ticket_lifetime_hint if session.has_ticket else 0
        return time.time() - session.time, float(told or _UNTOLD_SECONDS)

    def traits(self) -> dict[str, str]:
        """Return what was agreed on: topic -> words."""
        tls = self.control
        cipher = tls.cipher()
        told = {"TLS": f"{self.version}, {cipher[0] if cipher else 'no cipher'}"}
        if shown := tls.getpeercert():
            told["certificate"] = (
                f"{_name(shown['subject'])}, by {_name(shown['issuer'])}, valid until {shown['notAfter']}"
            )
        else:
            told["certificate"] = "trusted by its fingerprint" if self.options.fingerprints else "not checked"
        told["fingerprint"] = refusals.fingerprint_of(self.certificate)
        return told


def name_of(options: Options, server: ServerConfig) -> str | None:
    """Return the name that the certificate must have, and that is sent; None: none is."""
    name = options.name or server.host
    return None if name == "-" else name


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
