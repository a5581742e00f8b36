"""The time of day without its jumps: follows corrections, ignores who sets it, believes the broker."""

from __future__ import annotations

import pytest
import structlog.testing

from etl.clock import Clock
from pretend import Clock as Hand

pytestmark = pytest.mark.unit


def test_small_corrections_are_followed_and_jumps_are_told_once() -> None:
    system, steady = Hand(1_000_000.0), Hand(50.0)
    clock = Clock(system, steady)
    system.pass_(10.5)
    steady.pass_(10.0)
    assert clock.now() == 1_000_010.5
    with structlog.testing.capture_logs() as said:
        system.pass_(-2 * 86400.0)
        assert clock.now() == 1_000_010.5
        system.pass_(5.0)
        steady.pass_(5.0)
        assert clock.now() == 1_000_015.5
        system.pass_(2 * 86400.0)
        assert clock.now() == 1_000_015.5
    assert [line["seconds"] for line in said] == [-172800.0]


@pytest.mark.parametrize("difference", [-3600.0, 3600.0])
def test_the_time_of_the_broker_counts_where_it_differs(difference: float) -> None:
    """That is what all processes have in common; a few seconds are none."""
    system, steady = Hand(1_000_000.0), Hand(50.0)
    clock = Clock(system, steady)
    with structlog.testing.capture_logs() as said:
        clock.hear(1_000_005.0)
        assert clock.now() == 1_000_000.0
        clock.hear(1_000_000.0 + difference)
        clock.hear(1_000_000.0 + difference)
        system.pass_(7.0)
        steady.pass_(7.0)
        assert clock.now() == 1_000_007.0 + difference
    assert [line["broker_is_ahead_seconds"] for line in said] == [difference]
