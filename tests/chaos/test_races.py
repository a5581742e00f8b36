"""Several jobs for one destination, and sources that change while they are read: real servers, real processes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest

import stack
from background import Background
from chaos.judging import end_in_good_order
from chaos.processes import Consumer
from chaos.topics import Topics
from chaos.watcher import Watcher
from chaos.work import NEW_TIME, Job, Place, Work, content, ftp_place

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

GROUPS, RIVALS = 30, 5
FAST = {"ETL_RETRY_BACKOFF_SECONDS": "0.05", "ETL_RETRY_BACKOFF_MAX_SECONDS": "0.5", "ETL_RETRY_MAX_ATTEMPTS": "10"}


@dataclass(frozen=True)
class Rival(Job):
    """One of several jobs for one destination; of its group the one with the highest number has the newest file."""

    @property
    def group(self) -> int:
        return self.number // RIVALS

    @property
    def destination_path(self) -> str:
        return f"/out/{self.group}.dat"

    def prepare(self) -> None:
        super().prepare()
        mtime = NEW_TIME + 10 * (self.number % RIVALS)
        os.utime(self.source.on_disk(self.source_path), (mtime, mtime))


@pytest.fixture
def places(vsftpd: stack.Vsftpd, make_ftpd: Callable[..., stack.Ftpd], topic: str) -> list[Place]:
    """From pyftpdlib to vsftpd."""
    return [ftp_place("FROM", make_ftpd()), ftp_place("TO", vsftpd, topic)]


@pytest.fixture
def pair(consumers: Callable[..., Consumer], places: list[Place]) -> Callable[[], list[Consumer]]:
    """Start two processes."""
    settings = Work(places).settings

    def start() -> list[Consumer]:
        return [
            consumers(name, settings, ETL_INSTANCE_ID=f"race-{name}", ETL_SLOT="0", **FAST).start()
            for name in ("a", "b")
        ]

    return start


@pytest.mark.parametrize("overwrite", ["replace", "skip", "fail", "newer"])
@pytest.mark.parametrize("ordered", [True, False], ids=["one partition", "several"])
def test_rivals_for_one_destination(
    places: list[Place], topics: Topics, pair: Callable[[], list[Consumer]], overwrite: str, ordered: bool
) -> None:
    """Within a partition `overwrite` is exact; over several no file is ever anything but one whole of its rivals.

    There `skip`, `fail` and `newer` look again directly before the rename: what they say was true then.
    """
    jobs = [Rival(n, *places, overwrite, size_bytes=20_000 + 100 * n) for n in range(GROUPS * RIVALS)]
    for job in jobs:
        job.prepare()
    random.Random(7).shuffle(jobs)
    final = {str(places[1].on_disk(job.destination_path)): job for job in jobs}
    with Watcher(final.values()) as watcher:
        for job in jobs:
            watcher.allow({str(places[1].on_disk(job.destination_path)): job.size_bytes})
        processes = pair()
        topics.send(jobs, key=(lambda job: job.destination_path) if ordered else (lambda job: job.id))
        topics.wait_for(jobs, 90)
        topics.poll(0.5)
        end_in_good_order(*processes)
    assert not watcher.wrong
    assert not Work(places).partials()
    assert len(topics.outcomes) == len(jobs)
    told = {outcome.job_id: outcome.said for outcome in topics.outcomes}
    for group in range(GROUPS):
        judge_group([job for job in jobs if job.group == group], told, ordered=ordered)


def judge_group(rivals: list[Rival], told: dict[str, Any], *, ordered: bool) -> None:
    """Fail unless what the rivals of a group were told is true, and one of them is there whole."""
    overwrite = rivals[0].overwrite
    stored = rivals[0].destination.on_disk(rivals[0].destination_path).read_bytes()
    copied = [job for job in rivals if told[job.id]["status"] == "SUCCESS" and not told[job.id]["skipped"]]
    assert stored in [job.content for job in copied]
    for job in rivals:
        if job not in copied and overwrite == "fail":
            assert told[job.id]["error_code"] == "ALREADY_EXISTS", told[job.id]
        elif job not in copied:
            assert told[job.id]["skipped"], told[job.id]
    if overwrite == "replace":
        assert len(copied) == len(rivals)
    elif ordered and overwrite == "newer":
        assert stored == max(rivals, key=lambda job: job.number).content
    elif ordered:
        assert len(copied) == 1


class Changer(Background):
    """A thread that changes source files again and again, in one way, for a while."""

    def __init__(self, jobs: list[Job], how: str) -> None:
        super().__init__("changer")
        self._jobs, self._how = jobs, how
        self._now = {job.id: job.content for job in jobs}
        self._were = {job.id: {sha256(job.content).digest()} for job in jobs}  # thousands of versions of megabytes

    def was(self, job: Job, data: bytes) -> bool:
        """Tell whether a source file ever was this."""
        return sha256(data).digest() in self._were[job.id]

    def _run(self) -> None:
        for turn in range(1, 1000):
            for job in self._jobs:
                path = job.source.on_disk(job.source_path)
                before = self._now[job.id]
                self._now[job.id] = now = self._next(job, before, turn)
                self._were[job.id].add(sha256(now).digest())
                if self._how == "replaced":
                    beside = path.with_name(path.name + ".new")
                    beside.write_bytes(now)
                    beside.replace(path)
                elif self._how == "grows":
                    with path.open("ab") as file:
                        file.write(now[len(before) :])
                else:
                    os.truncate(path, len(now))
                if self._stop.wait(0.002):
                    return

    def _next(self, job: Job, before: bytes, turn: int) -> bytes:
        if self._how == "replaced":
            return content(1000 * turn + job.number, job.size_bytes + turn)
        if self._how == "grows":
            return before + content(turn, 1000)
        return before[: max(1, len(before) - 5000)]


@pytest.mark.parametrize("how", ["grows", "shrinks", "replaced"])
def test_sources_that_change_while_they_are_read(
    make_vsftpd: Callable[..., stack.Vsftpd],
    make_ftpd: Callable[..., stack.Ftpd],
    topics: Topics,
    consumers: Callable[..., Consumer],
    how: str,
) -> None:
    """Noticed and tried again; what is published in the end is one of the versions, whole, and of the size told."""
    slow = make_vsftpd(local_max_rate="8000000")  # bytes a second: a file takes a while
    places = [ftp_place("FROM", slow), ftp_place("TO", make_ftpd())]
    work = Work(places, pairs=[(places[0], places[1])])
    jobs = [work.add_one(1_500_000) for _ in range(6)]
    settings = FAST | {"ETL_RETRY_MAX_ATTEMPTS": "1000"}
    consumer = consumers("a", work.settings, ETL_SLOT="0", ETL_INSTANCE_ID="changes", **settings)
    with Changer(jobs, how) as changer:
        consumer.start()
        topics.send(jobs)
        topics.wait_until(lambda: len(noticed(consumer)) >= 5, 60, "five changes are noticed")
    topics.wait_for(jobs, 60)
    topics.poll(0.3)
    end_in_good_order(consumer)
    assert len(topics.outcomes) == len(jobs)
    told = {outcome.job_id: outcome.said for outcome in topics.outcomes}
    for job in jobs:
        stored = job.destination.on_disk(job.destination_path).read_bytes()
        assert told[job.id]["status"] == "SUCCESS", told[job.id]
        assert told[job.id]["bytes"] == len(stored)
        assert changer.was(job, stored), f"{len(stored)} bytes that never were"
    assert not work.partials()


def noticed(consumer: Consumer) -> list[str]:
    """Return the waits whose reason is a changed source."""
    return [event["error"] for event in consumer.events("job waits") if "while it was read" in event["error"]]
