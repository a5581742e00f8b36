"""What an FTP session sends, what it makes of odd servers, and how it fails; against a server that does as told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from contract_parts import Bytes, drain

from etl.config import ServerConfig, TransferSettings
from etl.errors import (
    AuthenticationFailed,
    ConnectionLost,
    EtlError,
    Fate,
    FileMissing,
    InvalidPath,
    IOFailure,
    PermissionRefused,
    ServerBusy,
    ServerUnavailable,
    SettingsError,
    StorageFull,
    TransferTimeout,
)
from etl.models.task import Facts
from etl.transfer.base import Stored
from etl.transfer.ftp import FTPTransfer, publishing
from servers.fake import HOST, SILENCE, FakeFTP, FakeSession, wait_for
from servers.pyftpd import PyFTPD

pytestmark = pytest.mark.contract

SHORT = TransferSettings(connect_timeout=0.3, login_timeout=0.3, reply_timeout=0.3, stall_timeout=0.3)
LONG = TransferSettings(connect_timeout=5, login_timeout=5, reply_timeout=5, stall_timeout=5)


@pytest.fixture
def fake() -> Iterator[Callable[..., FakeFTP]]:
    """Start fake servers; they are closed after the test, after its sessions."""
    servers: list[FakeFTP] = []

    def start(**behaviour: Any) -> FakeFTP:
        servers.append(FakeFTP(**behaviour))
        return servers[-1]

    yield start
    for server in servers:
        publishing.forget_refusers()
        server.close()


@pytest.fixture
def session(fake: Callable[..., FakeFTP]) -> Iterator[Callable[..., FTPTransfer]]:
    """Open sessions; they are closed after the test."""
    sessions: list[FTPTransfer] = []

    def open_one(
        server: FakeFTP | PyFTPD, limits: TransferSettings = LONG, *, connect: bool = True, **settings: Any
    ) -> FTPTransfer:
        config = ServerConfig("FAKE", "ftp", server.host, server.port, server.username, server.password)
        sessions.append(FTPTransfer(ServerConfig(**{**vars(config), **settings}), limits))
        if connect:
            sessions[-1].connect()
        return sessions[-1]

    yield open_one
    for one in sessions:
        one.disconnect()


@pytest.fixture
def buffer() -> memoryview:
    return memoryview(bytearray(64 * 1024))


def writes_of(server: FakeFTP, action: Callable[[], object]) -> list[list[str]]:
    """Return what a client wrote during an action, write by write."""
    before = len(server.writes)
    action()
    return server.writes[before:]


# --- what is sent, in how many writes ---------------------------------------------------------------------------


def test_login_asks_for_features_and_binary_type_once(fake, session) -> None:
    """UTF8 is switched on where it is offered; the rest of a session needs neither TYPE nor CWD."""
    server = fake()
    session(server).ping()
    assert server.writes == [["USER"], ["PASS"], ["FEAT"], ["OPTS", "TYPE", "PWD"], ["NOOP"]]
    assert "OPTS UTF8 ON" in server.commands
    assert "TYPE I" in server.commands


def test_commands_wait_for_a_question_and_leave_in_one_write(fake, session, buffer) -> None:
    """Round trips are what costs: a download needs three writes, an upload three, a publish one."""
    server = fake(files={"/a": b"12345"}, features=("SIZE", "MDTM", "MFMT", "EPSV"))
    ftp = session(server)

    def download() -> None:
        parcel = ftp.read("/a")
        drain(parcel, buffer)
        parcel.close(complete=True)
        assert ftp.unchanged(parcel).result()

    assert writes_of(server, download) == [["SIZE", "MDTM", "EPSV"], ["RETR"], ["SIZE", "MDTM"]]
    stored: list[Stored] = []
    uploading = writes_of(server, lambda: stored.append(ftp.write("/.p", Bytes(b"xyz"), buffer)))
    assert uploading == [["EPSV"], ["STOR"], ["SIZE"]]
    assert writes_of(server, lambda: ftp.publish(stored[0], "/b", 1e9).result()) == [["MFMT", "RNFR", "RNTO"]]
    assert server.files == {"/a": b"12345", "/b": b"xyz"}


def test_a_promise_nobody_asked_yet_leaves_with_the_next_commands(fake, session) -> None:
    """Replies are read in order, also for promises that are asked in another one."""
    server = fake(files={"/a": b"1", "/b": b"2", "/c": b"333"})
    ftp = session(server)

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


@pytest.mark.parametrize("reply", ["227 Ok.", "227 (1,2,3)", "229 (|||0|)", "229 (|||99999|)", "229 ()", "425 No."])
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
    for sock in (ftp._control.sock, parcel._data._sock):
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


def test_a_promise_asked_at_a_wrong_time_may_be_asked_again(fake, session, buffer) -> None:
    """During a transfer it raises; after it, it answers."""
    server = fake(files={"/a": b"x", "/b": b"y"}, answers={"MLST": "500 No."})
    ftp = session(server)
    parcel = ftp.read("/a")
    drain(parcel, buffer)
    parcel.close(complete=True)
    promise = ftp.unchanged(parcel)
    ftp._control.flush()
    refused = ftp.dispose("/none")
    ftp._control.flush()
    running = ftp._start(ftp._open_data(), "RETR", b"/b")
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
    for sock in list(server._sockets):
        sock.sendall(b"421 Idle too long.\r\n")
        sock.shutdown(socket.SHUT_RDWR)
    time.sleep(0.05)
    with pytest.raises(ConnectionLost, match="Idle too long"):
        ftp.ping()


def test_a_word_nobody_asked_for_spoils_the_session(fake, session) -> None:
    """A reply too many would answer the next command: the ping sees it first."""
    server = fake()
    ftp = session(server)
    for sock in list(server._sockets):
        sock.sendall(b"226 By the way.\r\n")
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


# --- transfers that fail ----------------------------------------------------------------------------------------


def test_a_stalled_download_is_a_timeout(fake, session, buffer) -> None:
    """No byte for the stall limit, and the lane is free again."""

    def hang(its: FakeSession, _: str) -> str:
        its.reply("150 Soon.")
        with its.data() as sock:
            sock.sendall(b"123")
            sock.recv(1)
        return "426 Well."

    ftp = session(fake(files={"/a": b"12345"}, answers={"RETR": hang}), SHORT)
    parcel = ftp.read("/a")
    with pytest.raises(TransferTimeout, match="ETL_STALL_TIMEOUT_SECONDS"):
        drain(parcel, buffer)
    with pytest.raises(EtlError):
        ftp.ping()


def test_a_stalled_upload_is_a_timeout(fake, session) -> None:
    """The same for a server that takes no more."""
    done = threading.Event()

    def hang(its: FakeSession, _: str) -> str:
        its.reply("150 Soon.")
        with its.data():
            done.wait(10)
        return "426 Well."

    ftp = session(fake(answers={"STOR": hang}), SHORT)
    with pytest.raises(TransferTimeout, match="ETL_STALL_TIMEOUT_SECONDS"):
        ftp.write("/.p", Bytes(bytes(64 << 20)), memoryview(bytearray(1 << 20)))
    done.set()


def test_a_slow_server_may_take_its_time_after_the_last_byte(fake, session) -> None:
    """The kernel holds megabytes when we are done: the final reply's limit counts from when they stop moving."""

    def slowly(its: FakeSession, argument: str) -> str:
        its.reply("150 Soon.")
        count = 0
        with its.data() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            while piece := sock.recv(1 << 20):
                count += len(piece)
                time.sleep(0.05)
        its.server.files[argument] = bytes(count)
        return "226 Done."

    limits = TransferSettings(connect_timeout=5, login_timeout=5, reply_timeout=1.2, stall_timeout=5)
    ftp = session(fake(answers={"STOR": slowly}), limits)
    stored = ftp.write("/.p", Bytes(bytes(3 << 20)), memoryview(bytearray(1 << 20)))
    assert stored.size_bytes == 3 << 20


