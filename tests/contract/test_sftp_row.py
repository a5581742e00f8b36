"""Jobs in a row to an SFTP server: each small file is sent while the one before is renamed, and fails alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from contract_parts import sftp_config
from rows import ONE_MIB, Row

import stack
from etl import errors
from etl.config import ServerConfig
from etl.transfer import SFTPTransfer
from etl.transfer.sftp.child import Child
from servers.delay import Far
from servers.fake import wait_for

pytestmark = pytest.mark.contract

RTT = 0.02
COUNT = 10


class Scene:
    """A folder as the source; `/` of the destination is another one, behind sshd."""

    def __init__(self, folder: Path, sshd: stack.Sshd, far: Far) -> None:
        self.sshd = sshd
        self.source, self.target = folder / "source", folder / "target"
        self.source.mkdir()
        self.target.mkdir()
        destination = replace(sftp_config(sshd, base_path=str(self.target)), hostname="B", port=far.port)
        self.row = Row(ServerConfig("A", "local", base_path=str(self.source)), destination, 16 * ONE_MIB, 1)
        self.begun: list[str] = []  # the files that were sent ahead

    def offer(self, *numbers: int) -> None:
        """Have files of their own content copied."""
        for number in numbers:
            (self.source / str(number)).write_bytes(os.urandom(10_000 + number))
        self.row.offer(*numbers)

    def require(self, *numbers: int) -> None:
        """Exactly these files are at the destination, whole; there is no partial file."""
        there = {path.name for path in (self.target / "out").iterdir()}
        assert there == {str(number) for number in numbers}
        for number in numbers:
            assert (self.target / "out" / str(number)).read_bytes() == (self.source / str(number)).read_bytes()


@pytest.fixture
def scene(tmp_path: Path, sshd: stack.Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """One lane; its destination is so far away that the source is always ahead."""
    with Far(sshd.port, RTT, sshd.username, "") as far:
        made = Scene(tmp_path, sshd, far)
        begin = SFTPTransfer.begin

        def noting(session: SFTPTransfer, partial: str, parcel) -> bool:
            is_begun = begin(session, partial, parcel)
            if is_begun:
                made.begun.append(parcel.path)
            return is_begun

        monkeypatch.setattr(SFTPTransfer, "begin", noting)
        yield made
        made.row.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often sessions wait for the server after they sent something: one number in a list."""
    count, unanswered = [0], set()
    send, receive = Child.send, Child.receive

    def counting_send(child: Child, parts, limit: float) -> None:
        unanswered.add(child)
        send(child, parts, limit)

    def counting_receive(child: Child, place: memoryview, limit: float) -> int:
        count[0] += child in unanswered
        unanswered.discard(child)
        return receive(child, place, limit)

    monkeypatch.setattr(Child, "send", counting_send)
    monkeypatch.setattr(Child, "receive", counting_receive)
    return count


def test_in_a_row_a_small_file_costs_one_wait_at_its_destination(scene: Scene, waits: list[int]) -> None:
    """Counted between a short row and a long one: what happens once is not in it."""
    scene.offer(*range(COUNT))
    scene.row.run()
    short = waits[0]
    scene.offer(*range(COUNT, 5 * COUNT))
    scene.row.wait()
    scene.require(*range(5 * COUNT))
    assert waits[0] - short < 1.5 * 4 * COUNT  # now and then the source may not be ahead: that costs a second one
    assert len(scene.begun) > 3 * COUNT


def test_a_rename_that_is_refused_fails_alone(scene: Scene) -> None:
    """The file behind it was sent already, and is published."""
    (scene.target / "out" / "5" / "inside").mkdir(parents=True)
    scene.offer(*range(COUNT))
    scene.row.run()
    assert {number: [type(one) for one in found] for number, found in scene.row.told.errors.items()} == {
        5: [errors.NotAFile]
    }
    assert "/6" in scene.begun
    (scene.target / "out" / "5" / "inside").rmdir()
    (scene.target / "out" / "5").rmdir()
    scene.require(*(number for number in range(COUNT) if number != 5))


def test_a_session_that_ends_fails_one_file_and_leaves_nothing_of_the_next(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that was sent ahead the partial file is removed, and the job runs again without having failed."""
    begin, cut = SFTPTransfer.begin, []

    def cutting(session: SFTPTransfer, partial: str, parcel) -> bool:
        is_begun = begin(session, partial, parcel)
        if is_begun and not cut:
            stored = scene.target / partial.strip("/")
            wait_for(lambda: stored.exists() and stored.stat().st_size == len(parcel.held))
            cut.append(int(parcel.path.strip("/")))
            session.abort()
        return is_begun

    monkeypatch.setattr(SFTPTransfer, "begin", cutting)
    scene.row.told.again = 1
    scene.offer(*range(COUNT))
    scene.row.run()
    assert {number: len(found) for number, found in scene.row.told.errors.items()} == {cut[0] - 1: 1}
    scene.require(*range(COUNT))


@pytest.mark.parametrize("when", ["it is sent ahead", "it is renamed"])
def test_a_lost_partition_is_asked_for_before_each_rename(scene: Scene, when: str) -> None:
    """A file that was sent ahead and is not ours any more is removed."""
    scene.offer(*range(COUNT))
    for task in list(scene.row.dispatcher._backlog.entries):
        if task.origin.offset == 5:
            asked = iter([True, True] if when == "it is renamed" else [True])
            task.owned = lambda asked=asked: next(asked, False)
    scene.row.run()
    assert [type(one) for one in scene.row.told.errors[5]] == [errors.OwnershipLost]
    assert list(scene.row.told.errors) == [5]
    scene.require(*(number for number in range(COUNT) if number != 5))


def test_a_bug_in_what_sends_ahead_costs_no_job(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the one that is renamed meanwhile, nor the one that was to be sent."""

    def broken(*_: object) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(SFTPTransfer, "begin", broken)
    scene.offer(*range(COUNT))
    scene.row.run()
    assert not scene.row.told.errors
    scene.require(*range(COUNT))
