"""Files of other programs: servers from `connections.ini` or `rclone.conf`, settings from `config.yaml`.

What they say becomes settings of our own names, which the environment overrides. `pooler` has the tables of names. What
only such a file needs (YAML, AES) is imported once there is one.
"""

from __future__ import annotations

import configparser
import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etl.config import pooler
from etl.config.pooler import Key
from etl.config.sources import is_open_to_read
from etl.config.validation import SECRET_NAME, nearest

CONNECTIONS, CONFIG = "ETL_CONNECTIONS", "ETL_CONFIG"
ALIASES = {CONNECTIONS: "FTP_POOLER_CONNECTIONS", CONFIG: "FTP_POOLER_CONFIG"}

_MOST_BYTES = 1 << 20
_EVERY_SERVER = "{NAME}_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_OBSCURED = {"pass", "key_file_pass"}


@dataclass
class Files:
    """What was read. No text contains a value."""

    values: dict[str, str] = field(default_factory=dict)  # by our names
    for_all: dict[str, str] = field(default_factory=dict)  # properties that servers get which do not have them
    places: dict[str, str] = field(default_factory=dict)  # by our names: file, section and name that it comes from
    servers: dict[str, str] = field(default_factory=dict)  # by name: file and section
    problems: dict[str, str] = field(default_factory=dict)  # by place
    warnings: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def put(self, name: str, value: str, place: str) -> None:
        """Set one of our names."""
        self.values[name], self.places[name] = value, place

    def tell_idle(self, path: str, idle: Mapping[str, str]) -> None:
        """Say once which names of a file have no meaning here."""
        if idle:
            shown = ", ".join(f"{name} ({why})" if why else name for name, why in idle.items())
            self.warnings.append(f"{path}: without a meaning here: {shown}")


def read(values: Mapping[str, str]) -> Files:
    """Read the files that the settings name. Raises nothing: problems are collected."""
    files = Files()
    config, is_theirs = _named(values, CONFIG)
    if config:
        _read_config(files, config, with_defaults=is_theirs)
    connections = _named(values, CONNECTIONS)[0] or files.values.get(CONNECTIONS, "")
    for path in filter(None, (part.strip() for part in connections.split(","))):
        _read_servers(files, path)
    return files


def complete(values: dict[str, str], servers: Iterable[str], files: Files) -> None:
    """Give every server on the network what it gets where it says nothing itself."""
    for name in servers:
        if values.get(f"{name}_TYPE", "").strip().lower() == "local":
            continue
        for key, value in files.for_all.items():
            if not values.get(f"{name}_{key}"):
                values[f"{name}_{key}"] = value
        most = values.get(f"{name}_MAX_CONNECTIONS", "")
        if "PREWARM" in files.for_all and most.isdigit() and values[f"{name}_PREWARM"].isdigit():
            values[f"{name}_PREWARM"] = str(min(int(most), int(values[f"{name}_PREWARM"])))


def _named(values: Mapping[str, str], name: str) -> tuple[str, bool]:
    """Return the value of a setting or its alias, and whether it is the alias."""
    own = values.get(name, "").strip()
    return (own, False) if own else (values.get(ALIASES[name], "").strip(), True)


def _text_of(files: Files, path: str, setting: str) -> str | None:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        files.paths.append(path)
        if len(content) > _MOST_BYTES:
            files.problems[setting] = f"{path} is larger than {_MOST_BYTES} bytes"
            return None
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        files.problems[setting] = f"{path} is not UTF-8"
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a valid file name"
        files.problems[setting] = f"{path} cannot be read: {why}"
    return None


# --- config.yaml ----------------------------------------------------------------------------------------------


def _read_config(files: Files, path: str, *, with_defaults: bool) -> None:
    text = _text_of(files, path, CONFIG)
    if text is None:
        return
    sections = importlib.import_module("etl.config.sections")
    try:
        data = sections.load(text)
    except sections.NotYamlError as error:
        files.problems[f"{path}, line {error.line}" if error.line else path] = str(error)
        return
    given = _given(files, path, data)
    for section, keys in pooler.CONFIG.items():
        for name, key in keys.items():
            if with_defaults and key.default and not _is_given(given, key):
                given[section, name] = key.default
    idle: dict[str, str] = {}
    for (section, name), value in given.items():
        key, place = pooler.CONFIG[section][name], f"{path}, {section}.{name}"
        if not key.ours:
            idle[f"{section}.{name}"] = key.says
        elif (read_value := _converted(files, key, value, place)) is None:
            continue
        elif key.ours.startswith(_EVERY_SERVER):
            files.for_all.setdefault(key.ours.removeprefix(_EVERY_SERVER), read_value)
        else:
            files.put(key.ours, read_value, place)
    _settle(files, path, given)
    files.tell_idle(path, idle)