def test_a_cut_download_is_never_a_whole_file(fake, session, buffer) -> None:
    """End of file and then 426: closing says so. End of file and a lying 226: the size differs."""

    def cut(final: str) -> Callable[[FakeSession, str], str]:
        def retr(its: FakeSession, _: str) -> str:
            its.reply("150 Soon.")
            its.send_data(b"123")
            return final

        return retr

    ftp = session(fake(files={"/a": b"12345"}, answers={"RETR": cut("426 Broken.")}))
    parcel = ftp.read("/a")
    assert drain(parcel, buffer) == b"123"
    with pytest.raises(ConnectionLost):
        parcel.close(complete=True)
    ftp = session(fake(files={"/a": b"12345"}, answers={"RETR": cut("226 Fine.")}))
    parcel = ftp.read("/a")
    assert len(drain(parcel, buffer)) != parcel.facts.size_bytes


def test_a_download_of_more_than_was_read_is_an_error(fake, session) -> None:
    """Whoever closes early as complete is told that there was more."""
    ftp = session(fake(files={"/a": b"12345"}))
    parcel = ftp.read("/a")
    assert parcel.readinto(memoryview(bytearray(2))) == 2
    with pytest.raises(EtlError, match="more bytes"):
        parcel.close(complete=True)


@pytest.mark.parametrize("code", [452, 552])
@pytest.mark.parametrize("when", ["first", "last"])
def test_a_full_disk_is_told(fake, session, buffer, code: int, when: str) -> None:
    """Before the data or after it; what was stored of the file is removed."""

    def last(its: FakeSession, argument: str) -> str:
        its.stor(argument)
        return f"{code} No room."

    server = fake(answers={"STOR": f"{code} No room." if when == "first" else last})
    with pytest.raises(StorageFull):
        session(server).write("/.p", Bytes(b"x" * 100), buffer)
    assert server.files == {}


