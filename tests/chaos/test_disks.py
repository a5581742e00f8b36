"""A destination that is full, and one that may not be written: their jobs fail truly, nobody else's does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import stack
from chaos.judging import end_in_good_order
from chaos.processes import Consumer
from chaos.topics import Topics
from chaos.work import Place, Work, ftp_place, local_place
from mounts import make_read_only, small_disk
from servers.pyftpd import PyFTPD, UnbufferedFS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

DISK_BYTES = 1 << 20


def test_a_full_disk_and_a_read_only_one_among_healthy_servers(
    vsftpd: stack.Vsftpd,
    make_vsftpd: Callable[..., stack.Vsftpd],
    topics: Topics,
    consumers: Callable[..., Consumer],
    tmp_path: Path,
    topic: str,
) -> None:
    """STORAGE_FULL after all attempts, PERMISSION_DENIED at once; small files fit where large ones did not."""
    with (
        small_disk(tmp_path / "full", DISK_BYTES) as full,
        small_disk(tmp_path / "full-by-other", DISK_BYTES) as full_too,
        small_disk(tmp_path / "closed", DISK_BYTES) as closed,
        contextlib.closing(PyFTPD(full_too, abstracted_fs=UnbufferedFS)) as other,
    ):
        make_read_only(closed)
        served = make_vsftpd(local_root=str(full))
        good, here = ftp_place("GOOD", vsftpd, topic), local_place("HERE", tmp_path / "here")
        places = [on_disk("FULLV", served, full), on_disk("FULLP", other, full_too)]
        # It does not say that its disk is full: that is found out by asking, which another job's end may belie.
        places[1].settings["FULLP_MAX_CONNECTIONS"] = "1"
        places += [local_place("FULLL", full / "by-local"), Place("CLOSED", closed, {})]
        places[3].settings.update({"CLOSED_TYPE": "local", "CLOSED_BASE_PATH": str(closed)})
        work = Work([good, here, *places], pairs=[(good, here), (here, good)])
        well = work.add(100, "replace", "keep")
        large, small, refused = [], [], []
        for number, place in enumerate(places[:3]):
            work.pairs = [((good, here)[number % 2], place)]
            large += [work.add_one(3 << 20) for _ in range(3)]
            small += [work.add_one(2000) for _ in range(5)]
        for source in (good, here):
            work.pairs = [(source, places[3])]
            refused += [work.add_one(1000) for _ in range(2)]
        settings = {"ETL_RETRY_MAX_ATTEMPTS": "2", "ETL_RETRY_BACKOFF_SECONDS": "0.2"}
        consumer = consumers("a", work.settings, ETL_SLOT="0", ETL_INSTANCE_ID="disks", **settings).start()
        topics.send([*large, *refused, *well])
        topics.wait_for([*large, *refused, *well], 90)
        topics.send(small)
        topics.wait_for(work.jobs, 90)
        topics.poll(0.5)
        end_in_good_order(consumer)
        letters = [json.loads(value) for value in topics.values(f"{topics.name}-dlq")]
        told = {outcome.job_id: outcome.said for outcome in topics.outcomes}
        assert len(topics.outcomes) == len(work.jobs)
        for job in large:
            assert told[job.id]["error_code"] == "STORAGE_FULL", told[job.id]
            assert told[job.id]["attempts"] == 2
        for job in refused:
            assert told[job.id]["error_code"] == "PERMISSION_DENIED", told[job.id]
            assert told[job.id]["attempts"] == 2  # it may pass
        assert {letter["job_id"] for letter in letters} == {job.id for job in [*large, *refused]}
        for job in [*well, *small]:
            assert told[job.id]["status"] == "SUCCESS", told[job.id]
            assert job.destination.on_disk(job.destination_path).read_bytes() == job.content
        assert not work.partials()
        assert not list(closed.iterdir())


def on_disk(name: str, server: PyFTPD | stack.Vsftpd, root: Path) -> Place:
    """Describe a server whose files lie in another folder than it thinks."""
    place = ftp_place(name, server)
    return Place(name, root, place.settings)
