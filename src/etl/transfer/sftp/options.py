"""The settings of an SFTP server beside the common ones, and what may be wrong with them."""

from __future__ import annotations

import difflib
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etl.transfer.properties import Properties

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from etl.models.server import ServerConfig

SETTINGS = {
    "KEY_FILE": "file of the private key",
    "KEY_PASSPHRASE": "pass phrase of the private key (or KEY_PASSPHRASE_FILE)",
    "CERT_FILE": "file of the certificate of the private key, as OpenSSH makes it",
    "AGENT": "socket of an agent, whose keys are used (with KEY_FILE: that one alone)",
    "KNOWN_HOSTS_FILE": "file of known host keys, as OpenSSH has it; or HOST_KEY",
    "HOST_KEY": "fingerprint of the server's key, SHA256:...; several with spaces between (jump hosts' too)",
    "JUMP": "host to go through, [USER@]HOST[:PORT]; several with commas between, the first one first",
    "SSH_LEGACY": "true: allow old algorithms (SHA-1, CBC), for servers that have no others",
    "SSH_OPTIONS": "further options of ssh, NAME=VALUE with spaces between",
    "BLOCK": "bytes of one read or write at most, 1024 to 261120; unset: what the server tells, else 32768",
    "PIPELINE": "files that may be open or being closed at once, 1 to 64; 1 for servers that take one at a time",
}
SECRETS = ("KEY_PASSPHRASE",)

LARGEST_BLOCK = 261_120  # asked for 256 KiB, some servers answer with a packet that is longer than they allow

_DEFAULT_PIPELINE = 16
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_HOP = re.compile(
    r"(?:([A-Za-z0-9_][A-Za-z0-9_.+@-]*)@)?([A-Za-z0-9][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?"
)

# Of ssh_config(5): how to reach the server and to log in. Not those that other settings stand for, that run commands
# there or here beside the connection, or that forward anything.
ALLOWED = [
    "AddressFamily",
    "BindAddress",
    "BindInterface",
    "CASignatureAlgorithms",
    "Ciphers",
    "Compression",
    "ConnectionAttempts",
    "EnableSSHKeysign",
    "GSSAPIAuthentication",
    "GSSAPIClientIdentity",
    "GSSAPIDelegateCredentials",
    "GSSAPIKeyExchange",
    "GSSAPIServerIdentity",
    "GSSAPITrustDns",
    "HostbasedAuthentication",
    "HostKeyAlgorithms",
    "HostKeyAlias",
    "IdentityAgent",
    "IPQoS",
    "KexAlgorithms",
    "MACs",
    "PKCS11Provider",
    "PreferredAuthentications",
    "ProxyCommand",
    "PubkeyAcceptedAlgorithms",
    "PubkeyAcceptedKeyTypes",
    "RekeyLimit",
    "RequiredRSASize",
    "RevokedHostKeys",
    "SecurityKeyProvider",
    "ServerAliveCountMax",
    "ServerAliveInterval",
    "TCPKeepAlive",
    "VerifyHostKeyDNS",
]
_BY_LOWER_NAME = {name.lower(): name for name in ALLOWED}
# With one of these a login may need neither a password nor a key of ours.
_OTHER_LOGINS = {"GSSAPIAuthentication", "HostbasedAuthentication", "IdentityAgent", "PKCS11Provider"}


@dataclass(frozen=True)
class Hop:
    """A host on the way."""

    host: str
    user: str = ""
    port: int = 22


@dataclass(frozen=True)
class Options:
    """The settings, parsed."""

    key_file: str = ""
    passphrase: str = ""
    certificate: str = ""
    agent: str = ""
    known_hosts: str = ""
    host_keys: tuple[str, ...] = ()
    jump: tuple[Hop, ...] = ()
    is_legacy: bool = False
    ssh_options: tuple[tuple[str, str], ...] = ()
    block_bytes: int | None = None
    pipeline: int = _DEFAULT_PIPELINE

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
    if not (
        server.password or options.key_file or options.agent or {n for n, _ in options.ssh_options} & _OTHER_LOGINS
    ):
        parsed.problems.setdefault("PASS", "is missing; so are KEY_FILE and AGENT: there is no way to log in")
    if re.search(r"[^ -~]|^-|\s", server.username):
        parsed.problems.setdefault("USER", "holds a space or a character that is not ASCII")
    return parsed.problems


