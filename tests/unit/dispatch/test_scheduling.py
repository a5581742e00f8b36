"""Lanes: those that are long at one job do not keep others from theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from test_dispatcher import Room, pairs, room, tasks_of
from test_dispatcher_rows import follow, row_of

import pretend
from etl.dispatch.scheduling import CONNECTING_LANES, LONG_SECONDS, SPARE_LANES
from etl.models.task import Task
from pretend import World

pytestmark = pytest.mark.unit

NAMES = dict.fromkeys("ABCDEFGHIJKLMNOPQRSTUVWX", 8)


def stall(r: Room, source: str, destination: str, first: int) -> list[Task]:
    """Let all jobs of a pair be taken that can, none of which ends."""
    r.offer(*tasks_of(source, destination, 20, first))
    return r.take_all()


def test_alone_there_are_as_many_lanes_as_the_setting_says() -> None:
    with room(workers=4) as r:
        assert len(stall(r, "A", "B", 0)) == 4
        r.clock.pass_(100.0)
        assert r.take() is None  # however long they take: more would be no others'


def test_two_pairs_share_the_lanes_and_a_newcomer_finds_one() -> None:
    with room(World(**NAMES), workers=4) as r:
        r.warm(*"ABCDEF")
        stall(r, "A", "B", 0)
        assert pairs(stall(r, "C", "D", 100)) == "CD"
        assert stall(r, "E", "F", 200) == []


@contextmanager
def connecting(r: Room, *silent: str) -> Iterator[int]:
    """Let jobs of pairs with silent servers be taken; yield how many connect there."""
    for number, pair in enumerate(silent):
        r.offer(*tasks_of(*pair.split("-"), 2, 10 * number))
    taken = list(iter(lambda: r.dispatcher.take(0.0), None))
    assert not any(lease.is_pair for _, lease in taken)
    yield len(taken)
    for task, lease in taken:
        lease.release(reusable=False)
        r.dispatcher.finish(task)


SILENT = [f"S{number}" for number in range(CONNECTING_LANES + 4)]
MANY = NAMES | dict.fromkeys(SILENT, 8)


@pytest.mark.parametrize(
    "silent",
    [
        [f"{name}-B" for name in SILENT],
        [f"{one}-{two}" for one, two in zip(SILENT, SILENT[1:] + SILENT[:1], strict=True)],
    ],
)
def test_lanes_that_connect_to_silent_servers_are_no_others_lanes(silent: list[str]) -> None:
    """Also where both servers of a pair are silent, and each is connected to for another pair."""
    with room(World(**MANY), workers=4) as r:
        r.warm("A", "B")
        with connecting(r, *silent) as count:
            assert count == CONNECTING_LANES
            assert pairs(stall(r, "A", "B", 1000)) == "AB AB AB AB"


TICK = 0.1  # seconds that every job of the two below takes


def part_of_the_second(r: Room, first: str, second: str) -> float:
    """Have a pair work for ten seconds alone, then for thirty beside another; return that one's part of the jobs."""
    lanes: list[Task] = []

    def work(seconds: float) -> Counter[str]:
        done: Counter[str] = Counter()
        for _ in range(round(seconds / TICK)):
            lanes.extend(r.take_all())
            r.clock.pass_(TICK)
            done.update(task.job.source.hostname for task in lanes)
            went_on = [(task, follow(r, task)) for task in lanes]
            lanes[:] = [following for _, following in went_on if following is not None]
            for task in (task for task, following in went_on if following is None):
                r.end(task)
        return done

    r.offer(*tasks_of(*first, 4000, 10_000))
    work(10.0)
    r.offer(*tasks_of(*second, 4000, 20_000))
    done = work(30.0)
    return done[second[0]] / done.total()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8])
def test_silent_partners_of_a_server_cost_its_other_pairs_no_lanes(count: int) -> None:
    """A lane that connects at one of them holds no session of their partner: B's share is for those that move files."""
    with room(World(**MANY), workers=8) as r:
        r.warm(*"BCDE")
        with connecting(r, *(f"{name}-B" for name in SILENT[:count])) as connects:
            assert connects == count
            assert part_of_the_second(r, "DE", "CB") >= 0.45


def test_a_silent_server_with_many_partners_leaves_half_of_the_lanes_to_others() -> None:
    """Its lanes are long at their jobs, and active no more: it must not get others for that reason."""
    partners = [f"P{number}" for number in range(8)]
    with room(World(**dict.fromkeys(["A", "D", "E", *partners], 64)), workers=8) as r:
        r.warm("A", "D", "E", *partners)
        r.offer(*tasks_of("D", "E", 8000, 10_000))
        for number, name in enumerate(partners):
            r.offer(*tasks_of("A", name, 20, 100 * number))
        lanes: list[Task] = []
        for _ in range(600):
            lanes += [task for task in r.take_all() if task.job.source.hostname == "D"]
            r.clock.pass_(TICK)
            for task in lanes[:]:
                lanes.remove(task)
                if (following := follow(r, task)) is None:
                    r.end(task)
                else:
                    lanes.append(following)
        assert len(lanes) >= 4


