"""Whole jobs on servers that nobody here wrote."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from zoo_jobs import FILES, SERVER, Plan, give
from zoo_known import expected

import stack
from servers.zoo import Kind, Resident
from workbench import Desk, folder, login

pytestmark = pytest.mark.zoo

RUN_SECONDS = 60.0  # for 169 jobs; the slowest server takes a third of that
SETTINGS = {"ETL_REPLY_TIMEOUT_SECONDS": "10", "ETL_STALL_TIMEOUT_SECONDS": "10"}


@pytest.fixture
def desk(broker: stack.Broker, topic: str) -> Iterator[Desk]:
    """The topics of a test."""
    made = Desk(broker.bootstrap_servers, topic)
    yield made
    made.close()


def settings_of(kind: Kind, server: Resident, files: Path) -> dict[str, str]:
    """Return the product's settings for one server of the zoo and a local folder."""
    own = login(SERVER, server, BASE_PATH=server.base_path, **kind.settings)
    return SETTINGS | own | folder(FILES, files)


def test_each_file_is_right_or_its_job_one_dead_letter(
    kind: Kind, resident: Resident, desk: Desk, tmp_path: Path
) -> None:
    """169 jobs of every kind to a server, from it, and from it to itself."""
    plan = Plan(resident.root, tmp_path / "files")
    give(resident.root, resident.owner)
    for job in plan.jobs:
        job.expected = expected(kind.name, job.key) or job.expected
    with structlog.testing.capture_logs() as lines, desk.consuming(settings_of(kind, resident, tmp_path / "files")):
        desk.send(*(job.message for job in plan.jobs))
        desk.wait(lambda: len(desk.results()) >= len(plan.jobs), RUN_SECONDS)
    desk.pump()
    results = {result["job_id"]: result for result in desk.results()}
    letters = defaultdict(list)
    for letter in desk.letters():
        letters[letter.job_id].append(letter)
    faults = defaultdict(list)
    for job in plan.jobs:
        for fault in job.wrong(results.get(job.key), letters[job.key]):
            faults[_alike(fault)].append(job.key)
    for path in plan.harmed():
        faults["NOBODY'S FILE IS GONE OR CHANGED"].append(str(path))
    said = " ".join(str(line) for line in lines)
    for path in plan.left_over():
        if not (kind.keeps_files and path.name in said):
            faults["left behind"].append(str(path))
    assert not faults, "\n".join(f"[{len(jobs)}] {fault}  <- {', '.join(jobs[:8])}" for fault, jobs in faults.items())


def _alike(fault: str) -> str:
    """Return a fault without what differs from one job to the next."""
    fault = re.sub(r"\.?etl-[0-9a-f]+-[0-9a-f]+\.part", "PARTIAL", fault)
    return re.sub(r"/(up|down|within)-(from|to|done)/[^:'\"()]*", "PATH", fault)[:300]
