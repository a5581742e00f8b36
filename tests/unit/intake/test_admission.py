"""Admission and runner together: what becomes of a record, told by the messages and states that are committed.

Real dispatcher, pools, ledger and builder; only the servers' sessions and the consumer's partitions are fakes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

import pretend
from etl import errors
from etl.config import ConfigLoader
from etl.dispatch.dispatcher import Dispatcher
from etl.dispatch.overflow import DOWN_KEEPS
from etl.intake.admission import DEFERRED_READ_PAUSE_SECONDS, Admission, TokenBucket
from etl.lanes.run import Run, Store
from etl.lanes.runner import Runner
from etl.models import header
from etl.models.letter import DLQMessage
from etl.models.message import TransferResult
from etl.models.task import Facts, Record, Start, Task
from etl.models.wire import Batch, Message, Partition
from etl.outcomes import messages
from etl.outcomes.ledger import Ledger
from etl.outcomes.messages import MessageBuilder
from etl.outcomes.offsets import OffsetTracker
from etl.outcomes.reporter import Reporter
from etl.retry.policy import Policy
from etl.retry.tiers import DEFERRED_READS_PER_SECOND
from etl.sessions.pools import Pools
from etl.topics.companions import Topics
from etl.transfer import partials, relay
from etl.transfer.base import Session

pytestmark = pytest.mark.unit

NOW = 1_700_000_000.0
P0 = Partition("jobs", 0)
JOB = {
    "job_id": "j1",
    "source": {"hostname": "A", "path": "/in/a"},
    "destination": {"hostname": "B", "path": "/out/a"},
    "metadata": {"n": 1},
}
ENVIRONMENT = {
    f"{name}_{key}": value
    for name in ("A", "B")
    for key, value in {"TYPE": "ftp", "HOST": name.lower(), "USER": "u", "PASS": "p"}.items()
}


class FakePartitions:
    """All partitions are held, awake and ours."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.held: dict[Partition, int] = {}
        self.sleeping: dict[Partition, tuple[int, float]] = {}
        self.seen_by_predecessor = False  # the one that fell asleep last
        self.may_recall: Callable[[], bool] | None = None
        self.dirty = False
        self.ours = True

    def epoch(self, partition: Partition) -> int | None:
        return self.held.get(partition)

    def is_delayed(self, partition: Partition) -> bool:
        return partition in self.sleeping

    def delay(
        self,
        partition: Partition,
        offset: int,
        until: float,
        *,
        seen_by_predecessor: bool,
        may_recall: Callable[[], bool] | None = None,
    ) -> None:
        self.sleeping[partition] = (offset, until)
        self.seen_by_predecessor, self.may_recall = seen_by_predecessor, may_recall

    def orphan_scan_since(self, partition: Partition, offset: int) -> float | None:
        return 0.0 if self.dirty else None

    def owned(self, partition: Partition, epoch: int) -> bool:
        return self.ours and self.ledger.owns(partition, epoch)


