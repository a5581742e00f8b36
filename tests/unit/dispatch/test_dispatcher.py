"""The dispatcher: turns, shares, priorities, order by destination, and for whose jobs there is room."""

import itertools
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import structlog.testing

import pretend
import stack
from etl import errors
from etl.dispatch.backlog import Backlog
from etl.dispatch.dispatcher import Dispatcher
from etl.dispatch.dispatcher import Room as Space
from etl.dispatch.overflow import DOWN_KEEPS
from etl.models.task import Task
from etl.sessions.lease import Lease
from etl.sessions.pools import Pools
from pretend import Clock, World

pytestmark = pytest.mark.unit

DOWN = errors.ServerUnavailable("refused")


class Room:
    """A dispatcher with its pools, a clock, and the leases of what runs."""

    def __init__(self, world: World, first_lanes: int = 1000, **settings: object) -> None:
        self.world = world
        self.clock = Clock()
        self.settings = pretend.settings(**settings)
        self.pools = Pools(world.config, self.settings, self.clock, world.create)
        self.dispatcher = Dispatcher(self.pools, self.settings, self.clock, lambda: 0.5, first_lanes)
        self.leases: dict[Task, Lease] = {}

    def warm(self, *names: str) -> None:
        """Have a session open with each of these servers."""
        for name in names:
            lease = self.pools.reserve(self.pools.server(name))
            assert isinstance(lease, Lease)
            lease.open()
            lease.release(reusable=True)

    def offer(self, *tasks: Task) -> None:
        for task in tasks:
            self.dispatcher.offer(task)

    def take(self) -> Task | None:
        taken = self.dispatcher.take(0.0)
        if taken is None:
            return None
        task, lease = taken
        lease.open()
        self.leases[task] = lease
        return task

    def must_take(self) -> Task:
        task = self.take()
        assert task is not None
        return task

    def take_all(self) -> list[Task]:
        return list(iter(self.take, None))

    def end(self, task: Task, *, later: float | None = None) -> None:
        self.leases.pop(task).release(reusable=True)
        self.dispatcher.finish(task, later)

    def breaker_wait(self, name: str) -> float:
        """Return for how many seconds nobody tries a server."""
        reports = self.dispatcher.servers()
        return reports[name].next_probe_seconds if name in reports else 0.0

    def refuse(self, task: Task, name: str, error: BaseException = DOWN) -> None:
        """End a run as an outage of a server does: its sessions are gone, the job waits."""
        self.leases.pop(task).release(reusable=False)
        self.dispatcher.failed(name, error, task)
        self.dispatcher.finish(task, 60.0)

    def run(self, seconds: float = 0.0) -> Task:
        task = self.take()
        assert task is not None
        self.clock.pass_(seconds)
        self.end(task)
        return task


@contextmanager
def room(world: World | None = None, **settings: object) -> Iterator[Room]:
    made = Room(world or World(A=8, B=8, C=8, D=8), **settings)
    yield made
    for task in list(made.leases):
        made.end(task)
    made.dispatcher.stop()
    assert made.pools.close()


def tasks_of(source: str, destination: str, count: int, first: int = 0, **more: object) -> list[Task]:
    return [pretend.task(first + number, source, destination, **more) for number in range(count)]  # type: ignore[arg-type]


def pairs(tasks: list[Task]) -> str:
    return " ".join(task.job.source.hostname + task.job.destination.hostname for task in tasks)


# --- turns and priorities


def test_nothing_to_do_is_none_at_once() -> None:
    with room() as r:
        assert r.take() is None


def test_a_job_is_taken_once() -> None:
    with room() as r:
        task = pretend.task()
        r.offer(task)
        assert r.take_all() == [task]
        r.end(task)
        assert r.take_all() == []
        assert r.dispatcher.unfinished == (0, 0)


def test_queues_are_served_in_turn() -> None:
    with room() as r:
        r.offer(*tasks_of("A", "B", 3), *tasks_of("C", "D", 2, 10))
        order = [r.run() for _ in range(5)]
        assert pairs(order) == "AB CD AB CD AB"


def test_within_a_queue_priority_goes_before_age() -> None:
    with room() as r:
        low, normal, high = (pretend.task(n, priority=p) for n, p in enumerate(("low", "normal", "high")))
        second = pretend.task(9, priority="high")
        r.offer(low, normal, high, second)
        assert [r.run() for _ in range(4)] == [high, second, normal, low]


