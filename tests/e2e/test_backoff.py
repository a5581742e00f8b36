"""docker/backoff.sh: a program that ends is started again for ever, at a growing pace."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

import stack

pytestmark = pytest.mark.e2e


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """What it remembers of one program: how often it was started in a row, and when last."""
    return tmp_path / "consumer_00.starts"


def start(notes: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Start `echo started` through it."""
    environment = os.environ | {"SUPERVISOR_PROCESS_NAME": notes.stem, "APPLIANCE_RUN_DIR": str(notes.parent)} | more
    command = [str(stack.REPOSITORY / "docker" / "backoff.sh"), "echo", "started"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)


def test_the_first_start_is_at_once_and_the_next_ones_wait_longer_and_longer(notes: Path) -> None:
    """1 s after the first quick end, then 2 s; each says so."""
    said = [start(notes).stdout for _ in range(3)]
    assert said == [
        "started\n",
        "consumer_00 ended; starting it again in 1 s\nstarted\n",
        "consumer_00 ended; starting it again in 2 s\nstarted\n",
    ]


def test_it_never_gives_up_and_never_waits_longer_than_half_a_minute(notes: Path, tmp_path: Path) -> None:
    """After a thousand quick ends as after six. `sleep` is one that does not, and nothing else is."""
    sleep = tmp_path / "bin" / "sleep"
    sleep.parent.mkdir()
    sleep.write_text("#!/bin/sh\nexit 0\n")
    sleep.chmod(0o755)
    path = f"{sleep.parent}:{os.environ['PATH']}"
    for failures in (6, 1000):
        notes.write_text(f"{failures} {int(time.time())}\n")
        assert start(notes, PATH=path).stdout == "consumer_00 ended; starting it again in 30 s\nstarted\n"


def test_a_minute_of_work_makes_the_next_start_a_first_one(notes: Path) -> None:
    """It is at once, and counts from one again."""
    notes.write_text(f"7 {int(time.time()) - 61}\n")
    assert start(notes).stdout == "started\n"
    assert notes.read_text().startswith("1 ")
