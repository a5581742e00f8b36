"""Admission: which records become jobs, and when."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import time
import tracemalloc
from datetime import UTC, datetime

import pytest
import structlog

from etl import errors, logs
from etl.dispatch.overflow import DOWN_KEEPS
from etl.intake import partitions
from etl.models import header
from etl.models.letter import DLQMessage
from etl.models.message import FileTransferJob
from etl.models.task import Record
from etl.models.wire import Partition
from etl.outcomes import messages
from etl.outcomes.offsets import OffsetTracker
from etl.retry.tiers import TIERS
from scene import DOWN, JOB, NOW, P0, Scene, deferred_record, fail_with, result_in, succeed

pytestmark = pytest.mark.unit


def retry(tier: int) -> Partition:
    return Partition("jobs-retry", tier)


def headers(**values: str) -> tuple[tuple[str, bytes], ...]:
    names = {
        "group": header.GROUP,
        "origin": header.ORIGIN,
        "not_before": header.NOT_BEFORE,
        "attempts": header.ATTEMPTS,
        "recallable": messages.RECALLABLE,
    }
    return tuple((names[name], value.encode()) for name, value in values.items())


def utc(wall: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(wall))


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
        ({**JOB, "options": {"checksum": {}}}, "options.checksum: must be"),
        ({**JOB, "source": {"hostname": "NOBODY", "path": "/a"}}, "NOBODY"),
    ],
)
def test_an_invalid_message_is_one_dead_letter_and_one_failed_result(scene: Scene, value: object, names: str) -> None:
    """At once, naming the invalid field, with the exact bytes of the original."""
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


def test_a_record_that_hits_a_bug_is_a_dead_letter(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the record would stop the process at every restart."""
    monkeypatch.setattr(scene.dispatcher, "offer", lambda *_: 1 / 0)
    scene.accept()
    messages = scene.messages()
    assert set(messages) == {"jobs-dlq", "jobs-results"}
    assert result_in(messages["jobs-results"]).error_code == "UNKNOWN_ERROR"


def test_a_record_that_is_not_due_delays_its_partition(scene: Scene) -> None:
    """It takes no memory: it is read again when it is due. Records behind it wait as well."""
    scene.accept(JOB, headers(group="group", origin="jobs-0-5", not_before=utc(NOW + 8)), retry(0))
    assert scene.partitions.delayed == {retry(0): (0, NOW + 8)}
    scene.accept(JOB, headers(group="group", origin="jobs-0-6"), retry(0))
    assert scene.ledger.outstanding == 0
    assert scene.dispatcher.unfinished == (0, 0)


def numbered(number: int) -> dict[str, object]:
    return {**JOB, "destination": {"hostname": "B", "path": f"/out/{number}"}}


@pytest.fixture
def crowded() -> Scene:
    """A small window, in which the pair A to B has its share."""
    scene = Scene(window_records=20)
    for number in range(10):
        scene.accept(numbered(number))
    assert scene.partitions.delayed == {}
    return scene


def test_a_recallable_job_is_admitted_as_soon_as_there_is_room_for_it(scene: Scene, crowded: Scene) -> None:
    """Before it is due, but never before its producer's not_before."""
    early = headers(group="group", origin="jobs-0-5", not_before=utc(NOW + 500), recallable="1")
    scene.accept(JOB, early, retry(2))
    assert scene.dispatcher.unfinished[0] == 1
    scene = crowded
    record = scene.accept(numbered(9999), early, retry(2))
    assert scene.partitions.delayed.pop(retry(2)) == (record.offset, NOW + 500)
    assert scene.partitions.seen_by_predecessor
    assert scene.partitions.may_go is not None
    assert not scene.partitions.may_go()
    while not scene.partitions.may_go():
        scene.run(succeed)
    before = scene.dispatcher.unfinished[0]
    scene.accept({**JOB, "options": {"not_before": utc(NOW + 400)}}, early, retry(2))
    assert scene.dispatcher.unfinished[0] == before
    deferred = dict(scene.messages()["jobs-retry"].headers)
    assert deferred[header.NOT_BEFORE].startswith(utc(NOW + 400)[:19].encode())
    assert messages.RECALLABLE not in deferred