def test_an_unknown_server_is_refused_at_the_door() -> None:
    world = World(A=1)

    def lookup(name: str) -> object:
        raise errors.UnknownServer(name)

    world.config = lookup  # type: ignore[method-assign,assignment]  # a lookup that knows nobody
    with room(world) as r:
        with pytest.raises(errors.UnknownServer):
            r.offer(pretend.task())
        assert r.dispatcher.unfinished == (0, 0)


# --- shares


def test_alone_a_server_may_have_all_lanes() -> None:
    with room(workers=8) as r:
        r.offer(*tasks_of("A", "B", 10))
        for task in (first := [r.take() for _ in range(4)]):
            assert task is not None
        assert len(first) + len(r.take_all()) == 8


def test_one_server_has_at_most_half_of_the_lanes_while_others_wait() -> None:
    with room(workers=8) as r:
        r.offer(*tasks_of("A", "B", 8), *tasks_of("C", "D", 8, 10))
        assert sorted(pairs([r.must_take() for _ in range(8)]).split()) == ["AB"] * 4 + ["CD"] * 4


def test_a_common_server_counts_for_both_its_queues() -> None:
    with room(World(A=8, B=8, C=8, D=8, E=8), workers=4) as r:
        r.warm(*"ABCDE")
        r.offer(*tasks_of("A", "B", 4), *tasks_of("A", "C", 4, 10), *tasks_of("D", "E", 4, 20))
        taken = pairs([r.must_take() for _ in range(4)])
        assert taken.count("A") == taken.count("DE") == 2


def test_a_full_server_does_not_hold_lanes_free_for_itself() -> None:
    """C has one connection: its queue cannot use the other lanes, so A may have more than half."""
    with room(World(A=8, B=8, C=1, D=8), workers=8) as r:
        r.offer(*tasks_of("C", "D", 8), *tasks_of("A", "B", 8, 10))
        assert pairs(r.take_all()).count("AB") >= 7


def test_lanes_are_kept_for_a_queue_whose_connects_are_under_way() -> None:
    with room(World(A=16, B=16, C=16, D=16), workers=16) as r:
        r.warm("A", "B", "C", "D")
        r.offer(*tasks_of("A", "B", 16), *tasks_of("C", "D", 16, 20))
        warm = [r.must_take() for _ in range(2)]
        assert pairs(warm) == "AB CD"
        dialing = [r.dispatcher.take(0.0) for _ in range(20)]  # connects begun, none of them done
        running = [taken for taken in dialing if taken is not None]
        names = pairs([task for task, _ in running])
        assert names.count("AB") == names.count("CD") == 4
        for task, lease in running:
            lease.release(reusable=True)
            r.dispatcher.finish(task)


def test_a_server_is_reached_by_itself_before_its_partner_lends_a_session() -> None:
    """It may say nothing until the login's limit: no place at a good server waits for that."""
    with room(World(A=1, B=1, C=1)) as r:
        r.warm("A", "B")
        r.offer(*tasks_of("A", "C", 2), *tasks_of("A", "B", 2, 10))
        task, lease = _taken(r.dispatcher)
        assert (lease.servers, lease.is_pair) == (("C",), False)
        assert pairs(r.take_all()) == "AB"
        lease.open()
        lease.release(reusable=True)
        r.dispatcher.finish(task, 0.0)
        r.end(*r.leases)
        again, lease = _taken(r.dispatcher)
        assert (again, lease.servers) == (task, ("A", "C"))
        lease.release(reusable=True)
        r.dispatcher.finish(task)


def test_no_lane_is_kept_for_a_connect_and_once_it_is_through_its_pair_gets_half() -> None:
    """Lanes end their leases for whoever has fewer by two: no lane need be idle meanwhile."""
    with room(World(A=8, B=8, C=8, D=8), workers=4) as r:
        r.warm("A", "B", "D")
        r.offer(*tasks_of("C", "D", 8, 20), *tasks_of("A", "B", 100, 100))
        connecting, lease = _taken(r.dispatcher)
        assert lease.servers == ("C",)
        lanes = r.take_all()
        assert pairs(lanes) == "AB AB AB AB"
        lease.open()
        lease.release(reusable=True)
        r.dispatcher.finish(connecting)
        assert pairs(r.take_all()) == "CD"  # beyond ETL_WORKERS: one lane is kept for a server that has none
        for task in lanes[:2]:
            assert r.dispatcher.another(task) is None
            r.end(task)
            r.take_all()
            r.clock.pass_(0.6)
        assert sorted(pairs(list(r.leases)).split()) == ["AB", "AB", "CD", "CD"]


