"""The ledger against a model of the broker: each record has exactly one outcome, however owners and commits end."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from etl.models.wire import Batch, Commit, Message, Partition
from etl.outcomes import offsets
from etl.outcomes.ledger import Ledger, Outcome
from etl.outcomes.offsets import METADATA_LIMIT_BYTES, OffsetTracker, RecordState

LONG = os.environ.get("TEST_LONG", "") not in {"", "0"}
PARTITIONS = (Partition("jobs", 0), Partition("jobs-retry", 0))
NAMES = ("a", "b")
DEFAULT_ROOM_BYTES = offsets._ROOM_BYTES
FOREIGN = 7  # every seventh record belongs to another group: it is done without a message

FATES = ["nothing", "ok", "ok", "ok", "not sent yet", "rejected", "lost, committed", "lost, committed", "lost, aborted"]
EVENTS = ["nothing"] * 5
EVENTS += ["move", "move", "give up", "take over", "take over", "take anew", "lose session", "notice", "kill"]

chosen_partitions = st.sampled_from(PARTITIONS)
chosen_names = st.sampled_from(NAMES)
some_gaps = st.sampled_from([0, 0, 0, 1, 3, 200])


@dataclass
class Transaction:
    """A transaction that was sent and has not ended at the broker: its offsets are not stable yet."""

    batch: Batch
    will_commit: bool


@dataclass
class Broker:
    """The group's coordinator and the topics. Checks member and generation, but not ownership, as Kafka does."""

    records: dict[Partition, list[int]] = field(default_factory=lambda: {tp: [] for tp in PARTITIONS})
    ends: dict[Partition, int] = field(default_factory=lambda: dict.fromkeys(PARTITIONS, 0))
    committed: dict[Partition, Commit] = field(default_factory=dict)
    outcomes: list[tuple[Partition, int]] = field(default_factory=list)
    generation: int = 1
    owners: dict[Partition, str | None] = field(default_factory=lambda: dict.fromkeys(PARTITIONS))
    open: dict[str, Transaction] = field(default_factory=dict)

    def accepts(self, batch: Batch) -> bool:
        return batch.membership == self.generation

    def apply(self, batch: Batch) -> None:
        for message in batch.messages:
            assert message.key is not None
            self.outcomes.append((Partition(message.topic, message.partition or 0), int(message.key)))
        for tp, commit in batch.offsets.items():
            assert len(commit.metadata.encode()) <= METADATA_LIMIT_BYTES
            before = self.committed.get(tp)
            assert before is None or commit.metadata != before.metadata
            assert commit.offset >= (before.offset if before else 0)
            self.committed[tp] = commit

    def end_transaction(self, name: str) -> None:
        """End the transaction that a process left open, as its next life or the broker's time limit does."""
        transaction = self.open.pop(name, None)
        if transaction is not None and transaction.will_commit:
            self.apply(transaction.batch)

    def is_stable(self, tp: Partition) -> bool:
        return all(tp not in transaction.batch.offsets for transaction in self.open.values())

    def states(self, tp: Partition) -> dict[int, RecordState]:
        """Return how far each record has come for a new owner."""
        start, metadata = self.committed.get(tp, Commit(0, ""))
        successor = OffsetTracker(start, metadata)
        return {o: successor.receive(o) if o >= start else RecordState.DONE for o in self.records[tp]}


@dataclass
class Work:
    """A record that a process is working on, perhaps long after its partition was revoked."""

    tp: Partition
    offset: int
    epoch: int
    state: RecordState


