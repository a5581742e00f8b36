"""Every wait of an FTP session has a limit: servers that dribble, repeat themselves, or never come to an end."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from contract_parts import LONG, SHORT, Bytes, content_of, drain

from etl.config import TransferSettings
from etl.errors import (
    ConnectionLost,
    EtlError,
    IOFailure,
    ServerUnavailable,
    SizeMismatch,
    SourceChanged,
    StorageFull,
    TransferTimeout,
)
from etl.transfer.ftp import sockets, starting
from servers.fake import FakeSession
from servers.pyftpd import PyFTPD

pytestmark = pytest.mark.contract

BRISK = replace(LONG, stall_timeout=0.4, min_bytes_per_second=500.0)
FOREVER = 8.0  # seconds, after which the dribbling servers of this file give up


def within(seconds: float, action: Callable[[], object], kind: type[EtlError], match: str | None = None) -> EtlError:
    """Expect an error in time; the server is named in it."""
    began = time.monotonic()
    with pytest.raises(kind, match=match) as caught:
        action()
    assert time.monotonic() - began < seconds
    assert "FAKE" in str(caught.value)
    return caught.value


def dribble(sock: socket.socket, text: bytes, pause: float = 0.05) -> None:
    """Send byte by byte, again and again, until the other side has enough."""
    until = time.monotonic() + FOREVER
    with contextlib.suppress(OSError):
        while time.monotonic() < until:
            for sign in text:
                sock.sendall(bytes([sign]))
                time.sleep(pause)


# --- data connections -------------------------------------------------------------------------------------------


def dribbled(its: FakeSession, _: str) -> str:
    """Send a file a byte at a time."""
    its.reply("150 Slowly.")
    with its.data() as sock:
        dribble(sock, b"x")
    return "226 Done."


def test_a_dribbled_download_is_noticed(fake, session, buffer) -> None:
    """A byte now and then keeps no lane busy: what moves is averaged over the stall limit."""
    ftp = session(fake(files={"/a": bytes(100_000)}, answers={"RETR": dribbled}), BRISK)
    within(4, lambda: content_of(ftp, "/a", buffer), TransferTimeout, "ETL_MIN_BYTES_PER_SECOND")


def test_a_dribbled_listing_is_noticed(fake, session) -> None:
    """Listings come over a data connection, too."""
    ftp = session(fake(answers={"NLST": dribbled}), BRISK)
    within(4, lambda: ftp.names("/"), TransferTimeout, "ETL_MIN_BYTES_PER_SECOND")


def test_an_upload_that_is_taken_byte_by_byte_is_noticed(fake, session) -> None:
    """The kernel holds what is not taken; that too little of it leaves is seen all the same."""

    def sip(its: FakeSession, _: str) -> str:
        its.reply("150 Slowly.")
        its.data().recv(1)
        time.sleep(2)
        return "226 Done."

    ftp = session(fake(answers={"STOR": sip}), BRISK)
    large = memoryview(bytearray(1 << 20))
    within(4, lambda: ftp.write("/.p", Bytes(bytes(64 << 20)), large), TransferTimeout, "ETL_(STALL|MIN)")


def test_a_slow_upload_is_not_taken_for_a_stalled_one(fake, session) -> None:
    """The kernel has room again only when much of what it holds was taken: longer than the stall limit, at times."""

    def sip(its: FakeSession, argument: str) -> str:
        its.reply("150 Slowly.")
        count = 0
        with its.data() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            while orphan := sock.recv(60_000):
                count += len(orphan)
                time.sleep(0.03)
        its.server.files[argument] = bytes(count)
        return "226 Done."

    ftp = session(fake(answers={"STOR": sip}), replace(LONG, stall_timeout=0.3, min_bytes_per_second=1000.0))
    stored = ftp.write("/.p", Bytes(bytes(6 << 20)), memoryview(bytearray(1 << 20)))
    assert stored.size_bytes == 6 << 20


def test_a_file_that_never_ends_fills_no_destination(fake, session, buffer) -> None:
    """No more than the size that was told is passed on; then the server is cut off."""

    def endless(its: FakeSession, _: str) -> None:
        its.reply("150 Take this.")
        with contextlib.suppress(OSError), its.data() as sock:
            while True:
                sock.sendall(bytes(1 << 16))

    ftp = session(fake(files={"/a": bytes(1000)}, answers={"RETR": endless}))
    parcel = ftp.read("/a")
    assert drain(parcel, buffer) == bytes(1000)
    within(4, lambda: parcel.close(complete=True), SizeMismatch, "more bytes")
    ftp = session(fake(files={"/a": bytes(1000)}, answers={"RETR": endless}))
    parcel = ftp.read("/a")
    assert not parcel.load(1000)
    assert len(drain(parcel, buffer)) == 1000
    within(4, lambda: parcel.close(complete=True), SizeMismatch, "more bytes")


@pytest.mark.parametrize("loads", [True, False])
def test_a_file_that_grows_while_it_is_read_has_changed(fake, session, buffer, loads: bool) -> None:
    """More bytes than were told, and another size now: it was no wrong size, the file has grown."""

    def grow(its: FakeSession, argument: str) -> str:
        its.server.files[argument] += b"more"
        return its.retr(argument)

    ftp = session(fake(files={"/a": b"12345"}, answers={"RETR": grow}))
    parcel = ftp.read("/a")
    if loads:
        parcel.load(5)
    assert drain(parcel, buffer) == b"12345"
    within(4, lambda: parcel.close(complete=True), SourceChanged, "grew")


def test_a_file_that_shrinks_while_it_is_read_has_changed(fake, session, buffer) -> None:
    """A server may notice by itself and break off: its 426 is no broken connection then."""

    def shrink(its: FakeSession, argument: str) -> str:
        its.reply("150 Here it comes.")
        its.server.files[argument] = b"12"
        its.send_data(b"123")
        return "426 Failure."

    ftp = session(fake(files={"/a": b"12345"}, answers={"RETR": shrink}))
    parcel = ftp.read("/a")
    assert drain(parcel, buffer) == b"123"
    within(4, lambda: parcel.close(complete=True), SourceChanged, "Failure")


def test_a_listing_that_never_ends_is_cut_off(fake, session, monkeypatch) -> None:
    """Its names are not kept, and there is a limit to reading on."""
    monkeypatch.setattr("etl.transfer.ftp.listing.LIMIT_BYTES", 1 << 20)

    def endless(its: FakeSession, _: str) -> None:
        its.reply("150 Take this.")
        with contextlib.suppress(OSError), its.data() as sock:
            while True:
                sock.sendall(b"name\r\n" * 1000)

    ftp = session(fake(answers={"NLST": endless}))
    within(4, lambda: ftp.names("/", "other"), IOFailure, "a listing of more than")


def test_a_huge_listing_is_read_for_what_is_wanted(fake, session) -> None:
    """A million names in a folder are no million names in memory."""
    found = fake(answers={"NLST": lambda its, _: _list(its, b"name\r\n" * 100_000 + b".etl-1.part\r\n" + b"x\r\n")})
    assert session(found).names("/", ".etl-") == [".etl-1.part"]


def _list(its: FakeSession, listing: bytes) -> str:
    its.reply("150 Here.")
    its.send_data(listing)
    return "226 Done."


# --- the control connection -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"200 Yes", b"200-Yes\r\n", b"226-\r\n"])
def test_a_dribbled_reply_is_noticed(fake, session, text: bytes) -> None:
    """A reply's limit is for the whole reply, endless lines of it included."""
    ftp = session(fake(answers={"NOOP": lambda its, _: dribble(its.sock, text)}), SHORT)
    within(2, ftp.ping, TransferTimeout, "ETL_REPLY_TIMEOUT_SECONDS")


