"""The snapshot of a process: of real parts, whose jobs a test runs one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import pretend
from etl import errors, logs
from etl.config import ConfigLoader
from etl.identity import Identity
from etl.lanes.run import Run
from etl.models.status import Snapshot
from etl.models.task import Facts, Phase
from etl.status.snapshot import Snapshots, Speed, hash_of
from etl.transfer.streaming import counted
from scene import ENVIRONMENT, JOB, NOW, P0, Scene, fail_with, succeed

pytestmark = pytest.mark.unit


class Parcel:
    """A file that comes in pieces of four bytes."""

    path, facts, held = "/in/a", Facts(12, None), None

    def load(self, limit_bytes: int) -> bool:
        raise NotImplementedError

    def readinto(self, buffer: memoryview) -> int:
        return 4

    def close(self, *, complete: bool) -> None:
        raise NotImplementedError


class Watched:
    """A scene and its snapshots."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.clock, self.runs = scene, pretend.Clock(), list[Run]()
        self.behind = {P0: 0}
        self.snapshots = Snapshots(
            me=Identity("group", "jobs", "h", 0, "cafe"),
            topics=scene.topics,
            config=ConfigLoader(environ=ENVIRONMENT),
            group=SimpleNamespace(  # type: ignore[arg-type]  # the seam to Kafka
                assigned=lambda: [P0], behind=lambda partition: self.behind.get(partition, 0)
            ),
            partitions=SimpleNamespace(count_deferred=lambda _: (3, NOW + 60)),  # type: ignore[arg-type]  # so is this
            ledger=scene.ledger,
            dispatcher=scene.dispatcher,
            pools=scene.pools,
            lanes=SimpleNamespace(runs=lambda: self.runs),  # type: ignore[arg-type]  # lanes are threads
            totals=scene.reporter.totals,
            clock=self.clock,
            wall=scene.clock,
        )

    def build(self) -> Snapshot:
        """Return the snapshot as a reader gets it."""
        return Snapshot.from_json(self.snapshots.build().to_json())

    def begin(self) -> Run:
        """Have a lane take the next job."""
        while (taken := self.scene.dispatcher.take(0)) is not None:
            task, lease = taken
            run = Run(task, lease, self.clock(), None, lambda: memoryview(bytearray(16)))
            if lease.is_pair:
                self.runs.append(run)
                return run
            self.scene.runner.execute(run)
            self.scene.dispatcher.finish(task, run.again_in)
        raise AssertionError("no job")


@pytest.fixture
def watched(scene: Scene) -> Watched:
    return Watched(scene)


def partition_of(snapshot: Snapshot) -> Any:
    return next(row for row in snapshot.partitions if row.topic == P0.topic)


def test_the_first_unfinished_record_is_exact(watched: Watched) -> None:
    """Whatever was done behind it; with the time that the broker gave it."""
    for age in (100.0, 50.0, 10.0):
        watched.scene.accept(timestamp=NOW - age)
    watched.behind[P0] = 7
    row = partition_of(watched.build())
    assert (row.first, row.unfinished, row.read, row.end, row.backlog) == (0, 3, 3, 10, 10)
    assert row.oldest_at.timestamp() == NOW - 100
    first = watched.begin()
    watched.scene.dispatcher.finish(first.task)
    watched.runs.clear()
    watched.scene.run(succeed)
    watched.scene.commit()
    row = partition_of(watched.build())
    assert (row.first, row.unfinished) == (0, 2), "the second is done, the first is not"
    watched.scene.reporter.dead(first.task, errors.FileMissing("x"))
    watched.scene.commit()
    row = partition_of(watched.build())
    assert (row.first, row.unfinished, row.committed) == (2, 1, 2)
    assert row.oldest_at.timestamp() == NOW - 10


def test_a_running_transfer_is_told_with_bytes_rate_and_rest(watched: Watched) -> None:
    """Once it is two seconds old; and how long it has stood still, instead of a rest that grows."""
    watched.scene.accept()
    run = watched.begin()
    (told,) = watched.build().transfers
    assert (told.phase, told.moved, told.eta_seconds) == ("connecting", 0, None)
    parcel = counted(Parcel(), run.task.progress)
    for _ in range(2):
        parcel.readinto(memoryview(b""))
        watched.clock.pass_(2.0)
        (told,) = watched.build().transfers
    assert (told.source, told.destination, told.place) == ("A:/in/a", "B:/out/a", "jobs-0-0")
    assert (told.size, told.moved, told.phase) == (12, 8, "streaming")
    assert (told.rate, told.eta_seconds, told.stalled_seconds) == (2.0, 2.0, None)
    watched.clock.pass_(5.0)
    (told,) = watched.build().transfers
    assert told.stalled_seconds == 5.0
    parcel.readinto(memoryview(b""))
    assert run.task.progress.phase == Phase.VERIFYING
    assert watched.build().interval_seconds == 2.0
    watched.runs.clear()
    assert watched.build().interval_seconds == 5.0


