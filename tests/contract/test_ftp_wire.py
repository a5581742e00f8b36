"""What an FTP session sends, and what it makes of logins, replies and data connections; a server that does as told."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest
from contract_parts import SHORT, Bytes, drain, writes_of

from etl.config import TransferSettings
from etl.errors import (
    AuthenticationFailed,
    ConnectionLost,
    EtlError,
    Fate,
    InvalidPath,
    IOFailure,
    ServerBusy,
    ServerUnavailable,
    TransferTimeout,
)
from etl.models.task import Facts
from etl.transfer.base import Stored
from servers.fake import HOST, SILENCE, FakeSession

pytestmark = pytest.mark.contract

# --- what is sent, in how many writes ---------------------------------------------------------------------------


def test_login_asks_for_features_and_binary_type_once(fake, session) -> None:
    """UTF8 is switched on where it is offered; the rest of a session needs neither TYPE nor CWD."""
    server = fake()
    session(server).ping()
    assert server.writes == [["USER"], ["PASS"], ["FEAT"], ["OPTS", "TYPE", "EPSV", "PWD"], ["NOOP"]]
    assert "OPTS UTF8 ON" in server.commands
    assert "TYPE I" in server.commands


def test_commands_wait_for_a_question_and_leave_in_one_write(fake, session, buffer) -> None:
    """Round trips are what costs: a download needs two writes, an upload two, a publish one.

    Only the first transfer of a session asks for its data connection by itself: it may have to ask in another way.
    """
    server = fake(files={"/a": b"12345"}, features=("SIZE", "MDTM", "MFMT", "EPSV"))
    ftp = session(server)

    def download() -> None:
        parcel = ftp.read("/a")
        drain(parcel, buffer)
        parcel.close(complete=True)
        assert ftp.unchanged(parcel).result()

    assert writes_of(server, download) == [["SIZE", "MDTM", "EPSV"], ["RETR"], ["SIZE", "MDTM"]]
    assert writes_of(server, download) == [["SIZE", "MDTM", "EPSV", "RETR"], ["SIZE", "MDTM"]]
    stored: list[Stored] = []

    def upload() -> None:
        stored.append(ftp.write("/.p", Bytes(b"xyz"), buffer))
        assert stored[0].size_bytes == 3

    assert writes_of(server, upload) == [["EPSV", "STOR"], ["SIZE"]]
    assert writes_of(server, lambda: ftp.publish(stored[0], "/b", 1e9).result()) == [["MFMT", "RNFR", "RNTO"]]
    assert server.files == {"/a": b"12345", "/b": b"xyz"}


def test_a_promise_nobody_asked_yet_leaves_with_the_next_commands(fake, session) -> None:
    """Replies are read in order, also for promises that are asked in another one."""
    server = fake(files={"/a": b"1", "/b": b"2", "/c": b"333"})
    ftp = session(server)
    ftp.look("/c")  # the first one finds out whether SIZE answers for folders, too

    def act() -> None:
        first, second = ftp.dispose("/a"), ftp.dispose("/b")
        assert ftp.look("/c") == Facts(3, 1767323045.0)
        second.result()
        first.result()
        first.result()

    assert writes_of(server, act) == [["DELE", "DELE", "SIZE", "MDTM"]]
    assert set(server.files) == {"/c"}


def test_flush_settles_what_is_open(fake, session) -> None:
    """After `flush` everything was sent and answered."""
    server = fake(files={"/a": b"1"})
    ftp = session(server)
    promise = ftp.dispose("/a")
    assert set(server.files) == {"/a"}
    ftp.flush()
    assert server.files == {}
    assert writes_of(server, promise.result) == []


def test_nothing_is_written_while_a_transfer_runs(fake, session, buffer) -> None:
    """A command during a transfer is a bug of the caller: it raises, and the transfer goes on."""
    server = fake(files={"/a": b"x" * 500_000})
    ftp = session(server)
    parcel = ftp.read("/a")
    for forbidden in (ftp.ping, lambda: ftp.look("/a"), lambda: ftp.dispose("/a"), lambda: ftp.read("/a")):
        with pytest.raises(RuntimeError, match="RETR"):
            forbidden()
    assert len(drain(parcel, buffer)) == 500_000
    parcel.close(complete=True)
    ftp.ping()
    assert server.commands[-2:] == ["RETR /a", "NOOP"]


# --- data connections -------------------------------------------------------------------------------------------


def test_the_address_in_a_passive_reply_is_not_followed(fake, session, buffer) -> None:
    """A server cannot point us at a third host: the control connection's peer is used (RFC 2577)."""
    server = fake(
        files={"/a": b"12345"},
        answers={
            "EPSV": "500 What?",
            "PASV": lambda its, _: "227 Ok (192,0,2,7,{},{}).".format(*divmod(its.listen(), 256)),
        },
    )
    ftp = session(server)
    for _ in range(2):
        parcel = ftp.read("/a")
        assert drain(parcel, buffer) == b"12345"
        parcel.close(complete=True)
    sent = [line.split()[0] for line in server.commands]
    assert sent.count("EPSV") == 1, "a refused EPSV is remembered"
    assert sent.count("PASV") == 2


