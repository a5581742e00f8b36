"""Rows: a lane goes on with its sessions, and takes turns all the same."""

from __future__ import annotations

import pytest
from test_dispatcher import DOWN, Room, room, tasks_of

import pretend
from etl import errors
from etl.models.task import Task
from pretend import World

pytestmark = pytest.mark.unit


def follow(r: Room, last: Task) -> Task | None:
    """Take one more job for the sessions of `last`."""
    task = r.dispatcher.another(last)
    if task is not None:
        r.leases[task] = r.leases.pop(last)
        r.dispatcher.finish(last)
    return task


def row_of(r: Room, task: Task, limit: int = 1000, seconds: float = 0.0) -> list[Task]:
    """Go on with a lane for as long as it may."""
    row = [task]
    while len(row) < limit and (following := follow(r, row[-1])) is not None:
        row.append(following)
        r.clock.pass_(seconds)
    return row


def running(r: Room) -> int:
    return sum(queue.running for queue in r.dispatcher._queues.values())


def test_a_row_takes_the_jobs_of_its_pair_in_the_order_of_service() -> None:
    with room() as r:
        low, normal, high = (pretend.task(n, priority=p) for n, p in enumerate(("low", "normal", "high")))
        r.offer(low, normal, high)
        assert row_of(r, r.must_take()) == [high, normal, low]
        assert running(r) == 1


def test_a_row_holds_one_lane_and_two_jobs_at_most_count_as_running() -> None:
    """While one is delivered the next is fetched: both run, in one lane."""
    with room(World(A=1, B=1)) as r:
        r.warm("A", "B")
        first, second = tasks_of("A", "B", 2)
        r.offer(first, second)
        assert r.must_take() is first
        assert r.dispatcher.another(first) is second
        assert running(r) == r.dispatcher.unfinished[0] == 2
        assert {server.lanes for server in r.dispatcher._servers.values()} == {1}
        r.dispatcher.finish(first)
        assert {server.lanes for server in r.dispatcher._servers.values()} == {1}
        r.leases[second] = r.leases.pop(first)
        r.end(second)
        assert {server.lanes for server in r.dispatcher._servers.values()} == {0}
        assert r.dispatcher.unfinished == (0, 0)


def test_only_the_last_of_a_row_can_be_followed() -> None:
    with room() as r:
        r.offer(*tasks_of("A", "B", 3))
        first = r.must_take()
        second = r.dispatcher.another(first)
        assert second is not None
        assert r.dispatcher.another(first) is None
        r.leases[second] = r.leases.pop(first)
        r.dispatcher.finish(first)
        assert r.dispatcher.another(first) is None
        assert r.dispatcher.another(second) is not None
        r.dispatcher.finish(second)
        r.leases.popitem()[1].release(reusable=True)


def test_a_job_that_was_never_taken_is_not_followed() -> None:
    with room() as r:
        waiting, other = tasks_of("A", "B", 2)
        r.offer(waiting, other)
        assert r.dispatcher.another(waiting) is None
        assert r.dispatcher.another(pretend.task(99)) is None


def test_jobs_of_other_pairs_are_not_for_these_sessions() -> None:
    with room() as r:
        mine, others = tasks_of("A", "B", 1), tasks_of("A", "C", 3, 10)
        r.offer(*mine, *others)
        assert r.dispatcher.another(r.must_take()) is None


def test_another_name_of_a_server_ends_the_row() -> None:
    """Its sessions would have to adopt the name first: a lease does that."""
    world = World(A=8, B=8)
    world.configs["ALIAS"] = pretend.server("ALIAS", host="b", base_path="/x")
    with room(world) as r:
        r.offer(pretend.task(0, "A", "B"), pretend.task(1, "A", "ALIAS"))
        first = r.must_take()
        assert r.dispatcher.another(first) is None
        r.end(first)
        assert r.must_take().job.destination.hostname == "ALIAS"


def test_alone_a_row_goes_on_for_half_a_minute() -> None:
    with room() as r:
        r.offer(*tasks_of("A", "B", 100))
        row = row_of(r, r.must_take(), seconds=1.0)
        assert len(row) == 32
        assert r.must_take() not in row


