"""Logging: one output for structlog and for the standard library, as text for a terminal or as JSON.

Removes every configured password from every line, however it is quoted.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NoReturn, TextIO
from urllib.parse import quote, quote_plus

import structlog

from etl.errors import SettingsError

FORMATS = ("text", "json")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
HIDDEN = "***"
_MIN_CHARS_INSIDE_TEXT = 4  # shorter secrets are hidden only as a whole value: within text they would match everywhere
_RESERVED = frozenset({"time", "level", "process"})  # fields that every line has; an event's own get an underscore
_ODD = re.compile(r"[^ -~]")
# Signs that count as printable and show nothing: fillers, selectors of variants, and the like.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_NEEDS_QUOTES = re.compile(r"[\s\"'=\\\x00-\x1f\x7f-\x9f]")

_json = json.JSONEncoder(ensure_ascii=False).encode  # created once, because every job writes a line

Event = MutableMapping[str, Any]


class Redactor:
    """Replaces secrets with HIDDEN, also where they are URL-quoted, in base64, or escaped as in JSON or a `repr`."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        given = [secret for secret in secrets if secret]
        self._whole = {form for secret in given for form in _forms(secret)}
        inside = {form for s in given if len(s) >= _MIN_CHARS_INSIDE_TEXT for form in _forms(s)}
        self._inside = _any_of(inside) if inside else None

    def is_plain(self, fields: Mapping[str, Any]) -> bool:
        """Are these only texts and finite numbers, without any secret? A quick test that may wrongly say no."""
        texts = list(fields)
        for value in fields.values():
            kind = type(value)
            if kind is str:
                texts.append(value)
            elif kind is int or (kind is float and value - value == 0):
                texts.append(str(value))
            else:
                return False
        if not self._whole.isdisjoint(texts):
            return False
        return self._inside is None or self._inside.search("\n".join(texts)) is None

    def text(self, text: str, told: Collection[str] = ()) -> str:
        """Return `text` without the secrets, except within what the reader was `told` already."""
        if text in self._whole:
            return HIDDEN
        if self._inside is None:
            return text
        return self._inside.sub(lambda found: found[0] if _is_within(found, told) else HIDDEN, text)

    def value(self, value: Any) -> Any:
        """Return `value` as plain JSON types without the secrets; anything else becomes text."""
        if type(value) is str:
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item) for item in value]
        text = _text_of(value)
        redacted = self.text(text)
        is_plain = value is None or isinstance(value, bool | int) or (isinstance(value, float) and value - value == 0)
        return value if is_plain and redacted == text else redacted


def _is_within(found: re.Match[str], told: Iterable[str]) -> bool:
    """Return whether a match lies within an occurrence of one of the words."""
    for word in told:
        if found.string.find(word, max(0, found.end() - len(word)), found.start() + len(word)) >= 0:
            return True
    return False


