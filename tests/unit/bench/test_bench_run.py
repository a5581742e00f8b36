"""The benchmark's exit code is 0 only when all that was asked for was measured, and reached."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "bench"))  # programs, no package

import peers
import run
import unguarded
from table import Goal, Row
from world import End, Files, OutOfTimeError, Pair, World

pytestmark = pytest.mark.unit

HERE = End("127.0.0.1", 21, "someone", "secret")


def a_row(value: float | None) -> Row:
    return Row("100 KB", {}, [Goal(" /rclone", 2.0, 3.0), Goal(" /lftp", 2.0, value)])


@pytest.mark.parametrize(
    ("rows", "missing", "code"),
    [
        ([a_row(2.0)], [], 0),
        ([a_row(2.0), a_row(1.9)], [], 1),
        ([a_row(2.0), a_row(None)], [], 1),
        ([a_row(2.0)], ["rate-10: left out"], 1),
        ([], ["rate-10: left out"], 1),
    ],
    ids=["all met", "one missed", "one not measured", "a part left out", "nothing measured"],
)
def test_only_goals_that_are_all_measured_and_met_end_with_0(rows, missing, code):
    """A goal that nobody could look at is not taken for one that was reached."""
    assert run.exit_code(rows, missing) == code


def test_a_part_without_its_link_is_said_to_be_missing(tmp_path):
    """Without root there is no link: the parts that need one are named, and so the run has failed."""
    made = World(tmp_path, time.monotonic() + 60)
    made.pairs[0] = Pair(0, HERE, HERE)
    asked = argparse.Namespace(parts=["rate-10", "trips"], trips_rtt=40, limit=60.0)
    rows, missing = run.measure_all(made, asked)
    assert rows == []
    assert missing == [
        "rate-10: left out, there is no link of 10 ms",
        "trips: left out, there is no link of 40 ms",
    ]


def test_parts_after_the_time_limit_are_said_to_be_missing(tmp_path):
    """No part begins when the time is over, and none of them is passed over in silence."""
    made = World(tmp_path, time.monotonic() - 1)
    made.pairs |= {0: Pair(0, HERE, HERE), 10: Pair(10, HERE, HERE)}
    asked = argparse.Namespace(parts=["rate-0", "group"], limit=1.0)
    rows, missing = run.measure_all(made, asked)
    assert rows == []
    assert missing == ["rate-0: not whole, 1 s are over", "group: not whole, 1 s are over"]


def test_a_part_that_made_do_with_fewer_rounds_is_said_to_be_missing(tmp_path, monkeypatch):
    """Its rows stay in the table, but the run has not measured what was asked for."""
    made = World(tmp_path, time.monotonic() + 60)
    made.pairs[0] = Pair(0, HERE, HERE)

    def comparison(_part, world, _options):
        world.deadline = time.monotonic() - 1
        with pytest.raises(OutOfTimeError):
            world.left()
        return [a_row(2.0)]

    monkeypatch.setattr(run, "measure", comparison)
    rows, missing = run.measure_all(made, argparse.Namespace(parts=["rate-0"], limit=60.0))
    assert (rows, missing) == ([a_row(2.0)], ["rate-0: not whole, 60 s are over"])


def test_a_peer_that_the_time_limit_ends_is_no_failure_of_the_peer(tmp_path):
    """The run goes on to print its table; and the peer's process is gone."""
    made = World(tmp_path, time.monotonic() + 0.1)

    class Sleeper(peers.Peer):
        name = "sleeper"

        def _run(self, pair, files, out):
            self._do(["sleep", "60"])

    with pytest.raises(OutOfTimeError):
        Sleeper(made).move(Pair(0, HERE, HERE), Files("small", (), 0))
    assert made.was_cut_short


def test_every_door_that_is_taken_out_is_there():
    """A guard that was renamed would stay in on both sides, and cost nothing in the comparison."""
    for place, name, plain in unguarded.PLAIN:
        assert callable(getattr(place, name)) or isinstance(getattr(place, name), property), name
        assert getattr(place, name) is not plain
