"""Whole jobs on servers that nobody here wrote."""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import structlog
from zoo_jobs import FILES, SERVER, Plan, give, put
from zoo_table import Finding

import stack
from servers.zoo import KINDS, Kind, Server, reason
from workbench import Command, Desk, folder, job, login

pytestmark = pytest.mark.zoo

RUN_SECONDS = 60.0  # for 169 jobs; the slowest server takes a third of that
SETTINGS = {"ETL_REPLY_TIMEOUT_SECONDS": "10", "ETL_STALL_TIMEOUT_SECONDS": "10"}
# The letter whose byte in Latin-1 is 0xFF, by which Telnet begins its commands; doubled it means the byte itself.
BYTE_255 = ["ÿ", "ÿÿ", "ÿÿÿÿ", "aÿb", "aÿÿb", "ÿû", "endÿ"]
CHECK_SECONDS = 20.0  # twice what a quick server takes on a busy machine
RESTARTED = 40  # files each way, when the server dies
ROUNDS, FILES_A_ROUND = 3, 60  # of the comparison of speeds


@pytest.fixture
def desk(broker: stack.Broker, topic: str) -> Iterator[Desk]:
    """The topics of a test."""
    made = Desk(broker.bootstrap_servers, topic)
    yield made
    made.close()


def settings_of(kind: Kind, server: Server, name: str = SERVER, **more: str) -> dict[str, str]:
    """Return the product's settings for one server of the zoo."""
    return SETTINGS | login(name, server, BASE_PATH=server.base_path, **{**server.ours, **kind.settings, **more})


