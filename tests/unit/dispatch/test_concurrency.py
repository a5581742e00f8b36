"""The concurrency limit: how many lanes a pair of servers gets, with a link, a processor and a clock of its own."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from etl.dispatch.concurrency import FIRST_LANES, ConcurrencyLimit

pytestmark = pytest.mark.unit


class Link:
    """A queue that always has jobs ready: `rate(lanes)` jobs per second, `share(lanes)` of a processor used."""

    def __init__(
        self,
        rate: Callable[[int], float],
        share: Callable[[int], float],
        most: int = 8,
        noise: float = 0.0,
        seed: int = 1,
    ) -> None:
        self.rate, self.share, self.noise = rate, share, noise
        self.now, self.cpu, self.jobs, self.lanes = 100.0, 0.0, 0.0, 0
        self.dice, self.luck, self.luck_until = random.Random(seed), 1.0, 0.0
        self.concurrency = ConcurrencyLimit(most, cpu=lambda: self.cpu)

    def run(self, seconds: float, step: float = 0.01) -> list[int]:
        """Let time pass; return how many lanes there were in each step."""
        seen = []
        for _ in range(round(seconds / step)):
            while self.concurrency.admits(self.now):
                self.set_lanes(self.lanes + 1)
            if self.concurrency.is_over:
                self.set_lanes(self.concurrency.limit)
            self.now += step
            self.cpu += step * self.share(self.lanes)
            if self.now >= self.luck_until:  # changes as slowly as a measurement takes
                self.luck, self.luck_until = self.dice.uniform(1 - self.noise, 1 + self.noise), self.now + 0.4
            self.jobs += step * self.rate(self.lanes) * self.luck
            while self.jobs >= 1:
                self.jobs -= 1
                self.concurrency.answered(self.now)
            seen.append(self.lanes)
        return seen

    def set_lanes(self, count: int) -> None:
        self.lanes = count
        self.concurrency.set_lanes(self.now, count)


def far(most: int = 8, per_lane: float = 14.0, **more: float) -> Link:
    """10 ms away: each lane does 14 files a second and leaves the processor idle."""
    return Link(lambda lanes: per_lane * lanes, lambda lanes: 0.01 * lanes, most, **more)  # type: ignore[arg-type]


def near(best: int = 2, **more: float) -> Link:
    """No latency: beyond `best` lanes each one more costs a tenth, and the processor is busy."""
    return Link(
        lambda lanes: 2000 * (lanes / best if lanes <= best else 0.9 ** (lanes - best)),
        lambda lanes: min(1.0, 0.5 * lanes),
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("per_lane", [14.0, 3.5, 0.5])
def test_with_latency_all_lanes_are_there_within_a_second(per_lane: float) -> None:
    """At 10 ms, 40 ms, and for large files: a step does not wait for enough jobs to be sure."""
    link = far(per_lane=per_lane)
    if per_lane < 1:
        link.concurrency.answered(link.now)  # the first file is done: till then there is only half of them
    assert link.run(1.0)[-1] == 8


def test_with_latency_they_stay_there() -> None:
    link = far(noise=0.9)
    link.run(1.0)
    assert set(link.run(120.0)) == {8}


def test_it_starts_small() -> None:
    link = far()
    assert link.run(0.1)[-1] == FIRST_LANES


def test_it_never_exceeds_its_most() -> None:
    assert max(far(most=5).run(10.0)) == 5
    assert max(far(most=1).run(10.0)) == 1


def test_without_latency_it_stays_small() -> None:
    """A busy process whose jobs take no time has nothing to wait for."""
    link = near(best=2, noise=0.25)
    assert set(link.run(100.0)[10:]) == {2}


def test_a_busy_process_whose_lanes_help_keeps_them() -> None:
    """Many lanes on a link with latency: busy, and twice as fast with twice as many."""
    link = Link(lambda lanes: 30.0 * lanes, lambda lanes: 0.02 * lanes, most=64)
    link.run(5.0)
    seen = link.run(100.0)
    done = sum(link.rate(lanes) for lanes in seen) / len(seen)
    assert done > 0.95 * link.rate(64)


def test_a_change_of_the_link_is_noticed() -> None:
    """The network is moved away while it holds two lanes: it takes all of them as soon as the processor idles."""
    link = near(best=2)
    link.run(60.0)
    link.rate, link.share = far().rate, far().share
    assert link.run(5.0)[-1] == 8


def test_servers_that_never_answered_get_half() -> None:
    """They may have fallen silent after the login: the other half is for those that share a server with them."""
    link = Link(lambda _: 0.0, lambda _: 0.0)
    assert link.run(60.0)[-1] == 4
    link.concurrency.answered(link.now)
    assert link.run(1.0)[-1] == 8


def test_transfers_that_break_cost_lanes_until_one_is_answered() -> None:
    """A server that stalls in every transfer has one lane to do so in."""
    link = Link(lambda _: 0.0, lambda _: 0.0)
    link.concurrency.answered(link.now)
    link.run(2.0)
    for expected in (4, 2, 1, 1):
        link.concurrency.failed()
        assert link.concurrency.limit == expected
    assert link.run(60.0)[-1] == 1
    link.concurrency.answered(link.now)
    assert link.run(1.5)[-1] == 8


def test_a_restart_begins_with_one_lane() -> None:
    link = far()
    link.run(2.0)
    link.concurrency.restart()
    seen = link.run(1.0)
    assert seen[0] == 1
    assert seen[-1] == 8
    assert seen == sorted(seen)


def test_a_queue_that_has_not_enough_jobs_grows_no_further() -> None:
    """Two lanes that come and go need no third."""
    link = Link(lambda _: 5.0, lambda _: 0.0)
    concurrency, now = link.concurrency, 100.0
    for _ in range(100):
        assert concurrency.admits(now)
        concurrency.set_lanes(now, 1)
        concurrency.set_lanes(now + 0.05, 0)
        concurrency.answered(now + 0.05)
        now += 0.1
    assert concurrency.limit == FIRST_LANES


def test_it_says_when_time_alone_may_bring_another_lane() -> None:
    """Whoever waits for a lane need not wait for the end of a job."""
    concurrency = ConcurrencyLimit(8, cpu=lambda: 0.0)
    for count in (1, 2):
        assert concurrency.admits(50.0)
        concurrency.set_lanes(50.0, count)
    assert not concurrency.admits(50.0)
    due = concurrency.due(50.0)
    assert not concurrency.admits(due - 0.01)
    assert concurrency.admits(due)
    concurrency.failed()
    assert concurrency.due(due) == math.inf


def test_who_waits_for_a_lane_never_spins() -> None:
    """Also while nothing changes."""
    link = near(best=2)
    for _ in range(300):
        link.run(0.05)
        assert link.concurrency.due(link.now) > link.now


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["idle", "busy"])
def test_what_is_due_is_never_in_the_past(share: float) -> None:
    """Whoever waits until then would wait no time at all, again and again."""
    cpu = [0.0]
    concurrency, now = ConcurrencyLimit(8, cpu=lambda: cpu[0]), 50.0
    concurrency.set_lanes(now, 2)
    for _ in range(400):
        now, cpu[0] = now + 0.01, cpu[0] + 0.01 * share
        concurrency.answered(now)
        concurrency.admits(now)
        assert concurrency.due(now) > now