def test_a_queue_whose_two_servers_are_never_free_at_once_is_served_all_the_same() -> None:
    """A and B have one session each; A→C and D→B use them by turns, so that A→B never finds both free by itself."""
    with room(World(A=1, B=1, C=8, D=8), workers=8) as r:
        r.offer(*tasks_of("A", "C", 200), *tasks_of("D", "B", 200, 1000))
        running = [r.must_take(), r.must_take()]
        r.offer(pretend.task(9999, "A", "B"))
        passed_over_by = 0
        for _ in range(100):
            r.clock.pass_(0.1)
            r.end(running.pop(0))
            taken = r.take_all()
            if "AB" in pairs(taken):
                break
            running += taken
            passed_over_by += len(taken)
        assert passed_over_by < 40
        running += taken


def test_no_place_is_kept_for_long_for_a_queue_whose_other_server_is_stuck() -> None:
    with room(World(A=1, B=1, C=8, D=8), workers=8) as r:
        r.offer(*tasks_of("A", "C", 200), *tasks_of("D", "B", 200, 1000))
        at_a, at_b = r.must_take(), r.must_take()
        r.offer(pretend.task(9999, "A", "B"))
        for _ in range(9):  # both move, and A→B is refused
            r.clock.pass_(0.12)
            r.end(at_a)
            at_a = r.must_take()
            r.end(at_b)
            at_b = r.must_take()
        r.end(at_a)
        at_a = r.must_take()
        r.clock.pass_(0.2)
        r.end(at_b)  # from now on A is stuck: B is kept free for A→B, but not for long
        assert pairs([at_a]) == "AC"
        waited = 0.0
        while (task := r.take()) is None:
            r.clock.pass_(0.5)
            waited += 0.5
            assert waited <= 3.0
        assert pairs([task]) == "DB"
        assert waited > 1.0


# --- order by destination


def test_a_job_waits_for_the_one_that_writes_its_destination() -> None:
    with room() as r:
        first, second, third = (pretend.task(n, path="/out/same") for n in range(3))
        r.offer(first, second, third)
        assert r.take_all() == [first]
        r.end(first)
        assert r.take_all() == [second]
        r.end(second)
        assert r.take_all() == [third]


def test_the_same_file_written_from_elsewhere_or_more_urgently_waits_too() -> None:
    with room() as r:
        first = pretend.task(0, "A", "B", "/out/./x/../same", priority="low")
        urgent = pretend.task(1, "C", "B", "/out/same", priority="high")
        r.offer(first, urgent)
        assert r.take_all() == [first]
        r.end(first)
        assert r.take_all() == [urgent]


def test_the_same_path_on_another_server_is_another_file() -> None:
    with room() as r:
        r.offer(pretend.task(0, "A", "B", "/same"), pretend.task(1, "A", "C", "/same"))
        assert len(r.take_all()) == 2


def test_names_of_one_server_and_their_base_paths_are_looked_through() -> None:
    world = World(A=8, B=8)
    world.configs["SUB"] = pretend.server("SUB", host="b", base_path="/out")
    with room(world) as r:
        r.offer(pretend.task(0, "A", "B", "/out/x"), pretend.task(1, "A", "SUB", "/x"))
        assert len(r.take_all()) == 1


def test_a_back_off_keeps_the_place_and_later_ones_wait() -> None:
    with room() as r:
        first, second = (pretend.task(n, path="/out/same") for n in range(2))
        r.offer(first, second)
        r.end(r.must_take(), later=2.0)
        assert r.take() is None
        assert r.dispatcher.unfinished == (2, 200)
        r.clock.pass_(2.0)
        assert r.take_all() == [first]
        r.end(first)
        assert r.take_all() == [second]


def test_a_job_offered_with_a_delay_waits_for_it() -> None:
    with room() as r:
        task = pretend.task()
        r.dispatcher.offer(task, 3.0)
        r.clock.pass_(2.9)
        assert r.take() is None
        r.clock.pass_(0.1)
        assert r.take_all() == [task]


