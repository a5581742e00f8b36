"""Memory for listings: one budget for all lanes, and a small part for each that nobody can take."""

from __future__ import annotations

import dataclasses
import threading
import tracemalloc

import pytest

import pretend
from etl.errors import IOFailure
from etl.models.message import FileTransferJob
from etl.models.task import Origin, Record, Task
from etl.transfer import budget, partials
from etl.transfer.budget import NAME_BYTES, Budget
from etl.transfer.ftp.listing import Listing

pytestmark = pytest.mark.unit


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Budget:
    """A budget of ten names, of which each run has two by itself."""
    monkeypatch.setattr(budget, "LIMIT_BYTES", 10 * NAME_BYTES)
    monkeypatch.setattr(budget, "OWN_BYTES", 2 * NAME_BYTES)
    return Budget()


def take(names: Budget, count: int) -> int:
    for done in range(count):
        try:
            names.take(0)
        except IOFailure:
            return done
    return count


def test_one_run_takes_no_more_than_the_budget_and_gives_it_back(small: Budget) -> None:
    """A second run of the same thread has as much."""
    for _ in range(3):
        with small.room():
            assert take(small, 100) == 12


def test_what_each_run_has_by_itself_nobody_can_take(small: Budget) -> None:
    """One hostile server fails only those that list large folders at the same time."""
    filled, checked, seen = threading.Event(), threading.Event(), []

    def hostile() -> None:
        with small.room():
            take(small, 100)
            filled.set()
            checked.wait(10)

    thread = threading.Thread(target=hostile)
    thread.start()
    assert filled.wait(10)
    with small.room():
        seen.append(take(small, 100))
    checked.set()
    thread.join()
    with small.room():
        seen.append(take(small, 100))
    assert seen == [2, 12]


def test_outside_of_a_run_nothing_is_counted(small: Budget) -> None:
    """A command lists what it is asked to."""
    assert take(small, 1000) == 1000


class Hostile:
    """A destination whose folder holds nothing but partial files, each of another job, or all of this one."""

    def __init__(self, hashes: list[str]) -> None:
        self.server = pretend.server("B")
        self._hashes = hashes

    def names(self, _folder: str, prefix: str) -> list[str]:
        listing = Listing(with_facts=False, prefix=prefix.encode())
        for number, job in enumerate(self._hashes):
            listing.feed(f".etl-{job}-{number:08x}.part\r\n".encode())
        return [name.decode() for name in listing.names]


@pytest.mark.parametrize("own", [True, False])
def test_a_folder_full_of_partial_files_takes_little_memory(own: bool) -> None:
    """Whichever jobs their names are of: of one job no more are removed than any job could leave."""
    ends = {"source": {"hostname": "A", "path": "/a"}, "destination": {"hostname": "B", "path": "/out/a"}}
    job = FileTransferJob.from_dict(ends)
    task = Task(Record("jobs", 0, 1, None, b"{}"), Origin("jobs", 0, 1), job)
    task = dataclasses.replace(task, orphan_scan_since=0.0)
    mine = partials._job_hash(task.origin)
    hostile = Hostile([mine if own else f"{number:016x}" for number in range(50_000)])
    orphans = partials.OrphanIndex()
    tracemalloc.start()
    try:
        found = orphans.of(task, hostile)  # type: ignore[arg-type]  # all of a session that listing takes
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == (partials.ORPHANS_REMOVED if own else 0)
    assert kept_bytes < 5 << 20
    assert orphans.known(task) is None