def test_a_row_ends_soon_when_another_queue_could_use_its_lane() -> None:
    with room() as r:
        r.warm("A", "B", "C", "D")
        r.offer(*tasks_of("A", "B", 100), *tasks_of("C", "D", 100, 1000))
        assert len(row_of(r, r.must_take(), seconds=0.2)) == 4


def test_a_row_ends_soon_when_another_queue_could_use_one_of_its_sessions() -> None:
    """A has one session: A→C waits for it, though A's lanes are beyond any share."""
    with room(World(A=1, B=8, C=8)) as r:
        r.warm("A", "B", "C")
        r.offer(*tasks_of("A", "B", 100), *tasks_of("A", "C", 100, 1000))
        row = row_of(r, r.must_take(), seconds=0.2)
        assert len(row) == 4
        r.end(row[-1])
        assert r.must_take().job.destination.hostname == "C"


def test_lanes_beyond_the_share_end_their_rows_at_once_when_others_wait() -> None:
    with room(workers=4) as r:
        r.warm("A", "B", "C", "D")
        r.offer(*tasks_of("A", "B", 100))
        over_share = r.take_all()
        assert len(over_share) == 4
        r.offer(*tasks_of("C", "D", 100, 1000))
        r.clock.pass_(0.1)
        for task in over_share[:2]:
            assert r.dispatcher.another(task) is None
            r.end(task)
            assert r.must_take().job.source.hostname == "C"
        assert follow(r, over_share[2]) is not None  # the rest is its share


def test_queues_that_cannot_run_anyway_shorten_no_row() -> None:
    """Jobs of a server that is down, and of one whose only session is at work: a row goes on beside them."""
    with room(World(A=8, B=8, C=1, D=8, X=8), workers=4) as r:
        r.offer(*tasks_of("X", "B", 8, 2000))
        for _ in range(8):
            r.clock.pass_(r.breaker_wait("X"))
            r.dispatcher.failed("X", DOWN)
        r.warm(*"ABCD")
        r.offer(*tasks_of("C", "D", 100, 1000))
        slow = r.must_take()
        assert slow.job.source.hostname == "C"
        r.offer(*tasks_of("A", "B", 200))
        lanes = r.take_all()
        assert len(lanes) == 3
        assert len(row_of(r, lanes[0], limit=30, seconds=0.5)) == 30


def test_a_server_that_is_being_reached_ends_no_row() -> None:
    """It may be silent for long: a row that ends after each job moves half as many files."""
    with room(World(A=8, B=8, C=8)) as r:
        r.warm("A", "B")
        r.offer(*tasks_of("A", "C", 100, 1000))
        taken = r.dispatcher.take(0.0)
        assert taken is not None
        reaching, lease = taken
        assert lease.servers == ("C",)
        r.offer(*tasks_of("A", "B", 100))
        assert len(row_of(r, r.must_take(), limit=30, seconds=0.6)) == 30
        lease.release(reusable=False)
        r.dispatcher.finish(reaching)


def test_one_row_ends_for_one_queue() -> None:
    """A probe needs one lane for a moment, not the rows of all."""
    with room(workers=4) as r:
        r.warm("A", "B", "C", "D")
        r.offer(*tasks_of("A", "B", 100))
        lanes = r.take_all()
        r.offer(*tasks_of("C", "D", 100, 1000))
        assert r.dispatcher.another(lanes[0]) is None
        assert follow(r, lanes[1]) is not None
        r.end(lanes[0])
        assert r.must_take().job.source.hostname == "C"


def test_a_breaker_that_opens_ends_the_row() -> None:
    with room() as r:
        r.offer(*tasks_of("A", "B", 10))
        dialing, lease = r.dispatcher.take(0.0)  # type: ignore[misc]  # None fails the test here
        r.dispatcher.failed("B", DOWN)
        assert r.dispatcher.another(dialing) is None
        r.dispatcher.worked("B")
        assert r.dispatcher.another(dialing) is not None
        lease.release(reusable=True)


