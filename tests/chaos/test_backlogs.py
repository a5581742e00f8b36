"""Backlogs of a slow pair of servers: they stay where every consumer can get them, and delay nobody else's jobs."""

from __future__ import annotations

import gc
import json
import math
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import yaml
from kafka import KafkaAdminClient

import stack
from chaos.conftest import LONG
from chaos.processes import Consumer
from chaos.topics import Topics
from etl.status import metrics
from etl.status.reader import StatusReader
from servers.delay import Far

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600 if LONG else 120)]

# Round trips. Where many tests share the machine they are so long that it is the only thing that lanes wait for.
SLOW_SECONDS, FAST_SECONDS = (0.020, 0.002) if LONG else (0.060, 0.010)
RATED_SECONDS = 20.0 if LONG else 1.0
KEPT = 0.95  # of a rate; asked for in the long tests alone, as other tests' work decides on rates, too
PARTITIONS = 8
LANES = 2  # of either pair in each process
SCALED = yaml.safe_load((stack.REPOSITORY / "k8s" / "scaledobject.yaml").read_text())["spec"]
(TRIGGER,) = SCALED["triggers"]
# Not a lane too few: what is asked is whether jobs come to the lanes.
SETTINGS = {"ETL_WORKERS": str(2 * LANES)}


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
        port = stack.free_port()
        self.settings |= {f"DOWN{number}_{key}": value for number in (1, 2) for key, value in values.items()}
        self.settings |= {f"DOWN{number}_PORT": str(port) for number in (1, 2)}
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

    def shares(self, pair: str, seconds: float) -> Counter[str]:
        """Return how many jobs of a pair each consumer does, over some seconds from now on; by its name."""
        self.topics.poll()
        before, started = len(self.topics.outcomes), time.monotonic()
        while time.monotonic() - started < seconds:
            self.topics.poll()
        return Counter(one.said["worker"][0] for one in self.topics.outcomes[before:] if one.job_id.startswith(pair))

    def let_share(self, pair: str, name: str) -> None:
        """Wait until a consumer does at least half as many jobs of a pair as each of the others; 30 s at most."""
        started = time.monotonic()
        while (shares := self.shares(pair, 3.0 if LONG else 2.0))[name] * 2 < max(shares.values(), default=1):
            assert time.monotonic() - started < 30, f"{name} does not do its share: {shares}"

    def rate_of(self, jobs: list[bytes], pair: str, count: int) -> float:
        """Send jobs; return how many of a pair are done per second, of so many but the first and the last tenth."""
        before, times = self.done(pair), []
        self.send(jobs)
        while len(times) < count:
            self.topics.poll(0.05)
            times += [time.monotonic()] * (self.done(pair) - before - len(times))
        return count * 0.8 / (times[count * 9 // 10] - times[count // 10])

    def begin(self, consumers: Callable[..., Consumer]) -> Consumer:
        """Start the first consumer, and wait until it works."""
        first = consumers("a", self.settings, measured=False, ETL_INSTANCE_ID="a", ETL_SLOT="0").start()
        self.send(self.jobs("FAST", 20))
        self.topics.wait_until(lambda: self.done("FAST") == 20, 60, "the first jobs")
        self.topics.wait_until(lambda: not sum(self.lags(self.topics.name).values()), 10, "their commit")
        return first

    def lags(self, topic: str) -> dict[int, int]:
        """Return by how much the group is behind in each partition of a topic."""
        admin = KafkaAdminClient(bootstrap_servers=self.topics.bootstrap_servers, request_timeout_ms=20_000)
        reader = self.topics._reader(topic)
        try:
            tps = list(reader.assignment())
            if not tps:
                return {}  # no consumer made the topic yet
            told = admin.list_group_offsets({self.topics.group: tps})[self.topics.group]
            ends = reader.end_offsets(tps)
            return {tp.partition: ends[tp] - max(0, told[tp].offset if tp in told else 0) for tp in tps}
        finally:
            reader.close()
            admin.close()

    def deferred(self) -> Counter[str]:
        """Return how many records were ever written to T-retry, by the job."""
        return Counter(json.loads(value)["job_id"] for value in self.topics.values(f"{self.topics.name}-retry"))

    def pods(self) -> int:
        """Return how many pods KEDA's trigger asks for now.

        As its scaler for an API counts (pkg/scalers/metrics_api_scaler.go), of the number that ours tells: what the
        group's processes say in `etl-status`.
        """
        reader = StatusReader(self.topics.bootstrap_servers, "etl-status")
        try:
            reader.catch_up()
            told = [one for one in reader.fleet.processes(time.monotonic()) if one.snapshot.group == self.topics.group]
        finally:
            reader.close()
        runnable = sum(metrics.runnable(one.snapshot) for one in told if one.state not in ("silent", "stopped"))
        return min(SCALED["maxReplicaCount"], math.ceil(runnable / int(TRIGGER["metadata"]["targetValue"])))

    def ask_for(self, are_right: Callable[[int], bool], what: str) -> None:
        """Wait until the trigger asks for the right number of pods: processes speak every few seconds."""
        self.topics.wait_until(lambda: are_right(self.pods()), 30, what)


@pytest.fixture
def scene(chaos_broker: stack.Broker, vsftpd: stack.Vsftpd, topic: str) -> Iterator[Scene]:
    with ExitStack() as ends:
        topics = Topics(chaos_broker.bootstrap_servers, topic, f"group-{topic}").create(PARTITIONS)
        yield Scene(ends.enter_context(topics), vsftpd, topic, ends)
    with warnings.catch_warnings():  # a connect under way while it closes is left to the collector by the client
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def topics(scene: Scene) -> Topics:
    """The topics that `consumers` belong to."""
    return scene.topics


def test_a_backlog_of_one_slow_pair_scales_out(scene: Scene, consumers: Callable[..., Consumer]) -> None:
    """It stays in T, its lag is true, and each consumer that comes later takes its share of it."""
    scene.begin(consumers)
    scene.ask_for(lambda pods: pods == 0, "no pods")
    count = 3000 if LONG else 700
    scene.send(scene.jobs("SLOW", count))
    rates, lags = [], []
    most = min(PARTITIONS, math.ceil(count / 200))
    scene.ask_for(lambda pods: pods in (most, most - 1), "pods for all that waits, but for what was done meanwhile")
    for name in ("a", "b", "c"):
        if rates:
            consumers(name, scene.settings, measured=False, ETL_INSTANCE_ID=name, ETL_SLOT="0").start()
            scene.let_share("SLOW", name)
        else:
            scene.topics.wait_until(lambda: scene.done("SLOW") > 20, 60, "the first jobs")
        rates.append(scene.rate("SLOW", RATED_SECONDS))
        lags.append((scene.sent["SLOW"] - scene.done("SLOW"), sum(scene.lags(scene.topics.name).values())))
        print(f"{len(rates)} consumers: {rates[-1]:.1f} jobs/s; left, lag: {lags[-1]}")
        assert lags[-1][1] >= lags[-1][0] - 100  # jobs that ended while we looked
    print([round(rate / rates[0], 2) for rate in rates])
    assert not scene.deferred()
    assert not LONG or rates[1] >= 1.8 * rates[0]
    assert not LONG or rates[2] >= 2.6 * rates[0]


@pytest.mark.parametrize(
    "order",
    ["evenly", pytest.param("slow first", marks=pytest.mark.long), pytest.param("fast first", marks=pytest.mark.long)],
)
def test_a_fast_pair_keeps_its_rate_beside_the_backlog_of_a_slow_one(
    scene: Scene, consumers: Callable[..., Consumer], order: str
) -> None:
    """Whatever came first; and the slow one's jobs scale out as they do alone, those in T-retry as well."""
    slow, fast = (3000, 3000) if LONG else (1200, 120)
    first = scene.begin(consumers)
    alone, both = [], []
    for rates, others in ((alone, 0), (both, slow)):
        jobs = scene.jobs("FAST", fast), scene.jobs("SLOW", others)
        if order == "evenly":
            mixed = jobs[0] + jobs[1]
            random.Random(1).shuffle(mixed)
        else:
            mixed = jobs[0] + jobs[1] if order == "fast first" else jobs[1] + jobs[0]
        rates.append(scene.rate_of(mixed, "FAST", fast))
        print(f"{order}: {rates[-1]:.0f} fast jobs/s beside {others}, {len(scene.deferred())} deferred")
    assert not LONG or both[0] >= KEPT * alone[0]
    deferred = scene.deferred()
    if order != "fast first":  # these fill the window for a moment, and then they are the ones that make way
        assert not any(job_id.startswith("FAST") for job_id in deferred)
    print(f"written to T-retry: {len(deferred)} jobs, {sum(deferred.values())} records; pods {scene.pods()}")
    scene.ask_for(lambda pods: pods >= 2, "pods for the slow pair, wherever its jobs wait")
    rate = scene.rate("SLOW", RATED_SECONDS)
    consumers("b", scene.settings, measured=False, ETL_INSTANCE_ID="b", ETL_SLOT="0").start()
    scene.let_share("SLOW", "b")
    now = scene.rate("SLOW", RATED_SECONDS)
    print(f"slow jobs: {rate:.1f} per second, {now:.1f} with a second process")
    assert not LONG or now >= 1.8 * rate
    assert first.running


def test_jobs_of_a_server_that_is_down_cost_the_others_nothing(
    scene: Scene, consumers: Callable[..., Consumer]
) -> None:
    """Half of all that waits is for it: written to T-retry once or twice each, and no reason for more pods."""
    count, waiting = (3000, 100_000) if LONG else (100, 800)
    scene.begin(consumers)
    alone = scene.rate_of(scene.jobs("FAST", count), "FAST", count)
    jobs = scene.jobs("FAST", waiting // 2) + scene.jobs("DOWN", waiting // 2)
    random.Random(1).shuffle(jobs)
    beside = scene.rate_of(jobs, "FAST", count)
    if LONG:
        scene.ask_for(lambda pods: pods == PARTITIONS, "all pods")
    else:
        scene.topics.wait_until(lambda: scene.done("FAST") == scene.sent["FAST"], 60, "all that can be done")
        scene.ask_for(lambda pods: pods <= 1, "no reason for more pods")
    deferred = scene.deferred()
    records = Counter(deferred.values())
    print(
        f"{beside:.0f} jobs/s beside {waiting} waiting, {alone:.0f} alone; jobs by their records in T-retry: {records}"
    )
    print(f"pods: {scene.pods()}")
    assert not LONG or beside >= KEPT * alone
    assert not any(job_id.startswith("FAST") for job_id in deferred)
    assert max(records) <= 5
    assert not scene.done("DOWN")
