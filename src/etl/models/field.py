"""Rules for single fields of a message.

A rule raises ValueError with only the reason; the reader of the message adds the field's name.
"""

import unicodedata
from datetime import datetime
from typing import Annotated

from pydantic import BeforeValidator, PlainValidator

from etl.models import document
from etl.models.checksum import Checksum

PATH_LIMIT_BYTES = 4096  # PATH_MAX of Linux; the FTP servers we know accept no more
LABEL_LIMIT = 255  # characters of a job id or a server name


def normalise_path(path: str) -> str:
    """Return `path` without `//`, `.` and `..`: `a//b/./c/../d` becomes `a/b/d`.

    Raises:
        ValueError: if the path is empty, too long, or names a folder, if it holds control characters (a line break
            would start a second FTP command), or if a `..` climbs above its start.
    """
    if not path:
        raise ValueError("is empty")
    if (control := _control(path)) is not None:
        raise ValueError(f"contains the control character {control!a}")
    if len(path.encode("utf-8")) > PATH_LIMIT_BYTES:
        raise ValueError(f"is longer than {PATH_LIMIT_BYTES} bytes")
    if not ("//" in path or "/." in path or path.startswith(".") or path.endswith("/")):
        return path
    parts: list[str] = []
    pieces = path.split("/")
    for piece in pieces:
        if piece == "..":
            if not parts:
                raise ValueError("climbs above its start with '..'")
            parts.pop()
        elif piece not in ("", "."):
            parts.append(piece)
    if pieces[-1] in ("", ".", ".."):
        raise ValueError("names a folder, not a file")
    return ("/" if path.startswith("/") else "") + "/".join(parts)


def _label(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    if len(text) > LABEL_LIMIT:
        raise ValueError(f"is longer than {LABEL_LIMIT} characters")
    if _control(text) is not None:
        raise ValueError("contains a control character")
    return text


def is_label(text: str) -> bool:
    """Is this a valid job id or server name?"""
    try:
        return _label(text) == text
    except ValueError:
        return False


def _control(text: str) -> str | None:
    """Return the first control character or half of a surrogate pair; None if there is none."""
    if text.isprintable():
        return None
    return next((letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs")), None)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004 - pydantic reports ValueError with its field
    return value


def _path(value: object) -> str:
    return normalise_path(_text(value))


def _source_action(value: object) -> str | dict[str, str]:
    if value in ("keep", "delete"):
        return str(value)
    if isinstance(value, dict) and set(value) == {"move"}:
        try:
            return {"move": _path(value["move"])}
        except ValueError as error:
            raise ValueError(f"move: {error}") from None
    raise ValueError('must be "keep", "delete" or {"move": path}')


def _checksum(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or set(value) != {"algorithm", "value"}:
        raise ValueError('must be {"algorithm": name, "value": digits}')
    if not all(isinstance(part, str) for part in value.values()):
        raise ValueError("algorithm and value must be strings")
    return Checksum.read(value["algorithm"], value["value"])._asdict()


def _version(value: object) -> str:
    text = _text(value)
    major, _, minor = text.partition(".")
    if major != "1" or not (minor == "" or (minor.isdecimal() and len(minor) < 10)) or text.endswith("."):
        raise ValueError(f"{text[:20]!a} is not supported (known: 1.0, and 2.0 with files)")
    return text


Label = Annotated[str, PlainValidator(lambda value: _label(_text(value)))]
Path = Annotated[str, PlainValidator(_path)]
Moment = Annotated[datetime, BeforeValidator(document.read_time)]
Action = Annotated[str | dict[str, str], PlainValidator(_source_action)]
Expected = Annotated[dict[str, str], PlainValidator(_checksum)]
Version = Annotated[str, PlainValidator(_version)]
