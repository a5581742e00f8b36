"""A file on its way out of a store: one GET, whose answer tells the facts first; of a large one further pieces."""

from __future__ import annotations

import contextlib
import math
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import structlog

from etl.errors import EtlError, IOFailure, SourceChanged
from etl.models.task import Facts
from etl.transfer.s3.channel import LENGTH, EndedError, MalformedError
from etl.transfer.s3.ranges import CALM_BYTES, Ranges

if TYPE_CHECKING:
    from etl.transfer.s3.channel import Answer
    from etl.transfer.s3.link import Link

MTIME = "x-amz-meta-mtime"  # seconds since the epoch, as rclone has it

log = structlog.get_logger(__name__)

_FRESH_SECONDS = 2  # an object stored so shortly ago may be replaced within the same second
_DRAINED_BYTES = 64 * 1024  # rather than a new connection


def facts_of(answer: Answer) -> Facts:
    """Return what the head of an answer tells of an object: its own time stamp, else when it was stored."""
    length = answer.headers.get("content-length", "")
    if answer.status == 206:  # of the part alone
        length = answer.headers.get("content-range", "").rpartition("/")[2]
    return Facts(int(length) if LENGTH.fullmatch(length) else None, _mtime_of(answer), etag_of(answer))


def etag_of(answer: Answer) -> str:
    """Return the tag of an object's version, empty where none is told."""
    return answer.headers.get("etag", "")


def _version_of(answer: Answer) -> tuple[str, str] | None:
    """Return a header that tells an object's version from others, and its value; None: there is none to rely on.

    Gateways have no tag for what was laid into their folder: then it is the time, by the store's own clock.
    """
    if tag := etag_of(answer):
        return "etag", tag
    with contextlib.suppress(KeyError, ValueError, TypeError):
        date, stored = (parsedate_to_datetime(answer.headers[name]) for name in ("date", "last-modified"))
        if (date - stored).total_seconds() > _FRESH_SECONDS:
            return "last-modified", answer.headers["last-modified"]
    return None


def _mtime_of(answer: Answer) -> float | None:
    with contextlib.suppress(KeyError, ValueError):
        if math.isfinite(mtime := float(answer.headers[MTIME])):
            return mtime
    with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
        return parsedate_to_datetime(answer.headers["last-modified"]).timestamp()
    return None


def open_object(link: Link, path: str, *, reads_ahead: bool) -> S3Parcel:
    """Open an object. `reads_ahead`: more may come than is taken. Raises FileMissing, PermissionRefused ..."""
    key = link.key(path)
    answer = link.begin("GET", key)
    if answer.status >= 300:
        raise link.refused(key, answer)
    return S3Parcel(link, path, answer, reads_ahead=reads_ahead)


def open_rest(link: Link, path: str, offset: int, version: str, *, reads_ahead: bool) -> S3Parcel | None:
    """Open one version of an object from the middle on; None: the store sends no ranges. Raises SourceChanged ..."""
    key = link.key(path)
    answer = link.begin("GET", key, headers={"range": f"bytes={offset}-"} | ({"if-match": version} if version else {}))
    if answer.status == 412 or (version and answer.status == 206 and etag_of(answer) != version):
        answer.body.drop()
        raise SourceChanged(f"{link.name}:{key} changed while it was opened", server=link.name)
    if answer.status in {200, 416, 501}:
        answer.body.drop()
        link.store.sends_ranges = answer.status == 416
        return None
    link.require_success(key, answer)
    if not answer.headers.get("content-range", "").startswith(f"bytes {offset}-"):
        answer.body.drop()
        raise IOFailure(f"{link.name}:{key}: the store sent another part than asked for", server=link.name)
    return S3Parcel(link, path, answer, offset, reads_ahead=reads_ahead)


class S3Parcel:
    """An object that is read, from `offset` on. Its bytes are those of one version, `etag`."""

    def __init__(self, link: Link, path: str, answer: Answer, offset: int = 0, *, reads_ahead: bool) -> None:
        self.path = path
        self.facts = facts_of(answer)
        self.etag = etag_of(answer)
        self._version = _version_of(answer)
        self.held: memoryview | None = None
        self._link = link
        self._body = answer.body
        self._place = offset  # of the next byte
        self._ranges: Ranges | None = None
        self._may_widen = reads_ahead
        self._wide_from = offset + CALM_BYTES if offset else 0
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
            count = self._read(buffer)
            self._place += count
            return count
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _read(self, buffer: memoryview) -> int:
        """Read on: by the first connection; where it pays, by others once they are known to send the right bytes."""
        if self._may_widen and self._place >= self._wide_from:
            self._may_widen = False
            key, size_bytes = self._link.key(self.path), self.facts.size_bytes or 0
            self._ranges = Ranges.of(self._link, key, self._version, self._place, size_bytes)
        ranges = self._ranges
        if ranges is None:
            return self._receive(buffer)
        if self._place < ranges.start:
            try:
                ranges.widen()
            except EtlError as error:
                log.info("object read by fewer connections", server=self._link.name, error=str(error))
            step = ranges.step_bytes  # a large buffer, too, leaves time for all to connect
            return self._receive(buffer[: min(ranges.start - self._place, step)])
        if self._place == ranges.start:
            if not ranges.are_right():
                ranges.close()
                self._ranges = None
                return self._receive(buffer)
            self._body.drop()
        return ranges.readinto(buffer)

    def _receive(self, buffer: memoryview) -> int:
        """Fill the buffer, unless the object ends before."""
        filled = 0
        with self._link.translated():
            while filled < len(buffer) and (count := self._body.readinto(buffer[filled:])):
                filled += count
        return filled

    def close(self, *, complete: bool) -> None:
        """End the reading; what is still to come is dropped, with the connection if it is much."""
        if self._ranges is not None:
            self._ranges.close()
        left = self._body.left_bytes
        if complete and not self._body.has_ended and left is not None and left <= _DRAINED_BYTES:
            try:
                self._body.read_all(_DRAINED_BYTES)
            except (EndedError, MalformedError, OSError):
                self._body.drop()
        self._body.drop()
