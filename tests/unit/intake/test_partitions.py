"""Partitions are taken over, paused, delayed and resumed. A small fake of `GroupConsumer` is the broker's side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import structlog.testing

import pretend
from etl.broker import TakenOver
from etl.intake import partitions
from etl.intake.partitions import WAITING_LIMIT_BYTES, Partitions
from etl.models.wire import Batch, Commit, Message, Partition
from etl.outcomes.ledger import Ledger, Outcome
from etl.outcomes.offsets import RecordState

pytestmark = pytest.mark.unit

P0, P1 = Partition("jobs", 0), Partition("jobs", 1)
Reply = TakenOver | None
END = 100  # of every partition


class FakeGroup:
    """What the Kafka client would know."""

    def __init__(self, *held: Partition) -> None:
        self.new = list(held)
        self.paused = set(held)  # assigned partitions are paused until they are taken over
        self.replies: dict[Partition, Reply] = {}
        self.revoked: set[Partition] = set()  # during their take-over
        self.positions: dict[Partition, int] = {}
        self.member = True
        self.sought: list[tuple[Partition, int]] = []
        self.on_revoked: Callable[[list[Partition]], None]

    def new_partitions(self) -> list[Partition]:
        return list(self.new)

    def take_over(self, partition: Partition, set_up: Callable[[TakenOver], None], timeout: float) -> Reply:
        reply = self.replies.get(partition, TakenOver(Commit(0, ""), END))
        if reply is None:
            return None
        self.positions[partition] = reply.committed.offset
        set_up(reply)
        self.new.remove(partition)
        if partition in self.revoked:
            self.on_revoked([partition])
            return None
        return reply

    def position(self, partition: Partition) -> int | None:
        return self.positions.get(partition)

    def behind(self, partition: Partition) -> int:
        return 5

    def pause(self, partitions: Iterable[Partition]) -> None:
        self.paused |= set(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        self.paused -= set(partitions)

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
        self.group.on_revoked = self.partitions.revoke

    def take_over(self, *, begin: bool = True) -> list[dict[str, Any]]:
        """Take over; return the log. `begin`: then commit, as nothing is fetched until the partition is claimed."""
        with structlog.testing.capture_logs() as events:
            self.partitions.take_over_new()
        if begin:
            self.commit()
        return [dict(event) for event in events]

    def commit(self, *, clean: bool = False) -> Batch | None:
        batch = self.ledger.batch(100, now=self.clock(), membership=object, clean=clean)
        if batch is not None:
            self.ledger.end_batch(batch, committed=True)
        return batch


def test_a_partition_is_fetched_from_once_it_is_taken_over() -> None:
    """It stays paused until the group's committed offset is known."""
    scene = Scene(P0)
    scene.partitions.steer(window_full=False)
    assert scene.group.paused == {P0}
    assert scene.partitions.epoch(P0) is None
    scene.take_over()
    scene.partitions.steer(window_full=False)
    assert scene.group.paused == set()
    assert scene.partitions.epoch(P0) is not None


def test_a_partition_to_be_taken_over_again_is_not_fetched_from() -> None:
    """Its position is out of range, or records that were read before it are gone."""
    scene = Scene(P0)
    scene.take_over()
    scene.partitions.steer(window_full=True)
    scene.group.new.append(P0)
    scene.partitions.steer(window_full=False)
    assert scene.group.paused == {P0}
    scene.take_over()
    scene.partitions.steer(window_full=False)
    assert scene.group.paused == set()


def test_a_delayed_partition_resumes_where_it_was_paused() -> None:
    """Even if the client has changed its position meanwhile, which never reaches the ledger."""
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


def test_a_failed_take_over_is_retried() -> None:
    """It does not keep other partitions from being taken over."""
    scene = Scene(P0, P1)
    scene.group.replies[P0] = None
    scene.take_over()
    assert scene.partitions.epoch(P0) is None
    assert scene.partitions.epoch(P1) is not None
    del scene.group.replies[P0]
    scene.take_over()
    assert None not in (scene.partitions.epoch(P0), scene.partitions.epoch(P1))


def test_a_partition_revoked_during_its_take_over_is_not_held() -> None:
    """The client reports it in another thread, before there is anything to drop."""
    scene = Scene(P0, P1)
    scene.group.revoked = {P0}
    scene.take_over()
    assert scene.partitions.epoch(P0) is None
    assert not scene.ledger.owns(P0, 1)
    assert scene.partitions.epoch(P1) is not None


def test_the_number_of_lost_records_is_logged() -> None:
    """A jump over lost records is never silent."""
    scene = Scene(P0)
    scene.group.replies[P0] = TakenOver(Commit(50, ""), END, lost=43)
    (lost, _taken) = scene.take_over()
    assert (lost["log_level"], lost["lost"], lost["goes_on_at"]) == ("error", 43, 50)