def test_the_end_of_a_run_says_nothing_of_a_job_that_does_not_run() -> None:
    with room() as r:
        task = pretend.task()
        r.offer(task)
        r.dispatcher.finish(task, 100.0)
        assert r.run() is task
        r.dispatcher.finish(task, 100.0)
        assert r.dispatcher.unfinished == (0, 0)


# --- outages


def test_an_outage_closes_the_server_for_a_while_then_one_probe_goes() -> None:
    with room() as r:
        r.offer(*tasks_of("A", "B", 3), *tasks_of("C", "D", 1, 10))
        r.refuse(r.must_take(), "B")
        assert pairs(r.take_all()) == "CD"
        assert r.breaker_wait("B") == 1.0
        r.clock.pass_(1.0)
        assert pairs(r.take_all()) == "AB"


def test_a_server_that_is_back_gets_its_lanes_back_a_few_at_a_time() -> None:
    with room() as r:
        r.offer(*tasks_of("A", "B", 20))
        r.refuse(r.must_take(), "B")
        r.clock.pass_(1.0)
        running = [r.must_take()]
        assert r.take() is None
        r.dispatcher.worked("B")
        for lanes in (1, 2, 4, 8):
            running += r.take_all()
            assert len(running) == lanes
            r.dispatcher.answered(running[0])
            r.clock.pass_(0.25)


def test_a_probe_that_says_nothing_of_the_server_is_followed_by_another() -> None:
    with room() as r:
        r.offer(*tasks_of("A", "B", 3))
        r.refuse(r.must_take(), "B")
        r.clock.pass_(1.0)
        r.end(r.must_take())  # it failed at its source, say
        assert r.take() is not None


def test_a_lane_that_connects_to_its_partner_is_no_probe_of_a_server() -> None:
    """A is silent and B is up again: what is learnt at A says nothing of B, and may take as long as a login may."""
    with room() as r:
        r.dispatcher.failed("A", DOWN)
        r.dispatcher.failed("B", DOWN)
        r.clock.pass_(60.0)
        r.offer(pretend.task(0, "A", "B"))
        taken = r.dispatcher.take(0.0)
        assert taken is not None
        connect, lease = taken
        assert lease.servers == ("A",)
        assert {name: report.lanes for name, report in r.dispatcher.servers().items()} == {"A": 1, "B": 0}
        r.offer(pretend.task(1, "C", "B"))
        assert pairs([r.must_take()]) == "CB"
        lease.release(reusable=False)
        r.dispatcher.finish(connect)


def test_a_failing_server_has_one_lane() -> None:
    """A connect that is still under way there is its one lane: no probe beside it."""
    with room() as r:
        r.warm("A")
        r.offer(*tasks_of("A", "B", 4))
        dialing, lease = _taken(r.dispatcher)
        assert lease.servers == ("B",)
        r.dispatcher.failed("B", DOWN)
        r.clock.pass_(10.0)
        assert r.take() is None
        lease.release(reusable=False)
        r.dispatcher.finish(dialing, 60.0)
        assert r.take() is not None


def test_a_refusal_while_sessions_are_open_is_no_outage() -> None:
    """Whatever was refused, the server is there: it gets no more lanes for a while, and the others go on."""
    for error in (DOWN, errors.ServerBusy("421"), errors.AuthenticationFailed("530")):
        with room() as r:
            r.warm("A", "B")
            r.offer(*tasks_of("A", "B", 2))
            r.must_take()
            r.dispatcher.failed("B", error)
            assert r.breaker_wait("B") == 0.0


@pytest.mark.parametrize("error", [errors.FileMissing("gone"), errors.ConnectionLost("reset"), ValueError()])
def test_other_errors_say_nothing_about_the_server(error: Exception) -> None:
    with room() as r:
        r.dispatcher.failed("B", error)
        assert r.breaker_wait("B") == 0.0


def test_an_outage_is_said_once_and_its_end() -> None:
    """At a level that is shown where little is; the jobs that wait for it are no news."""
    with room() as r, structlog.testing.capture_logs() as said:
        r.dispatcher.worked("B")
        for _ in range(3):
            r.dispatcher.failed("B", DOWN)
            r.clock.pass_(10.0)
        r.dispatcher.worked("B")
        r.dispatcher.worked("B")
    lines = [(line["log_level"], line["event"], line["server"]) for line in said]
    assert lines == [("warning", "server is down", "B"), ("info", "server is back", "B")]
    assert (said[0]["error"], said[1]["down_seconds"]) == (str(DOWN), 30.0)


