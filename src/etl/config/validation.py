"""Parses all values into global settings and servers, and collects everything that is wrong with them.

Reads the secret files that settings name. Knows no environment.
"""

from __future__ import annotations

import difflib
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from etl.config.kinds import ADDRESS, GROUP_SECRET_CHARACTERS, MAX_TOPIC_CHARS, SUFFIX, TEXT, Kind
from etl.config.schema import SERVER_PROPERTIES, SETTINGS, Settings
from etl.models.server import PROTOCOLS, ProtocolSpec, ServerConfig

_NEVER_SERVERS = ("ETL_", "KAFKA_", "KUBERNETES_")
_SERVER_NAME = re.compile(r"[A-Z0-9][A-Z0-9_.-]*")
SECRET_NAME = re.compile(r"_PASS$|PASS(WORD|PHRASE)|SECRET|TOKEN")
_MAX_SECRET_BYTES = 64 * 1024


def nearest(name: str, known: Iterable[str], cutoff: float = 0.0) -> str:
    """Return a hint with the known name nearest to `name`; empty if none is similar enough."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f" (nearest: {found[0]})" if found else ""


class Validation:
    """One pass over all values, which collects everything that is wrong instead of stopping at the first error."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values
        self.problems: dict[str, str] = {}  # name of the setting -> what is wrong with it
        self._secrets = {value for name, value in values.items() if value and SECRET_NAME.search(name)}

    def wrong(self, name: str, what: str) -> None:
        """Record that a setting is wrong. Only the first complaint about each setting is kept."""
        self.problems.setdefault(name, what)

    def shown(self, value: str) -> str:
        """Return a value as an error message may show it: never a secret, not even one put into the wrong setting."""
        if "@" in value or any(s.strip() == value or (len(s) >= 4 and s in value) for s in self._secrets):
            return "its value"
        return repr(value if len(value) <= 60 else value[:60] + "...")

    def parsed(self, name: str, kind: Kind, default: Any) -> Any:
        """Return the parsed value of `name`; `default` if it is unset, or wrong, which is recorded."""
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
                self.wrong(row.name, "must not be empty: the topic would be the topic of the jobs")
        fields["kafka_password"] = self._kafka_password(fields)
        if path := fields["group_secret_file"]:
            fields["group_secret"] = self._group_secret(fields["group_secret"], path)
        if fields["kafka_ca_file"]:
            self._check_authorities(fields["kafka_ca_file"])
        settings = Settings(**fields, instance_id_is_set=bool(self.values.get("ETL_INSTANCE_ID", "").strip()))
        if settings.retry_backoff_seconds > settings.retry_backoff_max_seconds:
            self.wrong("ETL_RETRY_BACKOFF_SECONDS", "is larger than ETL_RETRY_BACKOFF_MAX_SECONDS")
        self._check_topics(settings)
        self._check_names()
        return settings

    def _kafka_password(self, fields: Mapping[str, Any]) -> str:
        """Return the password of the login to Kafka, and record what its protocol needs but is not set."""
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

    def _group_secret(self, secret: str, path: str) -> str:
        if secret:
            self.wrong("ETL_GROUP_SECRET", "only one of ETL_GROUP_SECRET and ETL_GROUP_SECRET_FILE may be set")
        secret = self._secret_of("ETL_GROUP_SECRET_FILE", path)
        if secret and len(secret) < GROUP_SECRET_CHARACTERS:
            self.wrong("ETL_GROUP_SECRET_FILE", f"the file contains less than {GROUP_SECRET_CHARACTERS} characters")
        return secret

    def _check_authorities(self, path: str) -> None:
        """Record what is wrong with the file in ETL_KAFKA_CA_FILE, without its path: that may be a secret."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except ssl.SSLError:
            self.wrong("ETL_KAFKA_CA_FILE", "the file contains no certificate in PEM format")
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
                self.wrong(
                    name, f"makes a topic name of {len(topic)} characters; Kafka allows at most {MAX_TOPIC_CHARS}"
                )
            self._check_not_taken(name, topic, taken)
        # RESULT_TOPIC and FAIL_TOPIC replace the results topic: each may have its name, and both may be the same.
        del taken[_folded(settings.topic + settings.result_topic_suffix)]
        for name, chosen in (("RESULT_TOPIC", settings.result_topic), ("FAIL_TOPIC", settings.fail_topic)):
            if chosen:
                self._check_not_taken(name, chosen, dict(taken))

    def _check_not_taken(self, name: str, topic: str, taken: dict[str, str]) -> None:
        other = taken.setdefault(_folded(topic), name)
        if other != name and other not in self.problems:
            self.wrong(
                name,
                f"makes the topic {topic!r}, which is already that of {other} (Kafka treats . and _ as the same)",
            )

    def _check_names(self) -> None:
        misnamed: set[str] = set()
        for name, prefix in self._servers_in_vain():
            self.wrong(
                f"{name}_TYPE", f"{name} cannot be a server's name: variables that begin with {prefix} are reserved"
            )
            misnamed |= {f"{name}_{key}" for key in SERVER_PROPERTIES}
        for name, value in self.values.items():
            if name.startswith("ETL_") and value and name not in SETTINGS and name not in misnamed:
                self.wrong(name, f"unknown setting{nearest(name, SETTINGS)}")

    def _servers_in_vain(self) -> Iterator[tuple[str, str]]:
        """Yield names that look like servers but have a reserved prefix, with that prefix.

        For a prefix that other programs use, a known type alone does not make a server: HOST or BASE_PATH must be set.
        """
        for key, value in self.values.items():
            name = key.removesuffix("_TYPE")
            prefix = next((prefix for prefix in _NEVER_SERVERS if key.startswith(prefix)), None)
            if name == key or prefix is None or value.strip().lower() not in PROTOCOLS:
                continue
            if prefix == "ETL_" or any(self.values.get(f"{name}_{place}") for place in ("HOST", "BASE_PATH")):
                yield name, prefix

    def server_names(self) -> set[str]:
        """Return the names of servers: those with a known type, or with both a type and a host."""
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
        """Return the properties of each server. A key belongs to the longest server name that it begins with."""
        found: dict[str, dict[str, str]] = {name: {} for name in sorted(self.server_names())}
        longest_first = sorted(found, key=len, reverse=True)
        for key, value in self.values.items():
            owner = next((name for name in longest_first if key.startswith(f"{name}_")), None)
            if owner and _may_be_of_a_server(key):
                found[owner][key.removeprefix(f"{owner}_")] = value
        return found

    def server(self, name: str, properties: Mapping[str, str]) -> ServerConfig:
        """Return one server, and record what is wrong with it."""
        kind = properties["TYPE"].strip().lower()
        spec = PROTOCOLS.get(kind)
        if spec is None:
            known = ", ".join(sorted(PROTOCOLS))
            self.wrong(f"{name}_TYPE", f"{self.shown(kind)} is not a known protocol (known: {known})")
            spec = ProtocolSpec(needs_host=False, needs_login=False, settings=dict.fromkeys(properties, ""))
        secret_files = [f"{secret}_FILE" for secret in spec.secrets]
        known_properties = [f"{name}_{known}" for known in (*SERVER_PROPERTIES, *spec.settings, *secret_files)]
        for unknown in (key for key, value in properties.items() if value and f"{name}_{key}" not in known_properties):
            near = nearest(f"{name}_{unknown}", known_properties)
            self.wrong(f"{name}_{unknown}", f"unknown property for a server of type {kind}{near}")
        address = TEXT if spec.default_port is None else ADDRESS

        def parsed(key: str, default: Any) -> Any:
            return self.parsed(f"{name}_{key}", SERVER_PROPERTIES[key].kind if key != "HOST" else address, default)

        password = self._password(name, properties, needed=spec.needs_login and spec.needs_password)
        host, user = parsed("HOST", ""), parsed("USER", "")
        if spec.needs_host and not host:
            self.wrong(f"{name}_HOST", "is missing")
        if spec.needs_login and not user:
            self.wrong(f"{name}_USER", "is missing")
        server = ServerConfig(
            hostname=name,
            type=kind,
            host=host,
            port=parsed("PORT", spec.port(properties)),
            username=user,
            password=password,
            max_connections=parsed("MAX_CONNECTIONS", ServerConfig.max_connections),
            connects_per_minute=parsed("CONNECTS_PER_MINUTE", ServerConfig.connects_per_minute),
            prewarm=parsed("PREWARM", ServerConfig.prewarm),
            bandwidth=parsed("BANDWIDTH_LIMIT", None),
            passive=parsed("PASSIVE", None),
            encoding=parsed("ENCODING", None),
            base_path=parsed("BASE_PATH", ""),
            partial_pattern=parsed("PARTIAL_PATTERN", ServerConfig.partial_pattern),
            publish=parsed("PUBLISH", ServerConfig.publish),
            access=parsed("ACCESS", ServerConfig.access),
            epsv=parsed("EPSV", ServerConfig.epsv),
            time_zone=parsed("TIME_ZONE", ""),
            options=self._options(name, properties, spec),
        )
        if spec.needs_base and not server.base_path:
            self.wrong(f"{name}_BASE_PATH", "is missing (/ is the whole machine)")
        for key, what in (spec.problems(server) if spec.problems is not None else {}).items():
            self.wrong(f"{name}_{key}", what)
        if spec.base_is_absolute and server.base_path and not server.base_path.startswith("/"):
            self.wrong(f"{name}_BASE_PATH", f"must begin with / for a server of type {kind}")
        if server.prewarm > server.max_connections:
            self.wrong(f"{name}_PREWARM", f"is larger than {name}_MAX_CONNECTIONS ({server.max_connections})")
        return server if spec.placed is None else spec.placed(server)

    def _options(self, name: str, properties: Mapping[str, str], spec: ProtocolSpec) -> dict[str, str]:
        """Return the properties of the protocol's own; those that are secrets may come from files."""
        found = {key.upper(): properties[key.upper()] for key in spec.settings if properties.get(key.upper())}
        for secret in spec.secrets:
            if path := properties.get(f"{secret}_FILE", "").strip():
                if secret in found:
                    what = f"only one of {name}_{secret} and {name}_{secret}_FILE may be set"
                    self.wrong(f"{name}_{secret}", what)
                else:
                    found[secret] = self._secret_of(f"{name}_{secret}_FILE", path)
        return found

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
            self.wrong(setting, "contains a line break or NUL")
        return password or ""

    def _secret_of(self, setting: str, path: str) -> str:
        """Return the content of a secret file without its last line break; record errors without the path.

        The path is not shown, because it may be a password that was put into the wrong setting.
        """
        try:
            with Path(path).open("rb") as file:
                content = file.read(_MAX_SECRET_BYTES + 1)
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.wrong(setting, "the file is not UTF-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "not a valid file name"
            self.wrong(setting, f"the file cannot be read: {why}")
        else:
            secret = text.removesuffix("\n").removesuffix("\r")
            self._secrets |= {secret} - {""}
            if not secret or len(content) > _MAX_SECRET_BYTES:
                self.wrong(setting, f"the file is {'too large' if secret else 'empty'}")
            return secret
        return ""


def _folded(topic: str) -> str:
    """Return the part of a topic name that must be unique: Kafka refuses names that differ only in `.` and `_`."""
    return topic.replace(".", "_")


def _may_be_of_a_server(key: str) -> bool:
    return key not in SETTINGS and not key.startswith(_NEVER_SERVERS)
