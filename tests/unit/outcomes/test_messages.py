"""The messages of outcomes; deferrals are written and read again."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import FileMissing, InvalidMessage
from etl.models.letter import DLQMessage
from etl.models.message import FileTransferJob, TransferResult
from etl.models.task import Attempt, Facts, Origin, Record, Task
from etl.models.wire import Message
from etl.outcomes.messages import Carried, MessageBuilder
from etl.retry.tiers import tier_of
from etl.topics.names import Topics

pytestmark = pytest.mark.unit

TOPICS = Topics("jobs", "jobs-results", "jobs-failed", "jobs-retry", "jobs-dlq")
NOW = 1_763_640_000.25
ENVELOPES = MessageBuilder(TOPICS, "group", retry_blocks=4, clock=lambda: NOW)
JOB = {"source": {"hostname": "A", "path": "in/a"}, "destination": {"hostname": "B", "path": "out/a"}}


def record(value: bytes | None = None, **fields: object) -> Record:
    value = json.dumps(JOB).encode() if value is None else value
    return Record("jobs", 3, 14, b"B:out/a", value)._replace(**fields)  # type: ignore[arg-type]


def task(of: Record | None = None, **fields: object) -> Task:
    of = of or record()
    found = ENVELOPES.read(of).task(of, FileTransferJob.from_json(of.value))
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def result(status: str = "SUCCESS", **fields: object) -> TransferResult:
    return TransferResult(job_id="jobs-3-14", status=status, **fields)  # type: ignore[arg-type]


def header(message: Message, name: str) -> str | None:
    return next((value.decode() for key, value in message.headers if key == name), None)


def delivered(message: Message, offset: int = 7) -> Record:
    """Return the deferral as it is read from its topic."""
    return Record(message.topic, message.partition or 0, offset, message.key, message.value, message.headers)


def shrunk(message: Message) -> tuple[Message, ...]:
    assert message.shrink is not None
    return message.shrink()


# --- results


def test_a_result_is_keyed_by_the_job_id() -> None:
    (message,) = ENVELOPES.result(task(), result())
    assert (message.topic, message.key) == ("jobs-results", b"jobs-3-14")
    assert header(message, "etl-origin") == header(message, "etl-job-id") == "jobs-3-14"
    assert TransferResult.from_json(message.value).succeeded


def test_failed_results_go_to_their_own_topic_if_there_is_one() -> None:
    (message,) = ENVELOPES.result(task(), result("FAILED"))
    assert message.topic == "jobs-failed"


def test_a_record_that_holds_no_valid_job_can_have_a_failed_result() -> None:
    (message,) = ENVELOPES.result(ENVELOPES.read(record(b"no json")), result("FAILED"))
    assert header(message, "etl-group") == "group"


def test_a_result_that_is_too_large_is_sent_without_its_metadata() -> None:
    (message,) = ENVELOPES.result(task(), result("FAILED", metadata={"k": "v" * 10**6}, error="e" * 10**6))
    (short,) = shrunk(message)
    assert short.value is not None
    assert len(short.value) < 2000
    assert TransferResult.from_json(short.value).job_id == "jobs-3-14"
    assert (short.topic, short.key, short.headers) == (message.topic, message.key, message.headers)


def test_the_shortest_form_of_a_result_names_no_endpoints() -> None:
    job = FileTransferJob.from_dict(
        {"source": {"hostname": "A", "path": "a" * 4096}, "destination": JOB["destination"]}
    )
    message = ENVELOPES.result(task(), result("FAILED", source=job.source, destination=job.destination, error="e"))[0]
    sizes = [len(message.value or b"")]
    while message.shrink is not None:
        (message,) = shrunk(message)
        sizes.append(len(message.value or b""))
    assert sizes[-1] < 500
    assert TransferResult.from_json(message.value).status == "FAILED"


# --- dead letters


def test_a_dead_letter_holds_the_message_and_its_history() -> None:
    attempts = [Attempt("t", "here", f"what {n}") for n in range(3)]
    (message,) = ENVELOPES.dead_letter(task(attempts=attempts, replays=2), FileMissing("gone"))
    letter = DLQMessage.from_json(message.value)
    assert (message.topic, message.key) == ("jobs-dlq", b"B:out/a"), "a replay needs the key"
    assert letter.original_bytes() == record().value
    assert (letter.error, letter.error_code, letter.retry_count) == ("gone", "FILE_NOT_FOUND", 2)
    assert (letter.original_topic, letter.original_partition, letter.original_offset) == ("jobs", 3, 14)
    assert (letter.job_id, header(message, "etl-replays")) == ("jobs-3-14", "2")


def test_a_record_that_cannot_be_parsed_has_a_dead_letter_with_its_exact_bytes() -> None:
    raw = b"\xff\x00 no json"
    (message,) = ENVELOPES.dead_letter(record(raw, headers=(("trace", b"1"),)), InvalidMessage("message: is not JSON"))
    assert DLQMessage.from_json(message.value).original_bytes() == raw
    assert header(message, "trace") == "1"
    assert header(message, "etl-job-id") == "jobs-3-14"


def test_a_dead_letter_from_the_retry_topic_names_the_origin_of_the_job() -> None:
    deferred = delivered(ENVELOPES.deferral(task(), NOW + 60)[0])
    (message,) = ENVELOPES.dead_letter(deferred, "of no use")
    letter = DLQMessage.from_json(message.value)
    assert (letter.original_topic, letter.original_partition, letter.original_offset) == ("jobs", 3, 14)


def test_a_dead_letter_shrinks_step_by_step_to_a_size_that_every_topic_takes() -> None:
    large = record(b"x" * 3_000_000, key=b"k" * 100_000, headers=(("trace", b"t" * 100_000),))
    (message,) = ENVELOPES.dead_letter(large, "e" * 100_000, job_id="id")
    sizes = []
    while message.shrink is not None:
        (message,) = shrunk(message)
        sizes.append(len(message.value or b"") + len(message.key or b"") + sum(len(v) for _, v in message.headers))
        letter = DLQMessage.from_json(message.value)
        assert letter.truncated
        assert letter.original_offset == 14
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < 140_000
    assert sizes[-2] < 2500
    assert sizes[-1] < 600
    assert (message.key, message.headers) == (b"jobs-3-14", ()), "compacted topics refuse messages without a key"


# --- deferrals


def test_a_deferral_holds_the_original_bytes_and_key_and_everything_else_in_headers() -> None:
    before = task(
        record(headers=(("trace", b"1"), ("etl-origin", b"forged-1-1"))),
        attempts=[Attempt("t1", "here", "what happened — ein Fehler")],
        waiting_since=NOW - 5.125,
        outages=4,
        replays=1,
    )
    (message,) = ENVELOPES.deferral(before, NOW + 60)
    assert (message.topic, message.key, message.value) == ("jobs-retry", before.record.key, before.record.value)
    back = delivered(message)
    carried = ENVELOPES.read(back)
    assert (carried.group, carried.not_before) == ("group", NOW + 60)
    after = carried.task(back, FileTransferJob.from_json(back.value))
    for name in ("origin", "attempts", "waiting_since", "outages", "replays", "published", "facts", "job"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.origin == Origin("jobs", 3, 14), "a producer's own etl-origin is not believed"
    assert header(message, "trace") == "1"


def test_a_deferred_published_job_is_still_published_when_it_is_read() -> None:
    facts = Facts(123, 1_700_000_000.5)
    copied = task(published=True, verified_by="size", facts=facts, checksum="md5:00")
    (message,) = ENVELOPES.deferral(copied, NOW + 60)
    carried = ENVELOPES.read(delivered(message))
    assert (carried.published, carried.verified_by, carried.facts) == (True, "size", facts)
    assert carried.checksum == "md5:00"


def test_a_deferred_job_published_by_an_earlier_process_is_still_published_when_it_is_read() -> None:
    (message,) = ENVELOPES.deferral(task(published=True), NOW + 60)
    carried = ENVELOPES.read(delivered(message))
    assert (carried.published, carried.verified_by, carried.facts) == (True, None, None)


def test_facts_of_a_copy_that_was_not_published_are_not_carried() -> None:
    (message,) = ENVELOPES.deferral(task(verified_by="size", facts=Facts(1, None)), NOW + 60)
    assert header(message, "etl-published") is None


@pytest.mark.parametrize(("wait", "tier"), [(5, 0), (10, 0), (59, 0), (61, 1), (600, 2), (100_000, 3)])
@pytest.mark.parametrize("blocks", range(1, 6))
def test_each_tier_has_its_own_partitions(blocks: int, wait: float, tier: int) -> None:
    """If there are several, some of them are for recallable jobs."""
    builder = dataclasses.replace(ENVELOPES, retry_blocks=blocks)
    found = {
        early: {
            builder.deferral(task(record(key=b"%d" % n), recallable=early), NOW + wait)[0].partition or 0
            for n in range(100)
        }
        for early in (False, True)
    }
    whole = found[False] | found[True]
    assert {tier_of(partition) for partition in whole} == {tier}
    assert len(whole) == blocks
    assert found[False].isdisjoint(found[True]) or blocks == 1


def test_records_with_the_same_key_wait_in_the_same_partition() -> None:
    partitions = {ENVELOPES.deferral(task(record(offset=n)), NOW + 60)[0].partition for n in range(50)}
    assert len(partitions) == 1


def test_records_without_a_key_are_spread_by_origin() -> None:
    tasks = [task(record(offset=n, key=None), recallable=True) for n in range(50)]
    assert len({ENVELOPES.deferral(one, NOW + 60)[0].partition for one in tasks}) == 3


def test_a_deferral_that_is_too_large_becomes_a_dead_letter_and_a_failed_result() -> None:
    (message,) = ENVELOPES.deferral(task(), NOW + 60)
    dead, failed = shrunk(message)
    assert dead.topic == "jobs-dlq"
    assert failed.topic == "jobs-failed"
    result = TransferResult.from_json(failed.value)
    assert (result.status, result.error_code) == ("FAILED", "INVALID_MESSAGE")
    assert "jobs-retry" in (result.error or "")
    assert dead.shrink is not None


def test_a_job_without_an_id_is_named_after_its_origin() -> None:
    (message,) = ENVELOPES.deferral(task(), NOW + 60)
    again = delivered(message, offset=99)
    assert ENVELOPES.read(again).task(again, FileTransferJob.from_json(again.value)).job.job_id == "jobs-3-14"


def test_a_replayed_job_keeps_its_id_and_its_count() -> None:
    replayed = record(headers=(("etl-job-id", b"first"), ("etl-replays", b"3"), ("etl-attempts", b"[{}]")))
    carried = ENVELOPES.read(replayed)
    assert carried == Carried(Origin("jobs", 3, 14), job_id="first", replays=3)


def test_a_jobs_own_id_wins() -> None:
    named = record(json.dumps({"job_id": "mine", **JOB}).encode(), headers=(("etl-job-id", b"other"),))
    assert task(named).job.job_id == "mine"


# --- malformed headers


@pytest.mark.parametrize("job_id", [b"k" * 256, b"k" * 5_000_000, b"two\nlines", b" ", b"\xff\x85"])
def test_a_job_id_in_a_header_counts_only_if_a_message_could_have_it(job_id: bytes) -> None:
    """It goes three times into the result, and no topic takes one of megabytes."""
    given = record(headers=(("etl-job-id", job_id),))
    expected = job_id.decode("utf-8", "replace") if job_id == b"\xff\x85" else None
    assert ENVELOPES.read(given).job_id == expected
    (message,) = ENVELOPES.dead_letter(given, "no job")
    assert header(message, "etl-job-id") == (expected or "jobs-3-14")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("etl-origin", b"jobs-3"),
        ("etl-origin", b"-3-4"),
        ("etl-origin", b"jobs-x-4"),
        ("etl-origin", b"jobs-3-" + b"9" * 5000),
        ("etl-attempts", b"[" * 100_000),
        ("etl-attempts", b'{"at": 1}'),
        ("etl-attempts", b"[1, null]"),
        ("etl-not-before", b"soon"),
        ("etl-not-before", b"2026-01-01T00:00:00"),
        ("etl-replays", b"-1"),
        ("etl-replays", b"9" * 5000),
        ("etl-outages", b"many"),
        ("etl-published", b"[]"),
        ("etl-published", b"\xff"),
        ("etl-waiting-since", b""),
        ("etl-origin", b"two\nlines-3-4"),
        ("etl-origin", b"t" * 300 + b"-3-4"),
        ("etl-attempts", b"[" + b"{}," * 400_000 + b"{}]"),
    ],
)
def test_a_malformed_header_counts_as_absent(name: str, value: bytes) -> None:
    broken = Record("jobs-retry", 0, 1, None, b"", ((name, value),))
    assert ENVELOPES.read(broken) == Carried(Origin("jobs-retry", 0, 1))


@pytest.mark.parametrize(
    "text",
    [
        '{"size_bytes": true, "mtime": 1}',
        '{"size_bytes": "1", "mtime": 1}',
        '{"mtime": 1}',
        '{"size_bytes": 1' + "0" * 400 + ', "mtime": 1}',
        '{"size_bytes": Infinity, "mtime": 1}',
    ],
)
def test_facts_of_a_wrong_type_are_unknown(text: str) -> None:
    deferred = Record("jobs-retry", 0, 1, None, b"", (("etl-published", text.encode()),))
    assert ENVELOPES.read(deferred).facts == Facts(None, 1)


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e400", "NaN", "-Infinity", "9223372036854775808"])
def test_a_time_beyond_64_bits_is_unknown(number: str) -> None:
    deferred = Record("jobs-retry", 0, 1, None, b"", (("etl-published", f'{{"mtime": {number}}}'.encode()),))
    assert ENVELOPES.read(deferred).facts == Facts(None, None)


def test_an_attempt_counts_whatever_is_in_it() -> None:
    """But only its texts, as far as we would have written them."""
    nested = "[" * 900 + "]" * 900
    text = f'[{{"at": {nested}, "where": 7, "what": "{"w" * 1000}\\ud800"}}, 7]'
    deferred = Record("jobs-retry", 0, 1, None, b"", (("etl-attempts", text.encode()),))
    assert ENVELOPES.read(deferred).attempts in ((Attempt("", "", "w" * 500),), ())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
forged = st.one_of(
    st.binary(max_size=40),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("size_bytes", "mtime", "verified_by"), json_values)).map(
        lambda value: json.dumps(value).encode()
    ),
    st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(("at", "where", "what"), json_values)), max_size=3).map(
        lambda value: json.dumps(value).encode()
    ),
)
OURS = ["job-id", "group", "origin", "attempts", "not-before", "replays", "waiting-since", "servers", "outages",
        "recallable", "orphans", "published"]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(OURS).map("etl-{}".format), forged), max_size=6))
def test_what_was_read_of_forged_headers_can_be_written_again(headers: list[tuple[str, bytes]]) -> None:
    """As a deferral, as a dead letter and as a result: nothing of it stops the thread that commits."""
    before = task(Record("jobs-retry", 0, 1, None, json.dumps(JOB).encode(), tuple(headers)))
    (message,) = ENVELOPES.deferral(before, NOW)
    carried = ENVELOPES.read(delivered(message))
    assert (carried.origin, carried.attempts, carried.replays) == (
        before.origin,
        tuple(before.attempts),
        before.replays,
    )
    pending = [*ENVELOPES.dead_letter(before, "error"), *ENVELOPES.result(before, result())]
    while pending:
        written = pending.pop()
        pending += written.shrink() if written.shrink is not None else ()
        assert written.shrink is not None or len(written.value or b"") < 2000


@given(st.binary(max_size=40), st.sampled_from(["origin", "attempts", "not-before", "replays", "outages", "published"]))
def test_no_header_stops_a_record(value: bytes, name: str) -> None:
    ENVELOPES.read(Record("jobs-retry", 0, 1, None, b"", ((f"etl-{name}", value),)))


@given(st.floats(0, 4e9))
def test_times_survive_to_the_microsecond(wall: float) -> None:
    (message,) = ENVELOPES.deferral(task(waiting_since=wall), NOW)
    carried = ENVELOPES.read(delivered(message))
    assert carried.waiting_since == pytest.approx(wall, abs=1e-6)
    assert datetime.fromisoformat(header(message, "etl-not-before") or "").tzinfo == UTC


def test_of_our_headers_a_producer_can_set_only_id_and_replays() -> None:
    """Whatever it writes to the topic of jobs: nothing of it is believed, or copied into an outcome as ours."""
    forged = {
        "etl-group": b"group",
        "etl-origin": b"jobs-0-0",
        "etl-bundle": b"jobs-0-1",
        "etl-attempts": b'[{"at": "x", "where": "y", "what": "z"}]',
        "etl-published": b'{"verified_by": "size", "size_bytes": 1, "mtime": 1}',
        "etl-not-before": b"2030-01-01T00:00:00+00:00",
        "etl-recallable": b"1",
        "etl-orphans": b"a-part",
        "etl-outages": b"7",
        "etl-marker": b"replayed",
        "etl-job-id": b"mine",
        "etl-replays": b"2",
    }
    found = record(headers=(*forged.items(), ("trace", b"t")))
    assert ENVELOPES.read(found) == Carried(Origin("jobs", 3, 14), job_id="mine", replays=2)
    (letter,) = ENVELOPES.dead_letter(found, InvalidMessage("no"))
    (deferral,) = ENVELOPES.deferral(task(found), NOW + 10)
    for message in (letter, deferral):
        told = dict(message.headers)
        assert told["trace"] == b"t"
        assert told["etl-origin"] == b"jobs-3-14"
        assert not told.keys() & {"etl-marker", "etl-published", "etl-bundle", "etl-attempts", "etl-orphans"}
