"""Why a connection is not encrypted as it was asked for: each reason in its own sentence, with what to do."""

from __future__ import annotations

import hashlib
import re
import ssl
from typing import TYPE_CHECKING

from etl.errors import CertificateRefused, EncryptionRefused, EtlError, ServerBusy, ServerUnavailable

if TYPE_CHECKING:
    from etl.models.server import ServerConfig
    from etl.transfer.ftp.replies import Reply

_CERTIFICATES = {  # X509_V_ERR_... -> what is wrong
    9: "its certificate is not valid yet (is the clock right?)",
    10: "its certificate has expired",
    62: "its certificate is another host's",
    64: "its certificate is another host's",
}
_UNKNOWN = "its certificate is signed by nobody who is trusted"
_NO_TLS = {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
_NO_COMMON_VERSION = {
    "UNSUPPORTED_PROTOCOL",
    "NO_PROTOCOLS_AVAILABLE",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "LEGACY_SIGALG_DISALLOWED_OR_UNSUPPORTED",
    "UNSAFE_LEGACY_RENEGOTIATION_DISABLED",
}
_TOO_WEAK = {
    "DH_KEY_TOO_SMALL",
    "EE_KEY_TOO_SMALL",
    "CA_KEY_TOO_SMALL",
    "CA_MD_TOO_WEAK",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
    "NO_CIPHERS_AVAILABLE",
}
_WANTS_OURS = re.compile(r"ALERT_(CERTIFICATE_\w+|\w+_CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED)|SSLV3_ALERT_HANDSHAKE")
_SAYS_REUSE = re.compile(r"reus|resum", re.IGNORECASE)
_NO_AUTH = "the server refuses to encrypt (AUTH TLS: {}); it may know no TLS, or want TLS=implicit"


def fingerprint_of(certificate: bytes) -> str:
    """Return the SHA-256 of a certificate (DER), as it is shown."""
    return hashlib.sha256(certificate).digest().hex(":").upper()


def refused(server: ServerConfig, what: str) -> EncryptionRefused:
    """Return the error for a server that does not encrypt as it was asked to."""
    return EncryptionRefused(f"{server.hostname}: {what}", server=server.hostname)


def no_auth(server: ServerConfig, reply: Reply) -> EtlError:
    """Return the error for a refused AUTH: for good, or for now."""
    if reply.is_transient:
        return ServerBusy(f"{server.hostname}: no TLS now: {reply.text}", server=server.hostname)
    return refused(server, _NO_AUTH.format(reply.text))


def was_clear(error: OSError) -> bool:
    """Was a handshake answered in clear?"""
    return isinstance(error, ssl.SSLError) and error.reason in _NO_TLS


def no_handshake(server: ServerConfig, error: OSError, *, is_implicit: bool) -> EtlError:
    """Return the error for a control connection that was not encrypted. Not for certificates."""
    reason = (getattr(error, "reason", None) or "") if isinstance(error, ssl.SSLError) else ""
    if was_clear(error) and is_implicit:
        what = f"what the server says is no TLS; {server.hostname}_TLS=explicit may be right ({reason})"
        return refused(server, what)
    if reason in _NO_COMMON_VERSION:
        what = f"no version of TLS that both allow ({reason}); old servers need {server.hostname}_TLS_MIN=1.0"
        return refused(server, what)
    if _WANTS_OURS.search(reason) and server.options.get("TLS_CERT_FILE", "").strip():
        return refused(server, f"the server refuses our certificate, TLS_CERT_FILE ({reason})")
    if reason in _TOO_WEAK:
        what = f"no ciphers or keys that both allow ({reason}); weak ones: TLS_CIPHERS=DEFAULT:@SECLEVEL=0"
        return refused(server, f"{what}; or the server asks for a certificate: TLS_CERT_FILE")
    if _WANTS_OURS.search(reason):
        return refused(server, f"the server asks for a certificate of ours: TLS_CERT_FILE is not set ({reason})")
    where = "; if it does not begin with TLS set TLS=explicit" if is_implicit else ""
    return ServerUnavailable(f"{server.hostname}: no TLS handshake: {error}{where}", server=server.hostname)


def not_trusted(server: ServerConfig, error: ssl.SSLCertVerificationError, seen: str) -> CertificateRefused:
    """Return the error for a certificate that was refused; `seen`: the fingerprint of the one that is shown."""
    what = _CERTIFICATES.get(error.verify_code, _UNKNOWN)
    return CertificateRefused(
        f"{server.hostname}: {what}: {error.verify_message}. It shows {seen or 'no certificate any more'}. If that is "
        f"the right one (ask its administrator), set {server.hostname}_TLS_FINGERPRINT to it; or TLS_CA_FILE, TLS_NAME",
        server=server.hostname,
    )


def not_pinned(server: ServerConfig, seen: str) -> CertificateRefused:
    """Return the error for a certificate that is not the one that is set."""
    return CertificateRefused(
        f"{server.hostname}: its certificate is not the one in TLS_FINGERPRINT: it shows {seen}. If that is the right "
        "one (ask its administrator), set it",
        server=server.hostname,
    )


def another_one(server: ServerConfig) -> CertificateRefused:
    """Return the error for a data connection with a certificate that is not the control connection's."""
    what = "its data connection shows another certificate than its control connection: somebody may be in between"
    return CertificateRefused(f"{server.hostname}: {what}", server=server.hostname)


def says_reuse(reply: Reply) -> bool:
    """Does a refusal say that the data connection's TLS session should have been the control connection's?"""
    return _SAYS_REUSE.search(reply.text) is not None
