"""The ssh command of a session: its arguments, which anybody may read, and its environment, where the secrets are."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etl.models.server import ServerConfig
    from etl.transfer.sftp.options import Hop, Options

ASKPASS = Path(__file__).with_name("askpass.sh")

# The choices of the system (Fedora, RHEL, Rocky) go before ours: it may be in FIPS mode.
CRYPTO_POLICY = Path("/etc/crypto-policies/back-ends/openssh.config")

# Cheapest first. OpenSSH prefers a key exchange that costs ten times the CPU, and a cipher that costs twice as much.
_KEY_EXCHANGES = "curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,ecdh-sha2-nistp384"
_MORE_KEY_EXCHANGES = "diffie-hellman-group-exchange-sha256,diffie-hellman-group16-sha512,diffie-hellman-group14-sha256"
_CIPHERS = (
    "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr"
)
_LEGACY = {
    "HostKeyAlgorithms": "+ssh-rsa",
    "PubkeyAcceptedKeyTypes": "+ssh-rsa",  # the name that OpenSSH before 8.5 knows, and later versions, too
    "KexAlgorithms": "+diffie-hellman-group14-sha1,diffie-hellman-group-exchange-sha1,diffie-hellman-group1-sha1",
    "Ciphers": "+aes128-cbc,aes192-cbc,aes256-cbc,3des-cbc",
    "MACs": "+hmac-sha1",
}


def arguments(ssh: str, server: ServerConfig, options: Options, port: int, connect_limit: float) -> list[str]:
    """Return the command that opens an SFTP conversation on its standard input and output."""
    common = list(_common(options, server, connect_limit))
    chain = ["-o", f"ProxyCommand={_through(ssh, options.jump, common)}"] if options.jump else []
    who = ["-l", server.username, "-p", str(port)]
    return [ssh, *common, *chain, *who, "-s", "--", server.host, "sftp"]


def environment(server: ServerConfig, options: Options) -> dict[str, str]:
    """Return all that ssh, and whoever it runs, finds in the environment: nothing of ours, secrets of other servers."""
    return {
        "PATH": os.defpath,
        "SHELL": "/bin/sh",  # runs ProxyCommand
        "SSH_ASKPASS": str(ASKPASS),
        "SSH_ASKPASS_REQUIRE": "force",  # OpenSSH 8.4; before that: a display, and no terminal
        "DISPLAY": "none:0",
        "ETL_SSH_PASSWORD": server.password,
        "ETL_SSH_PASSPHRASE": options.passphrase,
        "ETL_SSH_KEY_FILE": options.key_file,
        "ETL_SSH_HOST_KEYS": " ".join(options.host_keys),
    }


def _common(options: Options, server: ServerConfig, connect_limit: float) -> Iterator[str]:
    """Yield what every ssh of a session gets, those of its jump hosts too. The first value of an option counts."""
    for name, value in options.ssh_options:
        yield from ("-o", f"{name}={value}")
    has_policy = CRYPTO_POLICY.exists()
    yield from ("-F", str(CRYPTO_POLICY) if has_policy else "none")
    yield from ("-a", "-x", "-T", "-e", "none")  # nothing is forwarded, no terminal
    for name, value in _settings(options, server, connect_limit, has_policy=has_policy).items():
        yield from ("-o", f"{name}={value}")
    if options.key_file:
        yield from ("-i", options.key_file)


def _settings(options: Options, server: ServerConfig, connect_limit: float, *, has_policy: bool) -> dict[str, str]:
    has_key = bool(options.key_file)
    ways = ["gssapi-with-mic", "hostbased", "publickey"] if options.ssh_options else []
    if has_key or options.agent:
        ways = ways or ["publickey"]
    if server.password:
        ways += ["password", "keyboard-interactive"]
    found = {
        "LogLevel": "DEBUG1",  # tells how far a login came, and the host key; see `login`
        "ConnectTimeout": str(math.ceil(connect_limit)),
        "ConnectionAttempts": "1",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "3",
        "ControlMaster": "no",
        "ControlPath": "none",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        # A key that is not known is asked about, and the answer is in askpass.sh: no, unless it is pinned.
        "StrictHostKeyChecking": "ask",
        "UserKnownHostsFile": f'"{options.known_hosts}"' if options.known_hosts else "/dev/null",
        "GlobalKnownHostsFile": "/dev/null",
        "UpdateHostKeys": "no",
        "CheckHostIP": "no",
        # One try each: servers count them, and lock accounts.
        "NumberOfPasswordPrompts": "1",
        "PreferredAuthentications": ",".join(ways) or "publickey",
        "IdentitiesOnly": "yes" if has_key else "no",
        "IdentityAgent": f'"{options.agent}"' if options.agent else "none",
    }
    if not has_key:
        found["IdentityFile"] = "none"
    if options.certificate:
        found["CertificateFile"] = f'"{options.certificate}"'
    if options.is_legacy:
        found.update(_LEGACY)
    elif not has_policy:
        found.update(KexAlgorithms=f"{_KEY_EXCHANGES},{_MORE_KEY_EXCHANGES}", Ciphers=_CIPHERS)
    return found


def _through(ssh: str, hops: tuple[Hop, ...], common: list[str]) -> str:
    """Return the shell command that leads through these hosts, for the option ProxyCommand."""
    *before, last = hops
    chain = ["-o", f"ProxyCommand={_through(ssh, tuple(before), common)}"] if before else []
    who = [*(("-l", last.user) if last.user else ()), "-p", str(last.port)]
    words = [ssh, *common, *chain, *who, "-W", "\0", "--", last.host]
    return shlex.join(words).replace("%", "%%").replace("\0", "[%h]:%p")
