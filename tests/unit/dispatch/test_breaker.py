"""The breaker: opens at an outage, waits longer each time, lets one probe through."""

import pytest

from etl.dispatch.breaker import Breaker
from etl.errors import ServerUnavailable

pytestmark = pytest.mark.unit

DOWN = ServerUnavailable("refused")


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(lambda failures: min(100.0, 2.0 ** (failures - 1)))


def test_a_new_breaker_admits_everybody(breaker: Breaker) -> None:
    assert breaker.closed
    assert breaker.admits(0.0)
    assert breaker.wait(0.0) == 0.0


def test_an_outage_opens_it_for_the_first_wait(breaker: Breaker) -> None:
    breaker.down(10.0, DOWN)
    assert not breaker.closed
    assert not breaker.admits(10.9)
    assert breaker.wait(10.25) == 0.75
    assert breaker.admits(11.0)


def test_only_one_probe_is_admitted_after_the_wait(breaker: Breaker) -> None:
    breaker.down(10.0, DOWN)
    breaker.probe()
    assert not breaker.admits(12.0)


def test_a_failed_probe_doubles_the_wait(breaker: Breaker) -> None:
    breaker.down(10.0, DOWN)
    for wait in (2.0, 4.0, 8.0):
        now = breaker.open_until
        assert breaker.admits(now)
        breaker.probe()
        breaker.down(now, DOWN)
        assert breaker.wait(now) == wait


def test_many_jobs_that_meet_the_same_outage_count_once(breaker: Breaker) -> None:
    for moment in (10.0, 10.1, 10.2, 10.9):
        breaker.down(moment, DOWN)
    assert breaker.open_until == 11.0


def test_an_answer_closes_it_and_forgets_its_failures(breaker: Breaker) -> None:
    breaker.down(10.0, DOWN)
    breaker.down(11.0, DOWN)
    breaker.up()
    assert breaker.admits(11.0)
    breaker.down(20.0, DOWN)
    assert breaker.wait(20.0) == 1.0


def test_a_probe_without_a_word_from_the_server_makes_room_for_the_next(breaker: Breaker) -> None:
    breaker.down(10.0, DOWN)
    breaker.probe()
    breaker.forgo()
    assert breaker.admits(11.0)


def test_a_probe_of_a_closed_breaker_is_no_probe(breaker: Breaker) -> None:
    breaker.probe()
    assert breaker.admits(0.0)


def test_it_stays_open_at_least_as_long_as_it_is_told(breaker: Breaker) -> None:
    """A refused login: whatever the failures in a row, nobody tries for a minute."""
    breaker.down(10.0, DOWN, least=60.0)
    assert breaker.wait(10.0) == 60.0
    breaker.down(11.0, DOWN)
    assert breaker.wait(11.0) == 59.0
    breaker.down(12.0, DOWN, least=90.0)
    assert breaker.wait(12.0) == 90.0


def test_it_knows_since_when_and_why_it_is_open(breaker: Breaker) -> None:
    assert breaker.error is None
    breaker.down(10.0, DOWN)
    later = ServerUnavailable("no welcome")
    breaker.down(20.0, later)
    assert breaker.age(25.0) == 15.0
    assert breaker.error is later
    breaker.up()
    assert breaker.age(30.0) == 0.0
    assert breaker.error is None
