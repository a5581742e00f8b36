"""Consumers that are killed while objects are on their way leave the right ones, and no part of any other."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stack
from chaos.conftest import LONG
from chaos.judging import end_in_good_order, judge
from chaos.processes import Consumer
from chaos.topics import Topics
from chaos.watcher import Watcher
from chaos.work import COMBINATIONS, Place, Work, ftp_place, local_place
from etl.config import ServerConfig
from etl.transfer import S3Transfer
from etl.transfer.s3 import documents
from etl.transfer.s3.options import placed
from servers.s3 import FakeStore
from servers.zoo.stores import Versitygw

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800 if LONG else 240)]

IN_PARTS_BYTES = 6 << 20  # more than a file has that waits in memory


class Real:
    """A folder of a bucket of versitygw, whose objects lie on this disk, too."""

    def __init__(self, server: Versitygw) -> None:
        self._server = server
        self.root = server.below("base")
        self.root.mkdir()

    def settings(self, **more: str) -> dict[str, str]:
        """Return the settings of a server of type s3."""
        return self._server.settings(BASE_PATH="base", **more)

    @property
    def uploads(self) -> list[str]:
        """The keys of the uploads that nobody has completed or aborted."""
        session = S3Transfer(placed(ServerConfig("S", "s3", options=self._server.settings())))
        session.connect()
        answer = session._link.ask("GET", query=[("uploads", "")])
        session.disconnect()
        return [one.key for one in documents.uploads_of(answer.content)[0]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FakeStore]:
    """A store whose objects lie on this disk."""
    made = FakeStore(tmp_path / "store")
    yield made
    made.close()


@pytest.fixture(params=["fake", pytest.param("versitygw", marks=[pytest.mark.long, pytest.mark.zoo])])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeStore | Real]:
    """Give the fake one, and a real one."""
    if request.param == "fake":
        yield request.getfixturevalue("store")
    else:
        with Versitygw(tmp_path / "versitygw").for_the_session() as server:
            yield Real(server)


@pytest.fixture
def work(vsftpd: stack.Vsftpd, store: FakeStore, tmp_path: Path, topic: str) -> Work:
    """Work with the fake store."""
    return work_with(store, vsftpd, tmp_path, topic)


def work_with(store: FakeStore | Real, vsftpd: stack.Vsftpd, tmp_path: Path, topic: str) -> Work:
    """A bucket, to and from an FTP server and a local folder."""
    bucket = Place("CLOUD", store.root, {f"CLOUD_{name}": value for name, value in store.settings(TYPE="s3").items()})
    places = [bucket, ftp_place("OLD", vsftpd, topic), local_place("HERE", tmp_path / "here")]
    pairs = [(places[1], bucket), (bucket, places[1]), (places[2], bucket), (bucket, places[2])]
    return Work(places, pairs=pairs)


def test_kills_leave_nothing_in_the_bucket(
    any_store: FakeStore | Real,
    vsftpd: stack.Vsftpd,
    tmp_path: Path,
    topic: str,
    topics: Topics,
    consumers: Callable[..., Consumer],
) -> None:
    """Every `overwrite` with every `source_action`; files in one request and in parts; uploads of the dead are gone."""
    store, chance = any_store, random.Random(20261130)
    work = work_with(store, vsftpd, tmp_path, topic)
    work.add_mixed(40 if LONG else 6, large_every=20)
    for _ in range(12 if LONG else 4):
        work.add_one(IN_PARTS_BYTES, "fail", "delete")
    jobs = list(work.jobs)
    chance.shuffle(jobs)
    kills = 40 if LONG else 6
    pair = [
        consumers(name, work.settings, measured=False, ETL_INSTANCE_ID=f"chaos-{name}", ETL_SLOT="0").start()
        for name in ("a", "b")
    ]
    begun = 0
    with Watcher(jobs) as watcher:
        size = -(-len(jobs) // (kills + 1))
        for at in range(0, len(jobs), size):
            topics.send(jobs[at : at + size])
            limit = time.monotonic() + chance.uniform(0.5, 3.0)
            while len(topics.done) < at + size // 2 and time.monotonic() < limit:
                topics.poll(0.02)
            victim = chance.choice(pair)
            victim.kill()
            begun += len(store.uploads)
            had = len(victim.events("partition taken over"))
            victim.start()
        topics.wait_for(jobs, 600 if LONG else 120)
        stack.wait_until(lambda: len(victim.events("partition taken over")) > had, 60, "the last victim is at work")
        end_in_good_order(*pair)
    judge(work, topics, watcher)
    assert not store.uploads, f"{begun} uploads were open when somebody was killed"
    assert {(job.overwrite, job.action) for job in jobs} == set(COMBINATIONS)


def test_a_kill_in_the_middle_of_an_upload_leaves_no_part(
    work: Work, store: FakeStore, topics: Topics, consumers: Callable[..., Consumer]
) -> None:
    """The store holds a part back; its sender is killed; the next one aborts the upload, and brings the file."""
    store.faults["PART"] = ["hang"]
    job = work.add_one(IN_PARTS_BYTES)
    consumer = consumers("a", work.settings, measured=False, ETL_INSTANCE_ID="chaos-a", ETL_SLOT="0").start()
    topics.send([job])
    stack.wait_until(lambda: "PART" in store.requests, 60, "the upload began")
    assert len(store.uploads) == 1
    (left,) = store.uploads
    consumer.kill()
    consumer.start()
    topics.wait_for([job], 60)
    end_in_good_order(consumer)
    judge(work, topics)
    assert left not in store.uploads
    assert not store.uploads
    assert "ABORT" in store.requests
