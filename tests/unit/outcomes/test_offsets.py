"""What one partition's commit says, and what the next owner makes of it."""

from __future__ import annotations

import base64
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.outcomes import offsets
from etl.outcomes.offsets import METADATA_LIMIT_BYTES, Progress, State

pytestmark = pytest.mark.unit

LONG = os.environ.get("TEST_LONG", "") not in {"", "0"}
TOKEN = "one life"


def received(*records: int, start: int = 0) -> Progress:
    progress = Progress(start)
    for record in records:
        assert progress.receive(record) is State.NEW
    return progress


def finish(progress: Progress, *records: int) -> None:
    choice = progress.plan(dict.fromkeys(records, State.DONE), len(records))
    assert choice.done == set(records)
    progress.settle(*choice)


def commit(progress: Progress, counter: int = 1, *, clean: bool = False) -> offsets.Commit:
    return progress.snapshot((), (), counter, TOKEN, clean=clean)


def states(commit: offsets.Commit, records: list[int]) -> dict[int, State]:
    """What the next owner is told of each record from the committed offset on."""
    heir = Progress(*commit)
    return {record: heir.receive(record) for record in records if record >= commit.offset}


# --- the offset


def test_an_untouched_partition_commits_where_it_started() -> None:
    assert commit(Progress(7)).offset == 7


def test_the_offset_is_the_first_record_that_is_not_done() -> None:
    progress = received(0, 1, 2)
    finish(progress, 0, 2)
    assert commit(progress).offset == 1


def test_with_nothing_outstanding_the_position_is_committed_so_that_lag_ends_at_zero() -> None:
    progress = received(0, 1)
    progress.position = 3  # a transaction marker
    finish(progress, 0, 1)
    assert commit(progress).offset == 3


def test_a_position_that_falls_behind_is_ignored() -> None:
    progress = received(0, 1)
    progress.position = 1
    assert progress.position == 2


def test_offsets_that_never_existed_do_not_hold_the_commit_back() -> None:
    progress = received(10, 20, 30)
    finish(progress, 10, 20)
    assert commit(progress).offset == 30


def test_a_record_before_the_position_is_refused_because_it_would_be_done_twice() -> None:
    progress = received(0, 5)
    with pytest.raises(ValueError, match="record 5 comes after position 6"):
        progress.receive(5)


def test_the_offset_skips_a_run_that_the_last_owner_had_done() -> None:
    before = received(*range(10))
    finish(before, *range(3, 8))
    progress = Progress(*commit(before))
    for record in (0, 1, 2):
        progress.receive(record)
    finish(progress, 0, 1, 2)
    assert commit(progress).offset == 8
    assert progress.receive(3) is State.DONE, "also behind the committed offset"


# --- after a restart


def test_what_was_done_beyond_the_offset_is_done_for_the_next_owner() -> None:
    progress = received(0, 1, 2, 4, 9)
    finish(progress, 1, 4)
    heir = states(commit(progress), [0, 1, 2, 4, 9])
    assert heir == {0: State.NEW, 1: State.DONE, 2: State.NEW, 4: State.DONE, 9: State.NEW}


def test_runs_beyond_the_position_are_carried_into_new_commits() -> None:
    before = received(*range(100))
    finish(before, *range(40, 60), 80)
    progress = Progress(*commit(before))
    progress.receive(0)
    progress.receive(1)
    finish(progress, 0)
    heir = states(commit(progress), list(range(100)))
    assert {record for record, state in heir.items() if state is State.DONE} == {*range(40, 60), 80}


def test_published_beyond_the_position_is_carried_into_new_commits() -> None:
    before = received(*range(10))
    before.settle((), (4, 6))
    progress = Progress(*commit(before))
    progress.receive(0)
    heir = states(commit(progress), list(range(10)))
    assert {record for record, state in heir.items() if state is State.PUBLISHED} == {4, 6}


