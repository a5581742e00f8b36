"""The runner: one run of a job in a lane, and what it leaves at the servers."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import structlog

from etl import errors
from etl.models.letter import DLQMessage
from etl.models.task import SCAN_ANEW, Attempt, Facts, Task, Unpublished
from etl.models.wire import Partition
from etl.sessions.lease import Lease
from etl.transfer import partials, receipts, relay
from etl.transfer.base import Session
from scene import DOWN, JOB, Scene, fail_leaving_a_partial_file, succeed

pytestmark = pytest.mark.unit


def test_a_finished_job_needs_no_garbage_collector(scene: Scene) -> None:
    """A reference cycle in each of a million jobs would fill the memory between two full collections."""
    scene.accept()
    scene.run(succeed)
    scene.commit()
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            scene.accept()
            scene.run(succeed)
            scene.commit()
        assert gc.collect() < 50
    finally:
        gc.enable()


def test_a_passed_deadline_is_a_dead_letter_without_a_connection(scene: Scene) -> None:
    """No server is contacted."""
    scene.accept({**JOB, "options": {"deadline": "2020-01-01T00:00:00Z"}})
    scene.run(succeed)
    assert DLQMessage.from_json(scene.messages()["jobs-dlq"].value).error_code == "DEADLINE_EXCEEDED"
    assert scene.world["A"].connects == 0


def test_a_partial_file_is_removed_through_a_new_session(scene: Scene) -> None:
    """The session that failed is not used for it. A partial file that cannot be removed is left to the next session."""
    for refusal in (None, ConnectionRefusedError("down")):

        def fail(job: Task, refusal: BaseException | None = refusal) -> receipts.Receipt:
            job.leaves_partial = True
            scene.world["B"].refusal = refusal
            raise errors.ConnectionLost("cut")

        scene.accept()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(relay, "run", lambda job, *_, fail=fail: fail(job))
            task = scene.run_next()
        scene.dispatcher.drop(lambda _task: True)
        assert not task.leaves_partial
    assert len(scene.world["B"].removed) == 1
    assert not scene.reporter.drop_unscanned()


KEPT = "/out/.etl-kept.part"


def fail_at_rename(job: Task, *_rest: object) -> receipts.Receipt:
    """Run a job in place of the relay: all is stored, and the session is lost."""
    job.leaves_partial = True
    job.unpublished = Unpublished(KEPT, 3, receipts.SIZE, Facts(3, None))
    raise errors.ConnectionLost("cut")


def test_an_upload_whose_rename_failed_is_kept_while_attempts_are_left(scene: Scene) -> None:
    """It was sent and proven: only its rename is tried again. After the last attempt it is removed, by its own name."""
    scene.accept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "run", fail_at_rename)
        task = scene.run_next()
        assert task.unpublished is not None
        assert scene.world["B"].removed == []
        assert task.orphan_scan_since == SCAN_ANEW
        task.attempts += [Attempt("", "", "")] * (scene.settings.retry_max_attempts - 1 - len(task.attempts))
        scene.passed.pass_(0.55)  # half of the first back-off
        scene.run_next()
    assert scene.world["B"].removed == [KEPT]
    assert task.unpublished is None


def test_an_upload_whose_rename_failed_is_not_left_behind_by_a_job_that_ends_otherwise(scene: Scene) -> None:
    """If it is cancelled, or its deadline passes, before its next run, the server's next session removes it."""
    scene.accept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "run", fail_at_rename)
        scene.run_next()
    (task,) = scene.dispatcher.drop(lambda _task: True)
    scene.reporter.dead(task, errors.Cancelled("cancelled"))
    assert list(scene.pools._pool(scene.pools.server("B")).orphans) == [KEPT]


def leave_a_part(error: errors.EtlError) -> Callable[..., receipts.Receipt]:
    """Fail as a large file does whose partial file is worth keeping."""

    def run(job: Task, _source: object, destination: Session, token: str, *_rest: object) -> receipts.Receipt:
        job.leaves_partial = True
        job.part = partials.partial_path(job, destination.server, f"0123456789abcdef-{token}")
        raise error

    return run


@pytest.mark.parametrize("kind", [errors.ConnectionLost, errors.TransferTimeout])
def test_a_part_is_kept_while_attempts_are_left(scene: Scene, kind: type[errors.EtlError]) -> None:
    """The next attempt goes on with it; after the last one it is removed."""
    scene.accept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "run", leave_a_part(kind("cut", server="B")))
        task = scene.run_next()
        assert task.part is not None
        assert scene.world["B"].removed == []
        assert task.orphan_scan_since == SCAN_ANEW
        task.attempts += [Attempt("", "", "")] * (scene.settings.retry_max_attempts - 1 - len(task.attempts))
        scene.passed.pass_(0.55)  # half of the first back-off
        scene.run_next()
    assert len(scene.world["B"].removed) == 1
    assert task.part is None


@pytest.mark.parametrize("kind", [errors.SizeMismatch, errors.SourceChanged, errors.StorageFull, errors.FileMissing])
def test_a_part_that_is_no_use_is_removed_at_once(scene: Scene, kind: type[errors.EtlError]) -> None:
    """Nothing is gone on with that is wrong, and a full disk is not kept full."""
    scene.accept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "run", leave_a_part(kind("no", server="B")))
        task = scene.run_next()
    assert len(scene.world["B"].removed) == 1
    assert task.part is None


