"""What a process says of itself now and then: the lines of the log that docs/operations.md tells operators to watch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing

import pretend
from etl import errors
from etl.broker import TakenOver
from etl.dispatch.dispatcher import Dispatcher
from etl.intake.partitions import Partitions
from etl.models.wire import Commit, Partition
from etl.outcomes.ledger import Ledger
from etl.sessions.pools import Pools
from etl.status import reports
from etl.topics.companions import Topics

pytestmark = pytest.mark.unit

NOW = 1_700_000_000.0
JOBS, RETRY, LATER = Partition("jobs", 0), Partition("jobs-retry", 0), Partition("jobs-retry", 1)


class FakeIntake:
    """What the client would know: which partitions are ours, and how many records of each were not read."""

    def __init__(self) -> None:
        self.unread = {JOBS: 7, RETRY: 2, LATER: 3}
        self.new = list(self.unread)
        self.held = list(self.unread)
        self.member = True

    def new_partitions(self) -> list[Partition]:
        return list(self.new)

    def take_over(self, partition: Partition, timeout: float) -> TakenOver:
        return TakenOver(Commit(0, ""), self.unread[partition])

    def settled(self, partition: Partition) -> bool:
        self.new.remove(partition)
        return True

    def behind(self, partition: Partition) -> int:
        return self.unread[partition]

    def assigned(self) -> list[Partition]:
        return self.held

    def is_member(self) -> bool:
        return self.member

    def pause(self, partitions: Iterable[Partition]) -> None: ...

    def seek(self, partition: Partition, offset: int) -> None: ...


class Scene:
    """A process that holds a partition of the jobs and two of T-retry, with two servers."""

    def __init__(self, clock: pretend.Clock) -> None:
        self.clock, self.intake, settings = clock, FakeIntake(), pretend.settings()
        world = pretend.World(A=8, B=8)
        self.pools = Pools(world.config, settings, self.clock, world.create)
        self.dispatcher = Dispatcher(self.pools, settings, self.clock, lambda: 0.5)
        self.partitions = Partitions(self.intake, Ledger("token"), 10, lambda: NOW)  # type: ignore[arg-type]
        self.partitions.take_over_new()
        topics = Topics.of("jobs", settings)
        self.reports = reports.Reports(topics, self.intake, self.partitions, self.dispatcher)  # type: ignore[arg-type]

    def said(self, seconds: float = 0.0) -> list[dict[str, Any]]:
        """Let time pass; return the lines of the next look."""
        self.clock.pass_(seconds)
        with structlog.testing.capture_logs() as lines:
            self.reports.tick(self.clock())
        return [dict(line) for line in lines]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    clock = pretend.Clock()
    monkeypatch.setattr(reports, "time", SimpleNamespace(time=lambda: NOW, monotonic=clock))
    made = Scene(clock)
    yield made
    made.dispatcher.stop()
    assert made.pools.close()


def test_every_half_minute_it_says_how_many_jobs_wait_and_when_the_next_is_due(scene: Scene) -> None:
    """In T-retry, of the partitions held here; the jobs' own topic has its lag for that."""
    scene.partitions.delay(RETRY, 0, NOW + 500, seen_by_predecessor=True)
    scene.partitions.delay(LATER, 0, NOW + 60.04, seen_by_predecessor=True)
    assert scene.said(29) == []
    line = {"event": "jobs deferred", "log_level": "info", "topic": "jobs-retry", "count": 5, "next_due_seconds": 60.0}
    assert scene.said(1) == [line]
    assert scene.said(29) == []
    assert scene.said(1) == [line]


def test_a_job_that_waits_and_is_overdue_is_due_in_no_time(scene: Scene) -> None:
    scene.partitions.delay(RETRY, 0, NOW - 5, seen_by_predecessor=True)
    assert [line["next_due_seconds"] for line in scene.said(30)] == [0.0]


def test_of_jobs_that_are_not_read_yet_only_the_number_is_known(scene: Scene) -> None:
    assert [(line["count"], line["next_due_seconds"]) for line in scene.said(30)] == [(5, None)]


def test_where_no_job_waits_nothing_is_said_of_it(scene: Scene) -> None:
    scene.intake.unread |= {RETRY: 0, LATER: 0}
    assert scene.said(30) == []


def servers(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {line["server"]: line for line in lines if line["event"] == "server"}


def test_every_minute_it_says_how_each_server_is_that_has_work_or_is_down(scene: Scene) -> None:
    """A server at work holds lanes; one that is down says when it is tried again. One that is neither is left out."""
    scene.dispatcher.offer(pretend.task(0, "A", "A"))
    scene.dispatcher.offer(pretend.task(1, "B", "B"))
    assert servers(scene.said(59.5)) == {}
    scene.dispatcher.failed("B", errors.ServerUnavailable("refused"))
    taken = scene.dispatcher.take(0.0)
    assert taken is not None
    told = servers(scene.said(0.5))
    assert {name: (line["breaker"], line["lanes"]) for name, line in told.items()} == {
        "A": ("closed", 1),
        "B": ("open", 0),
    }
    assert told["B"]["next_probe_seconds"] == 0.5
    assert (told["A"]["next_probe_seconds"], told["A"]["error_share"], told["B"]["error_share"]) == (0, 0, 1)
    assert (told["A"]["round_trip_ms"], told["A"]["deferred"]) == (None, 0)
    assert servers(scene.said(59)) == {}
    task, lease = taken
    lease.release(reusable=True)
    scene.dispatcher.finish(task)
    again = servers(scene.said(1))
    assert set(again) == {"B"}
    assert again["B"]["breaker"] == "half open", "its time has come, and no job was there to try it"
    for _ in range(20):
        scene.dispatcher.failed("A", errors.FileMissing("no such file"))
    told = servers(scene.said(60))
    assert told["A"]["jobs_per_second"] > 0.1, "it did something in the last minute"
    assert told["A"]["error_share"] == 1


def test_a_process_without_a_partition_says_once_that_it_is_one_too_many(scene: Scene) -> None:
    """After twenty seconds as a member: until then a partition may still come. Partitions of T-retry do not count."""
    said = lambda seconds: [line["event"] for line in scene.said(seconds) if line["event"].startswith("idle")]  # noqa: E731
    assert said(100) == [], "it holds one"
    scene.intake.held = [RETRY, LATER]
    assert said(20) == []
    scene.intake.member = False
    assert said(1) == [], "no member: the group is being shared out"
    scene.intake.member = True
    assert said(20) == []
    assert said(1) == ["idle: the group has more processes than the topic has partitions"]
    assert said(100) == []