def test_a_published_record_stays_published_until_it_is_done() -> None:
    progress = received(0, 1)
    progress.settle((), (0, 1))
    assert states(commit(progress), [0, 1]) == {0: State.PUBLISHED, 1: State.PUBLISHED}
    finish(progress, 0)
    assert states(commit(progress), [1]) == {1: State.PUBLISHED}
    finish(progress, 1)
    assert commit(progress).offset == 2


def test_a_published_record_that_compaction_removed_is_forgotten() -> None:
    before = received(0, 1, 2)
    before.settle((), (0, 1))
    progress = Progress(*commit(before))
    assert progress.receive(2) is State.NEW
    finish(progress, 2)
    assert commit(progress) == (3, commit(Progress(3)).metadata)


def test_the_clean_flag_reaches_the_next_owner_and_no_further() -> None:
    heir = Progress(*commit(received(0), clean=True))
    assert heir.was_clean
    assert not Progress(*commit(heir)).was_clean


def test_where_nothing_was_ever_committed_nobody_left_anything_behind() -> None:
    assert Progress(0).was_clean


# --- the metadata


def test_every_commit_of_every_life_has_metadata_of_its_own() -> None:
    progress = received(0)
    said = {progress.snapshot((), (), counter, token).metadata for counter in range(50) for token in ("a", "b", "")}
    assert len(said) == 150


@pytest.mark.parametrize("metadata", ["somebody else's", "etl1:", "etl1:!!!", "etl1:0000000000", "etl9:abc", "é"])
def test_metadata_that_is_not_ours_counts_as_none(metadata: str) -> None:
    progress = Progress(5, metadata)
    assert not progress.was_clean
    assert progress.receive(5) is State.NEW


def test_damaged_metadata_counts_as_none() -> None:
    progress = received(0, 1, 2)
    finish(progress, 1)
    offset, metadata = commit(progress, clean=True)
    for at in range(len(metadata)):
        wrong = metadata[:at] + ("A" if metadata[at] != "A" else "B") + metadata[at + 1 :]
        heir = Progress(offset, wrong)
        assert not heir.was_clean
        assert [heir.receive(record) for record in (0, 1, 2)] == [State.NEW] * 3


def test_metadata_says_nothing_of_an_offset_that_somebody_else_set() -> None:
    progress = received(0, 1, 2)
    finish(progress, 1)
    _, metadata = commit(progress)
    assert Progress(1, metadata).receive(1) is State.NEW


def test_metadata_that_ends_early_counts_as_none() -> None:
    payload = bytearray(offsets._HEAD_BYTES) + b"\x05\x01"
    payload += offsets._checksum(0, payload)
    metadata = offsets._VERSION + base64.b85encode(bytes(payload)).decode()
    assert Progress(0, metadata).receive(2) is State.NEW


def test_the_metadata_grows_with_the_gaps_and_not_with_the_distance() -> None:
    progress = received(*range(0, 1_000_000, 1000))
    finish(progress, *range(1000, 1_000_000, 1000))
    assert len(commit(progress).metadata) < 60


def test_markers_between_finished_records_are_no_gaps() -> None:
    progress = received(*range(0, 2000, 2))  # one transaction for each record
    finish(progress, *range(2, 1000, 2), *range(1100, 2000, 2))
    assert len(commit(progress).metadata) < 60


def test_a_full_window_of_the_worst_case_fits_or_waits() -> None:
    progress = received(*range(10_000))
    ready = dict.fromkeys(range(1, 10_000, 2), State.DONE)
    choice = progress.plan(ready, 10_000)
    assert 1500 < len(choice.done) < 5000, "some must wait"
    assert len(progress.snapshot(*choice, 1, TOKEN).metadata) <= METADATA_LIMIT_BYTES
    progress.settle(*choice)
    finish(progress, *(o for o in range(0, 10_000, 2)), *(ready.keys() - choice.done))
    assert commit(progress).offset == 10_000


