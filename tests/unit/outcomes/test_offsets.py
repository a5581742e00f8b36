"""What the commit of a partition states, and what the next owner reads from it."""

from __future__ import annotations

import base64
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.outcomes import offsets
from etl.outcomes.offsets import METADATA_LIMIT_BYTES, OffsetTracker, RecordState

pytestmark = pytest.mark.unit

LONG = os.environ.get("TEST_LONG", "") not in {"", "0"}
TOKEN = "one life"


def received(*records: int, start: int = 0) -> OffsetTracker:
    tracker = OffsetTracker(start)
    for record in records:
        assert tracker.receive(record) is RecordState.NEW
    return tracker


def finish(tracker: OffsetTracker, *records: int) -> None:
    plan = tracker.plan(dict.fromkeys(records, RecordState.DONE), len(records))
    assert plan.done == set(records)
    tracker.mark_committed(*plan)


def commit(tracker: OffsetTracker, counter: int = 1, *, clean: bool = False) -> offsets.Commit:
    return tracker.snapshot((), (), counter, TOKEN, clean=clean)


def states(commit: offsets.Commit, records: list[int]) -> dict[int, RecordState]:
    """Return how far each record has come for the next owner, from the committed offset on."""
    successor = OffsetTracker(*commit)
    return {record: successor.receive(record) for record in records if record >= commit.offset}


# --- the offset


def test_a_partition_without_records_commits_its_starting_offset() -> None:
    assert commit(OffsetTracker(7)).offset == 7


def test_the_offset_is_the_first_record_that_is_not_done() -> None:
    tracker = received(0, 1, 2)
    finish(tracker, 0, 2)
    assert commit(tracker).offset == 1


def test_with_nothing_outstanding_the_position_is_committed_so_that_lag_ends_at_zero() -> None:
    tracker = received(0, 1)
    tracker.position = 3  # a transaction marker
    finish(tracker, 0, 1)
    assert commit(tracker).offset == 3


def test_a_position_that_falls_behind_is_ignored() -> None:
    tracker = received(0, 1)
    tracker.position = 1
    assert tracker.position == 2


def test_offsets_without_a_record_do_not_hold_the_commit_back() -> None:
    tracker = received(10, 20, 30)
    finish(tracker, 10, 20)
    assert commit(tracker).offset == 30


def test_a_record_before_the_position_is_refused_as_it_would_be_done_twice() -> None:
    tracker = received(0, 5)
    with pytest.raises(ValueError, match="record 5 comes after position 6"):
        tracker.receive(5)


def test_the_offset_skips_a_range_that_the_last_owner_had_done() -> None:
    before = received(*range(10))
    finish(before, *range(3, 8))
    tracker = OffsetTracker(*commit(before))
    for record in (0, 1, 2):
        tracker.receive(record)
    finish(tracker, 0, 1, 2)
    assert commit(tracker).offset == 8
    assert tracker.receive(3) is RecordState.DONE, "also behind the committed offset"


# --- after a restart


def test_records_done_beyond_the_offset_are_done_for_the_next_owner() -> None:
    tracker = received(0, 1, 2, 4, 9)
    finish(tracker, 1, 4)
    successor = states(commit(tracker), [0, 1, 2, 4, 9])
    assert successor == {
        0: RecordState.NEW,
        1: RecordState.DONE,
        2: RecordState.NEW,
        4: RecordState.DONE,
        9: RecordState.NEW,
    }


def test_ranges_beyond_the_position_are_kept_in_new_commits() -> None:
    before = received(*range(100))
    finish(before, *range(40, 60), 80)
    tracker = OffsetTracker(*commit(before))
    tracker.receive(0)
    tracker.receive(1)
    finish(tracker, 0)
    successor = states(commit(tracker), list(range(100)))
    assert {record for record, state in successor.items() if state is RecordState.DONE} == {*range(40, 60), 80}


def test_records_published_beyond_the_position_are_kept_in_new_commits() -> None:
    before = received(*range(10))
    before.mark_committed((), (4, 6))
    tracker = OffsetTracker(*commit(before))
    tracker.receive(0)
    successor = states(commit(tracker), list(range(10)))
    assert {record for record, state in successor.items() if state is RecordState.PUBLISHED} == {4, 6}


def test_a_published_record_stays_published_until_it_is_done() -> None:
    tracker = received(0, 1)
    tracker.mark_committed((), (0, 1))
    assert states(commit(tracker), [0, 1]) == {0: RecordState.PUBLISHED, 1: RecordState.PUBLISHED}
    finish(tracker, 0)
    assert states(commit(tracker), [1]) == {1: RecordState.PUBLISHED}
    finish(tracker, 1)
    assert commit(tracker).offset == 2


