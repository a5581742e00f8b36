"""The benchmark believes no copy that it has not compared."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "bench"))  # programs, no package

from world import World

pytestmark = pytest.mark.unit


@pytest.fixture
def world(tmp_path):
    """Two files at the source, and three copies of them in two folders of the destination."""
    made = World(tmp_path, time.monotonic() + 60)
    files = made.files("tiny", 2, 1000)
    for number in range(3):
        copy = made.target_root / "out" / str(number // 2) / str(number)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((made.source_root / "tiny" / files.names[number % 2]).read_bytes())
    return made


def source(path):
    return f"tiny/{int(path.name) % 2:06d}.bin"


def test_copies_that_are_as_their_sources_are_removed(world):
    """Nothing stays, so that memory is for the next round."""
    world.check_copies("out", source, 3)
    assert list(world.target_root.iterdir()) == []


def test_a_copy_that_differs_is_named(world):
    """One byte of one file is enough."""
    copy = world.target_root / "out" / "1" / "2"
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    with pytest.raises(RuntimeError, match="not the same as its source: out/1/2"):
        world.check_copies("out", source, 3)


def test_a_copy_that_was_told_of_and_is_not_there_is_missed(world):
    """There are at least as many files as outcomes were read."""
    (world.target_root / "out" / "0" / "1").unlink()
    with pytest.raises(RuntimeError, match="3 files were moved, the destination holds 2"):
        world.check_copies("out", source, 3)
