"""The ledger: what goes into a transaction, and what follows from its end.

Long histories are tested in test_ledger_model.
"""

from __future__ import annotations

import threading

import pytest

from etl.models.wire import Batch, Message, Partition
from etl.outcomes.ledger import Ledger, Outcome
from etl.outcomes.offsets import OffsetTracker, RecordState

pytestmark = pytest.mark.unit

HERE = Partition("jobs", 0)
THERE = Partition("jobs", 1)


class Desk:
    """A ledger with some partitions assigned, and the clock and membership of its callers."""

    def __init__(self, *partitions: Partition, claimed: bool = True) -> None:
        self.ledger = Ledger("this life")
        self.now = 0.0
        self.member: object | None = "member 1"
        self.epoch = {tp: self.ledger.assign(tp, 0) for tp in partitions or (HERE,)}
        if claimed:
            batch = self.take()
            assert batch is not None
            self.ledger.end_batch(batch, committed=True)

    def receive(self, *offsets: int, tp: Partition = HERE) -> None:
        for offset in offsets:
            self.ledger.receive(tp, offset)

    def finish(
        self, offset: int, state: RecordState = RecordState.DONE, *, tp: Partition = HERE, on_commit=None, messages=None
    ):
        if messages is None:
            messages = (Message("results", b"%d" % offset, b"{}"),) if state is RecordState.DONE else ()
        return self.ledger.add(Outcome(tp, offset, self.epoch[tp], state, messages, on_commit))

    def take(self, limit: int = 100, *, clean: bool = False) -> Batch | None:
        return self.ledger.batch(limit, now=self.now, membership=lambda: self.member, clean=clean)

    def commit(self, limit: int = 100, *, clean: bool = False) -> Batch:
        batch = self.take(limit, clean=clean)
        assert batch is not None
        self.ledger.end_batch(batch, committed=True)
        return batch


def test_a_batch_carries_messages_offsets_and_the_membership_of_the_same_moment() -> None:
    desk = Desk(HERE, THERE)
    desk.receive(0, 1)
    desk.receive(0, tp=THERE)
    desk.finish(0)
    desk.finish(0, tp=THERE)
    batch = desk.commit()
    assert sorted(message.key for message in batch.messages) == [b"0", b"0"]
    assert {tp: commit.offset for tp, commit in batch.offsets.items()} == {HERE: 1, THERE: 1}
    assert batch.membership == "member 1"


def test_only_partitions_with_news_are_committed() -> None:
    desk = Desk(HERE, THERE)
    desk.receive(0)
    desk.finish(0)
    assert set(desk.commit().offsets) == {HERE}
    assert desk.take() is None


def test_messages_may_be_built_when_the_next_batch_is_taken() -> None:
    """Once, without the lock. The outcome counts meanwhile, and a batch that failed repeats the same messages."""
    desk = Desk()
    desk.receive(0, 1)
    written = []

    def write() -> tuple[Message, ...]:
        assert not desk.ledger._lock.locked()
        written.append(desk.ledger.waiting)
        return (Message("results", b"late", b"{}"),)

    assert desk.ledger.add(Outcome(HERE, 0, desk.epoch[HERE], write=write))
    assert not desk.ledger.add(Outcome(HERE, 0, desk.epoch[HERE], write=write)), "a second outcome"
    desk.finish(1)
    assert (written, desk.ledger.complete) == ([], True)
    batch = desk.take()
    assert batch is not None
    desk.ledger.end_batch(batch, committed=False)
    assert [message.key for message in batch.messages] == [b"late", b"1"]
    assert desk.commit().messages == batch.messages
    assert written == [2]