class Process:
    """One life of a consumer process."""

    lives = count()

    def __init__(self, name: str, broker: Broker) -> None:
        self.name = name
        self.broker = broker
        self.ledger = Ledger(f"life {next(self.lives)}")
        self.generation = broker.generation  # what it sends with its commits
        self.is_member = True  # in the broker's view; the process may still believe it
        self.epochs: dict[Partition, int] = {}
        self.work: list[Work] = []
        self.taken: Batch | None = None  # not sent yet
        self.unknown: Batch | None = None
        self.now = 0.0

    def assign(self, tp: Partition) -> None:
        start, metadata = self.broker.committed.get(tp, Commit(0, ""))
        self.epochs[tp] = self.ledger.assign(tp, start, metadata)

    def revoke(self, tps: list[Partition]) -> None:
        self.ledger.revoke(tps)
        for tp in tps:
            self.epochs.pop(tp, None)

    def poll(self, tp: Partition, at_most: int) -> None:
        tracker = self.ledger._partitions[tp].tracker
        truth = self.broker.states(tp)
        coming = [o for o in self.broker.records[tp] if o >= tracker.position]
        for offset in coming[:at_most]:
            state = self.ledger.receive(tp, offset)
            if self.is_member:
                assert state is truth[offset], "nothing can have happened to it since we took over"
            if state is not RecordState.DONE:
                self.work.append(Work(tp, offset, self.epochs[tp], state))
        if at_most >= len(coming):
            self.ledger.advance(tp, self.broker.ends[tp])

    def report(self, work: Work, state: RecordState) -> None:
        """Add the outcome of a record; once a publish is committed, its source action follows as new work."""
        message = Message(work.tp.topic, str(work.offset).encode(), b"{}", partition=work.tp.partition)
        has_message = state is RecordState.DONE and work.offset % FOREIGN

        def published() -> None:
            found = self.broker.states(work.tp)[work.offset]
            # A process that has lost its session unknowingly may learn of its commit after its successor did the job.
            assert found is RecordState.PUBLISHED or (found is RecordState.DONE and not self.is_member)
            self.work.append(Work(work.tp, work.offset, work.epoch, RecordState.PUBLISHED))

        self.ledger.add(
            Outcome(
                work.tp,
                work.offset,
                work.epoch,
                state,
                (message,) if has_message else (),
                published if state is RecordState.PUBLISHED else None,
            )
        )

    def take(self, limit: int, *, clean: bool = False) -> Batch | None:
        self.now += 0.6
        self.taken = self.ledger.batch(limit, now=self.now, membership=lambda: self.generation, clean=clean)
        return self.taken

    def send(self, fate: str) -> None:
        """Send the batch taken: 'ok', 'rejected', or the reply is lost while the transaction is still open."""
        batch, self.taken = self.taken, None
        assert batch is not None
        if fate in ("ok", "rejected"):
            accepted = fate == "ok" and self.broker.accepts(batch)
            if accepted:
                self.broker.apply(batch)
            self.ledger.end_batch(batch, accepted)
        else:
            will_commit = fate == "lost, committed" and self.broker.accepts(batch)
            self.broker.open[self.name] = Transaction(batch, will_commit)
            self.unknown = batch

    def recover(self) -> None:
        """Open a new producer, which ends the transaction; read the offsets back."""
        batch, self.unknown = self.unknown, None
        assert batch is not None
        self.broker.end_transaction(self.name)
        committed = self.ledger.resolve(batch, {tp: self.broker.committed.get(tp, (-1, "")) for tp in batch.offsets})
        assert committed is not None
        self.ledger.end_batch(batch, committed)


def other(name: str) -> str:
    return NAMES[1 - NAMES.index(name)]


