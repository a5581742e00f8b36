"""Reads and validates all settings at once. The only reader of the environment."""

from __future__ import annotations

import difflib
import importlib
import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from etl.config.schema import SERVER_PROPERTIES, SETTINGS, Settings
from etl.config.sources import merged, read_env_file, refuse_of_others, unquoted, without_links
from etl.config.validation import SECRET_NAME, Validation, nearest
from etl.errors import SettingsError, UnknownServer
from etl.models.server import PROTOCOLS, ServerConfig

_OF_THE_MACHINE = ("/dev/", "/etc/", "/proc/", "/sys/")


class ConfigLoader:
    """All settings of a process, read and validated.

    Args:
        env_file: the file of settings, which must exist; by default `.env` in the current folder, if there is one.
        environ: the environment, which overrides the file; by default that of the process.
        overrides: settings from the command line, such as `{"ETL_TOPIC": ...}`, which override both.

    Raises:
        SettingsError: if settings are wrong; the message names all of them, and contains the warnings.
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
        found = Path(".env") if env_file is None and Path(".env").exists() else None
        env_file = env_file or found
        if env_file is not None:
            try:
                if found:
                    refuse_of_others(found)
                in_file, self.warnings, problems = read_env_file(env_file)
            except SettingsError as error:
                problems["env file"] = str(error).removeprefix("env file ")
        file_names = {name.upper() for name in in_file}
        own = without_links(environ, lambda name: f"{name}_TYPE" in environ or f"{name}_TYPE" in file_names)
        # `docker --env-file` keeps the quotes around values in its file.
        quoted = [name.upper() for name, value in own.items() if _may_mean_its_quotes(name.upper(), value)]
        own = {name: unquoted(value) for name, value in own.items()}
        values = merged((in_file, own, overrides or {}))

        try:
            importlib.import_module("etl.transfer")  # the built-in protocols and those of entry points register
        except SettingsError as error:
            problems["etl.transfers"] = str(error)
        validation = Validation(values)
        _load_plugins(validation)
        self.settings: Settings = validation.settings()
        properties = validation.properties()
        self.servers: dict[str, ServerConfig] = {
            name: validation.server(name, of_server) for name, of_server in properties.items()
        }
        problems.update(validation.problems)
        self.warnings += _idle_keys(in_file, properties, env_file, values)
        self.warnings += _unquoted_names(quoted, properties)
        self.warnings += _torn_logins(self.servers)
        self.warnings += _wide_bases(self.servers)
        for name, server in self.servers.items():
            if f"{name}_PORT" in environ and f"{name}_PORT" not in values:
                self.warnings.append(f"{name}_PORT is a service link, not a port number: {server.port} is used")
        if problems:
            count = "1 setting is" if len(problems) == 1 else f"{len(problems)} settings are"
            text = "\n  ".join([f"{count} wrong:", *(f"{name}: {what}" for name, what in problems.items())])
            raise SettingsError(_beside(self.warnings, text))

    @property
    def ftp_passive_mode(self) -> bool:
        """The value of FTP_PASSIVE_MODE."""
        return self.settings.ftp_passive_mode

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every password and every secret option, for redaction in logs."""
        found = {server.password for server in self.servers.values()} | {self.settings.kafka_password}
        for server in self.servers.values():
            found |= {value for name, value in server.options.items() if SECRET_NAME.search(f"_{name}")}
        return tuple(sorted(found - {""}))

    def require_servers(self) -> None:
        """Raise SettingsError if there are no servers: every job would become a dead letter.

        Usually `.env` is in another folder, so the message names the file.
        """
        if not self.servers:
            text = (
                "no servers are set: each needs NAME_TYPE, and usually NAME_HOST, NAME_USER and NAME_PASS\n"
                f"  looked for in the environment and in {self._looked_in}"
            )
            raise SettingsError(_beside(self.warnings, text))

    def get_server_config(self, hostname: str) -> ServerConfig:
        """Return the server with that name, in upper or lower case. Raises UnknownServer, with similar names."""
        server = self.servers.get(hostname.upper())
        if server is None:
            near = difflib.get_close_matches(hostname[:100].upper(), self.servers, cutoff=0.5)
            hint = f" (nearest: {', '.join(near)})" if near else ""
            raise UnknownServer(f"unknown server {hostname[:100]!r}{hint}", server=hostname)
        return server

    def get_dlq_topic(self, topic: str) -> str:
        """Return the name of the dead-letter topic for `topic`."""
        return topic + self.settings.dlq_topic_suffix

    def get_result_topic(self, topic: str) -> str:
        """Return the name of the results topic for `topic`, regardless of RESULT_TOPIC and FAIL_TOPIC."""
        return topic + self.settings.result_topic_suffix

    def get_retry_topic(self, topic: str) -> str:
        """Return the name of the topic for deferred jobs of `topic`."""
        return topic + self.settings.retry_topic_suffix


