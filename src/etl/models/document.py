"""Reads JSON from outside strictly, so that every text has only one meaning, and writes JSON.

Knows no message's fields. Raises only `InvalidMessage`, which names the field.
"""

import json
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn

from etl.errors import InvalidMessage

# Levels: enough for any metadata, and too few for Python's recursion limit to be reached in reading or writing.
DEPTH_LIMIT = 64


class Bounds(NamedTuple):
    """How much is read of a document: reading takes up to a microsecond and 100 bytes of memory for each value."""

    size_bytes: float
    values: float  # at most; counted before reading, by the commas and brackets
    levels: int


# A message is read by the thread that polls, which must come back within seconds. What we wrote ourselves may hold a
# message of any size, and a dead letter is one level around it; it is read by commands.
MESSAGE = Bounds(4 << 20, 100_000, DEPTH_LIMIT)
OURS = Bounds(float("inf"), float("inf"), DEPTH_LIMIT + 2)

NAME_SHOWN = 100  # characters of a field's name in an error
_GZIP = b"\x1f\x8b"
# Python's calendar ends with the year 9999. The time 9999-12-31T23:59:59.999999Z is valid, but as a float it rounds up
# to the year 10000.
FIRST_SECOND, LAST_SECOND = -62_135_596_800.0, 253_402_300_799.0


def parse(document: bytes | bytearray | str | None, bounds: Bounds = MESSAGE) -> dict[str, Any]:
    """Return the JSON object in `document`, which is UTF-8, with or without a byte order mark.

    Rejects what two readers could understand differently, or what cannot be written again: a name that appears twice in
    an object, NaN and infinite numbers, halves of surrogate pairs; and whatever exceeds the bounds.

    Raises:
        InvalidMessage: names the field; or `message`, if `document` is not a JSON object.
    """
    if not isinstance(document, str):
        document = unpacked(bytes(document or b""))
    if len(document) > bounds.size_bytes:
        raise InvalidMessage(f"message: is larger than {bounds.size_bytes} bytes")
    try:
        text = document if isinstance(document, str) else document.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidMessage(f"message: is not UTF-8 (byte {error.start})") from None
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise InvalidMessage("message: is empty")
    brackets = text.count("{") + text.count("[")
    if brackets + text.count(",") > bounds.values:
        raise InvalidMessage(f"message: has more than {bounds.values} commas and brackets")
    try:
        data = _DECODER.decode(text)
    except InvalidMessage:
        raise
    except RecursionError:
        raise InvalidMessage(f"message: is nested deeper than {bounds.levels} levels") from None
    except ValueError as error:
        raise InvalidMessage(f"message: is not JSON ({error})") from None
    # Skip the check where it cannot fail: in bytes without an escape there is no half of a surrogate pair, and each
    # level takes a bracket. That holds for nearly every message.
    is_checked = isinstance(document, bytes) and "\\u" not in text and brackets < bounds.levels
    return data if is_checked and isinstance(data, dict) else check(data, bounds.levels)


def unpacked(value: bytes, *, strict: bool = True) -> bytes:
    """Return a message without its gzip (RFC 1952), if it has one; never more than a message may have.

    Raises:
        InvalidMessage: it is broken, too much, or packed twice; unless not `strict`: then as much is returned as could
            be unpacked.
    """
    if not value.startswith(_GZIP):
        return value
    limit_bytes = int(MESSAGE.size_bytes)
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(value[:limit_bytes], limit_bytes + 1)
        if strict and len(content) > limit_bytes:
            raise InvalidMessage(f"message: unpacks to more than {limit_bytes} bytes")
        if strict and (not unpacker.eof or unpacker.unused_data):
            why = "is cut off" if not unpacker.eof else "has something behind it"
            raise InvalidMessage(f"message: its gzip {why}")
        # Packed once: a dead letter keeps what was in it, and a replay of that must not mean anything else.
        if strict and content.startswith(_GZIP):
            raise InvalidMessage("message: is packed with gzip twice")
    except zlib.error as error:
        if strict:
            raise InvalidMessage(f"message: its gzip is broken ({error})") from None
        return b""
    return content