def test_a_full_disk_in_the_middle_is_told(fake, session) -> None:
    """The server resets the data connection; its reason is read all the same."""

    def middle(its: FakeSession, argument: str) -> str:
        its.reply("150 Go on.")
        its.server.files[argument] = b"part"
        with its.data() as sock:
            sock.recv(1000)
        return "552 Quota."

    server = fake(answers={"STOR": middle})
    with pytest.raises(StorageFull, match="Quota"):
        session(server).write("/.p", Bytes(bytes(32 << 20)), memoryview(bytearray(1 << 20)))
    assert server.files == {}


def test_what_the_server_stored_is_what_counts(fake, session, buffer) -> None:
    """A 226 proves nothing: the size is asked for, and told."""

    def half(its: FakeSession, argument: str) -> str:
        answer = its.stor(argument)
        its.server.files[argument] = its.server.files[argument][:5]
        return answer

    stored = session(fake(answers={"STOR": half})).write("/.p", Bytes(b"1234567890"), buffer)
    assert stored == Stored("/.p", 10, 5)


def test_a_server_without_size_is_asked_by_listing(fake, session, buffer) -> None:
    """The size is unknown then; a file that is not even listed was not stored."""
    server = fake(answers={"SIZE": "500 What?"})
    assert session(server).write("/.p", Bytes(b"12"), buffer) == Stored("/.p", 2, None)

    def elsewhere(its: FakeSession, argument: str) -> str:
        answer = its.stor(argument)
        its.server.files["/other"] = its.server.files.pop(argument)
        return answer

    with pytest.raises(IOFailure, match="not there"):
        session(fake(answers={"STOR": elsewhere})).write("/.p", Bytes(b"12"), buffer)


@pytest.mark.parametrize("place", ["welcome", "reply", "download", "upload", "accept"])
def test_an_abort_ends_whatever_blocks(fake, session, buffer, place: str) -> None:
    """From another thread, at once, wherever the session waits; connecting included."""

    def hang(its: FakeSession, _: str) -> None:
        its.reply("150 Soon.")
        data = its.data() if place != "accept" else None
        blocked.set()
        release.wait(10)
        if data is not None:
            data.close()

    blocked, release = threading.Event(), threading.Event()
    server = fake(
        files={"/a": b"12345"},
        welcome=SILENCE if place == "welcome" else "220 Hi.",
        answers={"NOOP": SILENCE, "RETR": hang, "STOR": hang},
    )
    limits = TransferSettings(connect_timeout=20, login_timeout=20, reply_timeout=20, stall_timeout=20)
    ftp = session(server, limits, connect=place != "welcome", passive=place != "accept")
    endless = Bytes(bytes(64 << 20))
    actions: dict[str, Callable[[], object]] = {
        "welcome": ftp.connect,
        "reply": ftp.ping,
        "download": lambda: drain(ftp.read("/a"), buffer),
        "upload": lambda: ftp.write("/.p", endless, memoryview(bytearray(1 << 20))),
        "accept": lambda: ftp.read("/a"),
    }

    def stop() -> None:
        wait_for(lambda: blocked.is_set() or place in {"welcome", "reply"})
        time.sleep(0.1)
        ftp.abort()

    stopper = threading.Thread(target=stop)
    stopper.start()
    started = time.monotonic()
    with pytest.raises(EtlError, match="aborted"):
        actions[place]()
    stopper.join()
    assert time.monotonic() - started < 5
    release.set()
    with pytest.raises(EtlError):
        ftp.connect()