def test_totals_count_each_end_once(watched: Watched) -> None:
    """What was done, what failed and why, what was put off; bytes also of a run that failed."""
    scene = watched.scene
    scene.accept(timestamp=NOW)
    scene.run(succeed)
    scene.accept()
    scene.run(fail_with(errors.FileMissing("gone")))
    scene.accept(b"no job")
    scene.commit()
    scene.accept({**JOB, "job_id": "again"})
    scene.run(fail_with(errors.PermissionRefused("busy")))
    told = watched.build().totals
    assert told.jobs == {"done": 1, "failed": 2}
    assert told.failures == {"FILE_NOT_FOUND": 1, "INVALID_MESSAGE": 1}
    assert told.retries == {"attempt": 1}
    assert (sum(told.duration_seconds.counts), sum(told.size_bytes.counts), sum(told.wait_seconds.counts)) == (1, 1, 1)
    assert told.servers["A"].connects >= 1
    last = watched.build().last_error
    assert last is not None
    assert (last.code, last.place) == ("INVALID_MESSAGE", "jobs-0-2")


def test_a_server_that_is_down_is_told_first_with_its_error_and_no_password(watched: Watched) -> None:
    """And with the time of the next try."""
    logs.configure(secrets=["Distinctive-7"])
    try:
        watched.scene.accept()
        watched.scene.dispatcher.failed("B", errors.ServerUnavailable("no Distinctive-7", server="B"))
        told = watched.build()
    finally:
        logs.configure()
    assert [row.name for row in told.servers] == ["B", "A"]
    server = told.servers[0]
    assert (server.breaker, server.waiting) == ("open", 1)
    assert server.error is not None
    assert (server.error.code, server.error.text) == ("CONNECTION_ERROR", "no ***")
    assert server.since is not None
    assert server.next_probe_at is not None


def test_a_held_server_is_told_as_held_and_not_as_down(watched: Watched) -> None:
    """By whom."""
    watched.scene.accept()
    watched.scene.dispatcher.hold({"B": errors.OnHold("server B is on hold by eve")})
    server = next(row for row in watched.build().servers if row.name == "B")
    assert (server.breaker, server.held_by, server.error) == ("closed", "server B is on hold by eve", None)


def test_the_sequence_rises_and_news_are_the_state_and_outages(watched: Watched) -> None:
    """A record goes out at once when these change."""
    assert [watched.build().seq for _ in range(3)] == [1, 2, 3]
    before = watched.snapshots.news()
    watched.scene.dispatcher.failed("B", errors.ServerUnavailable("x", server="B"))
    after = watched.snapshots.news()
    watched.snapshots.state = "draining"
    assert len({before, after, watched.snapshots.news()}) == 3
    assert watched.build().state == "draining"


def test_a_hash_of_servers_differs_with_settings_and_not_with_passwords() -> None:
    """So it may be written to a topic."""
    hashes = {
        hash_of(ConfigLoader(environ=ENVIRONMENT | more).servers.values())
        for more in ({}, {"A_PASS": "other"}, {"A_HOST": "elsewhere"})
    }
    assert len(hashes) == 2


def test_a_transfer_has_a_rate_when_it_is_first_seen(watched: Watched) -> None:
    """Its bytes by the time since it began."""
    watched.scene.accept()
    run = watched.begin()
    counted(Parcel(), run.task.progress).readinto(memoryview(b""))
    watched.clock.pass_(2.0)
    (told,) = watched.build().transfers
    assert (told.moved, told.rate) == (4, 2.0)


def test_a_speed_is_that_of_the_last_ten_seconds() -> None:
    """However often it was looked at."""
    speed = Speed()
    for second in range(100):
        speed.note(float(second), 10 * min(second, 50))
    assert speed.per_second == 0.0
    assert speed.still_for(99.0) == 49.0
    speed.note(100.0, 600)
    assert 9.0 <= speed.per_second <= 10.0
