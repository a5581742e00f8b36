"""Backlogs of a slow pair of servers: they stay where every consumer can get them, and delay nobody else's jobs."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from kafka import KafkaAdminClient

import stack
from chaos.conftest import LONG
from chaos.processes import Consumer
from chaos.topics import Topics
from servers.delay import Far

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600 if LONG else 120)]

SLOW_SECONDS, FAST_SECONDS = 0.020, 0.002  # round trips
PARTITIONS = 8
LANES = 2  # of either pair in each process
# Not a lane too few: what is asked is whether jobs come to the lanes.
SETTINGS = {"ETL_WORKERS": str(2 * LANES), "ETL_WINDOW_RECORDS": "1000" if LONG else "300"}


class Scene:
    """Two pairs of servers, SLOW1 to SLOW2 and FAST1 to FAST2, and a topic."""

    def __init__(self, topics: Topics, server: stack.Vsftpd, folder: str, ends: ExitStack) -> None:
        self.topics = topics
        self.settings = dict(SETTINGS)
        self.root = server.root / folder
        (self.root / "in").mkdir(parents=True)
        (self.root / "in" / "file").write_bytes(b"x" * 1000)
        for name, rtt in {
            "SLOW1": SLOW_SECONDS,
            "SLOW2": SLOW_SECONDS,
            "FAST1": FAST_SECONDS,
            "FAST2": FAST_SECONDS,
        }.items():
            far = ends.enter_context(Far(server.port, rtt, server.username, server.password))
            values = {"TYPE": "ftp", "HOST": far.host, "PORT": str(far.port), "USER": far.username}
            values |= {"PASS": far.password, "BASE_PATH": f"/{folder}", "MAX_CONNECTIONS": str(LANES)}
            self.settings |= {f"{name}_{key}": value for key, value in values.items()}
        self.sent: Counter[str] = Counter()

    def jobs(self, pair: str, count: int) -> list[bytes]:
        """Return jobs of a pair that were not sent yet."""
        first = self.sent[pair]
        self.sent[pair] += count
        return [
            json.dumps(
                {
                    "job_id": f"{pair}-{number}",
                    "source": {"hostname": f"{pair}1", "path": "/in/file"},
                    "destination": {"hostname": f"{pair}2", "path": f"/out/{pair}/{number % 20}/{number}"},
                }
            ).encode()
            for number in range(first, first + count)
        ]

    def send(self, jobs: list[bytes]) -> None:
        """Send jobs, in turn to each partition."""
        producer = self.topics._producer
        assert producer is not None
        for number, job in enumerate(jobs):
            producer.send(self.topics.name, value=job, partition=number % PARTITIONS)
        producer.flush(timeout=30)

    def done(self, pair: str) -> int:
        """Return how many jobs of a pair have results."""
        self.topics.poll()
        return sum(job_id.startswith(pair) for job_id in self.topics.done)

    def rate(self, pair: str, seconds: float) -> float:
        """Return how many jobs of a pair are done per second, over some seconds from now on."""
        before, started = self.done(pair), time.monotonic()
        while time.monotonic() - started < seconds:
            self.topics.poll()
        return (self.done(pair) - before) / (time.monotonic() - started)

    def lags(self, topic: str) -> dict[int, int]:
        """Return by how much the group is behind in each partition of a topic."""
        admin = KafkaAdminClient(bootstrap_servers=self.topics.bootstrap_servers, request_timeout_ms=20_000)
        reader = self.topics._reader(topic)
        try:
            tps = list(reader.assignment())
            told = admin.list_group_offsets({self.topics.group: tps})[self.topics.group]
            ends = reader.end_offsets(tps)
            return {tp.partition: ends[tp] - max(0, told[tp].offset if tp in told else 0) for tp in tps}
        finally:
            reader.close()
            admin.close()

    def deferred(self) -> int:
        """Return how many records were ever written to T-retry."""
        return len(self.topics.values(f"{self.topics.name}-retry"))


@pytest.fixture
def scene(chaos_broker: stack.Broker, vsftpd: stack.Vsftpd, topic: str) -> Iterator[Scene]:
    with ExitStack() as ends:
        topics = Topics(chaos_broker.bootstrap_servers, topic, f"group-{topic}").create(PARTITIONS)
        yield Scene(ends.enter_context(topics), vsftpd, topic, ends)


@pytest.fixture
def topics(scene: Scene) -> Topics:
    """The topics that `consumers` belong to."""
    return scene.topics


def test_a_backlog_of_one_slow_pair_scales_out(scene: Scene, consumers: Callable[..., Consumer]) -> None:
    """It stays in T, its lag is true, and each consumer that comes later takes its share of it."""
    seconds = 20.0 if LONG else 5.0
    scene.send(scene.jobs("SLOW", 3000 if LONG else 1800))
    rates, lags = [], []
    for name in ("a", "b", "c"):
        consumers(name, scene.settings, measured=False, ETL_INSTANCE_ID=name, ETL_SLOT="0").start()
        if rates:
            started = time.monotonic()
            while scene.rate("SLOW", 2.0) < rates[0] * (0.85 * (len(rates) + 1)):
                assert time.monotonic() - started < 30, f"{name} does not do its share"
        else:
            scene.topics.wait_until(lambda: scene.done("SLOW") > 20, 30, "the first jobs")
        rates.append(scene.rate("SLOW", seconds))
        lags.append((scene.sent["SLOW"] - scene.done("SLOW"), sum(scene.lags(scene.topics.name).values())))
        print(f"{len(rates)} consumers: {rates[-1]:.1f} jobs/s; left, lag: {lags[-1]}")
        assert lags[-1][1] >= lags[-1][0] - 100  # jobs that ended while we looked
    print([round(rate / rates[0], 2) for rate in rates])
    assert scene.deferred() == 0
    assert rates[1] >= 1.8 * rates[0]
    assert rates[2] >= 2.6 * rates[0]