def _any_of(forms: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the forms, the longest one where several match.

    Alternatives are grouped by their first letter: otherwise each of them would be tried at every letter of a line.
    """
    rests: dict[str, list[str]] = {}
    for form in sorted(forms, key=lambda form: (-len(form), form)):
        rests.setdefault(form[0], []).append(re.escape(form[1:]))
    return re.compile("|".join(f"{re.escape(first)}(?:{'|'.join(group)})" for first, group in rests.items()))


def _forms(secret: str) -> set[str]:
    """Return the ways in which a secret may be written in a text."""
    data = secret.encode("utf-8", "surrogatepass")
    forms = {secret, repr(secret)[1:-1], repr(data)[2:-1]}
    for quoted in (quote(data, safe=""), quote(data), quote_plus(data)):
        forms |= {quoted, re.sub("%..", lambda found: found[0].lower(), quoted)}
    for encoded in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()):
        forms |= {encoded, encoded.rstrip("=")}
    for _ in range(2):  # twice for JSON within JSON: an error may quote a message
        forms |= {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in forms for ascii_only in (True, False)}
    return forms


def _text_of(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


def escaped(text: str, keep: str = "") -> str:
    """Return `text` with the signs escaped, as in JSON, that are not what they show: names come from strangers.

    Those break a line, control a terminal, turn the direction of what follows, or show nothing or a blank.
    """
    if text.isprintable() and (text.isascii() or _BLANK.search(text) is None):
        return text
    return _ODD.sub(lambda found: found[0] if found[0] in keep else _escaped_sign(found[0]), text)


def _escaped_sign(sign: str) -> str:
    if sign.isprintable() and _BLANK.match(sign) is None:
        return sign
    return f"\\u{ord(sign):04x}" if sign <= "\uffff" else json.dumps(sign)[1:-1]


def render_json(event: Event) -> str:
    """Return the event as a JSON object on one line."""
    line = _json(event)
    # JSON escapes C0 controls, but not DEL and C1. They are rare, so an ordinary line pays for a quick test alone.
    return line if line.isascii() and "\x7f" not in line else escaped(line)


def render_text(event: Event) -> str:
    """Return the event as `time LEVEL [process] event key=value ...`; a traceback follows on its own lines."""
    rest = dict(event)
    process = rest.pop("process", "")
    head = f"{rest.pop('time')} {rest.pop('level').upper():7} {process}{' ' if process else ''}{rest.pop('event')}"
    trace = rest.pop("exception", None)
    lines = [escaped(" ".join([head, *[f"{key}={_shown(value)}" for key, value in rest.items()]]))]
    if trace:
        text = escaped(str(trace), keep="\n\t")
        lines += [f"{process} {line}" for line in text.split("\n")] if process else [text]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, str) and value and not _NEEDS_QUOTES.search(value):
        return value
    # A finite number looks the same in JSON; str() is faster.
    return str(value) if type(value) is int or type(value) is float else _json(value)


class _Output:
    """Renders, redacts and writes lines. Any thread may use it."""

    def __init__(self, render: Callable[[Event], str], redactor: Redactor, stream: TextIO, process: str = "") -> None:
        self.redactor = redactor
        self._process = {"process": process} if process else {}
        self._render = render
        self._stream = stream
        self._lock = threading.Lock()  # guards the stream: a line is written in one piece

    def write(self, level: str, created: float | None, event: Mapping[str, Any], trace: str | None = None) -> None:
        """Write one event. Never raises: a log line must not end a transfer.

        `created` is the time of the event in seconds since the epoch; None stands for now.
        """
        now = datetime.now(UTC) if created is None else datetime.fromtimestamp(created, UTC)
        head = {"time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"), "level": level, **self._process}
        fields = {"event": "", **event}
        if trace:
            fields["exception"] = trace
        try:
            if not (self.redactor.is_plain(fields) and _RESERVED.isdisjoint(fields)):
                fields = {self._key(name): self.redactor.value(value) for name, value in fields.items()}
            line = self._render({**head, **fields})
        except Exception as error:  # noqa: BLE001 - a value's own __str__ may raise anything
            line = self._render({**head, "event": "log line failed", "why": type(error).__name__})
        if not line.isascii():
            line = self._encodable(line)
        lines: list[str] | None = getattr(_gathered, "lines", None)
        if lines is None:
            self.put(line)
        else:
            lines.append(line)

    def put(self, text: str) -> None:
        """Write one or more lines in one piece. Never raises."""
        # If the pipe is closed or the disk is full, there is nowhere to report it, and the work goes on.
        with self._lock, suppress(OSError, ValueError):
            self._stream.write(text + "\n")
            self._stream.flush()

    def _encodable(self, line: str) -> str:
        try:
            line.encode(getattr(self._stream, "encoding", None) or "utf-8")
        except UnicodeEncodeError:
            # An ASCII terminal, or a file name that is not UTF-8: use JSON's escapes, which keep a JSON line valid.
            return re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], line)
        return line

    def _key(self, name: str) -> str:
        if name in _RESERVED:
            return f"{name}_"
        return name if name in {"event", "logger", "exception"} else self.redactor.text(name)


class _Processor:
    """The last processor of structlog: writes the event, then drops it.

    A field `at` (a float, seconds since the epoch) is the time of an event that was not just now.
    """

    def __init__(self, output: _Output) -> None:
        self._output = output

    def __call__(self, _logger: Any, method: str, event: Event) -> NoReturn:
        fields = dict(event)
        trace = _trace_of(fields.pop("exc_info", None))
        level = {"warn": "warning", "exception": "error", "fatal": "critical"}.get(method, method)
        at = fields.pop("at") if isinstance(fields.get("at"), float) else None
        self._output.write(level, at, fields, trace)
        raise structlog.DropEvent


class _Handler(logging.Handler):
    """Writes the records of the standard library's loggers (kafka-python and others)."""

    def __init__(self, output: _Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 - another library's log call may have wrong arguments
            message = f"{record.msg} ({type(error).__name__} in its arguments)"
        event = {"event": message, "logger": record.name}
        self._output.write(record.levelname.lower(), record.created, event, _trace_of(record.exc_info))


def _trace_of(error: Any) -> str | None:
    """Return the traceback meant by `exc_info`, which may be an exception, True, or a triple."""
    if isinstance(error, tuple):
        error = error[1]
    elif error and not isinstance(error, BaseException):
        error = sys.exception()
    return "".join(traceback.format_exception(error)).rstrip("\n") if error else None


_current = _Output(render_text, Redactor(), sys.stderr)
_gathered = threading.local()  # its `lines`: those that this thread has gathered within `together`


def configure(
    log_format: str = "text",
    level: str = "INFO",
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
    *,
    library_level: str = "WARNING",
    process: str = "",
) -> None:
    """Set up all logging of the process. May be called again.

    Args:
        log_format: `text` or `json`.
        level: lowest level of our own events: DEBUG, INFO, WARNING or ERROR.
        secrets: texts that must never appear in a line.
        stream: where lines are written; standard output by default.
        library_level: lowest level of other libraries' records.
        process: name of the process, shown in each line; for several processes that share one output.

    Raises:
        SettingsError: if the format or the level is unknown.
    """
    if log_format.lower() not in FORMATS:
        raise SettingsError(f"ETL_LOG_FORMAT: {log_format!r} is not one of {', '.join(FORMATS)}")
    if level.upper() not in LEVELS:
        raise SettingsError(f"ETL_LOG_LEVEL: {level!r} is not one of {', '.join(LEVELS)}")
    threshold = logging.getLevelNamesMapping()[level.upper()]
    render = render_json if log_format.lower() == "json" else render_text
    global _current  # noqa: PLW0603 - logging is set up once for the process, like the standard library's
    _current = _Output(render, Redactor(secrets), stream or sys.stdout, process)
    structlog.configure(
        processors=[_Processor(_current)],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.ReturnLoggerFactory(),  # never called, because the processor drops every event
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(handler)
    root.addHandler(_Handler(_current))
    root.setLevel(max(threshold, logging.getLevelNamesMapping()[library_level]))


def redact(text: str, told: Collection[str] = ()) -> str:
    """Return `text` without the passwords given to `configure`; for text that leaves the process by another way.

    `told` are words that its reader wrote. A password within one of them stays: hidden, it would tell whoever puts
    guesses into the path of a job which of them was right.
    """
    return _current.redactor.text(text, told)


@contextmanager
def together() -> Iterator[None]:
    """Gather this thread's lines, and write them in one system call when the context ends."""
    lines: list[str] = []
    _gathered.lines = lines
    try:
        yield
    finally:
        _gathered.lines = None
        if lines:
            _current.put("\n".join(lines))
