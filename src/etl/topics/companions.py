"""The topics beside a source topic, and those of the whole installation: names and settings.

They are created at the start where they are missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import structlog

from etl.errors import SettingsError
from etl.retry import tiers

if TYPE_CHECKING:
    from etl.broker import Admin, TopicFacts
    from etl.config import Settings

log = structlog.get_logger(__name__)

DAY_MS = 24 * 3600 * 1000
RETRY_SEGMENT_BYTES = 64 * 1024 * 1024  # trimming frees disk space in whole segments
# What T-retry's records wait for is counted from their times: by the broker's clock, not by what a producer says.
RETRY_TIMES = {"message.timestamp.type": "LogAppendTime"}
# A dead letter holds the original message, perhaps in base64, and its history.
OUTCOME_MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Topics:
    """The names of a source topic and its companions. `failed`, for failed results, equals `results` unless set."""

    source: str
    results: str
    failed: str
    retry: str
    dlq: str

    @classmethod
    def of(cls, topic: str, settings: Settings) -> Self:
        """Derive the names from the settings."""
        results = settings.result_topic or topic + settings.result_topic_suffix
        return cls(
            source=topic,
            results=results,
            failed=settings.fail_topic or results,
            retry=topic + settings.retry_topic_suffix,
            dlq=topic + settings.dlq_topic_suffix,
        )


@dataclass(frozen=True)
class SystemTopics:
    """The names of the topics that all consumers, groups and commands of an installation share."""

    status: str  # what each process says of itself; compacted
    control: str  # what operators tell the consumers; compacted
    audit: str  # every act of an operator
    marks: str  # what the API is at: its operations, the requests that it has answered; compacted

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Derive the names from the settings."""
        return cls(*(f"{settings.system_topic_prefix}{name}" for name in ("status", "control", "audit", "marks")))


# The active segment is never compacted, and a reader starts at the beginning: segments must be small, and close soon.
# Records of processes that are gone for good go after a week.
STATUS_SETTINGS = {
    "cleanup.policy": "compact,delete",
    "retention.ms": str(7 * DAY_MS),
    "segment.bytes": str(16 * 1024 * 1024),
    "segment.ms": str(10 * 60 * 1000),
    "min.cleanable.dirty.ratio": "0.1",
    "max.compaction.lag.ms": str(10 * 60 * 1000),
    "delete.retention.ms": str(3600 * 1000),
    "message.timestamp.type": "LogAppendTime",
    "compression.type": "lz4",
}


CONTROL_SETTINGS = {
    "cleanup.policy": "compact",
    "segment.bytes": str(16 * 1024 * 1024),
    "segment.ms": str(3600 * 1000),
    "min.cleanable.dirty.ratio": "0.1",
    "message.timestamp.type": "LogAppendTime",
}
MARKS_SETTINGS = {
    **CONTROL_SETTINGS,
    "max.message.bytes": str(OUTCOME_MAX_BYTES),
}  # a set of an operation is one record
AUDIT_SETTINGS = {"retention.ms": str(365 * DAY_MS), "retention.bytes": "-1"}


def ensure_system(topics: SystemTopics, admin: Admin) -> None:
    """Create the system's topics that are missing. Idempotent. Raises NotAllowed, BrokerUnavailable."""
    definitions = {
        topics.status: STATUS_SETTINGS,
        topics.control: CONTROL_SETTINGS,
        topics.audit: AUDIT_SETTINGS,
        topics.marks: MARKS_SETTINGS,
    }
    found = admin.describe(list(definitions))
    for name, config in definitions.items():
        if name not in found and admin.create(name, 1, config):
            log.info("topic created", topic=name, partitions=1)


def ensure(topics: Topics, settings: Settings, admin: Admin) -> int:
    """Create missing topics; log a warning for existing ones with unsuitable settings. Idempotent.

    Returns how many blocks of partitions `T-retry` has (`retry.tiers`).

    Raises:
        SettingsError: T-retry has fewer partitions than there are tiers. The message names the topic.
        BrokerUnavailable: the broker does not answer or denies access.
    """
    definitions = _define(topics, settings)
    found = admin.describe(list(definitions))
    for name in definitions:
        if name not in found:
            partitions, config = definitions[name]
            if admin.create(name, partitions, config):
                log.info("topic created", topic=name, partitions=partitions)
    found = admin.describe(list(definitions))
    _warn(topics, settings, found)
    retry = found[topics.retry]
    if retry.partitions < len(tiers.TIERS):
        raise SettingsError(
            f"topic {topics.retry} has {retry.partitions} partitions and needs at least {len(tiers.TIERS)}, one for "
            f"each length of wait: kafka-topics.sh --alter --topic {topics.retry} --partitions {tiers.PARTITIONS}"
        )
    return retry.partitions // len(tiers.TIERS)


def _define(topics: Topics, settings: Settings) -> dict[str, tuple[int, dict[str, str]]]:
    """Return the number of partitions and the settings of each topic. Deferrals and dead letters never expire."""
    large = {"max.message.bytes": str(OUTCOME_MAX_BYTES)}
    keep = {"retention.ms": "-1", "retention.bytes": "-1", **large}
    week = {"retention.ms": str(7 * DAY_MS), **large}
    count = settings.num_partitions
    return {
        topics.source: (count, {"retention.ms": str(30 * DAY_MS)}),
        topics.results: (count, week),
        topics.failed: (count, week),
        topics.retry: (tiers.PARTITIONS, keep | RETRY_TIMES | {"segment.bytes": str(RETRY_SEGMENT_BYTES)}),
        topics.dlq: (count, keep),
    }


def _warn(topics: Topics, settings: Settings, found: dict[str, TopicFacts]) -> None:
    source = found[topics.source]
    if source.partitions < settings.consumer_count:
        log.warning(
            "topic has fewer partitions than consumers: some consumers will be idle",
            topic=topics.source,
            partitions=source.partitions,
            consumers=settings.consumer_count,
        )
    for name in (topics.dlq, topics.retry):
        if found[name].max_message_bytes < source.max_message_bytes + 64 * 1024:
            log.warning(
                "topic allows smaller messages than its source: large outcomes will be shortened",
                topic=name,
                max_message_bytes=found[name].max_message_bytes,
                source_max_message_bytes=source.max_message_bytes,
            )
    patience_ms = settings.outage_patience_hours * 3600 * 1000
    retention_ms = float(found[topics.retry].settings.get("retention.ms", "-1"))
    if 0 <= retention_ms < patience_ms:
        log.warning(
            "topic keeps deferred jobs for less time than the outage patience: they could be lost",
            topic=topics.retry,
            retention_hours=retention_ms / 3_600_000,
            patience_hours=settings.outage_patience_hours,
        )
