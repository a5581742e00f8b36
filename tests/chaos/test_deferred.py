"""Jobs that wait for a server that is down survive the death of every consumer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import stack
from chaos.judging import end_in_good_order, judge
from chaos.processes import Consumer
from chaos.topics import Topics
from chaos.work import Work, ftp_place, local_place

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]


def test_parked_jobs_survive_a_kill_and_spend_no_attempts(
    topics: Topics, consumers: Callable[..., Consumer], make_ftpd: Callable[..., stack.Ftpd], tmp_path: Path
) -> None:
    """Server down, jobs deferred, consumers killed, both back: each job runs once, at its first attempt."""
    server = make_ftpd()
    places = [local_place("HERE", tmp_path / "here"), ftp_place("THERE", server)]
    work = Work(places)
    work.add_mixed(10)
    server.kill()
    waits = {"ETL_RETRY_BACKOFF_SECONDS": "6", "ETL_RETRY_BACKOFF_MAX_SECONDS": "10", "ETL_RETRY_MAX_ATTEMPTS": "2"}
    settings = work.settings | waits
    pair = [consumers(name, settings, ETL_INSTANCE_ID=name, ETL_SLOT="0").start() for name in ("a", "b")]
    topics.send(work.jobs)

    def are_parked() -> bool:
        time.sleep(1.0)  # each look is a client of its own
        return len(topics.values(f"{topics.name}-retry")) >= 60

    topics.wait_until(are_parked, 60, "jobs to be deferred")
    for _ in range(2):
        for consumer in pair:
            consumer.kill()
        time.sleep(1.0)
        for consumer in pair:
            consumer.start()
        time.sleep(6.0)
    for consumer in pair:
        consumer.kill()
    assert not topics.poll(0.5), "results of jobs whose server was down all along"
    server.start()
    for consumer in pair:
        consumer.start()
    topics.wait_for(work.jobs, 90)
    end_in_good_order(*pair)
    judge(work, topics)
    assert {outcome.said["attempts"] for outcome in topics.outcomes} == {1}
