"""Identity: a slot that no other live process of this host holds, and that comes back after a restart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from etl import identity
from etl.errors import SettingsError

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity.tempfile, "gettempdir", lambda: str(tmp_path))


def test_free_slots_are_given_in_turn_and_again_once_released() -> None:
    """Two processes started by hand differ; the slot of one that ended is free at once."""
    first = identity.claim("g", "t", "host", None)
    second = identity.claim("g", "t", "host", None)
    assert (first.slot, second.slot) == (identity.FIRST_FREE_SLOT, identity.FIRST_FREE_SLOT + 1)
    assert first.transactional_id != second.transactional_id
    first.release()
    again = identity.claim("g", "t", "host", None)
    assert again.transactional_id == first.transactional_id
    assert again.token != first.token
    for held in (again, second):
        held.release()
        held.release()


def test_other_groups_topics_and_instances_do_not_meet() -> None:
    """A slot belongs to one group, topic and instance."""
    held = [identity.claim(*who, 3) for who in (("g", "t", "h"), ("g2", "t", "h"), ("g", "t2", "h"), ("g", "t", "h2"))]
    assert len({one.transactional_id for one in held}) == 4
    assert held[0].name == "h/3"
    assert held[0].group_instance_id == "h-3"
    for one in held:
        one.release()


def test_a_slot_that_is_held_is_refused_by_name() -> None:
    """Supervisord's number given twice is one sentence."""
    held = identity.claim("g", "t", "host", 7)
    with pytest.raises(SettingsError, match="slot 7 is held by another live process of host"):
        identity.claim("g", "t", "host", 7)
    held.release()


def test_without_a_free_slot_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of consumers on one host has an end."""
    monkeypatch.setattr(identity, "MAX_SLOTS", 1)
    held = identity.claim("g", "t", "host", None)
    with pytest.raises(SettingsError, match="more than 1 consumers"):
        identity.claim("g", "t", "host", None)
    held.release()


def test_a_killed_process_gives_its_slot_back(tmp_path: Path) -> None:
    """However it ended: the lock dies with it."""
    program = (
        "import sys, tempfile, time; tempfile.gettempdir = lambda: sys.argv[1]\n"
        "from etl import identity; held = identity.claim('g', 't', 'host', 5)\n"
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            with pytest.raises(SettingsError):
                identity.claim("g", "t", "host", 5)
        finally:
            process.kill()
            process.wait(10)
    identity.claim("g", "t", "host", 5).release()


def test_a_process_notes_that_it_came_round_and_whether_it_polls() -> None:
    """Health check and supervisor read it; a clock that is set changes nothing (it is the monotonic one)."""
    assert identity.beats() == {}
    me = identity.claim("group", "topic", "instance", 3)
    assert not identity.beats()[os.getpid()].polls
    me.beat(polls=True)
    beat = identity.beats()[os.getpid()]
    assert beat.polls
    assert 0 <= beat.age < 60
    me.release()