def test_too_many_connections_is_an_outage_only_when_none_of_ours_is_open() -> None:
    busy = errors.ServerBusy("421")
    with room() as r:
        r.warm("A", "B")
        r.offer(*tasks_of("A", "B", 2))
        running = r.must_take()
        r.dispatcher.failed("B", busy)
        assert r.breaker_wait("B") == 0.0
        r.leases[running].release(reusable=False)
        r.dispatcher.failed("B", busy)
        assert r.breaker_wait("B") == 1.0


def test_beyond_a_few_the_jobs_of_a_server_that_is_down_are_handed_out() -> None:
    with room(window_records=1000) as r:
        jobs = tasks_of("A", "B", DOWN_KEEPS + 3)
        others = tasks_of("C", "D", 20, 100)
        r.offer(*jobs, *others)
        assert r.dispatcher.overflow() == []
        r.dispatcher.failed("B", DOWN)
        assert r.dispatcher.overflow() == [(task, 60.0, DOWN) for task in reversed(jobs[DOWN_KEEPS:])]
        assert r.dispatcher.overflow() == []
        assert r.dispatcher.unfinished[0] == DOWN_KEEPS + 20


def test_many_servers_that_are_down_do_not_keep_the_window() -> None:
    """A few jobs of each would fill it, and no others came in for as long as they are down; each keeps its probe."""
    names = {f"D{number}": 8 for number in range(40)}
    with room(World(A=8, **names), window_records=100) as r:
        for number, name in enumerate(names):
            r.dispatcher.failed(name, DOWN)
            r.offer(*tasks_of("A", name, 10, 100 * number))
        r.dispatcher.overflow()
        assert r.dispatcher.unfinished[0] == 40
        assert not r.dispatcher.full
        assert r.dispatcher.room(("A", "D7")) is Space.DOWN


def test_the_longer_an_outage_the_longer_its_jobs_are_deferred() -> None:
    """Longer than it has lasted, in whole tiers, up to an hour; then it begins anew."""
    with room() as r:
        probes = tasks_of("A", "B", DOWN_KEEPS)
        for task in probes:
            task.recallable = True
        r.offer(*probes)
        waits = []
        for age in (0, 59, 60, 599, 600, 3599, 3600, 100_000):
            r.clock.now = 1000.0 + age
            r.dispatcher.failed("B", DOWN)
            r.offer(pretend.task(100 + age))
            ((_, seconds, outage),) = r.dispatcher.overflow()
            assert outage is DOWN
            waits.append(seconds)
        assert waits == [60.0, 60.0, 600.0, 600.0, 3600.0, 3600.0, 3600.0, 3600.0]
        r.dispatcher.worked("B")
        r.dispatcher.failed("B", DOWN)
        r.offer(pretend.task(200_000))
        assert r.dispatcher.overflow()[0].seconds == 60.0


def test_jobs_that_hold_the_lag_of_their_topic_do_not_stay_for_long() -> None:
    """After ten seconds those that stay were deferred before; any may stay that could be the probe now."""
    with room() as r:
        r.dispatcher.failed("B", DOWN)
        jobs = tasks_of("A", "B", DOWN_KEEPS)
        r.offer(*jobs)
        assert r.dispatcher.overflow() == []
        r.clock.pass_(10.0)
        assert r.dispatcher.overflow() == []
        r.dispatcher.failed("B", DOWN)
        deferred = [task for task, _, _ in r.dispatcher.overflow()]
        assert deferred == list(reversed(jobs))
        for task in deferred:
            task.recallable = True
        r.offer(*deferred)
        assert r.dispatcher.overflow() == []
        assert space(r, "A", "B") is Space.DOWN


def test_it_is_known_before_whether_a_job_would_be_deferred() -> None:
    """Not the first few: they are probes. And not where both servers are well, or a name is nobody's any more."""
    with room() as r:
        r.dispatcher.failed("B", DOWN)
        r.offer(*tasks_of("A", "B", DOWN_KEEPS - 1))
        assert r.dispatcher.room(("A", "B")) is Space.PROBE
        r.offer(pretend.task(100))
        assert r.dispatcher.room(("A", "B")) is Space.DOWN
        assert r.dispatcher.room(("B", "C")) is Space.DOWN
        assert r.dispatcher.room(("A", "C")) is Space.SCARCE
        r.pools.server = _unknown  # type: ignore[method-assign,assignment]
        assert r.dispatcher.room(("A", "GONE")) is Space.FREE


