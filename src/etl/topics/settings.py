"""What is doubtful in the settings of topics and brokers: each that can lose a job, hide one or hold one up.

Pure: asks nobody and logs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from etl.broker import TopicFacts
    from etl.config import Settings
    from etl.topics.names import Topics

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
UNLIMITED_DAYS = 30.0  # for which offsets must be remembered where jobs are kept for ever
ENVELOPE_BYTES = 64 * 1024  # that a letter adds to its message


class Problem(NamedTuple):
    """One doubtful setting. `is_fatal`: with it, jobs are certain to be lost, or cannot be read at all."""

    topic: str
    setting: str
    value: str
    why: str
    is_fatal: bool = False

    def __str__(self) -> str:
        return f"topic {self.topic}: {self.setting} is {self.value}: {self.why}"


def find_problems(
    topics: Topics, settings: Settings, found: Mapping[str, TopicFacts], offsets_minutes: float | None
) -> list[Problem]:
    """Return what is doubtful in these topics, the gravest first.

    `offsets_minutes`: for how long the brokers remember the offsets of a group without members; None if unknown.
    """
    problems: list[Problem] = []
    for name, facts in found.items():
        problems += _of_any(topics, name, facts)
    problems += _of_source(topics, settings, found[topics.source], offsets_minutes)
    problems += _of_outcomes(topics, settings, found)
    return sorted(problems, key=lambda problem: not problem.is_fatal)


def _of_any(topics: Topics, name: str, facts: TopicFacts) -> Iterator[Problem]:
    policy = facts.settings.get("cleanup.policy", "delete")
    if "compact" in policy:
        holds_jobs = name in {topics.source, topics.retry}
        lost = "jobs" if holds_jobs else "dead letters" if name == topics.dlq else "results"
        alter = f"kafka-configs.sh --alter --topic {name} --add-config cleanup.policy=delete"
        why = f"of several {lost} with one key only the last is kept; set it back: {alter}"
        yield Problem(name, "cleanup.policy", policy, why, is_fatal=holds_jobs)
    replicas, least = facts.replicas, int(facts.settings.get("min.insync.replicas", "1"))
    if least > replicas:
        yield Problem(name, "min.insync.replicas", str(least), f"there are {replicas} replicas: nothing can be written")
    elif least == replicas > 1:
        why = f"there are {replicas} replicas: nothing can be written while one of them is away"
        yield Problem(name, "min.insync.replicas", str(least), why)
    if facts.settings.get("message.timestamp.type", "LogAppendTime") != "LogAppendTime" and name != topics.source:
        yield Problem(
            name,
            "message.timestamp.type",
            "CreateTime",
            "messages of a process whose clock is wrong may be refused, or deleted too early",
        )


def _of_source(
    topics: Topics, settings: Settings, source: TopicFacts, offsets_minutes: float | None
) -> Iterator[Problem]:
    name = topics.source
    retention_ms = float(source.settings.get("retention.ms", "-1"))
    if retention_ms >= 0 and source.settings.get("message.timestamp.type", "LogAppendTime") == "CreateTime":
        why = f"a job that its producer dates {_days(retention_ms)} back or more is deleted before it is read"
        yield Problem(name, "message.timestamp.type", "CreateTime", why)
    patience_ms = settings.outage_patience_hours * HOUR_MS
    if 0 <= retention_ms < patience_ms:
        why = f"jobs could be deleted before ETL_OUTAGE_PATIENCE_HOURS ({_days(patience_ms)}) have passed"
        yield Problem(name, "retention.ms", _days(retention_ms), why)
    if float(source.settings.get("retention.bytes", "-1")) >= 0:
        why = "a backlog that is larger loses its oldest jobs"
        yield Problem(name, "retention.bytes", source.settings["retention.bytes"], why)
    kept_ms = retention_ms if retention_ms >= 0 else UNLIMITED_DAYS * DAY_MS
    if offsets_minutes is not None and offsets_minutes * 60_000 < kept_ms:
        kept = _days(retention_ms) if retention_ms >= 0 else "for ever"
        why = f"a group that stands still for longer forgets what is done, while the jobs are kept {kept}"
        yield Problem(name, "offsets.retention.minutes", f"{offsets_minutes:g} ({_days(offsets_minutes * 6e4)})", why)
    if source.partitions < settings.consumer_count:
        why = f"some of the {settings.consumer_count} consumers will be idle"
        yield Problem(name, "partitions", str(source.partitions), why)


def _of_outcomes(topics: Topics, settings: Settings, found: Mapping[str, TopicFacts]) -> Iterator[Problem]:
    source = found[topics.source]
    for name in (topics.dlq, topics.retry):
        largest = found[name].max_message_bytes
        if largest < source.max_message_bytes + ENVELOPE_BYTES:
            why = f"{topics.source} allows {source.max_message_bytes}: large outcomes will be shortened"
            yield Problem(name, "max.message.bytes", str(largest), why)
        if float(found[name].settings.get("retention.bytes", "-1")) >= 0:
            why = f"{'dead letters' if name == topics.dlq else 'deferred jobs'} beyond that are lost"
            yield Problem(name, "retention.bytes", found[name].settings["retention.bytes"], why)
    patience_ms = settings.outage_patience_hours * HOUR_MS
    retention_ms = float(found[topics.retry].settings.get("retention.ms", "-1"))
    if 0 <= retention_ms < patience_ms:
        why = f"deferred jobs could be lost before ETL_OUTAGE_PATIENCE_HOURS ({_days(patience_ms)}) have passed"
        yield Problem(topics.retry, "retention.ms", _days(retention_ms), why)
    retention_ms = float(found[topics.dlq].settings.get("retention.ms", "-1"))
    if retention_ms >= 0:
        yield Problem(topics.dlq, "retention.ms", _days(retention_ms), "older dead letters are deleted")


def _days(milliseconds: float) -> str:
    hours = milliseconds / HOUR_MS
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} hours"
