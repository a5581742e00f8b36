"""Where values come from: the file of settings, and the environment without the links that others put there."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from dotenv import dotenv_values

from etl.errors import SettingsError

# Docker links and Kubernetes services add such variables to the environment of other containers: {ALIAS}_PORT=tcp://...
_LINK = re.compile(r"(?P<alias>.+)_PORT(_[0-9]+_(TCP|UDP|SCTP))?")
_SHAPE_OF_LINK = re.compile(r"ETL(_.+)?_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)")
_URL_OF_LINK = re.compile(r"(tcp|udp|sctp)://")


def unquoted(value: str) -> str:
    """Strip one pair of surrounding quotes."""
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'" else value


def _why_read_differently(value: str) -> str | None:
    """Return why --env-file, `docker --env-file` and compose read a value differently; None if they do not.

    Docker passes the text on as it is (we strip the quotes then). Compose expands `$`, drops ` #...` and, between
    double quotes, expands backslashes.
    """
    if "\r" in value:
        return "has a carriage return in its value"
    body = value.strip(" \t")
    if value != value.strip():
        return "has blanks around its value"
    if body[:1] in {'"', "'"}:
        inner = unquoted(body)
        if inner == body:
            return "begins with a quote but does not end with it"
        if body[0] in inner or "\\" in inner or unquoted(inner) != inner:
            return "has quotes or backslashes between its quotes"
        return "has a $ between double quotes (use single quotes)" if body[0] == '"' and "$" in inner else None
    if "$" in body:
        return "has a $ (put the value in single quotes)"
    return "has a # after a blank (put the value in quotes)" if re.search(r"(^|\s)#", body) else None


def refuse_of_others(path: Path) -> None:
    """Refuse a file of settings that was only found, and that another user could have written.

    It could send passwords that are set elsewhere to that user's server. In a folder of another user, or one that every
    user may write (unless it is sticky, as /tmp), the file may be replaced at any moment. Raises SettingsError.
    """
    found, folder = path.stat(), path.absolute().parent.stat()
    is_open = folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX
    if {found.st_uid, folder.st_uid} - {0, os.geteuid()} or found.st_mode & stat.S_IWOTH or is_open:
        raise SettingsError(
            f"env file {path.absolute()}: it or its folder belongs to another user, or every user may write it: "
            "name it with --env-file if you trust it"
        )


def is_open_to_read(path: Path) -> bool:
    """May every user of the machine read this file, and could we change that?"""
    found = path.stat()
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and bool(found.st_mode & stat.S_IROTH)


def read_env_file(path: str | Path) -> tuple[dict[str, str], list[str], dict[str, str]]:
    """Read a file of settings in UTF-8, one `NAME=value` per line, with python-dotenv and without interpolation.

    Where docker and compose would read a line differently there is a warning, and docker's reading is used: everything
    after the `=` is the value.

    Returns:
        The values by their names as written, the warnings, and what is wrong by where it is. No text contains a value.

    Raises:
        SettingsError: if the file cannot be read.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad_line = error.object[: error.start].count(b"\n") + 1
        raise SettingsError(f"env file {path}: line {bad_line} is not UTF-8") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a valid file name"
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
            wrong[where] = "is not NAME=value"  # do not show the line: it may be part of a secret
            continue
        reason = "has blanks or `export` before its =" if name != written else _why_read_differently(value)
        if reason:
            warnings.append(f"{where}: {name} {reason}: --env-file, docker and compose read it differently")
        if name in values:
            warnings.append(f"{where}: {name} is set twice; the last value is used")
        if reason:
            values[name] = unquoted(value.strip(" \t"))
        else:
            values[name] = dotenv_values(stream=io.StringIO(line), interpolate=False)[name] or ""
    return values, warnings, wrong


def without_links(environ: Mapping[str, str], is_server: Callable[[str], bool]) -> dict[str, str]:
    """Return the environment without the variables that Docker links and Kubernetes services put there.

    So a service with the name of one of our servers (`SRC_FTP_PORT=tcp://10.0.0.1:21`) sets no property of that server.
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
    """Return the values of all layers by names in upper case. A later layer overrides, except with an empty value.

    A secret and the file that contains it (`X_PASS`, `X_PASS_FILE`) are one setting: either overrides the other one.
    """
    values: dict[str, str] = {}
    for layer in layers:
        given: dict[str, str] = {}
        for name in sorted(layer, key=lambda name: (name.upper(), name.isupper())):
            if layer[name] or name.upper() not in given:
                given[name.upper()] = layer[name]
        for name, value in given.items():
            other = name.removesuffix("_FILE") if name.endswith("_FILE") else f"{name}_FILE"
            if value and other not in given:
                values.pop(other, None)
            if value or name not in values:
                values[name] = value
    return values