def test_a_part_is_not_left_behind_by_a_job_that_ends_otherwise(scene: Scene) -> None:
    """Its deferral names it; if the job is a dead letter before it runs, the server's next session removes it."""
    scene.accept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "run", leave_a_part(errors.ServerUnavailable("down", server="A")))
        kept = scene.run_next().part
    (task,) = scene.dispatcher.drop(lambda _task: True)
    assert kept is not None
    headers = scene.builder.deferral(task, scene.clock() - 60)[0].headers
    scene.accept(headers=headers, partition=Partition("jobs-retry", 1), timestamp=scene.clock() - 3600)
    (again,) = scene.dispatcher.drop(lambda _task: True)
    assert again.part == kept
    task.part = None
    headers = scene.builder.deferral(task, scene.clock() - 60)[0].headers
    scene.accept(headers=headers, partition=Partition("jobs-retry", 1), timestamp=scene.clock() - 3600)
    (other,) = scene.dispatcher.drop(lambda _task: True)
    assert (other.part, other.orphan_scan_since is None) == (None, False)
    scene.reporter.dead(again, errors.Cancelled("cancelled"))
    assert list(scene.pools._pool(scene.pools.server("B")).orphans) == [kept]


def test_no_header_has_another_jobs_file_removed(scene: Scene) -> None:
    """Only a name that is the job's own, in the folder of its destination."""
    task = scene.admit()
    own = partials.partial_path(task, scene.pools.server("B"), "0123456789abcdef-ab1")
    for wrong in ("/out/a", "/elsewhere/" + own.rpartition("/")[2], own + "/../a", "1"):
        task.part = wrong
        scene.reporter.forget_part(task)
    assert not scene.pools._pool(scene.pools.server("B")).orphans


def test_a_dead_session_doubts_its_siblings(scene: Scene) -> None:
    """A job that found one dead, at no cost to itself, spares the others the same."""

    def fail(*_: object) -> receipts.Receipt:
        raise errors.SessionFault("dead", server="B")

    scene.accept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "run", fail)
        task = scene.run_next()
    assert task.attempts == []
    assert task.free_runs == 1
    assert scene.pools._pool(scene.pools.server("B")).died_at > 0


def test_the_refusal_that_a_partial_files_removal_meets_in_a_restart_is_no_limit(scene: Scene) -> None:
    """The death is noted before a new session is tried for it, while others seem to be open."""
    kept = scene.pools.reserve(scene.pools.server("B"))
    assert isinstance(kept, Lease)
    kept.open()

    def away() -> None:
        scene.world["B"].refusal = errors.ServerUnavailable("refused", server="B")

    scene.accept()
    with pytest.MonkeyPatch.context() as patch, structlog.testing.capture_logs() as said:
        patch.setattr(relay, "run", fail_leaving_a_partial_file(errors.ConnectionLost("cut", server="B"), away))
        scene.run_next()
    assert scene.pools.stats()["B"]["limit_now"] == scene.pools.stats()["B"]["limit"] > 1
    assert "pool limit lowered" not in [line["event"] for line in said]
    kept.release(reusable=False)


def test_a_job_that_the_stop_ends_leaves_the_search_for_orphans_to_the_next_owner(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its partial file was removed, but the server may have been renaming it at that moment."""
    monkeypatch.setattr(
        relay, "run", fail_leaving_a_partial_file(errors.OwnershipLost("the process stops"), scene.stopping.set)
    )
    scene.accept()
    scene.run_next()
    assert len(scene.world["B"].removed) == 1
    assert not scene.reporter.drop_unscanned()


@pytest.mark.parametrize("action", ["keep", "delete"])
def test_a_job_that_failed_and_then_succeeded_leaves_no_orphan(scene: Scene, action: str) -> None:
    """Even if its source has still to be deleted."""
    scene.accept({**JOB, "options": {"source_action": action}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "run", fail_leaving_a_partial_file(errors.ConnectionLost("cut")))
        scene.run_next()
    scene.passed.pass_(0.55)  # half of the first back-off
    scene.run(succeed)
    scene.commit()
    assert scene.dispatcher.unfinished[0] == (action == "delete")
    assert scene.reporter.drop_unscanned()


def test_an_orphan_removed_later_is_never_the_file_that_the_next_run_writes(scene: Scene) -> None:
    """The next new session of the server removes it by name, perhaps while that run is writing."""
    names: list[str] = []

    def fail(job: Task, _source: object, destination: Session, token: str, *_rest: object) -> receipts.Receipt:
        names.append(partials.partial_path(job, destination.server, token))
        job.leaves_partial = True
        scene.world["B"].refusal = ConnectionRefusedError("down")
        raise errors.ConnectionLost("cut")

    scene.accept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "run", fail)
        scene.run_next()
        scene.world["B"].refusal = None
        scene.passed.pass_(0.55)  # half of the first back-off
        scene.run_next()
    assert scene.world["B"].removed == names[:1]
    assert len(set(names)) == 2


def test_a_server_that_accepts_a_login_is_up_before_its_first_file_is_complete(scene: Scene) -> None:
    """The probe may transfer for hours; its login resets the breaker."""
    scene.dispatcher.failed("B", DOWN)
    scene.accept()
    scene.dispatcher._servers[scene.pools.key(scene.pools.server("B"))].breaker.open_until = 0.0
    waits = []

    def relayed() -> receipts.Receipt:
        report = scene.dispatcher.servers()["B"]
        waits.append((report.state, report.next_probe_seconds))
        scene.accept({**JOB, "destination": {"hostname": "B", "path": "/out/b"}})
        return succeed()

    scene.run(relayed)
    assert waits == [("closed", 0.0)]
