"""Servers: what is measured, and how it is told; holds."""

from __future__ import annotations

import pytest
from test_dispatcher import DOWN, room, tasks_of

import pretend
from etl import errors

pytestmark = pytest.mark.unit


# --- what is counted


def test_each_server_is_told_with_its_breaker_lanes_and_measures() -> None:
    with room() as r:
        r.warm("A", "B")
        r.offer(*tasks_of("A", "B", 20), *tasks_of("C", "D", 20, 100))
        r.dispatcher.failed("C", DOWN)
        first, second = r.must_take(), r.must_take()
        r.dispatcher.answered(first)
        r.dispatcher.failed("B", errors.ConnectionLost("reset"), second)
        r.dispatcher.overflow()
        told = r.dispatcher.servers()
        assert set(told) == set("ABCD")
        assert (told["A"].state, told["A"].lanes, told["A"].runs, told["A"].failures) == ("closed", 2, 1, 0)
        assert (told["B"].runs, told["B"].failures) == (2, 1)
        assert (told["C"].state, told["C"].next_probe_seconds, told["C"].deferred) == ("open", 1.0, 12)
        r.clock.pass_(1.0)
        assert r.dispatcher.servers()["C"].state == "half open"
        assert told["D"].runs == 0


def test_the_round_trip_is_what_a_session_told_last() -> None:
    with room() as r:
        r.offer(pretend.task())
        task = r.must_take()
        session = r.leases[task].source
        session.round_trip_seconds = lambda: 0.042  # type: ignore[method-assign]
        assert r.dispatcher.servers()["A"].round_trip_seconds is None
        r.end(task)
        assert r.dispatcher.servers()["A"].round_trip_seconds == 0.042
        assert r.dispatcher.servers()["B"].round_trip_seconds is None


def test_jobs_of_a_server_on_hold_wait_like_those_of_a_server_that_is_down() -> None:
    """A few stay here, the rest is overflow with the hold as its reason; others go on; released, they run."""
    hold = errors.OnHold("repair", server="B")
    with room() as r:
        r.dispatcher.hold({"B": hold})
        held, free = tasks_of("A", "B", 20), tasks_of("A", "C", 2)
        r.offer(*held, *free)
        assert [r.take(), r.take(), r.take()] == [*free, None]
        overflow = r.dispatcher.overflow()
        assert {one.task for one in overflow} < set(held)
        assert {one.outage for one in overflow} == {hold}
        report = r.dispatcher.servers()["B"]
        assert (report.state, report.error, report.waiting) == ("closed", hold, len(held) - len(overflow))
        r.dispatcher.hold({})
        assert r.take() in held


def test_a_paused_dispatcher_gives_no_job_until_it_goes_on() -> None:
    """Jobs still come, and what runs ends."""
    with room() as r:
        first, second = tasks_of("A", "B", 2)
        r.offer(first, second)
        assert r.take() is first
        r.dispatcher.pause(paused=True)
        assert r.dispatcher.another(first) is None
        assert r.take() is None
        r.dispatcher.pause(paused=False)
        assert r.take() is second


def test_a_server_is_tried_at_once_when_asked() -> None:
    """Its breaker closes, and one job tries it."""
    with room() as r:
        r.dispatcher.failed("B", DOWN)
        (task,) = tasks_of("A", "B", 1)
        r.offer(task)
        assert r.take() is None
        r.dispatcher.try_now("B")
        assert r.take() is task


def test_what_waits_is_dropped_and_what_runs_is_left_alone() -> None:
    """A cancelled job that runs is aborted, and must keep its outcome."""
    with room() as r:
        running, waiting = tasks_of("A", "B", 2)
        r.offer(running, waiting)
        assert r.take() is running
        assert r.dispatcher.drop(lambda _task: True, running=False) == [waiting]
        r.end(running, later=1.0)
        r.clock.pass_(2.0)
        assert r.take() is running
