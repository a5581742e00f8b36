"""Members of the group that sleep, and that claim to be another: nothing wrong is published, nothing doubled."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from chaos.ftp import Server
from chaos.judging import end_in_good_order, introduce, judge
from chaos.processes import SHORT_LIMITS, Consumer
from chaos.topics import Topics
from chaos.watcher import Watcher
from chaos.work import Work

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

Held = tuple[Work, Server, Server]
LARGE = 2_000_000  # more than the sockets between the two sides hold
PARTITIONS = 4 + 8  # of the source topic and of its T-retry
ASLEEP_SECONDS = 10.0  # the session ends after 6


def test_a_consumer_asleep_beyond_its_session_publishes_nothing_afterwards(
    held: Held, topics: Topics, consumers: Callable[..., Consumer]
) -> None:
    """Another takes its partitions over and finishes its jobs; it wakes, drops them, joins again and goes on."""
    work, source, destination = held
    slow = [work.add_one(LARGE, overwrite, action) for overwrite, action in _every_kind() for _ in range(2)]
    source.gate.hold(job.source.on_disk(job.source_path) for job in slow)
    for overwrite, action in _every_kind():
        work.add(6, overwrite, action, large_every=1000)
    early = list(work.jobs)
    more = work.add(60, "replace", "keep")
    first = [
        consumers(name, work.settings, program=SHORT_LIMITS, ETL_SLOT=slot).start()
        for name, slot in (("a", "0"), ("b", "1"))
    ]
    sleeper, other = first
    topics.wait_until(lambda: all(c.events("partition taken over") for c in first), 30, "both to hold partitions")
    introduce(work, topics, 24)
    with Watcher(work.jobs) as watcher:
        topics.send(early)
        topics.wait_until(lambda: _flies(sleeper, source, work) and source.gate.waiting >= 4, 30, "transfers to run")
        held_back = set(source.asked("RETR")) - _finished(topics, work)
        asleep = time.monotonic()
        sleeper.freeze()
        before = len(other.events("partition taken over"))
        topics.wait_until(lambda: len(other.events("partition taken over")) > before, 40, "the other to take over")
        source.gate.open()
        topics.wait_for(early, 60)
        topics.wait_until(lambda: time.monotonic() > asleep + ASLEEP_SECONDS, ASLEEP_SECONDS, "time to pass")
        awake = time.monotonic()
        sleeper.thaw()
        taken = len(sleeper.events("partition taken over"))
        topics.wait_until(lambda: len(sleeper.events("partition taken over")) >= taken + 6, 30, "it to join again")
        topics.send(more)
        topics.wait_for(work.jobs, 60)
        end_in_good_order(*first)
    assert held_back, "nothing was on its way when it fell asleep"
    # What `more` brings may be published twice: partitions move once more when the sleeper is back.
    published = set(destination.asked("RNTO", since=awake))
    assert not published & {str(job.destination.on_disk(job.destination_path)) for job in early}
    ids = {job.id for job in more}
    workers = {outcome.said["worker"] for outcome in topics.outcomes if outcome.job_id in ids}
    assert any(worker.endswith("/0") for worker in workers), f"the sleeper did not go on: {workers}"
    assert published
    judge(work, topics, watcher)
    assert not sleeper.events("job failed")


def _every_kind() -> list[tuple[str, str]]:
    return [("replace", "keep"), ("fail", "delete"), ("skip", "move"), ("newer", "delete")]


def _flies(consumer: Consumer, source: Server, work: Work) -> bool:
    """Does this consumer hold sessions to the source while files are held back?"""
    return bool(consumer.connections(source.port)) and bool(work.partials())


def _finished(topics: Topics, work: Work) -> set[str]:
    return {str(job.source.on_disk(job.source_path)) for job in work.jobs if job.id in topics.done}


def _holds(consumer: Consumer, topics: Topics) -> bool:
    return any(event["topic"] == topics.name for event in consumer.events("partition taken over"))


@pytest.mark.parametrize("static", [True, False], ids=["static member", "by slot"])
def test_two_live_processes_of_one_identity(
    held: Held, topics: Topics, consumers: Callable[..., Consumer], static: bool
) -> None:
    """One of them ends with a message that names the identity; the other does every job once."""
    work, _, _ = held
    work.add(150, "replace", "keep", large_every=1000)
    work.add(150, "fail", "delete", large_every=1000)
    same = {"ETL_SLOT": "7"} | ({"ETL_INSTANCE_ID": "twin"} if static else {})
    twins = [consumers(name, work.settings, **same).start() for name in ("a", "b")]  # a TMPDIR each: two hosts
    if not static:  # both are members: they meet in their commits
        topics.wait_until(lambda: all(_holds(twin, topics) for twin in twins), 30, "both to hold partitions")
    topics.send(work.jobs[:60])
    waiting = list(work.jobs[60:])

    def one_has_ended() -> bool:
        if waiting:  # commits go on, so that they meet
            topics.send([waiting.pop(0)])
        return any(not twin.running for twin in twins)

    topics.wait_until(one_has_ended, 60, "one of the twins to end")
    topics.send(waiting)
    gone = [twin for twin in twins if not twin.running]
    assert len(gone) == 1, "both ended"
    assert gone[0].exit_code == 1
    said = gone[0].events("stopped")
    assert len(said) == 1
    assert ("twin-7" if static else "-7") in said[0]["error"], said[0]
    topics.wait_for(work.jobs, 90)
    end_in_good_order(*(twin for twin in twins if twin.running))
    judge(work, topics)
