"""The benchmark's table says what was reached, and what was not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

_spec = importlib.util.spec_from_file_location("bench_table", Path(__file__).parents[3] / "bench" / "table.py")
assert _spec is not None
assert _spec.loader is not None
table = importlib.util.module_from_spec(_spec)
sys.modules["bench_table"] = table  # dataclasses look their module up
_spec.loader.exec_module(table)


@pytest.mark.parametrize(
    ("value", "at_most", "said"),
    [
        (1.99, False, "MISSED"),
        (2.0, False, "met"),
        (2.99, False, "met"),
        (3.0, False, "aim reached"),
        (None, False, "not measured"),
        (2.01, True, "MISSED"),
        (2.0, True, "met"),
        (None, True, "not measured"),
    ],
)
def test_a_goal_is_met_at_its_bound_and_never_below_or_without_a_measurement(value, at_most, said):
    """A missed goal is said to be missed, and what was not measured is not said to be met."""
    aim = None if at_most else 3.0
    assert table.Goal(" /rclone", 2.0, value, aim, at_most).verdict() == said


def test_a_ratio_compares_rounds_that_lay_side_by_side():
    """A round that the machine slowed down for both leaves the ratio as it is; unpaired rounds do not count."""
    assert table.ratio([10.0, 2.0, 10.0], [5.0, 1.0, 5.0, 1.0]) == pytest.approx(2.0)
    assert table.ratio([], []) is None


def test_what_could_not_be_had_is_a_dash():
    """A peer that is missing leaves its column empty, and its goal is not met."""
    row = table.Row("100 KB", {"ours": 100.0}, [table.Goal(" /lftp", 2.0, None)], ["how"])
    lines = table.render([row]).splitlines()
    assert lines[2].split() == ["100", "KB", "100", "-", "-", "-", "-", "-", ">=", "2", "not", "measured"]
    assert lines[-1] == "* how"


def test_what_is_missing_stands_below_the_table():
    """Whoever reads the table alone sees that something is not in it."""
    lines = table.render([table.Row("100 KB", {}, [], ["how"])], ["rate-10: left out"]).splitlines()
    assert lines[-3:] == ["rate-10: left out", "", "* how"]
