"""A file on its way out of a store: one GET, whose answer tells the facts before the first byte."""

from __future__ import annotations

import contextlib
import math
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from etl.models.task import Facts
from etl.transfer.s3.channel import LENGTH, EndedError, MalformedError

if TYPE_CHECKING:
    from etl.transfer.s3.channel import Answer
    from etl.transfer.s3.link import Link

MTIME = "x-amz-meta-mtime"  # seconds since the epoch, as rclone has it

_DRAINED_BYTES = 64 * 1024  # rather than a new connection


def facts_of(answer: Answer) -> Facts:
    """Return what the head of an answer tells of an object: its own time stamp, else when it was stored."""
    length = answer.headers.get("content-length", "")
    return Facts(int(length) if LENGTH.fullmatch(length) else None, _mtime_of(answer))


def etag_of(answer: Answer) -> str:
    """Return the tag of an object's version, empty where none is told."""
    return answer.headers.get("etag", "")


def _mtime_of(answer: Answer) -> float | None:
    with contextlib.suppress(KeyError, ValueError):
        if math.isfinite(mtime := float(answer.headers[MTIME])):
            return mtime
    with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
        return parsedate_to_datetime(answer.headers["last-modified"]).timestamp()
    return None


def open_object(link: Link, path: str) -> S3Parcel:
    """Open an object. Raises FileMissing, PermissionRefused ..."""
    key = link.key(path)
    answer = link.begin("GET", key)
    if answer.status >= 300:
        raise link.refused(key, answer)
    return S3Parcel(link, path, answer)


class S3Parcel:
    """An object that is read. Its bytes are those of one version, `etag`."""

    def __init__(self, link: Link, path: str, answer: Answer) -> None:
        self.path = path
        self.facts = facts_of(answer)
        self.etag = etag_of(answer)
        self.held: memoryview | None = None
        self._link = link
        self._body = answer.body
        self._left = memoryview(b"")  # of `held`

    def load(self, limit_bytes: int) -> bool:
        """Take the whole object into memory if it is small enough."""
        size_bytes = self.facts.size_bytes
        if self.held is not None or size_bytes is None or size_bytes > limit_bytes:
            return self.held is not None
        room = memoryview(bytearray(size_bytes))
        self.held = self._left = room[: self._receive(room)]
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer, unless the object ends before."""
        if self.held is None:
            return self._receive(buffer)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _receive(self, buffer: memoryview) -> int:
        """Fill the buffer, unless the object ends before."""
        filled = 0
        with self._link.translated():
            while filled < len(buffer) and (count := self._body.readinto(buffer[filled:])):
                filled += count
        return filled

    def close(self, *, complete: bool) -> None:
        """End the reading; what is still to come is dropped, with the connection if it is much."""
        left = self._body.left_bytes
        if complete and not self._body.has_ended and left is not None and left <= _DRAINED_BYTES:
            try:
                self._body.read_all(_DRAINED_BYTES)
            except (EndedError, MalformedError, OSError):
                self._body.drop()
        self._body.drop()