def test_a_job_for_which_there_is_no_room_waits_where_it_is(crowded: Scene) -> None:
    """Nobody else waits behind it: any member of the group can get it there, and lag tells of it."""
    scene = crowded
    record = scene.accept(numbered(9999))
    assert scene.partitions.delayed == {P0: (record.offset, math.inf)}
    assert scene.partitions.stands
    assert scene.partitions.may_go is not None
    assert not scene.partitions.may_go()
    assert scene.ledger.outstanding == scene.settings.window_records // 2
    scene.stands_behind(numbered(1))  # more of its own
    assert not scene.partitions.may_go()
    while not scene.partitions.may_go():
        scene.run(succeed)
    scene.partitions.delayed.clear()
    scene.admission.accept(record)
    assert scene.partitions.delayed == {}
    assert "jobs-retry" not in scene.messages()


def test_it_makes_way_for_jobs_of_others(crowded: Scene) -> None:
    """As many as stand before the last of these; to T-retry, where it can run whenever there is room."""
    scene = crowded
    record = scene.accept(numbered(9999))
    assert scene.partitions.may_go is not None
    for nobodys in (b"{", {**JOB, "source": {"hostname": "GONE", "path": "/"}}, {"source": None}):
        scene.stands_behind(nobodys if isinstance(nobodys, dict) else {})
        assert not scene.partitions.may_go()
    scene.stands_behind(
        {**JOB, "source": {"hostname": "B", "path": "/x"}, "destination": {"hostname": "A", "path": "/"}}
    )
    assert scene.partitions.may_go()
    scene.partitions.delayed.clear()
    scene.admission.accept(record)
    deferral = scene.messages()["jobs-retry"]
    assert deferral.value == record.value
    assert deferral.partition is not None
    assert dict(deferral.headers)[messages.RECALLABLE] == b"1"
    assert scene.look_ahead.behind(P0, 10_000) == []
    scene.accept(numbered(9998))
    assert P0 in scene.partitions.delayed


def test_jobs_of_another_group_are_nobody_elses(crowded: Scene) -> None:
    scene = crowded
    scene.accept(numbered(9999), headers(group="group", not_before=utc(NOW - 5)), retry(0), NOW - 30)
    assert scene.partitions.may_go is not None
    other = {**JOB, "source": {"hostname": "B", "path": "/x"}}
    scene.stands_behind(other, retry(0), (header.GROUP, b"others"))
    assert not scene.partitions.may_go()
    scene.stands_behind(other, retry(0), (header.GROUP, b"group"))
    assert scene.partitions.may_go()


def test_other_jobs_and_those_of_a_server_that_is_down_wait_until_they_are_due(scene: Scene) -> None:
    """A job that is not recallable is never admitted early, of a server that is down only a few probes are."""
    late = {"group": "group", "origin": "jobs-0-5", "not_before": utc(NOW + 8)}
    scene.accept(JOB, headers(**late), retry(0))
    assert retry(0) in scene.partitions.delayed
    assert not scene.partitions.seen_by_predecessor
    assert scene.partitions.may_go is None
    scene.dispatcher.failed("B", DOWN)
    for _ in range(DOWN_KEEPS):
        scene.accept(JOB, headers(**late, recallable="1"), retry(1))
    assert retry(1) not in scene.partitions.delayed
    scene.accept(JOB, headers(**late, recallable="1"), retry(1))
    assert retry(1) in scene.partitions.delayed
    assert scene.dispatcher.unfinished[0] == DOWN_KEEPS


def test_a_recalled_job_that_is_done_delays_no_partition(scene: Scene) -> None:
    """The next owner of the partition reads it before it is due, and continues behind it."""
    book = OffsetTracker(0)
    for offset in range(2):
        book.receive(offset)
    commit = book.snapshot({1}, (), 1, "x")
    scene.partitions.held[retry(3)] = scene.ledger.assign(retry(3), commit.offset, commit.metadata)
    scene.dispatcher.failed("A", DOWN)
    scene.accept(JOB, headers(group="group", origin="jobs-0-5"), retry(3), NOW - 4000)
    early = headers(group="group", origin="jobs-0-6", not_before=utc(NOW + 500), recallable="1")
    scene.accept(JOB, early, retry(3))
    assert scene.partitions.delayed == {}
    assert scene.ledger.outstanding == 1


