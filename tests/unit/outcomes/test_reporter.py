"""The reporter: how jobs ended, seen in the messages and states that are committed."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import structlog.testing

from etl import errors
from etl.dispatch.dispatcher import Dispatcher
from etl.dispatch.overflow import DOWN_KEEPS
from etl.models import header
from etl.models.letter import DLQMessage
from etl.models.message import TransferResult
from etl.models.task import Start
from etl.models.wire import Partition
from etl.outcomes import messages
from etl.sessions.lease import Lease
from etl.transfer import receipts, relay
from scene import DOWN, JOB, NOW, P0, Scene, deferred_record, fail_leaving_a_partial_file, fail_with, result_in, succeed

pytestmark = pytest.mark.unit


def test_a_successful_job_has_one_result(scene: Scene) -> None:
    """It is keyed by the id of the job."""
    scene.accept()
    scene.run(succeed)
    messages = scene.messages()
    assert set(messages) == {"jobs-results"}
    result = result_in(messages["jobs-results"])
    assert messages["jobs-results"].key == b"j1"
    assert (result.status, result.bytes, result.verified_by, result.attempts) == ("SUCCESS", 11, "size", 1)
    assert (result.worker, result.metadata) == ("worker/1", {"n": 1})
    assert scene.ledger.outstanding == 0


def test_a_job_is_logged_as_done_after_its_commit(scene: Scene) -> None:
    """Not before: a commit that fails leaves no line that claims otherwise."""
    scene.accept()
    with structlog.testing.capture_logs() as said:
        scene.run(succeed)
        batch = scene.ledger.batch(100, now=scene.clock(), membership=object)
        assert batch is not None
        scene.ledger.end_batch(batch, committed=False)
        assert [line["event"] for line in said if line["event"] == "job done"] == []
        scene.commit()
    assert [line["job_id"] for line in said if line["event"] == "job done"] == ["j1"]


def test_a_source_action_follows_the_commit_of_the_publish(scene: Scene) -> None:
    """The publish is committed without a message; the result follows the action."""
    scene.accept({**JOB, "options": {"source_action": "delete"}})
    scene.run(succeed)
    first = scene.commit()
    assert first is not None
    assert first.messages == ()
    scene.run(succeed)
    result = result_in(scene.messages()["jobs-results"])
    assert (result.status, result.bytes, result.verified_by) == ("SUCCESS", 11, "size")
    assert scene.ledger.outstanding == 0


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
@pytest.mark.parametrize("ending", ["done", "published", "dead"])
def test_setting_the_clock_changes_no_duration(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, ending: str, seconds: float
) -> None:
    """Start and end are still the times that the clock showed."""
    options = {"source_action": "delete"} if ending == "published" else {}
    wall = time.time

    def relayed() -> receipts.Receipt:
        monkeypatch.setattr(time, "time", lambda: wall() + seconds)
        if ending == "dead":
            raise errors.FileMissing("/a is not there", server="A")
        return succeed()

    scene.accept({**JOB, "options": options})
    scene.run(relayed)
    if ending == "published":
        scene.commit()
        scene.run(succeed)
    result = result_in(scene.messages()["jobs-results"])
    assert result.duration_seconds is not None
    assert 0 <= result.duration_seconds < 60
    assert result.started_at is not None
    assert result.finished_at is not None
    assert abs((result.finished_at - result.started_at).total_seconds() - seconds) < 60


def test_a_skipped_copy_keeps_its_source(scene: Scene) -> None:
    """With `overwrite: skip` and another file at the destination, nothing is copied, so nothing is deleted."""
    scene.accept({**JOB, "options": {"source_action": "delete", "overwrite": "skip"}})
    scene.run(lambda: receipts.Receipt(3, "none", skipped=True))
    assert result_in(scene.messages()["jobs-results"]).skipped


def test_a_bug_is_a_dead_letter(scene: Scene) -> None:
    """The job is not lost and does not hold up others."""
    scene.accept()
    scene.run(fail_with(ZeroDivisionError("a bug")))
    letter = DLQMessage.from_json(scene.messages()["jobs-dlq"].value)
    assert (letter.error_code, letter.error) == ("UNKNOWN_ERROR", "a bug")


def test_a_bug_in_the_result_of_a_successful_job_is_a_dead_letter(scene: Scene) -> None:
    """The committer builds results, and an error there would stop the process at every restart."""
    scene.accept()
    scene.run(succeed)
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


def test_the_last_attempt_is_a_dead_letter_that_lists_all(scene: Scene) -> None:
    """After the first failure the job waits in memory."""
    scene.accept()
    task = scene.run(fail_with(errors.ConnectionLost("cut")))
    assert scene.messages() == {}
    assert [attempt.what for attempt in task.attempts] == ["CONNECTION_ERROR: cut"]
    assert task.orphan_scan_since is not None
    scene.passed.pass_(0.55)  # half of the first back-off: the jitter of the policy in the scene
    scene.run(fail_with(errors.SizeMismatch("short")))
    messages = scene.messages()
    letter = DLQMessage.from_json(messages["jobs-dlq"].value)
    assert [attempt.what for attempt in letter.attempts] == ["CONNECTION_ERROR: cut", "SIZE_MISMATCH: short"]
    assert (letter.error_code, letter.retry_count) == ("SIZE_MISMATCH", 1)
    assert result_in(messages["jobs-results"]).attempts == 2


def test_a_job_that_meets_an_outage_is_deferred_and_spends_no_attempt(scene: Scene) -> None:
    """Its exact bytes go to T-retry if the wait is long."""
    record = scene.accept()
    outage = errors.ServerUnavailable("refused", server="B")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dispatcher, "failed", lambda *_: 100.0)
        task = scene.run(fail_with(outage))
    deferred = scene.messages()["jobs-retry"]
    assert (deferred.value, deferred.key) == (record.value, record.key)
    assert task.attempts == []
    assert task.outages == 1
    headers = dict(deferred.headers)
    assert headers[header.GROUP] == b"group"
    assert headers[header.ORIGIN] == b"jobs-0-0"
    assert scene.ledger.outstanding == 0


def test_a_job_of_a_revoked_partition_is_not_reported(scene: Scene) -> None:
    """The new owner of the partition repeats the job."""
    scene.accept()
    scene.ledger.revoke([P0])
    scene.run(fail_with(errors.OwnershipLost("gone")))
    assert scene.messages() == {}
    assert scene.dispatcher.unfinished[0] == 0


def test_a_job_of_uncertain_ownership_runs_again(scene: Scene) -> None:
    """While the broker does not answer, the partition is not revoked, but an error proves nothing."""
    scene.accept()
    scene.partitions.is_owner = False
    scene.run(fail_with(errors.FileMissing("gone, it seems")))
    assert scene.messages() == {}
    assert scene.dispatcher.unfinished[0] == 1


def test_a_job_that_has_not_looked_for_orphans_leaves_that_to_the_next_owner(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record does not show that it ran before."""
    monkeypatch.setattr(relay, "run", fail_leaving_a_partial_file(errors.ConnectionLost("cut")))
    scene.accept()
    scene.run_next()
    assert scene.dispatcher.unfinished[0] == 1
    assert not scene.reporter.drop_unscanned()


