"""What of T-retry may go: only what every group has read, at two looks in a row, and only if it is worthwhile."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
import structlog.testing

import stack
from etl.broker import NotAllowed
from etl.errors import BrokerUnavailable
from etl.models.wire import Partition
from etl.topics.companions import Topics
from etl.topics.trimming import Trimmer

pytestmark = pytest.mark.unit

ONE, OTHER, JOBS = Partition("T-retry", 0), Partition("T-retry", 1), Partition("T", 0)


class Kafka:
    """Stands in for `Admin`: the offsets of groups, where partitions begin."""

    def __init__(self, groups: Mapping[str, Mapping[Partition, int]]) -> None:
        self.groups = {name: dict(places) for name, places in groups.items()}
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
        return {group: places for group, places in found.items() if places}

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


def test_what_was_read_at_two_looks_goes() -> None:
    """Up to where it was read at the first; what was read between the looks stays for another one."""
    kafka = Kafka({"ours": {JOBS: 9, ONE: 100, OTHER: 7}})
    trimming = trimmer(kafka)
    assert trimming.trim() == 0
    kafka.groups["ours"][ONE] = 150
    assert trimming.trim() == 107
    assert kafka.first == {ONE: 100, OTHER: 7}
    kafka.groups["ours"][ONE] = 155
    assert trimming.trim() == 50
    assert trimming.trim() == 0, "five are not worthwhile"


def test_little_is_left_and_asks_nobody_else() -> None:
    """A few records are not worth a question to all groups."""
    kafka = Kafka({"ours": {ONE: 9}})
    trimming = trimmer(kafka)
    assert [trimming.trim(), trimming.trim()] == [0, 0]
    assert kafka.asked == ["ours", "ours"]


def test_a_group_that_is_behind_keeps_what_it_has_not_read() -> None:
    """Also one that has read nothing of T-retry, but jobs; not one of other topics."""
    kafka = Kafka({"ours": {ONE: 100, OTHER: 50}, "slow": {JOBS: 1, ONE: 30}, "foreign": {Partition("X", 0): 3}})
    trimming = trimmer(kafka)
    assert [trimming.trim(), trimming.trim()] == [0, 30]
    assert kafka.first == {ONE: 30, OTHER: 0}
    with structlog.testing.capture_logs() as logs:
        kafka.groups["slow"][ONE] = 32
        assert trimming.trim() == 0
        assert not logs, "it does read"
        assert [trimming.trim(), trimming.trim(), trimming.trim()] == [0, 0, 0]
    said = [line["reason"] for line in logs if line["event"] == "retry topic not trimmed"]
    assert said == ["group slow does not read it"]


def test_a_group_that_comes_between_the_looks_loses_nothing() -> None:
    """Its first record lies where ours has not been at the first look, or its offset is seen at the second."""
    kafka = Kafka({"ours": {ONE: 100}})
    trimming = trimmer(kafka)
    trimming.trim()
    kafka.groups["new"] = {JOBS: 1}
    assert trimming.trim() == 0
    assert kafka.first[ONE] == 0


def test_an_offset_that_was_set_back_is_heeded() -> None:
    """By an operator, between the looks."""
    kafka = Kafka({"ours": {ONE: 100}})
    trimming = trimmer(kafka)
    trimming.trim()
    kafka.groups["ours"][ONE] = 40
    assert trimming.trim() == 40


def test_where_groups_may_be_missing_nothing_goes() -> None:
    """And a look after an error begins anew."""
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


def test_whatever_goes_wrong_is_said_once_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what only a bug of the client explains."""
    monkeypatch.setattr("etl.topics.trimming.LOOK_SECONDS", 0.01)
    kafka = Kafka({"ours": {ONE: 100}})
    kafka.refuses = RuntimeError("a bug")
    trimming = trimmer(kafka)
    with structlog.testing.capture_logs() as logs:
        trimming.start()
        try:
            stack.wait_until(lambda: kafka.asked.count("all") > 2, 10, "looks")
            kafka.refuses = None
            stack.wait_until(lambda: kafka.first[ONE] == 100, 10, "trimming")
        finally:
            trimming.stop(5)
    assert [line.get("reason", line["event"]) for line in logs] == ["RuntimeError: a bug", "retry topic trimmed"]
