"""A server, the limits of a session to it, and what the settings must know of its protocol.

Filled in by `config`, read by `transfer`; re-exported by `etl.config`. Knows no environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ProtocolSpec:
    """What the settings must know of a protocol; a transfer class declares it as `spec`.

    `settings` are properties of its own beside the common ones: PROPERTY -> one line of description. Those in
    `secrets` may come from a file, named by PROPERTY_FILE. `problems` says what is wrong with a server's, by property.
    """

    default_port: int | None = None
    needs_host: bool = True
    needs_login: bool = True
    needs_password: bool = True  # of those that need a login
    base_is_absolute: bool = False  # a BASE_PATH that is not would depend on where the process was started
    settings: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    problems: Callable[[ServerConfig], Mapping[str, str]] | None = None


PROTOCOLS: dict[str, ProtocolSpec] = {}  # lower-case type -> spec; filled by TransferFactory.register


@dataclass(frozen=True)
class TransferSettings:
    """Limits of one session, in seconds; given to every transfer."""

    connect_timeout: float = 10.0
    login_timeout: float = 30.0
    reply_timeout: float = 60.0
    stall_timeout: float = 60.0
    min_bytes_per_second: float = 10.0  # averaged over `stall_timeout` seconds of waiting; 0: any rate will do
    passive: bool = True  # FTP_PASSIVE_MODE; a server's own PASSIVE wins
    spool_limit_bytes: int = 10 << 30  # of a file that must pass through a temporary one


@dataclass(frozen=True)
class ServerConfig:
    """One server: the `{NAME}_{PROPERTY}` of the settings, parsed."""

    hostname: str  # the NAME, upper case: what jobs call it
    type: str  # lower case
    host: str = ""
    port: int = 0  # 0: the protocol has none
    username: str = ""
    password: str = field(default="", repr=False)
    max_connections: int = 8
    connects_per_minute: int = 300
    prewarm: int = 0
    passive: bool | None = None  # None: FTP_PASSIVE_MODE
    encoding: str | None = None  # None: what the server offers
    base_path: str = ""
    partial_pattern: str = ".etl-{id}.part"
    options: Mapping[str, str] = field(default_factory=dict, repr=False)  # the protocol's own; may hold secrets

    @property
    def address(self) -> tuple[str, str, int, str]:
        """What names of the same server and user have in common: they share one limit of sessions."""
        return (self.type, self.host.lower(), self.port, self.username)