def test_a_probe_is_one_job() -> None:
    with room() as r:
        r.offer(*tasks_of("A", "B", 10))
        r.refuse(r.must_take(), "B")
        r.clock.pass_(1.0)
        probe = r.must_take()
        assert r.dispatcher.another(probe) is None
        r.dispatcher.worked("B")
        assert follow(r, probe) is not None


def test_fewer_lanes_are_worth_it_and_rows_end() -> None:
    """Transfers broke: the queue is given half of its lanes, and those beyond stop with their job."""
    with room(workers=4) as r:
        r.offer(*tasks_of("A", "B", 100))
        lanes = r.take_all()
        r.dispatcher.failed("B", errors.ConnectionLost("reset"), lanes[0])
        for task in lanes[:2]:
            assert r.dispatcher.another(task) is None
            r.end(task)
        assert r.take() is None
        assert follow(r, lanes[2]) is not None


def test_a_dropped_member_of_a_row_is_gone_and_its_lane_goes_on() -> None:
    with room() as r:
        first, second, third = tasks_of("A", "B", 3)
        r.offer(first, second, third)
        assert r.must_take() is first
        assert r.dispatcher.another(first) is second
        assert r.dispatcher.drop(lambda task: task in {first, second}) == []
        r.dispatcher.finish(first, 0.0)
        assert r.dispatcher.another(second) is third
        r.dispatcher.finish(second)
        assert r.dispatcher.unfinished[0] == 1
        r.leases[third] = r.leases.pop(first)


def test_what_is_dropped_before_its_turn_is_not_taken() -> None:
    with room() as r:
        first, second, third = tasks_of("A", "B", 3)
        r.offer(first, second, third)
        r.must_take()
        assert r.dispatcher.drop(lambda task: task is second) == [second]
        assert follow(r, first) is third


def test_a_member_that_is_to_run_later_keeps_its_destination_and_the_row_goes_on() -> None:
    with room() as r:
        first, follower, other = (pretend.task(n, path=path) for n, path in enumerate(("/x", "/x", "/y")))
        r.offer(first, follower, other)
        assert r.must_take() is first
        assert r.dispatcher.another(first) is other
        r.dispatcher.finish(first, 2.0)
        assert r.dispatcher.another(other) is None  # the follower waits for the first
        r.clock.pass_(2.0)
        assert r.dispatcher.another(other) is first
        assert r.dispatcher.another(first) is None
        r.dispatcher.finish(other)
        r.dispatcher.finish(first)
        r.leases.popitem()[1].release(reusable=True)
        assert r.run() is follower


def test_a_job_that_becomes_due_in_mid_row_is_taken_in_its_turn() -> None:
    with room() as r:
        r.offer(*tasks_of("A", "B", 3))
        late = pretend.task(9, priority="high")
        r.dispatcher.offer(late, 1.0)
        first = r.must_take()
        r.clock.pass_(1.0)
        assert follow(r, first) is late


def test_a_row_keeps_nobody_from_a_place_that_was_claimed() -> None:
    """A→B was passed_over at both its servers until it claims them: the rows beside it end all the same."""
    with room(World(A=1, B=1, C=8, D=8), workers=8) as r:
        r.warm("A", "B", "C", "D")
        r.offer(*tasks_of("A", "C", 500), *tasks_of("D", "B", 500, 1000))
        rows = [r.must_take(), r.must_take()]
        r.offer(pretend.task(9999, "A", "B"))
        rounds = 0
        while True:
            rounds += 1
            assert rounds < 60
            r.clock.pass_(0.6)
            last = rows.pop(0)
            following = follow(r, last)
            assert following is None, "half a second is over, and A→B waits"
            r.end(last)
            task = r.take()  # None: the place is kept until the other one is free, too
            if task is not None and task.origin.offset == 9999:
                break
            rows += [task] if task is not None else []


def test_after_the_stop_no_row_goes_on() -> None:
    with room() as r:
        r.offer(*tasks_of("A", "B", 3))
        first = r.must_take()
        r.dispatcher.stop()
        assert r.dispatcher.another(first) is None
