"""Converts records of the library, including those that it refuses to read. Knows no client and no broker.

Whoever may write to a topic decides what is in its records, so what reading them takes is limited here: a batch of a
few kilobytes can unpack to gigabytes, and a header of two bytes costs sixty times as much in memory. What is beyond a
limit is left unread, and its record says why.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lz4.frame
import snappy
import zstandard
from kafka import codec
from kafka.errors import CorruptRecordError
from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

from etl.models.task import Record

# Bytes: most that the records of one packed batch take unpacked. Producers limit a batch before they pack it, to 1 MB
# unless they are told otherwise; as many partitions as a process has may each hold one unpacked batch.
UNPACKED_LIMIT_BYTES = 16 << 20
# Most headers that are read of a record: the 100 that a job may have, and a dozen that we add when we set it aside.
HEADERS_LIMIT = 128

_XERIAL_HEADER_BYTES = 16


class _Flawed(bytes):
    """The value of a record that was not read whole; `fault` says why."""

    fault: str

    @classmethod
    def of(cls, value: bytes, fault: str) -> _Flawed:
        """Return `value` with the reason."""
        flawed = cls(value)
        flawed.fault = fault
        return flawed


@dataclass(slots=True)
class _Record:
    """A record as the library wants it. Its own has a method for each of these, and reads them twenty times."""

    size_in_bytes: int
    offset: int
    timestamp: int  # milliseconds
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: None = None

    def validate_crc(self) -> bool:
        """Return True: the batch has a checksum, a record has none."""
        return True


class _Records(DefaultRecordBatch):  # type: ignore[misc]  # untyped library
    """A batch that is read within limits, and tolerates header names that are not UTF-8.

    The library unpacks whatever comes, and stops at the first such name for ever.
    """

    _buffer: Any
    _decompressed: bool
    _pos: int

    def __init__(self, buffer: Any) -> None:
        super().__init__(buffer)
        # What is the same for all its records: each look at it is two calls.
        self._is_control, self._time_type = self.is_control_batch, self.timestamp_type
        self._append_time = self.max_timestamp if self._time_type == self.LOG_APPEND_TIME else None
        self._first_offset, self._first_time = self.base_offset, self.first_timestamp

    def _maybe_uncompress(self) -> None:
        if self._decompressed or self.compression_type == self.CODEC_NONE:
            self._decompressed = True
            return
        self._assert_has_codec(self.compression_type)
        self._buffer = unpack(self.compression_type, bytes(memoryview(self._buffer)[self._pos :]))
        self._decompressed = True
        self._pos = 0

    def __iter__(self) -> Iterator[Any]:
        try:
            self._maybe_uncompress()
        except Unreadable as error:
            # Here it is decided what becomes of a batch that cannot be unpacked: all its records are given out without
            # their bytes, because to stop at them would hold the partition for ever.
            self._buffer = b""
            return self._placeholders(str(error))
        return self

    def _placeholders(self, fault: str) -> Iterator[Any]:
        value = _Flawed.of(b"", fault)
        for offset in range(self.base_offset, self.last_offset + 1):
            yield _Record(0, offset, self.max_timestamp, self._time_type, None, value, [])

    def _read_msg(self, decode_varint: Any = decode_varint) -> Any:
        if self._is_control:
            return super()._read_msg()
        buffer = self._buffer
        length, begin = decode_varint(buffer, self._pos)
        end = begin + length
        _, pos = decode_varint(buffer, begin)  # attributes: none are defined
        ts_delta, pos = decode_varint(buffer, pos)
        timestamp = self._first_time + ts_delta if self._append_time is None else self._append_time
        offset_delta, pos = decode_varint(buffer, pos)
        key, pos = _field(buffer, *decode_varint(buffer, pos))
        value, pos = _field(buffer, *decode_varint(buffer, pos))
        count, pos = decode_varint(buffer, pos)
        headers = []
        if count > HEADERS_LIMIT:
            value = _Flawed.of(value or b"", f"has {count} headers, more than {HEADERS_LIMIT}: they are left out")
            pos = end
        else:
            for _ in range(count):
                name, pos = _field(buffer, *decode_varint(buffer, pos))
                content, pos = _field(buffer, *decode_varint(buffer, pos))
                if name is None:
                    raise CorruptRecordError("a header has no name")
                headers.append((name.decode("utf-8", "replace"), content))
        if pos != end or count < 0 or end > len(buffer):
            raise CorruptRecordError(f"a record of {length} bytes holds {pos - begin} bytes and {count} headers")
        self._pos = pos
        return _Record(length, self._first_offset + offset_delta, timestamp, self._time_type, key, value, headers)


memory_records.DefaultRecordBatch = _Records


def _field(buffer: Any, size: int, pos: int) -> tuple[bytes | None, int]:
    """Return the bytes that begin at `pos`, None for a size below zero, and where they end."""
    return (bytes(buffer[pos : pos + size]), pos + size) if size >= 0 else (None, pos)


class _TooLarge(ValueError):
    """Raised when something claims to unpack to more than the limit."""


class Unreadable(ValueError):
    """Raised when a batch cannot be unpacked, or only to more than the limit; the message says which."""


def unpack(compression: int, packed: bytes, limit_bytes: int = UNPACKED_LIMIT_BYTES) -> bytes:
    """Return what was packed by one of Kafka's codecs, if it is at most `limit_bytes`. Raises Unreadable.

    Takes no more memory than a few times the limit, whatever the bytes claim.
    """
    unpackers = {
        _Records.CODEC_GZIP: _of_gzip,
        _Records.CODEC_SNAPPY: _of_snappy,
        _Records.CODEC_LZ4: _of_lz4,
        _Records.CODEC_ZSTD: _of_zstd,
    }
    try:
        unpacked = unpackers[compression](packed, limit_bytes)
        if len(unpacked) <= limit_bytes:
            return unpacked
    except _TooLarge:
        pass
    except Exception as error:  # the codecs raise errors of many kinds, none of which waiting can help
        raise Unreadable(f"was sent in a batch that cannot be unpacked ({type(error).__name__})") from error
    raise Unreadable(f"was sent in a batch that unpacks to more than {limit_bytes} bytes, and is not read")


def _of_gzip(packed: bytes, limit_bytes: int) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as reader:
        return reader.read(limit_bytes + 1)


def _of_zstd(packed: bytes, limit_bytes: int) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as reader:
        return reader.read(limit_bytes + 1)


def _of_lz4(packed: bytes, limit_bytes: int) -> bytes:
    decompressor = lz4.frame.LZ4FrameDecompressor()
    unpacked: bytes = decompressor.decompress(packed, max_length=limit_bytes + 1)
    if len(unpacked) <= limit_bytes and not decompressor.eof:
        raise EOFError("the frame is cut short")
    return unpacked


def _of_snappy(packed: bytes, limit_bytes: int) -> bytes:
    """Return what is in one block of Snappy, or in the blocks of the form that Java's library writes."""
    if not codec._detect_xerial_stream(packed):  # noqa: SLF001 - the library has no public way
        return _of_snappy_block(packed, limit_bytes)
    blocks, pos, left = [], _XERIAL_HEADER_BYTES, limit_bytes
    while pos < len(packed):
        size = int.from_bytes(packed[pos : pos + 4], "big")
        blocks.append(_of_snappy_block(packed[pos + 4 : pos + 4 + size], left))
        left -= len(blocks[-1])
        pos += 4 + size
    return b"".join(blocks)


def _of_snappy_block(packed: bytes, limit_bytes: int) -> bytes:
    # A block begins with the size that it claims to unpack to: the library takes that much memory unseen.
    size = 0
    for place, byte in enumerate(packed[:5]):
        size |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            break
    if size > limit_bytes:
        raise _TooLarge
    return bytes(snappy.decompress(packed))


def is_flawed(raw: Any) -> bool:
    """Return whether a record of the library was not read whole."""
    return isinstance(raw.value, _Flawed)


def as_record(raw: Any) -> Record:
    """Return a record of the library as a `Record`."""
    value, fault = raw.value, None
    if isinstance(value, _Flawed):
        fault = value.fault
        value = bytes(value) or None
    return Record(
        raw.topic,
        raw.partition,
        raw.offset,
        raw.key,
        value,
        tuple([(name, content or b"") for name, content in raw.headers]),
        raw.timestamp / 1000,
        fault,
    )
