"""The breaker opens at an outage and lets one probe through; on hold it lets nobody through."""

from __future__ import annotations

import pytest

from etl import errors
from etl.retry.breaker import Breaker

pytestmark = pytest.mark.unit

DOWN = errors.ServerUnavailable("refused", server="B")
HOLD = errors.OnHold("repair", server="B")
PROBE = object()


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


def test_on_hold_it_admits_nobody_and_tells_why(breaker: Breaker) -> None:
    """Not even a probe. A server that works is not said to fail."""
    breaker.put_on_hold(10.0, HOLD)
    assert not breaker.admits(11.0)
    assert (breaker.closed, breaker.fails, breaker.error) == (False, False, HOLD)
    breaker.put_on_hold(15.0, HOLD)
    assert breaker.age(20.0) == 10.0
    breaker.put_on_hold(21.0, None)
    assert breaker.admits(21.0)
    assert (breaker.closed, breaker.error) == (True, None)


def test_a_hold_outlasts_an_answer_and_hides_an_outage(breaker: Breaker) -> None:
    """A transfer that still runs may end either way; released, the outage is what keeps it open."""
    breaker.put_on_hold(10.0, HOLD)
    breaker.reset()
    assert not breaker.closed
    breaker.trip(12.0, DOWN)
    assert breaker.error is HOLD
    breaker.put_on_hold(13.0, None)
    assert (breaker.closed, breaker.error, breaker.age(14.0)) == (False, DOWN, 2.0)
