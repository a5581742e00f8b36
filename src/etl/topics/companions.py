"""The topics that belong to a source topic: their names, and making them on start."""

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
RETRY_SEGMENT_BYTES = 64 * 1024 * 1024  # what is trimmed goes from the disk in pieces of so much
# A dead letter holds its original, perhaps in base64, and what is said about it.
OUTCOME_MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Topics:
    """Names of the topics of one source topic; `failed` is where failed results go, `results` unless set apart."""

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


def ensure(topics: Topics, settings: Settings, admin: Admin) -> int:
    """Create the topics that are missing, idempotently; warn of existing ones that fit badly.

    Returns how many partitions `T-retry` has for each length of wait (blocks, see `retry.tiers`).

    Raises SettingsError naming the topic when T-retry has too few partitions to tell its tiers apart;
    BrokerUnavailable when the broker does not answer or forbids it.
    """
    wanted = _wanted(topics, settings)
    found = admin.describe(list(wanted))
    for name in wanted:
        if name not in found:
            partitions, config = wanted[name]
            if admin.create(name, partitions, config):
                log.info("topic created", topic=name, partitions=partitions)
    found = admin.describe(list(wanted))
    _warn(topics, settings, found)
    retry = found[topics.retry]
    if retry.partitions < len(tiers.TIERS):
        raise SettingsError(
            f"topic {topics.retry} has {retry.partitions} partitions and needs at least {len(tiers.TIERS)}, one for "
            f"each length of wait: kafka-topics.sh --alter --topic {topics.retry} --partitions {tiers.PARTITIONS}"
        )
    return retry.partitions // len(tiers.TIERS)


def _wanted(topics: Topics, settings: Settings) -> dict[str, tuple[int, dict[str, str]]]:
    """Return the topics with (partitions, settings): what waits or failed is never lost by time or size."""
    large = {"max.message.bytes": str(OUTCOME_MAX_BYTES)}
    keep = {"retention.ms": "-1", "retention.bytes": "-1", **large}
    week = {"retention.ms": str(7 * DAY_MS), **large}
    count = settings.num_partitions
    return {
        topics.source: (count, {"retention.ms": str(30 * DAY_MS)}),
        topics.results: (count, week),
        topics.failed: (count, week),
        topics.retry: (tiers.PARTITIONS, keep | {"segment.bytes": str(RETRY_SEGMENT_BYTES)}),
        topics.dlq: (count, keep),
    }


def _warn(topics: Topics, settings: Settings, found: dict[str, TopicFacts]) -> None:
    source = found[topics.source]
    if source.partitions < settings.consumer_count:
        log.warning(
            "topic has fewer partitions than consumers: the rest will be idle",
            topic=topics.source,
            partitions=source.partitions,
            consumers=settings.consumer_count,
        )
    for name in (topics.dlq, topics.retry):
        if found[name].max_message_bytes < source.max_message_bytes + 64 * 1024:
            log.warning(
                "topic takes smaller messages than its source: large outcomes will be shortened",
                topic=name,
                max_message_bytes=found[name].max_message_bytes,
                source_max_message_bytes=source.max_message_bytes,
            )
    patience_ms = settings.outage_patience_hours * 3600 * 1000
    retention_ms = float(found[topics.retry].settings.get("retention.ms", "-1"))
    if 0 <= retention_ms < patience_ms:
        log.warning(
            "topic keeps waiting jobs for less time than the outage patience: they would be lost",
            topic=topics.retry,
            retention_hours=retention_ms / 3_600_000,
            patience_hours=settings.outage_patience_hours,
        )