def test_a_due_record_is_admitted_with_its_history(scene: Scene) -> None:
    """The job of a record in T-retry is named after its origin."""
    attempts = json.dumps([{"at": "then", "where": "there", "what": "IO_ERROR: x"}])
    scene.accept(JOB, headers(group="group", origin="jobs-0-5", not_before=utc(NOW - 1), attempts=attempts), retry(0))
    task = scene.run(succeed)
    assert str(task.origin) == "jobs-0-5"
    assert result_in(scene.messages()["jobs-results"]).attempts == 2


def test_records_of_other_groups_are_done_unread(scene: Scene) -> None:
    """Even before they are due, so they delay no partition."""
    scene.accept(b"whatever", headers(group="others", not_before=utc(NOW + 1000)), retry(1))
    assert scene.partitions.delayed == {}
    assert scene.messages() == {}
    assert scene.ledger.outstanding == 0


def test_a_job_at_the_end_of_a_tier_is_deferred_again(scene: Scene) -> None:
    """It may not run yet, so it moves to the tier that fits the rest of its wait."""
    with structlog.testing.capture_logs() as logs:
        scene.accept(JOB, headers(group="group", origin="jobs-0-5", not_before=utc(NOW + 700)), retry(0), NOW - 10)
    deferred = scene.messages()["jobs-retry"]
    assert deferred.partition == 2
    assert [line["log_level"] for line in logs if line["event"] == "job deferred"] == ["debug"]


def test_a_job_with_a_distant_not_before_is_deferred_at_once(scene: Scene) -> None:
    """It takes no memory; a job that is due soon waits in the process."""
    with structlog.testing.capture_logs() as logs:
        scene.accept({**JOB, "options": {"not_before": utc(NOW + 5000)}})
    assert scene.messages()["jobs-retry"].partition == 3
    assert [line["log_level"] for line in logs if line["event"] == "job deferred"] == ["info"]
    scene.accept({**JOB, "options": {"not_before": utc(NOW + 5)}})
    assert scene.messages() == {}
    assert scene.dispatcher.unfinished[0] == 1


def test_records_of_partitions_that_are_not_held_are_dropped(scene: Scene) -> None:
    """They were polled before the revocation."""
    scene.accept(partition=Partition("jobs", 5))
    with contextlib.suppress(KeyError):
        scene.ledger.revoke([P0])
    scene.accept()
    assert scene.dispatcher.unfinished == (0, 0)


@pytest.mark.parametrize("last", ["9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59Z"])
def test_a_job_for_the_end_of_the_calendar_is_a_dead_letter(scene: Scene, last: str) -> None:
    """Rounded to seconds, its last instant is in the year 10000, which datetime cannot represent."""
    scene.accept({**JOB, "options": {"not_before": last}})
    letter = DLQMessage.from_json(scene.messages()["jobs-dlq"].value)
    assert letter.error == "options.not_before: is more than 366 days away"


@pytest.mark.parametrize("moment", [b"9999-12-31T23:59:59-14:00", b"0001-01-01T00:00:00+14:00"])
def test_times_in_headers_may_lie_beyond_the_calendar(scene: Scene, moment: bytes) -> None:
    """Another program may have written such headers to T-retry."""
    headers = ((header.GROUP, b"group"), (header.NOT_BEFORE, moment), ("etl-waiting-since", moment))
    scene.accept(headers=headers, partition=Partition("jobs-retry", 0), timestamp=NOW - 3600)
    if scene.dispatcher.unfinished[0]:
        scene.run(fail_with(errors.ServerUnavailable("down", server="A")))
    assert scene.messages()


