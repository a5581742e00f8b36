"""Servers that answer a command twice, and servers that end the session behind a last word: nothing is lost by either.

The second reply is never another command's: the first time it ends the session, from then on it is expected.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from contract_parts import a_task, content_of, moved

from etl.errors import InvalidPath, SessionFault
from etl.models.message import FileTransferJob
from etl.models.task import Origin, Record, Task
from etl.transfer.ftp import known, twins
from etl.transfer.ftp.replies import Reply
from servers.fake import FakeFTP, FakeSession

pytestmark = pytest.mark.contract


class Twice(FakeSession):
    """Doubles its final replies to some commands, the second one `lag` seconds later."""

    verbs: frozenset[str] = frozenset()
    lag = 0.0
    more: list[str] = []  # noqa: RUF012 - a test's own, said behind the second
    verb = ""

    def serve(self, verb: str, argument: str) -> None:
        """Serve, and remember what it was."""
        self.verb = verb
        super().serve(verb, argument)

    def reply(self, text: str) -> None:
        """Send a reply, or two."""
        if self.verb not in self.verbs or text[0] == "1":
            super().reply(text)
        elif self.lag:
            super().reply(text)
            time.sleep(self.lag)
            super().reply(text)
        else:
            super().reply("\r\n".join([text, text, *self.more]))


def twice(fake: Callable[..., FakeFTP], *verbs: str, lag: float = 0.0, more: str = "") -> FakeFTP:
    server = fake(files={"/a": b"12345", "/b": b"67"}, features=("SIZE", "MDTM", "MFMT", "EPSV", "UTF8"))
    extra = [more] if more else []
    server.session_type = type("Doubling", (Twice,), {"verbs": frozenset(verbs), "lag": lag, "more": extra})
    return server


def tries(act: Callable[[], object], limit: int = 3) -> int:
    """Return how many sessions of no use it took until it worked; a job has three that cost it nothing."""
    for count in range(limit + 1):
        try:
            act()
        except SessionFault:
            continue
        return count
    pytest.fail(f"not within {limit} tries")


@pytest.mark.parametrize(
    ("verbs", "lag", "limit"),
    [
        *[(verbs, 0.0, 3) for verbs in (["STOR"], ["RNTO"], ["MFMT"], ["SIZE"], ["MKD"], ["STOR", "RNTO", "DELE"])],
        *[(verbs, 0.05, 3) for verbs in (["STOR"], ["RNTO"], ["MKD"], ["STOR", "RNTO", "DELE"])],
        # a late one that may pass for the next command's is found out by detours
        (["MFMT"], 0.05, 12),
        *[(["SIZE"], lag, 8) for lag in (0.003, 0.01, 0.05)],
    ],
)
def test_uploads_to_a_server_that_doubles_its_replies_arrive_once(
    fake, session, buffer, verbs: list[str], lag: float, limit: int
) -> None:
    """Found out by some sessions that end; those that follow read both replies, and last."""
    source, server = fake(files={"/a": b"12345"}), twice(fake, *verbs, lag=lag)
    task = a_task()
    tries(lambda: moved(task, session(source), session(server), buffer), limit)
    assert server.files == {"/a": b"12345", "/b": b"67", "/out/b": b"12345"}

    def row() -> None:
        ftp = session(server)
        for _ in range(2):
            moved(a_task(), session(source), ftp, buffer)
        ftp.ping()

    tries(row, limit)
    before = server.sessions
    row()
    assert server.sessions == before + 1


@pytest.mark.parametrize("verbs", [("RETR",), ("SIZE",), ("MDTM",), ("SIZE", "MDTM"), ("DELE",), ("TYPE",), ("PASS",)])
def test_downloads_from_such_a_server_and_their_deletion_work(fake, session, buffer, verbs: tuple[str, ...]) -> None:
    server = twice(fake, *verbs)

    def act() -> None:
        ftp = session(server)
        assert content_of(ftp, "/a", buffer) == b"12345"
        assert ftp.look("/b").size_bytes == 2

    def delete() -> None:
        session(server).dispose("/a").result()

    tries(act)
    tries(delete)
    act_again = session(server)
    assert act_again.look("/b").size_bytes == 2
    assert content_of(act_again, "/b", buffer) == b"67"
    assert server.files == {"/b": b"67"}


def test_a_second_reply_that_does_not_come_ends_the_session_and_is_believed_no_more(
    fake, session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could come at any time, in the place of another: not one command is sent in that session."""
    monkeypatch.setattr("etl.transfer.ftp.control.TWIN_SECONDS", 0.1)
    server = fake(files={"/a": b"1", "/b": b"2"})
    ftp = session(server)
    pairs = known.of(ftp.server.address).doubles
    pairs["DELE", 250] = True
    assert ftp.remove("/a")
    before = len(server.commands)
    with pytest.raises(SessionFault, match="did not answer twice"):
        ftp.remove("/b")
    assert len(server.commands) == before
    assert pairs == {("DELE", 250): False}
    ftp = session(server)
    assert ftp.remove("/b")
    assert not ftp.remove("/b")


