"""Answers are understood, not counted: servers that answer out of order, twice, or with what is another command's."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any

import pytest
from contract_parts import Bytes, content_of, writes_of

from etl.errors import SessionFault
from etl.models.message import FileTransferJob
from etl.models.task import Origin, Record, Task
from etl.transfer import FTPTransfer, partials, relay
from etl.transfer.base import Stored
from etl.transfer.ftp import known
from servers.fake import FakeFTP, FakeSession, wait_for

pytestmark = pytest.mark.contract

SLOW = ("EPSV", "PASV", "RNFR")  # commands that such a server takes its time for


class Hasty(FakeSession):
    """A server that answers each command of a write when it is done: slow ones last (aioftp, libunftp, ftp-srv)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.late: list[str] = []

    def serve(self, verb: str, argument: str) -> None:
        if len(self.write) > 1 and verb in SLOW and verb not in self.server.answers:
            self.late.append(getattr(self, verb.lower())(argument))
        else:
            super().serve(verb, argument)
        if verb == self.write[-1]:
            for text in self.late:
                self.reply(text)
            self.late = []


def hasty(fake: Callable[..., FakeFTP], **more: Any) -> FakeFTP:
    server = fake(files={"/a": b"12345"}, features=("SIZE", "MDTM", "MFMT", "EPSV", "UTF8"), **more)
    server.session_type = Hasty
    return server


def has_come(ftp: FTPTransfer) -> bool:
    """Is something to be read on the control connection, or its end?"""
    return bool(select.select([ftp.link.control.sock], [], [], 0)[0])


def a_task(source: str, destination: str, **options: Any) -> Task:
    job = {
        "source": {"hostname": "A", "path": source},
        "destination": {"hostname": "B", "path": destination},
        "options": options,
    }
    return Task(Record("jobs", 0, 0, None, b"{}"), Origin("jobs", 0, 0), FileTransferJob.from_dict(job))


def test_a_server_that_answers_out_of_order_is_found_at_its_first_login(fake, session, buffer) -> None:
    """Nothing is at stake there: a slow command and a quick one, then one by one; no job fails of it."""
    server = hasty(fake)
    ftp = session(server)
    assert server.sessions == 2
    for number in range(3):
        stored = ftp.write("/.p", Bytes(b"xyz"), buffer)
        ftp.publish(stored, f"/b{number}", 1e9).result()
        assert content_of(ftp, f"/b{number}", buffer) == b"xyz"
    ways = writes_of(server, lambda: content_of(ftp, "/a", buffer))
    assert ways == [["SIZE"], ["MDTM"], ["EPSV"], ["RETR"]]
    assert session(server).link.control.pipelining.is_one_by_one
    assert server.sessions == 3


def test_out_of_order_is_found_by_codes_whatever_the_server_managed_before(fake, session, buffer) -> None:
    """A paired command that was answered well once proves nothing for ever; the job is not to blame."""
    server = fake(files={"/a": b"12345"}, features=("SIZE", "MDTM", "EPSV"))
    ftp = session(server)
    for _ in range(2):
        content_of(ftp, "/a", buffer)
    server.session_type = Hasty
    ftp = session(server)
    content_of(ftp, "/a", buffer)
    with pytest.raises(SessionFault, match="answered") as caught:
        ftp.write("/.p", Bytes(b"xyz"), buffer).size_bytes  # noqa: B018 - asks
        content_of(ftp, "/a", buffer)
    assert not caught.value.spends_attempt
    again = session(server)
    assert again.link.control.pipelining.is_one_by_one
    assert content_of(again, "/a", buffer) == b"12345"


def test_a_rename_is_two_writes_until_the_order_is_proven(fake, session, buffer) -> None:
    """RNTO behind a RNFR of another file would rename the wrong one. A login proves it, or else a transfer."""

    def publish() -> None:
        ftp.publish(Stored("/.p", 1, 1), "/f", None).result()

    server = fake(files={"/.p": b"1", "/a": b"2"}, features=())
    ftp = session(server)
    assert writes_of(server, publish) == [["RNFR", "RNTO"]]
    server = fake(files={"/.p": b"1", "/a": b"2"}, features=(), answers={"EPSV": "502 No."})
    ftp = session(server)
    assert writes_of(server, publish) == [["RNFR"], ["RNTO"]]
    assert server.files.pop("/f") == b"1"
    for _ in range(2):
        content_of(ftp, "/a", buffer)
    server.files["/.p"] = b"1"
    assert writes_of(server, publish) == [["RNFR", "RNTO"]]


# --- stray replies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strays", [1, 2, 3])
def test_a_reply_given_twice_is_never_another_commands(fake, session, buffer, strays: int) -> None:
    """226 more than once: the size is no success, nothing is renamed, the source stays."""

    def stor(its: FakeSession, argument: str) -> str:
        return "\r\n".join([its.stor(argument)] * (1 + strays))

    source = fake(files={"/a": b"12345"})
    server = fake(answers={"STOR": stor, "RNTO": "550 No."})
    for verify in ("auto", "none"):
        known.forget()
        with pytest.raises(SessionFault):
            relay.run(
                a_task("/a", "/b", verify=verify),
                session(source),
                session(server),
                "t",
                relay.Limits(buffer, 0, 0),
                partials.OrphanIndex(),
            )
    assert "/b" not in server.files
    assert source.files == {"/a": b"12345"}