class Commits(RuleBasedStateMachine):
    """Two processes share a group; everything that can happen to their commits does."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()
        self.processes = {name: Process(name, self.broker) for name in NAMES}
        self.seen: dict[tuple[Partition, int], RecordState] = {}

    @initialize(
        room_bytes=st.sampled_from([4, 12, DEFAULT_ROOM_BYTES, DEFAULT_ROOM_BYTES]),
        gaps=st.lists(some_gaps, min_size=3, max_size=12),
    )
    def begin_with_work(self, room_bytes: int, gaps: list[int]) -> None:
        offsets._ROOM_BYTES = room_bytes
        for name, tp in zip(NAMES, PARTITIONS, strict=True):
            self.produce(tp, gaps, ends_with_marker=False)
            self._take_over(name, tp)
            self.processes[name].poll(tp, 1000)

    # One rule with optional parts: Hypothesis disables whole rules in most runs, but no history gets far without all
    # of these.
    @rule(
        name=chosen_names,
        tp=chosen_partitions,
        gaps=st.one_of(st.just([]), st.just([]), st.lists(some_gaps, max_size=8)),
        ends_with_marker=st.booleans(),
        at_most=st.sampled_from([0, 1, 2, 5, 100]),
        picks=st.lists(st.integers(0, 1000), max_size=10),
        state=st.sampled_from([RecordState.DONE, RecordState.DONE, RecordState.PUBLISHED]),
        twice=st.booleans(),
        limit=st.sampled_from([500, 500, 3, 1]),
        clean=st.sampled_from([False, False, False, True]),
        fate=st.sampled_from(FATES),
        event=st.sampled_from(EVENTS),
    )
    def go_on(
        self,
        name: str,
        tp: Partition,
        gaps: list[int],
        ends_with_marker: bool,
        at_most: int,
        picks: list[int],
        state: RecordState,
        twice: bool,
        limit: int,
        clean: bool,
        fate: str,
        event: str,
    ) -> None:
        self.produce(tp, gaps, ends_with_marker)
        self.work(name, at_most, picks, state, twice)
        self.commit(name, limit, clean, fate)
        self.disturb(event, name, tp)

    def produce(self, tp: Partition, gaps: list[int], ends_with_marker: bool) -> None:
        for gap in gaps:
            self.broker.records[tp].append(self.broker.ends[tp] + gap)
            self.broker.ends[tp] += gap + 1
        self.broker.ends[tp] += ends_with_marker

    def work(self, name: str, at_most: int, picks: list[int], state: RecordState, twice: bool) -> None:
        """Receive some records, finish some in any order, including those received before a revocation."""
        process = self.processes[name]
        for tp in process.epochs:
            process.poll(tp, at_most)
        for pick in picks:
            if process.work:
                work = process.work.pop(pick % len(process.work))
                ended = RecordState.DONE if work.state is RecordState.PUBLISHED else state
                process.report(work, ended)
                if twice:
                    process.report(work, ended)

    def commit(self, name: str, limit: int, clean: bool, fate: str) -> None:
        if fate == "nothing":
            return
        process = self.processes[name]
        if process.unknown is not None:
            process.recover()
        if process.taken is None:
            process.take(limit, clean=clean)
        if process.taken is not None and fate != "not sent yet":
            process.send(fate)

    def disturb(self, event: str, name: str, tp: Partition) -> None:
        process = self.processes[name]
        match event:
            case "move":  # to the other process, after a clean end
                self._give_up(other(name), tp)
                self._take_over(name, tp)
            case "give up":
                self._give_up(name, tp)
            case "take over":
                self._take_over(name, tp)
            case "take anew":
                self.broker.end_transaction(name)
                self._give_up(name, tp)
                self._take_over(name, tp)
            case "lose session" if process.is_member:  # but keep its generation, and continue with it
                process.is_member = False
                self.broker.end_transaction(name)  # its time limit is shorter than the session's
                self._free(name)
                self._rebalance()
                self._take_over(other(name), tp)
            case "notice" if not process.is_member:
                process.revoke(list(PARTITIONS))
                process.is_member = True
                self._rebalance()
            case "kill":
                self._free(name)
                self.broker.end_transaction(name)
                self.processes[name] = Process(name, self.broker)
                self._rebalance()

    def _rebalance(self) -> None:
        self.broker.generation += 1
        for process in self.processes.values():
            if process.is_member:
                process.generation = self.broker.generation

    def _take_over(self, name: str, tp: Partition) -> None:
        process = self.processes[name]
        if self.broker.owners[tp] is None and process.is_member and self.broker.is_stable(tp):
            self.broker.owners[tp] = name
            self._rebalance()
            process.assign(tp)

    def _give_up(self, name: str, tp: Partition) -> None:
        if self.broker.owners[tp] == name and self.processes[name].is_member:
            self.processes[name].revoke([tp])
            self.broker.owners[tp] = None  # the generation changes when another process takes it over

    def _free(self, name: str) -> None:
        for tp, owner in self.broker.owners.items():
            if owner == name:
                self.broker.owners[tp] = None

    # --- invariants

    @invariant()
    def no_record_has_two_outcomes(self) -> None:
        assert len(set(self.broker.outcomes)) == len(self.broker.outcomes)

    @invariant()
    def what_is_said_done_is_exactly_what_has_an_outcome(self) -> None:
        outcomes = set(self.broker.outcomes)
        for tp in PARTITIONS:
            for offset, state in self.broker.states(tp).items():
                if offset % FOREIGN:
                    assert (state is RecordState.DONE) == ((tp, offset) in outcomes)

    @invariant()
    def no_record_ever_goes_back(self) -> None:
        rank = {RecordState.NEW: 0, RecordState.PUBLISHED: 1, RecordState.DONE: 2}
        for tp in PARTITIONS:
            for offset, state in self.broker.states(tp).items():
                assert rank[state] >= rank[self.seen.get((tp, offset), RecordState.NEW)]
                self.seen[tp, offset] = state

    def teardown(self) -> None:
        """Let everything end: then every record has its outcome, and the lag is zero."""
        try:
            self._finish_all()
        finally:
            offsets._ROOM_BYTES = DEFAULT_ROOM_BYTES

    def _finish_all(self) -> None:
        for name in NAMES:
            self.disturb("notice", name, PARTITIONS[0])
            self.commit(name, 500, clean=False, fate="ok")
        for tp in PARTITIONS:
            self._take_over(NAMES[0], tp)
        for name in NAMES:
            process = self.processes[name]
            for _ in range(1000):
                self.work(name, 10_000, [0] * len(process.work), RecordState.DONE, twice=False)
                if process.take(500) or process.take(500):  # 1.2 s: long enough to commit bare positions as well
                    process.send("ok")
                elif not process.work:
                    break
            assert process.ledger.outstanding == process.ledger.waiting == 0
            self.commit(name, 500, clean=True, fate="ok")
        expected = {(tp, offset) for tp in PARTITIONS for offset in self.broker.records[tp] if offset % FOREIGN}
        assert set(self.broker.outcomes) == expected
        self.no_record_has_two_outcomes()
        for tp in PARTITIONS:
            commit = self.broker.committed[tp]
            assert commit.offset == self.broker.ends[tp]
            assert OffsetTracker(*commit).was_clean


TestCommits = Commits.TestCase
TestCommits.pytestmark = [pytest.mark.unit, pytest.mark.timeout(900)]
TestCommits.settings = settings(
    max_examples=1000 if LONG else 60,
    stateful_step_count=80 if LONG else 50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
