"""Health: a problem is told when it appears, each minute, and when it has passed."""

from __future__ import annotations

import pytest
import structlog.testing

from etl.status.health import Health

pytestmark = pytest.mark.unit


def test_a_problem_is_told_each_minute_until_it_has_passed() -> None:
    problems = ["", ""]
    health = Health([lambda _now: problems[0], lambda _now: problems[1]])
    with structlog.testing.capture_logs() as said:
        health.tick(1000.0)
        assert health.problem == ""
        problems[1] = "the second"
        for second in range(1001, 1125):
            health.tick(float(second))
        assert health.problem == "the second"
        problems[0] = "the first"
        health.tick(1125.0)
        assert health.problem == "the first"
        problems[:] = ["", ""]
        health.tick(1126.0)
        assert health.problem == ""
    assert [(line["log_level"], line["event"]) for line in said] == [("error", "not well")] * 3 + [
        ("info", "well again")
    ]
