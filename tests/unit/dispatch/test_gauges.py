"""What is measured of a server, and how it is told."""

from __future__ import annotations

import pytest
from test_dispatcher import DOWN, room, tasks_of

import pretend
from etl import errors
from etl.dispatch.gauges import Gauge

pytestmark = pytest.mark.unit


def test_nothing_measured_is_no_rate_and_no_error() -> None:
    gauge = Gauge()
    assert gauge.per_second(1000.0) == 0.0
    assert gauge.error_share == 0.0


def test_a_steady_rate_is_told_from_the_first_seconds_on() -> None:
    gauge, now = Gauge(), 1000.0
    for number in range(3000):
        gauge.count(now, failed=number % 4 == 0)
        now += 0.1
        if number > 50:
            assert gauge.per_second(now) == pytest.approx(10.0, rel=0.03)
    assert gauge.error_share == pytest.approx(0.25, rel=0.02)


def test_what_is_long_ago_fades() -> None:
    gauge = Gauge()
    for _ in range(600):
        gauge.count(1000.0, failed=True)
    assert gauge.per_second(1600.0) < 0.001
    for number in range(100):
        gauge.count(1600.0 + number, failed=False)
    assert gauge.error_share < 0.01


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
        assert (told["A"].state, told["A"].lanes, told["A"].error_share) == ("closed", 2, 0.0)
        assert (told["B"].error_share, told["B"].jobs_per_second) == (0.5, 2.0)
        assert (told["C"].state, told["C"].next_probe_seconds, told["C"].deferred) == ("open", 1.0, 12)
        r.clock.pass_(1.0)
        assert r.dispatcher.servers()["C"].state == "half open"
        assert told["D"].jobs_per_second == 0.0


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