def _unknown(name: str) -> object:
    raise errors.UnknownServer(name)


def test_a_refused_login_keeps_its_server_closed_for_a_minute_then_longer() -> None:
    """Ten thousand jobs wait for it: seven logins in the first hour, not seven in the first minute."""
    world = World(A=8, B=8)
    world["B"].refusal = errors.AuthenticationFailed("530", server="B")
    with room(world) as r:
        r.warm("A")
        for number in range(40):
            r.dispatcher.offer(pretend.task(number))
        tries: list[float] = []
        while r.clock() < 1000.0 + 3600:
            taken = r.dispatcher.take(0.0)
            if taken is not None:
                task, lease = taken
                tries.append(r.clock() - 1000.0)
                with pytest.raises(errors.AuthenticationFailed) as caught:
                    lease.open()
                r.dispatcher.failed("B", caught.value, task)
                r.dispatcher.finish(task, 1.0)
            r.clock.pass_(0.5)
        assert len(tries) in {6, 7}
        assert tries[1] >= 48


def test_a_handed_out_job_frees_its_place_for_its_followers() -> None:
    with room() as r:
        jobs = tasks_of("A", "B", DOWN_KEEPS)
        leader = pretend.task(50, "A", "B", "/out/same", priority="low")
        follower = pretend.task(51, "A", "B", "/out/same", priority="high")
        r.offer(*jobs, leader, follower)
        r.dispatcher.failed("B", DOWN)
        handed = [task for task, _, _ in r.dispatcher.overflow()]
        assert handed[0] is leader
        assert follower not in handed
        r.dispatcher.worked("B")
        assert r.take() is follower


# --- shares of the window


def space(r: Room, source: str, destination: str) -> Space:
    return r.dispatcher.room((source, destination))


def test_a_pair_alone_has_room_for_half_of_the_window() -> None:
    """As much is left for one that comes. It has room again when a half of what is left then would be too much."""
    with room(window_records=100) as r:
        r.offer(*tasks_of("A", "B", 49))
        assert space(r, "A", "B") is Space.FREE
        r.offer(pretend.task(50))
        assert space(r, "A", "B") is Space.CROWDED
        for left in range(49, 33, -1):
            r.run(seconds=0.1)
            assert space(r, "A", "B") is Space.CROWDED, left
        r.run(seconds=0.1)
        assert space(r, "A", "B") is Space.FREE


def test_each_pair_that_comes_finds_as_much_room_as_the_others_have() -> None:
    with room(World(A=8, **{f"D{number}": 8 for number in range(9)}), window_records=1000) as r:
        for number in range(9):
            name, numbers = f"D{number}", itertools.count(1000 * number)
            while space(r, "A", name) is not Space.CROWDED:
                r.offer(pretend.task(next(numbers), "A", name))
            assert r.dispatcher.unfinished[0] == 1000 - 500 // 2**number or number
        assert not r.dispatcher.full
        assert space(r, "A", "D0") is Space.CROWDED


def test_a_pair_with_few_jobs_is_scarce_until_it_has_most_of_its_share() -> None:
    """Jobs of others make way for a good number of its own at once, not for each one by itself."""
    with room(World(A=8, B=8, C=8), window_records=150) as r:
        r.offer(*tasks_of("A", "C", 50, 1000))
        assert space(r, "A", "B") is Space.SCARCE
        r.offer(*tasks_of("A", "B", 40))
        assert space(r, "A", "B") is Space.SCARCE
        r.offer(*tasks_of("A", "B", 5, 100))
        assert space(r, "A", "B") is Space.FREE
        for task in tasks_of("A", "B", 45):
            r.dispatcher.drop(lambda one, number=task.job.job_id: one.job.job_id == number)  # type: ignore[misc]
            if space(r, "A", "B") is not Space.FREE:
                break
        assert space(r, "A", "B") is Space.SCARCE
        assert r.dispatcher.unfinished[0] - 50 == 19


