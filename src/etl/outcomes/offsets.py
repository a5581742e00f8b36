"""What of one partition is done, and what may be committed: an offset, and metadata for what is beyond it.

Pure logic: knows no Kafka client, no thread, no clock.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping
from enum import Enum
from itertools import groupby
from typing import NamedTuple

from etl.models.wire import Commit

METADATA_LIMIT_BYTES = 4096  # the broker's default `offset.metadata.max.bytes`; one more is fatal to a producer

_VERSION = "etl1:"
_CLEAN, _FIRST_PUBLISHED = 1, 2
_TOKEN_BYTES, _COUNTER_BYTES, _CHECKSUM_BYTES = 8, 6, 4
_HEAD_BYTES = 1 + _TOKEN_BYTES + _COUNTER_BYTES
_PAYLOAD_LIMIT_BYTES = (METADATA_LIMIT_BYTES - len(_VERSION)) * 4 // 5 - 3  # base 85; 3: its rounding
# What the ranges and the published offsets may take, with their two counts at their longest.
_ROOM_BYTES = _PAYLOAD_LIMIT_BYTES - _HEAD_BYTES - _CHECKSUM_BYTES - 2 * 3


class RecordState(Enum):
    """How far a record is, as committed."""

    NEW = "new"
    PUBLISHED = "published"  # the copy is under its final name; the source action and the result are left
    DONE = "done"  # its outcome is committed: nothing is left


class OffsetRange(NamedTuple):
    """Offsets from `start` to before `end`: every record among them is done. Some may never have existed."""

    start: int
    end: int


class CommitPlan(NamedTuple):
    """Which of the finished records go into the next commit."""

    done: frozenset[int]
    published: frozenset[int]


class _View(NamedTuple):
    """A state of the partition as a commit can say it."""

    base: int  # the offset to commit: everything before it is done
    ranges: list[OffsetRange]  # what is done beyond it, in order, none touching another
    published: list[int]  # in order, the base may be one of them

    def size_bytes(self) -> int:
        """Return the bytes of its code.

        It never grows by receiving records, nor by publishing or finishing the first unfinished one.
        """
        at, size = self.base, 0
        for span in self.ranges:
            size += _varint_size(span.start - at) + _varint_size(span.end - span.start)
            at = span.end
        at = self.base
        for offset in self.published:
            if offset != self.base:  # a flag: so the first unfinished record can always be published
                size += _varint_size(offset - at)
                at = offset
        return size


class OffsetTracker:
    """One partition, from its committed offset on: what was received, what is done, what is published.

    A commit says: everything before its offset is done; and, in the metadata, which ranges beyond are done and
    which records are published. A range may cover offsets that never existed (transaction markers, compaction),
    so the code grows with the number of gaps, not with the distance. Runs beyond the position, known from the
    last owner, are carried along until their records come.

    `start` and `metadata` are as read back from the group; metadata that is not ours, damaged, or of another
    offset counts as none: then work may be repeated, none is skipped. Not thread-safe.
    """

    def __init__(self, start: int, metadata: str = "") -> None:
        known = _decode(start, metadata)
        # Did the last owner end in good order? Where nothing was ever committed, nobody has worked yet.
        self.was_clean = not metadata or (known is not None and known.clean)
        self._watermark = start
        self._position = start
        self._ranges: list[OffsetRange] = known.ranges if known else []
        self._published: set[int] = set(known.published) if known else set()
        self._outstanding: list[int] = []  # received and not done, rising
        self._worst_bytes = 0  # the code's size if every second outstanding record were done

    @property
    def position(self) -> int:
        """The offset of the next record to come.

        It only rises; offsets that it passes without a record never existed.
        """
        return self._position

    @position.setter
    def position(self, offset: int) -> None:
        self._position = max(self._position, offset)

    @property
    def outstanding(self) -> int:
        """How many received records are not done."""
        return len(self._outstanding)

    @property
    def full(self) -> bool:
        """Could finishing what is outstanding need more metadata than there is? Then receive no more for now.

        Only a brake: what does not fit waits in any case.
        """
        return self._worst_bytes > _ROOM_BYTES

    @property
    def committable(self) -> int:
        """The offset to commit if nothing more were finished."""
        return self._after((), ()).base

    def knows(self, offset: int) -> bool:
        """Is this a received record that is not done?"""
        at = bisect_left(self._outstanding, offset)
        return at < len(self._outstanding) and self._outstanding[at] == offset

    def is_done(self, offset: int) -> bool:
        """Does a commit say that this record is done?"""
        at = bisect_right(self._ranges, offset, key=lambda span: span.start)
        return offset < self._watermark or bool(at and offset < self._ranges[at - 1].end)

    def receive(self, offset: int) -> RecordState:
        """Take a record that was read: tell how far it is. Records come in rising order, with gaps.

        Raises:
            ValueError: the offset is before the position: treating it as new would do it twice.
        """
        if offset < self._position:
            raise ValueError(f"record {offset} comes after position {self._position}")
        self._position = offset + 1
        if self.is_done(offset):
            self._published.discard(offset)
            return RecordState.DONE
        if self._outstanding:
            self._worst_bytes += _gap_size(self._outstanding[-1], offset)
        self._outstanding.append(offset)
        return RecordState.PUBLISHED if offset in self._published else RecordState.NEW

    def plan(self, ready: Mapping[int, RecordState], at_most: int) -> CommitPlan:
        """Choose which of the finished records (DONE or PUBLISHED) a commit can say; the others wait.

        Lowest offsets first. The first unfinished record, when ready, is always among them: so waiting ends.
        """
        offsets = [offset for offset in self._outstanding if offset in ready][:at_most] if ready else []

        def first(count: int) -> CommitPlan:
            chosen = offsets[:count]
            done = frozenset(o for o in chosen if ready[o] is RecordState.DONE)
            return CommitPlan(done, frozenset(chosen) - done)

        fitting, over = 0, len(offsets) + 1
        count = len(offsets)  # mostly all fit
        while fitting < count < over:
            if self._after(*first(count)).size_bytes() <= _ROOM_BYTES:
                fitting = count
            else:
                over = count
            count = (fitting + over) // 2
        return first(fitting)

    def snapshot(
        self,
        done: Collection[int],
        published: Collection[int],
        counter: int,
        token: str,
        *,
        clean: bool = False,
    ) -> Commit:
        """Return what a commit says once these records are done, those published.

        `counter` and `token` (of the process's life) make every commit's metadata differ from all others', so
        that it can be recognised when it is read back.
        """
        return _encode(self._after(done, published), counter, token, clean=clean)

    def mark_committed(self, done: Collection[int], published: Collection[int]) -> None:
        """Take note that a commit which said so is in."""
        self._watermark, self._ranges, published_now = self._after(done, published)
        self._published = set(published_now)
        for offset in done:
            self._remove(offset)

    def _after(self, done: Collection[int], published: Collection[int]) -> _View:
        finished = done if isinstance(done, frozenset | set) else set(done)
        ranges, remaining = self._divided(finished)
        ranges = self._joined([*self._ranges, *ranges], remaining)
        base = remaining[0] if remaining else max(self._watermark, self._position)
        at = bisect_right(ranges, base, key=lambda span: span.start)
        if at and base < ranges[at - 1].end:
            base = ranges[at - 1].end  # carried from the last owner, not read again yet
        marks = {o for o in self._published.union(published) if o not in finished and o >= base}
        return _View(base, [span for span in ranges if span.end > base], sorted(marks))

    def _divided(self, finished: Collection[int]) -> tuple[list[OffsetRange], list[int]]:
        """Divide what is outstanding into ranges of what is finished, and the rest."""
        ranges: list[OffsetRange] = []
        remaining: list[int] = []
        for is_finished, group in groupby(self._outstanding, finished.__contains__):
            offsets = list(group)
            if is_finished:
                ranges.append(OffsetRange(offsets[0], offsets[-1] + 1))
            else:
                remaining += offsets
        return ranges, remaining

    def _joined(self, ranges: list[OffsetRange], remaining: list[int]) -> list[OffsetRange]:
        """Join ranges between which nothing unfinished was received; in order."""
        joined: list[OffsetRange] = []
        for span in sorted(ranges):
            if joined and self._nothing_between(joined[-1].end, span.start, remaining):
                joined[-1] = OffsetRange(joined[-1].start, max(joined[-1].end, span.end))
            else:
                joined.append(span)
        return joined

    def _nothing_between(self, end: int, start: int, remaining: list[int]) -> bool:
        if start <= end:
            return True
        at = bisect_left(remaining, end)
        return start <= self._position and (at == len(remaining) or remaining[at] >= start)

    def _remove(self, offset: int) -> None:
        at = bisect_left(self._outstanding, offset)
        if at == len(self._outstanding) or self._outstanding[at] != offset:
            return
        before = self._outstanding[at - 1] if at else None
        after = self._outstanding[at + 1] if at + 1 < len(self._outstanding) else None
        del self._outstanding[at]
        if before is not None:
            self._worst_bytes -= _gap_size(before, offset)
        if after is not None:
            self._worst_bytes -= _gap_size(offset, after)
        if before is not None and after is not None:
            self._worst_bytes += _gap_size(before, after)


# --- the metadata string ------------------------------------------------------------------------------------


class _Known(NamedTuple):
    ranges: list[OffsetRange]
    published: list[int]
    clean: bool


def _encode(view: _View, counter: int, token: str, *, clean: bool) -> Commit:
    first_published = bool(view.published) and view.published[0] == view.base
    payload = bytearray([_CLEAN * clean | _FIRST_PUBLISHED * first_published])
    payload += hashlib.blake2b(token.encode(), digest_size=_TOKEN_BYTES).digest()
    payload += counter.to_bytes(_COUNTER_BYTES, "big")
    at = view.base
    payload += _varint(len(view.ranges))
    for span in view.ranges:
        payload += _varint(span.start - at) + _varint(span.end - span.start)
        at = span.end
    at = view.base
    beyond = view.published[first_published:]
    payload += _varint(len(beyond))
    for offset in beyond:
        payload += _varint(offset - at)
        at = offset
    payload += _checksum(view.base, payload)
    return Commit(view.base, _VERSION + base64.b85encode(bytes(payload)).decode("ascii"))


def _decode(start: int, metadata: str) -> _Known | None:
    """Return what the metadata of a commit of `start` says; None when it is none of ours."""
    if not metadata.startswith(_VERSION):
        return None
    try:
        raw = base64.b85decode(metadata[len(_VERSION) :].encode("ascii"))
    except ValueError:
        return None
    payload, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if len(payload) <= _HEAD_BYTES or checksum != _checksum(start, payload):
        return None
    numbers = iter(_varints(payload[_HEAD_BYTES:]))
    published = [start] if payload[0] & _FIRST_PUBLISHED else []
    ranges: list[OffsetRange] = []
    try:
        at = start
        for _ in range(next(numbers)):
            first = at + next(numbers)
            at = first + next(numbers)
            ranges.append(OffsetRange(first, at))
        at = start
        for _ in range(next(numbers)):
            at += next(numbers)
            published.append(at)
    except StopIteration:
        return None
    return _Known(ranges, published, bool(payload[0] & _CLEAN))


def _checksum(base: int, payload: bytes | bytearray) -> bytes:
    # The offset is part of it: metadata says nothing of an offset that somebody else set.
    return zlib.crc32(payload, zlib.crc32(str(base).encode())).to_bytes(_CHECKSUM_BYTES, "big")


def _varint(number: int) -> bytes:
    """Return a non-negative number in groups of seven bits, lowest first, as in Protocol Buffers."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _varint_size(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)


def _varints(data: bytes) -> list[int]:
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return numbers


def _gap_size(offset: int, following: int) -> int:
    """Return what it takes at most to say: this record is not done, all until the following one is."""
    return 1 + _varint_size(following - offset)