def check(data: object, levels: int = DEPTH_LIMIT) -> dict[str, Any]:
    """Return `data` if it is an object that JSON can carry unchanged. Raises InvalidMessage."""
    if not isinstance(data, dict):
        raise InvalidMessage(f"message: must be a JSON object, not {_kind(data)}")
    pending: list[tuple[str, Any, int]] = [("", data, 1)]
    while pending:
        name, value, depth = pending.pop()
        if depth > levels:
            raise InvalidMessage(f"{name.split('.')[0]}: is nested deeper than {levels} levels")
        if isinstance(value, dict | list):
            pending.extend((inner, item, depth + 1) for inner, item in _items(name, value))
        elif isinstance(value, str):
            _check_text(name, value)
        elif isinstance(value, float):
            if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN is what differs from itself
                raise InvalidMessage(f"{name}: is not a finite number")
        elif value is not None and not isinstance(value, bool | int):
            raise InvalidMessage(f"{name}: {type(value).__name__} is not a JSON type")
    return data


def write(data: object, *, ascii_only: bool = False, spaced: bool = False) -> str:
    """Return `data` as one line of JSON, by default compact and without escapes for letters beyond ASCII."""
    if not (ascii_only or spaced):
        return _COMPACT.encode(data)
    return json.dumps(data, ensure_ascii=ascii_only, separators=None if spaced else (",", ":"), allow_nan=False)


def printable(text: str) -> str:
    """Return `text` with halves of surrogate pairs, which UTF-8 cannot encode, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def iso(moment: datetime) -> str:
    """Return an aware time as ISO 8601 in UTC, ending in Z."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def moment(wall: float) -> datetime:
    """Return seconds since the epoch as an aware UTC time, limited to the years 1 to 9999."""
    return datetime.fromtimestamp(min(max(wall, FIRST_SECOND), LAST_SECOND), UTC)


def read_time(value: object) -> object:
    """Return an ISO 8601 text that has a time zone as an aware UTC time, and None as None. Raises ValueError."""
    if value is None:
        return value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("must be a time in ISO 8601 with its zone, such as 2026-01-31T12:00:00Z") from None
    if not isinstance(value, datetime):
        raise ValueError("must be a time in ISO 8601 with its zone, such as 2026-01-31T12:00:00Z")  # noqa: TRY004 - pydantic reports ValueError
    if value.tzinfo is None:
        raise ValueError("has no time zone (add Z for UTC)")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range") from None


def _items(name: str, value: dict[Any, Any] | list[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        yield from ((f"{name}[{index}]", item) for index, item in enumerate(value))
        return
    for key, item in value.items():
        if not isinstance(key, str):
            raise InvalidMessage(f"{name or 'message'}: a field's name must be a string, not {_kind(key)}")
        inner = f"{name}.{key[:NAME_SHOWN]}" if name else key[:NAME_SHOWN]
        _check_text(inner, key)
        yield inner, item


def _check_text(name: str, text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidMessage(f"{printable(name)}: contains half of a surrogate pair, not a character") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # add() is None: false
        raise InvalidMessage(f"{printable(twice[:NAME_SHOWN])}: appears twice in one object")
    return result


def _refuse_constant(word: str) -> NoReturn:
    raise InvalidMessage(f"message: {word} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise InvalidMessage(f"message: the number {digits[:40]} is out of range")
    return number


def _integer(digits: str) -> int:
    if len(digits) > 1000:  # Python refuses to write more than 4300 digits, and nobody needs so many
        raise InvalidMessage(f"message: the number {digits[:40]}... is out of range")
    return int(digits)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


# Created once, because that is expensive and every job reads one message and writes one.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer
)
_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
