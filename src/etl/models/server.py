"""A server, the limits of a session with it, and what the settings must know about its protocol.

Filled in by `config`, read by `transfer`, re-exported by `etl.config`. Knows no environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from etl.models.timetable import Timetable


@dataclass(frozen=True)
class ProtocolSpec:
    """What the settings must know about a protocol; its session class declares it as `spec`.

    `settings` maps properties that only this protocol has to a description of one line; those in `secrets` may be in
    a file that PROPERTY_FILE names. `problems` returns what is wrong with a server's settings, by property. `placed`
    returns a server with the address and login that settings of its own tell.
    """

    default_port: int | None = None
    other_ports: Mapping[tuple[str, str], int] = field(default_factory=dict)  # default ports where a property says so
    needs_host: bool = True
    needs_login: bool = True
    needs_base: bool = False  # BASE_PATH must be set: without one, jobs would reach every file there is
    needs_password: bool = True  # if it needs a login
    base_is_absolute: bool = False  # BASE_PATH must start with /: it would otherwise depend on the current folder
    settings: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    problems: Callable[[ServerConfig], Mapping[str, str]] | None = None
    placed: Callable[[ServerConfig], ServerConfig] | None = None

    def port(self, properties: Mapping[str, str]) -> int:
        """Return the default port of a server with these properties, 0: it has none."""
        for (name, value), port in self.other_ports.items():
            if properties.get(name, "").strip().lower() == value:
                return port
        return self.default_port or 0


RIGHTS = ("read", "write", "move", "delete")  # what jobs may do at a server

PROTOCOLS: dict[str, ProtocolSpec] = {}  # by type in lower case; filled by TransferFactory.register


@dataclass(frozen=True)
class TransferSettings:
    """Limits of one session, given to every transfer. Timeouts are in seconds."""

    connect_timeout: float = 10.0
    login_timeout: float = 30.0
    reply_timeout: float = 60.0
    stall_timeout: float = 60.0
    min_bytes_per_second: float = 10.0  # average over `stall_timeout` seconds of waiting; 0: no minimum
    passive: bool = True  # FTP_PASSIVE_MODE; overridden by a server's own PASSIVE
    spool_limit_bytes: int = 10 << 30  # the largest file that may go through a temporary file
    read_back_limit_bytes: int = 1 << 30  # the largest file that is read back to prove it
    max_file_bytes: int = 0  # the largest file that may be copied; 0: no limit
    resume_from_bytes: int = 64 << 20  # size of a file from which on it is gone on with after a cut


def zone_of(text: str) -> tzinfo:
    """Return the time zone of a name (`Asia/Seoul`), or of an offset (`+09:00`); UTC without. Raises ValueError."""
    if not text:
        return UTC
    if (offset := re.fullmatch(r"([+-])(\d{1,2}):?([0-5]\d)", text)) is not None:
        minutes = int(offset[2]) * 60 + int(offset[3])
        return timezone(timedelta(minutes=-minutes if offset[1] == "-" else minutes))
    try:
        return ZoneInfo(text)
    except (KeyError, OSError) as error:
        raise ValueError(f"{text!r} is not a time zone") from error


@dataclass(frozen=True)
class ServerConfig:
    """One server: the parsed `{NAME}_{PROPERTY}` settings."""

    hostname: str  # the NAME in upper case, by which jobs refer to it
    type: str  # lower case
    host: str = ""
    port: int = 0  # 0: the protocol has no ports
    username: str = ""
    password: str = field(default="", repr=False)
    max_connections: int = 8
    connects_per_minute: int = 300
    prewarm: int = 0
    bandwidth: Timetable | None = None  # in each direction, for all processes of a group together; None: no limit
    passive: bool | None = None  # None: FTP_PASSIVE_MODE
    encoding: str | None = None  # None: as the server offers
    base_path: str = ""
    partial_pattern: str = ".etl-{id}.part"
    epsv: str = "auto"  # or "off"
    time_zone: str = ""  # of the times that the server tells, see `zone_of`; empty: UTC, as RFC 3659 wants it
    publish: str = "rename"  # or "direct"
    access: frozenset[str] = frozenset(RIGHTS)  # those that jobs have here
    options: Mapping[str, str] = field(default_factory=dict, repr=False)  # properties of the protocol; may be secret

    @property
    def address(self) -> tuple[str, str, int, str]:
        """What two names of one login have in common: such names share one limit of sessions."""
        return (self.type, self.host.lower(), self.port, self.username)
