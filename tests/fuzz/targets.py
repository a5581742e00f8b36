"""All that reads what strangers write, each as a function of bytes: it ends in a value or in one of its own errors.

Whatever else is raised is a finding. Used by hypothesis for moments and by libFuzzer (atheris) for minutes.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from etl import logs
from etl.broker.records import Unreadable, unpack
from etl.config import ConfigLoader, ServerConfig
from etl.errors import EtlError, InvalidMessage, InvalidPath, SettingsError
from etl.models import header
from etl.models.checksum import DIGITS, OWN, Checksum
from etl.models.letter import DLQMessage
from etl.models.message import FileTransferJob, TransferResult
from etl.models.task import Record
from etl.outcomes import messages
from etl.outcomes.messages import MessageBuilder
from etl.outcomes.offsets import OffsetTracker
from etl.outcomes.seal import PROOF, Seal
from etl.topics.names import Topics
from etl.transfer import paths, sumfiles
from etl.transfer.ftp import names, telnet
from etl.transfer.ftp.hashing import value_in
from etl.transfer.ftp.listing import GarbledListingError, Listing
from etl.transfer.ftp.opening import port_in
from etl.transfer.ftp.replies import GarbledReplyError, ReplyParser
from etl.transfer.s3 import documents
from etl.transfer.s3.channel import Channel, EndedError, MalformedError, read_answer
from etl.transfer.s3.reading import facts_of
from etl.transfer.s3.refusals import refused
from etl.transfer.sftp.packets import ATTRS, NAME, STATUS, Answer, Reader
from etl.transfer.watch import Watch

Target = Callable[[bytes], None]
TOPICS = Topics("jobs", "jobs-results", "jobs-results", "jobs-retry", "jobs-dlq")
BUILDER = MessageBuilder(TOPICS, "group", seal=Seal("a-secret-of-the-group"))
OURS = (
    header.JOB_ID,
    header.GROUP,
    header.ORIGIN,
    header.ATTEMPTS,
    header.NOT_BEFORE,
    header.REPLAYS,
    messages.WAITING_SINCE,
    messages.RECALLABLE,
    messages.OUTAGES,
    messages.ORPHANS,
    messages.PUBLISHED,
    PROOF,
    "of-a-producer",
)
NAMES = ("A_TYPE", "A_HOST", "A_PORT", "A_ENCODING", "A_ACCESS", "A_BASE_PATH", "A_TIME_ZONE", "ETL_ALLOWED_PAIRS",
         "ETL_WORKERS", "ETL_BOOTSTRAP_SERVERS", "ETL_TOPIC", "ETL_LOG_LEVEL", "A_JUMP", "A_SSH_OPTIONS")  # fmt: skip
PIECE_BYTES = 7  # what comes from a network comes in pieces


def record(data: bytes) -> None:
    """Read a message, and write its dead letter, whose content is what came."""
    read = Record("jobs", 0, 1, None, data)
    try:
        job = FileTransferJob.from_json(data)
    except InvalidMessage as error:
        (message,) = BUILDER.dead_letter(read, error)
        letter = DLQMessage.from_json(message.value or b"")
        assert letter.original_bytes() == data
    else:
        assert FileTransferJob.from_json(job.to_json().encode()) == job
        for path in (job.source.path, job.destination.path):
            assert ".." not in path.split("/")
            with contextlib.suppress(InvalidPath):
                paths.refuse_misread(path, path.encode())


def headers(data: bytes) -> None:
    """Read headers of a deferred job, and write what they say into a dead letter."""
    parts = data.split(b"\xfe")
    read = tuple((OURS[part[0] % len(OURS)] if part else "", part[1:]) for part in parts)
    for topic in (TOPICS.retry, TOPICS.source):
        carried = BUILDER.read(Record(topic, 0, 1, b"k", b"{}", read))
        assert not carried.proven
        BUILDER.dead_letter(Record(topic, 0, 1, b"k", b"{}", read), "any", carried=carried)


def letter(data: bytes) -> None:
    """Read a dead letter and a result."""
    for kind in (DLQMessage, TransferResult):
        with contextlib.suppress(InvalidMessage):
            kind.from_json(data)


def packed(data: bytes) -> None:
    """Unpack a batch of any codec."""
    with contextlib.suppress(Unreadable):
        assert len(unpack(1 + (data[0] if data else 0) % 4, data[1:], 1 << 16)) <= 1 << 16


def metadata(data: bytes) -> None:
    """Take over a partition with what somebody committed for it."""
    tracker = OffsetTracker(int.from_bytes(data[:3], "big"), data[3:].decode("utf-8", "replace"))
    assert tracker.committable <= tracker.position


def reply(data: bytes) -> None:
    """Read the replies of an FTP server, and what they may name."""
    parser = ReplyParser()
    with contextlib.suppress(GarbledReplyError):
        for at in range(0, len(data), PIECE_BYTES):
            parser.feed(data[at : at + PIECE_BYTES])
            while (said := parser.take()) is not None:
                assert said.text.isprintable()
                port = port_in(said)
                assert port is None or 0 < port < 65536
                names.quoted_path(said.line)
                for algorithm in DIGITS.keys() - {OWN}:
                    made = value_in(said, algorithm, b"/a")
                    assert made is None or Checksum.read(algorithm, made).value == made
                names.size_in(said.line)
                names.time_in(said.line)


def sums(data: bytes) -> None:
    """Read a checksum file that lies beside a source."""
    text = data.decode("utf-8", "surrogateescape")
    for is_own in (True, False):
        found = sumfiles.read(text, "a", "sha256", is_own=is_own)
        assert found is None or Checksum.parse(str(found)) == found


def listing(data: bytes) -> None:
    """Read a list of names, and one of facts."""
    for with_facts in (True, False):
        found = Listing(with_facts=with_facts)
        with contextlib.suppress(GarbledListingError):
            for at in range(0, len(data), PIECE_BYTES):
                found.feed(data[at : at + PIECE_BYTES])
            found.end()
        assert not {b"", b".", b".."} & set(found.names)
        assert not any(b"/" in name for name in found.names)


def wire(data: bytes) -> None:
    """Judge a name as a server may read it, with and without Telnet's commands."""
    for encoding in ("utf-8", "latin-1", "cp932"):
        known = names.Names(encoding)
        with contextlib.suppress(InvalidPath):
            path = known.read(data)
            sent = known.wire(path)
            paths.refuse_misread(path, sent)
            assert not any(part == b".." for part in sent.split(b"\\")) or b".." in data.split(b"/")
    if not telnet._may_climb(data):
        assert b".." not in data.split(b"/")


