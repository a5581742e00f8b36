"""Messages of several jobs: their jobs are found from the first word on, and counted; the API takes such messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apiwork import JOB, V1
from apiworld import NOW, World
from etl.api.acts import submitting
from etl.api.problems import Problem
from etl.models import DLQMessage, TransferResult, header
from etl.models.task import Record

pytestmark = pytest.mark.unit

FILES = 4


def message(**more: Any) -> dict[str, Any]:
    files = [{**JOB, "destination": {"hostname": "DST", "path": f"/out/{number}"}} for number in range(FILES)]
    return {"message_version": "2.0", "job_id": "scan", "files": files, **more}


def headers(number: int, **more: str) -> tuple[tuple[str, bytes], ...]:
    given = {header.JOB_ID: f"scan.{number}", header.GROUP: "g", header.BUNDLE: "jobs-0-7", **more}
    return tuple((name, value.encode()) for name, value in given.items())


def part(number: int) -> Record:
    """Return the record of T-retry that a consumer makes of one file."""
    value = json.dumps({**JOB, "job_id": f"scan.{number}"}).encode()
    return Record("jobs-retry", 1, 100 + number, b"k", value, headers(number), NOW + 1)


@pytest.fixture
def bundled(tmp_path: Any) -> Any:
    made = World(tmp_path, ETL_TOPIC="jobs")
    yield made
    made.close()


def ask(world: World, path: str) -> Any:
    with world.client("viewer") as client:
        return client.get(V1 + path).json()


def test_the_jobs_of_a_message_are_told_from_its_submission_to_its_end(bundled: World) -> None:
    """Claim: not begun, waiting, done, failed; each with its servers and the place of its message."""
    bundled.take(Record("jobs", 0, 7, b"k", json.dumps(message()).encode(), (), NOW))
    told = ask(bundled, "/groups/jobs/0/7")
    assert (told["job_id"], told["files"], told["unknown"], told["states"]) == ("scan", 4, 4, {})
    bundled.take(part(1), part(2), part(3))
    told = ask(bundled, "/groups/jobs/0/7")
    assert (told["unknown"], told["states"], told["finished_at"]) == (1, {"waiting": 3}, None)
    found = ask(bundled, "/jobs?group_id=jobs/0/7")["items"]
    assert {(one["place"], one["job_id"], one["group"]) for one in found} == {
        (f"jobs-retry/1/{100 + number}", f"scan.{number}", "jobs/0/7") for number in (1, 2, 3)
    }
    assert {(one["source"]["server"], one["source"]["path"]) for one in found} == {("SRC", "/in/a.tif")}
    results = [
        Record(
            "jobs-results",
            0,
            number,
            b"k",
            TransferResult(job_id=f"scan.{number}", status="SUCCESS", bytes=10).to_json().encode(),
            headers(number, **{header.ORIGIN: f"jobs-retry-1-{100 + number}"}),
            NOW + 2,
        )
        for number in (1, 2, 3)
    ]
    failed = part(4)
    letter = DLQMessage.from_record(failed, FileNotFoundError("no such file"), "scan.4").to_json().encode()
    bundled.take(*results, failed, Record("jobs-dlq", 0, 0, b"k", letter, headers(4), NOW + 3))
    told = ask(bundled, "/groups/jobs/0/7")
    assert (told["unknown"], told["states"], told["bytes"]) == (0, {"done": 3, "failed": 1}, 30)
    assert told["finished_at"] is not None
    assert ask(bundled, "/jobs?group_id=jobs/0/7&state=failed")["items"][0]["job_id"] == "scan.4"
    events = [event["what"] for event in ask(bundled, "/jobs/jobs-retry/1/104/events")]
    assert events[0] == "submitted"
    assert set(events) == {"submitted", "failed", "dead-letter"}


def test_a_job_of_a_message_that_runs_is_told_as_running(bundled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: by the word of its process, as with any other job."""
    bundled.take(Record("jobs", 0, 7, b"k", json.dumps(message()).encode(), (), NOW), part(1), part(2))
    monkeypatch.setattr(bundled.services.live, "running", lambda: {"jobs-retry-1-101": {}, "jobs-0-1": {}})
    assert ask(bundled, "/groups/jobs/0/7")["states"] == {"running": 1, "waiting": 1}


def test_a_message_that_is_not_valid_is_one_job_that_failed(bundled: World) -> None:
    """Claim: it has no group, and its dead letter is found."""
    bundled.take(Record("jobs", 0, 7, b"k", json.dumps(message(files=[5])).encode(), (), NOW))
    assert ask(bundled, "/groups/jobs/0/7")["code"] == "not-found"
    assert ask(bundled, "/jobs/jobs/0/7")["job"]["job_id"] == "scan"


@pytest.mark.parametrize("as_text", [True, False])
def test_a_message_of_several_files_is_sent_as_its_jobs(as_text: bool) -> None:
    """Claim: as `etl submit` does; each has a place of its own, and what is wrong with any of them is told."""
    line: Any = message(priority="high")
    drafts = submitting.check([("", json.dumps(line).encode() if as_text else line), ("/1", {**JOB, "job_id": "one"})])
    assert [draft.job_id for draft in drafts] == ["scan.1", "scan.2", "scan.3", "scan.4", "one"]
    assert json.loads(drafts[1].value)["priority"] == "high"
    assert json.loads(drafts[3].value)["destination"] == {"hostname": "DST", "path": "/out/3"}
    line["files"][1]["source"] = {"hostname": "SRC"}
    with pytest.raises(Problem) as caught:
        submitting.check([("/0", json.dumps(line).encode() if as_text else line)])
    assert [(pointer, "files[2]" in text) for pointer, text in caught.value.errors] == [("/0", True)]


def test_a_request_of_too_many_jobs_is_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of a few lines may hold a thousand jobs; what comes behind the last one that fits is not looked at."""
    monkeypatch.setattr(submitting, "MOST_JOBS", 2 * FILES)
    assert len(submitting.check([("/0", message()), ("/1", message())])) == 2 * FILES
    monkeypatch.setattr(submitting, "MOST_JOBS", 2 * FILES - 1)
    with pytest.raises(Problem) as caught:
        submitting.check([("/0", message()), ("/1", message()), ("/2", {"wrong": True})])
    assert caught.value.code == "too-large"