def test_a_dribbled_welcome_is_noticed(fake, session) -> None:
    """And a login's limit for the whole login."""
    server = fake(answers={"USER": lambda its, _: dribble(its.sock, b"331-\r\n")})
    within(2, lambda: session(server, SHORT), ServerUnavailable, "ETL_LOGIN_TIMEOUT_SECONDS")


def test_a_reply_that_is_dribbled_into_an_upload_is_noticed(fake, session) -> None:
    """While the 150 does not come and nothing is taken."""

    def reply_slowly(its: FakeSession, _: str) -> None:
        data = its.data()
        dribble(its.sock, b"150-Soon.\r\n")
        data.close()

    server = fake(files={"/x": b"1"}, answers={"STOR": reply_slowly})
    ftp = session(server, replace(BRISK, reply_timeout=0.5))
    large = memoryview(bytearray(16 << 20))
    content_of(ftp, "/x", large)
    within(5, lambda: ftp.write("/.p", Bytes(bytes(64 << 20)), large), TransferTimeout, "ETL_")


def test_half_a_reply_does_not_hold_up_an_upload(fake, session) -> None:
    """Its other half comes when the server has taken more: nobody may wait for it before."""

    def halved(its: FakeSession, argument: str) -> str:
        its.sock.sendall(b"15")
        with its.data() as sock:
            received = b""
            while len(received) < 8 << 20:
                received += sock.recv(1 << 16)
            its.sock.sendall(b"0 Go.\r\n")
            while orphan := sock.recv(1 << 16):
                received += orphan
        its.server.files[argument] = received
        return "226 Done."

    server = fake(files={"/x": b"1"}, answers={"STOR": halved})
    ftp = session(server, replace(LONG, reply_timeout=2, stall_timeout=2))
    large = memoryview(bytearray(16 << 20))
    content_of(ftp, "/x", large)
    assert ftp.write("/.p", Bytes(bytes(12 << 20)), large).size_bytes == 12 << 20