def _given(files: Files, path: str, data: Mapping[Any, Any]) -> dict[tuple[str, str], str]:
    """Return the values of all known names; record unknown ones."""
    given: dict[tuple[str, str], str] = {}
    for section, content in data.items():
        if section == "connections_path" and isinstance(content, str):
            files.put(CONNECTIONS, content, f"{path}, connections_path")
        elif section not in pooler.CONFIG:
            files.problems[f"{path}, {section}"] = f"unknown section{nearest(str(section), pooler.CONFIG)}"
        elif not isinstance(content, dict | None):
            files.problems[f"{path}, {section}"] = "must be a section with names in it"
        else:
            for name, value in (content or {}).items():
                place = f"{path}, {section}.{name}"
                if name not in pooler.CONFIG[section]:
                    files.problems[place] = f"unknown name{nearest(str(name), pooler.CONFIG[section])}"
                elif (shown := _scalar(value)) is None:
                    files.problems[place] = "must be one value, or a list of texts"
                elif shown:
                    given[section, name] = shown
    return given


def _scalar(value: object) -> str | None:
    """Return a value as a setting would be written; None if it is none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ",".join(value)
    return None


def _is_given(given: Mapping[tuple[str, str], str], key: Key) -> bool:
    """Is a name given that is the same here?"""
    return any(pooler.CONFIG[section][name].ours == key.ours for section, name in given if name != "prewarm_enabled")


def _settle(files: Files, path: str, given: Mapping[tuple[str, str], str]) -> None:
    """Read the names that depend on others."""
    if "PREWARM" in files.for_all:
        files.for_all.pop("PREWARM")
        counts = (given.get(("pool", f"prewarm_{what}")) for what in ("min_connections", "sessions_per_connection"))
        try:
            is_on = pooler.switch(given.get(("pool", "prewarm_enabled"), "true"))
            if count := next(filter(None, counts), None) if is_on else None:
                files.for_all["PREWARM"] = count
        except KeyError:
            files.problems[f"{path}, pool.prewarm_enabled"] = "is not one of true, false"
    if (letters := given.get(("kafka", "dlq_topic"))) is not None:
        topic = files.values.get("ETL_TOPIC", "")
        if topic and letters.startswith(topic) and letters != topic:
            files.values["DLQ_TOPIC_SUFFIX"] = letters.removeprefix(topic)
        else:
            del files.values["DLQ_TOPIC_SUFFIX"]
            files.problems[f"{path}, kafka.dlq_topic"] = "must begin with kafka.input_topic and go on"


def _converted(files: Files, key: Key, value: str, place: str) -> str | None:
    try:
        return key.read(value)
    except (ValueError, KeyError):
        files.problems[place] = "has a value that is not of its kind"
        return None


# --- servers --------------------------------------------------------------------------------------------------


def _read_servers(files: Files, path: str) -> None:
    """Read a file of servers; one whose name ends with `.conf` is rclone's."""
    text = _text_of(files, path, CONNECTIONS)
    if text is None:
        return
    is_rclone = path.endswith(".conf")
    if text.startswith(("RCLONE_ENCRYPT_V0:", "# Encrypted rclone configuration File")):
        files.problems[path] = "is encrypted: write it without (`rclone config show`)"
        return
    parser = configparser.RawConfigParser(
        delimiters=("=",) if is_rclone else ("=", ":"), default_section="" if is_rclone else "DEFAULT"
    )
    try:
        parser.read_string(text)
    except configparser.Error as error:
        line = getattr(error, "lineno", None) or next((line for line, _ in getattr(error, "errors", [])), None)
        where = f", line {line}" if line else ""
        twice = isinstance(error, configparser.DuplicateSectionError | configparser.DuplicateOptionError)
        files.problems[f"{path}{where}"] = "is there twice" if twice else "is no [section] and no name = value"
        return
    idle: dict[str, str] = {}
    has_secrets = False
    for section in parser.sections():
        place, content = f"{path} [{section}]", dict(parser[section])
        name = section.upper()
        if not _NAME.fullmatch(section):
            files.problems[place] = "cannot be a server's name: letters, digits, _ . - alone"
            continue
        if name in files.servers:
            files.problems[place] = f"is the server of {files.servers[name]} again"
            continue
        read_section = _of_rclone if is_rclone else _of_pooler
        found = read_section(files, path, section, content, idle)
        if found is None:
            continue
        files.servers[name] = place
        has_secrets = has_secrets or any(value and SECRET_NAME.search(f"_{key}") for key, (value, _) in found.items())
        for key, (value, origin) in found.items():
            files.put(f"{name}_{key}", value, f"{place} {origin}".strip())
    files.tell_idle(path, idle)
    if has_secrets and is_open_to_read(Path(path)):
        files.warnings.append(f"{path}: every user may read its passwords: chmod 600 {path}")


