"""Names of topics, creation of missing ones, warnings about existing ones. A small fake is the broker's side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import structlog.testing

import pretend
from etl.broker import NotAllowed, TopicFacts
from etl.errors import SettingsError
from etl.topics import companions
from etl.topics.names import Topics

pytestmark = pytest.mark.unit


class FakeAdmin:
    """Topics in a dictionary."""

    def __init__(self, **there: TopicFacts) -> None:
        self.there = {name.replace("_", "-"): facts for name, facts in there.items()}
        self.created: dict[str, tuple[int, dict[str, str]]] = {}
        self.offsets_minutes: float | None = None

    def offsets_retention_minutes(self) -> float | None:
        return self.offsets_minutes

    def describe(self, names: Sequence[str]) -> dict[str, TopicFacts]:
        return {name: self.there[name] for name in names if name in self.there}

    def create(self, name: str, partitions: int, settings: Mapping[str, str]) -> bool:
        if name.startswith("forbidden"):
            raise NotAllowed(f"topic {name} does not exist and may not be created")
        self.created[name] = (partitions, dict(settings))
        self.there[name] = TopicFacts(partitions, int(settings.get("max.message.bytes", 1_048_588)), dict(settings))
        return True


def ensure(admin: FakeAdmin, topic: str = "jobs", **values: Any) -> tuple[companions.TopicLimits, list[dict[str, Any]]]:
    configured = pretend.settings(**values)
    with structlog.testing.capture_logs() as said:
        blocks = companions.ensure(Topics.of(topic, configured), configured, admin)  # type: ignore[arg-type]
    return blocks, [dict(event) for event in said if event["log_level"] == "warning"]


def test_names_are_derived_by_suffix_unless_set() -> None:
    """RESULT_TOPIC and FAIL_TOPIC split successes and failures."""
    plain = Topics.of("jobs", pretend.settings())
    assert plain == Topics("jobs", "jobs-results", "jobs-results", "jobs-retry", "jobs-dlq")
    split = Topics.of("jobs", pretend.settings(result_topic="good", fail_topic="bad", dlq_topic_suffix=".dead"))
    assert (split.results, split.failed, split.dlq) == ("good", "bad", "jobs.dead")


def test_missing_topics_are_created_with_their_settings() -> None:
    """Deferrals and dead letters never expire, and may be larger than messages of the source topic."""
    admin = FakeAdmin()
    blocks, warnings = ensure(admin, num_partitions=6)
    assert {name: made[0] for name, made in admin.created.items()} == {
        "jobs": 6,
        "jobs-results": 6,
        "jobs-retry": 16,
        "jobs-dlq": 6,
    }
    kept = {"retention.ms": "-1", "retention.bytes": "-1", "max.message.bytes": str(companions.OUTCOME_MAX_BYTES)}
    kept |= {"message.timestamp.type": "LogAppendTime"}
    assert admin.created["jobs-dlq"][1] == kept
    assert {made["message.timestamp.type"] for _count, made in admin.created.values()} == {"LogAppendTime"}
    assert admin.created["jobs-retry"][1] == kept | {"segment.bytes": str(companions.RETRY_SEGMENT_BYTES)}
    assert blocks == 4
    assert warnings == []


def test_a_second_start_creates_nothing() -> None:
    """Idempotent."""
    admin = FakeAdmin()
    ensure(admin)
    admin.created.clear()
    ensure(admin)
    assert admin.created == {}


def test_a_retry_topic_with_too_few_partitions_is_refused_with_the_command_that_adds_them() -> None:
    """With less than one partition for each tier, jobs of ten seconds would stand behind jobs of an hour."""
    admin = FakeAdmin(jobs_retry=TopicFacts(3, 4 << 20, {}))
    with pytest.raises(SettingsError, match=r"jobs-retry has 3 partitions and needs at least 4.*--partitions 16"):
        ensure(admin)


def test_unsuitable_topics_are_logged_by_name() -> None:
    """Fewer partitions than consumers, smaller messages than the source, shorter retention than the patience."""
    admin = FakeAdmin(
        jobs=TopicFacts(1, 2 << 20, {}),
        jobs_dlq=TopicFacts(1, 1 << 20, {}),
        jobs_retry=TopicFacts(4, 4 << 20, {"retention.ms": str(3600_000)}),
    )
    _blocks, warnings = ensure(admin, consumer_count=2)
    assert [(warning["topic"], warning["setting"]) for warning in warnings] == [
        ("jobs", "partitions"),
        ("jobs-dlq", "max.message.bytes"),
        ("jobs-retry", "retention.ms"),
    ]
    assert warnings[1]["value"] == str(1 << 20)
    assert warnings[2]["value"] == "1 hours"


def test_a_missing_right_to_create_is_one_error() -> None:
    """It names the topic."""
    with pytest.raises(NotAllowed, match="topic forbidden does not exist"):
        ensure(FakeAdmin(), "forbidden")