def test_endless_preliminary_replies_end_the_session(fake, session, buffer) -> None:
    """A 1xx too many is no patience, it is a fault; reading without waiting never ends otherwise."""

    def endless(its: FakeSession, _: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                its.reply("150 Soon.")

    server = fake(files={"/a": b"1"}, answers={"RETR": endless})
    within(4, lambda: content_of(session(server, BRISK), "/a", buffer), TransferTimeout, "ETL_STALL")

    def after_the_file(its: FakeSession, argument: str) -> None:
        its.send_data(b"1")
        endless(its, argument)

    server = fake(files={"/a": b"1"}, answers={"RETR": after_the_file})
    within(4, lambda: content_of(session(server, BRISK), "/a", buffer), ConnectionLost, "answered RETR")
    server = fake(files={"/x": b"1"}, answers={"STOR": endless})
    ftp = session(server)
    content_of(ftp, "/x", buffer)
    large = Bytes(bytes(64 << 20))
    within(4, lambda: ftp.write("/.p", large, memoryview(bytearray(16 << 20))), ConnectionLost, "answered STOR")


def test_a_1xx_to_a_plain_command_ends_the_session(fake, session) -> None:
    """It belongs to some other command: no reply after it can be trusted."""
    ftp = session(fake(files={"/a": b"1"}, answers={"SIZE": "150 What?\r\n213 1"}))
    within(2, lambda: ftp.look("/a"), ConnectionLost, "answered SIZE with 150")


def test_a_large_reply_after_a_transfer_is_read_and_a_huge_one_is_not(fake, session, buffer) -> None:
    """Servers may tell stories at the end of a file, within limits."""

    def telling(lines: int) -> Callable[[FakeSession, str], str]:
        return lambda its, argument: its.retr(argument).replace("226 ", "226-" + "story\r\n " * lines + "\r\n226 ")

    assert content_of(session(fake(files={"/a": b"1"}, answers={"RETR": telling(900)})), "/a", buffer) == b"1"
    ftp = session(fake(files={"/a": b"1"}, answers={"RETR": telling(100_000)}))
    within(4, lambda: content_of(ftp, "/a", buffer), ConnectionLost, "lines")


def test_a_name_that_nobody_resolves_is_a_timeout(session, monkeypatch) -> None:
    """The system's resolver has limits of its own, longer ones, and cannot be interrupted."""
    release = threading.Event()

    def never(*arguments: object, flags: int = 0, **_: object) -> list[object]:
        if flags:
            raise socket.gaierror("no address")
        release.wait(5)
        return []

    monkeypatch.setattr(sockets.socket, "getaddrinfo", never)
    gone = type("Gone", (), {"host": "silent.example", "port": 1, "username": "u", "password": "p"})
    within(2, lambda: session(gone, SHORT), ServerUnavailable, "ETL_CONNECT_TIMEOUT_SECONDS")
    release.set()


def test_a_server_that_takes_no_commands_is_a_timeout(fake, session) -> None:
    """Writing has a limit as well, where the other side's window is shut."""
    server = fake()
    ftp = session(server, SHORT)
    ftp.link.control.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for sock in list(server._sockets):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    server.answers["NOOP"] = lambda _its, _argument: time.sleep(3)
    name = "/" + "x" * 60_000

    def much() -> None:
        ftp.link.command("NOOP", b"")
        for _ in range(200):
            ftp.link.ask("SIZE", name)
        ftp.flush()

    within(4, much, TransferTimeout, "ETL_REPLY_TIMEOUT_SECONDS")


# --- transfers that end in odd ways -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("final", "kind"),
    [("226 Thanks.", ConnectionLost), ("552 Full.", StorageFull), ("451 No space left.", StorageFull)],
)
def test_a_final_reply_before_the_end_of_the_file_ends_the_upload(fake, session, final: str, kind) -> None:
    """At once, not after a stall, and whatever it says: not all was taken. What is there is deleted."""

    def hasty(its: FakeSession, argument: str) -> None:
        its.reply("150 Go on.")
        its.server.files[argument] = b"part"
        data = its.data()
        its.reply(final)
        held.append(data)

    held: list[socket.socket] = []
    server = fake(files={"/x": b"1"}, answers={"STOR": hasty})
    large = memoryview(bytearray(16 << 20))
    ftp = session(server)
    within(4, lambda: ftp.write("/.p", Bytes(bytes(64 << 20)), large), kind)
    assert "/.p" not in server.files


