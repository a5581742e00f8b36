"""The periodic lines in the log that docs/operations.md asks operators to watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
from etl.topics.names import Topics

pytestmark = pytest.mark.unit

NOW = 1_700_000_000.0
JOBS, RETRY, LATER = Partition("jobs", 0), Partition("jobs-retry", 0), Partition("jobs-retry", 1)


class FakeGroup:
    """What the Kafka client would know: the partitions held, and how many records of each are unread."""

    def __init__(self) -> None:
        self.unread = {JOBS: 7, RETRY: 2, LATER: 3}
        self.new = list(self.unread)
        self.held = list(self.unread)
        self.member = True

    def new_partitions(self) -> list[Partition]:
        return list(self.new)

    def take_over(self, partition: Partition, set_up: Callable[[TakenOver], None], timeout: float) -> TakenOver:
        taken = TakenOver(Commit(0, ""), self.unread[partition])
        set_up(taken)
        self.new.remove(partition)
        return taken

    def behind(self, partition: Partition) -> int:
        return self.unread[partition]

    def assigned(self) -> list[Partition]:
        return self.held

    def is_member(self) -> bool:
        return self.member

    def pause(self, partitions: Iterable[Partition]) -> None: ...

    def seek(self, partition: Partition, offset: int) -> None: ...


class Scene:
    """A process that holds a partition of the source topic and two of T-retry, with two servers."""

    def __init__(self, clock: pretend.Clock) -> None:
        self.clock, self.group, settings = clock, FakeGroup(), pretend.settings()
        world = pretend.World(A=8, B=8)
        self.pools = Pools(world.config, settings, self.clock, world.create)
        self.dispatcher = Dispatcher(self.pools, settings, self.clock, lambda: 0.5)
        self.partitions = Partitions(self.group, Ledger("token"), 10, lambda: NOW)  # type: ignore[arg-type]
        self.partitions.take_over_new()
        topics = Topics.of("jobs", settings)
        self.reports = reports.Reports(topics, self.group, self.partitions, self.dispatcher)  # type: ignore[arg-type]

    def lines(self, seconds: float = 0.0) -> list[dict[str, Any]]:
        """Let time pass; return the lines of the next tick."""
        self.clock.pass_(seconds)
        with structlog.testing.capture_logs() as lines:
            self.reports.tick(self.clock())
        return [dict(line) for line in lines]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    clock = pretend.Clock()
    monkeypatch.setattr(reports, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(reports, "wall_clock", SimpleNamespace(now=lambda: NOW))
    made = Scene(clock)
    yield made
    made.dispatcher.stop()
    assert made.pools.close()


def test_every_half_minute_the_number_of_deferred_jobs_and_the_next_due_time_are_logged(scene: Scene) -> None:
    """In the partitions of T-retry that are held here; for the source topic, lag shows it."""
    scene.partitions.delay(RETRY, 0, NOW + 500, seen_by_predecessor=True)
    scene.partitions.delay(LATER, 0, NOW + 60.04, seen_by_predecessor=True)
    assert scene.lines(29) == []
    line = {"event": "jobs deferred", "log_level": "info", "topic": "jobs-retry", "count": 5, "next_due_seconds": 60.0}
    assert scene.lines(1) == [line]
    assert scene.lines(29) == []
    assert scene.lines(1) == [line]


def test_an_overdue_job_is_due_in_zero_seconds(scene: Scene) -> None:
    scene.partitions.delay(RETRY, 0, NOW - 5, seen_by_predecessor=True)
    assert [line["next_due_seconds"] for line in scene.lines(30)] == [0.0]


def test_without_a_delayed_partition_the_next_due_time_is_unknown(scene: Scene) -> None:
    assert [(line["count"], line["next_due_seconds"]) for line in scene.lines(30)] == [(5, None)]


def test_nothing_is_logged_while_no_job_is_deferred(scene: Scene) -> None:
    scene.group.unread |= {RETRY: 0, LATER: 0}
    assert scene.lines(30) == []


def servers(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {line["server"]: line for line in lines if line["event"] == "server"}


def test_every_minute_each_server_that_has_work_or_is_down_is_logged(scene: Scene) -> None:
    """A server with work has lanes, one that is down a time of its next probe; others are left out."""
    scene.dispatcher.offer(pretend.task(0, "A", "A"))
    scene.dispatcher.offer(pretend.task(1, "B", "B"))
    assert servers(scene.lines(59.5)) == {}
    scene.dispatcher.failed("B", errors.ServerUnavailable("refused"))
    taken = scene.dispatcher.take(0.0)
    assert taken is not None
    reported = servers(scene.lines(0.5))
    assert {name: (line["breaker"], line["lanes"]) for name, line in reported.items()} == {
        "A": ("closed", 1),
        "B": ("open", 0),
    }
    assert reported["B"]["next_probe_seconds"] == 0.5
    assert (reported["A"]["next_probe_seconds"], reported["A"]["error_share"], reported["B"]["error_share"]) == (
        0,
        0,
        1,
    )
    assert (reported["A"]["round_trip_ms"], reported["A"]["deferred"]) == (None, 0)
    assert servers(scene.lines(59)) == {}
    task, lease = taken
    lease.release(reusable=True)
    scene.dispatcher.finish(task)
    again = servers(scene.lines(1))
    assert set(again) == {"B"}
    assert again["B"]["breaker"] == "half open", "its time has come, and no job was there to try it"
    for _ in range(20):
        scene.dispatcher.failed("A", errors.FileMissing("no such file"))
    reported = servers(scene.lines(60))
    assert reported["A"]["jobs_per_second"] > 0.1, "it did some work in the last minute"
    assert reported["A"]["error_share"] == 1


def test_a_process_without_a_partition_reports_once_that_it_is_idle(scene: Scene) -> None:
    """After twenty seconds as a member, as it may be assigned one until then. Partitions of T-retry do not count."""
    idle = lambda seconds: [line["event"] for line in scene.lines(seconds) if line["event"].startswith("idle")]  # noqa: E731
    assert idle(100) == [], "it holds one"
    scene.group.held = [RETRY, LATER]
    assert idle(20) == []
    scene.group.member = False
    assert idle(1) == [], "not a member: the group is rebalancing"
    scene.group.member = True
    assert idle(20) == []
    assert idle(1) == ["idle: the group has more processes than the topic has partitions"]
    assert idle(100) == []
