"""Logging in: ssh is started, and what it says on its way becomes an error, or what is known of the server."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from etl.errors import (
    AuthenticationFailed,
    ConnectionLost,
    EtlError,
    HostKeyRefused,
    ServerBusy,
    ServerUnavailable,
)
from etl.transfer.sftp.child import Child, last_line
from etl.transfer.sftp.command import arguments, environment
from etl.transfer.sftp.packets import MalformedError
from etl.transfer.sftp.wire import Wire

if TYPE_CHECKING:
    from etl.models.server import ServerConfig, TransferSettings
    from etl.transfer.sftp.options import Options

MISSING_SSH = (
    "the program ssh is not installed; it is in the package openssh-clients (dnf) or openssh-client (apt-get install)"
)
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_BEFORE_THE_BANNER = ("kex_exchange_identification", "ssh_exchange_identification", "Not allowed at this time")
_NO_COMMON_WAY = re.compile(r"Unable to negotiate.*no matching .* found\..*")
_NO_PASS_PHRASE = re.compile(r"(?:Server accepts key|Trying private key): .*\n.*read_passphrase")
_REFUSED = re.compile(r"Permission denied \(([^)]*)\)|Too many authentication failures|Authentication failed")


def start_ssh(server: ServerConfig, settings: TransferSettings, options: Options, port: int) -> Child:
    """Start the ssh of a session. Raises ServerUnavailable when there is none."""
    ssh = shutil.which("ssh")
    if ssh is None:
        raise ServerUnavailable(f"{server.hostname}: {MISSING_SSH}", server=server.hostname)
    command = arguments(ssh, server, options, port, settings.connect_timeout)
    try:
        return Child(command, environment(server, options))
    except OSError as error:
        raise ServerUnavailable(f"{server.hostname}: ssh cannot be started: {error}", server=server.hostname) from error


def log_in(child: Child, server: ServerConfig, settings: TransferSettings) -> tuple[Wire, dict[bytes, bytes]]:
    """Wait until the server greets; return the conversation and the server's extensions."""
    wire = Wire(child, server.hostname, settings.reply_timeout)
    limit = settings.connect_timeout + settings.login_timeout
    name = server.hostname
    try:
        return wire, wire.greet(limit)
    except TimeoutError as error:
        raise ServerUnavailable(
            f"{name}: not logged in within {limit:g} s (ETL_CONNECT_TIMEOUT_SECONDS, ETL_LOGIN_TIMEOUT_SECONDS); "
            f"{_progress(child.said)}",
            server=name,
        ) from error
    except MalformedError as error:
        raise AuthenticationFailed(
            f"{name}: the login does not lead to SFTP ({error}); does it print something at its start?", server=name
        ) from error
    except OSError as error:
        why = child.why_ended()  # hears the rest
        if child.is_cut:
            raise lost(name, why) from error
        raise why_refused(server, child.said) from error


def why_refused(server: ServerConfig, said: str) -> EtlError:
    """Return the error for a login that failed, from what ssh said."""
    name = server.hostname
    last = last_line(said) or "ssh ended without a word"
    if "Host key verification failed" in said:
        return HostKeyRefused(f"{name}: {_why_not_trusted(said)}", server=name)
    if "subsystem request failed" in said:
        return AuthenticationFailed(f"{name}: this login may not use SFTP ({last})", server=name)
    if _REFUSED.search(said) and "Authenticated to" not in said:
        return AuthenticationFailed(f"{name}: {_why_not_let_in(said)}", server=name)
    if (found := _NO_COMMON_WAY.search(said)) is not None:
        return ServerUnavailable(f"{name}: {found[0][:300]}; {name}_SSH_LEGACY=true allows old algorithms", server=name)
    if any(words in said for words in _BEFORE_THE_BANNER) and "timed out" not in said:
        return ServerBusy(f"{name}: the server ended the connection before its banner: {last}", server=name)
    if "No user exists for uid" in said:
        last = f"{last}: ssh needs an entry in /etc/passwd for the user that it runs as"
    if "Authenticated to" in said:
        last = f"logged in, but SFTP did not start: {last}"
    return ServerUnavailable(f"{name}: {last}", server=name)


def facts_of(said: str) -> dict[str, str]:
    """Return what ssh told of the server: its software, its host key, what was negotiated."""
    patterns = {
        "server": r"remote software version (\S+)",
        "host key": r"Server host key: (\S+ SHA256:\S+)",
        "cipher": r"kex: server->client cipher: (\S+)",
        "key exchange": r"kex: algorithm: (\S+)",
        "login by": r'Authenticated to .* using "([^"]+)"|Authentication succeeded \(([^)]+)\)',
    }
    found = {}
    for name, pattern in patterns.items():
        matches = list(re.finditer(pattern, said))
        if matches:  # the last one: jump hosts come first
            found[name] = next(filter(None, matches[-1].groups()))
    return found


def _why_not_trusted(said: str) -> str:
    before = said.partition("Host key verification failed")[0]
    seen = _FINGERPRINT.findall(before)
    key = seen[-1] if seen else "none"
    what = "has changed" if "HOST IDENTIFICATION HAS CHANGED" in before else "is not known"
    return (
        f"its host key {what}: it shows {key}. If that is the right one (ask its administrator), set HOST_KEY to it, "
        "or put the key into KNOWN_HOSTS_FILE"
    )


def _why_not_let_in(said: str) -> str:
    lines = [line for line in said.splitlines() if not line.startswith("debug")]
    # Of a key that could not be read ssh says so first, then goes on without it.
    hints = [line.strip() for line in lines if line.startswith(("Load key", "ssh_askpass", "sign_and_send_pubkey"))]
    hints += ["no such key file" for line in lines if "not accessible" in line]
    if _NO_PASS_PHRASE.search(said):
        hints.append("the pass phrase of KEY_FILE is missing, or wrong")
    refused = [line.strip() for line in lines if _REFUSED.search(line)]
    return "; ".join(["the login is refused", *dict.fromkeys([*refused[-1:], *hints])])[:400]


def _progress(said: str) -> str:
    """Return how far a login came."""
    if "Authenticated to" in said:
        return "logged in, but SFTP did not start"
    if "Server host key:" in said:
        return "the server did not decide on the login"
    if "remote software version" in said:
        return "the server did not finish the key exchange"
    if "Connection established" in said:
        return "the server sent no banner"
    return "no connection"


def lost(server: str, why: str) -> ConnectionLost:
    """Return the error for a session that is not there."""
    return ConnectionLost(f"{server}: {why}", server=server)
