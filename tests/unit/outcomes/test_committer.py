"""The committer: one transaction at a time, however it ends. Tests step it with a clock of their own."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import structlog.testing

from etl.errors import (
    BrokerRefused,
    BrokerUnavailable,
    CommitRejected,
    CommitUnknown,
    Fenced,
    MessageRefused,
    MessageTooLarge,
    TopicRefused,
)
from etl.models.wire import Batch, Commit, Message, Partition
from etl.outcomes.committer import Committer
from etl.outcomes.ledger import Ledger, Outcome
from etl.outcomes.offsets import RecordState

pytestmark = pytest.mark.unit

HERE = Partition("jobs", 0)


class Broker:
    """A sink that raises the next error in its list, if any, and commits otherwise."""

    def __init__(self) -> None:
        self.next: list[BaseException | None] = []
        self.next_recover: list[BaseException | None] = []
        self.batches: list[Batch] = []
        self.committed: dict[Partition, Commit] = {}
        self.loses_replies = False

    def commit(self, batch: Batch) -> None:
        error = self.next.pop(0) if self.next else None
        if error is not None and not self.loses_replies:
            raise error
        self.batches.append(batch)
        self.committed.update(batch.offsets)
        if error is not None:
            raise error

    def recover(self, batch: Batch) -> dict[Partition, Commit]:
        error = self.next_recover.pop(0) if self.next_recover else None
        if error is not None:
            raise error
        return {tp: self.committed.get(tp, Commit(-1, "")) for tp in batch.offsets}

    @property
    def results(self) -> list[bytes | None]:
        return [message.key for batch in self.batches for message in batch.messages]


class Bench:
    """A committer over a ledger with one partition, and a clock."""

    def __init__(self, max_records: int = 3) -> None:
        self.now = 0.0
        self.broker = Broker()
        self.ledger = Ledger("this life")
        self.epoch = self.ledger.assign(HERE, 0)
        self.member: object | None = "member"
        self.fatal: list[BaseException] = []
        self.committer = Committer(
            self.ledger,
            self.broker,
            lambda: self.member,
            self.fatal.append,
            interval_seconds=0.05,
            max_records=max_records,
            clock=lambda: self.now,
        )
        self.last = -1
        self.step()  # claims the partition
        self.broker.batches.clear()

    def finish(self, count: int = 1, shrink: Callable[[], tuple[Message, ...]] | None = None) -> None:
        for _ in range(count):
            self.last += 1
            self.ledger.receive(HERE, self.last)
            message = Message("results", b"%d" % self.last, b"{}", shrink=shrink)
            assert self.ledger.add(Outcome(HERE, self.last, self.epoch, RecordState.DONE, (message,)))

    def step(self, after: float = 0.0) -> float:
        self.now += after
        return self.committer.step(self.now)


def test_outcomes_are_committed_together_once_the_interval_has_passed() -> None:
    bench = Bench()
    bench.finish(2)
    bench.ledger.receive(HERE, 2)  # its job is still running
    assert bench.step(0.02) == pytest.approx(0.03)
    assert bench.broker.batches == []
    bench.step(0.03)
    assert bench.broker.results == [b"0", b"1"]


def test_a_commit_does_not_wait_when_no_outcome_is_missing() -> None:
    """The outcome of a single job is committed at once; a sequence of jobs makes at most four commits per interval."""
    bench = Bench(max_records=1000)
    hurries: list[float] = []
    bench.ledger.on_complete = lambda: hurries.append(bench.now)
    bench.step(10.0)
    bench.finish()
    bench.step(0.001)
    assert bench.broker.results == [b"0"]
    assert len(hurries) == 1
    before = len(bench.broker.batches)
    for _ in range(100):
        bench.finish()
        bench.step(0.001)
    assert len(bench.broker.batches) - before <= 100 * 0.001 / 0.05 * 4
    bench.ledger.receive(HERE, bench.last + 1)
    asked = len(hurries)
    bench.ledger.receive(HERE, bench.last + 2)
    assert bench.ledger.add(Outcome(HERE, bench.last + 2, bench.epoch, RecordState.DONE))
    assert len(hurries) == asked, "one is missing"


def test_many_outcomes_are_committed_before_the_interval_has_passed() -> None:
    bench = Bench(max_records=3)
    bench.finish(7)
    while bench.step() == 0:
        pass
    assert [len(batch.messages) for batch in bench.broker.batches] == [3, 3]
    bench.step(0.05)
    assert len(bench.broker.results) == 7


def test_messages_are_built_while_the_outcome_of_a_commit_is_unknown() -> None:
    """Without waiting for the broker."""
    bench = Bench()
    bench.finish()
    bench.broker.next = [CommitUnknown("no answer")]
    bench.step(0.05)
    bench.broker.next_recover = [BrokerUnavailable("away")] * 3
    written: list[int] = []
    bench.ledger.receive(HERE, 1)

    def write() -> tuple[Message, ...]:
        written.append(1)
        return (Message("results", b"1", b"{}"),)

    bench.ledger.add(Outcome(HERE, 1, bench.epoch, write=write))
    bench.step(0.05)
    assert written == [1]
    assert bench.broker.results == []


def test_a_rejected_commit_is_retried_after_a_growing_pause_with_fresh_membership() -> None:
    bench = Bench()
    bench.finish(9)
    bench.broker.next = [CommitRejected("rebalanced")] * 3
    pauses = [bench.step(0.05)]
    bench.member = "member of the next generation"
    for _ in range(2):
        pauses.append(bench.step(pauses[-1]))
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1]
    bench.step(pauses[-1])
    assert bench.broker.results == [b"0", b"1", b"2"]
    assert bench.broker.batches[0].membership == "member of the next generation"
    assert bench.fatal == []


def test_the_pause_between_rejected_commits_has_a_limit() -> None:
    bench = Bench()
    bench.finish()
    bench.broker.next = [CommitRejected("away")] * 100
    pause = 0.05
    for _ in range(100):
        pause = bench.step(pause)
    assert pause == 5.0
    bench.step(pause)
    assert bench.broker.results == [b"0"]


def test_a_pause_is_not_cut_short_by_many_outcomes() -> None:
    bench = Bench()
    bench.broker.next = [CommitRejected("away")]
    bench.finish(10)
    pause = bench.step()
    assert pause > 0
    bench.step(pause / 2)
    assert bench.broker.batches == []


@pytest.mark.parametrize("lost", [CommitUnknown("no reply"), ConnectionResetError("cut"), TimeoutError("late")])
@pytest.mark.parametrize("was_in", [True, False])
def test_after_an_unknown_outcome_the_offsets_read_back_decide_and_nothing_is_sent_twice(
    lost: BaseException, was_in: bool
) -> None:
    bench = Bench()
    bench.finish(2)
    bench.broker.next = [lost]
    bench.broker.loses_replies = was_in
    assert bench.step(0.05) == 0.0
    bench.finish()
    bench.step()
    bench.step(0.05)
    assert bench.broker.results == [b"0", b"1", b"2"]
    assert bench.ledger.waiting == 0


def test_nothing_is_sent_while_an_outcome_is_unknown_however_long_that_takes() -> None:
    bench = Bench()
    bench.finish()
    bench.broker.next = [CommitUnknown("no reply")]
    bench.broker.next_recover = [BrokerUnavailable("away"), OSError("away"), CommitUnknown("away")] * 10
    bench.step(0.05)
    for _ in range(30):
        bench.finish()
        pause = bench.step(5.0)
        bench.step(pause / 2)
        assert bench.broker.batches == []
    bench.step(5.0)
    while bench.ledger.waiting:
        bench.step(0.05)
    assert len(bench.broker.results) == 31


def test_an_inconclusive_answer_is_requested_again() -> None:
    bench = Bench()
    bench.finish()
    bench.broker.next = [CommitUnknown("no reply")]
    bench.step(0.05)
    recover, bench.broker.recover = bench.broker.recover, lambda _batch: {}  # type: ignore[method-assign]
    bench.step()
    assert bench.ledger.waiting == 1
    bench.broker.recover = recover  # type: ignore[method-assign]
    bench.step(1.0)
    bench.step(0.05)
    assert bench.broker.results == [b"0"]


def test_a_message_that_is_too_large_is_sent_in_its_short_form_at_once() -> None:
    bench = Bench()
    bench.finish(shrink=lambda: (Message("dlq", b"short", b"{}"),))
    bench.broker.next = [MessageTooLarge("too large", index=0)]
    assert bench.step(0.05) == 0.0
    bench.step()
    assert bench.broker.results == [b"short"]


def test_a_message_that_is_refused_in_every_form_is_given_up_and_told() -> None:
    """The log has it whole, the alarm stays, and the outcomes beside it are committed."""
    bench = Bench()
    bench.finish(2)
    bench.broker.next = [MessageTooLarge("too large", index=0)]
    with structlog.testing.capture_logs() as said:
        bench.step(0.05)
        bench.step()
    (told,) = [line for line in said if line["log_level"] == "critical"]
    assert (told["topic"], told["key"], told["value"]) == ("results", "0", "{}")
    assert bench.broker.results == [b"1"]
    assert bench.broker.committed[HERE].offset == 2
    bench.finish()
    bench.step(1000.0)
    assert "1 messages were given up" in bench.committer.problem(bench.now)


def test_a_refused_message_among_others_is_looked_for_by_smaller_batches() -> None:
    """The broker may refuse several messages together, although only one of them is at fault."""
    bench = Bench(max_records=8)
    bench.finish(8)
    commit = bench.broker.commit

    def refuse_the_fifth(batch: Batch) -> None:
        if any(message.key == b"5" for message in batch.messages):
            raise MessageRefused("refused", index=0, is_alone=len(batch.messages) == 1)
        commit(batch)

    bench.broker.commit = refuse_the_fifth  # type: ignore[method-assign]
    for _ in range(40):
        bench.step(0.05)
    assert sorted(bench.broker.results, key=str) == [b"%d" % number for number in range(8) if number != 5]
    assert bench.committer.given_up == 1


def test_a_topic_that_refuses_everything_holds_up_its_own_outcomes_alone() -> None:
    """They are tried again later, and told as long as they wait."""
    asked: list[int] = []
    bench = Bench(max_records=8)
    bench.committer._on_refused = lambda: asked.append(1)
    bench.finish(2)
    bench.ledger.receive(HERE, 2)
    letter = Message("dlq", b"letter", b"{}")
    bench.ledger.add(Outcome(HERE, 2, bench.epoch, RecordState.DONE, (letter, Message("results", b"2", b"{}"))))
    bench.last = 2
    commit, is_there = bench.broker.commit, False

    def refuse_letters(batch: Batch) -> None:
        if not is_there and any(message.topic == "dlq" for message in batch.messages):
            raise TopicRefused("topic dlq: unknown", topic="dlq")
        commit(batch)

    bench.broker.commit = refuse_letters  # type: ignore[method-assign]
    bench.step(0.05)
    assert asked
    bench.step()
    assert bench.broker.results == [b"0", b"1"]
    for _ in range(20):
        bench.finish()
        bench.step(1.0)
    assert len(bench.broker.results) == 22
    problem = bench.committer.problem(bench.now)
    assert "1 outcomes wait for their commit, for 20 s now: topic dlq: unknown" in problem
    is_there = True
    for _ in range(35):
        bench.step(1.0)
    assert b"letter" in bench.broker.results
    assert bench.committer.problem(bench.now) == ""


def test_commits_that_stay_refused_are_told_once_and_make_the_process_unwell() -> None:
    bench = Bench()
    bench.finish(2)
    bench.broker.next = [CommitRejected("no leader")] * 20
    with structlog.testing.capture_logs() as said:
        for _ in range(10):
            bench.step(5.0)
    assert [line["error"] for line in said if line["log_level"] == "warning"] == ["no leader"]
    assert bench.committer.problem(bench.now) == "2 outcomes wait for their commit, for 45 s now: no leader"
    bench.broker.next = []
    bench.step(10.0)
    assert bench.committer.problem(bench.now) == ""


def test_a_bug_stops_the_process_and_commits_nothing() -> None:
    bench = Bench()
    bench.finish()
    bench.broker.next = [ZeroDivisionError("a bug")]
    bench.step(0.05)
    assert [type(error) for error in bench.fatal] == [ZeroDivisionError]
    assert bench.broker.batches == []


def test_being_fenced_once_does_not_prove_a_rival() -> None:
    bench = Bench()
    bench.finish()
    bench.broker.next = [Fenced("a transaction ran out of time")]
    bench.step(bench.step(0.05))
    assert bench.broker.results == [b"0"]
    assert bench.fatal == []


def test_being_fenced_repeatedly_while_the_broker_answers_proves_a_rival() -> None:
    bench = Bench()
    for _ in range(5):
        bench.finish()
        bench.broker.next = [Fenced("taken"), None]
        bench.step(0.5)
        bench.step(0.5)
    assert [type(error) for error in bench.fatal] == [BrokerRefused]


def test_being_fenced_around_a_broker_outage_does_not_prove_a_rival() -> None:
    bench = Bench()
    for _ in range(10):
        bench.finish()
        bench.broker.next = [Fenced("ran out of time"), CommitRejected("away"), None]
        for _ in range(3):
            bench.step(5.0)
    assert bench.fatal == []
    assert len(bench.broker.results) == 10


def test_outcomes_wait_while_the_process_is_not_a_member() -> None:
    bench = Bench()
    bench.member = None
    bench.finish(5)
    assert bench.step(0.05) > 0, "and the thread sleeps meanwhile"
    bench.member = "member"
    bench.step(0.05)
    assert len(bench.broker.results) == 3


# --- stopping


def test_a_flush_commits_everything_without_waiting_for_the_interval() -> None:
    bench = Bench(max_records=2)
    bench.finish(5)
    flush = bench.committer.request_flush()
    while not flush.done.is_set():
        assert bench.step() == 0.0 or flush.done.is_set()
    assert len(bench.broker.results) == 5
    assert not bench.broker.batches[-1].clean


def test_a_clean_flush_commits_the_mark_even_without_other_news() -> None:
    bench = Bench()
    flush = bench.committer.request_flush(clean=True)
    bench.step()
    assert flush.done.is_set()
    assert bench.broker.batches[-1].clean


def test_a_clean_flush_with_much_to_commit_ends_with_a_clean_commit() -> None:
    bench = Bench(max_records=2)
    bench.finish(5)
    flush = bench.committer.request_flush(clean=True)
    for _ in range(10):
        bench.step()
    assert flush.done.is_set()
    assert len(bench.broker.results) == 5
    assert bench.broker.batches[-1].clean
    assert bench.broker.batches[-1].offsets[HERE].offset == 5


def test_a_flush_without_partitions_is_done_at_once() -> None:
    bench = Bench()
    bench.ledger.revoke([HERE])
    flush = bench.committer.request_flush(clean=True)
    bench.step(0.05)
    assert flush.done.is_set()


def test_a_flush_waits_until_the_outcome_of_a_commit_is_known() -> None:
    bench = Bench()
    bench.finish()
    bench.broker.next = [CommitUnknown("no reply")]
    bench.broker.next_recover = [BrokerUnavailable("away")]
    bench.step(0.05)
    flush = bench.committer.request_flush(clean=True)
    pause = bench.step()
    assert not flush.done.is_set()
    bench.step(pause)
    bench.step()
    assert flush.done.is_set()
    assert bench.broker.results == [b"0"]


@pytest.fixture
def running() -> Bench:
    bench = Bench()
    bench.committer._clock = time.monotonic
    bench.committer.start()
    yield bench
    bench.committer.stop(time.monotonic() + 5)


def test_the_thread_commits_and_stops(running: Bench) -> None:
    running.finish(2)
    assert running.committer.flush(time.monotonic() + 5, clean=True)
    assert running.broker.results == [b"0", b"1"]
    assert running.committer.stop(time.monotonic() + 5)


def test_a_flush_ends_at_its_deadline_when_the_broker_is_away(running: Bench) -> None:
    running.broker.next = [CommitRejected("away")] * 1000
    running.finish()
    assert not running.committer.flush(time.monotonic() + 0.05)
    assert running.broker.next, "it was not waited for"


def test_a_fatal_error_ends_the_thread(running: Bench) -> None:
    running.broker.next = [ZeroDivisionError("a bug")]
    running.finish()
    running.committer._thread.join(5)
    assert not running.committer._thread.is_alive()
    assert len(running.fatal) == 1


def test_stopping_a_committer_that_never_started_is_no_error() -> None:
    assert Bench().committer.stop(0.0)