class Scene:
    def __init__(self, **values: Any) -> None:
        self.clock = pretend.Clock(NOW)
        self.settings = pretend.settings(workers=2, **values)
        config = ConfigLoader(environ=ENVIRONMENT)
        self.world = pretend.World()
        self.world.configs = config.servers
        self.pools = Pools(config.get_server_config, self.settings, create=self.world.create)
        self.passed = pretend.Clock(0.0)  # what a test has pass between runs, beside the real time
        self.dispatcher = Dispatcher(self.pools, self.settings, lambda: time.monotonic() + self.passed())
        self.ledger = Ledger("token")
        self.topics = Topics.of("jobs", self.settings)
        self.builder = MessageBuilder(self.topics, "group", 1, self.clock)
        self.partitions = FakePartitions(self.ledger)
        for partition in (P0, *(Partition("jobs-retry", number) for number in range(4))):
            self.partitions.held[partition] = self.ledger.assign(partition, 0)
        self.stopping = threading.Event()
        policy = Policy(2, 1.0, 300.0, 3600.0, jitter=lambda: 0.5)
        self.reporter = Reporter("worker/1", self.dispatcher, self.ledger, policy, self.builder, self.stopping.is_set)
        self.runner = Runner(self.settings, "cafe", self.pools, self.dispatcher, self.reporter, Store(1 << 20))
        self.admission = Admission(
            self.topics,
            "group",
            config,
            self.builder,
            self.partitions,  # type: ignore[arg-type]
            self.ledger,
            self.dispatcher,
            self.reporter,
            self.clock,
        )
        self.offset = 0

    def accept(
        self,
        value: object = JOB,
        headers: tuple[tuple[str, bytes], ...] = (),
        partition: Partition = P0,
        timestamp: float = NOW,
    ) -> Record:
        raw = value if isinstance(value, bytes | None) else json.dumps(value).encode()
        record = Record(*partition, self.offset, b"key", raw, headers, timestamp)
        self.offset += 1
        self.admission.accept(record)
        return record

    def run(self, relayed: Callable[[], relay.Receipt]) -> Task:
        """Run the next job of the dispatcher as a lane would, its relay replaced by `relayed`."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(relay, "run", lambda *_: relayed())
            patch.setattr(relay, "finish", lambda *_: relayed().size_bytes)
            return self.fly()

    def fly(self) -> Task:
        """Do so with the relay as it is; first its servers are reached, one by one."""
        ran: list[Task] = []
        while (taken := self.dispatcher.take(0)) is not None:
            task, lease = taken
            self.runner.execute(Run(task, lease, 0.0, None, lambda: memoryview(bytearray(16))))
            self.dispatcher.finish(task)
            ran.append(task)
            if lease.is_pair:
                break
        return ran[-1]

    def commit(self) -> Batch | None:
        batch = self.ledger.batch(100, now=self.clock(), membership=object)
        if batch is not None:
            self.ledger.end_batch(batch, committed=True)
        return batch

    def messages(self) -> dict[str, Message]:
        batch = self.commit()
        return {message.topic: message for message in batch.messages} if batch is not None else {}


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.pools.close()


def raising(error: BaseException) -> Callable[[], relay.Receipt]:
    def relayed() -> relay.Receipt:
        raise error

    return relayed


def good() -> relay.Receipt:
    return relay.Receipt(11, "size", facts=Facts(11, 1.0))


def result_in(message: Message) -> TransferResult:
    assert message.value is not None
    return TransferResult.from_json(message.value)


def test_a_good_job_is_one_result(scene: Scene) -> None:
    """Keyed by its id; one line of what happened."""
    scene.accept()
    scene.run(good)
    messages = scene.messages()
    assert set(messages) == {"jobs-results"}
    result = result_in(messages["jobs-results"])
    assert messages["jobs-results"].key == b"j1"
    assert (result.status, result.bytes, result.verified_by, result.attempts) == ("SUCCESS", 11, "size", 1)
    assert (result.worker, result.metadata) == ("worker/1", {"n": 1})
    assert scene.ledger.outstanding == 0


def test_a_job_that_is_done_needs_no_garbage_collector(scene: Scene) -> None:
    """A cycle in each of a million jobs fills the memory between two full collections, which come late."""
    scene.accept()
    scene.run(good)
    scene.commit()
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            scene.accept()
            scene.run(good)
            scene.commit()
        assert gc.collect() < 50
    finally:
        gc.enable()


def test_a_source_action_is_a_second_step(scene: Scene) -> None:
    """First the publish is committed, without any message; then the action, and the result."""
    scene.accept({**JOB, "options": {"source_action": "delete"}})
    scene.run(good)
    first = scene.commit()
    assert first is not None
    assert first.messages == ()
    scene.run(good)
    result = result_in(scene.messages()["jobs-results"])
    assert (result.status, result.bytes, result.verified_by) == ("SUCCESS", 11, "size")
    assert scene.ledger.outstanding == 0


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
@pytest.mark.parametrize("ending", ["done", "published", "dead"])
def test_a_clock_that_is_set_changes_no_duration(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, ending: str, seconds: float
) -> None:
    """Its times are what the clock showed."""
    options = {"source_action": "delete"} if ending == "published" else {}
    wall = time.time

    def relayed() -> relay.Receipt:
        monkeypatch.setattr(time, "time", lambda: wall() + seconds)
        if ending == "dead":
            raise errors.FileMissing("/a is not there", server="A")
        return good()

    scene.accept({**JOB, "options": options})
    scene.run(relayed)
    if ending == "published":
        scene.commit()
        scene.run(good)
    result = result_in(scene.messages()["jobs-results"])
    assert result.duration_seconds is not None
    assert 0 <= result.duration_seconds < 60
    assert result.started_at is not None
    assert result.finished_at is not None
    assert abs((result.finished_at - result.started_at).total_seconds() - seconds) < 60


def test_a_file_left_alone_keeps_its_source(scene: Scene) -> None:
    """`overwrite: skip` of another file: nothing was copied, nothing is deleted."""
    scene.accept({**JOB, "options": {"source_action": "delete", "overwrite": "skip"}})
    scene.run(lambda: relay.Receipt(3, "none", skipped=True))
    assert result_in(scene.messages()["jobs-results"]).skipped


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, "message"),
        (b"", "message"),
        (b"\xff\xfe", "UTF-8"),
        (b"{", "JSON"),
        (b"[1]", "object"),
        ({**JOB, "typo": 1}, "typo"),
        ({**JOB, "source": {"hostname": "A"}}, "source.path"),
        ({**JOB, "source": {"hostname": "A", "path": "/a\r\nDELE /b"}}, "source.path"),
        ({**JOB, "options": {"checksum": {}}}, "options.checksum: is not supported yet"),
        ({**JOB, "source": {"hostname": "NOBODY", "path": "/a"}}, "NOBODY"),
    ],
)
def test_what_is_no_job_is_one_dead_letter_and_one_failed_result(scene: Scene, value: object, names: str) -> None:
    """At once, with the reason by its field, and the original's exact bytes."""
    record = scene.accept(value)
    messages = scene.messages()
    assert set(messages) == {"jobs-dlq", "jobs-results"}
    letter = DLQMessage.from_json(messages["jobs-dlq"].value)
    assert names.lower() in letter.error.lower()
    assert letter.original_bytes() == (record.value or b"")
    assert (letter.original_topic, letter.original_partition, letter.original_offset) == ("jobs", 0, 0)
    result = result_in(messages["jobs-results"])
    assert (result.status, result.error) == ("FAILED", letter.error)
    assert scene.ledger.outstanding == 0