def test_transfers_without_a_1xx_are_read_to_their_end(fake, session, buffer) -> None:
    """226 alone, before or after the data: what counts are bytes and sizes."""

    def retr(its: FakeSession, argument: str) -> None:
        its.reply("226 Done.")
        its.send_data(its.server.files[argument])

    def stor(its: FakeSession, argument: str) -> None:
        its.reply("226 Done.")
        its.server.files[argument] = its.receive_data()

    server = fake(files={"/a": b"12345"}, answers={"RETR": retr, "STOR": stor})
    ftp = session(server)
    for _ in range(2):
        assert content_of(ftp, "/a", buffer) == b"12345"
        ftp.write("/.p", Bytes(b"xyz"), buffer)
        ftp.ping()
    assert server.files["/.p"] == b"xyz"


def test_a_data_connection_that_closes_before_the_1xx_is_no_file(fake, session, buffer) -> None:
    """For a download it looks like an empty file, for an upload like a broken connection."""

    def close(its: FakeSession, _: str) -> str:
        its.data().close()
        its.reply("150 Here it comes.")
        return "226 Done."

    ftp = session(fake(files={"/a": b"12345"}, answers={"RETR": close}))
    assert len(content_of(ftp, "/a", buffer)) != 5
    server = fake(answers={"STOR": close})
    within(8, lambda: session(server).write("/.p", Bytes(bytes(64 << 20)), buffer), ConnectionLost)


def test_a_farewell_in_mid_file_is_told(fake, session, buffer) -> None:
    """421 while bytes flow: what it says is the reason."""

    def leave(its: FakeSession, argument: str) -> None:
        its.reply("150 Here it comes.")
        with its.data() as data:
            data.sendall(b"123")
            its.reply("421 Going down for maintenance.")
        its.drop()

    ftp = session(fake(files={"/a": b"12345"}, answers={"RETR": leave, "STOR": leave}))
    within(4, lambda: content_of(ftp, "/a", buffer), ConnectionLost, "maintenance")
    ftp = session(fake(answers={"STOR": leave}))
    large = Bytes(bytes(64 << 20))
    within(8, lambda: ftp.write("/.p", large, memoryview(bytearray(1 << 20))), ConnectionLost)


