"""Settings and servers: the only reader of the environment and of `.env`; every default, limit and unit.

Validates whole at start and reports all that is wrong at once, by name and without any secret. Imports
nothing of the package but errors; protocols make themselves known through `PROTOCOLS`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from etl.errors import SettingsError, UnknownServer

_NEVER_SERVERS = ("ETL_", "KAFKA_", "KUBERNETES_")
_SERVER_NAME = re.compile(r"[A-Z0-9][A-Z0-9_.-]*")
_SECRET_NAME = re.compile(r"_PASS$|PASS(WORD|PHRASE)|SECRET|TOKEN")
# What Docker links and Kubernetes services put into the environment of their neighbours: {ALIAS}_PORT=tcp://...
_LINK = re.compile(r"(?P<alias>.+)_PORT(_[0-9]+_(TCP|UDP|SCTP))?")
_LINK_SHAPE = re.compile(r"ETL(_.+)?_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)")
_URL_OF_LINK = re.compile(r"(tcp|udp|sctp)://")
_MAX_TOPIC_CHARS = 249  # org.apache.kafka.common.internals.Topic
_MAX_SECRET_BYTES = 64 * 1024


@dataclass(frozen=True)
class Kind:
    """A kind of value: `parse` raises ValueError for what is not what `says` names."""

    says: str
    parse: Callable[[str], Any]


def _one_of(*choices: str) -> Kind:
    def parse(text: str) -> str:
        return {choice.lower(): choice for choice in choices}[text.lower()]

    return Kind(f"one of {', '.join(choices)}", parse)


def _matching(pattern: str, says: str) -> Kind:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return Kind(says, parse)


def _number(low: float, high: float, *, whole: bool = False) -> Kind:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}" if whole else r"[+-]?[0-9]{1,18}(\.[0-9]{0,18})?", text):
            raise ValueError(text)
        value = int(text) if whole else float(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return Kind(f"a {'whole ' if whole else ''}number from {low:g} to {high:.15g}", parse)


def _whole(low: int, high: int) -> Kind:
    return _number(low, high, whole=True)


def _parse_switch(text: str) -> bool:
    return {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }[text.lower()]


def _parse_addresses(text: str) -> str:
    addresses = [address.strip() for address in text.split(",")]
    for address in addresses:
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:([0-9]{1,5}))?", address)
        if not found or (found[3] and not 1 <= int(found[3]) <= 65535):
            raise ValueError(text)
    return ",".join(addresses)


def _parse_modules(text: str) -> tuple[str, ...]:
    modules = tuple(part.strip() for part in text.split(",") if part.strip())
    if not all(part.isidentifier() for module in modules for part in module.split(".")):
        raise ValueError(text)
    return modules


def _parse_topic(text: str) -> str:
    if text in {".", ".."} or not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{_MAX_TOPIC_CHARS}}}", text):
        raise ValueError(text)
    return text


def _parse_host(text: str) -> str:
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in host:
        ipaddress.IPv6Address(host)
    elif not re.fullmatch(r"[^\s/@\x00-\x1f\x7f]{1,253}", host):
        raise ValueError(text)
    return host


def _parse_encoding(text: str) -> str:
    # FTP's control line is ASCII with names in between: an encoding that changes ASCII cannot be used.
    try:
        usable = "/a\r\n".encode(text) == b"/a\r\n"
    except LookupError:
        usable = False
    if not usable:
        raise ValueError(text)
    return text


def _parse_partial_pattern(text: str) -> str:
    head, mark, tail = text.partition("{id}")
    if not mark or not re.fullmatch(r"[^/\\{}\x00-\x1f\x7f]{0,100}", head + tail):
        raise ValueError(text)
    return text


_TEXT = _matching(r"[^\x00-\x1f\x7f]+", "text without control characters")
_LABEL = _matching(r"[A-Za-z0-9._-]{1,200}", "a name of at most 200 characters A-Z a-z 0-9 . _ -")
_SUFFIX = _matching(r"[A-Za-z0-9._-]{1,200}", "a suffix of 1 to 200 characters A-Z a-z 0-9 . _ -")
_TOPIC = Kind(
    f"a topic name (1 to {_MAX_TOPIC_CHARS} characters A-Z a-z 0-9 . _ -, and neither '.' nor '..')",
    _parse_topic,
)
_SWITCH = Kind("one of true, false", _parse_switch)
_SIZE = _whole(1, 1 << 40)
_LIMIT = _number(0.1, 86400)


@dataclass(frozen=True)
class Setting:
    """One row of `SETTINGS` or `SERVER_PROPERTIES`."""

    name: str
    default: str  # as one would write it; empty: none
    kind: Kind
    help: str  # one line; opens with the unit where there is one
    field: str = ""  # of `Settings`


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
    passive: bool | None = None  # None: FTP_PASSIVE_MODE
    encoding: str | None = None  # None: what the server offers
    base_path: str = ""
    partial_pattern: str = ".etl-{id}.part"
    options: Mapping[str, str] = field(default_factory=dict, repr=False)  # the protocol's own; may hold secrets

    @property
    def address(self) -> tuple[str, str, int, str]:
        """What names of the same server and user have in common: they share one limit of sessions."""
        return (self.type, self.host.lower(), self.port, self.username)


SERVER_PROPERTIES: dict[str, Setting] = {
    row.name: row
    for row in (
        Setting("TYPE", "", _TEXT, "the protocol: ftp, local, or one of your own"),
        Setting("HOST", "", _TEXT, "host name or IP address, without a port"),
        Setting("PORT", "21", _whole(1, 65535), "TCP port; unset: the protocol's own"),
        Setting("USER", "", _TEXT, "user name of the login"),
        Setting("PASS", "", _TEXT, "password of the login; may be empty, but must be there (or PASS_FILE)"),
        Setting("PASS_FILE", "", _TEXT, "file that holds the password, instead of PASS (a mounted secret)"),
        Setting("MAX_CONNECTIONS", "8", _whole(1, 1000), "sessions to that server, per process"),
        Setting("PASSIVE", "", _SWITCH, "true or false; unset: FTP_PASSIVE_MODE"),
        Setting(
            "ENCODING",
            "",
            Kind("a text encoding that leaves ASCII alone (utf-8, euc-kr, cp949 ...)", _parse_encoding),
            "encoding of file names; unset: UTF-8 where the server offers it",
        ),
        Setting("BASE_PATH", "", _TEXT, "folder on the server that all paths of jobs are under"),
        Setting(
            "PARTIAL_PATTERN",
            ".etl-{id}.part",
            Kind("a file name with {id} once and no slash", _parse_partial_pattern),
            "name of a file while it is written; must hold {id}, no slash",
        ),
    )
}
_ADDRESS = Kind("a host name or IP address alone (no port, no scheme, no path)", _parse_host)


def _setting(name: str, default: Any, kind: Kind, help_: str) -> Any:
    """Make a field of `Settings` that is a row of `SETTINGS` at the same time."""
    if isinstance(default, bool):
        shown = str(default).lower()
    elif isinstance(default, float):
        shown = f"{default:g}"
    else:
        shown = "" if default in {None, ()} else str(default)
    return field(default=default, metadata={"row": Setting(name, shown, kind, help_)})


@dataclass(frozen=True)
class Settings:
    """The global settings, parsed. The one place of their names, defaults, limits and units."""

    topic: str = _setting("ETL_TOPIC", "file-transfer-jobs", _TOPIC, "topic of the jobs")
    group_id: str = _setting("ETL_GROUP_ID", "etl-worker-group", _TEXT, "consumer group")
    bootstrap_servers: str = _setting(
        "ETL_BOOTSTRAP_SERVERS",
        "localhost:9092",
        Kind("host:port, several separated by commas", _parse_addresses),
        "address of the Kafka broker, host:port; several separated by commas",
    )
    consumer_count: int = _setting("ETL_CONSUMER_COUNT", 2, _whole(1, 100), "consumer processes that are started")
    num_partitions: int = _setting(
        "ETL_NUM_PARTITIONS",
        8,
        _whole(1, 10000),
        "partitions of a topic that we create: how many processes can share it",
    )
    workers: int = _setting(
        "ETL_WORKERS", 8, _whole(1, 1000), "lanes (transfers at the same time) in one consumer process"
    )
    instance_id: str = field(
        default_factory=socket.gethostname,
        metadata={
            "row": Setting(
                "ETL_INSTANCE_ID",
                "",
                _LABEL,
                "identity of this installation, kept over a restart; unset: the host name",
            )
        },
    )
    instance_id_is_set: bool = False
    slot: int | None = _setting(
        "ETL_SLOT",
        None,
        _whole(0, 99),
        "number of this process on its host, set by supervisord; unset: the first free one",
    )
    outage_patience_hours: float = _setting(
        "ETL_OUTAGE_PATIENCE_HOURS",
        72.0,
        _number(0, 87600),
        "hours that jobs of a server that is down wait for it",
    )
    retry_max_attempts: int = _setting("ETL_RETRY_MAX_ATTEMPTS", 5, _whole(1, 1000), "attempts in all")
    retry_backoff_seconds: float = _setting(
        "ETL_RETRY_BACKOFF_SECONDS", 1.0, _number(0, 86400), "seconds: the first back-off"
    )
    retry_backoff_max_seconds: float = _setting(
        "ETL_RETRY_BACKOFF_MAX_SECONDS", 300.0, _number(0, 86400), "seconds: the longest back-off"
    )
    connect_timeout_seconds: float = _setting("ETL_CONNECT_TIMEOUT_SECONDS", 10.0, _LIMIT, "seconds to connect")
    login_timeout_seconds: float = _setting("ETL_LOGIN_TIMEOUT_SECONDS", 30.0, _LIMIT, "seconds for welcome and login")
    reply_timeout_seconds: float = _setting("ETL_REPLY_TIMEOUT_SECONDS", 60.0, _LIMIT, "seconds to wait for a reply")
    stall_timeout_seconds: float = _setting("ETL_STALL_TIMEOUT_SECONDS", 60.0, _LIMIT, "seconds in which no byte moves")
    transfer_timeout_seconds: float = _setting(
        "ETL_TRANSFER_TIMEOUT_SECONDS", 0.0, _number(0, 8640000), "seconds for a whole transfer; 0: no limit"
    )
    shutdown_grace_seconds: float = _setting(
        "ETL_SHUTDOWN_GRACE_SECONDS",
        5.0,
        _number(0, 86400),
        "seconds that running transfers may take to finish after SIGTERM",
    )
    window_records: int = _setting(
        "ETL_WINDOW_RECORDS",
        1000,
        _whole(1, 1000000),
        "records: unfinished jobs that a process holds at most",
    )
    window_bytes: int = _setting("ETL_WINDOW_BYTES", 64 << 20, _SIZE, "bytes: size of those jobs' messages at most")
    store_bytes: int = _setting(
        "ETL_STORE_BYTES", 16 << 20, _whole(0, 1 << 40), "bytes: memory of a process for whole small files"
    )
    buffer_bytes: int = _setting(
        "ETL_BUFFER_BYTES",
        1 << 20,
        _whole(4096, 1 << 30),
        "bytes: buffer of a lane for files larger than that",
    )
    spool_limit_bytes: int = _setting(
        "ETL_SPOOL_LIMIT_BYTES",
        10 << 30,
        _whole(0, 1 << 50),
        "bytes: largest file that may go through our own disk, where one session must read and write",
    )
    idle_timeout_seconds: float = _setting(
        "ETL_IDLE_TIMEOUT_SECONDS", 60.0, _LIMIT, "seconds after which an unused session is closed"
    )
    session_lifetime_seconds: float = _setting(
        "ETL_SESSION_LIFETIME_SECONDS", 3600.0, _number(1, 864000), "seconds that a session lives at most"
    )
    ping_interval_seconds: float = _setting(
        "ETL_PING_INTERVAL_SECONDS", 20.0, _LIMIT, "seconds between signs of life of an unused session"
    )
    commit_interval_seconds: float = _setting(
        "ETL_COMMIT_INTERVAL_SECONDS", 0.05, _number(0.001, 60), "seconds between commits of finished jobs"
    )
    commit_max_records: int = _setting(
        "ETL_COMMIT_MAX_RECORDS", 500, _whole(1, 100000), "records: finished jobs in one commit at most"
    )
    dlq_topic_suffix: str = _setting("DLQ_TOPIC_SUFFIX", "-dlq", _SUFFIX, "suffix of the topic of dead letters")
    result_topic_suffix: str = _setting("RESULT_TOPIC_SUFFIX", "-results", _SUFFIX, "suffix of the topic of results")
    retry_topic_suffix: str = _setting("RETRY_TOPIC_SUFFIX", "-retry", _SUFFIX, "suffix of the topic of jobs set aside")
    result_topic: str | None = _setting(
        "RESULT_TOPIC",
        None,
        _TOPIC,
        "topic of the results of jobs that succeeded, instead of the one with the suffix",
    )
    fail_topic: str | None = _setting(
        "FAIL_TOPIC",
        None,
        _TOPIC,
        "topic of the results of jobs that failed, instead of the one with the suffix",
    )
    ftp_passive_mode: bool = _setting(
        "FTP_PASSIVE_MODE", True, _SWITCH, "true: we open the data connections; false: the FTP server does"
    )
    log_format: str = _setting("ETL_LOG_FORMAT", "text", _one_of("text", "json"), "text (for a terminal) or json")
    log_level: str = _setting(
        "ETL_LOG_LEVEL", "INFO", _one_of("DEBUG", "INFO", "WARNING", "ERROR"), "DEBUG, INFO, WARNING or ERROR"
    )
    plugins: tuple[str, ...] = _setting(
        "ETL_PLUGINS",
        (),
        Kind("names of Python modules separated by commas", _parse_modules),
        "Python modules with protocols of your own, separated by commas",
    )

    @property
    def transfer(self) -> TransferSettings:
        """The limits of a session."""
        return TransferSettings(
            connect_timeout=self.connect_timeout_seconds,
            login_timeout=self.login_timeout_seconds,
            reply_timeout=self.reply_timeout_seconds,
            stall_timeout=self.stall_timeout_seconds,
            passive=self.ftp_passive_mode,
            spool_limit_bytes=self.spool_limit_bytes,
        )


SETTINGS: dict[str, Setting] = {
    row.metadata["row"].name: dataclasses.replace(row.metadata["row"], field=row.name)
    for row in dataclasses.fields(Settings)
    if "row" in row.metadata
}


def _unquoted(value: str) -> str:
    """Strip one pair of surrounding quotes."""
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'" else value


def _why_read_differently(value: str) -> str | None:
    """Say why --env-file, docker --env-file and compose would not read the same; None when they do.

    docker hands the text on as it is (we strip the quotes then); compose expands `$`, drops ` #...` and,
    between double quotes, expands backslashes.
    """
    body = value.strip(" \t")
    if value != value.strip():
        return "has blanks around its value"
    if body[:1] in {'"', "'"}:
        inner = _unquoted(body)
        if inner == body:
            return "opens a quote that its end does not close"
        if body[0] in inner or "\\" in inner or _unquoted(inner) != inner:
            return "has quotes or backslashes between its quotes"
        return "has a $ between double quotes (take single ones)" if body[0] == '"' and "$" in inner else None
    if "$" in body:
        return "has a $ (put the value in single quotes)"
    return "has a # after a blank (put the value in quotes)" if re.search(r"(^|\s)#", body) else None


def read_env_file(path: str | Path) -> tuple[dict[str, str], list[str]]:
    """Return the values of a file of settings, keys as written, and warnings (which hold no value).

    One `NAME=value` a line, UTF-8; the rest of the line is the value, nothing is interpolated.
    Raises SettingsError when the file cannot be read.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad_line = error.object[: error.start].count(b"\n") + 1
        raise SettingsError(f"env file {path}: line {bad_line} is not UTF-8") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no usable file name"
        raise SettingsError(f"env file {path}: cannot be read: {why}") from None
    values: dict[str, str] = {}
    warnings: list[str] = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.removesuffix("\r").lstrip(" \t")
        if not line or line.startswith("#"):
            continue
        written, equals, value = line.partition("=")
        name = written.removeprefix("export ").strip(" \t")
        where = f"env file {path}, line {number}"
        if not equals or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            # What stands there may be a piece of a secret: it is not repeated.
            warnings.append(f"{where}: is no NAME=value and was left out")
            continue
        reason = "has blanks or `export` before its =" if name != written else _why_read_differently(value)
        if reason:
            warnings.append(f"{where}: {name} {reason}: --env-file, docker and compose read it differently")
        if name in values:
            warnings.append(f"{where}: {name} is given twice; the last one holds")
        values[name] = _unquoted(value.strip(" \t"))
    return values, warnings