def test_the_window_in_bytes_is_shared_as_well() -> None:
    with room(window_records=1000, window_bytes=4000) as r:
        r.offer(*tasks_of("A", "B", 19, size_bytes=100))
        assert space(r, "A", "B") is Space.FREE
        r.offer(*tasks_of("A", "B", 1, 100, size_bytes=100))
        assert space(r, "A", "B") is Space.CROWDED
        assert space(r, "A", "C") is Space.SCARCE


def test_one_job_larger_than_the_window_finds_room() -> None:
    with room(window_records=1, window_bytes=10) as r:
        assert space(r, "A", "B") is Space.SCARCE
        r.offer(*tasks_of("A", "B", 1, size_bytes=1000))
        assert space(r, "A", "B") is Space.CROWDED
        r.run(seconds=0.1)
        assert space(r, "A", "B") is Space.SCARCE


def test_jobs_of_a_slow_pair_are_never_taken_out() -> None:
    """They wait here, and those beyond them in their topic, where other processes can get them."""
    with room(window_records=100) as r:
        r.offer(*tasks_of("A", "B", 90))
        for _ in range(10):
            r.run(seconds=10.0)
            assert r.dispatcher.overflow() == []


# --- taken away, and the end


def test_drop_forgets_what_waits_and_promotes_who_follows() -> None:
    with room() as r:
        running, gone, stays = (pretend.task(n, path="/out/same") for n in range(3))
        ready, delayed = pretend.task(10), pretend.task(11)
        r.offer(running, gone, stays, ready)
        r.dispatcher.offer(delayed, 5.0)
        assert r.take() is running
        dropped = r.dispatcher.drop(lambda task: task is not stays)
        assert sorted(dropped, key=id) == sorted([gone, ready, delayed], key=id)
        assert r.dispatcher.unfinished == (2, 200)
        assert r.take() is None
        r.end(running, later=1.0)  # it was dropped while it ran: it does not come back
        assert r.take() is stays
        r.clock.pass_(10.0)
        assert r.take() is None


def test_the_window_counts_what_waits_is_delayed_and_runs() -> None:
    with room(window_records=4, window_bytes=1000) as r:
        r.offer(*tasks_of("A", "B", 3))
        r.dispatcher.offer(pretend.task(50), 5.0)
        r.take()
        assert r.dispatcher.unfinished == (4, 400)
        assert r.dispatcher.full
        assert sum(queue.running for queue in r.dispatcher._queues.values()) == 1
        r.end(next(iter(r.leases)))
        assert not r.dispatcher.full
        r.offer(pretend.task(60, size_bytes=700))
        assert r.dispatcher.full


def test_stop_wakes_those_who_wait_and_hands_out_nothing_more() -> None:
    with room() as r:
        answers: list[object] = []
        waiting = threading.Thread(target=lambda: answers.append(r.dispatcher.take(30.0)), name="taker")
        waiting.start()
        r.dispatcher.stop()
        waiting.join(5)
        assert answers == [None]
        r.offer(pretend.task())
        assert r.take() is None


def _taken(dispatcher: Dispatcher) -> tuple[Task, Lease]:
    taken = dispatcher.take(0.0)
    assert taken is not None
    return taken


def _reserved(pools: Pools) -> Lease:
    lease = pools.reserve(pools.server("A"))
    assert isinstance(lease, Lease)
    return lease


def _require_taken(task: Task, dispatcher: Dispatcher, pools: Pools, act: Callable[[], object]) -> None:
    """Have a lane wait while something is done, and get the job; then everything ends."""
    taken: list[object] = []
    taker = threading.Thread(target=lambda: taken.append(dispatcher.take(60.0)), name="taker")
    taker.start()
    act()
    taker.join(10)
    got, lease = taken[0]  # type: ignore[misc]  # None fails the test here
    assert got is task
    lease.release(reusable=True)
    dispatcher.finish(task)
    assert pools.close()


