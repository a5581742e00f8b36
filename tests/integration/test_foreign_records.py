"""Records as other clients may write them, and as this one cannot read them."""

from __future__ import annotations

import json
import time
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