def test_a_full_window_pauses_all_partitions_until_there_is_room() -> None:
    """Records that cannot be processed are not fetched."""
    scene = Scene(P0, P1)
    scene.take_over()
    scene.partitions.steer(window_full=True)
    assert scene.group.paused == {P0, P1}
    scene.partitions.steer(window_full=False)
    assert scene.group.paused == set()


def test_messages_that_wait_for_their_commit_pause_all_partitions_when_they_take_too_much() -> None:
    """A hundred dead letters of large messages would fill the memory while the broker is slow."""
    scene = Scene(P0)
    scene.take_over()
    epoch = scene.partitions.epoch(P0)
    assert epoch is not None
    large = Message("jobs-dlq", None, bytes(WAITING_LIMIT_BYTES // 2))
    start = scene.group.positions.get(P0, 0) + 100
    for offset, is_paused in ((start, False), (start + 1, True)):
        scene.ledger.receive(P0, offset)
        assert scene.ledger.add(Outcome(P0, offset, epoch, messages=(large,)))
        scene.partitions.steer(window_full=False)
        assert (scene.group.paused == {P0}) == is_paused
    scene.commit()
    scene.partitions.steer(window_full=False)
    assert scene.group.paused == set()


def test_a_delayed_partition_resumes_when_it_is_due_and_delays_no_other() -> None:
    """It is then read again from its next record on."""
    scene = Scene(P0, P1)
    scene.take_over()
    scene.partitions.delay(P0, 7, scene.clock() + 10, seen_by_predecessor=True)
    scene.partitions.steer(window_full=False)
    assert scene.partitions.is_delayed(P0)
    assert scene.group.paused == {P0}
    assert scene.group.sought == [(P0, 7)]
    assert scene.partitions.count_deferred("jobs") == (10, scene.clock() + 10)
    scene.clock.pass_(10)
    scene.partitions.steer(window_full=False)
    assert not scene.partitions.is_delayed(P0)
    assert scene.group.paused == set()
    scene.partitions.delay(Partition("jobs", 9), 0, 0.0, seen_by_predecessor=True)  # not held: nothing happens
    assert scene.partitions.count_deferred("other") == (0, None)


def test_a_record_that_may_be_recalled_ends_its_partitions_delay() -> None:
    """Not while the window is full, as the record could not be processed."""
    scene, may_go = Scene(P0), [False]
    scene.take_over()
    scene.partitions.delay(P0, 7, scene.clock() + 600, seen_by_predecessor=True, may_go=lambda: may_go[0])
    scene.partitions.steer(window_full=False)
    assert scene.group.paused == {P0}
    may_go[0] = True
    scene.partitions.steer(window_full=True)
    assert scene.partitions.is_delayed(P0)
    scene.partitions.steer(window_full=False)
    assert not scene.partitions.is_delayed(P0)
    assert scene.group.paused == set()


def test_of_the_partitions_that_may_go_one_goes_at_a_time() -> None:
    """The one that has waited longest: what it brings may take all the room, and the rest would be fetched in vain."""
    scene = Scene(P0, P1)
    scene.take_over()
    scene.partitions.delay(P1, 7, math.inf, seen_by_predecessor=True, may_go=lambda: True, stands=True)
    scene.clock.pass_(1)
    scene.partitions.delay(P0, 3, math.inf, seen_by_predecessor=True, may_go=lambda: True, stands=True)
    assert scene.partitions.standing() == {P0: 3, P1: 7}
    assert scene.partitions.count_deferred("jobs") == (10, None)
    scene.partitions.steer(window_full=False)
    assert scene.partitions.standing() == {P0: 3}
    assert scene.group.paused == {P0}
    scene.partitions.steer(window_full=False)
    assert scene.partitions.standing() == {}
    assert scene.group.paused == set()
    scene.partitions.delay(P0, 3, scene.clock() + 5, seen_by_predecessor=True)
    assert scene.partitions.standing() == {}, "it is not due"


def test_a_revoked_partition_is_not_owned() -> None:
    """From that moment on; a new assignment has another epoch."""
    scene = Scene(P0)
    scene.take_over()
    before = scene.partitions.epoch(P0)
    assert before is not None
    assert scene.partitions.owns(P0, before)
    scene.partitions.revoke([P0])
    assert not scene.partitions.owns(P0, before)
    scene.group.new = [P0]
    scene.take_over()
    assert not scene.partitions.owns(P0, before)


def test_a_process_that_is_not_a_member_owns_nothing() -> None:
    """A process that lost its session publishes nothing."""
    scene = Scene(P0)
    scene.take_over()
    epoch = scene.partitions.epoch(P0)
    assert epoch is not None
    scene.group.member = False
    assert not scene.partitions.owns(P0, epoch)


def after_a_kill(*, end: int = END) -> Scene:
    """Return a scene whose partition was taken over from an owner that did not end cleanly."""
    dead = Scene(P0)
    dead.take_over(begin=False)
    dead.ledger.receive(P0, 0)
    first = dead.commit()
    assert first is not None
    scene = Scene(P0)
    scene.group.replies[P0] = TakenOver(first.offsets[P0], end)
    scene.take_over()
    return scene


def test_jobs_that_a_dead_owner_may_have_run_look_for_orphans(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a process may have outstanding, and none that was sent after its death."""
    monkeypatch.setattr(partitions, "MIN_OUTSTANDING_LIMIT", 20)
    monkeypatch.setattr(partitions, "MAX_POLL_RECORDS", 3)
    scene = after_a_kill()
    assert sum(scene.partitions.orphan_scan_since(P0, offset) is not None for offset in range(50)) == 23
    assert scene.partitions.orphan_scan_since(P1, 0) is None
    scene = after_a_kill(end=5)
    assert [offset for offset in range(10) if scene.partitions.orphan_scan_since(P0, offset) is not None] == [*range(5)]


def test_after_a_clean_end_no_job_looks_for_orphans() -> None:
    ended = after_a_kill().commit(clean=True)
    assert ended is not None
    successor = Scene(P0)
    successor.group.replies[P0] = TakenOver(ended.offsets[P0], END)
    successor.take_over()
    assert successor.partitions.orphan_scan_since(P0, 0) is None
    assert successor.partitions.has_scanned()


def test_the_scan_is_complete_once_every_record_of_earlier_owners_was_received() -> None:
    """A process that stops before does not end cleanly: the next owner has to look as well."""
    scene = after_a_kill(end=5)
    assert not scene.partitions.has_scanned()
    scene.group.positions[P0] = 4
    assert not scene.partitions.has_scanned()
    scene.partitions.delay(P0, 4, scene.clock() + 10, seen_by_predecessor=True)
    assert not scene.partitions.has_scanned()
    scene.partitions.delay(P0, 4, scene.clock() + 10, seen_by_predecessor=False)  # not due before the dead owner died
    assert scene.partitions.has_scanned()
    scene = after_a_kill(end=5)
    scene.group.positions[P0] = 5
    assert scene.partitions.has_scanned()
    scene = after_a_kill(end=5)
    scene.partitions.revoke([P0])
    assert scene.partitions.has_scanned()


def test_no_more_records_are_outstanding_than_the_next_owner_would_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that are done but not committed count as well: after a kill they run again."""
    monkeypatch.setattr(partitions, "MIN_OUTSTANDING_LIMIT", 3)
    scene = Scene(P0, window=1)
    scene.take_over()
    for offset in range(3):
        scene.partitions.steer(window_full=False)
        assert scene.group.paused == set()
        scene.ledger.receive(P0, offset)
    scene.partitions.steer(window_full=False)
    assert scene.group.paused == {P0}


def test_nothing_is_fetched_while_a_partition_is_marked_as_left_cleanly() -> None:
    """Otherwise a kill before the first outcome would be taken for a clean end."""
    first = Scene(P0)
    first.take_over()
    ended = first.commit(clean=True)
    assert ended is not None
    successor = Scene(P0)
    successor.group.replies[P0] = TakenOver(ended.offsets[P0], END)
    successor.take_over(begin=False)
    successor.partitions.steer(window_full=False)
    assert successor.group.paused == {P0}
    successor.commit()
    successor.partitions.steer(window_full=False)
    assert successor.group.paused == set()


def test_the_position_is_committed_so_that_lag_ends_at_zero() -> None:
    """Transaction markers at the end of a partition are passed, although no record follows."""
    scene = Scene(P0)
    scene.take_over()
    assert scene.ledger.receive(P0, 0) is RecordState.NEW
    scene.group.positions[P0] = 3
    scene.partitions.steer(window_full=False)
    batch = scene.commit(clean=True)
    assert batch is not None
    assert batch.offsets[P0].offset == 0  # its record is not done
    scene.partitions.revoke([P0])
    scene.group.new = [P0]
    scene.take_over()
    scene.group.positions[P0] = 3
    scene.partitions.steer(window_full=False)
    scene.clock.pass_(2)
    batch = scene.commit()
    assert batch is not None
    assert batch.offsets[P0].offset == 3


def test_pause_all_pauses_every_partition() -> None:
    """For the stop, when nothing more may be fetched."""
    scene = Scene(P0, P1)
    scene.take_over()
    scene.partitions.steer(window_full=False)
    scene.partitions.pause_all()
    assert scene.group.paused == {P0, P1}