def test_a_published_record_that_compaction_removed_is_forgotten() -> None:
    before = received(0, 1, 2)
    before.mark_committed((), (0, 1))
    tracker = OffsetTracker(*commit(before))
    assert tracker.receive(2) is RecordState.NEW
    finish(tracker, 2)
    assert commit(tracker) == (3, commit(OffsetTracker(3)).metadata)


def test_the_clean_flag_reaches_the_next_owner_and_no_further() -> None:
    successor = OffsetTracker(*commit(received(0), clean=True))
    assert successor.was_clean
    assert not OffsetTracker(*commit(successor)).was_clean


def test_a_partition_without_any_commit_counts_as_left_cleanly() -> None:
    assert OffsetTracker(0).was_clean


# --- the metadata


def test_every_commit_of_every_process_has_unique_metadata() -> None:
    tracker = received(0)
    distinct = {tracker.snapshot((), (), counter, token).metadata for counter in range(50) for token in ("a", "b", "")}
    assert len(distinct) == 150


@pytest.mark.parametrize("metadata", ["somebody else's", "etl1:", "etl1:!!!", "etl1:0000000000", "etl9:abc", "é"])
def test_foreign_metadata_counts_as_none(metadata: str) -> None:
    tracker = OffsetTracker(5, metadata)
    assert not tracker.was_clean
    assert tracker.receive(5) is RecordState.NEW


def test_damaged_metadata_counts_as_none() -> None:
    tracker = received(0, 1, 2)
    finish(tracker, 1)
    offset, metadata = commit(tracker, clean=True)
    for at in range(len(metadata)):
        wrong = metadata[:at] + ("A" if metadata[at] != "A" else "B") + metadata[at + 1 :]
        successor = OffsetTracker(offset, wrong)
        assert not successor.was_clean
        assert [successor.receive(record) for record in (0, 1, 2)] == [RecordState.NEW] * 3


def test_metadata_of_another_offset_counts_as_none() -> None:
    tracker = received(0, 1, 2)
    finish(tracker, 1)
    _, metadata = commit(tracker)
    assert OffsetTracker(1, metadata).receive(1) is RecordState.NEW


def test_truncated_metadata_counts_as_none() -> None:
    payload = bytearray(offsets._HEAD_BYTES) + b"\x05\x01"
    payload += offsets._checksum(0, payload)
    metadata = offsets._VERSION + base64.b85encode(bytes(payload)).decode()
    assert OffsetTracker(0, metadata).receive(2) is RecordState.NEW


def test_the_metadata_grows_with_the_number_of_gaps_and_not_with_the_distance() -> None:
    tracker = received(*range(0, 1_000_000, 1000))
    finish(tracker, *range(1000, 1_000_000, 1000))
    assert len(commit(tracker).metadata) < 60


def test_markers_between_finished_records_are_not_gaps() -> None:
    tracker = received(*range(0, 2000, 2))  # one transaction for each record
    finish(tracker, *range(2, 1000, 2), *range(1100, 2000, 2))
    assert len(commit(tracker).metadata) < 60


def test_in_the_worst_case_the_outcomes_of_a_full_window_fit_or_wait() -> None:
    tracker = received(*range(10_000))
    ready = dict.fromkeys(range(1, 10_000, 2), RecordState.DONE)
    plan = tracker.plan(ready, 10_000)
    assert 1500 < len(plan.done) < 5000, "some must wait"
    assert len(tracker.snapshot(*plan, 1, TOKEN).metadata) <= METADATA_LIMIT_BYTES
    tracker.mark_committed(*plan)
    finish(tracker, *(o for o in range(0, 10_000, 2)), *(ready.keys() - plan.done))
    assert commit(tracker).offset == 10_000


def test_the_first_unfinished_record_can_be_published_and_finished_when_the_metadata_is_full() -> None:
    tracker = received(*range(10_000))
    tracker.mark_committed(*tracker.plan(dict.fromkeys(range(1, 10_000, 2), RecordState.DONE), 10_000))
    assert tracker.plan({9_998: RecordState.PUBLISHED}, 1).published == frozenset(), "no room"
    for first in (0, 2, 4):
        plan = tracker.plan(
            {first: RecordState.PUBLISHED, **dict.fromkeys(range(9000, 9990, 2), RecordState.PUBLISHED)}, 999
        )
        assert first in plan.published
        assert len(plan.published) < 10, "the others have no room"
        assert len(tracker.snapshot(*plan, 1, TOKEN).metadata) <= METADATA_LIMIT_BYTES
        tracker.mark_committed(*plan)
        finish(tracker, first)


