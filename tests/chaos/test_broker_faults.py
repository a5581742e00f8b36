"""The broker frozen, killed, and cut off in the middle of a commit: outcomes are exactly once all the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from chaos.conftest import LONG, ProxiedBroker, run_broker
from chaos.judging import end_in_good_order, judge
from chaos.processes import Consumer
from chaos.proxy import DELIVERED, Cut, Proxy
from chaos.topics import Topics
from chaos.watcher import Watcher
from chaos.work import Work

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800 if LONG else 240)]

FROZEN_SECONDS = 15.0


@pytest.fixture
def chaos_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedBroker]:
    """A broker of the test's own, to freeze and kill."""
    yield from run_broker(tmp_path_factory.mktemp("chaos-broker"))


def test_a_broker_frozen_and_killed_during_a_run(
    chaos_broker: ProxiedBroker, work: Work, topics: Topics, consumers: Callable[..., Consumer]
) -> None:
    """The consumers go on by themselves after both, and no outcome is lost or doubled."""
    first, second = work.add_mixed(80 if LONG else 15), work.add_mixed(80 if LONG else 15)
    pair = [consumers(name, work.settings, ETL_SLOT=slot).start() for name, slot in (("a", "0"), ("b", "1"))]
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


def test_commits_cut_off_before_their_reply(
    chaos_broker: ProxiedBroker, work: Work, topics: Topics, consumers: Callable[..., Consumer]
) -> None:
    """Whether the request or only its reply was lost, by a closed, a dumb or a vanished connection: exactly once."""
    cuts = [Cut.ANSWER_LOST, Cut.LOST, Cut.ANSWER_LOST, Cut.SILENT_AFTER, Cut.SILENT, Cut.AWAY_AFTER, Cut.AWAY]
    cuts *= 6 if LONG else 1
    with Proxy(chaos_broker.proxy_port, chaos_broker.behind_port) as proxy:
        proxy.cut(cuts)
        consumer = consumers(
            "a", work.settings, ETL_SLOT="0", ETL_BOOTSTRAP_SERVERS=f"127.0.0.1:{chaos_broker.proxy_port}"
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