def test_a_bug_is_a_dead_letter(scene: Scene) -> None:
    """Never a lost job, never a stopped line."""
    scene.accept()
    scene.run(raising(ZeroDivisionError("a bug")))
    letter = DLQMessage.from_json(scene.messages()["jobs-dlq"].value)
    assert (letter.error_code, letter.error) == ("UNKNOWN_ERROR", "a bug")


def test_a_bug_in_the_result_of_a_good_job_is_a_dead_letter(scene: Scene) -> None:
    """Results are written by the committer, which ends the process at an error: once, not for ever."""
    scene.accept()
    scene.run(good)
    with pytest.MonkeyPatch.context() as patch:
        write = TransferResult.to_json

        def broken(result: TransferResult) -> str:
            if result.succeeded:
                raise ZeroDivisionError("a bug")
            return write(result)

        patch.setattr(TransferResult, "to_json", broken)
        messages = scene.messages()
    assert DLQMessage.from_json(messages["jobs-dlq"].value).error == "a bug"
    assert result_in(messages["jobs-results"]).status == "FAILED"
    assert scene.ledger.outstanding == 0


def test_attempts_run_out(scene: Scene) -> None:
    """The first failure waits in memory with its history, the last is a dead letter that lists all."""
    scene.accept()
    task = scene.run(raising(errors.ConnectionLost("cut")))
    assert scene.messages() == {}
    assert [attempt.what for attempt in task.attempts] == ["CONNECTION_ERROR: cut"]
    assert task.orphan_scan_since is not None
    scene.passed.pass_(0.55)  # half of the first back-off: the jitter of the policy above
    scene.run(raising(errors.SizeMismatch("short")))
    messages = scene.messages()
    letter = DLQMessage.from_json(messages["jobs-dlq"].value)
    assert [attempt.what for attempt in letter.attempts] == ["CONNECTION_ERROR: cut", "SIZE_MISMATCH: short"]
    assert (letter.error_code, letter.retry_count) == ("SIZE_MISMATCH", 1)
    assert result_in(messages["jobs-results"]).attempts == 2


