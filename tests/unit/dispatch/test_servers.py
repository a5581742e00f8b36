"""Servers: the breaker opens at an outage and lets one probe through; what is measured, and how it is told."""

from __future__ import annotations

import pytest
from test_dispatcher import DOWN, room, tasks_of

import pretend
from etl import errors
from etl.dispatch.servers import Breaker

pytestmark = pytest.mark.unit


PROBE = object()


# --- the breaker


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(lambda failures: min(100.0, 2.0 ** (failures - 1)))


def test_a_new_breaker_admits_everybody(breaker: Breaker) -> None:
    assert breaker.closed
    assert breaker.admits(0.0)
    assert breaker.open_for(0.0) == 0.0


def test_an_outage_opens_it_for_the_first_wait(breaker: Breaker) -> None:
    breaker.trip(10.0, DOWN)
    assert not breaker.closed
    assert not breaker.admits(10.9)
    assert breaker.open_for(10.25) == 0.75
    assert breaker.admits(11.0)


def test_only_one_probe_is_admitted_after_the_wait(breaker: Breaker) -> None:
    breaker.trip(10.0, DOWN)
    breaker.half_open(PROBE)
    assert not breaker.admits(12.0)


def test_a_failed_probe_doubles_the_wait(breaker: Breaker) -> None:
    breaker.trip(10.0, DOWN)
    for wait in (2.0, 4.0, 8.0):
        now = breaker.open_until
        assert breaker.admits(now)
        breaker.half_open(PROBE)
        breaker.trip(now, DOWN)
        assert breaker.open_for(now) == wait


def test_many_jobs_that_meet_the_same_outage_count_once(breaker: Breaker) -> None:
    for moment in (10.0, 10.1, 10.2, 10.9):
        breaker.trip(moment, DOWN)
    assert breaker.open_until == 11.0


def test_an_answer_closes_it_and_forgets_its_failures(breaker: Breaker) -> None:
    breaker.trip(10.0, DOWN)
    breaker.trip(11.0, DOWN)
    breaker.reset()
    assert breaker.admits(11.0)
    breaker.trip(20.0, DOWN)
    assert breaker.open_for(20.0) == 1.0


def test_a_probe_without_a_word_from_the_server_makes_room_for_the_next(breaker: Breaker) -> None:
    breaker.trip(10.0, DOWN)
    breaker.half_open(PROBE)
    breaker.release_probe(PROBE)
    assert breaker.admits(11.0)


def test_a_probe_of_a_closed_breaker_is_no_probe(breaker: Breaker) -> None:
    breaker.half_open(PROBE)
    assert breaker.admits(0.0)


def test_it_stays_open_at_least_as_long_as_it_is_told(breaker: Breaker) -> None:
    """A refused login: whatever the failures in a row, nobody tries for a minute."""
    breaker.trip(10.0, DOWN, least=60.0)
    assert breaker.open_for(10.0) == 60.0
    breaker.trip(11.0, DOWN)
    assert breaker.open_for(11.0) == 59.0
    breaker.trip(12.0, DOWN, least=90.0)
    assert breaker.open_for(12.0) == 90.0


def test_it_knows_since_when_and_why_it_is_open(breaker: Breaker) -> None:
    assert breaker.error is None
    breaker.trip(10.0, DOWN)
    later = errors.ServerUnavailable("no welcome")
    breaker.trip(20.0, later)
    assert breaker.age(25.0) == 15.0
    assert breaker.error is later
    breaker.reset()
    assert breaker.age(30.0) == 0.0
    assert breaker.error is None


def test_whoever_is_not_the_probe_releases_none(breaker: Breaker) -> None:
    breaker.trip(10.0, DOWN)
    breaker.half_open(PROBE)
    breaker.release_probe(object())
    assert not breaker.admits(11.0)
    breaker.release_probe(PROBE)
    assert breaker.admits(11.0)


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
