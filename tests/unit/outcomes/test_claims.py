"""Partitions whose offset is gone or not ours: where they start, which of their jobs are done, what is told."""

from __future__ import annotations

from array import array

import pytest
import structlog.testing

from etl.broker import TakenOver
from etl.models.task import Origin, Record
from etl.models.wire import Commit, Partition
from etl.outcomes import offsets
from etl.outcomes.claims import Claims
from etl.outcomes.evidence import Evidence, Shown
from etl.topics.names import Topics

pytestmark = pytest.mark.unit

TOPICS = Topics("jobs", "jobs-results", "jobs-results", "jobs-retry", "jobs-dlq")
HERE, RETRY = Partition("jobs", 0), Partition("jobs-retry", 0)
NONE = Evidence({})
SOME = Evidence({HERE: Shown(array("q", [5, 6, 8]), array("d", [100.0, 100.0, 100.0]))})


class Bench:
    def __init__(self, on_lost: str = "stop", evidence: Evidence | None = SOME) -> None:
        self.evidence = evidence
        self.fatal: list[BaseException] = []
        self.claims = Claims(TOPICS, "group", on_lost, lambda _partition: self.evidence, self.fatal.append)

    def start(self, commit: Commit | None, place: Partition = HERE, first: int = 0, end: int = 20) -> int | None:
        at = Commit(first, "") if commit is None else commit
        decided = self.claims.decide(place, TakenOver(at, end, None, first, is_new=commit is None))
        return None if decided is None else decided.committed.offset

    def done(self, place: Partition, offset: int, time: float = 50.0, origin: int | None = None) -> bool:
        record = Record(place.topic, place.partition, offset, None, b"", timestamp=time)
        return self.claims.is_done(place, record, Origin("jobs", 0, offset if origin is None else origin))


def test_an_offset_of_ours_is_believed_without_a_look() -> None:
    bench = Bench(evidence=None)
    assert bench.start(offsets.accept(7)) == 7
    assert not bench.done(HERE, 8)


def test_nothing_starts_before_the_outcomes_are_read() -> None:
    bench = Bench(evidence=None)
    assert bench.start(Commit(7, "")) is None
    bench.evidence = SOME
    assert bench.start(Commit(7, "")) == 5


def test_an_empty_partition_asks_nobody() -> None:
    assert Bench(evidence=None).start(None, first=9, end=9) == 9


def test_a_group_that_no_outcome_knows_begins_with_the_oldest_job_or_where_it_was_put() -> None:
    bench = Bench(evidence=NONE)
    assert bench.start(None, first=3) == 3
    assert bench.start(Commit(12, "by hand")) == 12


@pytest.mark.parametrize(("on_lost", "start"), [("stop", None), ("oldest", 2), ("newest", 20)])
def test_forgotten_offsets_are_decided_by_the_setting(on_lost: str, start: int | None) -> None:
    bench = Bench(on_lost)
    assert bench.start(None, first=2) == start
    if on_lost == "stop":
        assert "of 18 records of partition 0, 3 are shown to be done" in str(bench.fatal[0])
    if on_lost == "oldest":
        assert [offset for offset in range(2, 20) if bench.done(HERE, offset)] == [5, 6, 8]
        assert not bench.done(HERE, 20)


@pytest.mark.parametrize(("committed", "start", "not_shown"), [(15, 5, 7), (1, 1, 0), (8, 5, 1)])
def test_after_a_foreign_commit_all_is_done_that_no_outcome_shows(committed: int, start: int, not_shown: int) -> None:
    bench = Bench()
    with structlog.testing.capture_logs() as said:
        assert bench.start(Commit(committed, "")) == start
    assert (said[0]["committed"], said[0]["jobs_not_shown"], said[0]["log_level"]) == (committed, not_shown, "error")
    assert [offset for offset in range(start, 20) if bench.done(HERE, offset)] == [5, 6, 8]


def test_a_foreign_commit_is_no_clean_end_of_ours() -> None:
    """Files of the last owner may be half written: its successor looks for them."""
    decided = Bench().claims.decide(HERE, TakenOver(Commit(9, ""), 20, None, 0))
    assert decided is not None
    assert not offsets.OffsetTracker(*decided.committed).was_clean


def test_deferred_jobs_are_looked_at_again_whatever_the_setting() -> None:
    """One is done if an outcome came after it was deferred: a result, or the next deferral."""
    bench = Bench("newest")
    assert bench.start(None, RETRY, first=4) == 4
    assert bench.done(RETRY, 4, time=99.0, origin=5)
    assert not bench.done(RETRY, 5, time=100.0, origin=5)
    assert not bench.done(RETRY, 6, time=99.0, origin=7)


def test_a_record_younger_than_the_outcome_at_its_place_is_another_job() -> None:
    """The topic was deleted and made again."""
    bench = Bench()
    bench.start(Commit(9, ""))
    assert bench.done(HERE, 5, time=100.0)
    assert not bench.done(HERE, 5, time=101.0)