@pytest.mark.parametrize(
    "reply",
    [
        "227 Ok.",
        "227 (1,2,3)",
        "229 (|||0|)",
        "229 (|||99999|)",
        "229 ()",
        "425 No.",
        "227 (1,2,3,4,5,1234)",
        "227 (1,2,3,4,1,300)",
    ],
)
def test_a_passive_reply_without_a_port_is_an_error(fake, session, reply: str) -> None:
    """Nonsense is named, and the job may try again."""
    server = fake(files={"/a": b""}, answers={"EPSV": reply if reply[:3] != "227" else "500 No.", "PASV": reply})
    with pytest.raises(IOFailure) as caught:
        session(server).read("/a")
    assert caught.value.fate is Fate.RETRY


def test_in_active_mode_only_the_server_is_let_in(fake, session, buffer) -> None:
    """A stranger who connects to our port first is turned away."""
    strangers: list[socket.socket] = []

    def port(its: FakeSession, argument: str) -> str:
        answer = its.port(argument)
        stranger = socket.socket()
        stranger.bind(("127.0.0.9", 0))
        stranger.connect(its.active)
        strangers.append(stranger)
        return answer

    server = fake(files={"/a": b"12345"}, answers={"PORT": port})
    ftp = session(server, passive=False)
    parcel = ftp.read("/a")
    assert drain(parcel, buffer) == b"12345"
    parcel.close(complete=True)
    assert strangers[0].recv(1) == b""
    strangers[0].close()
    assert "EPSV" not in str(server.commands[4:])


def test_a_server_that_does_not_come_is_a_timeout(fake, session) -> None:
    """Active mode waits for the server's connection as long as for one of ours."""
    server = fake(files={"/a": b""}, answers={"RETR": "150 Coming."})
    with pytest.raises(TransferTimeout, match="ETL_CONNECT_TIMEOUT_SECONDS"):
        session(server, SHORT, passive=False).read("/a")


def test_the_global_mode_holds_where_a_server_has_none_of_its_own(fake, session) -> None:
    """FTP_PASSIVE_MODE=false makes sessions active."""
    server = fake(files={"/a": b""})
    session(server, TransferSettings(passive=False)).read("/a").close(complete=True)
    assert any(line.startswith("PORT ") for line in server.commands)


def test_sockets_are_set_as_promised(fake, session) -> None:
    """No delay, keepalive, a limit on silence; the kernel's own buffer sizing is not touched."""
    locked_buffers = 72  # SO_BUF_LOCK, Linux 5.15: which buffer sizes were set by hand
    server = fake(files={"/a": b"x"})
    ftp = session(server)
    parcel = ftp.read("/a")
    for sock in (ftp.link.control.sock, parcel._data._sock):
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
        assert sock.getsockopt(socket.SOL_SOCKET, locked_buffers) == 0
    parcel.close(complete=False)


