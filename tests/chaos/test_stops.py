"""Stopping and starting again in the middle of out-of-order work: nothing finished is done again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import pytest

from chaos.ftp import Server
from chaos.judging import end_in_good_order, introduce, judge
from chaos.processes import Consumer
from chaos.topics import Topics
from chaos.work import Job, Work
from etl.lanes.run import SMALL_BYTES

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

Held = tuple[Work, Server, Server]
LARGE = 200_000
STREAMED = SMALL_BYTES + LARGE  # too large to be held whole: its partial file is there as soon as its first bytes are
ALONE = {"ETL_SLOT": "0", "ETL_INSTANCE_ID": "alone"}


def test_after_sigterm_no_finished_file_is_transferred_again(
    held: Held, topics: Topics, consumers: Callable[..., Consumer]
) -> None:
    """One transfer holds every prefix back; what was finished beyond it stays finished."""
    work, source, _ = held
    slow = [work.add_one(LARGE) for _ in range(6)]
    source.gate.hold(job.source.on_disk(job.source_path) for job in slow)
    quick = work.add(300, "replace", "keep", large_every=1000)
    consumer = consumers("a", work.settings, ETL_SHUTDOWN_GRACE_SECONDS="0.5", **ALONE).start()
    topics.send(slow)
    topics.send(quick)
    topics.wait_for(quick, 60)
    end_in_good_order(consumer)
    assert not work.partials()
    again = time.monotonic()
    source.gate.open()
    consumer.start()
    topics.wait_for(work.jobs, 60)
    end_in_good_order(consumer)
    assert set(source.asked("RETR", since=again)) == {str(j.source.on_disk(j.source_path)) for j in slow}
    judge(work, topics)
    assert topics.lag() == 0


def test_after_sigkill_only_what_was_not_committed_is_transferred_again(
    held: Held, topics: Topics, consumers: Callable[..., Consumer]
) -> None:
    """Killed at any moment of out-of-order work: no file with a committed result is read again."""
    work, source, _ = held
    slow = [work.add_one(LARGE) for _ in range(3)]
    source.gate.hold(job.source.on_disk(job.source_path) for job in slow)
    quick = work.add(300, "replace", "keep", large_every=1000)
    consumer = consumers("a", work.settings, measured=False, **ALONE).start()
    topics.send(slow)
    topics.send(quick)
    killed = []
    for count in (60, 150, 240):
        topics.wait_for(count, 60)
        consumer.kill()
        topics.poll(0.3)
        topics.poll(0.3)
        killed.append((time.monotonic(), topics.done))
        consumer.start()
    source.gate.open()
    topics.wait_for(work.jobs, 60)
    end_in_good_order(consumer)
    by_path = {str(job.source.on_disk(job.source_path)): job.id for job in work.jobs}
    for at, done in killed:
        again = {by_path[path] for path in source.asked("RETR", since=at)}
        assert not again & done
    judge(work, topics)


def test_sigterm_lets_running_transfers_finish(held: Held, topics: Topics, consumers: Callable[..., Consumer]) -> None:
    """What runs is finished within the grace time and committed, the rest not begun; exit code 0."""
    work, source, destination = held
    running = [work.add_one(LARGE) for _ in range(4)]
    source.gate.hold(job.source.on_disk(job.source_path) for job in running)
    waiting = work.add(40, "replace", "delete", large_every=1000)
    consumer = consumers("a", work.settings, ETL_WORKERS="4", **ALONE).start()
    first = introduce(work, topics)
    topics.send(running)
    topics.wait_until(lambda: source.gate.waiting == len(running), 30, "transfers to run")
    topics.send(waiting)
    time.sleep(1.0)  # they are polled
    consumer.terminate()
    time.sleep(1.0)
    assert consumer.running
    source.gate.open()
    assert consumer.wait(8) == 0
    topics.wait_for(running, 5)
    assert topics.done == {job.id for job in [*first, *running]}
    assert len(destination.asked("STOR")) == len([*first, *running])
    consumer.start()
    topics.wait_for(work.jobs, 60)
    end_in_good_order(consumer)
    assert len(source.asked("RETR")) == len(work.jobs)
    judge(work, topics)


def test_transfers_longer_than_the_grace_time_are_reset(
    held: Held, topics: Topics, consumers: Callable[..., Consumer]
) -> None:
    """They leave no partial file, the process still ends in time with exit code 0, the next one repeats them."""
    work, source, _ = held
    running = [work.add_one(STREAMED, "fail", "move") for _ in range(5)]
    _make_folders(running)
    source.gate.hold(job.source.on_disk(job.source_path) for job in running)
    consumer = consumers("a", work.settings, ETL_SHUTDOWN_GRACE_SECONDS="1", **ALONE).start()
    first = introduce(work, topics)
    topics.send(running)
    topics.wait_until(lambda: source.gate.waiting == len(running), 30, "transfers to run")
    topics.wait_until(lambda: len(work.partials()) == len(running), 5, "partial files")
    began = time.monotonic()
    consumer.terminate()
    assert consumer.wait(15) == 0
    assert 0.9 < time.monotonic() - began < 6
    assert not work.partials()
    source.gate.open()
    topics.poll(0.5)
    assert topics.done == {job.id for job in first}
    consumer.start()
    topics.wait_for(work.jobs, 60)
    end_in_good_order(consumer)
    judge(work, topics)


def test_a_second_sigterm_ends_at_once(held: Held, topics: Topics, consumers: Callable[..., Consumer]) -> None:
    """The first asks, the second insists; the next process tidies up and repeats."""
    work, source, _ = held
    running = [work.add_one(STREAMED, "skip", "delete") for _ in range(5)]
    _make_folders(running)
    source.gate.hold(job.source.on_disk(job.source_path) for job in running)
    consumer = consumers("a", work.settings, ETL_SHUTDOWN_GRACE_SECONDS="60", measured=False, **ALONE).start()
    introduce(work, topics)
    topics.send(running)
    topics.wait_until(lambda: len(work.partials()) == len(running), 30, "transfers to run")
    consumer.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        consumer.wait(1.0)
    began = time.monotonic()
    consumer.terminate()
    assert consumer.wait(5) == 130
    assert time.monotonic() - began < 0.5
    source.gate.open()
    consumer.start(ETL_SHUTDOWN_GRACE_SECONDS="5")
    topics.wait_for(work.jobs, 60)
    end_in_good_order(consumer)
    judge(work, topics)


def test_a_stop_before_all_was_scanned_leaves_the_rest_to_the_next(
    held: Held, topics: Topics, consumers: Callable[..., Consumer]
) -> None:
    """Killed in the middle of uploads; its successor is stopped once it has the partitions; the third tidies up."""
    work, source, _ = held
    running = [work.add_one(STREAMED) for _ in range(8)]
    _make_folders(running)
    source.gate.hold(job.source.on_disk(job.source_path) for job in running)
    consumer = consumers("a", work.settings, measured=False, **ALONE).start()
    introduce(work, topics)
    topics.send(running)
    topics.wait_until(lambda: len(work.partials()) == len(running), 30, "transfers to run")
    taken = len(consumer.events("partition taken over"))
    consumer.kill()
    assert work.partials()
    consumer.start()
    topics.wait_until(lambda: len(consumer.events("partition taken over")) == 2 * taken, 30, "partitions")
    end_in_good_order(consumer)
    source.gate.open()
    consumer.start()
    topics.wait_for(work.jobs, 60)
    end_in_good_order(consumer)
    judge(work, topics)


def _make_folders(jobs: list[Job]) -> None:
    """Make the folders that jobs go to: their first bytes are stored at once, not when the next ones have come."""
    for job in jobs:
        job.destination.on_disk(job.destination_path).parent.mkdir(parents=True, exist_ok=True)