# --- refusals, told apart by asking -----------------------------------------------------------------------------


def test_a_file_that_may_not_be_read_is_not_missing(fake, session) -> None:
    """550 to RETR, and SIZE knows the file: no permission, whatever the text says."""
    server = fake(files={"/a": b"1"}, answers={"RETR": "550 No such file or directory"})
    with pytest.raises(PermissionRefused):
        session(server).read("/a")


def test_a_file_hidden_from_size_is_found_by_listing(fake, session) -> None:
    """Some servers refuse SIZE for what may not be read; the folder shows the file all the same."""
    server = fake(files={"/d/a": b"1"}, answers={"RETR": "550 No.", "SIZE": "550 No."})
    with pytest.raises(PermissionRefused):
        session(server).read("/d/a")


def test_a_missing_file_is_missing_whatever_the_server_says(fake, session) -> None:
    """The text of a refusal is never believed."""
    server = fake(answers={"RETR": "550 Permission denied"})
    with pytest.raises(FileMissing, match="no such file"):
        session(server).read("/a")
    with pytest.raises(FileMissing, match="no such folder: /b"):
        session(server).read("/b/c/d")


def test_a_folder_that_may_not_be_entered_is_told(fake, session) -> None:
    """Its parent lists it, so it is there."""
    server = fake(
        files={"/closed/a": b"1"},
        answers={
            "CWD": lambda its, path: "550 No." if path.startswith("/closed") else its.cwd(path),
            "SIZE": "550 No.",
            "RETR": "550 No.",
        },
    )
    with pytest.raises(PermissionRefused, match="/closed may not be entered"):
        session(server).read("/closed/a")


def test_a_busy_file_may_be_tried_again(fake, session) -> None:
    """450 for a file that is there is no permanent refusal."""
    server = fake(files={"/a": b"1"}, answers={"RETR": "450 In use."})
    with pytest.raises(IOFailure) as caught:
        session(server).read("/a")
    assert caught.value.fate is Fate.RETRY


def test_a_folder_that_may_not_be_written_is_told(fake, session, buffer) -> None:
    """553 to STOR where the folder is there."""
    server = fake(answers={"STOR": "553 Could not create file."})
    with pytest.raises(PermissionRefused, match="not permitted"):
        session(server).write("/.p", Bytes(b"1"), buffer)


def test_a_folder_that_may_not_be_made_is_told(fake, session, buffer) -> None:
    """550 to MKD, and no folder there then."""
    server = fake(answers={"MKD": "550 No."})
    with pytest.raises(PermissionRefused):
        session(server).write("/a/b/.p", Bytes(b"1"), buffer)


def test_a_folder_that_others_make_meanwhile_is_used(fake, session, buffer) -> None:
    """MKD says 550 for a folder that exists by now."""

    def late(its: FakeSession, argument: str) -> str:
        its.mkd(argument)
        return "550 File exists."

    server = fake(answers={"MKD": late})
    session(server).write("/a/b/.p", Bytes(b"1"), buffer)
    assert server.files == {"/a/b/.p": b"1"}


def test_deleting_what_may_not_be_deleted_is_told(fake, session) -> None:
    """The file is still there: that is no success."""
    server = fake(files={"/a": b"1"}, answers={"DELE": "550 No."})
    with pytest.raises(PermissionRefused):
        session(server).remove("/a")
    with pytest.raises(PermissionRefused):
        session(server).dispose("/a").result()
    assert not session(server).remove("/b")


# --- publishing -------------------------------------------------------------------------------------------------


def no_replace(its: FakeSession, argument: str) -> str:
    """RNTO of a server that does not rename over a file."""
    return "550 Exists." if argument in its.server.files else its.rnto(argument)


def test_a_rename_that_refuses_to_replace_swaps_the_files(fake, session) -> None:
    """The old file steps aside in the same write; the server is remembered, the result says so."""
    server = fake(files={"/f": b"old", "/.p": b"new", "/.q": b"newer", "/.r": b"r"}, answers={"RNTO": no_replace})
    ftp = session(server)
    assert ftp.publish(Stored("/.p", 3, 3), "/f", None).result().swapped
    assert server.files == {"/f": b"new", "/.q": b"newer", "/.r": b"r"}
    swapping = writes_of(server, lambda: ftp.publish(Stored("/.q", 5, 5), "/f", None).result())
    assert swapping == [["RNFR", "RNTO", "RNFR", "RNTO"], ["DELE"]]
    assert server.files == {"/f": b"newer", "/.r": b"r"}
    other = session(server)
    assert not other.publish(Stored("/.r", 1, 1), "/new", None).result().swapped
    assert server.files == {"/f": b"newer", "/new": b"r"}


