"""The broker frozen, killed, and cut off in the middle of a commit: outcomes are exactly once all the same."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stack
from chaos.conftest import LONG
from chaos.judging import end_in_good_order, judge
from chaos.processes import SHORT_LIMITS, Consumer
from chaos.proxy import DELIVERED, Cut, Proxy
from chaos.topics import Topics
from chaos.watcher import Watcher
from chaos.work import Work

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800 if LONG else 240)]

FROZEN_SECONDS = 7.0  # longer than a request (3.2), a transaction (4) and a session of these consumers (6) may last


class ProxiedBroker(stack.Broker):
    """A broker with a second listener, `behind_port`, whose clients are told to come to `proxy_port`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.behind_port, self.proxy_port = stack.free_port(), stack.free_port()
        local = f"LOCAL://127.0.0.1:{self.port}"
        self.properties |= {
            "listeners": f"{local},EXTERNAL://127.0.0.1:{self.behind_port},"
            f"CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"{local},EXTERNAL://127.0.0.1:{self.proxy_port}",
        }


@pytest.fixture(scope="module")
def chaos_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedBroker]:
    """The broker of these tests, to freeze and kill."""
    folder = tmp_path_factory.mktemp("chaos-broker")
    with ProxiedBroker(folder).for_the_session() as server:
        yield server
    stack.remove_tree(folder)


def test_a_broker_frozen_and_killed_during_a_run(
    chaos_broker: ProxiedBroker, work: Work, topics: Topics, consumers: Callable[..., Consumer]
) -> None:
    """The consumers go on by themselves after both, and no outcome is lost or doubled."""
    first, second = work.add_mixed(80 if LONG else 15), work.add_mixed(80 if LONG else 15)
    pair = [
        consumers(name, work.settings, program=SHORT_LIMITS, ETL_SLOT=slot).start()
        for name, slot in (("a", "0"), ("b", "1"))
    ]
    with Watcher(work.jobs) as watcher:
        topics.send(first)
        topics.wait_for(len(first) // 3, 60)
        with topics.disconnected():
            chaos_broker.freeze()
            time.sleep(FROZEN_SECONDS)
            chaos_broker.thaw()
        topics.wait_for(first, 90)
        topics.send(second)
        topics.wait_for(len(first) + len(second) // 3, 60)
        with topics.disconnected():
            chaos_broker.kill()
            time.sleep(2.0)
            chaos_broker.start()
        topics.wait_for(work.jobs, 90)
        assert all(consumer.running for consumer in pair)
        end_in_good_order(*pair)
    judge(work, topics, watcher)
    assert topics.lag() == 0


@pytest.mark.parametrize("count", [pytest.param(12, marks=pytest.mark.long), 3])
def test_jobs_in_place_of_lost_ones_are_done(
    chaos_broker: ProxiedBroker, work: Work, topics: Topics, consumers: Callable[..., Consumer], count: int
) -> None:
    """The broker loses the end of a partition, as without power: new jobs get offsets whose jobs were done before.

    The log has more records than before in the end, or fewer. No job is done twice.
    """
    first = [work.add_one(1000) for _ in range(12)]
    consumer = consumers("a", work.settings, ETL_SLOT="0").start()
    for job in first:
        topics.send([job], key=lambda _: "all of one partition")
    topics.wait_for(first, 60)
    topics.wait_until(lambda: topics.lag() == 0, 30, "the commit")
    with topics.disconnected():
        chaos_broker.stop()
        cut_off(chaos_broker, topics.name, 5)
        chaos_broker.start()
    topics.send([work.add_one(1000) for _ in range(count)], key=lambda _: "all of one partition")
    topics.wait_for(work.jobs, 90)
    end_in_good_order(consumer)
    judge(work, topics)
    (lost,) = consumer.events("records lost: the broker no longer has what was read")
    assert lost["goes_on_at"] == 5
    assert topics.lag() == 0


def cut_off(broker: ProxiedBroker, topic: str, batches: int) -> None:
    """Leave so many batches of the one partition of a topic that has more."""
    (log,) = [path for path in (broker.folder / "data").rglob(f"{topic}-[0-9]/*.log") if path.stat().st_size]
    data, end = log.read_bytes(), 0
    for _ in range(batches):
        end += 12 + struct.unpack_from(">i", data, end + 8)[0]
    assert end < len(data)
    log.write_bytes(data[:end])
    for pattern in ("*.index", "*.timeindex", "*.snapshot"):
        for path in log.parent.glob(pattern):
            path.unlink()


def test_commits_cut_off_before_their_reply(
    chaos_broker: ProxiedBroker, work: Work, topics: Topics, consumers: Callable[..., Consumer]
) -> None:
    """Whether the request or only its reply was lost, by a closed, a dumb or a vanished connection: exactly once."""
    cuts = [Cut.ANSWER_LOST, Cut.LOST, Cut.ANSWER_LOST, Cut.SILENT_AFTER, Cut.SILENT, Cut.AWAY_AFTER, Cut.AWAY]
    cuts *= 6 if LONG else 1
    with Proxy(chaos_broker.proxy_port, chaos_broker.behind_port) as proxy:
        proxy.cut(cuts)
        consumer = consumers(
            "a",
            work.settings,
            program=SHORT_LIMITS,
            ETL_SLOT="0",
            ETL_BOOTSTRAP_SERVERS=f"127.0.0.1:{chaos_broker.proxy_port}",
        ).start()
        deadline = time.monotonic() + 60 + 15 * len(cuts)
        while len(proxy.done) < len(cuts):
            assert time.monotonic() < deadline, f"only {proxy.done} within the time"
            topics.send(work.add_mixed(1))
            topics.wait_for(len(work.jobs) - 6, 60)
        topics.wait_for(work.jobs, 60)
        end_in_good_order(consumer)
        assert set(proxy.done) == set(cuts)
    judge(work, topics)
    resolved = [event["committed"] for event in consumer.events("commit resolved")]
    assert True in resolved, "no commit was found to be in after its reply was lost"
    assert False in resolved, "no commit was found to be out after its request was lost"
    assert DELIVERED & set(proxy.done)