def run(desk: Desk, messages: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Have jobs done by a consumer that runs; return their results by id, as far as they come in time."""
    sent = {message["job_id"] for message in messages}
    desk.send(*messages)
    with contextlib.suppress(TimeoutError):  # those that have none are told
        desk.wait(lambda: sent <= {result["job_id"] for result in desk.results()}, RUN_SECONDS)
    return {result["job_id"]: result for result in desk.results() if result["job_id"] in sent}


def test_each_file_is_right_or_its_job_one_dead_letter(
    kind: Kind, resident: Server, desk: Desk, tmp_path: Path, finding: Finding
) -> None:
    """169 jobs of every kind to a server, from it, and within it."""
    plan = Plan(resident.root, tmp_path / "files")
    give(resident.root, resident.owner)
    own = {each.key: reason(kind.name, each.key) for each in plan.jobs}
    for each in plan.jobs:
        if (known := own[each.key]) is not None:
            each.expected = known.codes
    settings = settings_of(kind, resident) | folder(FILES, tmp_path / "files")
    with structlog.testing.capture_logs() as lines, desk.consuming(settings):
        results = run(desk, [each.message for each in plan.jobs])
    desk.pump()
    letters = defaultdict(list)
    for letter in desk.letters():
        letters[letter.job_id].append(letter)
    faults = defaultdict(list)
    for each in plan.jobs:
        for fault in each.wrong(results.get(each.key), letters[each.key]):
            faults[_alike(fault)].append(each.key)
    tried_again = {line["job_id"]: line["error"] for line in lines if line["event"] == "job waits"}
    for path in plan.harmed():
        faults["NOBODY'S FILE IS GONE OR CHANGED"].append(str(path))
    said = " ".join(str(line) for line in lines)
    for path in plan.left_over():
        if not (kind.keeps_files and path.name in said):
            faults["left behind"].append(str(path))
    wrong = own.keys() & {key for keys in faults.values() for key in keys}
    for key, known in own.items():
        if key in wrong:
            finding.told["not yet right"] += 1
        elif known is not None:
            finding.told[known.reason] += 1
        else:
            finding.right += 1
    finding.keeps_times = results.get("up-time-2001", {}).get("mtime_kept") is not False
    assert not faults, "\n".join(
        f"[{len(keys)}] {fault}  <- {', '.join(keys[:8])} {tried_again.get(keys[0], '')}"
        for fault, keys in faults.items()
    )


def _alike(fault: str) -> str:
    """Return a fault without what differs from one job to the next."""
    fault = re.sub(r"\.?etl-[0-9a-f]+-[0-9a-f]+\.part", "PARTIAL", fault)
    return re.sub(r"/(up|down|within)-(from|to|done)/[^:'\"()]*", "PATH", fault)[:300]


def test_a_name_with_the_byte_255_is_right_or_refused(kind: Kind, resident: Server, desk: Desk, tmp_path: Path) -> None:
    """No such name becomes another one: not of a file that is written, and not of one that is read and deleted.

    A server that holds names as text, not as bytes, may keep the letter in another encoding.
    """
    files = tmp_path / "files"
    contents = {letters: os.urandom(100 + number) for number, letters in enumerate(BYTE_255)}
    for number, content in enumerate(contents.values()):
        put(files / f"in/{number}", content)
    settings = settings_of(kind, resident, ENCODING="latin-1") | folder(FILES, files)
    ups = [job(f"{FILES}:/in/{n}", f"{SERVER}:/bytes/{x}.bin", f"up-{n}") for n, x in enumerate(BYTE_255)]
    downs = [
        job(f"{SERVER}:/bytes/{x}.bin", f"{FILES}:/out/{n}", f"down-{n}", source_action="delete")
        for n, x in enumerate(BYTE_255)
    ]
    with desk.consuming(settings):
        told = run(desk, ups)
        stored = _contents(resident.root / "bytes")
        wanted = {}
        for number, (letters, content) in enumerate(contents.items()):
            if _is_done(told, f"up-{number}"):
                wanted[f"{letters}.bin"] = content
        assert _unlike(stored, wanted) == []
        told = run(desk, downs)
    for number, (letters, content) in enumerate(contents.items()):
        out = files / f"out/{number}"
        is_done = _is_done(told, f"down-{number}")
        assert not is_done or out.exists()
        assert not out.exists() or out.read_bytes() == content  # it arrived, but cannot be deleted
        if is_done:
            del wanted[f"{letters}.bin"]
    assert _unlike(_contents(resident.root / "bytes"), wanted) == []


def _is_done(told: Mapping[str, Mapping[str, Any]], job_id: str) -> bool:
    """Did a job succeed? It has a result."""
    assert job_id in told, f"no result of {job_id}"
    return bool(told[job_id]["status"] == "SUCCESS")


def _unlike(found: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> list[str]:
    """Return the names of files that are not there, should not be there, or are others."""
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


def _contents(place: Path) -> dict[str, bytes]:
    """Return the files of a folder by their names, whichever of the two encodings these are in."""
    found = {}
    for name in os.listdir(os.fsencode(place)) if place.is_dir() else ():  # noqa: PTH208 - bytes are wanted
        try:
            text = name.decode("utf-8")
        except UnicodeDecodeError:
            text = name.decode("latin-1")
        assert text not in found
        found[text] = (place / os.fsdecode(name)).read_bytes()
    return found


def test_a_restart_loses_nothing(kind: Kind, resident: Server, desk: Desk, tmp_path: Path) -> None:
    """A server that dies in the middle, and comes back: every file is whole, and nothing is left of those cut off."""
    files = tmp_path / "files"
    content = os.urandom(200_000)
    for number in range(RESTARTED):
        put(files / f"in/{number}", content)
        put(resident.root / f"from/{number}", content)
    (resident.root / "to").mkdir()
    give(resident.root, resident.owner)
    ups = [job(f"{FILES}:/in/{n}", f"{SERVER}:/to/{n}", f"up-{n}") for n in range(RESTARTED)]
    downs = [job(f"{SERVER}:/from/{n}", f"{FILES}:/out/{n}", f"down-{n}") for n in range(RESTARTED)]
    settings = settings_of(kind, resident) | folder(FILES, files)
    with structlog.testing.capture_logs() as lines, desk.consuming(settings):
        desk.send(*ups, *downs)
        desk.wait(lambda: len(desk.results()) >= RESTARTED // 2)
        resident.kill()
        time.sleep(0.5)
        resident.start()
        desk.wait(lambda: len(desk.results()) >= 2 * RESTARTED, RUN_SECONDS, "all results")
    assert [result["error"] for result in desk.results() if result["status"] != "SUCCESS"] == []
    for place in (resident.root / "to", files / "out"):
        found = {path.name: path.read_bytes() == content for path in place.iterdir()}
        left = {name for name in found if not name.isdigit() and not fnmatchcase(name, resident.leaves)}
        assert not left or (kind.keeps_files and all(name in str(lines) for name in left))
        assert [found.get(str(number)) for number in range(RESTARTED)] == [True] * RESTARTED


def test_a_check_beforehand_tells_the_settings_and_leaves_nothing(kind: Kind, resident: Server, tmp_path: Path) -> None:
    """`etl servers check --write` with nothing set: quick, and it finds what the jobs above need."""
    environment = login(SERVER, resident, BASE_PATH=resident.base_path, **resident.ours)
    started = time.monotonic()
    with Command(tmp_path, "servers", "check", "--write", "--json", environment=environment) as command:
        command.wait()
        seconds = time.monotonic() - started
        told = json.loads(command.output.splitlines()[0])
    assert seconds < CHECK_SECONDS
    assert {name: told["settings"].get(name) for name in kind.settings} == kind.settings
    left = {path.relative_to(resident.root).as_posix() for path in resident.root.rglob("*") if path.is_file()}
    assert left == (set(told["left"]) if kind.keeps_files else set())
    assert kind.keeps_files or os.listdir(resident.root) == []  # noqa: PTH208 - names are wanted


def test_speed_beside_vsftpd(
    kind: Kind, resident: Server, reference: Server, desk: Desk, tmp_path: Path, finding: Finding
) -> None:
    """Files of 20 KB, in turns with vsftpd, so that both have the same machine; reported, as it says nothing of us."""
    files = tmp_path / "files"
    sides = {SERVER: resident, "REFERENCE": reference}
    for number in range(FILES_A_ROUND):
        content = os.urandom(20_000)
        put(files / f"in/{number}", content)
        for server in sides.values():
            put(server.root / f"from/{number}", content)
    for server in sides.values():
        (server.root / "to").mkdir()
        give(server.root, server.owner)
    settings = settings_of(kind, resident) | folder(FILES, files)
    settings |= settings_of(KINDS["vsftpd"], reference, "REFERENCE")
    speeds: dict[tuple[str, str], list[float]] = defaultdict(list)
    with desk.consuming(settings):
        for turn in range(ROUNDS + 1):
            for name in sides:
                jobs = {
                    "up": [
                        job(f"{FILES}:/in/{n}", f"{name}:/to/{n}", f"{name}-up-{turn}-{n}")
                        for n in range(FILES_A_ROUND)
                    ],
                    "down": [
                        job(f"{name}:/from/{n}", f"{FILES}:/{name}/{n}", f"{name}-down-{turn}-{n}")
                        for n in range(FILES_A_ROUND)
                    ],
                }
                for way, messages in jobs.items():
                    results = run(desk, messages)
                    if turn and all(result["status"] == "SUCCESS" for result in results.values()):
                        speeds[name, way].append(FILES_A_ROUND / _span(results.values()))
    shares = {
        way: statistics.median(speeds[SERVER, way]) / statistics.median(speeds["REFERENCE", way])
        for way in ("up", "down")
        if speeds[SERVER, way]
    }
    finding.up, finding.down = shares.get("up"), shares.get("down")
    print({way: f"{share:.2f}" for way, share in shares.items()}, time.strftime("%X"))


def _span(results: Any) -> float:
    """Return the seconds from the start of the first job to the end of the last."""
    moments = [(datetime.fromisoformat(r["started_at"]), datetime.fromisoformat(r["finished_at"])) for r in results]
    return (max(end for _, end in moments) - min(start for start, _ in moments)).total_seconds()
