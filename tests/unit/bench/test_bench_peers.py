"""The benchmark's peers do in a round what they are measured for, and nothing else."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "bench"))  # programs, no package

import peers
from world import End, Files, Pair, World

pytestmark = pytest.mark.unit

RCLONE = """#!/bin/sh
echo "$1" >>"$HOME/calls"
case $1 in
obscure) echo "hidden $(cat)" ;;
copy) echo "$RCLONE_CONFIG_SOURCE_PASS, $RCLONE_CONFIG_TARGET_PASS" >>"$HOME/calls" ;;
esac
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A world whose servers nobody started, on a machine with a program called rclone."""
    program = tmp_path / "bin" / "rclone"
    program.parent.mkdir()
    program.write_text(RCLONE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    made = World(tmp_path, deadline=time.monotonic() + 60)
    made.pairs[0] = Pair(0, End("here", 21, "someone", "one"), End("here", 22, "someone", "other"))
    return made


def test_rclones_passwords_are_hidden_before_its_clock_runs(world):
    """Hiding a password takes a process of its own: none is left for a round, whose one process is the copy."""
    rclone = peers.Rclone(world)
    calls = world.folder / "calls"
    assert calls.read_text().split() == ["obscure", "obscure"]
    calls.unlink()
    rclone._run(world.pairs[0], Files("small", (), 0), "out")
    assert calls.read_text().splitlines() == ["copy", "hidden one, hidden other"]
