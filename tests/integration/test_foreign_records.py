"""Records as other clients may write them, and as this one cannot read them."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.errors import CorruptRecordError

from etl import broker as seam
from etl.broker import GroupConsumer
from etl.models.wire import Partition
from stack import wait_until
from workbench import Desk, folder, job

pytestmark = pytest.mark.integration


class NoText(str):
    """A header's name that goes out as bytes which are no UTF-8."""

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


def test_a_header_whose_name_is_no_text_blocks_nothing(desk: Desk, tmp_path: Path) -> None:
    """The job is done, and what comes after it in the partition; by a process that still can be stopped."""
    settings = desk.settings(folder("A", tmp_path / "a"), folder("B", tmp_path / "b"))
    (tmp_path / "a" / "one").write_bytes(b"1")
    with KafkaProducer(bootstrap_servers=desk.bootstrap_servers) as producer:
        for number, headers in enumerate(([(NoText(), b"v"), ("plain", b"w")], [])):
            message = job("A:/one", f"B:/{number}", str(number))
            producer.send(desk.topic, json.dumps(message).encode(), headers=headers, partition=0)
        producer.flush()
    with desk.consuming(settings):
        assert [desk.outcome(name)["status"] for name in ("0", "1")] == ["SUCCESS", "SUCCESS"]