class _Parsed(Properties):
    """The settings, one pass."""

    def options(self) -> Options:
        """Parse all."""
        options = Options(
            key_file=self._file("KEY_FILE"),
            passphrase=self._values.get("KEY_PASSPHRASE", ""),
            certificate=self._file("CERT_FILE"),
            agent=self._path("AGENT"),
            known_hosts=self._file("KNOWN_HOSTS_FILE"),
            host_keys=tuple(self._fingerprints()),
            jump=tuple(self._hops()),
            is_legacy=self._switch("SSH_LEGACY", default=False),
            ssh_options=tuple(self._ssh_options()),
            block_bytes=self._number("BLOCK", 1024, LARGEST_BLOCK, None),
            pipeline=self._number("PIPELINE", 1, 64, _DEFAULT_PIPELINE) or _DEFAULT_PIPELINE,
        )
        if options.known_hosts and options.host_keys:
            self.problems.setdefault("HOST_KEY", "only one of HOST_KEY and KNOWN_HOSTS_FILE may be set")
        for name in ("KEY_PASSPHRASE", "CERT_FILE"):
            if self._values.get(name) and not options.key_file:
                self.problems.setdefault(name, "needs KEY_FILE")
        if options.jump and any(name == "ProxyCommand" for name, _ in options.ssh_options):
            self.problems.setdefault("JUMP", "only one of JUMP and ProxyCommand (in SSH_OPTIONS) may be set")
        return options

    def _path(self, name: str) -> str:
        path = self._text(name)
        # ssh takes none of these as they are, in one place or another
        if path and (re.search(r"[\"%$\\\x00-\x1f]", path) or not path.startswith("/")):
            self.problems.setdefault(name, 'must begin with / and hold no ", %, $, backslash or control character')
            return ""
        return path

    def _fingerprints(self) -> Iterator[str]:
        for text in self._text("HOST_KEY").replace(",", " ").split():
            fingerprint = text.rstrip("=")
            if not _FINGERPRINT.fullmatch(fingerprint):
                self.problems.setdefault("HOST_KEY", "is no fingerprint: SHA256: and 43 characters of base64")
            yield fingerprint

    def _hops(self) -> Iterator[Hop]:
        for text in filter(None, self._text("JUMP").replace(" ", "").split(",")):
            found = _HOP.fullmatch(text)
            if found is None or int(found[3] or 22) not in range(1, 65536):
                self.problems.setdefault("JUMP", "is no [USER@]HOST[:PORT], nor a list of them with commas between")
                return
            yield Hop(found[2].strip("[]"), found[1] or "", int(found[3] or 22))

    def _ssh_options(self) -> Iterator[tuple[str, str]]:
        try:
            parts = shlex.split(self._values.get("SSH_OPTIONS", ""))
        except ValueError as error:
            self.problems.setdefault("SSH_OPTIONS", f"cannot be split into words: {error}")
            return
        for part in parts:
            name, equals, value = part.partition("=")
            known = _BY_LOWER_NAME.get(name.lower())
            if not equals or not value or not value.isprintable():
                self.problems.setdefault("SSH_OPTIONS", "is no list of NAME=VALUE with spaces between")
            elif known is None:
                near = difflib.get_close_matches(name, ALLOWED, n=1, cutoff=0.0)[0]
                self.problems.setdefault(
                    "SSH_OPTIONS", f"the option {name[:40]!r} is not among those that may be set (nearest: {near})"
                )
            else:
                yield known, value
