"""Topics on a real broker: made once by however many at once, described, refused and warned of."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog.testing

import stack
import workbench
from etl.broker import Admin
from etl.config import ConfigLoader
from etl.errors import SettingsError
from etl.topics import companions
from etl.topics.names import Topics
from workbench import Command, Desk, job

pytestmark = pytest.mark.integration


def ensure(broker: stack.Broker, topic: str, **environment: str) -> companions.TopicLimits:
    settings = ConfigLoader(environ={"ETL_TOPIC": topic, **environment}).settings
    return companions.ensure(Topics.of(topic, settings), settings, Admin(broker.bootstrap_servers))


def test_several_at_once_make_each_topic_once(broker: stack.Broker, topic: str) -> None:
    """Whoever comes second finds what the first made."""
    with ThreadPoolExecutor(5) as threads:
        found = list(threads.map(lambda _: ensure(broker, topic, ETL_NUM_PARTITIONS="3"), range(5)))
    assert all(blocks == found[0] for blocks in found)
    made = Admin(broker.bootstrap_servers).describe(
        [topic, *(f"{topic}-{what}" for what in ("results", "retry", "dlq"))]
    )
    assert {name.removeprefix(topic): facts.partitions for name, facts in made.items()} == {
        "": 3,
        "-results": 3,
        "-retry": 16,
        "-dlq": 3,
    }
    dlq = made[f"{topic}-dlq"]
    assert (dlq.settings["retention.ms"], dlq.max_message_bytes) == ("-1", companions.OUTCOME_MAX_BYTES)
    assert found[0] == 4


def test_processes_that_start_at_once_share_the_work(broker: stack.Broker, topic: str, tmp_path: Path) -> None:
    """Three consumers before any topic is there: no error, and a job is done."""
    (tmp_path / "a").write_bytes(b"x")
    environment = workbench.folder("HERE", tmp_path) | {"ETL_LOG_FORMAT": "json", "ETL_NUM_PARTITIONS": "3"}
    with contextlib.ExitStack() as stop:
        arguments = (topic, f"group-{topic}", broker.bootstrap_servers)
        commands = [stop.enter_context(Command(tmp_path, *arguments, environment=environment)) for _ in range(3)]
        admin = Admin(broker.bootstrap_servers)
        stack.wait_until(lambda: len(admin.describe([topic, f"{topic}-dlq"])) == 2, 30, "topics")
        stack.wait_until(lambda: all(one.events("consumer started") for one in commands), 30, "start")
        with workbench.Writing(broker.bootstrap_servers) as writing:
            writing.send(topic, job("HERE:/a", "HERE:/b"))
        stack.wait_until((tmp_path / "b").exists, 30, "the file")
        assert len({event["worker"] for one in commands for event in one.events("consumer started")}) == 3
        assert [one.stop() for one in commands] == [0, 0, 0]
        lines = [line for one in commands for line in one.events()]
        own = [line for line in lines if not str(line.get("logger", "")).startswith("kafka.")]
        assert [line for line in own if line["level"] in {"error", "critical"}] == []


def test_a_retry_topic_with_too_few_partitions_is_refused(broker: stack.Broker, topic: str) -> None:
    """The message names it, and the command that helps."""
    Admin(broker.bootstrap_servers).create(f"{topic}-retry", 2, {})
    with pytest.raises(SettingsError, match=rf"{topic}-retry has 2 partitions and needs at least 4"):
        ensure(broker, topic)


def test_existing_topics_are_taken_as_they_are(
    make_desk: Callable[..., Desk], topic: str, broker: stack.Broker
) -> None:
    """Accepted, with a warning that names what fits badly."""
    make_desk(partitions=1, configs={f"{topic}-dlq": {"max.message.bytes": "5000"}})
    with structlog.testing.capture_logs() as said:
        ensure(broker, topic, ETL_CONSUMER_COUNT="2")
    kept = Admin(broker.bootstrap_servers).describe([f"{topic}-dlq"])
    assert kept[f"{topic}-dlq"].max_message_bytes == 5000
    warned = {event["topic"] for event in said if event["log_level"] == "warning"}
    assert warned == {topic, f"{topic}-dlq", f"{topic}-retry", f"{topic}-results"}


def test_the_broker_may_come_later(new_broker: Callable[..., stack.Broker], topic: str, tmp_path: Path) -> None:
    """A consumer that was started first waits for it, and says so once; a stop meanwhile ends it."""
    broker = new_broker()
    broker.stop()
    (tmp_path / "a").write_bytes(b"x")
    environment = workbench.folder("HERE", tmp_path) | {"ETL_LOG_FORMAT": "json"}
    with Command(tmp_path, topic, "group", broker.bootstrap_servers, environment=environment) as command:
        stack.wait_until(lambda: command.events("waiting for the broker"), 20, "its word")
        broker.start()
        stack.wait_until(lambda: command.events("consumer started"), 30, "start")
        assert command.stop() == 0
    broker.kill()
    with Command(tmp_path, topic, "group", broker.bootstrap_servers, environment=environment) as command:
        stack.wait_until(lambda: command.events("waiting for the broker"), 20, "its word")
        started = time.monotonic()
        assert command.stop() == 0
        assert time.monotonic() - started < 12