def packet(data: bytes) -> None:
    """Read any answer of an SFTP server."""
    for kind in (STATUS, NAME, ATTRS):
        answer = Answer(kind, data)
        with contextlib.suppress(EtlError):
            assert answer.text
            assert answer.attributes is None or answer.attributes.facts is not None
        with contextlib.suppress(EtlError):
            reader = Reader(data)
            for _ in range(reader.u32()):
                reader.string()
                reader.attributes()


class _Pieces(Channel):
    """A connection that brings these bytes, and then ends."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._ahead = bytearray()
        self._is_closed = True

    def receive(self, view: memoryview, watch: Watch) -> int:
        """Give the next piece."""
        source = self._ahead or self._data
        count = min(len(view), len(source), PIECE_BYTES)
        view[:count] = source[:count]
        if self._ahead:
            del self._ahead[:count]
        else:
            self._data = self._data[count:]
        return count


def answer(data: bytes) -> None:
    """Read what a store of objects answers: its head, its body, and what the body says."""
    watch = Watch(1.0, 0.0)
    with contextlib.suppress(EndedError, MalformedError):
        got = read_answer(_Pieces(data), "GET", watch, watch)
        facts = facts_of(got)
        assert facts.mtime is None or int(facts.mtime) is not None
        got.content = got.body.read_all(documents.LIMIT_BYTES)
        now = datetime.now(UTC)
        assert str(refused(ServerConfig("S", "s3"), "key", got, now)).isprintable()
    for read in (documents.listing_of, documents.uploads_of):
        with contextlib.suppress(MalformedError):
            read(data)


def setting(data: bytes) -> None:
    """Read settings, from the environment and from a file."""
    text = data.decode("utf-8", "replace").replace("\0", "")
    values = text.split("\n")
    environ = {name: values[place % len(values)] for place, name in enumerate(NAMES)} | {"A_PASS": "pass-of-a"}
    with contextlib.suppress(SettingsError):
        ConfigLoader(environ=environ)
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(SettingsError):
            ConfigLoader(env_file=Path(file.name), environ={})


def line(data: bytes) -> None:
    """Show a text in a log."""
    text = data.decode("utf-8", "surrogateescape")
    shown = logs.escaped(text)
    assert shown.isprintable()
    assert "\n" not in shown


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (record, headers, letter, packed, metadata, reply, sums, listing, wire, packet, answer, setting, line)
}


def examples(name: str) -> Iterator[bytes]:
    """Yield what a target is likely to get, to begin with."""
    job = b'{"source":{"hostname":"A","path":"/a/../b"},"destination":{"hostname":"B","path":"/x"},"options":{}}'
    yield from {
        "record": [job, b'{"task_id":"1","src_id":"A","src_path":"/a","dst_id":"B","dst_path":"/b"}'],
        "headers": [b"\x0b{}\xfe\x02jobs-0-1", b'\x03[{"at":"x"}]', b"\x042027-01-01T00:00:00Z"],
        "letter": [b'{"original_message":{},"error":"x","timestamp":"2027-01-01T00:00:00Z","retry_count":0}'],
        "reply": [b"229 (|||1234|)\r\n", b"200-a\r\n b\r\n200 c\r\n", b'257 "/a""b" is\r\n', b"213 20270101000000\r\n"],
        "sums": [b"ab" * 32 + b"  a\n", b"MD5 (a) = " + b"cd" * 16, b"\\" + b"ef" * 32 + b" *a\\nb"],
        "listing": [b"type=file;size=1; a b\r\n", b"/x/.etl-1.part\r\n..\r\n"],
        "wire": [b"/.\xff\xf2./x", rb"/a\..\x", "/\uff0e\uff0e/x".encode()],
        "answer": [
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-amz-meta-mtime: nan\r\n\r\n12345",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\n\r\n",
            b"HTTP/1.1 400 Bad\r\n\r\n<Error><Code>A\n</Code><Message>\x85</Message><Region>x</Region></Error>",
            b"<ListBucketResult><EncodingType>url</EncodingType><Contents><Key>%e9</Key></Contents></ListBucketResult>",
        ],
        "setting": [
            b"A_TYPE=ftp\nA_HOST=x\n",
            b"ftp\nhost\n21\nutf-8\nread\n/b\n+09:00\nA:A\n8\nx:1\nt\nINFO\nj\nCiphers=x",
        ],
    }.get(name, [b"\0\0\0\1abc"])
