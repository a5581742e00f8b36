"""Replies as they come off the wire: bytes in, whole replies out. Pure; knows no socket."""

from __future__ import annotations

import re
from dataclasses import dataclass

LINE_LIMIT_BYTES = 8 * 1024
LINE_LIMIT_COUNT = 1000
REPLY_LIMIT_BYTES = 256 * 1024
_USUAL = re.compile(rb"(([1-5][0-9]{2})(?: [^\r\n]*)?)\r?\n")  # a reply of one line
_FIRST_LINE = re.compile(rb"([1-5][0-9]{2})(?![0-9])")  # some forget the space behind it
_LAST_LINE = re.compile(rb"[1-5][0-9]{2} ")
_TEXT_LINES = 30  # before the first reply, that some servers welcome with


class GarbledReplyError(ValueError):
    """Raised when what a server sends is no reply, or has no end."""


@dataclass(slots=True)  # not frozen: a thousand are made a second
class Reply:
    """One reply, of one or many lines (RFC 959 section 4.2), without their line ends."""

    code: int
    lines: tuple[bytes, ...]

    @property
    def is_success(self) -> bool:
        """Was the command carried out (2xx)?"""
        return 200 <= self.code < 300

    @property
    def is_transient(self) -> bool:
        """May the same command be accepted later (4xx)?"""
        return 400 <= self.code < 500

    @property
    def line(self) -> bytes:
        """The last line without its code."""
        return self.lines[-1][4:]

    @property
    def text(self) -> str:
        """The reply for people: one line, printable, of bounded length."""
        joined = b" ".join(line.strip() for line in self.lines[:8]).decode("utf-8", "replace")
        if not joined.isprintable():
            joined = "".join([sign if sign.isprintable() else "?" for sign in joined])
        return joined[:300]


class ReplyParser:
    """Turns bytes, cut anywhere, into replies in their order."""

    def __init__(self) -> None:
        self._received = b""
        self._at = 0  # of what was received: taken up to here
        self._lines: list[bytes] = []
        self._lines_bytes = 0
        self._text_lines_left = _TEXT_LINES

    @property
    def is_open(self) -> bool:
        """Has a reply of many lines begun, and not ended?"""
        return bool(self._lines) and self._at == len(self._received)

    def end_open(self) -> Reply:
        """Return a reply whose end does not come: some servers give none, or one with another code."""
        lines, self._lines, self._lines_bytes = tuple(self._lines), [], 0
        last = lines[-1] if _LAST_LINE.match(lines[-1]) else lines[0]
        return Reply(int(last[:3]), lines)

    @property
    def is_empty(self) -> bool:
        """Is nothing waiting to become a reply?"""
        return self._at == len(self._received) and not self._lines

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        self._received, self._at = self._received[self._at :] + data, 0

    def take(self) -> Reply | None:
        """Return the next whole reply; None when its end has not come yet. Raises GarbledReplyError."""
        if self._at == len(self._received):
            return None
        if not self._lines and (usual := _USUAL.match(self._received, self._at)) is not None:
            end = usual.end()
            if end - self._at <= LINE_LIMIT_BYTES:
                self._at, self._text_lines_left = end, 0
                return Reply(int(usual[2]), (usual[1],))
        while (line := self._take_line()) is not None:
            if not self._lines:
                if not _FIRST_LINE.match(line):
                    if not line:  # some put one between two replies
                        continue
                    if self._text_lines_left:
                        self._text_lines_left -= 1
                        continue
                    raise GarbledReplyError(f"{line[:60]!r} is no FTP reply")
                self._text_lines_left = 0
                if line[3:4] != b"-":
                    return Reply(int(line[:3]), (line,))
            self._lines.append(line)
            self._lines_bytes += len(line)
            if len(self._lines) > LINE_LIMIT_COUNT:
                raise GarbledReplyError(f"a reply of more than {LINE_LIMIT_COUNT} lines")
            if self._lines_bytes > REPLY_LIMIT_BYTES:
                raise GarbledReplyError(f"a reply of more than {REPLY_LIMIT_BYTES} bytes")
            first = self._lines[0]
            if len(self._lines) > 1 and line[:3] == first[:3] and line[3:4] in {b" ", b""}:
                lines, self._lines, self._lines_bytes = tuple(self._lines), [], 0
                return Reply(int(first[:3]), lines)
        return None

    def _take_line(self) -> bytes | None:
        end = self._received.find(b"\n", self._at)
        if (len(self._received) if end < 0 else end) - self._at > LINE_LIMIT_BYTES:
            raise GarbledReplyError(f"a reply with a line of more than {LINE_LIMIT_BYTES} bytes")
        if end < 0:
            return None
        line = self._received[self._at : end].rstrip(b"\r")
        self._at = end + 1
        return line
