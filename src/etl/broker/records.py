"""Converts records of the library, including those that it refuses to read. Knows no client and no broker."""

from __future__ import annotations

from typing import Any

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch

from etl.models.task import Record


class _Lenient(bytes):
    """Bytes whose slices decode to text whatever they hold."""

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        return _Lenient(part) if isinstance(part, bytes) else part

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:  # noqa: ARG002 - never strict
        return super().decode(encoding, "replace")


class _Records(DefaultRecordBatch):  # type: ignore[misc]  # untyped library
    """A batch that tolerates header names that are not UTF-8: the library would stop at the first one for ever."""

    _buffer: Any

    def _read_msg(self, *args: Any) -> Any:
        try:
            return super()._read_msg(*args)
        except UnicodeDecodeError:
            strict, self._buffer = self._buffer, _Lenient(self._buffer)
            try:
                return super()._read_msg(*args)
            finally:
                self._buffer = strict


memory_records.DefaultRecordBatch = _Records


def as_record(raw: Any) -> Record:
    """Return a record of the library as a `Record`."""
    return Record(
        raw.topic,
        raw.partition,
        raw.offset,
        raw.key,
        raw.value,
        tuple([(name, value or b"") for name, value in raw.headers]),
        raw.timestamp / 1000,
    )
