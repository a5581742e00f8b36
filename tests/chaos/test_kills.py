"""Consumers that are killed again and again lose nothing, double nothing, and leave nothing behind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from chaos.conftest import LONG
from chaos.judging import end_in_good_order, judge
from chaos.processes import Consumer
from chaos.topics import Topics
from chaos.watcher import Watcher
from chaos.work import COMBINATIONS, Job, Work

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600 if LONG else 400)]

SEED = 20261121


def kill_while_they_work(
    consumers: list[Consumer], topics: Topics, jobs: list[Job], kills: int, chance: random.Random
) -> None:
    """Hand out the jobs in portions; within each, when some are done, kill somebody and start him again."""
    size = -(-len(jobs) // (kills + 1))
    portions = [jobs[at : at + size] for at in range(0, len(jobs), size)]
    for number, portion in enumerate(portions):
        topics.send(portion)
        sent = sum(map(len, portions[: number + 1]))
        open_jobs = sent - len(topics.done)
        wanted = sent - int(open_jobs * chance.uniform(0.1, 1.0))
        limit = time.monotonic() + chance.uniform(0.5, 3.0)  # also while they start and take over
        while len(topics.done) < wanted and time.monotonic() < limit:
            topics.poll(0.02)
        victims = consumers if chance.random() < 0.2 else [chance.choice(consumers)]
        for victim in victims:
            victim.kill()
        for victim in victims:
            victim.start()


def test_consumers_killed_again_and_again(work: Work, topics: Topics, consumers: Callable[..., Consumer]) -> None:
    """Every file right, one true result per job, nothing left over, never a wrong size under a final name."""
    chance = random.Random(SEED)
    if LONG:
        work.add_mixed(1000)
    else:  # most of the one with the most to get wrong, some of all others
        work.add(440, "fail", "move")
        work.add_mixed(30)
    jobs = list(work.jobs)
    chance.shuffle(jobs)
    kills = 240 if LONG else 15
    pair = [
        consumers(name, work.settings, measured=False, ETL_INSTANCE_ID=f"chaos-{name}", ETL_SLOT="0").start()
        for name in ("a", "b")
    ]
    with Watcher(jobs) as watcher:
        kill_while_they_work(pair, topics, jobs, kills, chance)
        topics.wait_for(jobs, 900 if LONG else 120)
        time.sleep(1.0)  # a second result would come now
        end_in_good_order(*pair)
    assert sum(consumer.kills for consumer in pair) >= kills
    judge(work, topics, watcher)
    assert topics.lag() == 0
    assert {(job.overwrite, job.action) for job in jobs} == set(COMBINATIONS)


def test_a_restart_after_the_end_does_nothing_again(
    work: Work, topics: Topics, consumers: Callable[..., Consumer]
) -> None:
    """Killed at rest, and started again: no result comes, no file changes."""
    work.add_mixed(2)
    consumer = consumers("a", work.settings, ETL_SLOT="0", ETL_INSTANCE_ID="rest").start()
    topics.send(work.jobs)
    topics.wait_for(work.jobs, 60)
    consumer.kill()
    before = {path: path.stat().st_mtime_ns for place in work.places for path in place.root.rglob("*.dat")}
    consumer.start()
    topics.wait_until(lambda: len(consumer.events("consumer started")) == 2, 20, "second start")
    time.sleep(2.0)
    end_in_good_order(consumer)
    judge(work, topics)
    assert before == {path: path.stat().st_mtime_ns for place in work.places for path in place.root.rglob("*.dat")}
