"""The settings of an FTPS server beside the common ones, and what may be wrong with them."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etl.transfer.properties import Properties

if TYPE_CHECKING:
    from collections.abc import Mapping

    from etl.models.server import ServerConfig

SETTINGS = {
    "TLS": "explicit (AUTH TLS) or implicit (TLS from the first byte, port 990); unset: explicit",
    "TLS_VERIFY": "false: any certificate will do, so that anybody on the way can read and change files",
    "TLS_CA_FILE": "file of the certificates (PEM) of whom to trust; unset: the system's",
    "TLS_FINGERPRINT": "SHA-256 of the server's certificate, which alone is trusted then; several with spaces between",
    "TLS_NAME": "name that the certificate must have, if it is not HOST; -: none is sent (needs TLS_FINGERPRINT)",
    "TLS_MIN": "oldest version of TLS: 1.0 (with weak ciphers, too), 1.2 or 1.3; unset: 1.2",
    "TLS_MAX": "newest version of TLS: 1.2 or 1.3; unset: the newest that there is",
    "TLS_CIPHERS": "ciphers of TLS before 1.3, as OpenSSL lists them",
    "TLS_CERT_FILE": "file of our own certificate (PEM), for servers that ask for one",
    "TLS_KEY_FILE": "file of its private key; unset: it is in TLS_CERT_FILE",
    "TLS_KEY_PASSPHRASE": "pass phrase of the private key (or TLS_KEY_PASSPHRASE_FILE)",
    "TLS_DATA": "false: files and listings in clear, commands and passwords encrypted",
}
SECRETS = ("TLS_KEY_PASSPHRASE",)

_OLD = ssl.TLSVersion.MINIMUM_SUPPORTED
_OLDEST = {"1.0": _OLD, "1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_NEWEST = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_MODES = ("explicit", "implicit")
_FINGERPRINT = re.compile(r"[0-9A-F]{64}")


@dataclass(frozen=True)
class Options:
    """The settings, parsed."""

    is_implicit: bool = False
    verifies: bool = True
    authorities: str = ""
    fingerprints: tuple[str, ...] = ()  # upper case, without colons
    name: str = ""
    oldest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED
    ciphers: str = ""
    certificate: str = ""
    key: str = ""
    passphrase: str = ""
    encrypts_data: bool = True

    @classmethod
    def of(cls, server: ServerConfig) -> Options:
        """Return those of a server. Raises SettingsError for the first that is wrong."""
        parsed = _Parsed(server.options)
        options = parsed.options()
        parsed.require_right(server)
        return options


def problems(server: ServerConfig) -> Mapping[str, str]:
    """Return what is wrong with a server's settings, by property; no value is repeated that may be secret."""
    parsed = _Parsed(server.options)
    options = parsed.options()
    if not parsed.problems:
        try:
            context_of(options)
        except OptionError as error:
            parsed.problems[error.setting] = str(error)
    return parsed.problems


class OptionError(ValueError):
    """Raised for a setting with which no context can be made."""

    def __init__(self, setting: str, what: str) -> None:
        super().__init__(what)
        self.setting = setting