def test_a_partition_is_full_before_outstanding_records_could_overflow_the_metadata() -> None:
    tracker = OffsetTracker(0)
    count = 0
    while not tracker.is_full:
        tracker.receive(count)
        count += 1
    assert 1000 < count < 3000
    plan = tracker.plan(dict.fromkeys(range(1, count, 2), RecordState.DONE), count)
    assert len(plan.done) == len(range(1, count, 2)), "none has to wait"
    tracker.mark_committed(*plan)
    finish(tracker, 0, 2, 4)
    assert not tracker.is_full


def test_a_plan_is_limited_and_takes_the_lowest_offsets_first() -> None:
    tracker = received(*range(10))
    plan = tracker.plan(dict.fromkeys((9, 3, 5, 7), RecordState.DONE) | {4: RecordState.PUBLISHED}, 3)
    assert plan == (frozenset({3, 5}), frozenset({4}))


def test_records_that_are_not_outstanding_are_never_planned() -> None:
    tracker = received(0, 1)
    finish(tracker, 0)
    assert tracker.plan({0: RecordState.DONE, 7: RecordState.DONE}, 10) == (frozenset(), frozenset())


# --- properties


@st.composite
def journeys(draw: st.DrawFn) -> tuple[list[int], random.Random]:
    gaps = draw(st.lists(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 150, 40_000, 2**33]), min_size=1, max_size=60))
    records, at = [], draw(st.sampled_from([0, 5, 2**40]))
    for gap in gaps:
        at += gap
        records.append(at)
        at += 1
    return records, draw(st.randoms(use_true_random=False))


@settings(max_examples=2000 if LONG else 100, deadline=None)
@given(journeys(), st.sampled_from([3, 12, 60, 4000]))
def test_each_owner_knows_exactly_what_was_committed_in_whatever_order_records_are_finished(
    journey: tuple[list[int], random.Random], room_bytes: int
) -> None:
    """Each of many owners receives some records, finishes some in any order, and ends; none is lost or invented."""
    records, chance = journey
    room_before, offsets._ROOM_BYTES = offsets._ROOM_BYTES, room_bytes
    try:
        done: set[int] = set()
        published: set[int] = set()
        committed = offsets.Commit(records[0], "")
        for owner in range(200):
            tracker = OffsetTracker(*committed)
            remaining = [r for r in records if r >= committed.offset]
            if not remaining:
                break
            unfinished = []
            for record in remaining[: chance.randint(1, len(remaining))]:
                state = tracker.receive(record)
                expected = (
                    RecordState.DONE
                    if record in done
                    else RecordState.PUBLISHED
                    if record in published
                    else RecordState.NEW
                )
                assert state is expected
                if state is not RecordState.DONE:
                    unfinished.append(record)
            chance.shuffle(unfinished)
            ready = {r: chance.choice([RecordState.DONE, RecordState.DONE, RecordState.PUBLISHED]) for r in unfinished}
            for record in unfinished[len(unfinished) // 2 :] if chance.random() < 0.5 else ():
                del ready[record]
            plan = tracker.plan(ready, chance.choice([1, 3, 100]))
            first = next((r for r in remaining if r not in done), None)
            assert first not in ready or first in plan.done | plan.published or len(ready) > 1
            committed = tracker.snapshot(*plan, owner, TOKEN)
            size = tracker._view_after(*plan).size_bytes()
            assert size <= room_bytes
            assert len(committed.metadata) <= METADATA_LIMIT_BYTES
            done |= plan.done
            published = (published | plan.published) - done
            assert not set(remaining) - done or committed.offset <= min(set(remaining) - done)
            tracker.mark_committed(*plan)
            assert tracker.snapshot((), (), owner, TOKEN) == committed, "the tracker agrees with the commit"
    finally:
        offsets._ROOM_BYTES = room_before


@given(st.lists(st.integers(0, 2**63)))
def test_numbers_survive_encoding(numbers: list[int]) -> None:
    code = b"".join(offsets._varint(number) for number in numbers)
    assert offsets._varints(code) == numbers
    assert len(code) == sum(offsets._varint_size(number) for number in numbers)


@given(st.integers(0, 2**40), st.text())
def test_no_metadata_breaks_the_next_owner(start: int, metadata: str) -> None:
    assert OffsetTracker(start, metadata).position == start
    assert OffsetTracker(start, "etl1:" + metadata).position == start