@pytest.mark.parametrize("event", ["offer", "finish", "release", "due", "reopening"])
def test_take_wakes_when_something_becomes_possible(event: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Woken by the event: the clock alone would have it sleep through the test."""
    monkeypatch.setattr("etl.dispatch.dispatcher.LONGEST_PAUSE", 60.0)
    world = World(A=1, B=1)
    settings = pretend.settings(retry_backoff_seconds=0.05)
    pools = Pools(world.config, settings, create=world.create)
    dispatcher = Dispatcher(pools, settings)
    task = pretend.task(1, path="/same")
    act = lambda: None  # noqa: E731 - replaced below
    if event == "offer":
        act = lambda: dispatcher.offer(task)  # noqa: E731
    elif event == "finish":
        first = pretend.task(0, path="/same")
        dispatcher.offer(first)
        _, lease = _taken(dispatcher)
        lease.release(reusable=True)
        dispatcher.offer(task)
        act = lambda: dispatcher.finish(first)  # noqa: E731
    elif event == "release":
        lease = _reserved(pools)
        dispatcher.offer(task)
        act = lambda: lease.release(reusable=True)  # noqa: E731
    elif event == "due":
        dispatcher.offer(task, 0.05)
    else:
        dispatcher.offer(task)
        dispatcher.failed("B", DOWN)
    _require_taken(task, dispatcher, pools, act)


def test_a_lane_that_ends_its_watch_leaves_it_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else would look when the job is due: the other one would sleep through the test."""
    monkeypatch.setattr("etl.dispatch.dispatcher.LONGEST_PAUSE", 60.0)
    world = World(A=1, B=1)
    settings = pretend.settings()
    pools = Pools(world.config, settings, create=world.create)
    dispatcher = Dispatcher(pools, settings)
    dispatcher.offer(task := pretend.task(1), 1.5)
    watcher = threading.Thread(target=lambda: dispatcher.take(0.1), name="watcher")
    watcher.start()
    stack.wait_until(lambda: dispatcher._watched_until < math.inf, 5, "nobody watches")
    _require_taken(task, dispatcher, pools, lambda: watcher.join(5))


@pytest.mark.parametrize("is_paused", [False, True])
def test_one_lane_looks_for_all_that_wait_until_time_alone_makes_a_job_possible(
    *, is_paused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pair has as many lanes as it is worth, which may change ten times a second; a pause looks at nothing."""
    looks, promote = itertools.count(), Backlog.promote
    with room(World(A=8, B=8), first_lanes=1) as r:
        r.warm("A", "B")
        r.offer(*(pretend.task(number) for number in range(8)))
        assert len(r.take_all()) == 1
        monkeypatch.setattr(Backlog, "promote", lambda *given: (next(looks), promote(*given)))
        r.dispatcher.pause(paused=is_paused)
        lanes = [threading.Thread(target=r.dispatcher.take, args=(0.5,), name=f"lane-{n}") for n in range(8)]
        began = time.monotonic()
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join(10)
        by_time = 0 if is_paused else 8 + 10 * (time.monotonic() - began)  # the last one wakes the next that waits
        assert next(looks) <= 8 * 2 + by_time


def test_a_decision_takes_no_longer_with_thousands_of_jobs_in_hundreds_of_queues() -> None:
    """Told by what is called for it, once all servers are known: as much as with few jobs between three servers."""

    def most_calls(servers: int, jobs: int) -> int:
        calls: list[int] = []
        with room(World(**{f"S{number}": 2 for number in range(servers)}), workers=8, window_records=100_000) as r:
            for number in range(jobs):
                r.dispatcher.offer(pretend.task(number, f"S{number % servers}", f"S{(number * 7 + 1) % servers}"))
            for _ in range(jobs // 6):
                calls.append(0)
                sys.setprofile(lambda _frame, event, _: calls.append(calls.pop() + event.endswith("call")))
                r.run()
                sys.setprofile(None)
        return max(calls)

    assert most_calls(300, 6000) <= 1.2 * most_calls(3, 36)


def test_what_is_going_on_can_be_read_from_its_repr() -> None:
    with room() as r:
        r.warm("A", "B")
        r.offer(*tasks_of("A", "B", 3))
        r.dispatcher.failed("C", DOWN)
        lease = r.leases[r.must_take()]
        told = repr(r.dispatcher)
        assert "jobs=3 down=1" in told
        assert "at_work=1 connecting=0" in told
        assert "A to B lanes=1 running=1 ready=2 waiting=2" in told
        assert repr(lease) == "<Lease A to B open reusable=(True, True)>"
        assert "leases=1" in repr(r.pools)
        assert "<Pool A limit=8 shrunk_to=None open=1 idle=0 taken=1 connecting=0 orphans=0>" in repr(r.pools)
        servers = {server.config.hostname: repr(server) for server in r.dispatcher._servers.values()}
        assert servers["A"] == "<Server A lanes=1 deferred=0 <Breaker closed>>"
        assert servers["C"].endswith("<Breaker open until 1001.0, 1 failures>>")
