"""Messages of several jobs, and packed ones, with a real broker: each file has one outcome, whoever dies meanwhile."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from integration.test_operators import Shell
from workbench import Command, Desk, job

pytestmark = pytest.mark.integration

MESSAGES, FILES = 12, 25


def bundle(number: int) -> dict[str, Any]:
    """Return a message of FILES jobs; the last one has no source."""
    paths = [f"{number}/{index}" for index in range(FILES - 1)] + ["missing"]
    files = [
        {
            "source": {"hostname": "SRC", "path": f"/in/{path}"},
            "destination": {"hostname": "DST", "path": f"/out/{number}-{index}"},
        }
        for index, path in enumerate(paths)
    ]
    return {"message_version": "2.0", "job_id": f"m{number}", "files": files, "options": {"overwrite": "fail"}}


def test_each_file_of_a_message_has_one_outcome_although_consumers_are_killed(
    desk: Desk, places: Any, tmp_path: Path
) -> None:
    """Killed as soon as the first message was split, which may be before its commit, and again while files move.

    `overwrite: fail` would turn a second run of a job into a failure, and each job has exactly one result.
    """
    for number in range(MESSAGES):
        for index in range(FILES - 1):
            places.put(f"SRC:/in/{number}/{index}", f"{number}-{index}".encode() * 5000)
    # By its name each is a member again at once; else the session of the one before would have to end.
    environment = desk.settings(places.settings, {"ETL_WORKERS": "2", "ETL_INSTANCE_ID": desk.topic})
    for number in range(MESSAGES):
        desk.send(bundle(number), partition=number % 2)
    wanted = {f"m{number}.{index}" for number in range(MESSAGES) for index in range(1, FILES + 1)}
    with Command(tmp_path, environment=environment) as consumer:
        desk.wait(lambda: "message split" in consumer.output, 60, "split")
        consumer.kill()
    for count in (40, 80):
        with Command(tmp_path, environment=environment) as consumer:
            desk.wait(lambda count=count: len(desk.results()) > count, 90, "work")  # type: ignore[misc]
            consumer.kill()
    with desk.consuming(environment):
        desk.wait(lambda: {result["job_id"] for result in desk.results()} >= wanted, 120, "all")
        desk.wait(lambda: desk.lag() == 0, 30, "lag 0")
    results = Counter((result["job_id"], result["status"]) for result in desk.results())
    missing = {f"m{number}.{FILES}" for number in range(MESSAGES)}
    assert results == Counter([(name, "FAILED" if name in missing else "SUCCESS") for name in wanted])
    assert {letter.job_id for letter in desk.letters()} == missing
    for number in range(MESSAGES):
        for index in range(FILES - 1):
            assert places.get(f"DST:/out/{number}-{index}") == f"{number}-{index}".encode() * 5000
    assert not any("etl" in path for path in places.files("DST"))


def test_an_unknown_version_is_a_dead_letter_that_names_it_and_packed_messages_are_jobs(
    desk: Desk, places: Any
) -> None:
    """A bomb costs one dead letter."""
    places.put("SRC:/in/a")
    packed = gzip.compress(json.dumps(job("SRC:/in/a", "DST:/out/packed", "packed")).encode())
    several = gzip.compress(json.dumps({**bundle(0), "files": [{**job("SRC:/in/a", "DST:/out/b", "b")}]}).encode())
    with desk.consuming(places.settings):
        desk.send({**job("SRC:/in/a", "DST:/out/x", "odd"), "message_version": "3.0"}, packed, several)
        desk.send(gzip.compress(b" " * (100 << 20)))
        assert desk.outcome("packed")["status"] == desk.outcome("b")["status"] == "SUCCESS"
        desk.wait(lambda: len(desk.letters()) == 2, 20, "both letters")
        desk.wait(lambda: desk.lag() == 0, 10, "lag 0")
    assert "message_version: '3.0' is not supported" in desk.letter("odd").error
    assert any("unpacks to more than" in letter.error for letter in desk.letters())
    assert places.files("DST") == {"/out/packed", "/out/b"}


def test_the_command_lists_the_jobs_of_a_message(
    desk: Desk, places: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By id and place of the message all of them, each by its own id and place with its story, before and after."""
    etl = Shell(desk, monkeypatch, tmp_path)
    places.put("SRC:/in/0/0")
    ((partition, offset),) = desk.send(bundle(0) | {"files": bundle(0)["files"][-2:]})
    message = f"{desk.topic}-{partition}-{offset}"

    def jobs(*names: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in etl("jobs", *names, "--json").stdout.splitlines()]

    assert [(one["job_id"], one["state"]) for one in jobs("show", "m0")] == [
        ("m0.1", "unfinished"),
        ("m0.2", "unfinished"),
    ]
    places.put(f"SRC:/in/0/{FILES - 2}")
    with desk.consuming(places.settings):
        desk.wait(lambda: len(desk.results()) == 2, 30, "both results")
    for names in (("find",), ("find", "m0"), ("find", "--server", "DST"), ("show", message), ("show", "m0")):
        found = {one["job_id"]: one for one in jobs(*names)}
        assert {name: one["state"] for name, one in found.items()} == {"m0.1": "done", "m0.2": "failed"}, names
        assert all(
            one["place"].startswith(f"{desk.topic}-retry-") and one["message_id"] == "m0" for one in found.values()
        )
    (one,) = jobs("show", "m0.2")
    assert one["events"][0]["what"] == "submitted"
    assert one["dead_letter"]
    assert jobs("show", one["place"])[0]["job_id"] == "m0.2", "by the place that it has since it was split off"
    assert "message m0 of 2 jobs: 1 done, 1 failed" in etl("jobs", "show", message).stdout
    assert etl("jobs", "show", "m0.3").exit_code == 1
    (split,) = [event for event in jobs("show", "m0.1")[0]["events"] if event["what"] == "split off"]
    assert split["text"] == jobs("show", "m0.1")[0]["place"]
    for name, number in (("a", 1), ("b", 0), ("c", 1)):
        desk.send(job("SRC:/none", "DST:/none", name), partition=number)
        (newest,) = jobs("find", "--limit", "1")
        assert newest["job_id"] == name, "the newest of all partitions"
