"""Reads and validates all settings at once. The only reader of the environment."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from etl.config import files as others
from etl.config.rights import Rights
from etl.config.schema import SERVER_PROPERTIES, SETTINGS, Settings
from etl.config.sources import is_open_to_read, merged, read_env_file, refuse_of_others, unquoted, without_links
from etl.config.validation import SECRET_NAME, Validation, nearest
from etl.errors import SettingsError, UnknownServer
from etl.models.server import PROTOCOLS, ServerConfig

if TYPE_CHECKING:
    from etl.models.message import FileTransferJob

_OF_THE_MACHINE = ("/dev/", "/etc/", "/proc/", "/sys/")
_NAMES_PRIVATE = re.compile(
    r"^(KAFKA_DATA_DIR|KAFKA_USERS_FILE|APPLIANCE_RUN_DIR)$|_(PASS|PASSWORD|PASSPHRASE|SECRET|KEY)_FILE$"
)


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
                has_secrets = any(value and SECRET_NAME.search(name.upper()) for name, value in in_file.items())
                if has_secrets and is_open_to_read(Path(env_file)):
                    self.warnings.append(
                        f"env file {env_file}: every user may read its passwords: chmod 600 {env_file}"
                    )
            except SettingsError as error:
                problems["env file"] = str(error).removeprefix("env file ")
        file_names = {name.upper() for name in in_file}
        own = without_links(environ, lambda name: f"{name}_TYPE" in environ or f"{name}_TYPE" in file_names)
        # `docker --env-file` keeps the quotes around values in its file.
        quoted = [name.upper() for name, value in own.items() if _may_mean_its_quotes(name.upper(), value)]
        own = {name: unquoted(value) for name, value in own.items()}
        layers = (in_file, own, overrides or {})
        files = others.read(merged(layers))
        problems |= files.problems
        self.warnings += files.warnings
        values = merged((files.values, *layers))

        try:
            importlib.import_module("etl.transfer")  # the built-in protocols and those of entry points register
        except SettingsError as error:
            problems["etl.transfers"] = str(error)
        validation = Validation(values)
        _load_plugins(validation)
        others.complete(values, validation.server_names(), files)
        self.settings: Settings = validation.settings()
        properties = validation.properties()
        self.servers: dict[str, ServerConfig] = {
            name: validation.server(name, of_server) for name, of_server in properties.items()
        }
        self._rights = Rights(self.settings.allowed_pairs, self.servers)
        if unknown := self._rights.unknown():
            validation.wrong("ETL_ALLOWED_PAIRS", f"no such server: {', '.join(unknown)}")
        for name, place in files.servers.items():
            if name not in properties:
                known = ", ".join(sorted(PROTOCOLS))
                problems.setdefault(f"{place} type", f"is not a known protocol (known: {known})")
        set_by_hand = merged(layers)
        for name, what in validation.problems.items():
            origin = "" if set_by_hand.get(name) else files.places.get(name, "")
            problems[f"{name} ({origin})" if origin else name] = what
        self.warnings += _idle_keys(in_file, properties, env_file, values)
        self.warnings += _unquoted_names(quoted, properties)
        self.warnings += _torn_logins(self.servers)
        private = [path for name, path in values.items() if path and "\0" not in path and _NAMES_PRIVATE.search(name)]
        self.warnings += _wide_bases(self.servers, [*private, *files.paths, *([str(env_file)] if env_file else [])])
        kafka_login = (self.settings.kafka_security_protocol, self.settings.kafka_sasl_mechanism)
        if kafka_login == ("SASL_PLAINTEXT", "PLAIN"):
            self.warnings.append("ETL_KAFKA_SASL_MECHANISM is PLAIN without TLS: whoever listens reads the password")
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
        found = {server.password for server in self.servers.values()}
        found |= {self.settings.kafka_password, self.settings.group_secret}
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

    def require_allowed(self, job: FileTransferJob) -> None:
        """Raise Forbidden, or UnknownServer, unless the settings let jobs do what this one asks for."""
        if self._rights.are_limited:
            source = self.get_server_config(job.source.hostname)
            self._rights.require(source, self.get_server_config(job.destination.hostname), job.options)

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
        if name.upper() not in {*SETTINGS, *others.ALIASES.values()}
        and not name.upper().startswith((*owned, "KAFKA_", "ETL_"))
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


def _wide_bases(servers: Mapping[str, ServerConfig], private: Iterable[str]) -> list[str]:
    """Return a warning for each local folder in which jobs could read and overwrite what belongs to the machine.

    `private`: files and folders of our own, which no job should reach.
    """
    wide = []
    own = [os.path.realpath(path) + "/" for path in private]
    for name, server in servers.items():
        spec = PROTOCOLS.get(server.type)
        if spec is None or not spec.needs_base or not server.base_path:
            continue
        base = os.path.realpath(server.base_path).rstrip("/") + "/"
        if base.startswith(("//", *_OF_THE_MACHINE)) or base == "/":
            shown = base.rstrip("/") or "/"
            wide.append(f"{name}_BASE_PATH is {shown}: whoever may send jobs reads and writes this machine's own files")
        elif any(path.startswith(base) or base.startswith(path) for path in own):
            wide.append(
                f"{name}_BASE_PATH holds, or lies in, the broker's data or files with passwords: jobs reach them"
            )
    return wide


@cache
def get_config() -> ConfigLoader:
    """Return the settings of this process; the first call loads them."""
    return ConfigLoader()