def _load_plugins(validation: Validation) -> None:
    """Import the modules in ETL_PLUGINS, which register their protocols."""
    row = SETTINGS["ETL_PLUGINS"]
    for module in validation.parsed(row.name, row.kind, ()):
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - a user's module may raise anything; report it as a wrong setting
            hint = " (is its folder in PYTHONPATH?)" if isinstance(error, ModuleNotFoundError) else ""
            why = f"{type(error).__name__}: {error}{hint}"
            validation.wrong(row.name, f"module {module!r} cannot be imported: {why}")


def _may_mean_its_quotes(name: str, value: str) -> bool:
    """May the quotes around a value of the environment belong to it? In logins and relative paths they are possible.

    Not if there are two pairs: then one is sure to be meant to be taken off.
    """
    inner = unquoted(value)
    if inner == value or inner != unquoted(inner) or name.endswith("_FILE"):
        return False
    is_relative = name.endswith("_BASE_PATH") and not inner.startswith("/")
    return is_relative or name.endswith(("_USER", "_USERNAME")) or SECRET_NAME.search(name) is not None


def _unquoted_names(quoted: Iterable[str], servers: Iterable[str]) -> list[str]:
    """Return a warning that names the variables whose quotes were taken off though they may belong to the value."""
    owned = tuple(f"{name}_" for name in servers)
    names = sorted(name for name in quoted if name in SETTINGS or name.startswith(owned))
    if not names:
        return []
    why = "docker --env-file leaves those of its file there; if they belong to the value, put another pair around it"
    return [f"{', '.join(names)}: the quotes around the value in the environment were taken off ({why})"]


def _beside(warnings: Sequence[str], text: str) -> str:
    """Return an error message with the warnings: a misspelled name is often why another setting is missing."""
    return "\n  ".join([f"{text}\nwarnings:", *warnings]) if warnings else text


def _idle_keys(
    in_file: Iterable[str], servers: Iterable[str], path: str | Path | None, values: Mapping[str, str]
) -> list[str]:
    """Return a warning for each key of the file that nothing reads; keys with KAFKA_ belong to the broker."""
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
    """Return what a name that nothing reads may mean; empty if nothing comes close."""
    server = next((idle[: -len(key) - 1] for key in SERVER_PROPERTIES if idle.endswith(f"_{key}")), "")
    if server and values.get(f"{server}_TYPE", "").strip():
        return f" ({server}_TYPE is not a known protocol, and {server}_HOST is not set)"
    if server and not idle.endswith("_TYPE"):
        return f" ({server}_TYPE is not set)"
    return nearest(idle, SETTINGS, 0.75)


def _torn_logins(servers: Mapping[str, ServerConfig]) -> list[str]:
    """Return a warning for each login that has different passwords under two names: one of them must be wrong."""
    first: dict[tuple[str, str, int, str], str] = {}
    torn = []
    for name, server in servers.items():
        if not server.host or not server.username:
            continue
        other = first.setdefault(server.address, name)
        if servers[other].password != server.password:
            torn.append(
                f"{other} and {name} are one login, {server.username} at {server.host}:{server.port}, with two"
                " passwords: when one is refused, jobs of both names wait"
            )
    return torn


def _wide_bases(servers: Mapping[str, ServerConfig]) -> list[str]:
    """Return a warning for each local folder in which jobs could read and overwrite what belongs to the machine."""
    wide = []
    for name, server in servers.items():
        base = posixpath.normpath(server.base_path or ".")
        spec = PROTOCOLS.get(server.type)
        if spec is not None and spec.needs_base and f"{base}/".startswith(("//", *_OF_THE_MACHINE)):
            wide.append(f"{name}_BASE_PATH is {base}: whoever may send jobs reads and writes this machine's own files")
    return wide


@cache
def get_config() -> ConfigLoader:
    """Return the settings of this process; the first call loads them."""
    return ConfigLoader()