@pytest.mark.parametrize("dirty", [True, False])
def test_a_deferred_job_still_looks_for_orphans_if_it_had_to(scene: Scene, dirty: bool) -> None:
    """It returns in another partition, whose last owner may have ended cleanly."""
    scene.partitions.unclean = dirty
    scene.accept()
    (task,) = scene.dispatcher.drop(lambda _task: True)
    scene.reporter.defer(task, NOW + 60, "server busy")
    deferral = scene.messages()["jobs-retry"]
    assert deferral.partition is not None
    scene.partitions.unclean = False
    scene.clock.pass_(61)
    scene.accept(deferral.value, headers=deferral.headers, partition=Partition("jobs-retry", deferral.partition))
    (task,) = scene.dispatcher.drop(lambda _task: True)
    assert (task.orphan_scan_since is not None) == dirty


def test_due_jobs_of_a_server_that_is_down_stay_where_they_are(scene: Scene) -> None:
    """A million of them keep no process busy. The first few are probes, and others wait for as long as they may."""
    scene.dispatcher.failed("B", DOWN)
    for _ in range(DOWN_KEEPS):
        scene.accept(**deferred_record())
    assert scene.partitions.delayed == {}
    record = scene.accept(**deferred_record())
    assert scene.partitions.delayed == {retry(1): (record.offset, NOW + scene.reporter.policy.patience_seconds)}
    assert scene.partitions.stands
    assert scene.partitions.may_go is not None
    assert not scene.partitions.may_go()
    scene.dispatcher.worked("B")
    assert scene.partitions.may_go()


def test_they_make_way_for_due_jobs_of_others(scene: Scene) -> None:
    """They are deferred for longer than their server has been down."""
    scene.dispatcher.failed("B", DOWN)
    for _ in range(DOWN_KEEPS):
        scene.accept()
    record = scene.accept(**deferred_record())
    other = {**JOB, "destination": {"hostname": "A", "path": "/out/a"}}
    scene.stands_behind(other, retry(1), (header.GROUP, b"group"))
    assert scene.partitions.may_go is not None
    assert scene.partitions.may_go()
    scene.partitions.delayed.clear()
    scene.admission.accept(record)
    assert [(overflow.task.record, overflow.seconds) for overflow in scene.dispatcher.overflow()] == [
        (record, TIERS[1])
    ]


def test_new_jobs_of_a_server_that_is_down_are_deferred_at_once(scene: Scene) -> None:
    scene.dispatcher.failed("B", DOWN)
    for _ in range(DOWN_KEEPS + 20):
        scene.accept()
    assert scene.partitions.delayed == {}
    scene.defer_overflow()
    assert scene.dispatcher.unfinished[0] == DOWN_KEEPS


@pytest.mark.parametrize("value", [None, JOB])
def test_a_record_that_was_not_read_whole_is_a_dead_letter(scene: Scene, value: object) -> None:
    """With the reason, and what was read of it; one of which nothing was read cannot be replayed."""
    record = scene.accept(value, fault="is not read")
    told = scene.messages()
    letter = DLQMessage.from_json(told["jobs-dlq"].value)
    assert letter.error == "message: is not read"
    assert letter.original_bytes() == record.value
    assert letter.truncated == (value is None)
    assert result_in(told["jobs-results"]).error_code == "INVALID_MESSAGE"