def test_an_epsv_that_is_refused_after_it_worked_costs_one_session(fake, session, buffer) -> None:
    """The commands after it are lost; the next session asks by PASV."""
    server = fake(files={"/a": b"12345"})
    ftp = session(server)
    for _ in range(2):
        content_of(ftp, "/a", buffer)
    server.answers["EPSV"] = "500 Not any more."
    within(4, lambda: ftp.read("/a"), IOFailure, "Not any more")
    with pytest.raises(EtlError):
        ftp.ping()
    assert content_of(session(server), "/a", buffer) == b"12345"


# --- data connections opened ahead ------------------------------------------------------------------------------


def test_a_connection_opened_ahead_that_got_old_is_replaced(fake, session, buffer, monkeypatch) -> None:
    """A source that takes its time must not cost its job an attempt at the destination."""
    server = fake(files={"/x": b"1"})
    ftp = session(server)
    content_of(ftp, "/x", buffer)
    ftp.prepare()
    ftp.flush()
    monkeypatch.setattr(starting, "_PREPARED_SECONDS", 0.0)
    ftp.write("/.p", Bytes(b"12345"), buffer)
    assert server.files["/.p"] == b"12345"
    ftp.ping()


@pytest.mark.parametrize("kind", ["vsftpd", "pyftpdlib"])
def test_real_servers_say_nothing_to_one_that_is_replaced(
    vsftpd, session, buffer, monkeypatch, tmp_path: Path, kind: str
) -> None:
    """Asked for a new one they drop the old one by themselves: replies stay in step."""
    server = vsftpd if kind == "vsftpd" else PyFTPD(tmp_path)
    folder = f"/{uuid.uuid4().hex[:8]}"
    ftp = session(server)
    ftp.write(f"{folder}/a", Bytes(b"1"), buffer)
    assert content_of(ftp, f"{folder}/a", buffer) == b"1"
    monkeypatch.setattr(starting, "_PREPARED_SECONDS", 0.0)
    for number in range(20):
        ftp.prepare()
        ftp.flush()
        time.sleep(0.02)
        assert ftp.write(f"{folder}/{number}", Bytes(b"12345"), buffer).size_bytes == 5
        ftp.flush()
    assert len(ftp.names(folder)) == 21
    if server is not vsftpd:
        ftp.disconnect()
        server.close()


def test_a_connection_opened_ahead_that_the_server_gave_up_is_replaced(fake, session, buffer) -> None:
    """425: the data, all of it still at hand, goes through a new one; once."""

    def given_up(its: FakeSession, argument: str) -> str:
        if given_up.count > 0:
            given_up.count -= 1
            its.data().close()
            return "425 Can't open data connection."
        return its.stor(argument)

    server = fake(files={"/x": b"1"}, answers={"STOR": given_up})
    given_up.count = 1
    ftp = session(server)
    content_of(ftp, "/x", buffer)
    ftp.prepare()
    ftp.flush()
    ftp.write("/.p", Bytes(b"12345"), buffer)
    assert server.files["/.p"] == b"12345"
    given_up.count = 2
    ftp.prepare()
    ftp.flush()
    within(4, lambda: ftp.write("/.p", Bytes(b"12345"), buffer), ConnectionLost, "425")


def test_the_limits_hold_in_active_mode(fake, session, buffer) -> None:
    """Connections that the server opens are watched like ours."""
    limits = TransferSettings(**{**vars(BRISK), "passive": False})
    ftp = session(fake(files={"/a": bytes(100_000)}, answers={"RETR": dribbled}), limits)
    within(4, lambda: content_of(ftp, "/a", buffer), TransferTimeout, "ETL_MIN_BYTES_PER_SECOND")
    server = fake(files={"/x": b"1"}, answers={"STOR": "552 Full."})
    within(4, lambda: session(server, limits).write("/.p", Bytes(b"1"), buffer), StorageFull, "Full")