def context_of(options: Options) -> ssl.SSLContext:
    """Return what TLS connections are made of. Raises OptionError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options |= ssl.OP_NO_RENEGOTIATION
    is_old = options.oldest is _OLD
    if is_old:  # such servers know no secure renegotiation; ssl.OP_LEGACY_SERVER_CONNECT has a name from 3.12 on
        context.options |= 0x4
    context.minimum_version, context.maximum_version = options.oldest, options.newest
    try:
        if options.ciphers or is_old:
            context.set_ciphers(options.ciphers or "DEFAULT:@SECLEVEL=0")
    except ssl.SSLError as error:
        raise OptionError("TLS_CIPHERS", "OpenSSL knows none of these ciphers") from error
    if options.fingerprints or not options.verifies:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        # With "partial" a file of authorities may as well hold the server's own certificate.
        context.verify_flags |= ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
        _trust(context, options)
    if options.certificate:
        _show(context, options)
    return context


def _trust(context: ssl.SSLContext, options: Options) -> None:
    if not options.authorities:
        context.set_default_verify_paths()
        return
    try:
        context.load_verify_locations(options.authorities)
    except ssl.SSLError as error:
        raise OptionError("TLS_CA_FILE", "the file contains no certificate in PEM format") from error
    except OSError as error:
        raise OptionError("TLS_CA_FILE", f"the file cannot be read: {error.strerror}") from error


def _show(context: ssl.SSLContext, options: Options) -> None:
    try:
        # Without an answer here OpenSSL would ask at the terminal.
        context.load_cert_chain(options.certificate, options.key or None, lambda: options.passphrase or " ")
    except ssl.SSLError as error:
        why = "holds no certificate with its private key in PEM format, or TLS_KEY_PASSPHRASE is wrong"
        raise OptionError("TLS_KEY_FILE" if options.key else "TLS_CERT_FILE", why) from error
    except OSError as error:
        raise OptionError("TLS_CERT_FILE", f"the file cannot be read: {error.strerror}") from error


class _Parsed(Properties):
    """The settings, one pass."""

    def options(self) -> Options:
        """Parse all."""
        options = Options(
            is_implicit=self._mode() == "implicit",
            verifies=self._switch("TLS_VERIFY", default=True),
            authorities=self._file("TLS_CA_FILE"),
            fingerprints=tuple(self._fingerprints()),
            name=self._text("TLS_NAME"),
            oldest=self._version("TLS_MIN", _OLDEST, ssl.TLSVersion.TLSv1_2),
            newest=self._version("TLS_MAX", _NEWEST, ssl.TLSVersion.MAXIMUM_SUPPORTED),
            ciphers=self._text("TLS_CIPHERS"),
            certificate=self._file("TLS_CERT_FILE"),
            key=self._file("TLS_KEY_FILE"),
            passphrase=self._values.get("TLS_KEY_PASSPHRASE", ""),
            encrypts_data=self._switch("TLS_DATA", default=True),
        )
        if self._text("TLS_MIN") == "1.3" and self._text("TLS_MAX") == "1.2":
            self.problems.setdefault("TLS_MAX", "is older than TLS_MIN")
        if options.fingerprints:
            for name in ("TLS_CA_FILE", "TLS_VERIFY"):
                if self._text(name):
                    self.problems.setdefault(name, "must not be set beside TLS_FINGERPRINT, which alone counts then")
        elif not options.verifies and options.authorities:
            self.problems.setdefault("TLS_CA_FILE", "means nothing beside TLS_VERIFY=false")
        if options.name == "-" and options.verifies and not options.fingerprints:
            self.problems.setdefault("TLS_NAME", "with - no name can be checked: TLS_FINGERPRINT must be set")
        if not re.fullmatch(r"-|[A-Za-z0-9]?[A-Za-z0-9_.:-]*", options.name) or options.name.startswith("."):
            self.problems.setdefault("TLS_NAME", "is no host name or address")
        for name in ("TLS_KEY_FILE", "TLS_KEY_PASSPHRASE"):
            if self._values.get(name) and not options.certificate:
                self.problems.setdefault(name, "needs TLS_CERT_FILE")
        return options

    def _mode(self) -> str:
        mode = self._text("TLS").lower()
        if mode and mode not in _MODES:
            self.problems.setdefault("TLS", "is neither explicit nor implicit; in clear is TYPE=ftp")
        return mode

    def _version(self, name: str, versions: Mapping[str, ssl.TLSVersion], default: ssl.TLSVersion) -> ssl.TLSVersion:
        text = self._text(name)
        if text and text not in versions:
            self.problems.setdefault(name, f"is none of {', '.join(versions)}")
        return versions.get(text, default)

    def _fingerprints(self) -> list[str]:
        found = []
        for text in self._text("TLS_FINGERPRINT").replace(",", " ").split():
            fingerprint = text.removeprefix("SHA256:").replace(":", "").upper()
            if not _FINGERPRINT.fullmatch(fingerprint):
                what = "is no SHA-256 fingerprint: 64 hexadecimal digits, with or without colons between"
                self.problems.setdefault("TLS_FINGERPRINT", what)
            found.append(fingerprint)
        return found
