"""Partitions: taken over, asleep, paused and resumed. The broker's side is a small fake of `GroupConsumer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import structlog.testing

import pretend
from etl.broker import TakenOver
from etl.intake import partitions
from etl.intake.partitions import Partitions
from etl.models.wire import Batch, Commit, Partition
from etl.outcomes.ledger import Ledger
from etl.outcomes.offsets import RecordState

pytestmark = pytest.mark.unit

P0, P1 = Partition("jobs", 0), Partition("jobs", 1)
Told = TakenOver | None
END = 100  # of every partition


class FakeGroup:
    """What the client would know."""

    def __init__(self, *held: Partition) -> None:
        self.new = list(held)
        self.silent = set(held)  # assigned partitions are paused until they are taken over
        self.told: dict[Partition, Told] = {}
        self.goes: set[Partition] = set()  # those that are taken away while they are taken over
        self.positions: dict[Partition, int] = {}
        self.member = True
        self.sought: list[tuple[Partition, int]] = []
        self.on_revoked: Callable[[list[Partition]], None]

    def new_partitions(self) -> list[Partition]:
        return list(self.new)

    def take_over(self, partition: Partition, set_up: Callable[[TakenOver], None], timeout: float) -> Told:
        told = self.told.get(partition, TakenOver(Commit(0, ""), END))
        if told is None:
            return None
        self.positions[partition] = told.committed.offset
        set_up(told)
        self.new.remove(partition)
        if partition in self.goes:
            self.on_revoked([partition])
            return None
        return told

    def position(self, partition: Partition) -> int | None:
        return self.positions.get(partition)

    def behind(self, partition: Partition) -> int:
        return 5

    def pause(self, partitions: Iterable[Partition]) -> None:
        self.silent |= set(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        self.silent -= set(partitions)

    def seek(self, partition: Partition, offset: int) -> None:
        self.sought.append((partition, offset))
        self.positions[partition] = offset

    def assigned(self) -> list[Partition]:
        return [P0, P1]

    def is_member(self) -> bool:
        return self.member


class Scene:
    def __init__(self, *held: Partition, window: int = 10) -> None:
        self.group, self.ledger, self.clock = FakeGroup(*held), Ledger("t"), pretend.Clock()
        self.partitions = Partitions(self.group, self.ledger, window, self.clock)  # type: ignore[arg-type]
        self.group.on_revoked = self.partitions.revoked

    def take_over(self, *, begin: bool = True) -> list[dict[str, Any]]:
        """Take over; `begin`: and put it on record that somebody is at work, without which nothing is fetched."""
        with structlog.testing.capture_logs() as said:
            self.partitions.take_over_new()
        if begin:
            self.commit()
        return [dict(event) for event in said]

    def commit(self, *, clean: bool = False) -> Batch | None:
        batch = self.ledger.batch(100, now=self.clock(), membership=object, clean=clean)
        if batch is not None:
            self.ledger.end_batch(batch, committed=True)
        return batch


def test_a_partition_is_fetched_from_once_it_was_taken_over() -> None:
    """Silent until it is known where the group stands in it."""
    scene = Scene(P0)
    scene.partitions.steer(window_full=False)
    assert scene.group.silent == {P0}
    assert scene.partitions.epoch(P0) is None
    scene.take_over()
    scene.partitions.steer(window_full=False)
    assert scene.group.silent == set()
    assert scene.partitions.epoch(P0) is not None


def test_what_is_to_be_taken_over_anew_is_not_fetched_from() -> None:
    """Its position is out of the log's range, or what was read before it is gone."""
    scene = Scene(P0)
    scene.take_over()
    scene.partitions.steer(window_full=True)
    scene.group.new.append(P0)
    scene.partitions.steer(window_full=False)
    assert scene.group.silent == {P0}
    scene.take_over()
    scene.partitions.steer(window_full=False)
    assert scene.group.silent == set()


def test_a_sleeper_wakes_where_it_fell_asleep() -> None:
    """Whatever the client made of its position meanwhile; nor is that told to the ledger."""
    scene = Scene(P0)
    scene.take_over()
    scene.partitions.delay(P0, 3, scene.clock() + 10, seen_by_predecessor=True)
    scene.group.positions[P0] = 9
    scene.partitions.steer(window_full=False)
    scene.clock.pass_(11)
    scene.partitions.steer(window_full=False)
    assert scene.group.sought[-1] == (P0, 3)
    batch = scene.commit()
    assert batch is None or batch.offsets[P0].offset <= 3