@pytest.mark.parametrize("where", ["read", "room", "task"])
def test_a_bug_that_a_record_meets_ends_the_record_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It is a dead letter with a traceback in the log, and counted; the next record is read as ever."""
    owner = {"read": messages.MessageBuilder, "room": type(scene.dispatcher), "task": messages.Carried}[where]

    def stumble(*_: object, **__: object) -> object:
        raise ZeroDivisionError("a test's bug")

    deferred = Partition("jobs-retry", 0)
    headers = ((header.GROUP, b"group"), (messages.RECALLABLE, b"1"))
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as lines:
        patch.setattr(owner, where, stumble)
        scene.accept(JOB, headers, deferred, NOW - 7200)
    (line,) = [line for line in lines if line["event"] == "record dead-lettered after a bug"]
    assert isinstance(line["exc_info"], ZeroDivisionError)
    assert (line["bugs"], line["error_code"]) == (1, "UNKNOWN_ERROR")
    told = scene.messages()
    assert set(told) == {"jobs-dlq", "jobs-results"}
    assert DLQMessage.from_json(told["jobs-dlq"].value).error == "a test's bug"
    scene.accept()
    assert scene.run(succeed).job.job_id == "j1"


def test_the_headers_of_another_groups_record_are_not_even_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with them, it is none of our business."""
    monkeypatch.setattr(messages.MessageBuilder, "read", lambda *_: 1 // 0)
    scene.accept(JOB, ((header.GROUP, b"another"),), Partition("jobs-retry", 0))
    assert scene.messages() == {}


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ([("h", b"")] * 101, "has 101 headers"),
        ([("h", b"v" * 70_000)], "has headers of 70001 bytes"),
        ([("h" * 70_000, b"")], "has headers of 70000 bytes"),
    ],
)
def test_a_record_with_too_many_or_too_large_headers_is_a_dead_letter(
    scene: Scene, headers: list[tuple[str, bytes]], why: str
) -> None:
    """With its message, without them."""
    record = scene.accept(JOB, tuple(headers))
    letter = scene.messages()["jobs-dlq"]
    assert {name for name, _ in letter.headers} <= {"etl-job-id", "etl-group", "etl-origin"}
    read = DLQMessage.from_json(letter.value)
    assert why in read.error
    assert read.original_bytes() == record.value


def test_as_many_headers_as_may_be_go_along_with_the_job(scene: Scene) -> None:
    """A hundred, or 64 KB of them; ours do not count."""
    scene.accept(JOB, (*[("h", b"v")] * 100, ("etl-replays", b"1"), ("etl-forged", b"x" * 70_000)))
    assert scene.run(succeed).job.job_id == "j1"


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        ({**JOB, "metadata": {"n": [{}] * 20_000}}, ()),
        ({**JOB, "metadata": {"n": [[]] * 20_000}}, ()),
        ({**JOB, "metadata": {f"{n}": n for n in range(20_000)}}, ()),
        ({**JOB, "metadata": {"n": list(range(20_000))}}, ()),
        (JOB, [(f"{n}", b"%d" % n) for n in range(100)]),
    ],
)
def test_the_window_counts_what_a_job_takes_in_memory(
    scene: Scene, value: object, headers: list[tuple[str, bytes]]
) -> None:
    """Key, headers and the parsed message included: sixty times its bytes without that."""
    raw = json.dumps(value).encode()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        record = Record(*P0, 0, None, bytes(bytearray(raw)), tuple([(n + "", bytes(bytearray(v))) for n, v in headers]))
        job = FileTransferJob.from_json(record.value)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert job.job_id == "j1"
    scene.accept(value, tuple(headers))
    _, counted_bytes = scene.dispatcher.unfinished
    assert counted_bytes >= (after - before) * 0.8


def test_a_publication_is_proven_by_a_commit_and_not_by_a_header(scene: Scene) -> None:
    """Whoever may write to T-retry writes headers; only the group itself commits."""
    job = {**JOB, "options": {"source_action": "delete"}}
    headers = ((header.GROUP, b"group"), (messages.PUBLISHED, b"{}"), (header.NOT_BEFORE, b"2020-01-01T00:00:00Z"))
    scene.accept(job, headers, Partition("jobs-retry", 0))
    forged = scene.run(succeed)
    assert (forged.published, forged.unproven) == (True, True)
    scene.accept({**job, "job_id": "j2"})
    copied = scene.run(succeed)
    scene.commit()
    acted = scene.run(succeed)
    assert (copied.published, acted.published, acted.unproven) == (False, True, False)


def test_a_time_in_the_future_holds_a_partition_no_longer_than_its_tier(scene: Scene) -> None:
    """By our own clock, from when the record was first met."""
    partition = Partition("jobs-retry", 0)
    record = scene.accept(JOB, ((header.GROUP, b"group"),), partition, NOW + 3600)
    assert scene.partitions.delayed.pop(partition) == (record.offset, NOW + TIERS[0])
    scene.clock.pass_(TIERS[0] - 1)
    scene.admission.accept(record)
    assert scene.partitions.delayed.pop(partition) == (record.offset, NOW + TIERS[0])
    scene.clock.pass_(1)
    scene.admission.accept(record)
    assert partition not in scene.partitions.delayed
    assert scene.run(succeed).job.job_id == "j1"


