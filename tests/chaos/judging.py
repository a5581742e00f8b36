"""The verdict over a test: every promise was kept."""

from __future__ import annotations

from chaos.processes import Consumer
from chaos.topics import Topics
from chaos.watcher import Watcher
from chaos.work import Job, Work


def judge(work: Work, topics: Topics, watcher: Watcher | None = None) -> None:
    """Fail unless every promise was kept: called when the consumers have ended."""
    topics.poll(0.5)
    topics.poll(0.5)
    problems = work.problems() + topics.problems(work.jobs)
    problems += [f"dead letter: {said}" for said in topics.dead_letters()]
    if watcher is not None:
        assert watcher.looks > 0
        problems += sorted(watcher.wrong)
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:30])


def end_in_good_order(*consumers: Consumer, limit: float = 20.0) -> None:
    """Stop consumers: each must end by itself, with exit code 0, and leave no temporary file."""
    for consumer in consumers:
        consumer.terminate()
    for consumer in consumers:
        assert consumer.wait(limit) == 0, consumer.log.read_text()[-3000:]
        assert not consumer.temporary_files()


def introduce(work: Work, topics: Topics, count: int = 1) -> list[Job]:
    """Have a few jobs done first: of servers that never answered, half of the lanes are taken at most."""
    jobs = [work.add_one(1000) for _ in range(count)]
    topics.send(jobs)
    topics.wait_for(jobs, 30)
    return jobs
