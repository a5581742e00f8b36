"""Lanes, dispatcher and pools together, with real threads and pretended servers."""

import random
import threading
import time
from collections import Counter

import pytest
import structlog

import pretend
from etl import errors
from etl.dispatch.dispatcher import Dispatcher
from etl.lanes.lanes import Lanes
from etl.lanes.run import Run
from etl.models.task import Task
from etl.sessions.pools import Pools
from pretend import World

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("limit", [1, 3])
def test_pairs_in_all_directions_at_once_all_end_whatever_fails(limit: int) -> None:
    """A→B, B→A, A→A and others at once, sessions that fail, jobs aborted, back-offs: each job ends once, in order."""
    world = World(A=limit, B=limit, C=limit).unpaced()
    settings = pretend.settings(workers=8, retry_backoff_seconds=0.001, retry_backoff_max_seconds=0.002)
    pools = Pools(world.config, settings, create=world.create)
    dispatcher = Dispatcher(pools, settings)
    lock = threading.Lock()
    ended: list[Task] = []
    tries: Counter[Task] = Counter()
    writing: set[tuple[str, str]] = set()
    wrong: list[str] = []

    def run(run: Run) -> None:
        task = run.task
        place = (task.job.destination.hostname, task.job.destination.path)
        with lock:
            if place in writing:
                wrong.append(f"two jobs write {place}")
            writing.add(place)
            tries[task] += 1
        dice = random.random()
        try:
            run.lease.open()
            time.sleep(0)
            if dice < 0.1:
                raise errors.ConnectionLost("reset")
        except errors.EtlError as error:
            run.lease.release(reusable=False)
            with lock:
                writing.discard(place)
            dispatcher.failed(task.job.source.hostname, run.cause(error))
            run.again_in = 0.001
            return
        with lock:
            writing.discard(place)
            ended.append(task)
        run.lease.release(reusable=(dice < 0.9, True))
        dispatcher.worked(task.job.source.hostname)
        dispatcher.worked(task.job.destination.hostname)

    lanes = Lanes(dispatcher, run, 8, buffer_bytes=1)
    pairs = [("A", "B"), ("B", "A"), ("A", "A"), ("B", "C"), ("C", "A"), ("C", "C")]
    tasks = [pretend.task(n, *pairs[n % len(pairs)], f"/out/{n % 40}") for n in range(480)]
    with structlog.testing.capture_logs():
        pools.start()
        lanes.start()
        for number, task in enumerate(tasks):
            dispatcher.offer(task)
            if number % 50 == 0:
                lanes.abort(lambda task: task.origin.offset % 3 == 0, errors.ConnectionLost("cut"))
            if number % 60 == 0:
                world["C"].refusal = errors.ServerUnavailable("refused") if number % 120 else None
        world["C"].refusal = None
        end = time.monotonic() + 60
        while dispatcher.unfinished[0] and time.monotonic() < end:
            time.sleep(0.002)
        assert dispatcher.unfinished == (0, 0), f"{len(ended)} of {len(tasks)} ended; {pools.stats()}"
        assert lanes.drain(time.monotonic() + 5)
        dispatcher.stop()
        assert lanes.stop(5)
        assert pools.close()
    assert not wrong
    assert sorted(task.origin.offset for task in ended) == list(range(480))
    for name in "ABC":
        assert world[name].peak <= limit
        assert world[name].open == 0
    by_place: dict[tuple[str, str], list[int]] = {}
    for task in ended:
        by_place.setdefault((task.job.destination.hostname, task.job.destination.path), []).append(task.origin.offset)
    assert all(line == sorted(line) for line in by_place.values())