def test_results_tell_nobody_whether_a_guess_was_a_password(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in a job's own path is shown as it was sent, in the result, the dead letter and the attempts."""
    redactor = logs.Redactor(["hunter2"])
    monkeypatch.setattr(logs._current, "redactor", redactor)
    path = "/letmein1/qwerty12/hunter2/passw0rd"
    scene.accept({**JOB, "source": {"hostname": "A", "path": path}, "job_id": "is-hunter2"})
    error = errors.FileMissing(f"A:{path}: 550 hunter2/passw0rd: none; login u:hunter2 by is-hunter2")
    scene.run(fail_with(error))
    told = scene.messages()
    shown = f"A:{path}: 550 hunter2/passw0rd: none; login u:hunter2 by is-hunter2"
    letter = DLQMessage.from_json(told["jobs-dlq"].value)
    assert letter.error == result_in(told["jobs-results"]).error == shown
    assert letter.attempts[0].what.endswith(shown)
    scene.accept({**JOB, "hunter2": 1})
    told = scene.messages()
    assert DLQMessage.from_json(told["jobs-dlq"].value).error == "hunter2: is unknown"
    assert result_in(told["jobs-results"]).error == "hunter2: is unknown"
    scene.accept({**JOB, "source": {"hostname": "A", "path": "/nt/e"}})
    scene.run(fail_with(errors.FileMissing("550 login u:hunter2")))
    assert result_in(scene.messages()["jobs-results"]).error == "550 login u:***"


def test_a_job_may_ask_for_a_time_within_a_year(scene: Scene) -> None:
    """Further ahead it would be written to T-retry each hour for ever."""
    for days, topic in ((365, "jobs-retry"), (367, "jobs-dlq")):
        asked = datetime.fromtimestamp(NOW + days * 86400, UTC).isoformat()
        scene.accept({**JOB, "job_id": f"in {days}", "options": {"not_before": asked}})
        assert topic in (told := scene.messages())
    assert DLQMessage.from_json(told["jobs-dlq"].value).error == "options.not_before: is more than 366 days away"
    assert result_in(told["jobs-results"]).job_id == "in 367"


def test_what_an_earlier_version_deferred_is_read(scene: Scene) -> None:
    """It named the servers in a header, and had jobs that must wait in each block of the lower half."""
    ours = {"group": "group", "origin": "jobs-0-5", "not_before": utc(NOW + 50)}
    named = (("etl-servers", b"A B"),)
    block_1 = Partition("jobs-retry", 6)
    scene.partitions.held[block_1] = scene.ledger.assign(block_1, 0)
    scene.accept(JOB, headers(**ours) + named, block_1)
    assert scene.partitions.delayed.pop(block_1) == (0, NOW + 50)
    scene.accept({**JOB, "job_id": "j2"}, headers(**ours, recallable="1") + named, retry(3))
    assert scene.run(succeed).job.job_id == "j2"
    scene.clock.pass_(50)
    scene.accept(JOB, headers(**ours) + named, block_1)
    assert scene.run(succeed).job.job_id == "j1"


def bundle_of(*names: str, **more: object) -> dict[str, object]:
    files = [
        {"source": {"hostname": "A", "path": f"/in/{name}"}, "destination": {"hostname": "B", "path": f"/out/{name}"}}
        for name in names
    ]
    return {"message_version": "2.0", "job_id": "scan", "files": files, **more}


def test_a_message_of_several_jobs_becomes_a_record_for_each_in_one_transaction(scene: Scene) -> None:
    """In T-retry, for this group alone, with the producer's headers; each then runs as a job of its own."""
    record = scene.accept(bundle_of("a", "b", metadata={"n": 1}), headers=(("trace", b"7"),))
    batch = scene.commit()
    assert batch is not None
    assert batch.offsets[P0].offset == record.offset + 1
    assert [message.topic for message in batch.messages] == ["jobs-retry"] * 2
    assert scene.dispatcher.take(0) is None, "the message itself is no job"
    names = set()
    for number, message in enumerate(batch.messages, 1):
        told = dict(message.headers)
        assert told["trace"] == b"7"
        assert told[header.GROUP] == b"group"
        assert told[header.BUNDLE] == b"jobs-0-0"
        assert header.ORIGIN not in told
        assert message.partition is not None
        scene.accept(message.value, message.headers, Partition("jobs-retry", message.partition), timestamp=NOW)
        (task,) = scene.dispatcher.drop(lambda _task: True)
        names.add(str(task.origin))
        assert (task.job.job_id, task.job.metadata) == (f"scan.{number}", {"n": 1})
        assert str(task.bundle) == "jobs-0-0"
    assert len(names) == 2, "two jobs of one message never take each other's partial files for their own"


def test_the_outcome_of_such_a_job_names_the_message_it_was_in(scene: Scene) -> None:
    """Where offsets are lost, that shows that the message was split."""
    scene.accept(bundle_of("a"))
    (message,) = scene.commit().messages  # type: ignore[union-attr]
    assert message.partition is not None
    scene.accept(message.value, message.headers, Partition("jobs-retry", message.partition), timestamp=NOW)
    scene.run(succeed)
    (result,) = scene.commit().messages  # type: ignore[union-attr]
    assert dict(result.headers)[header.BUNDLE] == b"jobs-0-0"
    assert result_in(result).job_id == "scan.1"


def test_no_more_messages_are_split_than_can_wait_for_their_commit(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packed one of a few kilobytes becomes megabytes of records: their partitions wait, until some are in."""
    monkeypatch.setattr(partitions, "WAITING_LIMIT_BYTES", 1)
    scene.accept(bundle_of("a"))
    second = scene.accept(bundle_of("b"))
    assert scene.partitions.delayed == {P0: (second.offset, math.inf)}
    assert scene.partitions.may_go is not None
    assert not scene.partitions.may_go()
    assert len(scene.commit().messages) == 1  # type: ignore[union-attr]
    assert scene.partitions.may_go()


def test_a_message_of_several_jobs_with_one_that_is_wrong_is_one_dead_letter(scene: Scene) -> None:
    message = bundle_of("a", "b")
    message["files"][1]["destination"]["path"] = "/out/../.."  # type: ignore[index]
    scene.accept(message)
    messages = scene.messages()
    assert set(messages) == {"jobs-dlq", "jobs-results"}
    assert "files[2]: destination.path" in DLQMessage.from_json(messages["jobs-dlq"].value).error


def test_a_packed_message_weighs_what_is_in_it(scene: Scene) -> None:
    """Its dead letter shows the job, its deferral carries it unpacked."""
    plain = json.dumps({**JOB, "metadata": {"x": ["y"] * 1000}}).encode()
    scene.accept(gzip.compress(plain))
    (task,) = scene.dispatcher.drop(lambda _task: True)
    assert task.record.value == plain
    assert task.size_bytes > len(plain)
    scene.accept(gzip.compress(b'{"typo": 1}'))
    assert DLQMessage.from_json(scene.messages()["jobs-dlq"].value).original_message == {"typo": 1}


def test_a_message_packed_twice_keeps_its_exact_bytes(scene: Scene) -> None:
    """Kept unpacked once, a replay of it would be a job, although the message is none."""
    twice = gzip.compress(gzip.compress(json.dumps(JOB).encode()))
    scene.accept(twice)
    letter = DLQMessage.from_json(scene.messages()["jobs-dlq"].value)
    assert "packed with gzip twice" in letter.error
    assert letter.original_bytes() == twice


def test_headers_that_each_job_would_carry_are_bounded_together(scene: Scene) -> None:
    """A thousand jobs with a copy of 64 KB each would be 64 MB of one message."""
    headers = (("trace", b"7" * 60_000),)
    scene.accept(bundle_of(*map(str, range(70))), headers=headers)
    messages = scene.messages()
    assert set(messages) == {"jobs-dlq", "jobs-results"}
    assert "its headers, with each of its 70 jobs, make 4200350 bytes" in str(messages["jobs-dlq"].value)
    scene.accept(bundle_of(*map(str, range(69))), headers=headers)
    assert len(scene.commit().messages) == 69  # type: ignore[union-attr]