def test_a_server_that_is_met_first_is_reached_beside_silent_ones() -> None:
    with room(World(**NAMES), workers=4) as r, connecting(r, *(f"{name}-B" for name in "CDEFGHIJKLMN")):
        r.offer(*tasks_of("X", "W", 2, 1000))
        taken = r.dispatcher.take(0.0)
        assert taken is not None
        task, lease = taken
        assert (task.job.source.hostname, lease.is_pair) == ("X", False)
        lease.release(reusable=False)
        r.dispatcher.finish(task)


def test_no_row_ends_for_a_server_that_has_to_be_reached_first() -> None:
    """It would take none of the row's sessions."""
    with room(World(**MANY), workers=4) as r:
        r.warm("A", "B")
        with connecting(r, *(f"{name}-B" for name in SILENT)):
            r.offer(*tasks_of("A", "B", 100, 1000))
            row = row_of(r, r.must_take(), seconds=0.05)
            assert len(row) == 100
            r.end(row[-1])


def test_two_stalled_servers_each_alone_when_its_jobs_came_leave_lanes_to_a_third() -> None:
    """Each took all that it could get, and holds it until the stall limit."""
    with room(World(**NAMES), workers=4) as r:
        stall(r, "A", "B", 0)
        r.clock.pass_(LONG_SECONDS + 1)
        assert len(stall(r, "C", "D", 100)) == 4
        r.clock.pass_(LONG_SECONDS + 1)
        healthy = stall(r, "E", "F", 200)
        assert len(healthy) == 4
        r.end(healthy[0])
        assert r.must_take().job.source.hostname == "E"


def test_a_server_with_ten_minute_transfers_keeps_no_other_pair_of_its_partner_waiting() -> None:
    """B takes all that is sent to it slowly: A still has sessions, and lanes, for C."""
    with room(World(A=16, B=4, C=8), workers=4) as r:
        assert len(stall(r, "A", "B", 0)) == 4
        r.clock.pass_(LONG_SECONDS + 1)
        assert pairs(stall(r, "A", "C", 100)) == "AC AC AC AC"


def test_a_server_that_falls_silent_leaves_its_partner_a_session_for_others() -> None:
    """B may have all lanes and all of A's sessions but one, as A→C had a job a moment ago."""
    with room(World(A=8, B=8, C=8), workers=8) as r:
        r.warm("A", "B", "C")
        r.offer(pretend.task(0, "A", "C"))
        r.run()
        assert len(stall(r, "A", "B", 100)) == 7
        r.clock.pass_(LONG_SECONDS + 1)
        for number in range(5):
            r.offer(pretend.task(1000 + number, "A", "C"))
            assert r.run(seconds=10.0).job.destination.hostname == "C"
        r.clock.pass_(61.0)
        assert pairs(stall(r, "A", "B", 2000)) == "AB"


def test_the_spare_lanes_have_an_end() -> None:
    with room(World(**NAMES), workers=4) as r:
        names, count = list(NAMES), 0
        r.warm(*names)
        for number in range(12):
            count += len(stall(r, names[2 * number], names[2 * number + 1], 100 * number))
            r.clock.pass_(LONG_SECONDS + 1)
        assert count == 4 + SPARE_LANES


def test_when_the_long_jobs_end_the_lanes_beyond_the_setting_end_their_rows() -> None:
    """Whoever they belong to, until there are no more than before."""
    with room(World(**NAMES), workers=4) as r:
        lanes = stall(r, "A", "B", 0)
        r.clock.pass_(LONG_SECONDS + 1)
        lanes += stall(r, "C", "D", 100)
        going_on = []
        for task in lanes:
            if (following := r.dispatcher.another(task)) is None:
                r.end(task)
            else:
                r.leases[following] = r.leases.pop(task)
                r.dispatcher.finish(task)
                going_on.append(following)
        assert len(going_on) < len(lanes)
        r.take_all()
        assert len(r.leases) <= 6


def test_long_lanes_load_a_server_up_to_half_of_all() -> None:
    with room(World(A=8, B=8, C=8), workers=8) as r:
        r.warm("A", "B", "C")
        r.offer(pretend.task(0, "A", "B"))
        r.must_take()
        r.clock.pass_(LONG_SECONDS + 1)
        r.offer(pretend.task(1, "A", "C"))
        r.must_take()
        budget, servers = r.dispatcher._scheduler._budget, r.dispatcher._servers
        a, b, c = (servers[r.pools.key(r.pools.server(name))] for name in "ABC")
        load = budget.load(r.clock())
        assert [load.of(server) for server in (a, b, c)] == [2, 1, 1]
        assert load.lanes == 1
        full = budget.half
        budget.half = 1
        assert [budget.load(r.clock()).of(server) for server in (a, b, c)] == [1, 1, 1]
        budget.half = full
        assert len(budget._at_work) == 2