def test_the_first_unfinished_record_can_be_published_and_finished_when_the_metadata_is_full() -> None:
    progress = received(*range(10_000))
    progress.settle(*progress.plan(dict.fromkeys(range(1, 10_000, 2), State.DONE), 10_000))
    assert progress.plan({9_998: State.PUBLISHED}, 1).published == frozenset(), "no room"
    for first in (0, 2, 4):
        choice = progress.plan({first: State.PUBLISHED, **dict.fromkeys(range(9000, 9990, 2), State.PUBLISHED)}, 999)
        assert first in choice.published
        assert len(choice.published) < 10, "the others have no room"
        assert len(progress.snapshot(*choice, 1, TOKEN).metadata) <= METADATA_LIMIT_BYTES
        progress.settle(*choice)
        finish(progress, first)


def test_a_partition_is_full_before_what_is_outstanding_could_overflow_the_metadata() -> None:
    progress = Progress(0)
    count = 0
    while not progress.full:
        progress.receive(count)
        count += 1
    assert 1000 < count < 3000
    choice = progress.plan(dict.fromkeys(range(1, count, 2), State.DONE), count)
    assert len(choice.done) == len(range(1, count, 2)), "none has to wait"
    progress.settle(*choice)
    finish(progress, 0, 2, 4)
    assert not progress.full


def test_at_most_so_many_are_planned_lowest_first() -> None:
    progress = received(*range(10))
    choice = progress.plan(dict.fromkeys((9, 3, 5, 7), State.DONE) | {4: State.PUBLISHED}, 3)
    assert choice == (frozenset({3, 5}), frozenset({4}))


def test_what_is_not_outstanding_is_never_planned() -> None:
    progress = received(0, 1)
    finish(progress, 0)
    assert progress.plan({0: State.DONE, 7: State.DONE}, 10) == (frozenset(), frozenset())


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
def test_whatever_is_finished_in_whatever_order_each_owner_knows_exactly_what_was_committed(
    journey: tuple[list[int], random.Random], room_bytes: int
) -> None:
    """Many owners, each received some, finished some in any order, and ended; nothing is forgotten or invented."""
    records, chance = journey
    room_before, offsets._ROOM_BYTES = offsets._ROOM_BYTES, room_bytes
    try:
        done: set[int] = set()
        published: set[int] = set()
        said = offsets.Commit(records[0], "")
        for owner in range(200):
            progress = Progress(*said)
            told = [r for r in records if r >= said.offset]
            if not told:
                break
            unfinished = []
            for record in told[: chance.randint(1, len(told))]:
                state = progress.receive(record)
                expected = State.DONE if record in done else State.PUBLISHED if record in published else State.NEW
                assert state is expected
                if state is not State.DONE:
                    unfinished.append(record)
            chance.shuffle(unfinished)
            ready = {r: chance.choice([State.DONE, State.DONE, State.PUBLISHED]) for r in unfinished}
            for record in unfinished[len(unfinished) // 2 :] if chance.random() < 0.5 else ():
                del ready[record]
            choice = progress.plan(ready, chance.choice([1, 3, 100]))
            first = next((r for r in told if r not in done), None)
            assert first not in ready or first in choice.done | choice.published or len(ready) > 1
            said = progress.snapshot(*choice, owner, TOKEN)
            size = progress._after(*choice).size_bytes()
            assert size <= room_bytes
            assert len(said.metadata) <= METADATA_LIMIT_BYTES
            done |= choice.done
            published = (published | choice.published) - done
            assert not set(told) - done or said.offset <= min(set(told) - done)
            progress.settle(*choice)
            assert progress.snapshot((), (), owner, TOKEN) == said, "settled is what was said"
    finally:
        offsets._ROOM_BYTES = room_before


@given(st.lists(st.integers(0, 2**63)))
def test_numbers_survive_their_code(numbers: list[int]) -> None:
    code = b"".join(offsets._varint(number) for number in numbers)
    assert offsets._varints(code) == numbers
    assert len(code) == sum(offsets._varint_size(number) for number in numbers)


@given(st.integers(0, 2**40), st.text())
def test_no_metadata_breaks_the_next_owner(start: int, metadata: str) -> None:
    assert Progress(start, metadata).position == start
    assert Progress(start, "etl1:" + metadata).position == start
