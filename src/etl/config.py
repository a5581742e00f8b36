"""Settings and servers: the only reader of the environment and of `.env`; every default and limit with its unit.

Validates whole at start and reports all that is wrong at once. Imports nothing of the package but errors;
protocols make themselves known through `PROTOCOLS`.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from etl.errors import UnknownServer


@dataclass(frozen=True)
class ProtocolSpec:
    """What the settings must know of a protocol; a transfer class declares it as `spec`.

    `settings` are properties of its own beside the common ones: PROPERTY -> one line of description.
    """

    default_port: int | None = None
    needs_host: bool = True
    needs_login: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)


PROTOCOLS: dict[str, ProtocolSpec] = {}  # lower-case type -> spec; filled by TransferFactory.register


@dataclass(frozen=True)
class TransferSettings:
    """Limits of one session, in seconds; given to every transfer."""

    connect_timeout: float = 10.0
    login_timeout: float = 30.0
    reply_timeout: float = 60.0
    stall_timeout: float = 60.0
    passive: bool = True  # FTP_PASSIVE_MODE; a server's own PASSIVE wins


@dataclass(frozen=True)
class ServerConfig:
    """One server: `{NAME}_{PROPERTY}` of the settings."""

    hostname: str  # the NAME, upper case: what jobs call it
    type: str
    host: str = ""
    port: int = 0  # 0: the protocol has none
    username: str = ""
    password: str = field(default="", repr=False)
    max_connections: int = 8
    passive: bool | None = None  # None: FTP_PASSIVE_MODE
    encoding: str | None = None  # None: ask the server, else UTF-8
    base_path: str = ""
    partial_pattern: str = ".etl-{id}.part"
    options: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold secrets

    @property
    def address(self) -> tuple[str, str, int, str]:
        """What names of the same server and user have in common; the key of their pool."""
        return (self.type, self.host.lower(), self.port, self.username)


@dataclass(frozen=True)
class Setting:
    """One global setting: a row of `SETTINGS`."""

    name: str
    field: str
    default: str
    parse: Callable[[str], Any]
    unit: str
    help: str


def _setting(name: str, default: Any, help_: str = "") -> Any:
    return field(default=default, metadata={"name": name, "help": help_})


@dataclass(frozen=True)
class Settings:
    """The global settings, parsed; defaults are those of an empty environment."""

    topic: str = _setting("ETL_TOPIC", "file-transfer-jobs")
    group_id: str = _setting("ETL_GROUP_ID", "etl-worker-group")
    bootstrap_servers: str = _setting("ETL_BOOTSTRAP_SERVERS", "localhost:9092")
    consumer_count: int = _setting("ETL_CONSUMER_COUNT", 2)
    num_partitions: int = _setting("ETL_NUM_PARTITIONS", 8)
    workers: int = _setting("ETL_WORKERS", 8)
    instance_id: str = field(default_factory=socket.gethostname)
    instance_id_is_set: bool = False
    slot: int | None = _setting("ETL_SLOT", None)
    outage_patience_hours: float = _setting("ETL_OUTAGE_PATIENCE_HOURS", 72.0)
    retry_max_attempts: int = _setting("ETL_RETRY_MAX_ATTEMPTS", 5)
    retry_backoff_seconds: float = _setting("ETL_RETRY_BACKOFF_SECONDS", 1.0)
    retry_backoff_max_seconds: float = _setting("ETL_RETRY_BACKOFF_MAX_SECONDS", 300.0)
    connect_timeout_seconds: float = _setting("ETL_CONNECT_TIMEOUT_SECONDS", 10.0)
    login_timeout_seconds: float = _setting("ETL_LOGIN_TIMEOUT_SECONDS", 30.0)
    reply_timeout_seconds: float = _setting("ETL_REPLY_TIMEOUT_SECONDS", 60.0)
    stall_timeout_seconds: float = _setting("ETL_STALL_TIMEOUT_SECONDS", 60.0)
    transfer_timeout_seconds: float = _setting("ETL_TRANSFER_TIMEOUT_SECONDS", 0.0)
    shutdown_grace_seconds: float = _setting("ETL_SHUTDOWN_GRACE_SECONDS", 5.0)
    window_records: int = _setting("ETL_WINDOW_RECORDS", 1000)
    window_bytes: int = _setting("ETL_WINDOW_BYTES", 64 << 20)
    store_bytes: int = _setting("ETL_STORE_BYTES", 16 << 20)
    buffer_bytes: int = _setting("ETL_BUFFER_BYTES", 1 << 20)
    spool_limit_bytes: int = _setting("ETL_SPOOL_LIMIT_BYTES", 10 << 30)
    idle_timeout_seconds: float = _setting("ETL_IDLE_TIMEOUT_SECONDS", 60.0)
    session_lifetime_seconds: float = _setting("ETL_SESSION_LIFETIME_SECONDS", 3600.0)
    ping_interval_seconds: float = _setting("ETL_PING_INTERVAL_SECONDS", 20.0)
    commit_interval_seconds: float = _setting("ETL_COMMIT_INTERVAL_SECONDS", 0.05)
    commit_max_records: int = _setting("ETL_COMMIT_MAX_RECORDS", 500)
    dlq_topic_suffix: str = _setting("DLQ_TOPIC_SUFFIX", "-dlq")
    result_topic_suffix: str = _setting("RESULT_TOPIC_SUFFIX", "-results")
    retry_topic_suffix: str = _setting("RETRY_TOPIC_SUFFIX", "-retry")
    result_topic: str | None = _setting("RESULT_TOPIC", None)
    fail_topic: str | None = _setting("FAIL_TOPIC", None)
    ftp_passive_mode: bool = _setting("FTP_PASSIVE_MODE", True)
    log_format: str = _setting("ETL_LOG_FORMAT", "text")
    log_level: str = _setting("ETL_LOG_LEVEL", "INFO")
    plugins: tuple[str, ...] = _setting("ETL_PLUGINS", ())

    @property
    def transfer(self) -> TransferSettings:
        """The limits of a session."""
        return TransferSettings(
            connect_timeout=self.connect_timeout_seconds,
            login_timeout=self.login_timeout_seconds,
            reply_timeout=self.reply_timeout_seconds,
            stall_timeout=self.stall_timeout_seconds,
            passive=self.ftp_passive_mode,
        )


SETTINGS: dict[str, Setting] = {}


class ConfigLoader:
    """Reads, validates and holds all settings. Interim: defaults only."""

    def __init__(
        self,
        env_file: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, str] | None = None,
    ) -> None:
        del env_file, environ, overrides
        self.settings = Settings()
        self.servers: dict[str, ServerConfig] = {}
        self.warnings: list[str] = []

    @property
    def ftp_passive_mode(self) -> bool:
        """FTP_PASSIVE_MODE."""
        return self.settings.ftp_passive_mode

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every password, for redaction."""
        return tuple(server.password for server in self.servers.values() if server.password)

    def get_server_config(self, hostname: str) -> ServerConfig:
        """Return the server of that name, in any case. Raises UnknownServer."""
        try:
            return self.servers[hostname.upper()]
        except KeyError:
            raise UnknownServer(f"unknown server {hostname!r}", server=hostname) from None

    def get_dlq_topic(self, topic: str) -> str:
        """Return the name of the dead-letter topic of `topic`."""
        return topic + self.settings.dlq_topic_suffix

    def get_result_topic(self, topic: str) -> str:
        """Return the name of the result topic of `topic`."""
        return topic + self.settings.result_topic_suffix

    def get_retry_topic(self, topic: str) -> str:
        """Return the name of the topic of jobs set aside of `topic`."""
        return topic + self.settings.retry_topic_suffix


@cache
def get_config() -> ConfigLoader:
    """Return the settings of this process; the first call loads them."""
    return ConfigLoader()


def _fields() -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(Settings)