def test_an_outcome_added_while_messages_are_built_goes_into_the_next_batch() -> None:
    desk = Desk()
    desk.receive(0, 1)

    def later() -> tuple[Message, ...]:
        return (Message("results", b"1", b"{}"),)

    def write() -> tuple[Message, ...]:
        desk.ledger.add(Outcome(HERE, 1, desk.epoch[HERE], write=later))
        return (Message("results", b"0", b"{}"),)

    desk.ledger.add(Outcome(HERE, 0, desk.epoch[HERE], write=write))
    first, second = desk.commit(), desk.commit()
    assert [message.key for batch in (first, second) for message in batch.messages] == [b"0", b"1"]
    assert (first.offsets[HERE].offset, second.offsets[HERE].offset) == (1, 2)


def test_messages_built_for_a_revoked_partition_are_dropped() -> None:
    desk = Desk()
    desk.receive(0)

    def write() -> tuple[Message, ...]:
        desk.ledger.revoke([HERE])
        desk.ledger.assign(HERE, 0)
        desk.receive(0)
        return (Message("results", b"0", b"{}"),)

    desk.ledger.add(Outcome(HERE, 0, desk.epoch[HERE], write=write))
    batch = desk.take()
    assert batch is None or not batch.messages
    assert desk.ledger.waiting == 0


def test_membership_is_read_under_the_lock_so_that_no_revocation_comes_between() -> None:
    desk = Desk()
    desk.receive(0)
    desk.finish(0)
    revoker = threading.Thread(target=lambda: desk.ledger.revoke([HERE]))

    def membership() -> str:
        revoker.start()
        revoker.join(0.05)
        assert revoker.is_alive(), "it must wait for the batch"
        return "member 1"

    batch = desk.ledger.batch(10, now=0.0, membership=membership)
    revoker.join(5)
    assert batch is not None
    assert desk.ledger.partitions == []


def test_without_membership_there_is_no_batch_and_nothing_is_lost() -> None:
    desk = Desk()
    desk.receive(0)
    desk.finish(0)
    desk.member = None
    assert desk.take() is None
    desk.member = "member 2"
    assert len(desk.commit().messages) == 1


def test_one_batch_is_in_flight_at_a_time() -> None:
    desk = Desk()
    desk.receive(0)
    desk.finish(0)
    batch = desk.take()
    assert batch is not None
    with pytest.raises(RuntimeError, match="in flight"):
        desk.take()
    desk.ledger.end_batch(batch, committed=True)
    with pytest.raises(RuntimeError, match="not in flight"):
        desk.ledger.end_batch(batch, committed=True)


def test_a_rejected_batch_is_repeated_with_different_metadata() -> None:
    desk = Desk()
    desk.receive(0)
    desk.finish(0)
    first = desk.take()
    assert first is not None
    desk.ledger.end_batch(first, committed=False)
    second = desk.commit()
    assert second.messages == first.messages
    assert second.offsets[HERE].offset == first.offsets[HERE].offset
    assert second.offsets[HERE].metadata != first.offsets[HERE].metadata


def test_the_size_of_a_batch_is_limited_and_partitions_take_turns() -> None:
    desk = Desk(HERE, THERE)
    for tp in (HERE, THERE):
        desk.receive(*range(10), tp=tp)
        for offset in range(10):
            desk.finish(offset, tp=tp)
    first, second = desk.commit(4), desk.commit(4)
    assert len(first.messages) == len(second.messages) == 4
    assert set(first.offsets) != set(second.offsets)


def test_an_outcome_of_an_earlier_assignment_is_dropped() -> None:
    desk = Desk()
    desk.receive(0)
    desk.ledger.revoke([HERE])
    assert not desk.finish(0)
    again = desk.ledger.assign(HERE, 0)
    desk.receive(0)
    assert not desk.finish(0), "the record is done anew"
    assert desk.ledger.owns(HERE, again)
    assert not desk.ledger.owns(HERE, desk.epoch[HERE])


def test_a_second_outcome_of_a_record_is_dropped_before_and_after_the_commit() -> None:
    desk = Desk()
    desk.receive(0)
    assert desk.finish(0)
    assert not desk.finish(0)
    desk.commit()
    assert not desk.finish(0)
    assert not desk.finish(7), "never received"
    assert desk.ledger.waiting == 0


