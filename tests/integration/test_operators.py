"""What operators see and do with the commands alone: status, jobs, hold, release, cancel, drain, try now."""

from __future__ import annotations

import gc
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import stack
from etl.broker import Reader
from etl.cli import main
from etl.models.control import AuditRecord
from servers.fake import FakeFTP
from workbench import Command, Desk, folder, job, login

pytestmark = pytest.mark.integration


class Shell:
    """The command, with the settings of a desk."""

    def __init__(self, desk: Desk, monkeypatch: pytest.MonkeyPatch, cwd: Path) -> None:
        monkeypatch.chdir(cwd)
        desk.keep_apart()
        self.desk, self.monkeypatch = desk, monkeypatch

    def __call__(self, *arguments: str) -> Result:
        try:
            return CliRunner().invoke(main, arguments, env=self.desk.settings(), catch_exceptions=False)
        finally:
            with (
                warnings.catch_warnings()
            ):  # a connect under way while it closes is left to the collector by the client
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()

    def status(self) -> dict[str, Any]:
        """Return what `etl status --json` says."""
        return last_line(self("status", "--json"))

    def wait(self, happened: Callable[[dict[str, Any]], Any], what: str, limit: float = 40.0) -> Any:
        """Ask for the status until something is so; return what `happened` returned."""
        end = time.monotonic() + limit
        while True:
            asked = self("status", "--json")  # 3: a topic is just being created
            found = happened(last_line(asked)) if asked.exit_code != 3 else None
            if found:
                return found
            assert time.monotonic() < end, f"{what}: not within {limit:g} s; {asked.output}"

    def story(self, name: str) -> dict[str, Any]:
        """Return the one job of a name, as `etl jobs show --json` tells it."""
        return last_line(self("jobs", "show", name, "--json"))


def last_line(asked: Result) -> dict[str, Any]:
    """Return what a command printed; a consumer in the same process may have logged before."""
    told: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return told