@pytest.mark.parametrize("paused", [False, True])
def test_a_record_that_cannot_be_read_leaves_the_other_partitions_alone(
    paused: bool, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polling goes on and returns, though the library does not by itself; also when its partition rests in between."""
    read = seam.records._Records._read_msg

    def read_all_but_one(self: Any, *args: Any) -> Any:
        record = read(self, *args)
        if record.value == b"corrupt":
            raise CorruptRecordError("a test's")
        return record

    monkeypatch.setattr(seam.records._Records, "_read_msg", read_all_but_one)
    with KafkaProducer(bootstrap_servers=desk.bootstrap_servers, linger_ms=200) as producer:
        for value in (b"one", b"corrupt") if paused else (b"corrupt",):
            producer.send(desk.topic, value, partition=0)
        producer.flush()
    group = GroupConsumer(desk.bootstrap_servers, desk.group, [desk.topic], on_revoked=lambda _: None)
    try:
        wait_until(lambda: group.poll(0.05) or len(group.new_partitions()) == 2, 20, "assignment")
        for partition in group.new_partitions():
            wait_until(lambda one=partition: group.take_over(one, lambda _: None) or group.poll(0.05), 20, "taken over")
            group.resume([partition])
        if paused:  # as when the window is full just then
            bad = Partition(desk.topic, 0)
            wait_until(lambda: group.poll(0.05), 10, "what stands before it")
            group.pause([bad])
            group.poll(0.05)
            group.resume([bad])
        end = time.monotonic() + 2
        while time.monotonic() < end:
            group.poll(0.05)
        with KafkaProducer(bootstrap_servers=desk.bootstrap_servers) as producer:
            producer.send(desk.topic, b"well", partition=1)
            producer.flush()
        wait_until(lambda: any(record.value == b"well" for record in group.poll(0.05)), 10, "the other partition")
    finally:
        group.close()


@pytest.mark.parametrize("codec", ["snappy", "zstd"])
def test_a_batch_that_unpacks_to_too_much_blocks_nothing(codec: str, desk: Desk, tmp_path: Path) -> None:
    """Its record is a dead letter without its bytes; the job behind it is done."""
    settings = desk.settings(folder("A", tmp_path / "a"), folder("B", tmp_path / "b"))
    (tmp_path / "a" / "one").write_bytes(b"1")
    bomb_bytes = 20 << 20  # by Snappy that is 1 MB, all that the broker takes
    with KafkaProducer(
        bootstrap_servers=desk.bootstrap_servers,
        compression_type=codec,
        max_request_size=1 << 30,
        batch_size=1 << 30,
    ) as producer:
        producer.send(desk.topic, b" " * bomb_bytes, partition=0).get(20)
    desk.send(job("A:/one", "B:/one", "behind"))
    with desk.consuming(settings):
        assert desk.outcome("behind")["status"] == "SUCCESS"
        desk.wait(desk.letters, what="dead letter")
    (letter,) = desk.letters()
    assert (letter.original_offset, letter.truncated, letter.error_code) == (0, True, "INVALID_MESSAGE")
    assert "unpacks to more than" in letter.error


def test_a_job_id_that_no_topic_takes_stops_no_process(desk: Desk, tmp_path: Path) -> None:
    """It would go three times into the result; it is not believed."""
    settings = desk.settings(folder("A", tmp_path / "a"), folder("B", tmp_path / "b"))
    (tmp_path / "a" / "one").write_bytes(b"1")
    desk.send(b"no job", headers=[("etl-job-id", b"k" * 900_000)])
    desk.send(job("A:/one", "B:/one", "behind"))
    with desk.consuming(settings):
        assert desk.outcome("behind")["status"] == "SUCCESS"
        assert desk.outcome(f"{desk.topic}-0-0")["error_code"] == "INVALID_MESSAGE"
        desk.wait(desk.letters, what="dead letter")
    assert [letter.job_id for letter in desk.letters()] == [f"{desk.topic}-0-0"]


@pytest.mark.parametrize("group", ["own", "another"])
def test_a_number_beyond_floats_in_a_forged_header_stops_no_process(group: str, desk: Desk, tmp_path: Path) -> None:
    """Whosever the record says it is."""
    settings = desk.settings(folder("A", tmp_path / "a"), folder("B", tmp_path / "b"))
    (tmp_path / "a" / "one").write_bytes(b"1")
    named = desk.group if group == "own" else group
    headers = [("etl-group", named.encode()), ("etl-published", b'{"mtime":1' + b"0" * 400 + b"}")]
    desk.send(job("A:/one", "B:/forged", "forged"), topic=desk.retry, headers=headers)
    desk.send(job("A:/one", "B:/one", "good"))
    with desk.consuming(settings):
        assert desk.outcome("good")["status"] == "SUCCESS"
        if group == "another":
            desk.wait(lambda: desk.committed().get((desk.retry, 0)) == 1, what="its record is passed over")


def test_jobs_with_crowds_of_headers_are_dead_letters_and_take_no_memory(desk: Desk, tmp_path: Path) -> None:
    """Their messages are kept, and the job behind them is done."""
    settings = desk.settings(folder("A", tmp_path / "a"), folder("B", tmp_path / "b"))
    (tmp_path / "a" / "one").write_bytes(b"1")
    crowded = [job("A:/one", f"B:/{number}", str(number)) for number in range(5)]
    desk.send(*crowded, headers=[("", b"")] * 100_000)
    desk.send(job("A:/one", "B:/one", "behind"))
    tracemalloc.start()
    try:
        with desk.consuming(settings):
            assert desk.outcome("behind")["status"] == "SUCCESS"
            desk.wait(lambda: len(desk.letters()) == len(crowded), what="dead letters")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 40 << 20  # the headers of one of them alone would take 10 MB
    assert [json.loads(letter.original_bytes() or b"") for letter in desk.letters()] == crowded


def test_many_batches_that_unpack_to_much_are_not_in_memory_at_once(desk: Desk, tmp_path: Path) -> None:
    """Each within the limit: one poll gives out a few megabytes of records, whatever a fetch unpacks to."""
    settings = desk.settings(folder("A", tmp_path / "a"), folder("B", tmp_path / "b"))
    (tmp_path / "a" / "one").write_bytes(b"1")
    with KafkaProducer(
        bootstrap_servers=desk.bootstrap_servers, compression_type="zstd", max_request_size=1 << 30, batch_size=1 << 30
    ) as producer:
        for _ in range(30):
            producer.send(desk.topic, b" " * (12 << 20), partition=0).get(20)
    desk.send(job("A:/one", "B:/one", "behind"))
    tracemalloc.start()
    try:
        with desk.consuming(settings):
            assert desk.outcome("behind", 60)["status"] == "SUCCESS"
            desk.wait(lambda: len(desk.letters()) == 30, what="dead letters")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 160 << 20  # together they take 360 MB
    assert all(letter.truncated for letter in desk.letters())