# --- login ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        ({"welcome": "421 Too many users."}, ServerBusy),
        ({"welcome": "530 Too many connections from your address."}, ServerBusy),
        ({"welcome": "500 Go away."}, ServerUnavailable),
        ({"welcome": "SSH-2.0-OpenSSH_9"}, ServerUnavailable),
        ({"welcome": SILENCE}, ServerUnavailable),
        ({"answers": {"USER": "530 No."}}, AuthenticationFailed),
        ({"answers": {"PASS": "530 Login incorrect."}}, AuthenticationFailed),
        ({"answers": {"PASS": "430 Invalid."}}, AuthenticationFailed),
        ({"answers": {"PASS": "332 Account?"}}, AuthenticationFailed),
        ({"answers": {"PASS": "530 The maximum number of clients is logged in."}}, ServerBusy),
        ({"answers": {"PASS": "530 Too many connections"}}, ServerBusy),
        ({"answers": {"PASS": "530 Too many failed logins, account locked."}}, AuthenticationFailed),
        ({"answers": {"PASS": "530 Login incorrect, maximum of 3 attempts reached."}}, AuthenticationFailed),
        ({"answers": {"USER": "530 Only TLS connections are allowed."}}, AuthenticationFailed),
        ({"answers": {"PASS": "421 Busy."}}, ServerBusy),
        ({"answers": {"PASS": "451 Disk trouble."}}, ServerUnavailable),
        ({"answers": {"PASS": SILENCE}}, ServerUnavailable),
        ({"answers": {"FEAT": lambda its, _: its.drop()}}, ServerUnavailable),
        ({"answers": {"TYPE": "500 No."}}, ServerUnavailable),
    ],
)
def test_a_refused_login_is_an_outage_of_the_right_kind(fake, session, behaviour, kind: type[EtlError]) -> None:
    """Busy, down and refusing are told apart; none spends an attempt, none shows the password."""
    server = fake(**behaviour)
    with pytest.raises(EtlError) as caught:
        session(server, SHORT)
    assert type(caught.value) is kind
    assert caught.value.fate is Fate.OUTAGE
    assert caught.value.server == "FAKE"
    assert server.password not in str(caught.value)


def test_the_round_trip_is_what_the_kernel_measured(fake, session) -> None:
    """On loopback well below a tenth of a second; of a session that is closed nothing is known, and nothing raised."""
    open_ = session(fake())
    seconds = open_.round_trip_seconds()
    assert seconds is not None
    assert 0 < seconds < 0.1
    open_.disconnect()
    assert open_.round_trip_seconds() is None


def test_a_password_that_a_server_repeats_is_not_shown(fake, session) -> None:
    """Some servers quote what they were sent."""
    server = fake(answers={"PASS": lambda _, argument: f"530 {argument} is wrong."})
    with pytest.raises(AuthenticationFailed) as caught:
        session(server)
    assert server.password not in str(caught.value)


def test_the_limit_that_was_passed_is_named(fake, session) -> None:
    """Whoever reads the log knows which setting to look at."""
    with pytest.raises(ServerUnavailable, match="ETL_LOGIN_TIMEOUT_SECONDS"):
        session(fake(welcome=SILENCE), SHORT)
    with pytest.raises(TransferTimeout, match="ETL_REPLY_TIMEOUT_SECONDS"):
        session(fake(answers={"NOOP": SILENCE}), SHORT).ping()


def test_a_slow_login_is_limited_as_a_whole(fake, session) -> None:
    """A server that answers each command just in time does not hold a lane for ever."""

    def slowly(reply: str) -> Callable[[FakeSession, str], str]:
        def answer(_: FakeSession, __: str) -> str:
            time.sleep(0.2)
            return reply

        return answer

    server = fake(answers={"USER": slowly("331 Well"), "PASS": slowly("230 In"), "FEAT": slowly("211 None")})
    with pytest.raises(ServerUnavailable, match="ETL_LOGIN_TIMEOUT_SECONDS"):
        session(server, SHORT)


def test_a_port_where_nobody_listens_is_unavailable(session) -> None:
    """Connection refused is an outage."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    gone = type("Gone", (), {"host": HOST, "port": port, "username": "u", "password": "p"})
    with pytest.raises(ServerUnavailable, match=str(port)):
        session(gone)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "bad host", "a" * 70 + ".invalid", ""])
def test_a_host_that_is_none_is_unavailable(session, host: str) -> None:
    """Wrong names are told like servers that are away."""
    gone = type("Gone", (), {"host": host, "port": 1, "username": "u", "password": "p"})
    with pytest.raises(ServerUnavailable):
        session(gone)


def test_a_welcome_that_announces_a_delay_is_waited_for(fake, session) -> None:
    """120 means: ready soon."""
    session(fake(welcome="120 Wait.\r\n220 Now.")).ping()


def test_passwords_are_sent_whatever_the_encoding_of_names(fake, session) -> None:
    """As UTF-8 where the server's encoding cannot express them; with a line break in it, never."""
    server = fake()
    server.password = "\N{SNOWMAN}"
    session(server, encoding="euc-kr").ping()
    server.password = "x\r\nDELE /a"
    with pytest.raises(AuthenticationFailed, match="line break"):
        session(server)
    assert not any(line.startswith("DELE") for line in server.commands)


