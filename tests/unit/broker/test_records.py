"""Batches of records as they come from the broker: read within limits, whatever is in them."""

from __future__ import annotations

import contextlib
import tracemalloc
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from etl.broker import records
from etl.models.task import Record

pytestmark = pytest.mark.unit

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
PACKED = [name for name in CODECS if name != "none"]
Sent = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]
MIB = 1 << 20

fields = st.none() | st.binary(max_size=50)
sent_records = st.tuples(fields, fields, st.lists(st.tuples(st.text(max_size=8), fields), max_size=5))


def packed(sent: list[Sent], codec: str = "none") -> bytes:
    """Return the bytes of a batch as a producer sends it."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=CODECS[codec],
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 30,
    )
    for offset, (key, value, headers) in enumerate(sent):
        assert builder.append(offset, 1000 + offset, key, value, headers) is not None
    return bytes(builder.build())


def read(batch: bytes) -> list[Record]:
    """Read a batch as the library does for us."""
    found = []
    for raw in MemoryRecords(batch).next_batch():
        told = {name: getattr(raw, name) for name in ("offset", "key", "value", "headers", "timestamp")}
        found.append(records.as_record(SimpleNamespace(topic="t", partition=0, **told)))
    return found


@pytest.mark.parametrize("codec", CODECS)
@given(sent=st.lists(sent_records, min_size=1, max_size=5))
def test_records_are_read_as_they_were_sent(codec: str, sent: list[Sent]) -> None:
    """Packed by any codec."""
    assert read(packed(sent, codec)) == [
        Record("t", 0, offset, key, value, tuple((n, v or b"") for n, v in headers), (1000 + offset) / 1000)
        for offset, (key, value, headers) in enumerate(sent)
    ]


@pytest.mark.parametrize("codec", PACKED)
def test_a_batch_that_unpacks_to_too_much_is_given_out_without_its_bytes(codec: str) -> None:
    """Each of its records, with the reason; in memory of the limit's size, not of the batch's."""
    batch = packed([(b"k", bytes(40 * MIB), []), (None, b"small", [])], codec)
    tracemalloc.start()
    try:
        found = read(batch)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [(record.offset, record.key, record.value) for record in found] == [(0, None, None), (1, None, None)]
    assert all(f"more than {16 * MIB} bytes" in str(record.fault) for record in found)
    assert peak_bytes < 3 * records.UNPACKED_LIMIT_BYTES + 2 * len(batch)


@pytest.mark.parametrize("codec", PACKED)
def test_a_batch_up_to_the_limit_is_read(codec: str) -> None:
    """To the byte."""
    size = len(records.unpack(CODECS[codec], packed([(None, bytes(MIB), [])], codec)[61:]))
    assert size > MIB
    body = packed([(None, bytes(MIB), [])], codec)[61:]
    assert len(records.unpack(CODECS[codec], body, size)) == size
    with pytest.raises(records.Unreadable, match="more than"):
        records.unpack(CODECS[codec], body, size - 1)


@pytest.mark.parametrize("codec", PACKED)
@given(garbage=st.binary(max_size=300))
def test_nothing_but_unreadable_comes_of_packed_garbage(codec: str, garbage: bytes) -> None:
    """Whatever the codec's library raises: a batch that it refuses would hold its partition for ever."""
    with contextlib.suppress(records.Unreadable):
        assert len(records.unpack(CODECS[codec], garbage, 1000)) <= 1000


@pytest.mark.parametrize("codec", PACKED)
@given(data=st.data())
def test_nothing_but_unreadable_comes_of_a_damaged_batch(codec: str, data: st.DataObject) -> None:
    """Nor does it take longer than reading it: no block may lead back to where it began."""
    body = bytearray(packed([(b"key", b"value" * 100, [("name", b"content")])], codec)[61:])
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(records.Unreadable):
        records.unpack(CODECS[codec], bytes(body), 10_000)


def test_a_snappy_block_is_believed_to_claim_only_what_fits() -> None:
    """A dozen bytes may claim gigabytes."""
    claim = b"\xff\xff\xff\xff\x0f" + b"\x00a"
    xerial = b"\x82SNAPPY\0" + (1).to_bytes(4, "big") * 2 + len(claim).to_bytes(4, "big") + claim
    for body in (claim, xerial):
        with pytest.raises(records.Unreadable, match="more than"):
            records.unpack(CODECS["snappy"], body)


def test_a_record_with_too_many_headers_keeps_its_value_alone() -> None:
    """They would cost sixty times their size in memory; the next record is read as ever."""
    many = [("", None)] * 150_000
    tracemalloc.start()
    try:
        flawed, well = read(packed([(b"k", b"v", many), (b"k", b"w", [("n", b"1")] * records.HEADERS_LIMIT)]))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (flawed.key, flawed.value, flawed.headers) == (b"k", b"v", ())
    assert "150000 headers" in str(flawed.fault)
    assert (well.value, len(well.headers), well.fault) == (b"w", records.HEADERS_LIMIT, None)
    assert peak_bytes < 16 * MIB


@given(body=st.binary(max_size=120), count=st.integers(1, 3))
def test_garbage_in_place_of_records_is_an_error_of_the_library(body: bytes, count: int) -> None:
    """The broker lets no such batch in; the polling thread knows this error."""
    head = bytearray(packed([(None, None, [])])[:61])
    head[57:61] = count.to_bytes(4, "big")
    batch = memoryview(bytes(head) + body)
    with contextlib.suppress(CorruptRecordError):
        for record in records._Records(batch):
            assert isinstance(record.offset, int)
