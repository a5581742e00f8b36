"""Where values come from: the file of settings, and the environment without its neighbours' noise."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from etl.errors import SettingsError

# What Docker links and Kubernetes services put into the environment of their neighbours: {ALIAS}_PORT=tcp://...
_LINK = re.compile(r"(?P<alias>.+)_PORT(_[0-9]+_(TCP|UDP|SCTP))?")
_SHAPE_OF_LINK = re.compile(r"ETL(_.+)?_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)")
_URL_OF_LINK = re.compile(r"(tcp|udp|sctp)://")


def unquoted(value: str) -> str:
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
        inner = unquoted(body)
        if inner == body:
            return "opens a quote that its end does not close"
        if body[0] in inner or "\\" in inner or unquoted(inner) != inner:
            return "has quotes or backslashes between its quotes"
        return "has a $ between double quotes (take single ones)" if body[0] == '"' and "$" in inner else None
    if "$" in body:
        return "has a $ (put the value in single quotes)"
    return "has a # after a blank (put the value in quotes)" if re.search(r"(^|\s)#", body) else None


def read_env_file(path: str | Path) -> tuple[dict[str, str], list[str], dict[str, str]]:
    """Return the values of a file of settings, keys as written, warnings, and the lines that are wrong (where: why).

    One `NAME=value` a line, UTF-8; the rest of the line is the value, nothing is interpolated. No text holds a value.
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
    wrong: dict[str, str] = {}
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.removesuffix("\r").lstrip(" \t")
        if not line or line.startswith("#"):
            continue
        written, equals, value = line.partition("=")
        name = written.removeprefix("export ").strip(" \t")
        where = f"env file {path}, line {number}"
        if not equals or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            wrong[where] = "is no NAME=value"  # it may be a piece of a secret, and is not repeated
            continue
        reason = "has blanks or `export` before its =" if name != written else _why_read_differently(value)
        if reason:
            warnings.append(f"{where}: {name} {reason}: --env-file, docker and compose read it differently")
        if name in values:
            warnings.append(f"{where}: {name} is given twice; the last one holds")
        values[name] = unquoted(value.strip(" \t"))
    return values, warnings, wrong


def without_links(environ: Mapping[str, str], is_server: Callable[[str], bool]) -> dict[str, str]:
    """Return the environment without what Docker links and Kubernetes services put there.

    A service that is called like a server of ours (`SRC_FTP_PORT=tcp://10.0.0.1:21`) sets nothing of it.
    """
    aliases = {
        found["alias"]
        for name, value in environ.items()
        if (found := _LINK.fullmatch(name)) and _URL_OF_LINK.match(value)
    }

    def is_link(name: str, value: str) -> bool:
        if _SHAPE_OF_LINK.fullmatch(name):
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


def merged(layers: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the values of all layers, later over earlier ones, keys upper case; an empty one hides none."""
    values: dict[str, str] = {}
    for layer in layers:
        for name in sorted(layer, key=lambda name: (name.upper(), name.isupper())):
            if layer[name] or name.upper() not in values:
                values[name.upper()] = layer[name]
    return values