def test_a_swap_that_fails_puts_the_old_file_back(fake, session) -> None:
    """Ours is refused after the old one stepped aside: the old one returns under its name."""

    def stubborn(its: FakeSession, argument: str) -> str:
        return "550 No." if its.from_ == "/.p" else no_replace(its, argument)

    server = fake(files={"/f": b"old", "/.p": b"new"}, answers={"RNTO": stubborn})
    with pytest.raises(EtlError):
        session(server).publish(Stored("/.p", 3, 3), "/f", None).result()
    assert server.files == {"/f": b"old", "/.p": b"new"}


def test_a_swap_that_crashed_before_is_tidied(fake, session) -> None:
    """What an earlier attempt of this process left under the hidden name does not stand in the way."""
    server = fake(files={"/f": b"old", "/.p": b"new", "/.p.old": b"older"}, answers={"RNTO": no_replace})
    assert session(server).publish(Stored("/.p", 3, 3), "/f", None).result().swapped
    assert server.files == {"/f": b"new"}


def test_a_swap_that_crashed_in_the_middle_is_finished(fake, session) -> None:
    """The final name is absent, the old file aside: ours takes the name."""
    server = fake(files={"/.p": b"new", "/.p.old": b"old"}, answers={"RNTO": no_replace})
    ftp = session(server)
    publishing.remember_refuser(ftp.server)
    ftp.publish(Stored("/.p", 3, 3), "/f", None).result()
    assert server.files == {"/f": b"new"}


def test_publishing_makes_a_folder_that_vanished(fake, session) -> None:
    """Also on a server that swaps."""
    for answers in ({}, {"RNTO": no_replace}):
        server = fake(files={"/.p": b"new"}, answers=answers)
        ftp = session(server)
        if answers:
            publishing.remember_refuser(ftp.server)
        ftp.publish(Stored("/.p", 3, 3), "/a/b/f", None).result()
        assert server.files == {"/a/b/f": b"new"}


def test_publishing_onto_a_folder_is_refused(fake, session) -> None:
    """A folder is not replaced."""
    server = fake(files={"/.p": b"new", "/d/x": b"1"})
    with pytest.raises(IOFailure, match="is a folder"):
        session(server).publish(Stored("/.p", 3, 3), "/d", None).result()
    assert server.files == {"/.p": b"new", "/d/x": b"1"}


def test_a_vanished_partial_file_may_be_written_again(fake, session) -> None:
    """Its loss is not the job's missing source: another attempt helps."""
    with pytest.raises(IOFailure, match="is gone") as caught:
        session(fake()).publish(Stored("/.p", 3, 3), "/f", None).result()
    assert caught.value.fate is Fate.RETRY


def test_a_name_that_the_server_changes_is_found_out(fake, session) -> None:
    """Pure-FTPd quietly makes ` a` into `_a`."""

    def trimming(its: FakeSession, argument: str) -> str:
        return its.rnto(argument.replace("/ ", "/_"))

    server = fake(files={"/.p": b"new"}, answers={"RNTO": trimming})
    with pytest.raises(IOFailure, match="another name"):
        session(server).publish(Stored("/.p", 3, 3), "/ f", None).result()


def test_times_are_stamped_by_the_command_that_the_server_has(fake, session) -> None:
    """MFMT where it is offered, else vsftpd's MDTM; before the rename, so that no crash leaves a file unstamped."""
    server = fake(files={"/.p": b"1"}, features=("MFMT",))
    assert session(server).publish(Stored("/.p", 1, 1), "/f", 1_600_000_000.9).result().stamped
    assert server.times == {"/f": "20200913122640"}
    server = fake(files={"/.p": b"1"}, features=("MDTM", "MDTM-SET"))
    assert session(server).publish(Stored("/.p", 1, 1), "/f", 1_600_000_000.9).result().stamped
    assert server.times == {"/f": "20200913122640"}


