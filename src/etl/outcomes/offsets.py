"""Which records of one partition are done, and what may be committed: an offset, and metadata about records beyond it.

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

from etl.models.wire import Commit, Partition

METADATA_LIMIT_BYTES = 4096  # the broker's default `offset.metadata.max.bytes`; exceeding it is fatal to a producer

_VERSION = "etl1:"
_CLEAN, _FIRST_PUBLISHED = 1, 2
_TOKEN_BYTES, _COUNTER_BYTES, _CHECKSUM_BYTES = 8, 6, 4
_HEAD_BYTES = 1 + _TOKEN_BYTES + _COUNTER_BYTES
_PAYLOAD_LIMIT_BYTES = (METADATA_LIMIT_BYTES - len(_VERSION)) * 4 // 5 - 3  # base 85 rounds up by at most 3 bytes
# Left for ranges and published offsets, if the counts of both take the most bytes they can: three each.
_ROOM_BYTES = _PAYLOAD_LIMIT_BYTES - _HEAD_BYTES - _CHECKSUM_BYTES - 2 * 3


class RecordState(Enum):
    """How far a record has come, according to the last commit."""

    NEW = "new"
    PUBLISHED = "published"  # the copy has its final name; the source action and the result remain
    DONE = "done"  # its outcome is committed: nothing remains


class OffsetRange(NamedTuple):
    """Offsets from `start` up to, but not including, `end`: every record among them is done.

    Not every offset needs to have a record.
    """

    start: int
    end: int


class CommitPlan(NamedTuple):
    """The offsets of the finished records that go into the next commit."""

    done: frozenset[int]
    published: frozenset[int]


class Standing(NamedTuple):
    """How far a partition is, for display. Times are wall clock, by the broker or the producer of the record."""

    partition: Partition
    committed: int  # everything before this offset is done and committed
    read: int  # the offset of the next record to be received
    unfinished: int  # received records without a committed outcome
    first: int | None  # the first of them
    first_at: float | None


class _View(NamedTuple):
    """A state of the partition that a commit can express."""

    base: int  # the offset to commit: everything before it is done
    ranges: list[OffsetRange]  # what is done beyond it; sorted, not touching each other
    published: list[int]  # sorted; may include the base

    def size_bytes(self) -> int:
        """Return the size of the encoded ranges and published offsets.

        Receiving records never makes it larger, nor does publishing or finishing the first unfinished record.
        """
        at, size = self.base, 0
        for span in self.ranges:
            size += _varint_size(span.start - at) + _varint_size(span.end - span.start)
            at = span.end
        at = self.base
        for offset in self.published:
            # The base takes a flag instead of bytes, so that the first unfinished record can always be published.
            if offset != self.base:
                size += _varint_size(offset - at)
                at = offset
        return size


def is_ours(commit: Commit) -> bool:
    """Was this commit written by a consumer, for this very offset?"""
    return _decode(commit.offset, commit.metadata) is not None


def accept(offset: int) -> Commit:
    """Return a commit that says: everything before `offset` is done, nothing beyond it, nobody is at work."""
    return _encode(_View(offset, [], []), 0, "accepted", clean=True)


class OffsetTracker:
    """One partition, from its committed offset on: which records were received, published and done.

    A commit states that everything before its offset is done; its metadata states which ranges beyond it are done, and
    which records are published. A range may cover offsets without records (transaction markers, compaction), so the
    metadata grows with the number of gaps, not with the distance. Ranges beyond the position, known from the last
    owner, are kept until their records are received.

    `start` and `metadata` are as read from the group. Metadata that is damaged, belongs to another offset, or was
    written by other software counts as none: work may then be repeated, but never skipped. Not thread-safe.
    """

    def __init__(self, start: int, metadata: str = "") -> None:
        known = _decode(start, metadata)
        # Whether the last owner ended cleanly. Where nothing was ever committed, there was no owner.
        self.was_clean = not metadata or (known is not None and known.clean)
        self._watermark = start
        self._position = start
        self._ranges: list[OffsetRange] = known.ranges if known else []
        self._published: set[int] = set(known.published) if known else set()
        self._outstanding: list[int] = []  # received and not done; sorted
        self._times: dict[int, float] = {}  # of these, in the same order
        self._worst_bytes = 0  # upper limit of the metadata's size: as if every second outstanding record were done

    def __repr__(self) -> str:
        return (
            f"OffsetTracker(watermark {self._watermark}, position {self._position}, {len(self._outstanding)} "
            f"outstanding, {len(self._ranges)} ranges, {len(self._published)} published)"
        )

    @property
    def position(self) -> int:
        """The offset of the next record to be received.

        It only rises. Offsets that it passes without a record have none.
        """
        return self._position

    @position.setter
    def position(self, offset: int) -> None:
        self._position = max(self._position, offset)

    @property
    def outstanding(self) -> int:
        """Number of received records that are not done."""
        return len(self._outstanding)

    @property
    def is_full(self) -> bool:
        """Whether finishing the outstanding records could need more metadata than fits: receive no more for now.

        Only a brake: outcomes that do not fit into a commit wait in any case.
        """
        return self._worst_bytes > _ROOM_BYTES

    @property
    def committable(self) -> int:
        """The offset to commit if nothing else were finished."""
        return self._view_after((), ()).base

    def has(self, offset: int) -> bool:
        """Return whether this record was received and is not done."""
        at = bisect_left(self._outstanding, offset)
        return at < len(self._outstanding) and self._outstanding[at] == offset

    def is_done(self, offset: int) -> bool:
        """Return whether a commit covers this record."""
        at = bisect_right(self._ranges, offset, key=lambda span: span.start)
        return offset < self._watermark or bool(at and offset < self._ranges[at - 1].end)

    def standing(self, partition: Partition, committed: int) -> Standing:
        """Return how far the partition is."""
        first, at = next(iter(self._times.items()), (None, None))
        return Standing(partition, committed, self._position, len(self._outstanding), first, at)

    def receive(self, offset: int, at: float = 0.0) -> RecordState:
        """Register a record that was read; return how far it has come. Offsets must rise, and may have gaps.

        `at`: the time of the record (wall clock), for display.

        Raises:
            ValueError: the offset is before the position: processing it would repeat the record.
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
        self._times[offset] = at
        return RecordState.PUBLISHED if offset in self._published else RecordState.NEW

    def plan(self, ready: Mapping[int, RecordState], at_most: int) -> CommitPlan:
        """Choose at most `at_most` finished records (DONE or PUBLISHED) whose commit fits into the metadata.

        Lowest offsets first. The first outstanding record always fits once it is ready, so no outcome waits forever.
        """
        offsets = [offset for offset in self._outstanding if offset in ready][:at_most] if ready else []

        def first(count: int) -> CommitPlan:
            chosen = offsets[:count]
            done = frozenset(o for o in chosen if ready[o] is RecordState.DONE)
            return CommitPlan(done, frozenset(chosen) - done)

        fitting, over = 0, len(offsets) + 1
        count = len(offsets)  # usually all of them fit; otherwise search by bisection
        while fitting < count < over:
            if self._view_after(*first(count)).size_bytes() <= _ROOM_BYTES:
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
        """Return the commit that adds these `done` and `published` records.

        `counter` and `token`, which is unique to a life of the process, make the metadata of every commit unique, so
        that it can be recognised when it is read back.
        """
        return _encode(self._view_after(done, published), counter, token, clean=clean)

    def mark_committed(self, done: Collection[int], published: Collection[int]) -> None:
        """Record that the commit of these records succeeded."""
        self._watermark, self._ranges, published_now = self._view_after(done, published)
        self._published = set(published_now)
        for offset in done:
            self._remove(offset)

    def _view_after(self, done: Collection[int], published: Collection[int]) -> _View:
        finished = done if isinstance(done, frozenset | set) else set(done)
        ranges, remaining = self._split(finished)
        ranges = self._merge([*self._ranges, *ranges], remaining)
        base = remaining[0] if remaining else max(self._watermark, self._position)
        at = bisect_right(ranges, base, key=lambda span: span.start)
        if at and base < ranges[at - 1].end:
            base = ranges[at - 1].end  # a range known from the last owner, not received again yet
        marks = {o for o in self._published.union(published) if o not in finished and o >= base}
        return _View(base, [span for span in ranges if span.end > base], sorted(marks))

    def _split(self, finished: Collection[int]) -> tuple[list[OffsetRange], list[int]]:
        """Split the outstanding records into ranges of finished ones, and the offsets of the rest."""
        ranges: list[OffsetRange] = []
        remaining: list[int] = []
        for is_finished, group in groupby(self._outstanding, finished.__contains__):
            offsets = list(group)
            if is_finished:
                ranges.append(OffsetRange(offsets[0], offsets[-1] + 1))
            else:
                remaining += offsets
        return ranges, remaining

    def _merge(self, ranges: list[OffsetRange], remaining: list[int]) -> list[OffsetRange]:
        """Merge ranges with no unfinished record between them; return them sorted."""
        merged: list[OffsetRange] = []
        for span in sorted(ranges):
            if merged and self._is_gap_empty(merged[-1].end, span.start, remaining):
                merged[-1] = OffsetRange(merged[-1].start, max(merged[-1].end, span.end))
            else:
                merged.append(span)
        return merged

    def _is_gap_empty(self, end: int, start: int, remaining: list[int]) -> bool:
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
        del self._outstanding[at], self._times[offset]
        if before is not None:
            self._worst_bytes -= _gap_size(before, offset)
        if after is not None:
            self._worst_bytes -= _gap_size(offset, after)
        if before is not None and after is not None:
            self._worst_bytes += _gap_size(before, after)


# --- the metadata string ------------------------------------------------------------------------------------


class _Decoded(NamedTuple):
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


def _decode(start: int, metadata: str) -> _Decoded | None:
    """Decode the metadata of a commit at offset `start`; return None if it is damaged, foreign or of another offset."""
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
    return _Decoded(ranges, published, bool(payload[0] & _CLEAN))


def _checksum(base: int, payload: bytes | bytearray) -> bytes:
    # Covers the offset, too: metadata does not apply to an offset that another program has set.
    return zlib.crc32(payload, zlib.crc32(str(base).encode())).to_bytes(_CHECKSUM_BYTES, "big")


def _varint(number: int) -> bytes:
    """Encode a non-negative number in groups of seven bits, lowest first, as Protocol Buffers do."""
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
    """Return the most bytes it takes to state that `offset` is not done, but everything up to `following` is."""
    return 1 + _varint_size(following - offset)
