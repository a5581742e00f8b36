"""The topics that belong to a source topic, and those of the whole installation: how they are created and looked at."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import structlog

from etl.errors import SettingsError
from etl.retry import tiers
from etl.topics.settings import DAY_MS, Problem, find_problems

if TYPE_CHECKING:
    from collections.abc import Iterable

    from etl.broker import Admin
    from etl.config import Settings
    from etl.topics.names import Topics

log = structlog.get_logger(__name__)

RETRY_SEGMENT_BYTES = 64 * 1024 * 1024  # trimming frees disk space in whole segments
# By the broker's clock, not by what a producer says: waits in T-retry are counted from these times, a job with an old
# one would be deleted unread, and an outcome with one of the future would be refused.
TIMES = {"message.timestamp.type": "LogAppendTime"}
# A dead letter holds the original message, perhaps in base64, and its history.
OUTCOME_MAX_BYTES = 4 * 1024 * 1024


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
    """Create missing topics; log what is doubtful in the settings of existing ones. Idempotent.

    Returns how many blocks of partitions `T-retry` has (`retry.tiers`).

    Raises:
        SettingsError: a topic has settings with which jobs would be lost. The message names both.
        BrokerUnavailable: the broker does not answer or denies access.
    """
    for name, partitions in create_missing(topics, settings, admin).items():
        log.info("topic created", topic=name, partitions=partitions)
    found = admin.describe(list(_define(topics, settings)))
    problems = find_problems(topics, settings, found, admin.offsets_retention_minutes())
    if problems and problems[0].is_fatal:
        raise SettingsError(str(problems[0]))
    tell(problems)
    retry = found[topics.retry]
    if retry.partitions < len(tiers.TIERS):
        raise SettingsError(
            f"topic {topics.retry} has {retry.partitions} partitions and needs at least {len(tiers.TIERS)}, one for "
            f"each length of wait: kafka-topics.sh --alter --topic {topics.retry} --partitions {tiers.PARTITIONS}"
        )
    return retry.partitions // len(tiers.TIERS)


def create_missing(topics: Topics, settings: Settings, admin: Admin) -> dict[str, int]:
    """Create the topics that are missing; return how many partitions each of them has. Raises BrokerUnavailable."""
    definitions = _define(topics, settings)
    missing = definitions.keys() - admin.describe(list(definitions)).keys()
    return {name: definitions[name][0] for name in sorted(missing) if admin.create(name, *definitions[name])}


def look(topics: Topics, settings: Settings, admin: Admin) -> list[Problem]:
    """Return what is doubtful in the topics now; nothing of a topic that is missing. Raises BrokerUnavailable."""
    names = list(_define(topics, settings))
    found = admin.describe(names)
    return find_problems(topics, settings, found, admin.offsets_retention_minutes()) if len(found) == len(names) else []


def tell(problems: Iterable[Problem]) -> None:
    """Log doubtful settings: ERROR where jobs are certain to be lost, else WARNING."""
    for problem in problems:
        level = logging.ERROR if problem.is_fatal else logging.WARNING
        log.log(
            level,
            "doubtful topic setting",
            topic=problem.topic,
            setting=problem.setting,
            value=problem.value,
            why=problem.why,
        )


def _define(topics: Topics, settings: Settings) -> dict[str, tuple[int, dict[str, str]]]:
    """Return the number of partitions and the settings of each topic. Deferrals and dead letters never expire."""
    large = {"max.message.bytes": str(OUTCOME_MAX_BYTES)} | TIMES
    keep = {"retention.ms": "-1", "retention.bytes": "-1", **large}
    week = {"retention.ms": str(7 * DAY_MS), **large}
    count = settings.num_partitions
    return {
        topics.source: (count, {"retention.ms": str(30 * DAY_MS)} | TIMES),
        topics.results: (count, week),
        topics.failed: (count, week),
        topics.retry: (tiers.PARTITIONS, keep | {"segment.bytes": str(RETRY_SEGMENT_BYTES)}),
        topics.dlq: (count, keep),
    }
