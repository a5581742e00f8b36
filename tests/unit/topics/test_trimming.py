"""Trimming of T-retry: only records that every group had read at two checks in a row, if there are enough of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
import structlog.testing

import stack
from etl.broker import NotAllowed
from etl.errors import BrokerUnavailable
from etl.models.wire import Partition
from etl.topics.names import Topics
from etl.topics.trimming import Trimmer

pytestmark = pytest.mark.unit

ONE, OTHER, JOBS = Partition("T-retry", 0), Partition("T-retry", 1), Partition("T", 0)


class Kafka:
    """Stands in for `Admin`: the offsets of groups, and the first offsets of partitions."""

    def __init__(self, groups: Mapping[str, Mapping[Partition, int]]) -> None:
        self.groups = {name: dict(offsets) for name, offsets in groups.items()}
        self.first = {ONE: 0, OTHER: 0}
        self.hidden: set[str] = set()
        self.refuses: Exception | None = None
        self.asked: list[str] = []

    def committed(self, group: str, topics: Collection[str]) -> dict[Partition, int]:
        self.asked.append(group)
        return {p: at for p, at in self.groups[group].items() if p.topic in topics}

    def committed_by_all(self, topics: Collection[str], days: float) -> dict[str, dict[Partition, int]]:
        assert days == 30
        self.asked.append("all")
        if self.refuses is not None:
            raise self.refuses
        found = {group: self.committed(group, topics) for group in self.groups.keys() - self.hidden}
        return {group: offsets for group, offsets in found.items() if offsets}

    def starts(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        return {partition: self.first[partition] for partition in partitions}

    def delete_before(self, offsets: Mapping[Partition, int]) -> None:
        assert all(at > self.first[partition] for partition, at in offsets.items())
        self.first |= offsets


@pytest.fixture(autouse=True)
def _ten_are_worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl.topics.trimming.WORTHWHILE", 10)


def trimmer(kafka: Kafka) -> Trimmer:
    topics = Topics("T", "T-results", "T-results", "T-retry", "T-dlq")
    return Trimmer(topics, "ours", kafka)  # type: ignore[arg-type]


def test_records_read_at_two_checks_are_deleted() -> None:
    """Up to the offsets of the first check; records read between the two are kept until the next."""
    kafka = Kafka({"ours": {JOBS: 9, ONE: 100, OTHER: 7}})
    trimming = trimmer(kafka)
    assert trimming.trim() == 0
    kafka.groups["ours"][ONE] = 150
    assert trimming.trim() == 107
    assert kafka.first == {ONE: 100, OTHER: 7}
    kafka.groups["ours"][ONE] = 155
    assert trimming.trim() == 50
    assert trimming.trim() == 0, "five are not worthwhile"


def test_a_few_records_are_left_alone_without_asking_for_other_groups() -> None:
    """A request for the offsets of all groups would cost more than it frees."""
    kafka = Kafka({"ours": {ONE: 9}})
    trimming = trimmer(kafka)
    assert [trimming.trim(), trimming.trim()] == [0, 0]
    assert kafka.asked == ["ours", "ours"]


def test_records_that_a_slow_group_has_not_read_are_kept() -> None:
    """The group counts even if it has read nothing but jobs; a group of other topics does not."""
    kafka = Kafka({"ours": {ONE: 100, OTHER: 50}, "slow": {JOBS: 1, ONE: 30}, "foreign": {Partition("X", 0): 3}})
    trimming = trimmer(kafka)
    assert [trimming.trim(), trimming.trim()] == [0, 30]
    assert kafka.first == {ONE: 30, OTHER: 0}
    with structlog.testing.capture_logs() as logs:
        kafka.groups["slow"][ONE] = 32
        assert trimming.trim() == 0
        assert not logs, "the group does read"
        assert [trimming.trim(), trimming.trim(), trimming.trim()] == [0, 0, 0]
    reasons = [line["reason"] for line in logs if line["event"] == "retry topic not trimmed"]
    assert reasons == ["group slow does not read it"]


def test_a_group_that_appears_between_two_checks_loses_nothing() -> None:
    """Its first record lies beyond our offsets of the first check, or its own offset is seen at the second."""
    kafka = Kafka({"ours": {ONE: 100}})
    trimming = trimmer(kafka)
    trimming.trim()
    kafka.groups["new"] = {JOBS: 1}
    assert trimming.trim() == 0
    assert kafka.first[ONE] == 0


def test_an_offset_that_was_reset_is_respected() -> None:
    """An operator did so between two checks."""
    kafka = Kafka({"ours": {ONE: 100}})
    trimming = trimmer(kafka)
    trimming.trim()
    kafka.groups["ours"][ONE] = 40
    assert trimming.trim() == 40


def test_nothing_is_deleted_while_groups_may_be_missing() -> None:
    """After an error, two more checks are needed."""
    kafka = Kafka({"ours": {ONE: 100}})
    trimming = trimmer(kafka)
    trimming.trim()
    kafka.refuses = NotAllowed("hidden")
    with pytest.raises(NotAllowed):
        trimming.trim()
    kafka.refuses = None
    kafka.hidden = {"ours"}
    with pytest.raises(BrokerUnavailable, match="our own group"):
        trimming.trim()
    kafka.hidden = set()
    assert [trimming.trim(), trimming.trim()] == [0, 100]


def test_an_error_is_logged_once_and_the_check_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even an error that only a bug in the client explains."""
    monkeypatch.setattr("etl.topics.trimming.LOOK_SECONDS", 0.01)
    kafka = Kafka({"ours": {ONE: 100}})
    kafka.refuses = RuntimeError("a bug")
    trimming = trimmer(kafka)
    with structlog.testing.capture_logs() as logs:
        trimming.start()
        try:
            stack.wait_until(lambda: kafka.asked.count("all") > 2, 10, "checks")
            kafka.refuses = None
            stack.wait_until(lambda: kafka.first[ONE] == 100, 10, "trimming")
        finally:
            trimming.stop(5)
    assert [line.get("reason", line["event"]) for line in logs] == ["RuntimeError: a bug", "retry topic trimmed"]
