"""Records as anybody may write them, from admission to the messages of their outcomes: none meets a bug."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import FileMissing
from etl.models import header
from etl.models.letter import DLQMessage
from etl.models.message import TransferResult
from etl.models.task import Record
from etl.models.wire import Message, Partition
from etl.outcomes import messages
from scene import JOB, NOW, P0, Scene, fail_with, succeed

pytestmark = pytest.mark.unit

texts = st.text(max_size=9) | st.sampled_from(
    ["", "A", "B", "/in/a", "..", "\0", "\ud800", "a" * 5000, "2027-01-01T00:00:00Z"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
ends = st.fixed_dictionaries(
    {}, optional={"hostname": st.sampled_from("AB") | json_values, "path": texts | json_values}
)
options = st.fixed_dictionaries(
    {},
    optional={
        "overwrite": st.sampled_from(["replace", "skip", "fail", "newer"]) | json_values,
        "source_action": st.sampled_from(["keep", "delete", {"move": "/done"}]) | json_values,
        "not_before": st.sampled_from(["2023-11-14T22:13:25Z", "2023-12-14T22:13:25Z", "9999-12-31T23:59:59Z"])
        | json_values,
        "deadline": st.sampled_from(["2023-11-15T22:13:25Z", "0001-01-01T00:00:00Z"]) | json_values,
        "timeout_seconds": st.floats() | st.integers() | json_values,
    },
)
jobs = st.fixed_dictionaries(
    {},
    optional={
        "job_id": texts | json_values,
        "source": st.just(JOB["source"]) | ends | json_values,
        "destination": st.just(JOB["destination"]) | ends | json_values,
        "options": options | json_values,
        "metadata": st.dictionaries(texts, json_values, max_size=3) | json_values,
        "priority": st.sampled_from(["high", "low"]) | json_values,
        "message_version": st.sampled_from(["1", "1.0", "2"]) | json_values,
        "sourc": json_values,
    },
)
sound_jobs = st.builds(lambda options: {**JOB, "options": options}, options)
values = (
    st.none()
    | st.binary(max_size=40)
    | (jobs | sound_jobs | st.just(JOB) | json_values).map(lambda value: json.dumps(value).encode())
)
OURS = [header.JOB_ID, header.GROUP, header.ORIGIN, header.ATTEMPTS, header.NOT_BEFORE, header.REPLAYS, header.MARKER,
        messages.WAITING_SINCE, messages.RECALLABLE, messages.OUTAGES, messages.ORPHANS,
        messages.PUBLISHED]  # fmt: skip
contents = (
    st.binary(max_size=20)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.sampled_from([b"group", b"1", b"A B", b"{}", b"9" * 400, b"2023-11-14T22:13:25Z", b"9999-12-31T23:59:59-14:00",
                       b"jobs-0-1", b'{"mtime":1' + b"0" * 400 + b"}"])
)  # fmt: skip
headers = st.lists(st.tuples(st.sampled_from(OURS) | texts, contents), max_size=6).map(tuple)
places = st.sampled_from([P0, *(Partition("jobs-retry", number) for number in range(4))])
times = st.sampled_from([NOW, NOW - 7200, NOW + 3000, 0.0, -1.0, 9.3e15]) | st.floats(-1e12, 1e12)


@contextlib.contextmanager
def a_scene() -> Iterator[Scene]:
    made = Scene()
    try:
        yield made
    finally:
        made.pools.close()


def _written(told: list[Message]) -> Iterator[Message]:
    """Yield messages and all their short forms."""
    pending = list(told)
    while pending:
        message = pending.pop()
        yield message
        pending += message.shrink() if message.shrink is not None else ()


def _check(message: Message, scene: Scene) -> None:
    if message.topic == scene.topics.dlq:
        assert DLQMessage.from_json(message.value).error_code != "UNKNOWN_ERROR"
    elif message.topic == scene.topics.results:
        result = TransferResult.from_json(message.value)
        assert result.error_code != "UNKNOWN_ERROR", result.error


polled = st.lists(st.tuples(places, st.none() | st.binary(max_size=9), values, headers, times), min_size=1, max_size=3)


def _process(records: list[tuple[Any, ...]], is_up: bool) -> None:
    """Admit records, run what there is to run, commit; check all that is written of it."""
    with a_scene() as scene:
        for offset, (place, key, value, pairs, timestamp) in enumerate(records):
            scene.admission.accept(Record(*place, offset, key, value, pairs, timestamp))
        told: list[Message] = []
        for _ in range(2 * len(records)):  # a published job runs twice
            with contextlib.suppress(IndexError):  # nothing is to run now
                scene.run(succeed if is_up else fail_with(FileMissing("A:/in/a is not there", server="A")))
            batch = scene.commit()
            told += batch.messages if batch is not None else ()
        for message in _written(told):
            _check(message, scene)
        assert scene.reporter.bugs == 0


@settings(deadline=None)
@given(records=polled, is_up=st.booleans())
def test_no_record_meets_a_bug(records: list[tuple[Any, ...]], is_up: bool) -> None:
    """Whatever is in its key, value, headers and time, and however its run ends."""
    _process(records, is_up)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(deadline=None, max_examples=10_000)
@given(records=polled, is_up=st.booleans())
def test_no_record_of_thousands_meets_a_bug(records: list[tuple[Any, ...]], is_up: bool) -> None:
    """The same for minutes."""
    _process(records, is_up)