def _without_links(environ: Mapping[str, str], is_server: Callable[[str], bool]) -> dict[str, str]:
    """Return the environment without what Docker links and Kubernetes services put there.

    A service that is called like a server of ours (`SRC_FTP_PORT=tcp://10.0.0.1:21`) sets nothing of it.
    """
    aliases = {
        found["alias"]
        for name, value in environ.items()
        if (found := _LINK.fullmatch(name)) and _URL_OF_LINK.match(value)
    }

    def is_link(name: str, value: str) -> bool:
        if _LINK_SHAPE.fullmatch(name):
            return True
        for alias in aliases:
            rest = name.removeprefix(alias + "_")
            if rest == name:
                continue
            if rest == "PORT" and _URL_OF_LINK.match(value):
                return True
            if rest in {"SERVICE_HOST", "SERVICE_PORT"} and not is_server(alias + "_SERVICE"):
                return True
            if re.fullmatch(r"SERVICE_PORT_.+|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?|ENV_.+", rest):
                return True
            if rest == "NAME" and value.startswith("/"):
                return True
        return False

    return {name: value for name, value in environ.items() if not is_link(name, value)}


def _merged(layers: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the values of all layers, later over earlier ones, keys upper case; an empty one hides none."""
    values: dict[str, str] = {}
    for layer in layers:
        for name in sorted(layer, key=lambda name: (name.upper(), name.isupper())):
            if layer[name] or name.upper() not in values:
                values[name.upper()] = layer[name]
    return values


def _nearest(name: str, known: Iterable[str], cutoff: float = 0.0) -> str:
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f" (nearest: {found[0]})" if found else ""


class _Validation:
    """One pass over all values that collects what is wrong instead of stopping at the first."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values
        self.problems: dict[str, str] = {}  # name of the setting -> what is wrong with it
        self._secrets = {value for name, value in values.items() if value and _SECRET_NAME.search(name)}

    def wrong(self, name: str, what: str) -> None:
        """Note that a setting is wrong; the first complaint of each is kept."""
        self.problems.setdefault(name, what)

    def shown(self, value: str) -> str:
        """Return a value for a message; never a secret that strayed into another setting."""
        if "@" in value or any(s.strip() == value or (len(s) >= 4 and s in value) for s in self._secrets):
            return "its value"
        return repr(value if len(value) <= 60 else value[:60] + "...")

    def parsed(self, name: str, kind: Kind, default: Any) -> Any:
        """Return the parsed value of `name`; `default` when it is unset or wrong (which is noted)."""
        text = self.values.get(name, "").strip()
        if not text:
            return default
        try:
            return kind.parse(text)
        except (ValueError, LookupError):
            self.wrong(name, f"{self.shown(text)} is not {kind.says}")
            return default

    def settings(self) -> Settings:
        """Return the global settings."""
        defaults = Settings()
        fields = {row.field: self.parsed(row.name, row.kind, getattr(defaults, row.field)) for row in SETTINGS.values()}
        for row in SETTINGS.values():
            if row.kind is _SUFFIX and not self.values.get(row.name, row.default).strip():
                self.wrong(row.name, "must not be empty: the topic would be the topic of the jobs itself")
        settings = Settings(**fields, instance_id_is_set=bool(self.values.get("ETL_INSTANCE_ID", "").strip()))
        if settings.retry_backoff_seconds > settings.retry_backoff_max_seconds:
            self.wrong("ETL_RETRY_BACKOFF_SECONDS", "is larger than ETL_RETRY_BACKOFF_MAX_SECONDS")
        self._check_topics(settings)
        self._check_names()
        return settings

    def _check_topics(self, settings: Settings) -> None:
        taken: dict[str, str] = {}
        for name, suffix in {
            "ETL_TOPIC": "",
            "DLQ_TOPIC_SUFFIX": settings.dlq_topic_suffix,
            "RETRY_TOPIC_SUFFIX": settings.retry_topic_suffix,
            "RESULT_TOPIC_SUFFIX": settings.result_topic_suffix,
        }.items():
            topic = settings.topic + suffix
            if len(topic) > _MAX_TOPIC_CHARS:
                self.wrong(name, f"makes a topic name of {len(topic)} characters; Kafka takes {_MAX_TOPIC_CHARS}")
            self._check_not_taken(name, topic, taken)
        del taken[_folded(settings.topic + settings.result_topic_suffix)]  # they stand in for it, may be one
        for name, chosen in (("RESULT_TOPIC", settings.result_topic), ("FAIL_TOPIC", settings.fail_topic)):
            if chosen:
                self._check_not_taken(name, chosen, dict(taken))

    def _check_not_taken(self, name: str, topic: str, taken: dict[str, str]) -> None:
        other = taken.setdefault(_folded(topic), name)
        if other != name and other not in self.problems:
            self.wrong(
                name,
                f"makes the topic {topic!r}, which is that of {other} (Kafka takes . and _ for the same)",
            )

    def _check_names(self) -> None:
        for name, value in self.values.items():
            if name.startswith("ETL_") and value and name not in SETTINGS:
                self.wrong(name, f"unknown setting{_nearest(name, SETTINGS)}")

    def server_names(self) -> set[str]:
        """Return the names that are servers: of a known type, or with both a type and a host."""
        names = set()
        for key, value in self.values.items():
            name = key.removesuffix("_TYPE")
            if name == key or not _may_be_of_a_server(key) or not _SERVER_NAME.fullmatch(name):
                continue
            has_host = bool(self.values.get(f"{name}_HOST", "").strip())
            if value.strip().lower() in PROTOCOLS or (value.strip() and has_host):
                names.add(name)
        return names

    def properties(self) -> dict[str, dict[str, str]]:
        """Return the properties of each server; a key belongs to the longest name that it begins with."""
        found: dict[str, dict[str, str]] = {name: {} for name in sorted(self.server_names())}
        longest_first = sorted(found, key=len, reverse=True)
        for key, value in self.values.items():
            owner = next((name for name in longest_first if key.startswith(f"{name}_")), None)
            if owner and _may_be_of_a_server(key):
                found[owner][key.removeprefix(f"{owner}_")] = value
        return found

    def server(self, name: str, properties: Mapping[str, str]) -> ServerConfig:
        """Return one server; what is wrong with it is noted."""
        kind = properties["TYPE"].strip().lower()
        spec = PROTOCOLS.get(kind)
        if spec is None:
            known = ", ".join(sorted(PROTOCOLS))
            near = _nearest(kind, PROTOCOLS)
            self.wrong(f"{name}_TYPE", f"{self.shown(kind)} is no known protocol{near} (known: {known})")
            spec = ProtocolSpec(needs_host=False, needs_login=False, settings=dict.fromkeys(properties, ""))
        known_properties = [f"{name}_{known}" for known in (*SERVER_PROPERTIES, *spec.settings)]
        for unknown in (key for key, value in properties.items() if value and f"{name}_{key}" not in known_properties):
            near = _nearest(f"{name}_{unknown}", known_properties)
            self.wrong(f"{name}_{unknown}", f"unknown property of a server of type {kind}{near}")
        address = _TEXT if spec.default_port is None else _ADDRESS

        def parsed(key: str, default: Any) -> Any:
            return self.parsed(f"{name}_{key}", SERVER_PROPERTIES[key].kind if key != "HOST" else address, default)

        password = self._password(name, properties, needed=spec.needs_login)
        host, user = parsed("HOST", ""), parsed("USER", "")
        if spec.needs_host and not host:
            self.wrong(f"{name}_HOST", "is missing")
        if spec.needs_login and not user:
            self.wrong(f"{name}_USER", "is missing")
        return ServerConfig(
            hostname=name,
            type=kind,
            host=host,
            port=parsed("PORT", spec.default_port or 0),
            username=user,
            password=password,
            max_connections=parsed("MAX_CONNECTIONS", ServerConfig.max_connections),
            passive=parsed("PASSIVE", None),
            encoding=parsed("ENCODING", None),
            base_path=parsed("BASE_PATH", ""),
            partial_pattern=parsed("PARTIAL_PATTERN", ServerConfig.partial_pattern),
            options={key.upper(): properties[key.upper()] for key in spec.settings if properties.get(key.upper())},
        )

    def _password(self, name: str, properties: Mapping[str, str], *, needed: bool) -> str:
        setting, password, path = (
            f"{name}_PASS",
            properties.get("PASS"),
            properties.get("PASS_FILE", "").strip(),
        )
        if password and path:
            self.wrong(setting, f"only one of {setting} and {name}_PASS_FILE may be set")
        elif path:
            setting = f"{name}_PASS_FILE"
            password = self._secret_of(setting, path)
        elif password is None and needed:
            self.wrong(setting, f"is missing (or {name}_PASS_FILE)")
        if password and re.search(r"[\r\n\x00]", password):
            self.wrong(setting, "holds a line break or NUL")
        return password or ""

    def _secret_of(self, setting: str, path: str) -> str:
        """Return what a mounted secret holds, without its last line break. Its path is not repeated."""
        try:
            with Path(path).open("rb") as file:
                content = file.read(_MAX_SECRET_BYTES + 1)
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.wrong(setting, "the file is not UTF-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "no usable file name"
            self.wrong(setting, f"the file cannot be read: {why}")
        else:
            secret = text.removesuffix("\n").removesuffix("\r")
            self._secrets |= {secret} - {""}
            if not secret or len(content) > _MAX_SECRET_BYTES:
                self.wrong(setting, f"the file is {'too large' if secret else 'empty'}")
            return secret
        return ""


def _folded(topic: str) -> str:
    """Return what must be unique of a topic name: Kafka refuses two that differ in `.` and `_` alone."""
    return topic.replace(".", "_")


def _may_be_of_a_server(key: str) -> bool:
    return key not in SETTINGS and not key.startswith(_NEVER_SERVERS)


class ConfigLoader:
    """All settings of a process, read and validated.

    `env_file`: must exist; without one `.env` in the current folder is read if it is there. `environ`
    (default: that of the process) wins over the file; `overrides` (of the command line, `{"ETL_TOPIC": ...}`) win
    over both.

    Raises:
        SettingsError: one message that names every wrong setting.
    """

    def __init__(
        self,
        env_file: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        problems: dict[str, str] = {}
        self.warnings: list[str] = []
        in_file: dict[str, str] = {}
        if env_file is None and Path(".env").exists():
            env_file = Path(".env")
        if env_file is not None:
            try:
                in_file, self.warnings = read_env_file(env_file)
            except SettingsError as error:
                problems["env file"] = str(error).removeprefix("env file ")
        file_names = {name.upper() for name in in_file}
        own = _without_links(environ, lambda name: f"{name}_TYPE" in environ or f"{name}_TYPE" in file_names)
        # docker --env-file leaves the quotes of the file where they are.
        own = {name: _unquoted(value) for name, value in own.items()}
        values = _merged((in_file, own, overrides or {}))

        try:
            importlib.import_module("etl.transfer")  # the built-in protocols and those of entry points register
        except SettingsError as error:
            problems["etl.transfers"] = str(error)
        validation = _Validation(values)
        _load_plugins(validation)
        self.settings: Settings = validation.settings()
        properties = validation.properties()
        self.servers: dict[str, ServerConfig] = {
            name: validation.server(name, of_server) for name, of_server in properties.items()
        }
        problems.update(validation.problems)
        if problems:
            raise SettingsError(_all_of(problems))
        self.warnings += _idle_keys(in_file, properties, env_file)
        for name, server in self.servers.items():
            if f"{name}_PORT" in environ and f"{name}_PORT" not in values:
                self.warnings.append(f"{name}_PORT is a service link, no port number: {server.port} is used")

    @property
    def ftp_passive_mode(self) -> bool:
        """FTP_PASSIVE_MODE."""
        return self.settings.ftp_passive_mode

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every password and every secret option, for the redaction of logs."""
        found = {server.password for server in self.servers.values()}
        for server in self.servers.values():
            found |= {value for name, value in server.options.items() if _SECRET_NAME.search(f"_{name}")}
        return tuple(sorted(found - {""}))

    def get_server_config(self, hostname: str) -> ServerConfig:
        """Return the server of that name, in any case. Raises UnknownServer, which names the nearest."""
        server = self.servers.get(hostname.upper())
        if server is None:
            near = difflib.get_close_matches(hostname.upper(), self.servers, cutoff=0.5)
            hint = f" (nearest: {', '.join(near)})" if near else ""
            raise UnknownServer(f"unknown server {hostname[:100]!r}{hint}", server=hostname)
        return server

    def get_dlq_topic(self, topic: str) -> str:
        """Return the name of the topic of dead letters of `topic`."""
        return topic + self.settings.dlq_topic_suffix

    def get_result_topic(self, topic: str) -> str:
        """Return the name of the topic of results of `topic` (RESULT_TOPIC and FAIL_TOPIC aside)."""
        return topic + self.settings.result_topic_suffix

    def get_retry_topic(self, topic: str) -> str:
        """Return the name of the topic of jobs of `topic` that are set aside."""
        return topic + self.settings.retry_topic_suffix


def _load_plugins(validation: _Validation) -> None:
    """Import the modules of ETL_PLUGINS: they register their protocols."""
    row = SETTINGS["ETL_PLUGINS"]
    for module in validation.parsed(row.name, row.kind, ()):
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - a user's module may raise anything; it is one of the wrong settings
            validation.wrong(row.name, f"module {module!r} cannot be imported: {type(error).__name__}: {error}")


def _all_of(problems: Mapping[str, str]) -> str:
    count = "1 setting is" if len(problems) == 1 else f"{len(problems)} settings are"
    return "\n  ".join([f"{count} wrong:", *(f"{name}: {what}" for name, what in problems.items())])


def _idle_keys(in_file: Iterable[str], servers: Iterable[str], path: str | Path | None) -> list[str]:
    """Return a warning for each key of the file that belongs to nothing (KAFKA_ is the broker's)."""
    owned = tuple(f"{name}_" for name in servers)
    idle = [
        name
        for name in in_file
        if name.upper() not in SETTINGS and not name.upper().startswith((*owned, "KAFKA_", "ETL_"))
    ]
    return [
        f"env file {path}: {name} belongs to no setting and no server{_nearest(name.upper(), SETTINGS, 0.75)}"
        for name in idle
    ]


@cache
def get_config() -> ConfigLoader:
    """Return the settings of this process; the first call loads them."""
    return ConfigLoader()