def test_a_third_reply_is_nobodys(fake, session) -> None:
    """Behind an expected second reply anything ends the session, before the next command is sent."""
    server = twice(fake, "DELE", more="250 Renamed.")
    ftp = session(server)
    known.of(ftp.server.address).doubles["DELE", 250] = True
    assert ftp.remove("/a")
    before = len(server.commands)
    with pytest.raises(SessionFault, match="spoke unasked: 250 Renamed"):
        ftp.remove("/b")
    assert len(server.commands) == before
    assert server.files == {"/b": b"67"}


def test_a_pair_is_known_by_its_command_and_its_code() -> None:
    """What one command's reply does says nothing of another's."""
    pairs, done = twins.Twins(known.ServerQuirks()), Reply(250, (b"250 Done.",))
    pairs.note("DELE", done)
    pairs.learn(226)
    pairs.note("DELE", done)
    assert not pairs.is_due
    pairs.learn(250)
    pairs.note("RNTO", done)
    assert not pairs.is_due
    pairs.note("DELE", done)
    assert pairs.is_due
    assert not pairs.take(226)


def test_a_late_second_reply_that_passed_for_the_next_commands_is_found_out() -> None:
    """That one's own answer is what comes unasked then; of two that may be, the wrong one proves wrong, once."""
    quirks = known.ServerQuirks()
    pairs, missing, done = twins.Twins(quirks), Reply(550, (b"550 No.",)), Reply(250, (b"250 Done.",))
    pairs.note("SIZE", missing)
    pairs.note("CWD", missing)  # the second of SIZE
    pairs.learn(250)  # of CWD
    assert quirks.doubles == {("SIZE", 550): True}
    quirks.doubles.clear()
    pairs.note("SIZE", missing)
    pairs.note("MDTM", missing)
    pairs.learn(550)
    assert quirks.doubles == {("SIZE", 550): True, ("MDTM", 550): True}
    pairs.note("MDTM", missing)
    pairs.unlearn()
    pairs.note("RNTO", done)
    pairs.learn(550)
    assert quirks.doubles == {("SIZE", 550): True, ("MDTM", 550): False}


# --- sessions that end behind a last word ----------------------------------------------------------------------------


def ending(fake: Callable[..., FakeFTP], *verbs: str, **more: object) -> FakeFTP:
    """Return a server whose sessions end once one of these was answered, whatever the answer."""

    class Ends(FakeSession):
        def serve(self, verb: str, argument: str) -> None:
            super().serve(verb, argument)
            if verb in verbs:
                self.drop()

    server = fake(**more)
    server.session_type = Ends
    return server


def test_a_folder_is_made_by_the_next_session_where_one_ends_at_a_refused_upload(fake, session, buffer) -> None:
    """The refused STOR, then the stored one, each end theirs; the third renames."""
    source, server = fake(files={"/a": b"12345"}), ending(fake, "STOR")
    task = a_task()
    assert tries(lambda: moved(task, session(source), session(server), buffer)) == 2
    assert server.files == {"/out/b": b"12345"}
    assert sum(command.startswith("STOR") for command in server.commands) == 2
    task = a_task()
    assert tries(lambda: moved(task, session(source), session(server), buffer)) == 1


@pytest.mark.parametrize("action", ["keep", "delete"])
def test_a_download_behind_which_its_session_ends_is_done(fake, session, buffer, action: str) -> None:
    """All bytes came, and the 226: published, at once or, where the source is to go, once a new session has looked."""
    server, destination = ending(fake, "RETR", files={"/a": b"12345"}), fake(files={"/out/x": b""})
    task = a_task(source_action=action)
    assert tries(lambda: moved(task, session(server), session(destination), buffer)) == (action == "delete")
    assert destination.files == {"/out/x": b"", "/out/b": b"12345"}
    assert sum(command.startswith("RETR") for command in server.commands) == 1
    assert server.files == {"/a": b"12345"}  # whose deletion is another run's


def test_what_a_lost_session_left_is_not_published_over_its_own_source(fake, session, buffer) -> None:
    """The look that finds out whether both are one file was prevented: it is made before the rename, not left out."""
    server = ending(fake, "RETR", files={"/out/b": b"12345"})
    job = {"source": {"hostname": "A", "path": "/out/b"}, "destination": {"hostname": "FAKE", "path": "/out/b"}}
    move = FileTransferJob.from_dict({**job, "options": {"source_action": "delete"}})
    task = Task(Record("jobs", 0, 0, None, b"{}"), Origin("jobs", 0, 0), move)
    with pytest.raises(SessionFault):
        moved(task, session(server), session(server), buffer)
    assert task.unpublished is not None
    with pytest.raises(InvalidPath, match="is the source"):
        moved(task, session(server), session(server), buffer)
    assert server.files["/out/b"] == b"12345"


def test_a_session_that_is_over_says_so(fake, session, buffer) -> None:
    """So that it reaches no other job, though its own went well."""
    server = ending(fake, "RETR", files={"/a": b"12345"})
    ftp = session(server)
    parcel = ftp.read("/a")
    assert parcel.load(100)
    assert not ftp.is_over
    assert ftp.confirm(parcel).result()
    assert ftp.is_over