def test_a_batch_in_flight_ends_for_the_partitions_still_assigned() -> None:
    desk = Desk(HERE, THERE)
    called: list[Partition] = []
    for tp in (HERE, THERE):
        desk.receive(0, tp=tp)
        desk.finish(0, tp=tp, on_commit=lambda tp=tp: called.append(tp))
    batch = desk.take()
    assert batch is not None
    desk.ledger.revoke([HERE])
    desk.ledger.end_batch(batch, committed=True)
    assert called == [THERE]
    assert desk.ledger.outstanding == 0


def test_the_end_of_a_batch_does_not_affect_a_later_assignment_of_its_partition() -> None:
    desk = Desk()
    desk.receive(0)
    desk.finish(0)
    batch = desk.take()
    assert batch is not None
    desk.ledger.revoke([HERE])
    desk.ledger.assign(HERE, 0)
    desk.receive(0)
    desk.ledger.end_batch(batch, committed=True)
    assert desk.ledger.outstanding == 1


def test_after_a_published_record_is_committed_its_action_starts_and_its_result_follows() -> None:
    desk = Desk()
    started: list[str] = []
    desk.receive(0)
    desk.finish(0, RecordState.PUBLISHED, on_commit=lambda: started.append("action"))
    assert started == []
    batch = desk.commit()
    assert batch.messages == ()
    assert OffsetTracker(*batch.offsets[HERE]).receive(0) is RecordState.PUBLISHED
    assert started == ["action"]
    assert desk.finish(0)
    assert len(desk.commit().messages) == 1


def test_callbacks_run_without_the_lock() -> None:
    desk = Desk()
    desk.receive(0, 1)
    desk.finish(0, on_commit=lambda: desk.finish(1))
    desk.commit()
    assert desk.ledger.waiting == 1


def test_a_callback_is_not_called_for_a_rejected_batch() -> None:
    desk = Desk()
    called: list[int] = []
    desk.receive(0)
    desk.finish(0, RecordState.PUBLISHED, on_commit=lambda: called.append(1))
    batch = desk.take()
    assert batch is not None
    desk.ledger.end_batch(batch, committed=False)
    assert called == []
    desk.commit()
    assert called == [1]


def test_a_record_of_another_group_is_done_without_a_message() -> None:
    desk = Desk()
    desk.receive(0)
    desk.finish(0, messages=())
    batch = desk.commit()
    assert batch.messages == ()
    assert batch.offsets[HERE].offset == 1


def test_a_position_past_markers_is_committed_at_most_once_a_second() -> None:
    desk = Desk()
    desk.now = 10.0
    desk.receive(0)
    desk.finish(0)
    desk.commit()
    desk.ledger.advance(HERE, 2)
    desk.now = 10.9
    assert desk.take() is None
    desk.now = 11.0
    assert desk.commit().offsets[HERE].offset == 2
    desk.now = 20.0
    assert desk.take() is None


def test_a_position_beyond_an_unfinished_record_is_not_committed() -> None:
    desk = Desk()
    desk.receive(0)
    desk.ledger.advance(HERE, 5)
    desk.now = 100.0
    assert desk.take() is None


def test_calls_for_a_partition_that_is_not_assigned_have_no_effect() -> None:
    desk = Desk()
    desk.ledger.advance(THERE, 5)
    desk.ledger.revoke([THERE])
    assert not desk.ledger.was_clean(THERE)
    assert not desk.ledger.is_claimed(THERE)
    assert not desk.ledger.is_full(THERE)
    with pytest.raises(KeyError):
        desk.ledger.receive(THERE, 0)


def test_a_ledger_without_a_token_makes_its_own() -> None:
    seen = set()
    for _ in range(3):
        ledger = Ledger()
        ledger.assign(HERE, 0)
        batch = ledger.batch(1, now=0.0, membership=lambda: 1)
        assert batch is not None
        seen.add(batch.offsets[HERE].metadata)
    assert len(seen) == 3


# --- a clean end


