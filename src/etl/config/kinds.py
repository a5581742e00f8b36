"""Kinds of values: which texts a setting accepts, and how they are parsed."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from etl.models.server import RIGHTS, zone_of
from etl.models.timetable import Timetable

_ASCII = "".join(map(chr, range(128)))
_STRUCTURE = {*range(32), *b"./", 127}
MAX_TOPIC_CHARS = 249  # org.apache.kafka.common.internals.Topic


@dataclass(frozen=True)
class Kind:
    """A kind of value. `parse` raises ValueError or LookupError for a text that is not what `says` describes."""

    says: str
    parse: Callable[[str], Any]


def one_of(*choices: str) -> Kind:
    """Return the kind that accepts one of these words, in upper or lower case."""

    def parse(text: str) -> str:
        return {choice.lower(): choice for choice in choices}[text.lower()]

    return Kind(f"one of {', '.join(choices)}", parse)


def matching(pattern: str, says: str) -> Kind:
    """Return the kind that accepts texts which match the whole regular expression."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return Kind(says, parse)


def number(low: float, high: float, *, whole: bool = False) -> Kind:
    """Return the kind that accepts a number from `low` to `high`, both included."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}" if whole else r"[+-]?[0-9]{1,18}(\.[0-9]{0,18})?", text):
            raise ValueError(text)
        value = int(text) if whole else float(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return Kind(f"a {'whole ' if whole else ''}number from {low:.16g} to {high:.16g}", parse)


def whole(low: int, high: int) -> Kind:
    """Return the kind that accepts a whole number from `low` to `high`, both included."""
    return number(low, high, whole=True)


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


def _parse_rights(text: str) -> frozenset[str]:
    rights = frozenset(part.strip().lower() for part in text.split(","))
    if not rights <= set(RIGHTS):
        raise ValueError(text)
    return rights


def _parse_pairs(text: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for pair in text.split(","):
        source, destination = (side.strip().upper() for side in pair.split(":"))
        if not source or not destination:
            raise ValueError(text)
        pairs.append((source, destination))
    return tuple(pairs)


def _parse_topic(text: str) -> str:
    if text in {".", ".."} or not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{MAX_TOPIC_CHARS}}}", text):
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
    # Paths are ASCII with names in between: no other sign may have bytes that mean a separator or the end of a command.
    try:
        usable = _ASCII.encode(text) == _ASCII.encode("ascii") and not _has_structure_in_names(text)
    except (LookupError, UnicodeError):
        usable = False
    if not usable:
        raise ValueError(text)
    return text


@cache
def _has_structure_in_names(encoding: str) -> bool:
    """Does a sign beyond ASCII begin like ASCII in this encoding, or hold a slash, a dot or a control character?"""
    for code in (*range(0x80, 0xD800), *range(0xE000, 0x11000)):
        sign = chr(code).encode(encoding, "ignore")
        if sign and (sign[0] < 0x80 or not _STRUCTURE.isdisjoint(sign)):
            return True
    return False


def _parse_time_zone(text: str) -> str:
    zone_of(text)
    return text


def _parse_partial_pattern(text: str) -> str:
    head, mark, tail = text.partition("{id}")
    if not mark or not re.fullmatch(r"[^/\\{}\x00-\x1f\x7f]{0,100}", head + tail):
        raise ValueError(text)
    return text


TEXT = matching(r"[^\x00-\x1f\x7f]+", "text without control characters")
GROUP_SECRET_CHARACTERS = 16
SECRET = matching(
    rf"[^\x00-\x1f\x7f]{{{GROUP_SECRET_CHARACTERS},}}", f"a secret of at least {GROUP_SECRET_CHARACTERS} characters"
)
LABEL = matching(r"[A-Za-z0-9._-]{1,200}", "a name of at most 200 characters A-Z a-z 0-9 . _ -")
SUFFIX = matching(r"[A-Za-z0-9._-]{1,200}", "a suffix of 1 to 200 characters A-Z a-z 0-9 . _ -")
PREFIX = matching(r"[A-Za-z0-9._-]{1,200}", "a prefix of 1 to 200 characters A-Z a-z 0-9 . _ -")
TOPIC = Kind(
    f"a topic name (1 to {MAX_TOPIC_CHARS} characters A-Z a-z 0-9 . _ -, and neither '.' nor '..')",
    _parse_topic,
)
SWITCH = Kind("one of true, false", _parse_switch)
SIZE = whole(1, 1 << 40)
LIMIT = number(0.1, 86400)
ADDRESS = Kind("a host name or IP address alone (no port, no scheme, no path)", _parse_host)
TIME_ZONE = Kind("a time zone (Asia/Seoul) or an offset (+09:00)", _parse_time_zone)
BANDWIDTH = Kind(
    "a rate from 1K to 1000G, or a timetable such as 08:00-18:00 20M, 100M",
    Timetable.parse,
)
ENCODING = Kind("a text encoding that includes ASCII (utf-8, euc-kr, cp949 ...)", _parse_encoding)
PARTIAL_PATTERN = Kind("a file name with {id} once and no slash", _parse_partial_pattern)
ADDRESSES = Kind("host:port, several separated by commas", _parse_addresses)
RIGHTS_OF_JOBS = Kind(f"one or more of {', '.join(RIGHTS)}, separated by commas", _parse_rights)
PAIRS = Kind("SOURCE:DESTINATION, several separated by commas, * for any server", _parse_pairs)
MODULES = Kind("names of Python modules separated by commas", _parse_modules)