@pytest.fixture
def etl(desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    return Shell(desk, monkeypatch, tmp_path)


def audit(desk: Desk, target: str) -> list[AuditRecord]:
    with Reader(desk.bootstrap_servers, f"{desk.system_prefix}audit") as reader:
        records = [AuditRecord.from_json(record.value) for record in reader.scan()]
    return [record for record in records if target in (record.target or "")]


def running(told: dict[str, Any]) -> Any:
    """Return the running transfer of this test once its rest is told: it is two seconds old then."""
    transfers = [one for process in told["processes"] for one in process["transfers"]]
    return next((one for one in transfers if one.get("eta_seconds")), None)


def test_a_running_transfer_is_seen_and_cancelled(
    desk: Desk, etl: Shell, make_vsftpd: Callable[..., stack.Vsftpd], tmp_path: Path
) -> None:
    """Its bytes, rate and rest are told; cancelled it is a dead letter, and leaves nothing at its destination."""
    slow = make_vsftpd(local_max_rate="200000", anon_max_rate="200000")
    (slow.root / "large").write_bytes(b"x" * 20_000_000)
    (slow.root / "small").write_bytes(b"y")
    here = tmp_path / "here"
    ((partition, offset),) = desk.send(job("SLOW:/large", "HERE:/large", "j-large"))
    place = f"{desk.topic}-{partition}-{offset}"
    with desk.consuming(login("SLOW", slow), folder("HERE", here)):
        seen = etl.wait(running, "a running transfer")
        assert (seen["source"], seen["destination"], seen["place"]) == ("SLOW:/large", "HERE:/large", place)
        assert (seen["size"], seen["phase"], seen["attempt"]) == (20_000_000, "streaming", 1)
        assert 50_000 < seen["rate"] < 2_000_000
        assert 0 < seen["eta_seconds"] < 400
        story = etl.story(place)
        assert (story["state"], [event["what"] for event in story["events"]]) == ("running", ["submitted", "running"])
        assert etl("jobs", "find", "/lar*", "--server", "slow").exit_code == 0
        assert etl("cancel", place, "--reason", "by mistake").exit_code == 0
        result = desk.outcome("j-large")
        assert (result["status"], result["error_code"]) == ("FAILED", "CANCELLED")
        assert "by mistake" in result["error"]
        desk.do(job("SLOW:/small", "HERE:/small", "j-small"))
        assert [path.name for path in here.iterdir()] == ["small"]
        story = etl.story("j-large")
        assert story["state"] == "failed"
        assert [event["what"] for event in story["events"]][-2:] == ["failed", "dead letter"]
        assert etl.story("j-small")["state"] == "done"
    (record,) = audit(desk, place)
    assert (record.action, record.reason, record.via) == ("cancel", "by mistake", "cli")


@pytest.mark.usefixtures("short_tiers")
def test_jobs_of_a_server_on_hold_wait_and_spend_nothing(desk: Desk, etl: Shell, places: Any) -> None:
    """Others go on; one that waits in T-retry can be cancelled; released, the rest are done at their first attempt."""
    places.put("SRC:/a", b"content")
    with desk.consuming(places.settings, {"ETL_WINDOW_RECORDS": "20"}):
        desk.do(job("SRC:/a", "DST:/first"), job("SRC:/a", "HERE:/first"))
        etl.wait(lambda told: any(one["name"] == "DST" for one in told["servers"]), "the server")
        assert etl("hold", "server", "nobody").exit_code == 2
        assert etl("hold", "server", "dst", "--reason", "repair", "--for", "1h").exit_code == 0
        held = etl.wait(
            lambda told: [one for one in told["servers"] if one["name"] == "DST" and one.get("held_by")], "the hold"
        )
        assert "repair" in held[0]["held_by"]
        jobs = [job("SRC:/a", f"DST:/{number}", f"h{number}") for number in range(40)]
        sent = desk.send(*jobs)
        desk.do(*(job("SRC:/a", f"HERE:/{number}") for number in range(10)))
        told = etl.status()
        assert [need["kind"] for need in told["needs"] if need["subject"] == "server DST"] == ["on-hold"]
        desk.wait(lambda: len(desk.deferred()) >= 20, 20, "deferrals")
        last = f"{desk.topic}-{sent[-1][0]}-{sent[-1][1]}"
        assert etl.story(last)["state"] == "deferred"
        assert etl("cancel", last).exit_code == 0
        assert places.files("DST") == {"/first"}
        assert etl("release", "server", "DST").exit_code == 0
        assert etl("release", "server", "DST").exit_code == 1
        assert desk.outcome("h39", 60)["error_code"] == "CANCELLED"
        results = [desk.outcome(f"h{number}", 60) for number in range(39)]
    assert {(result["status"], result["attempts"]) for result in results} == {("SUCCESS", 1)}
    assert [(one.action, one.result) for one in audit(desk, "server/DST")][-3:] == [
        ("hold", "done"),
        ("release", "done"),
        ("release", "not found"),
    ]


def test_a_job_that_waits_in_memory_is_cancelled_at_once(
    desk: Desk, etl: Shell, places: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server stays on hold."""
    monkeypatch.setattr("etl.retry.tiers.TIERS", (600.0, 1200.0, 2400.0, 3600.0))  # none leaves the memory
    places.put("SRC:/a", b"content")
    with desk.consuming(places.settings):
        desk.do(job("SRC:/a", "DST:/0"))
        etl.wait(lambda told: any(one["name"] == "DST" for one in told["servers"]), "the server")
        assert etl("hold", "server", "DST", "--for", "1h").exit_code == 0
        ((partition, offset), _) = desk.send(job("SRC:/a", "DST:/1", "j1"), job("SRC:/a", "DST:/2", "j2"))
        etl.wait(lambda told: any(one["name"] == "DST" and one["waiting"] == 2 for one in told["servers"]), "two jobs")
        assert etl("cancel", f"{desk.topic}-{partition}-{offset}").exit_code == 0
        assert desk.outcome("j1")["error_code"] == "CANCELLED"
        assert etl("release", "server", "DST").exit_code == 0
        assert desk.outcome("j2")["status"] == "SUCCESS"


def test_a_group_on_hold_reads_nothing_and_a_drained_process_leaves(
    desk: Desk, etl: Shell, places: Any, tmp_path: Path
) -> None:
    """Released, it works; drained it ends in order, and says so. Its next life is not drained."""
    places.put("SRC:/a", b"content")
    settings = desk.settings(places.settings, {"ETL_LOG_FORMAT": "json"})
    with Command(tmp_path, environment=settings) as consumer:
        etl.wait(lambda told: any(one["state"] == "running" for one in told["processes"]), "the consumer")
        assert etl("hold", "group", desk.group, "--reason", "night").exit_code == 0
        etl.wait(lambda told: any("held_by" in one for one in told["processes"]), "the hold")
        desk.send(job("SRC:/a", "DST:/a", "j1"))
        (process,) = etl.status()["processes"]
        assert not places.files("DST")
        assert etl("release", "group", desk.group).exit_code == 0
        desk.outcome("j1")
        assert etl("drain", "x/9").exit_code == 1
        assert etl("drain", f"consumer/{desk.group}/{desk.topic}/{process['id']}").exit_code == 0
        assert consumer.wait(30) == 0
        assert "drained by" in consumer.events("stopping")[0]["reason"]
    (process,) = etl.status()["processes"]
    assert (process["state"], "drained by" in process["reason"]) == ("stopped", True)
    with Command(tmp_path, environment=settings) as consumer:
        desk.do(job("SRC:/a", "DST:/b", "j2"))
        assert not consumer.events("stopping")


def test_a_server_is_tried_at_once_when_asked(desk: Desk, etl: Shell, tmp_path: Path) -> None:
    """Also one that refused the login, which would not be tried for an hour."""
    refuses = [True]
    answers = {"PASS": lambda _session, _argument: "530 no" if refuses[0] else "230 ok"}
    with FakeFTP({"/a": b"x"}, answers) as locked:
        settings = login("LOCKED", locked), folder("HERE", tmp_path / "here"), {"ETL_LOGIN_BACKOFF_SECONDS": "3600"}
        with desk.consuming(*settings):
            desk.send(job("LOCKED:/a", "HERE:/a", "j1"))
            need = etl.wait(
                lambda told: next((one for one in told["needs"] if one["kind"] == "login-refused"), None), "the refusal"
            )
            assert need["subject"] == "LOCKED"
            assert etl("status").exit_code == 1
            refuses[0] = False
            assert etl("try-now", "locked").exit_code == 0
            desk.outcome("j1")


def test_status_tells_that_no_consumer_runs_and_that_no_broker_answers(desk: Desk, etl: Shell) -> None:
    """Exit codes 1 and 3, for cron."""
    assert etl("status", "--bootstrap-servers", "127.0.0.1:1").exit_code == 3
    desk.send(job("SRC:/a", "DST:/a"), job("SRC:/a", "DST:/b"))
    told = etl.status()
    ((unfinished, processes),) = [(one["unfinished"], one["processes"]) for one in told["topics"]]
    assert (unfinished, processes) == (2, 0)
    assert etl("status").exit_code == 1
    assert etl("status", "--nonsense").exit_code == 2