def test_a_clean_end_marks_every_partition_even_idle_ones() -> None:
    desk = Desk(HERE, THERE)
    desk.receive(0)
    desk.finish(0)
    batch = desk.commit(clean=True)
    assert batch.clean
    assert all(OffsetTracker(*commit).was_clean for commit in batch.offsets.values())
    assert set(batch.offsets) == {HERE, THERE}
    desk.now = 100.0
    assert desk.take() is None, "nothing unsays it"


def test_a_new_owner_claims_a_partition_before_it_works_there() -> None:
    desk = Desk(claimed=False)
    assert desk.ledger.was_clean(HERE)
    assert not desk.ledger.is_claimed(HERE)
    batch = desk.commit()
    assert not OffsetTracker(*batch.offsets[HERE]).was_clean
    assert desk.ledger.is_claimed(HERE)
    assert desk.ledger.was_clean(HERE), "of the last owner"


def test_work_after_a_clean_end_removes_the_mark() -> None:
    desk = Desk()
    desk.commit(clean=True)
    desk.receive(0)
    assert not OffsetTracker(*desk.commit().offsets[HERE]).was_clean


# --- an unknown outcome


def unknown(desk: Desk) -> Batch:
    for tp in (HERE, THERE):
        desk.receive(0, tp=tp)
        desk.finish(0, tp=tp)
    batch = desk.take()
    assert batch is not None
    return batch


def test_a_batch_was_committed_if_one_of_its_partitions_reads_back_as_sent() -> None:
    desk = Desk(HERE, THERE)
    batch = unknown(desk)
    assert desk.ledger.resolve(batch, {HERE: (0, "another owner's"), THERE: batch.offsets[THERE]}) is True


def test_a_batch_was_not_committed_if_none_of_its_partitions_reads_back_as_sent() -> None:
    desk = Desk(HERE, THERE)
    batch = unknown(desk)
    offset, metadata = batch.offsets[HERE]
    assert desk.ledger.resolve(batch, {HERE: (offset, "older"), THERE: (offset + 1, metadata)}) is False


def test_revoked_partitions_do_not_decide_whether_a_batch_was_committed() -> None:
    desk = Desk(HERE, THERE)
    batch = unknown(desk)
    desk.ledger.revoke([HERE])
    assert desk.ledger.resolve(batch, {THERE: (0, "older")}) is False
    desk.ledger.revoke([THERE])
    assert desk.ledger.resolve(batch, {}) is False, "nothing is left to decide"


def test_an_answer_without_one_of_the_assigned_partitions_decides_nothing() -> None:
    desk = Desk(HERE, THERE)
    batch = unknown(desk)
    assert desk.ledger.resolve(batch, {HERE: (0, "older")}) is None


# --- too large


def test_a_message_that_is_too_large_is_replaced_by_its_shorter_form() -> None:
    desk = Desk()
    desk.receive(0, 1)
    short = (Message("dlq", b"1", b"short"), Message("results", b"1", b"failed"))
    desk.finish(0)
    desk.finish(
        1, messages=(Message("retry", b"1", b"x" * 100, shrink=lambda: short), Message("other", b"1", b"stays"))
    )
    batch = desk.take()
    assert batch is not None
    assert desk.ledger.shrink(batch, 1)
    desk.ledger.end_batch(batch, committed=False)
    assert [message.topic for message in desk.commit().messages] == ["results", "dlq", "results", "other"]


def test_a_message_without_a_shorter_form_is_reported_as_such() -> None:
    desk = Desk()
    desk.receive(0)
    desk.finish(0)
    batch = desk.take()
    assert batch is not None
    assert not desk.ledger.shrink(batch, 0)


def test_a_message_that_is_too_large_may_belong_to_a_revoked_partition() -> None:
    desk = Desk()
    desk.receive(0)
    desk.finish(0, messages=(Message("dlq", None, b"", shrink=lambda: ()),))
    batch = desk.take()
    assert batch is not None
    desk.ledger.revoke([HERE])
    assert desk.ledger.shrink(batch, 0)