def test_a_job_that_never_wrote_leaves_no_orphan_when_the_stop_ends_it(scene: Scene) -> None:
    scene.accept()
    scene.stopping.set()
    scene.run(fail_with(errors.OwnershipLost("the process stops")))
    assert scene.reporter.drop_unscanned()


def test_a_job_deferred_as_its_server_is_busy_waits_for_no_outage(scene: Scene) -> None:
    """Its patience begins anew with the next outage."""
    task = scene.admit()
    task.waiting_since, task.outages = time.time() - 3500, 7
    scene.reporter.defer_untried(task, 600.0, None)
    assert (task.waiting_since, task.outages) == (None, 0)
    assert dict(scene.messages()["jobs-retry"].headers)[messages.RECALLABLE] == b"1"


def test_a_job_whose_wait_no_breaker_ends_is_not_recallable(scene: Scene) -> None:
    """The server refuses more connections while others are open: recalled early, the job would be refused again."""
    task = scene.admit()
    task.outages = 8
    lease = scene.pools.reserve(scene.pools.server("B"))
    assert isinstance(lease, Lease)
    lease.open()
    lease.release(reusable=True)
    busy = errors.ServerBusy("B: 421", server="B")
    scene.reporter.failed(task, busy, Start.now(), scene.dispatcher.failed("B", busy, task))
    assert messages.RECALLABLE not in dict(scene.messages()["jobs-retry"].headers)


def test_a_deferral_of_a_job_that_did_not_run_says_since_when_it_waits(scene: Scene) -> None:
    scene.dispatcher.failed("B", DOWN)
    for _ in range(DOWN_KEEPS + 1):
        scene.accept()
    scene.defer_overflow()
    headers = dict(scene.messages()["jobs-retry"].headers)
    assert "etl-waiting-since" in headers
    assert header.ATTEMPTS not in headers


def test_only_the_first_deferral_of_a_job_is_logged_at_info(scene: Scene) -> None:
    """A million deferred jobs, every hour for three days, would hide all other lines."""
    scene.dispatcher.failed("B", DOWN)
    for _ in range(DOWN_KEEPS):
        scene.accept()
    since = datetime.fromtimestamp(time.time() - 60, UTC).isoformat().encode()
    other = {**JOB, "destination": {"hostname": "A", "path": "/out/a"}}
    scene.stands_behind(other, Partition("jobs-retry", 1), (header.GROUP, b"group"))
    with structlog.testing.capture_logs() as logs:
        scene.accept()
        scene.accept(**deferred_record(("etl-waiting-since", since), ("etl-recallable", b"1")))
        scene.defer_overflow()
    assert [line["log_level"] for line in logs if line["event"] == "job deferred"] == ["debug", "info"]


def test_a_clock_that_was_wrong_from_the_start_ends_no_patience(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is for how long the job can have waited, by the broker's times and by what this process has seen."""
    since = datetime.fromtimestamp(NOW - 3600, UTC).isoformat().encode()
    scene.reporter.policy = replace(scene.reporter.policy, patience_seconds=2 * 3600)
    monkeypatch.setattr("etl.clock.now", lambda: NOW + 20 * 365.25 * 86400)
    scene.accept(**deferred_record(("etl-waiting-since", since)))
    scene.run(fail_with(DOWN))
    assert set(scene.messages()) <= {"jobs-retry"}


def test_patience_ends_even_for_jobs_that_never_ran(scene: Scene) -> None:
    """The dead letter names the outage, and how long the job waited."""
    scene.clock.now = time.time()
    since = datetime.fromtimestamp(time.time() - 7200, UTC).isoformat().encode()
    scene.dispatcher.failed("B", DOWN)
    for _ in range(DOWN_KEEPS):
        scene.accept()
    scene.accept(**deferred_record(("etl-waiting-since", since)))
    scene.reporter.started -= 7200  # this process has seen all of it
    scene.defer_overflow()
    messages = scene.messages()
    letter = DLQMessage.from_json(messages["jobs-dlq"].value or b"")
    assert letter.error_code == "CONNECTION_ERROR"
    assert "refused (waited 2.0 hours for the server" in letter.error
    result = result_in(messages["jobs-results"])
    assert (result.status, result.attempts) == ("FAILED", 0)