def test_a_broker_that_is_away_is_asked_again() -> None:
    """A takeover that fails stays to be done, and costs no other partition its turn."""
    scene = Scene(P0, P1)
    scene.group.told[P0] = None
    scene.take_over()
    assert scene.partitions.epoch(P0) is None
    assert scene.partitions.epoch(P1) is not None
    del scene.group.told[P0]
    scene.take_over()
    assert None not in (scene.partitions.epoch(P0), scene.partitions.epoch(P1))


def test_a_partition_that_goes_while_it_is_taken_over_is_not_ours() -> None:
    """The client says so on another thread, before there is anything to drop."""
    scene = Scene(P0, P1)
    scene.group.goes = {P0}
    scene.take_over()
    assert scene.partitions.epoch(P0) is None
    assert not scene.ledger.owns(P0, 1)
    assert scene.partitions.epoch(P1) is not None


def test_lost_records_are_reported_with_their_number() -> None:
    """Never a silent jump."""
    scene = Scene(P0)
    scene.group.told[P0] = TakenOver(Commit(50, ""), END, lost=43)
    (lost, _taken) = scene.take_over()
    assert (lost["log_level"], lost["lost"], lost["goes_on_at"]) == ("error", 43, 50)


def test_a_full_window_silences_all_and_wakes_them_again() -> None:
    """What could not be worked on is not fetched."""
    scene = Scene(P0, P1)
    scene.take_over()
    scene.partitions.steer(window_full=True)
    assert scene.group.silent == {P0, P1}
    scene.partitions.steer(window_full=False)
    assert scene.group.silent == set()


def test_a_sleeping_partition_wakes_at_its_time_and_others_do_not_sleep() -> None:
    """Where its next record waits, the partition is read again from that record on."""
    scene = Scene(P0, P1)
    scene.take_over()
    scene.partitions.delay(P0, 7, scene.clock() + 10, seen_by_predecessor=True)
    scene.partitions.steer(window_full=False)
    assert scene.partitions.is_delayed(P0)
    assert scene.group.silent == {P0}
    assert scene.group.sought == [(P0, 7)]
    assert scene.partitions.deferred("jobs") == (10, scene.clock() + 10)
    scene.clock.pass_(10)
    scene.partitions.steer(window_full=False)
    assert not scene.partitions.is_delayed(P0)
    assert scene.group.silent == set()
    scene.partitions.delay(Partition("jobs", 9), 0, 0.0, seen_by_predecessor=True)  # revoked meanwhile: nothing happens
    assert scene.partitions.deferred("other") == (0, None)


def test_a_record_that_is_wanted_wakes_its_partition_before_its_time() -> None:
    """Not while the window is full: it could not be worked on."""
    scene, wanted = Scene(P0), [False]
    scene.take_over()
    scene.partitions.delay(P0, 7, scene.clock() + 600, seen_by_predecessor=True, may_recall=lambda: wanted[0])
    scene.partitions.steer(window_full=False)
    assert scene.group.silent == {P0}
    wanted[0] = True
    scene.partitions.steer(window_full=True)
    assert scene.partitions.is_delayed(P0)
    scene.partitions.steer(window_full=False)
    assert not scene.partitions.is_delayed(P0)
    assert scene.group.silent == set()


def test_what_was_revoked_is_not_ours() -> None:
    """At once, and a new assignment is another epoch."""
    scene = Scene(P0)
    scene.take_over()
    before = scene.partitions.epoch(P0)
    assert before is not None
    assert scene.partitions.owned(P0, before)
    scene.partitions.revoked([P0])
    assert not scene.partitions.owned(P0, before)
    scene.group.new = [P0]
    scene.take_over()
    assert not scene.partitions.owned(P0, before)


def test_who_is_no_member_owns_nothing() -> None:
    """A zombie publishes nothing."""
    scene = Scene(P0)
    scene.take_over()
    epoch = scene.partitions.epoch(P0)
    assert epoch is not None
    scene.group.member = False
    assert not scene.partitions.owned(P0, epoch)


