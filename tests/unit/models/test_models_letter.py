"""Dead letters: the original is recoverable to the byte, and nothing is too large to be reported."""

import base64
import hashlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl.errors import ConnectionLost, InvalidMessage
from etl.models import DLQMessage, FileTransferJob
from etl.models.task import Attempt, Origin, Record

pytestmark = pytest.mark.unit

JOB = '{"job_id": "j", "source": {"hostname": "A", "path": "a"}, "destination": {"hostname":"B","path":"b"}}'

json_texts = st.builds(
    json.dumps,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=10,
    ),
    indent=st.none() | st.just(1),
    ensure_ascii=st.booleans(),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


def record(value: bytes | None) -> Record:
    return Record("jobs", 3, 41, None, value)


@given(st.binary() | json_texts)
def test_the_original_is_recoverable_to_the_byte(raw: bytes) -> None:
    """Claim: whatever the bytes were, the dead letter that travelled as JSON gives them back exactly."""
    letter = DLQMessage.from_record(record(raw), "no good")
    again = DLQMessage.from_json(letter.to_json().encode("utf-8"))
    assert again == letter
    assert again.original_bytes() == raw
    assert again.original_sha256 == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (JOB.encode(), json.loads(JOB)),
        (b'{"a": 1.10}', {"a": 1.1}),
        (b'{"a": 1, "a": 2}', {"raw": '{"a": 1, "a": 2}'}),
        (b"not json", {"raw": "not json"}),
        (b"[1]", {"raw": "[1]"}),
        (b"\xff", {"raw_base64": "/w=="}),
        (b'{"raw": "x"}', {"raw": '{"raw": "x"}'}),
        (b'{"raw_base64":"AA=="}', {"raw": '{"raw_base64":"AA=="}'}),
        (b"", {"raw": ""}),
    ],
)
def test_what_a_reader_sees_of_the_original(raw: bytes, message: dict[str, object]) -> None:
    """Claim: the JSON object where there is one, else the text, else base64; never confused."""
    letter = DLQMessage.from_record(record(raw), "no good")
    assert letter.to_dict()["original_message"] == message
    assert letter.original_bytes() == raw


def test_a_dead_letter_says_what_where_and_why() -> None:
    """Claim: coordinates, code, id and history are there; an origin goes before the record's own place."""
    attempts = (Attempt("2026-01-01T00:00:00Z", "worker-1", "CONNECTION_ERROR: reset"),)
    letter = DLQMessage.from_record(
        record(JOB.encode()), ConnectionLost("reset"), "j", attempts, 1, Origin("first", 1, 2)
    )
    assert letter.to_dict() | {"timestamp": 0, "original_sha256": 0} == {
        "original_message": json.loads(JOB),
        "original_raw": JOB,  # mixed spacing, which no style of writing gives again
        "original_sha256": 0,
        "error": "reset",
        "error_code": "CONNECTION_ERROR",
        "timestamp": 0,
        "retry_count": 1,
        "job_id": "j",
        "original_topic": "first",
        "original_partition": 1,
        "original_offset": 2,
        "attempts": [{"at": "2026-01-01T00:00:00Z", "where": "worker-1", "what": "CONNECTION_ERROR: reset"}],
    }


def test_a_dead_letter_of_a_job() -> None:
    """Claim: a job without a record, in either form, makes a dead letter that gives the job back."""
    job = FileTransferJob.from_json(JOB)
    letter = DLQMessage.from_job(job, ValueError("\ud800"))
    assert (letter.job_id, letter.error, letter.error_code) == ("j", "\\ud800", "UNKNOWN_ERROR")
    assert FileTransferJob.from_json(letter.original_bytes()) == job
    assert DLQMessage.from_job(job, "why").error == "why"
    assert DLQMessage.from_job(job, KeyError()).error == "KeyError"


def test_a_foreign_dead_letter_is_read_as_far_as_possible() -> None:
    """Claim: one without our extra fields gives its message as JSON; one that is none names the field."""
    letter = DLQMessage.from_json('{"original_message":{"a": 1},"error":"x","timestamp":"2026-01-01T00:00:00Z"}')
    assert letter.original_bytes() == b'{"a":1}'
    wrapped = {"original_message": {"raw_base64": "?"}, "error": "x", "timestamp": "2026-01-01T00:00:00Z"}
    assert DLQMessage.from_dict(wrapped).original_bytes() == b'{"raw_base64":"?"}'
    with pytest.raises(InvalidMessage, match="error: Field required"):
        DLQMessage.from_json('{"original_message":{},"timestamp":"2026-01-01T00:00:00Z"}')
    with pytest.raises(InvalidMessage, match="timestamp"):
        DLQMessage.from_json('{"original_message":{},"error":"","timestamp":"2026-01-01"}')


@given(
    st.binary(max_size=4000),
    st.integers(min_value=1, max_value=200),
    st.text(max_size=3000),
    st.integers(min_value=900, max_value=300_000),
)
@example(raw=b"x", times=1, error='"한\n' * 3000, limit_bytes=900)
def test_the_short_form_fits_its_limit(raw: bytes, times: int, error: str, limit_bytes: int) -> None:
    """Claim: however large message and history are, the short form fits and says what it leaves out."""
    attempts = [Attempt("t", "w", error)] * 3
    whole = DLQMessage.from_record(record(raw * times), error, "id", attempts)
    short = DLQMessage.from_json(whole.shortened(limit_bytes).to_json())
    assert len(short.to_json().encode()) <= limit_bytes
    assert short.truncated
    assert short.original_bytes() is None
    assert short.original_bytes_count == len(raw * times)
    assert short.original_sha256 == hashlib.sha256(raw * times).hexdigest()
    start = base64.b64decode(short.original_message["raw_base64"])
    assert (raw * times).startswith(start)
    assert len(start) <= 65536
    assert (short.original_topic, short.original_partition, short.original_offset) == ("jobs", 3, 41)
    again = short.shortened(900)
    assert len(again.to_json().encode()) <= 900
    assert again.original_bytes_count == len(raw * times)


def test_the_short_form_keeps_the_first_64_kib() -> None:
    """Claim: with room enough the start is kept whole."""
    short = DLQMessage.from_record(record(b"\xff" * 100_000), "x").shortened(1_000_000)
    assert base64.b64decode(short.original_message["raw_base64"]) == b"\xff" * 65536
