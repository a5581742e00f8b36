"""Identity: a slot that no other live process of this host holds, and that comes back after a restart."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
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


def _link_to_a_folder(folder: Path) -> None:
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "made",
    [
        _link_to_a_folder,
        lambda folder: folder.symlink_to("nowhere"),
        lambda folder: folder.write_text(""),
        lambda folder: (folder.mkdir(), folder.chmod(0o770)),
        lambda folder: (folder.mkdir(), folder.chmod(0o703)),
    ],
    ids=["a link", "a link to nothing", "a file", "a group may write", "all may write"],
)
def test_a_folder_of_slots_that_others_may_write_is_refused(tmp_path: Path, made: Callable[[Path], object]) -> None:
    """Whoever made it first could put links there: its files are overwritten, with the rights of this process."""
    folder = tmp_path / f"etl-slots-{os.getuid()}"
    made(folder)
    with pytest.raises(SettingsError, match=f"{folder} must be a folder that belongs to this user .* remove it"):
        identity.claim("g", "t", "host", 5)
    assert identity.beats() == {}


def test_a_folder_of_slots_that_another_user_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner could put links into it at any time."""
    identity.claim("g", "t", "host", 5).release()
    assert identity.beats() != {}
    monkeypatch.setattr(identity.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SettingsError, match="belongs to this user"):
        identity.claim("g", "t", "host", 5)
    assert identity.beats() == {}


def test_a_slot_that_is_a_link_is_refused_and_what_it_leads_to_is_left_alone(tmp_path: Path) -> None:
    """A name in it can be foreseen."""
    identity.claim("g", "t", "host", 5).release()
    slot = next(tmp_path.glob("etl-slots-*/*"))
    slot.unlink()
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    slot.symlink_to(precious)
    with pytest.raises(SettingsError, match=f"{slot} is a link, but must be an ordinary file: remove it"):
        identity.claim("g", "t", "host", 5)
    assert precious.read_text() == "as it was"


def test_a_process_notes_that_it_came_round_and_whether_it_polls() -> None:
    """Health check and supervisor read it; a clock that is set changes nothing (it is the monotonic one)."""
    assert identity.beats() == {}
    me = identity.claim("group", "topic", "instance", 3)
    assert not identity.beats()[os.getpid()].polls
    me.beat(polls=True)
    beat = identity.beats()[os.getpid()]
    assert (beat.polls, beat.problem) == (True, "")
    assert 0 <= beat.age < 60
    me._beaten = 0.0
    me.beat(polls=True, problem="2 outcomes\nwait " + "x" * 1000)
    assert identity.beats()[os.getpid()].problem.startswith("2 outcomes wait xxx")
    me._beaten = 0.0
    me.beat(polls=True)
    assert identity.beats()[os.getpid()].problem == ""
    me.release()
