"""Messages that are jobs only once somebody unpacks them: the reason names what they look like."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import pickle
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import InvalidMessage
from etl.models import FileTransferJob, wrapping

pytestmark = pytest.mark.unit

JOB = {
    "job_id": "j-1",
    "source": {"hostname": "A", "path": "/in/a.bin"},
    "destination": {"hostname": "B", "path": "/out/a.bin"},
}
FLAT = {"task_id": "t-1", "src_id": "A", "src_path": "/in/a", "dst_id": "B", "dst_path": "/out/a"}
TEXT = json.dumps(JOB)
PLAIN = TEXT.encode()


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def avro(*texts: str) -> bytes:
    return b"".join(varint(2 * len(text)) + text.encode() for text in texts)


def protobuf(*fields: tuple[int, bytes]) -> bytes:
    return b"".join(bytes([number << 3 | 2]) + varint(len(value)) + value for number, value in fields)


def msgpack(text: str) -> bytes:
    return bytes([0xA0 | len(text)]) + text.encode()


ENDS = [(1, b"A"), (2, b"/in/a.bin")]
PROTOBUF = protobuf((1, b"j-1"), (2, protobuf(*ENDS)), (3, protobuf(*ENDS)))
AVRO = avro("j-1", "A", "/in/a.bin", "B", "/out/a.bin")
BSON = struct.pack("<I", 21) + b"\x02job_id\x00\x04\x00\x00\x00j-1\x00\x00"


@pytest.mark.parametrize(
    ("raw", "looks"),
    [
        (b"\0\0\0\0\x07" + PLAIN, "JSON behind the prefix of a schema registry (byte 0, schema 7)"),
        (b"\0" + struct.pack(">I", 123_456) + b" " + PLAIN, "schema 123456"),
        (b"\0\0\0\0\x07" + AVRO, "Avro or Protobuf behind the prefix of a schema registry"),
        (b"\0\0\0\0\x07\0" + PROTOBUF, "Avro or Protobuf behind the prefix of a schema registry"),
        (AVRO, "Avro"),
        (b"Obj\x01\x04\x14avro.codec", "an Avro file"),
        (b"\xc3\x01" + bytes(range(8)) + AVRO, "Avro"),
        (PROTOBUF, "Protobuf"),
        (b"\x83" + msgpack("job_id") + msgpack("j-1") + b"\xa6source\xc0", "MessagePack"),
        (b"\xde\x00\x10" + msgpack("job_id") + b"\xc0", "MessagePack"),
        (b"\xa1\x66job_id\x63j-1", "CBOR"),
        (BSON, "BSON"),
        (pickle.dumps(JOB), "a Python pickle"),
        (b"\xac\xed\x00\x05sr", "a serialised Java object"),
        (gzip.compress(PLAIN, mtime=0)[:-9], "gzip"),
        (zlib.compress(PLAIN), "zlib"),
        (bz2.compress(PLAIN), "bzip2"),
        (lzma.compress(PLAIN), "xz"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd"),
        (b"\x04\x22\x4d\x18\x64", "lz4"),
        (b"\x82SNAPPY\x00\x00", "snappy"),
        (b"PK\x03\x04\x14\x00", "a ZIP archive"),
        (TEXT.encode("utf-16"), "UTF-16"),
        (TEXT.encode("utf-16-le"), "UTF-16"),
        (TEXT.encode("utf-16-be"), "UTF-16"),
        (TEXT.encode("utf-32"), "UTF-32"),
        (TEXT.encode("utf-32-be"), "UTF-32"),
        (TEXT.replace("/in/a", "/in/ä").encode("latin-1"), "not UTF-8"),
        (json.dumps(JOB | {"job_id": "한글"}, ensure_ascii=False).encode("euc-kr"), "another encoding than UTF-8"),
        (json.dumps(TEXT).encode(), "JSON in a string"),
        (json.dumps(json.dumps(TEXT)).encode(), "JSON in a string"),
        (base64.b64encode(PLAIN), "JSON in base64"),
        (base64.urlsafe_b64encode(PLAIN), "JSON in base64"),
        (json.dumps(base64.b64encode(PLAIN).decode()).encode(), "JSON in base64"),
        (base64.b64encode(gzip.compress(PLAIN, mtime=0)), "base64; what is in it looks like gzip"),
        (b"eyJhbGciOiJIUzI1NiJ9.eyJqb2IiOiIxIn0.c2ln", "JWT"),
        (b"-----BEGIN PGP MESSAGE-----\n", "PGP"),
        (json.dumps([JOB, JOB]).encode(), "several jobs in a list"),
        (PLAIN + b"\n" + PLAIN, "several jobs"),
        (PLAIN + PLAIN, "several jobs"),
        (str(JOB).encode(), "a Python dictionary"),
        (b'{job_id: "j-1", source: {}}', "JavaScript"),
        (b"<job><id>j-1</id></job>", "XML"),
        (b"job_id: j-1\nsource:\n  hostname: A\n", "YAML"),
        (b"---\njob_id: j-1\n", "YAML"),
        (b"src_id=A&src_path=%2Fin&dst_id=B&dst_path=%2Fout", "an HTML form"),
        (b"A,/in/a.bin,B,/out/a.bin", "CSV"),
        (struct.pack(">I", len(PLAIN)) + PLAIN, "behind its length"),
        (b"job: " + PLAIN, "5 bytes before it"),
    ],
)
def test_the_reason_says_what_it_looks_like(raw: bytes, looks: str) -> None:
    """Packed or encoded: each by its own name."""
    with pytest.raises(InvalidMessage) as caught:
        FileTransferJob.from_json(raw)
    assert looks in str(caught.value)


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        ({"schema": {"type": "struct"}, "payload": JOB}, "schema and payload"),
        ({"schema": None, "payload": TEXT}, "schema and payload"),
        ({"specversion": "1.0", "id": "1", "type": "job", "source": "/x", "data": JOB}, "CloudEvents"),
        ({"specversion": "1.0", "id": "1", "type": "job", "source": "/x", "data_base64": "e30="}, "CloudEvents"),
        ({"before": None, "after": JOB, "op": "c", "source": {}}, "Debezium"),
        ({"Type": "Notification", "MessageId": "1", "Message": TEXT}, "SNS"),
        ({"records": [{"value": JOB}]}, "each is a message of its own"),
        ({"Records": []}, "each is a message of its own"),
        ({"value": JOB}, "send what is in value"),
        ({"headers": {}, "body": FLAT}, "send what is in body"),
        ({"message": TEXT, "level": "info"}, "send what is in message, which is JSON in a string"),
        ({"jobId": "j", "Source": {}, "Destination": {}}, "spelt another way"),
        ({"srcId": "A", "srcPath": "/a", "dstId": "B", "dstPath": "/b"}, "spelt another way"),
    ],
)
def test_an_envelope_is_named(data: dict[str, object], looks: str) -> None:
    """And which of its fields holds the job."""
    for read in (lambda: FileTransferJob.from_json(json.dumps(data)), lambda: FileTransferJob.from_dict(data)):
        _raises(read, looks)


def _raises(read: Callable[[], object], looks: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        read()
    assert looks in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"null",
        b"1",
        b'"text"',
        b"[]",
        b"{}",
        b'{"source": 1}',
        PLAIN[:-1],
        b"hello",
        b"\xff\xff\xff\xff",
    ],
)
def test_what_looks_like_nothing_is_not_guessed_at(raw: bytes) -> None:
    """A cut or wrong job gets its own reason, and no other."""
    with pytest.raises(InvalidMessage) as caught:
        FileTransferJob.from_json(raw)
    assert "looks like" not in str(caught.value)


@pytest.mark.parametrize(
    "piece", [b'"', b"}", b"} ", b"{", b"[", b" ", b"\0", b"\x02", b"A", b"a=", b"a=&", b"{a", b"\xff", b"\x0a\x00"]
)
def test_a_long_message_is_looked_at_within_limits(piece: bytes) -> None:
    """The thread that polls reads it: of four megabytes of anything only the beginning is looked at."""
    looked_at: list[int] = []

    class Message(bytes):
        def __getitem__(self, part: Any) -> Any:
            found = super().__getitem__(part)
            looked_at.append(len(found) if isinstance(found, bytes) else 1)
            return found

    wrapping.of_bytes(Message((piece * (4 << 20))[: 4 << 20]))
    assert sum(looked_at) <= wrapping.LOOKED_AT_BYTES


@given(st.one_of(st.binary(), st.binary().map(lambda tail: b"\0" + tail), st.text().map(str.encode)))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Never another error than InvalidMessage; its text can be written anywhere."""
    try:
        FileTransferJob.from_json(raw)
    except InvalidMessage as error:
        str(error).encode()


@given(
    st.dictionaries(
        st.text(), st.one_of(st.none(), st.text(), st.dictionaries(st.text(), st.text()), st.lists(st.text()))
    )
)
def test_any_object_is_read_or_refused(data: dict[str, object]) -> None:
    """The same for objects."""
    try:
        FileTransferJob.from_dict(data)
    except InvalidMessage as error:
        str(error).encode()
