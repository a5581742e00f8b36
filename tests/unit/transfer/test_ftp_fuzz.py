"""Hostile bytes on a control connection: whatever comes, however cut, every command ends in a reply or an error."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.config import ServerConfig
from etl.errors import EtlError, InvalidPath
from etl.transfer.ftp import known, opening, pipelining
from etl.transfer.ftp.control import Control
from etl.transfer.ftp.names import Names
from etl.transfer.ftp.pending import Pending
from etl.transfer.ftp.replies import Reply
from etl.transfer.ftp.sockets import Sockets

pytestmark = pytest.mark.unit

SERVER = ServerConfig("FAKE", "ftp", "fuzz.example", 21)
LINES = st.one_of(
    st.sampled_from([b"200 Ok.", b"150 Go.", b"226 Done.", b"213 12", b"421 Bye.", b"500 What?", b"229 (|||1234|)"]),
    st.sampled_from([b"200-Many", b"226-", b"200", b"", b" 200 inside", b"999 No", b"2", b"\0\xff", b"150-"]),
    st.binary(max_size=30),
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\r\n", b"\n", b"\r", b""])), max_size=12).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


def outcome(pending: Pending) -> Reply | EtlError:
    """Ask for a reply; return it, or the error."""
    try:
        return pending.result()
    except EtlError as error:
        return error


def talk(stream: bytes, verbs: list[tuple[str, bool]], *, one_by_one: bool, peeks: bool) -> list[Pending]:
    """Send commands to a server that says `stream`, come what may, and hangs up; return what became of each."""
    ours, theirs = socket.socketpair()
    known.forget()
    manner = pipelining.Pipelining(SERVER)
    if one_by_one:
        manner.slow_down()
    with ours, theirs:
        theirs.sendall(stream)
        theirs.shutdown(socket.SHUT_WR)
        control = Control(ours, Sockets(), "FAKE", manner, login=5.0, reply=5.0)
        control.logged_in()
        pendings: list[Pending] = []
        for verb, transfers in verbs:
            try:
                pendings.append(control.send(verb, b"/x", transfers=transfers))
                if peeks:
                    control.push()
                    control.peek()
                if transfers:
                    pendings[-1].started()
                    pendings[-1].result()
            except EtlError:
                break
        for pending in pendings:
            assert outcome(pending) is outcome(pending)
        try:
            control.flush()
            control.require_silence()
        except EtlError:
            return pendings
        raise AssertionError("a server that hung up is not quiet")


@settings(max_examples=300, deadline=None)
@given(
    STREAMS,
    st.lists(st.sampled_from([("SIZE", False), ("MDTM", False), ("RETR", True), ("STOR", True)]), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_every_command_ends_in_a_reply_or_one_of_our_errors(
    stream: bytes, verbs: list[tuple[str, bool]], one_by_one: bool, peeks: bool
) -> None:
    """No other exception, no wait beyond the end, no reply given to two, none to a command before it was begun."""
    replies = [pending.reply for pending in talk(stream, verbs, one_by_one=one_by_one, peeks=peeks) if pending.reply]
    assert len({id(reply) for reply in replies}) == len(replies)
    assert all(reply.code >= 200 for reply in replies)
    sent = [reply.lines[0] for reply in replies]
    rest = stream
    for line in sent:  # in the order in which they came
        assert line in rest
        rest = rest[rest.index(line) + len(line) :]


@settings(deadline=None)
@given(
    st.one_of(st.binary(max_size=600), st.text("0123456789,|()- ", max_size=9000).map(str.encode)),
    st.booleans(),
    st.booleans(),
)
def test_a_port_is_read_or_refused(text: bytes, extended: bool, begins_well: bool) -> None:
    """From any reply: a number that is a port, or none; quickly, whatever it holds."""
    line = (b"229 (|||" if extended else b"227 (1,2,3,4,") + text if begins_well else b"227 " + text
    port = opening.port_in(Reply(int(line[:3]), (line,)))
    assert port is None or 0 < port < 65536


@given(st.text(max_size=60), st.sampled_from(["utf-8", "euc-kr", "latin-1"]), st.sampled_from(["", "/base", "base"]))
def test_no_path_smuggles_a_command(path: str, encoding: str, base: str) -> None:
    """What reaches the wire is one line, whatever a job calls its file."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        control = Control(ours, Sockets(), "FAKE", pipelining.Pipelining(SERVER), login=5.0, reply=5.0)
        control.logged_in()
        names = Names(encoding, base, "/home")
        try:
            control.send("RETR", names.wire(names.whole(path)))
            control.push()
        except InvalidPath:
            return
        theirs.settimeout(5)
        sent = theirs.recv(4096)
    assert sent.startswith(b"RETR /")
    assert sent.endswith(b"\r\n")
    assert sent.count(b"\n") == sent.count(b"\r") == 1
    assert b"\0" not in sent