def test_a_stray_reply_in_place_of_a_time_is_no_word_about_the_file(fake, session) -> None:
    """A source whose time is not told would count as another file: it would stay, and the job be done."""

    def mdtm(its: FakeSession, argument: str) -> str:
        return f"200 Type set.\r\n{its.mdtm(argument)}"

    server = fake(files={"/a": b"1"}, answers={"MDTM": mdtm})
    with pytest.raises(SessionFault, match="answered MDTM with 200 Type set"):
        session(server).look("/a")
    server.answers["MDTM"] = "213 unknown"
    assert session(server).look("/a").mtime is None


def test_a_late_stray_is_seen_before_the_next_write(fake, session) -> None:
    """It lies unread while nothing is due: the session is dropped before anything is asked in it."""
    server = fake(files={"/a": b"1", "/b": b"22"})
    ftp = session(server)
    ftp.look("/a")
    server.say(b"250 Done.\r\n")
    wait_for(lambda: has_come(ftp))
    before = len(server.commands)
    with pytest.raises(SessionFault, match="spoke unasked: 250 Done"):
        ftp.remove("/b")
    assert len(server.commands) == before
    assert server.files == {"/a": b"1", "/b": b"22"}


# --- the session's own faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "code"),
    [(verb, code) for verb in ("RETR", "STOR", "DELE", "CWD", "NOOP", "SIZE") for code in (530, 532)]
    + [(verb, 503) for verb in ("DELE", "CWD", "NOOP", "SIZE")],
)
def test_a_login_that_was_forgotten_says_nothing_of_a_file(fake, session, buffer, verb: str, code: int) -> None:
    """530, 532, 503 in mid-session: the session is over; a source that was to be deleted is not called gone."""
    server = fake(files={"/a": b"1", "/d/x": b"2"})
    ftp = session(server)
    content_of(ftp, "/a", buffer)
    for known_verb in (verb, "SIZE", "CWD"):
        server.answers[known_verb] = f"{code} Please log in."
    actions: dict[str, Callable[[], object]] = {
        "RETR": lambda: ftp.read("/a"),
        "STOR": lambda: ftp.write("/.p", Bytes(b"1"), buffer),
        "DELE": lambda: ftp.dispose("/a").result(),
        "CWD": lambda: ftp.names("/d"),
        "NOOP": ftp.ping,
        "SIZE": lambda: ftp.look("/a"),
    }
    with pytest.raises(SessionFault, match="Please log in"):
        actions[verb]()
    assert server.files["/a"] == b"1"


def test_a_dead_idle_session_is_found_before_anything_is_asked(fake, session, buffer) -> None:
    """A restart of the server between two jobs costs the second one no attempt."""
    server = fake(files={"/a": b"1"})
    ftp = session(server)
    content_of(ftp, "/a", buffer)
    before = len(server.commands)
    server.hang_up()
    wait_for(lambda: has_come(ftp))
    with pytest.raises(SessionFault) as caught:
        ftp.read("/a")
    assert not caught.value.spends_attempt
    assert len(server.commands) == before


# --- servers that lose the second command of a write ---------------------------------------------------------------


def test_a_server_that_loses_the_second_command_is_met_again_in_seconds(fake, session, buffer) -> None:
    """Not after the login's whole time limit, and not as a server that is down."""

    class Loser(FakeSession):
        def serve(self, verb: str, argument: str) -> None:
            if verb == self.write[0]:
                super().serve(verb, argument)

    server = fake(files={"/a": b"12345"})
    server.session_type = Loser
    started = time.monotonic()
    ftp = session(server)
    assert content_of(ftp, "/a", buffer) == b"12345"
    assert time.monotonic() - started < 10
    assert ftp.link.control.pipelining.is_one_by_one


def test_a_server_that_waits_for_its_port_to_be_used_is_met_again(fake, session, buffer) -> None:
    """Twisted reads no command behind EPSV before somebody has connected: that is an order, and not an outage."""

    class Waiting(FakeSession):
        def serve(self, verb: str, argument: str) -> None:
            if verb == "PWD" and self.waiting is not None:
                self.data().close()  # nobody comes
            super().serve(verb, argument)

    server = fake(files={"/a": b"12345"})
    server.session_type = Waiting
    started = time.monotonic()
    ftp = session(server)
    assert time.monotonic() - started < 10
    for _ in range(2):
        assert content_of(ftp, "/a", buffer) == b"12345"
    assert not ftp.link.control.pipelining.is_one_by_one


def test_what_was_learnt_of_the_order_is_the_servers_not_the_sessions(fake, session) -> None:
    """Only the first session of an address asks."""
    server = fake()
    first = writes_of(server, lambda: session(server))
    second = writes_of(server, lambda: session(server))
    assert first[-1] == ["OPTS", "TYPE", "EPSV", "PWD"]
    assert second[-1] == ["OPTS", "TYPE", "PWD"]


def test_a_refused_file_where_a_port_should_be_is_the_next_commands(fake, session, buffer) -> None:
    """ftp-srv refuses a transfer before it gives the port that was asked for in the same write; no attempt is spent."""
    tries = iter(["550 Passive server not setup"])

    def epsv(its: FakeSession, _: str) -> str:
        if "RETR" in its.write and (refusal := next(tries, None)):
            return refusal
        return its.epsv("")

    server = fake(files={"/a": b"12345"}, features=("SIZE", "MDTM", "EPSV"), answers={"EPSV": epsv})
    ftp = session(server)
    with pytest.raises(SessionFault, match="answered EPSV with 550"):
        for _ in range(3):
            assert content_of(ftp, "/a", buffer) == b"12345"
    ftp = session(server)
    assert ftp.link.control.pipelining.is_one_by_one
    assert content_of(ftp, "/a", buffer) == b"12345"