@pytest.mark.parametrize("argument", [b"/a\r\nDELE /b", b"/a\n", b"/a\0b"])
def test_no_argument_carries_a_second_command(fake, session, argument: bytes) -> None:
    """Whoever made it: it is refused before anything is sent, and the session goes on."""
    server = fake()
    opened = session(server)
    with pytest.raises(InvalidPath, match="line break or NUL"):
        opened.link.command("SIZE", argument)
    opened.ping()
    assert not any(line.startswith(("SIZE", "DELE")) for line in server.commands)


def test_a_promise_asked_at_a_wrong_time_may_be_asked_again(fake, session, buffer) -> None:
    """During a transfer it raises; after it, it answers."""
    server = fake(files={"/a": b"x", "/b": b"y"}, answers={"MLST": "500 No."})
    ftp = session(server)
    parcel = ftp.read("/a")
    drain(parcel, buffer)
    parcel.close(complete=True)
    promise = ftp.unchanged(parcel)
    ftp.link.control.flush()
    refused = ftp.dispose("/none")
    ftp.link.control.flush()
    running = ftp.link.starting.start("RETR", b"/b")
    with pytest.raises(RuntimeError):
        refused.result()
    assert promise.result()
    running.data.close()
    running.command.result()
    refused.result()


def test_users_without_a_password_are_let_in(fake, session) -> None:
    """230 to USER ends the login."""
    server = fake(answers={"USER": "230 In."})
    session(server).ping()
    assert not any(line.startswith("PASS") for line in server.commands)


# --- replies ----------------------------------------------------------------------------------------------------


def test_replies_of_many_lines_are_one_reply(fake, session) -> None:
    """Lines inside may look like anything, also like other replies."""
    server = fake(answers={"NOOP": "200-One\r\n 200 not the end\r\n226 nor this\r\n200-\r\n200 End"})
    ftp = session(server)
    ftp.ping()
    ftp.ping()


@pytest.mark.parametrize(
    "reply", ["hello", "999 What", "20 Short", "200-" + "x" * 9000, "x" * 20_000, "200-a\r\n" * 1100, "\0\xff"]
)
def test_a_reply_that_is_none_ends_the_session(fake, session, reply: str) -> None:
    """Garbage and endless replies are a lost connection, with bounded memory."""
    ftp = session(fake(answers={"NOOP": reply}))
    with pytest.raises(ConnectionLost):
        ftp.ping()
    with pytest.raises(ConnectionLost):
        ftp.look("/a")


def test_a_farewell_is_a_lost_connection_whenever_it_comes(fake, session) -> None:
    """421 after login: asked for or not, before a write or instead of a reply."""
    ftp = session(fake(answers={"SIZE": "421 Timeout."}))
    with pytest.raises(ConnectionLost, match="Timeout"):
        ftp.look("/a")
    server = fake()
    ftp = session(server)
    server.say(b"421 Idle too long.\r\n")
    server.hang_up()
    time.sleep(0.05)
    with pytest.raises(ConnectionLost, match="Idle too long"):
        ftp.ping()


def test_a_word_nobody_asked_for_spoils_the_session(fake, session) -> None:
    """A reply too many would answer the next command: the ping sees it first."""
    server = fake()
    ftp = session(server)
    server.say(b"226 By the way.\r\n")
    time.sleep(0.05)
    with pytest.raises(ConnectionLost, match="By the way"):
        ftp.ping()


def test_a_broken_session_says_the_same_again(fake, session) -> None:
    """Everything that was due fails with the error that broke it."""
    server = fake(answers={"DELE": lambda its, _: its.drop()}, files={"/a": b"1"})
    ftp = session(server)
    first, second = ftp.dispose("/a"), ftp.dispose("/a")
    with pytest.raises(ConnectionLost):
        second.result()
    with pytest.raises(ConnectionLost):
        first.result()
    with pytest.raises(ConnectionLost):
        ftp.ping()


def test_a_session_that_is_not_connected_says_so(fake, session) -> None:
    """Nothing hangs, nothing is an assertion."""
    ftp = session(fake(), connect=False)
    for action in (ftp.ping, ftp.flush, lambda: ftp.look("/a"), lambda: ftp.read("/a")):
        with pytest.raises(ConnectionLost, match="not connected"):
            action()
    ftp.disconnect()
