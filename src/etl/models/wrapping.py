"""What a message that is no job looks like, in words for whoever sends it: packed, encoded, or with an envelope around.

Asked only when reading has failed. Looks at the first bytes, never unpacks anything, and decides nothing.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

LOOKED_AT_BYTES = 4096
NAME_SHOWN = 100  # characters of a field's name
# By how they begin, as their specifications say.
_BEGINNINGS = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy"),
    (b"\x82SNAPPY\x00", "snappy"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"x\x01", "zlib"),
    (b"x\x9c", "zlib"),
    (b"x\xda", "zlib"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"Obj\x01", "an Avro file"),
    (b"\xc3\x01", "Avro with its schema's fingerprint"),
    (b"\xac\xed\x00\x05", "a serialised Java object"),
    (b"-----BEGIN PGP", "encrypted with PGP"),
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"<", "XML"),
    (b"---\n", "YAML"),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_MAP_OF_MSGPACK = re.compile(rb"(?:[\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9]", re.DOTALL)
_MAP_OF_CBOR = re.compile(rb"(?:\xd9\xd9\xf7)?[\xa1-\xb7\xbf][\x61-\x77]")
_TOKEN = re.compile(rb"eyJ[\w-]+\.[\w-]+\.[\w-]*")
_FORM = re.compile(rb"[\w.%+-]+=[^&\s]*(?:&[\w.%+-]+=[^&\s]*)+")
_YAML = re.compile(rb"(?:source|destination|job_id|task_id|src_id|dst_id) *:(?: |\n)")
_LEADING = re.compile(rb"[^{\[]{1,64}\{\s*\"")
_UNQUOTED = re.compile(rb"\{\s*\w+\s*:")


def of_bytes(raw: bytes, layers: int = 3) -> str | None:
    """Return what bytes that cannot be read as a JSON object look like; None if like nothing known.

    `layers` is how many of those that can be taken off without unpacking, base64 and quotes, are looked through.
    """
    if layers == 0:
        return None
    head = raw[:LOOKED_AT_BYTES].removeprefix(b"\xef\xbb\xbf")
    if len(raw) > 8 and int.from_bytes(head[:4], "big") == len(raw) - 4 and head[4:].lstrip()[:1] == b"{":
        return "looks like JSON behind its length in four bytes: send the JSON alone"
    if coded := _of_wide_letters(head):
        return coded
    if head[:1] == b"\0" and len(head) > 5:
        return _of_registry(head)
    for beginning, name in _BEGINNINGS:
        if head.startswith(beginning):
            return f"looks like {name}"
    text = head.strip()
    if _TOKEN.match(text):
        return "looks like a signed token (JWT)"
    if (inner := _decoded(text)) is not None:
        if inner.lstrip()[:1] in (b"{", b"["):
            return "looks like JSON in base64"
        packed = of_bytes(inner, layers - 1)
        return f"looks like base64; what is in it {packed}" if packed else "looks like base64"
    if text[:1] == b'"':
        inner = text[1:].removesuffix(b'"')
        if inner.lstrip(b'\\"nrt \r\n\t')[:1] in (b"{", b"["):
            return "looks like JSON in a string: it was written as JSON twice"
        packed = of_bytes(inner, layers - 1)
        return f"is a string that {packed}" if packed else None
    return _of_binary(head, len(raw)) or _of_text(text)


def of_object(data: Mapping[str, Any], fields: frozenset[str]) -> str | None:
    """Return which envelope a JSON object looks like, with a job's `fields` perhaps inside; None if like none."""
    names = set(data)
    if "specversion" in names and names & {"data", "data_base64", "type"}:
        return "looks like a CloudEvents envelope: send what is in data"
    if names == {"schema", "payload"}:
        return (
            "looks like Kafka Connect's envelope of schema and payload: send what is in payload (schemas.enable=false)"
        )
    if {"before", "after", "op"} <= names:
        return "looks like a change event of Debezium: send what is in after"
    if data.get("Type") == "Notification" and "Message" in names:
        return "looks like a notification of SNS: send what is in Message"
    if isinstance(data.get("records") or data.get("Records"), list):
        return "looks like a list of records: each is a message of its own"
    if isinstance(data.get("files"), list):
        return 'holds several jobs (files): set "message_version": "2.0"'
    if names & fields:
        return None
    for name, value in data.items():
        if isinstance(value, dict) and set(value) & fields:
            return f"looks like an envelope: send what is in {name[:NAME_SHOWN]}"
        if isinstance(value, str) and value.lstrip().startswith("{") and any(f'"{field}"' in value for field in fields):
            return f"looks like an envelope: send what is in {name[:NAME_SHOWN]}, which is JSON in a string"
    lowered = {name.lower().replace("-", "").replace("_", "") for name in names}
    if lowered & {field.replace("_", "") for field in fields}:
        return "looks like a job whose fields are spelt another way"
    return None