def test_an_outage_spends_nothing_and_is_parked(scene: Scene) -> None:
    """It goes to T-retry with its bytes, once its wait is long."""
    record = scene.accept()
    outage = errors.ServerUnavailable("refused", server="B")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dispatcher, "breaker_wait", lambda *_: 100.0)
        task = scene.run(raising(outage))
    deferred = scene.messages()["jobs-retry"]
    assert (deferred.value, deferred.key) == (record.value, record.key)
    assert task.attempts == []
    assert task.outages == 1
    headers = dict(deferred.headers)
    assert headers[header.GROUP] == b"group"
    assert headers[header.ORIGIN] == b"jobs-0-0"
    assert scene.ledger.outstanding == 0


def test_a_lost_partition_writes_nothing(scene: Scene) -> None:
    """Whoever owns it repeats the job."""
    scene.accept()
    scene.ledger.revoke([P0])
    scene.run(raising(errors.OwnershipLost("gone")))
    assert scene.messages() == {}
    assert scene.dispatcher.unfinished[0] == 0


def test_a_job_that_may_be_ours_is_neither_reported_nor_forgotten(scene: Scene) -> None:
    """While the broker is silent nobody took the partition away, and no error proves anything: the job runs again."""
    scene.accept()
    scene.partitions.ours = False
    scene.run(raising(errors.FileMissing("gone, it seems")))
    assert scene.messages() == {}
    assert scene.dispatcher.unfinished[0] == 1


def test_a_deadline_that_passed_is_a_dead_letter_without_a_connection(scene: Scene) -> None:
    """No server is bothered."""
    scene.accept({**JOB, "options": {"deadline": "2020-01-01T00:00:00Z"}})
    scene.run(good)
    assert DLQMessage.from_json(scene.messages()["jobs-dlq"].value).error_code == "DEADLINE_EXCEEDED"
    assert scene.world["A"].connects == 0


def test_a_leaves_partial_partial_is_removed_through_a_new_session(scene: Scene) -> None:
    """The session that failed is not asked; what cannot be removed is remembered for the next one."""
    for refusal in (None, ConnectionRefusedError("down")):

        def fail(job: Task, refusal: BaseException | None = refusal) -> relay.Receipt:
            job.leaves_partial = True
            scene.world["B"].refusal = refusal
            raise errors.ConnectionLost("cut")

        scene.accept()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(relay, "run", lambda job, *_, fail=fail: fail(job))
            task = scene.fly()
        scene.dispatcher.drop(lambda _task: True)
        assert not task.leaves_partial
    assert len(scene.world["B"].removed) == 1
    assert not scene.reporter.give_up_waiting()


def leaving_a_partial_file(
    error: errors.EtlError, act: Callable[[], object] = lambda: None
) -> Callable[..., relay.Receipt]:
    def run(task: Task, *_: object) -> relay.Receipt:
        task.leaves_partial = True
        act()
        raise error

    return run