def after_a_kill(*, end: int = END) -> Scene:
    """Return a scene whose partition was taken over from an owner that did not end in good order."""
    dead = Scene(P0)
    dead.take_over(begin=False)
    dead.ledger.receive(P0, 0)
    begun = dead.commit()
    assert begun is not None
    scene = Scene(P0)
    scene.group.told[P0] = TakenOver(begun.offsets[P0], end)
    scene.take_over()
    return scene


def test_what_a_dead_owner_may_have_had_at_work_is_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many jobs as a process may have without a committed outcome, and none that was sent since."""
    monkeypatch.setattr(partitions, "OUTSTANDING", 20)
    monkeypatch.setattr(partitions, "POLLED", 3)
    scene = after_a_kill()
    assert sum(scene.partitions.orphan_scan_since(P0, offset) is not None for offset in range(50)) == 23
    assert scene.partitions.orphan_scan_since(P1, 0) is None
    scene = after_a_kill(end=5)
    assert [offset for offset in range(10) if scene.partitions.orphan_scan_since(P0, offset) is not None] == [*range(5)]


def test_after_a_clean_end_nothing_is_scanned() -> None:
    ended = after_a_kill().commit(clean=True)
    assert ended is not None
    heir = Scene(P0)
    heir.group.told[P0] = TakenOver(ended.offsets[P0], END)
    heir.take_over()
    assert heir.partitions.orphan_scan_since(P0, 0) is None
    assert heir.partitions.has_scanned()


def test_all_is_scanned_once_everything_was_received_that_lay_there() -> None:
    """A stop before that is no clean end: the next owner has to look, too."""
    scene = after_a_kill(end=5)
    assert not scene.partitions.has_scanned()
    scene.group.positions[P0] = 4
    assert not scene.partitions.has_scanned()
    scene.partitions.delay(P0, 4, scene.clock() + 10, seen_by_predecessor=True)
    assert not scene.partitions.has_scanned()
    scene.partitions.delay(P0, 4, scene.clock() + 10, seen_by_predecessor=False)  # nor was it for the dead owner
    assert scene.partitions.has_scanned()
    scene = after_a_kill(end=5)
    scene.group.positions[P0] = 5
    assert scene.partitions.has_scanned()
    scene = after_a_kill(end=5)
    scene.partitions.revoked([P0])
    assert scene.partitions.has_scanned()


def test_no_more_is_fetched_than_the_next_owner_would_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes that are not committed count, too: after a kill those jobs are done again."""
    monkeypatch.setattr(partitions, "OUTSTANDING", 3)
    scene = Scene(P0, window=1)
    scene.take_over()
    for offset in range(3):
        scene.partitions.steer(window_full=False)
        assert scene.group.silent == set()
        scene.ledger.receive(P0, offset)
    scene.partitions.steer(window_full=False)
    assert scene.group.silent == {P0}


def test_after_a_clean_end_nothing_is_fetched_before_that_is_revoked() -> None:
    """Else a kill before the first outcome would pass for a clean end."""
    first = Scene(P0)
    first.take_over()
    ended = first.commit(clean=True)
    assert ended is not None
    heir = Scene(P0)
    heir.group.told[P0] = TakenOver(ended.offsets[P0], END)
    heir.take_over(begin=False)
    heir.partitions.steer(window_full=False)
    assert heir.group.silent == {P0}
    heir.commit()
    heir.partitions.steer(window_full=False)
    assert heir.group.silent == set()


def test_the_position_is_told_so_that_lag_ends_at_zero() -> None:
    """Past transaction markers, where no record ever comes."""
    scene = Scene(P0)
    scene.take_over()
    assert scene.ledger.receive(P0, 0) is RecordState.NEW
    scene.group.positions[P0] = 3
    scene.partitions.steer(window_full=False)
    batch = scene.commit(clean=True)
    assert batch is not None
    assert batch.offsets[P0].offset == 0  # it is not done
    scene.partitions.revoked([P0])
    scene.group.new = [P0]
    scene.take_over()
    scene.group.positions[P0] = 3
    scene.partitions.steer(window_full=False)
    scene.clock.pass_(2)
    batch = scene.commit()
    assert batch is not None
    assert batch.offsets[P0].offset == 3


def test_pause_all_is_for_the_end() -> None:
    """Nothing more comes."""
    scene = Scene(P0, P1)
    scene.take_over()
    scene.partitions.steer(window_full=False)
    scene.partitions.pause_all()
    assert scene.group.silent == {P0, P1}