def test_a_refused_time_stamp_is_remembered_and_harms_nothing(fake, session) -> None:
    """The session stops trying; files are published."""
    server = fake(files={"/.p": b"1", "/.q": b"1"}, features=())
    ftp = session(server)
    assert not ftp.publish(Stored("/.p", 1, 1), "/f", 1e9).result().stamped
    assert writes_of(server, lambda: ftp.publish(Stored("/.q", 1, 1), "/g", 1e9).result()) == [["RNFR", "RNTO"]]
    assert set(server.files) == {"/f", "/g"}


@pytest.mark.parametrize(
    ("reply", "mtime"),
    [
        ("213 20200913122640", 1_600_000_000.0),
        ("213 20200913122640.250", 1_600_000_000.25),
        ("213 191201234567", None),
        ("213 20209913122640", None),
        ("500 What?", None),
    ],
)
def test_times_are_read_as_far_as_they_make_sense(fake, session, reply: str, mtime: float | None) -> None:
    """Fractions are kept, nonsense is an unknown time."""
    server = fake(files={"/a": b"1"}, answers={"MDTM": reply})
    assert session(server).look("/a") == Facts(1, mtime)


# --- names ------------------------------------------------------------------------------------------------------


def test_relative_paths_begin_where_the_login_does(fake, session) -> None:
    """And stay there, whatever folder was entered to ask a question."""
    server = fake(files={'/home/a "b"/x': b"1", '/home/a "b"/-y': b"2"}, answers={"PWD": '257 "/home/a ""b""" is it.'})
    ftp = session(server)
    assert ftp.look("x").size_bytes == 1
    assert ftp.look("none") is None
    assert ftp.look("-y").size_bytes == 1
    assert 'SIZE /home/a "b"/-y' in server.commands
    assert ftp.names(".") == ["-y", "x"]
    based = session(server, base_path="/home")
    assert based.look('/a "b"/x').size_bytes == 1
    relative = session(server, base_path="sub")
    assert relative.look("/x") is None
    assert 'SIZE /home/a "b"/sub/x' in server.commands


def test_a_name_that_the_encoding_cannot_express_is_named(fake, session) -> None:
    """Before anything is sent."""
    ftp = session(fake(), encoding="euc-kr")
    with pytest.raises(InvalidPath, match="euc-kr"):
        ftp.look("/\N{SNOWMAN}\N{PILE OF POO}")


def test_an_encoding_that_is_none_is_a_wrong_setting(fake, session) -> None:
    """Unknown ones, and those that would change what a slash is."""
    for encoding in ("klingon", "utf-16", "base64"):
        with pytest.raises(SettingsError, match="ENCODING"):
            session(fake(), encoding=encoding)


def test_an_encoding_that_is_set_wins_over_the_servers_offer(fake, session) -> None:
    """OPTS UTF8 is not sent to a server whose names are EUC-KR."""
    server = fake()
    ftp = session(server, encoding="euc-kr")
    ftp.look("/한글")
    assert not any(line.startswith("OPTS") for line in server.commands)
    assert any(
        line.encode("utf-8", "surrogateescape") == b"SIZE /" + "한글".encode("euc-kr") for line in server.commands
    )


@pytest.mark.parametrize("encoding", [None, "euc-kr", "cp949"])
def test_names_of_another_encoding_come_back_unharmed(fake, session, encoding: str | None) -> None:
    """Bytes that are no text in the server's encoding are listed and can be used."""
    odd = b"\xff\xfe-\xc7\x80".decode("utf-8", "surrogateescape")
    server = fake(files={f"/d/{odd}": b"1"})
    ftp = session(server, encoding=encoding)
    (name,) = ftp.names("/d")
    assert ftp.remove(f"/d/{name}")
    assert server.files == {}


def test_a_listing_may_give_whole_paths(fake, session) -> None:
    """Some servers list `folder/name`; the bare name is wanted."""

    def nlst(its: FakeSession, _: str) -> str:
        its.reply("150 Listing.")
        its.send_data(b"/d/a\r\nd/b\r\n./c\r\n.\r\n..\r\n\r\n")
        return "226 Done."

    assert session(fake(files={"/d/a": b""}, answers={"NLST": nlst})).names("/d") == ["a", "b", "c"]


def test_a_refused_listing_is_an_empty_folder(fake, session) -> None:
    """Many servers say 550 for a folder without files."""
    assert session(fake(files={"/d/a": b""}, answers={"NLST": "550 No files found."})).names("/d") == []