def test_a_job_broken_off_by_the_stop_leaves_it_to_the_next_owner_to_look(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its partial file was removed; whether the server was in the middle of the rename nobody knows."""
    monkeypatch.setattr(
        relay, "run", leaving_a_partial_file(errors.OwnershipLost("the process stops"), scene.stopping.set)
    )
    scene.accept()
    scene.fly()
    assert len(scene.world["B"].removed) == 1
    assert not scene.reporter.give_up_waiting()


def test_a_job_that_never_wrote_leaves_nothing_when_the_stop_breaks_it_off(scene: Scene) -> None:
    scene.accept()
    scene.stopping.set()
    scene.run(raising(errors.OwnershipLost("the process stops")))
    assert scene.reporter.give_up_waiting()


def test_a_job_that_still_has_to_look_when_the_process_ends_leaves_it_to_the_next_owner(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record does not say that it was tried."""
    monkeypatch.setattr(relay, "run", leaving_a_partial_file(errors.ConnectionLost("cut")))
    scene.accept()
    scene.fly()
    assert scene.dispatcher.unfinished[0] == 1
    assert not scene.reporter.give_up_waiting()


@pytest.mark.parametrize("dirty", [True, False])
def test_a_job_set_aside_untried_remembers_whether_it_has_to_look(scene: Scene, dirty: bool) -> None:
    """Its partition is another then, whose owner may have nothing to look for."""
    scene.partitions.dirty = dirty
    scene.accept()
    (task,) = scene.dispatcher.drop(lambda _task: True)
    scene.reporter.defer(task, NOW + 60, "server busy")
    aside = scene.messages()["jobs-retry"]
    assert aside.partition is not None
    scene.partitions.dirty = False
    scene.clock.pass_(61)
    scene.accept(aside.value, headers=aside.headers, partition=Partition("jobs-retry", aside.partition))
    (task,) = scene.dispatcher.drop(lambda _task: True)
    assert (task.orphan_scan_since is not None) == dirty


@pytest.mark.parametrize("action", ["keep", "delete"])
def test_a_job_that_failed_and_then_went_well_leaves_nothing(scene: Scene, action: str) -> None:
    """Also where its source is still to be deleted."""
    scene.accept({**JOB, "options": {"source_action": action}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "run", leaving_a_partial_file(errors.ConnectionLost("cut")))
        scene.fly()
    scene.passed.pass_(0.55)  # half of the first back-off
    scene.run(good)
    scene.commit()
    assert scene.dispatcher.unfinished[0] == (action == "delete")
    assert scene.reporter.give_up_waiting()


def test_what_a_run_left_and_is_removed_later_is_never_what_the_next_one_writes(scene: Scene) -> None:
    """The next fresh session of the server removes it by its name, perhaps in the middle of that run."""
    names: list[str] = []

    def fail(job: Task, _source: object, destination: Session, token: str, *_rest: object) -> relay.Receipt:
        names.append(partials.partial_path(job, destination.server, token))
        job.leaves_partial = True
        scene.world["B"].refusal = ConnectionRefusedError("down")
        raise errors.ConnectionLost("cut")

    scene.accept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "run", fail)
        scene.fly()
        scene.world["B"].refusal = None
        scene.passed.pass_(0.55)  # half of the first back-off
        scene.fly()
    assert scene.world["B"].removed == names[:1]
    assert len(set(names)) == 2


# --- records of T-retry ---------------------------------------------------------------------------------------


def retry(tier: int) -> Partition:
    return Partition("jobs-retry", tier)


def headers(**values: str) -> tuple[tuple[str, bytes], ...]:
    names = {
        "group": header.GROUP,
        "origin": header.ORIGIN,
        "not_before": header.NOT_BEFORE,
        "attempts": header.ATTEMPTS,
        "servers": messages.SERVERS,
        "recallable": messages.RECALLABLE,
    }
    return tuple((names[name], value.encode()) for name, value in values.items())


def utc(wall: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(wall))


def test_a_record_that_is_not_due_puts_its_partition_to_sleep(scene: Scene) -> None:
    """Not received, nothing in memory: it is read again when it is due. What follows it waits behind it."""
    scene.accept(JOB, headers(group="group", origin="jobs-0-5", not_before=utc(NOW + 8)), retry(0))
    assert scene.partitions.sleeping == {retry(0): (0, NOW + 8)}
    scene.accept(JOB, headers(group="group", origin="jobs-0-6"), retry(0))
    assert scene.ledger.outstanding == 0
    assert scene.dispatcher.unfinished == (0, 0)


def test_a_job_that_only_waits_for_its_servers_comes_as_soon_as_they_want_it(scene: Scene) -> None:
    """Before its time, a few at a time; what a producer asked for holds all the same."""
    early = headers(group="group", origin="jobs-0-5", not_before=utc(NOW + 500), recallable="1", servers="A B")
    for number in range(DOWN_KEEPS):
        scene.accept({**JOB, "destination": {"hostname": "B", "path": f"/out/{number}"}}, early, retry(2))
    assert scene.partitions.sleeping == {}
    assert scene.dispatcher.unfinished[0] == DOWN_KEEPS
    scene.accept(JOB, early, retry(2))
    assert scene.partitions.sleeping == {retry(2): (DOWN_KEEPS, NOW + 500)}
    assert scene.partitions.seen_by_predecessor
    assert scene.partitions.may_recall is not None
    assert not scene.partitions.may_recall()
    for _ in range(DOWN_KEEPS):
        scene.run(good)
    assert scene.partitions.may_recall()
    scene.partitions.sleeping.clear()
    scene.accept({**JOB, "options": {"not_before": utc(NOW + 400)}}, early, retry(2))
    assert scene.dispatcher.unfinished[0] == 0
    deferred = dict(scene.messages()["jobs-retry"].headers)
    assert deferred[header.NOT_BEFORE].startswith(utc(NOW + 400)[:19].encode())
    assert messages.RECALLABLE not in deferred


def test_a_job_that_failed_or_whose_server_is_down_waits_for_its_time(scene: Scene) -> None:
    """Without the mark nobody may bring it forward; with it not for a server that would refuse it."""
    late = {"group": "group", "origin": "jobs-0-5", "not_before": utc(NOW + 8), "servers": "A B"}
    scene.accept(JOB, headers(**late), retry(0))
    assert retry(0) in scene.partitions.sleeping
    assert not scene.partitions.seen_by_predecessor
    assert scene.partitions.may_recall is None
    scene.dispatcher.failed("B", DOWN)
    scene.accept(JOB, headers(**late, recallable="1"), retry(1))
    assert retry(1) in scene.partitions.sleeping
    assert scene.dispatcher.unfinished[0] == 0


def test_a_job_that_came_early_and_is_done_stops_nobody(scene: Scene) -> None:
    """The next owner of its partition finds it before its time, and goes on behind it."""
    book = OffsetTracker(0)
    for offset in range(2):
        book.receive(offset)
    commit = book.snapshot({1}, (), 1, "x")
    scene.partitions.held[retry(3)] = scene.ledger.assign(retry(3), commit.offset, commit.metadata)
    scene.dispatcher.failed("A", DOWN)
    scene.accept(JOB, headers(group="group", origin="jobs-0-5", servers="B B"), retry(3), NOW - 4000)
    early = headers(group="group", origin="jobs-0-6", not_before=utc(NOW + 500), recallable="1", servers="A B")
    scene.accept(JOB, early, retry(3))
    assert scene.partitions.sleeping == {}
    assert scene.ledger.outstanding == 1


def test_a_job_that_is_set_aside_as_its_server_is_busy_waits_for_no_outage(scene: Scene) -> None:
    """Its patience begins anew with the next one."""
    task = admitted(scene)
    task.waiting_since, task.outages = time.time() - 3500, 7
    scene.reporter.defer_untried(task, 600.0, None)
    assert (task.waiting_since, task.outages) == (None, 0)
    assert dict(scene.messages()["jobs-retry"].headers)[messages.RECALLABLE] == b"1"


def test_a_back_off_that_no_breaker_tells_the_end_of_is_waited_for(scene: Scene) -> None:
    """Too many connections while some of ours are open: tried again as soon as there is room, it would be refused."""
    task = admitted(scene)
    task.outages = 8
    lease = scene.pools.reserve(scene.pools.server("B"))
    assert lease is not None
    lease.open()
    lease.release(reusable=True)
    busy = errors.ServerBusy("B: 421", server="B")
    scene.dispatcher.failed("B", busy, task)
    scene.reporter.failed(task, busy, Start.now())
    assert messages.RECALLABLE not in dict(scene.messages()["jobs-retry"].headers)


def admitted(scene: Scene) -> Task:
    """Return a job that was let in, and is not run."""
    scene.accept()
    (task,) = scene.dispatcher.drop(lambda _task: True)
    return task


def test_a_due_record_runs_with_its_history(scene: Scene) -> None:
    """Directly from T-retry, named after its first delivery."""
    attempts = json.dumps([{"at": "then", "where": "there", "what": "IO_ERROR: x"}])
    scene.accept(JOB, headers(group="group", origin="jobs-0-5", not_before=utc(NOW - 1), attempts=attempts), retry(0))
    task = scene.run(good)
    assert str(task.origin) == "jobs-0-5"
    assert result_in(scene.messages()["jobs-results"]).attempts == 2


def test_records_of_other_groups_are_done_unread(scene: Scene) -> None:
    """Also one that is not due: nobody waits for it here."""
    scene.accept(b"whatever", headers(group="others", not_before=utc(NOW + 1000)), retry(1))
    assert scene.partitions.sleeping == {}
    assert scene.messages() == {}
    assert scene.ledger.outstanding == 0


def test_a_hop_is_parked_again(scene: Scene) -> None:
    """Due in its tier, but not at its time: it moves on to the tier of what remains."""
    with structlog.testing.capture_logs() as logs:
        scene.accept(JOB, headers(group="group", origin="jobs-0-5", not_before=utc(NOW + 700)), retry(0), NOW - 10)
    deferred = scene.messages()["jobs-retry"]
    assert deferred.partition == 2
    assert [line["log_level"] for line in logs if line["event"] == "job deferred"] == ["debug"]  # it was said before


def test_not_before_in_the_far_future_is_parked_at_once(scene: Scene) -> None:
    """It costs no memory; a near one waits here."""
    with structlog.testing.capture_logs() as logs:
        scene.accept({**JOB, "options": {"not_before": utc(NOW + 5000)}})
    assert scene.messages()["jobs-retry"].partition == 3
    assert [line["log_level"] for line in logs if line["event"] == "job deferred"] == ["info"]
    scene.accept({**JOB, "options": {"not_before": utc(NOW + 5)}})
    assert scene.messages() == {}
    assert scene.dispatcher.unfinished[0] == 1


def test_what_was_revoked_or_done_is_dropped(scene: Scene) -> None:
    """Records that were polled before the partition was taken away."""
    scene.accept(partition=Partition("jobs", 5))
    with contextlib.suppress(KeyError):
        scene.ledger.revoke([P0])
    scene.accept()
    assert scene.dispatcher.unfinished == (0, 0)


@pytest.mark.parametrize("last", ["9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59Z"])
def test_a_job_may_wait_until_the_end_of_the_calendar(scene: Scene, last: str) -> None:
    """Its last instant, as seconds, is the year 10000, which no time can be made of."""
    scene.accept({**JOB, "options": {"not_before": last}})
    deferral = scene.messages()["jobs-retry"]
    assert dict(deferral.headers)[header.NOT_BEFORE].startswith(b"9999-12-31T23:59:59")


@pytest.mark.parametrize("moment", [b"9999-12-31T23:59:59-14:00", b"0001-01-01T00:00:00+14:00"])
def test_times_in_headers_may_lie_beyond_the_calendar(scene: Scene, moment: bytes) -> None:
    """Somebody else's headers in T-retry."""
    headers = ((header.GROUP, b"group"), (header.NOT_BEFORE, moment), ("etl-waiting-since", moment))
    scene.accept(headers=headers, partition=Partition("jobs-retry", 0), timestamp=NOW - 3600)
    if scene.dispatcher.unfinished[0]:
        scene.run(raising(errors.ServerUnavailable("down", server="A")))
    assert scene.messages()


def test_a_bug_met_by_one_record_is_a_dead_letter(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the end of the process, which would meet the record again."""
    monkeypatch.setattr(scene.dispatcher, "offer", lambda *_: 1 / 0)
    scene.accept()
    messages = scene.messages()
    assert set(messages) == {"jobs-dlq", "jobs-results"}
    assert result_in(messages["jobs-results"]).error_code == "UNKNOWN_ERROR"


# --- a server that is down

DOWN = errors.ServerUnavailable("refused", server="B")


def deferred(*more: tuple[str, bytes]) -> dict[str, Any]:
    headers = ((header.GROUP, b"group"), (header.ORIGIN, b"jobs-0-7"), ("etl-servers", b"A B"), *more)
    return {"headers": headers, "partition": Partition("jobs-retry", 1), "timestamp": NOW - 3600}


def defer_untried(scene: Scene) -> None:
    for overflow in scene.dispatcher.overflow():
        scene.reporter.defer_untried(*overflow)


def test_what_is_set_aside_names_its_servers(scene: Scene) -> None:
    """So that a job of a server that is down is seen to be one before it is read."""
    scene.dispatcher.failed("B", DOWN)
    for _ in range(DOWN_KEEPS + 1):
        scene.accept()
    defer_untried(scene)
    headers = dict(scene.messages()["jobs-retry"].headers)
    assert headers["etl-servers"] == b"A B"
    assert "etl-waiting-since" in headers
    assert header.ATTEMPTS not in headers


def test_due_jobs_of_a_server_that_is_down_are_set_back_at_a_bounded_rate(scene: Scene) -> None:
    """A million of them come due: their partition is read no faster than they are put back."""
    scene.dispatcher.failed("B", DOWN)
    for _ in range(DOWN_KEEPS):
        scene.accept(**deferred())
    assert scene.partitions.sleeping == {}
    taken = 0
    for _ in range(4):
        while not scene.partitions.sleeping:
            scene.accept(**deferred())
            defer_untried(scene)
            taken += 1
        assert scene.partitions.sleeping == {
            Partition("jobs-retry", 1): (scene.offset - 1, scene.clock() + DEFERRED_READ_PAUSE_SECONDS)
        }
        assert taken <= DEFERRED_READS_PER_SECOND * (1 + scene.clock() - NOW) + 4
        scene.clock.pass_(DEFERRED_READ_PAUSE_SECONDS)
        scene.partitions.sleeping.clear()
    assert taken > DEFERRED_READS_PER_SECOND * 2
    assert scene.dispatcher.unfinished[0] == DOWN_KEEPS


def test_due_jobs_of_other_servers_and_new_ones_are_not_slowed(scene: Scene) -> None:
    """Nor are jobs of a server that is down that come for the first time: behind them may be some of others."""
    scene.dispatcher.failed("B", DOWN)
    scene.admission.deferred_reads = TokenBucket(0.0)
    for _ in range(DOWN_KEEPS + 20):
        scene.accept()
    other = {**JOB, "destination": {"hostname": "A", "path": "/out/a"}}
    to_others = deferred()
    to_others["headers"] = tuple((k, b"A A" if k == "etl-servers" else v) for k, v in to_others["headers"])
    scene.accept(other, **to_others)
    assert scene.partitions.sleeping == {}
    scene.accept(**deferred())
    assert Partition("jobs-retry", 1) in scene.partitions.sleeping


def test_that_a_job_is_set_back_is_said_once(scene: Scene) -> None:
    """A million of them, every hour for three days, would say nothing else."""
    scene.dispatcher.failed("B", DOWN)
    for _ in range(DOWN_KEEPS):
        scene.accept()
    since = datetime.fromtimestamp(time.time() - 60, UTC).isoformat().encode()
    with structlog.testing.capture_logs() as logs:
        scene.accept()
        scene.accept(**deferred(("etl-waiting-since", since), ("etl-recallable", b"1")))
        defer_untried(scene)
    assert [line["log_level"] for line in logs if line["event"] == "job deferred"] == ["debug", "info"]


def test_patience_ends_for_jobs_that_nobody_tried(scene: Scene) -> None:
    """The dead letter says what the server was met with, and how long the job waited."""
    since = datetime.fromtimestamp(time.time() - 7200, UTC).isoformat().encode()
    scene.dispatcher.failed("B", DOWN)
    for _ in range(DOWN_KEEPS):
        scene.accept()
    scene.accept(**deferred(("etl-waiting-since", since)))
    defer_untried(scene)
    messages = scene.messages()
    letter = DLQMessage.from_json(messages["jobs-dlq"].value or b"")
    assert letter.error_code == "CONNECTION_ERROR"
    assert "refused (waited 2.0 hours for the server" in letter.error
    result = result_in(messages["jobs-results"])
    assert (result.status, result.attempts) == ("FAILED", 0)


def test_a_server_that_lets_us_in_is_back_before_its_first_file_is_done(scene: Scene) -> None:
    """A probe may take hours: its login is enough."""
    scene.dispatcher.failed("B", DOWN)
    scene.accept()
    scene.dispatcher._servers[scene.pools.key(scene.pools.server("B"))].breaker.open_until = 0.0
    waits = []

    def relayed() -> relay.Receipt:
        waits.append(scene.dispatcher.breaker_wait("B"))
        scene.accept({**JOB, "destination": {"hostname": "B", "path": "/out/b"}})
        assert scene.dispatcher._down == set()
        return good()

    scene.run(relayed)
    assert waits == [0.0]
