"""Reading and validating all settings at once: the only reader of the environment."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from etl.config.kinds import ADDRESS, MAX_TOPIC_CHARS, SUFFIX, TEXT, Kind
from etl.config.schema import PROTOCOLS, SERVER_PROPERTIES, SETTINGS, ProtocolSpec, ServerConfig, Settings
from etl.config.sources import merged, read_env_file, unquoted, without_links
from etl.errors import SettingsError, UnknownServer

_NEVER_SERVERS = ("ETL_", "KAFKA_", "KUBERNETES_")
_SERVER_NAME = re.compile(r"[A-Z0-9][A-Z0-9_.-]*")
_SECRET_NAME = re.compile(r"_PASS$|PASS(WORD|PHRASE)|SECRET|TOKEN")
_MAX_SECRET_BYTES = 64 * 1024


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
            if row.kind is SUFFIX and not self.values.get(row.name, row.default).strip():
                self.wrong(row.name, "must not be empty: the topic would be the topic of the jobs itself")
        fields["kafka_password"] = self._kafka_password(fields)
        if fields["kafka_ca_file"]:
            self._check_authorities(fields["kafka_ca_file"])
        settings = Settings(**fields, instance_id_is_set=bool(self.values.get("ETL_INSTANCE_ID", "").strip()))
        if settings.retry_backoff_seconds > settings.retry_backoff_max_seconds:
            self.wrong("ETL_RETRY_BACKOFF_SECONDS", "is larger than ETL_RETRY_BACKOFF_MAX_SECONDS")
        self._check_topics(settings)
        self._check_names()
        return settings

    def _kafka_password(self, fields: Mapping[str, Any]) -> str:
        """Return the password of the login to Kafka, and note what its protocol needs and has not."""
        password, path = str(fields["kafka_password"]), fields["kafka_password_file"]
        if password and path:
            self.wrong("ETL_KAFKA_PASSWORD", "only one of ETL_KAFKA_PASSWORD and ETL_KAFKA_PASSWORD_FILE may be set")
        elif path:
            password = self._secret_of("ETL_KAFKA_PASSWORD_FILE", path)
        if fields["kafka_security_protocol"].startswith("SASL"):
            if not fields["kafka_username"]:
                self.wrong("ETL_KAFKA_USERNAME", "is missing; ETL_KAFKA_SECURITY_PROTOCOL needs it")
            if not password:
                self.wrong("ETL_KAFKA_PASSWORD", "is missing (or ETL_KAFKA_PASSWORD_FILE)")
        return password

    def _check_authorities(self, path: str) -> None:
        """Note what is wrong with ETL_KAFKA_CA_FILE. Its path is not repeated."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except ssl.SSLError:
            self.wrong("ETL_KAFKA_CA_FILE", "the file holds no certificate in PEM form")
        except OSError as error:
            self.wrong("ETL_KAFKA_CA_FILE", f"the file cannot be read: {error.strerror}")

    def _check_topics(self, settings: Settings) -> None:
        taken: dict[str, str] = {}
        for name, suffix in {
            "ETL_TOPIC": "",
            "DLQ_TOPIC_SUFFIX": settings.dlq_topic_suffix,
            "RETRY_TOPIC_SUFFIX": settings.retry_topic_suffix,
            "RESULT_TOPIC_SUFFIX": settings.result_topic_suffix,
        }.items():
            topic = settings.topic + suffix
            if len(topic) > MAX_TOPIC_CHARS:
                self.wrong(name, f"makes a topic name of {len(topic)} characters; Kafka takes {MAX_TOPIC_CHARS}")
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
        misnamed: set[str] = set()
        for name, prefix in self._servers_in_vain():
            self.wrong(f"{name}_TYPE", f"no server can be called {name}: its variables must not begin with {prefix}")
            misnamed |= {f"{name}_{key}" for key in SERVER_PROPERTIES}
        for name, value in self.values.items():
            if name.startswith("ETL_") and value and name not in SETTINGS and name not in misnamed:
                self.wrong(name, f"unknown setting{_nearest(name, SETTINGS)}")

    def _servers_in_vain(self) -> Iterator[tuple[str, str]]:
        """Yield names that look like servers and can be none, with the prefix that is taken.

        A type alone is not enough where the prefix is not ours: other programs have variables there.
        """
        for key, value in self.values.items():
            name = key.removesuffix("_TYPE")
            prefix = next((prefix for prefix in _NEVER_SERVERS if key.startswith(prefix)), None)
            if name == key or prefix is None or value.strip().lower() not in PROTOCOLS:
                continue
            if prefix == "ETL_" or any(self.values.get(f"{name}_{place}") for place in ("HOST", "BASE_PATH")):
                yield name, prefix

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
            self.wrong(f"{name}_TYPE", f"{self.shown(kind)} is no known protocol (known: {known})")
            spec = ProtocolSpec(needs_host=False, needs_login=False, settings=dict.fromkeys(properties, ""))
        known_properties = [f"{name}_{known}" for known in (*SERVER_PROPERTIES, *spec.settings)]
        for unknown in (key for key, value in properties.items() if value and f"{name}_{key}" not in known_properties):
            near = _nearest(f"{name}_{unknown}", known_properties)
            self.wrong(f"{name}_{unknown}", f"unknown property of a server of type {kind}{near}")
        address = TEXT if spec.default_port is None else ADDRESS

        def parsed(key: str, default: Any) -> Any:
            return self.parsed(f"{name}_{key}", SERVER_PROPERTIES[key].kind if key != "HOST" else address, default)

        password = self._password(name, properties, needed=spec.needs_login)
        host, user = parsed("HOST", ""), parsed("USER", "")
        if spec.needs_host and not host:
            self.wrong(f"{name}_HOST", "is missing")
        if spec.needs_login and not user:
            self.wrong(f"{name}_USER", "is missing")
        server = ServerConfig(
            hostname=name,
            type=kind,
            host=host,
            port=parsed("PORT", spec.default_port or 0),
            username=user,
            password=password,
            max_connections=parsed("MAX_CONNECTIONS", ServerConfig.max_connections),
            connects_per_minute=parsed("CONNECTS_PER_MINUTE", ServerConfig.connects_per_minute),
            prewarm=parsed("PREWARM", ServerConfig.prewarm),
            passive=parsed("PASSIVE", None),
            encoding=parsed("ENCODING", None),
            base_path=parsed("BASE_PATH", ""),
            partial_pattern=parsed("PARTIAL_PATTERN", ServerConfig.partial_pattern),
            options={key.upper(): properties[key.upper()] for key in spec.settings if properties.get(key.upper())},
        )
        if spec.base_is_absolute and server.base_path and not server.base_path.startswith("/"):
            self.wrong(f"{name}_BASE_PATH", f"must begin with / for a server of type {kind}")
        if server.prewarm > server.max_connections:
            self.wrong(f"{name}_PREWARM", f"is larger than {name}_MAX_CONNECTIONS ({server.max_connections})")
        return server

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
        SettingsError: one message that names every wrong setting, and the warnings.
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
        self._looked_in = Path(env_file or ".env").absolute()
        if env_file is None and Path(".env").exists():
            env_file = Path(".env")
        if env_file is not None:
            try:
                in_file, self.warnings, problems = read_env_file(env_file)
            except SettingsError as error:
                problems["env file"] = str(error).removeprefix("env file ")
        file_names = {name.upper() for name in in_file}
        own = without_links(environ, lambda name: f"{name}_TYPE" in environ or f"{name}_TYPE" in file_names)
        # docker --env-file leaves the quotes of the file where they are.
        own = {name: unquoted(value) for name, value in own.items()}
        values = merged((in_file, own, overrides or {}))

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
        self.warnings += _idle_keys(in_file, properties, env_file, values)
        self.warnings += _torn_logins(self.servers)
        for name, server in self.servers.items():
            if f"{name}_PORT" in environ and f"{name}_PORT" not in values:
                self.warnings.append(f"{name}_PORT is a service link, no port number: {server.port} is used")
        if problems:
            count = "1 setting is" if len(problems) == 1 else f"{len(problems)} settings are"
            text = "\n  ".join([f"{count} wrong:", *(f"{name}: {what}" for name, what in problems.items())])
            raise SettingsError(_beside(self.warnings, text))

    @property
    def ftp_passive_mode(self) -> bool:
        """FTP_PASSIVE_MODE."""
        return self.settings.ftp_passive_mode

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every password and every secret option, for the redaction of logs."""
        found = {server.password for server in self.servers.values()} | {self.settings.kafka_password}
        for server in self.servers.values():
            found |= {value for name, value in server.options.items() if _SECRET_NAME.search(f"_{name}")}
        return tuple(sorted(found - {""}))

    def require_servers(self) -> None:
        """Raise SettingsError where none is set: every job would become a dead letter. Mostly it is another folder."""
        if not self.servers:
            text = (
                "no servers are set: each has NAME_TYPE, and mostly NAME_HOST, NAME_USER and NAME_PASS\n"
                f"  looked for in the environment and in {self._looked_in}"
            )
            raise SettingsError(_beside(self.warnings, text))

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
            hint = " (is its folder in PYTHONPATH?)" if isinstance(error, ModuleNotFoundError) else ""
            why = f"{type(error).__name__}: {error}{hint}"
            validation.wrong(row.name, f"module {module!r} cannot be imported: {why}")


def _beside(warnings: Sequence[str], text: str) -> str:
    """Return one message, with the warnings: a misspelled name is often why another setting is missing."""
    return "\n  ".join([f"{text}\nwarnings:", *warnings]) if warnings else text


def _idle_keys(
    in_file: Iterable[str], servers: Iterable[str], path: str | Path | None, values: Mapping[str, str]
) -> list[str]:
    """Return a warning for each key of the file that belongs to nothing (KAFKA_ is the broker's)."""
    owned = tuple(f"{name}_" for name in servers)
    idle = [
        name
        for name in in_file
        if name.upper() not in SETTINGS and not name.upper().startswith((*owned, "KAFKA_", "ETL_"))
    ]
    return [
        f"env file {path}: {name} belongs to no setting and no server{_hint(name.upper(), values)}" for name in idle
    ]


def _hint(idle: str, values: Mapping[str, str]) -> str:
    """Return what may be meant by a name that belongs to nothing."""
    server = next((idle[: -len(key) - 1] for key in SERVER_PROPERTIES if idle.endswith(f"_{key}")), "")
    if server and values.get(f"{server}_TYPE", "").strip():
        return f" ({server}_TYPE is no known protocol, and no {server}_HOST is set)"
    if server and not idle.endswith("_TYPE"):
        return f" (no {server}_TYPE is set)"
    return _nearest(idle, SETTINGS, 0.75)


def _torn_logins(servers: Mapping[str, ServerConfig]) -> list[str]:
    """Return a warning for each name of a login that has another password there: one of the two is hardly right."""
    first: dict[tuple[str, str, int, str], str] = {}
    torn = []
    for name, server in servers.items():
        if not server.host or not server.username:
            continue
        other = first.setdefault(server.address, name)
        if servers[other].password != server.password:
            torn.append(
                f"{other} and {name} are one login, {server.username} at {server.host}:{server.port}, with two"
                " passwords: after one is refused, jobs of both names wait"
            )
    return torn


@cache
def get_config() -> ConfigLoader:
    """Return the settings of this process; the first call loads them."""
    return ConfigLoader()