_Properties = dict[str, tuple[str, str]]  # property: its value, and the name that it comes from


def _of_pooler(
    files: Files, path: str, section: str, content: Mapping[str, str], idle: dict[str, str]
) -> _Properties | None:
    """Return the properties of a section of connections.ini."""
    place = f"{path} [{section}]"
    if not content.get("type", "").strip():
        files.problems[f"{place} type"] = "is missing"
        return None
    found: _Properties = {}
    for name, value in content.items():
        key = pooler.CONNECTIONS.get(name, Key(name.upper()))
        if not key.ours:
            idle[f"[{section}] {name}"] = key.says
        elif "%(" in value:
            files.problems[f"{place} {name}"] = "refers to another value, which is not supported"
        elif key.ours not in found or name != "password":  # `pass` comes first, as in FTP Pooler
            found[key.ours] = (value.replace("%%", "%"), name)
    kind = content["type"].strip().lower()
    if kind in {"ftp", "ftps"}:
        found.setdefault("USER", ("anonymous", "user"))
        if "PASS_FILE" not in found:
            found.setdefault("PASS", ("", "pass"))
    if kind == "ftps" and found.get("PORT", ("", ""))[0].strip() == "990":
        found.setdefault("TLS", ("implicit", "port"))
    if kind == "local":
        found.setdefault("BASE_PATH", ("/", "base_path"))
    return found


def _of_rclone(
    files: Files, path: str, section: str, content: Mapping[str, str], idle: dict[str, str]
) -> _Properties | None:
    """Return the properties of a remote of rclone; None for one of a type that is none here."""
    place = f"{path} [{section}]"
    kind = content.get("type", "").strip().lower()
    keys = pooler.RCLONE.get(kind)
    if keys is None:
        idle[f"[{section}]"] = f"type {kind}" if _NAME.fullmatch(kind) else "no type"
        return None
    found: _Properties = {"TYPE": (kind, "type")}
    for name, value in content.items():
        key = keys.get(name)
        if name in {"type", "description"} or not value.strip():
            continue
        if key is None:
            files.problems[f"{place} {name}"] = f"unknown name for a remote of type {kind}{nearest(name, keys)}"
        elif key.is_refused:
            files.problems[f"{place} {name}"] = key.says
        elif not key.ours:
            idle[f"[{section}] {name}"] = key.says
        else:
            _put_of_rclone(files, found, name, value.strip(), place)
    if kind == "ftp":
        found.setdefault("PASS", ("", "pass"))
    return found


def _put_of_rclone(files: Files, found: _Properties, name: str, value: str, place: str) -> None:
    key = pooler.RCLONE[found["TYPE"][0].replace("ftps", "ftp")][name]
    try:
        if name in _OBSCURED:
            found[key.ours] = (importlib.import_module("etl.config.obscured").reveal(value), name)
        elif name in {"tls", "explicit_tls"}:
            if pooler.switch(value):
                found["TYPE"], found["TLS"] = ("ftps", name), ("implicit" if name == "tls" else "explicit", name)
        elif name == "sse_kms_key_id":
            found["SSE"] = (f"aws:kms:{value}", name)
        elif name == "server_side_encryption" and "SSE" in found:
            return
        elif read_value := key.read(value):
            before = found[key.ours][0] + " " if key.ours == "SSH_OPTIONS" and key.ours in found else ""
            found[key.ours] = (before + read_value, name)
    except ValueError:
        what = "is not obscured: write what `rclone obscure` prints" if name in _OBSCURED else "is not of its kind"
        files.problems[f"{place} {name}"] = what
    except KeyError:
        files.problems[f"{place} {name}"] = "is not one of true, false"