def _of_registry(head: bytes) -> str:
    """Return what comes behind the prefix of a schema registry: byte 0, the schema's id in four bytes."""
    number, rest = int.from_bytes(head[1:5], "big"), head[5:]
    what = f"the prefix of a schema registry (byte 0, schema {number})"
    if rest.lstrip()[:1] == b"{" or rest[:2].lstrip(b"\0")[:1] == b"{":
        return f"looks like JSON behind {what}: send the JSON alone"
    return f"looks like Avro or Protobuf behind {what}: send JSON"


def _of_wide_letters(head: bytes) -> str | None:
    """Return UTF-16 or UTF-32 without a byte order mark: text whose every second byte is 0."""
    pairs = head[: len(head) // 2 * 2][:200]
    if len(pairs) < 4:
        return None
    for width, name in ((4, "UTF-32"), (2, "UTF-16")):
        for place in (0, width - 1):
            letters = pairs[place::width]
            others = bytes(byte for index, byte in enumerate(pairs) if index % width != place)
            if letters[:1] in (b"{", b"[", b'"', b" ") and others.count(0) > 0.8 * len(others):
                return f"looks like {name}: send UTF-8"
    return None


def _decoded(text: bytes) -> bytes | None:
    """Return what base64 stands for, if a text is base64 as far as it is looked at."""
    if len(text) < 16 or not re.fullmatch(rb"[A-Za-z0-9+/_\-\r\n]+={0,2}", text):
        return None
    packed = text.translate(bytes.maketrans(b"-_", b"+/"), b"\r\n").rstrip(b"=")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error:
        return None


def _of_binary(head: bytes, length: int) -> str | None:
    if length >= 8 and head[:4] == length.to_bytes(4, "little"):
        return "looks like BSON"
    if _PICKLE.match(head):
        return "looks like a Python pickle"
    if _MAP_OF_MSGPACK.match(head) and not head.isascii():
        return "looks like MessagePack"
    if _MAP_OF_CBOR.match(head):
        return "looks like CBOR"
    if head[:1] in (b"\x08", b"\x0a", b"\x10", b"\x12", b"\x1a") and _is_protobuf(head):
        return "looks like Protobuf"
    if _is_avro(head):
        return "looks like Avro"
    if head[:1] in (b"{", b"[") and not _is_utf8(head) and head.count(0) == 0:
        return "looks like JSON in another encoding than UTF-8"
    return None


def _of_text(text: bytes) -> str | None:
    if text.startswith((b"{'", b"{u'", b"[{'")):
        return "looks like a Python dictionary, printed: JSON has double quotes"
    if re.match(rb"\[\s*\{", text):
        return "looks like several jobs in a list: each is a message of its own"
    if _UNQUOTED.match(text):
        return "looks like JavaScript: JSON has names in double quotes"
    if text[:1] == b"{" and re.search(rb"\}\s*\{", text):
        return "looks like several jobs: each is a message of its own"
    if _FORM.fullmatch(text):
        return "looks like an HTML form"
    if _YAML.match(text):
        return "looks like YAML"
    if text[:1] not in (b"{", b"[", b'"') and (found := _LEADING.match(text)):
        count = found[0].index(b"{")
        return f"looks like JSON with {count} bytes before it: send the JSON alone"
    if text[:1] not in (b"{", b"[", b'"') and text.count(b",") >= 3 and text.isascii():
        return "looks like CSV"
    return None


def _is_utf8(head: bytes) -> bool:
    try:
        head[:-4].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 8
    return True


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number in groups of seven bits, and where it ends. Raises IndexError at the end of the data."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80 or shift > 63:
            return value, at


def _is_protobuf(head: bytes) -> bool:
    """Do all bytes read as fields of a Protobuf message (a tag with number and type, then its value)?"""
    at = fields = 0
    try:
        while at < len(head):
            tag, at = _varint(head, at)
            number, kind = tag >> 3, tag & 7
            if not 0 < number < 1000 or kind not in (0, 1, 2, 5):
                return False
            length, start = _varint(head, at) if kind == 2 else (0, at)
            at = _varint(head, at)[1] if kind == 0 else start + length + {1: 8, 5: 4}.get(kind, 0)
            fields += 1
    except IndexError:
        return False
    return at == len(head) or (fields > 0 and len(head) == LOOKED_AT_BYTES)


def _is_avro(head: bytes) -> bool:
    """Do all bytes read as Avro texts (twice the length, then the text), with null and branches of unions between?"""
    if not any(byte < 0x20 for byte in head.translate(None, b"\t\r\n")):
        return False
    reached = {0}
    for at in range(len(head)):
        if at not in reached:
            continue
        if head[at] in (0, 2, 4):
            reached.add(at + 1)
        try:
            length, start = _varint(head, at)
        except IndexError:
            continue
        end = start + length // 2
        if length and not length & 1 and end <= len(head) and _is_printable(head[start:end]):
            reached.add(end)
    return len(head) in reached and 2 * sum(byte >= 0x20 for byte in head) > len(head)


def _is_printable(text: bytes) -> bool:
    try:
        return text.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False
