"""Fewer waits: what leaves together, how often a client writes and then waits, and servers that cannot follow."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from contract_parts import SHORT, Bytes, content_of, writes_of

from etl.config import TransferSettings
from etl.errors import ConnectionLost, EtlError, Fate, StorageFull, TransferTimeout
from etl.models.message import FileTransferJob
from etl.models.task import Origin, Record, Task
from etl.transfer import partials, receipts, relay
from etl.transfer.ftp import pipelining, sockets
from servers.fake import FakeSession

pytestmark = pytest.mark.contract


class Waits:
    """Counts how often a thread waits for a socket after it has written to any since its last wait."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._has_written = False
        self._thread = threading.get_ident()
        waits = self

        class Counted(socket.socket):
            def connect(self, address: Any) -> None:
                waits.write()
                super().connect(address)

            def sendall(self, *arguments: Any) -> None:
                waits.write()
                super().sendall(*arguments)

            def send(self, *arguments: Any) -> int:
                waits.write()
                return super().send(*arguments)

            def recv(self, *arguments: Any) -> bytes:
                waits.wait()
                return super().recv(*arguments)

            def recv_into(self, *arguments: Any) -> int:
                waits.wait()
                return super().recv_into(*arguments)

            def getsockopt(self, *arguments: Any) -> Any:
                if arguments[1] == socket.SO_ERROR:  # asked once a connection stands, which was waited for
                    waits.wait()
                return super().getsockopt(*arguments)

        patch.setattr(sockets.socket, "socket", Counted)

    def write(self) -> None:
        if threading.get_ident() == self._thread:
            self._has_written = True

    def wait(self) -> None:
        if threading.get_ident() == self._thread:
            self.count += self._has_written
            self._has_written = False

    def during(self, action: Callable[[], object]) -> int:
        before = self.count
        action()
        return self.count - before


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Count the waits of this thread's sessions; the fake servers have threads of their own."""
    return Waits(monkeypatch)


def a_task(number: int = 0, **options: str) -> Task:
    job = {
        "options": options,
        "job_id": f"j{number}",
        "source": {"hostname": "A", "path": f"/a{number}"},
        "destination": {"hostname": "B", "path": f"/out/b{number}"},
    }
    origin = Origin("jobs", 0, number)
    return Task(Record("jobs", 0, number, None, b"{}"), origin, FileTransferJob.from_dict(job))


def test_a_lone_job_in_warm_sessions_waits_seven_times(fake, session, waits: Waits, buffer) -> None:
    """Two connects, two transfers, the sizes and times of both sides asked together, one rename."""
    files = {f"/a{number}": bytes([number]) * 1000 for number in range(3)}
    source = fake(files=files)
    destination = fake(files={"/out/x": b""}, features=("SIZE", "MDTM", "MFMT", "EPSV"))
    reading, writing = session(source), session(destination)
    limits = relay.Limits(buffer, 0, 0)

    def run(number: int) -> None:
        receipt = relay.run(a_task(number), reading, writing, "t", limits, partials.OrphanIndex())
        assert receipt.verified_by == receipts.SIZE

    run(0)
    for number in (1, 2):
        read, written = len(source.writes), len(destination.writes)
        assert waits.during(lambda number=number: run(number)) <= 7
        assert source.writes[read:] == [["SIZE", "MDTM", "EPSV", "RETR"], ["SIZE", "MDTM"]]
        assert destination.writes[written:] == [["EPSV"], ["STOR"], ["SIZE"], ["MFMT", "RNFR", "RNTO"]]
        assert destination.files[f"/out/b{number}"] == files[f"/a{number}"]


@pytest.mark.parametrize("tells_sizes", [True, False])
def test_who_wants_no_size_compared_does_not_wait_for_one(fake, session, buffer, tells_sizes: bool) -> None:
    """The question rides along; where it has no answer no folder is listed instead."""
    source = fake(files={"/a0": b"1", "/a1": b"22"})
    destination = fake(files={"/out/x": b""}, features=("MDTM", "MFMT", "EPSV"))
    if not tells_sizes:
        destination.answers["SIZE"] = "500 What?"
    reading, writing = session(source), session(destination)
    for number in range(2):
        before = len(destination.writes)
        receipt = relay.run(
            a_task(number, verify="none"), reading, writing, "t", relay.Limits(buffer, 0, 0), partials.OrphanIndex()
        )
        assert receipt.verified_by == receipts.NOTHING
    assert [verb for write in destination.writes[before:] for verb in write] == [
        "EPSV", "STOR", "SIZE", "MFMT", "RNFR", "RNTO",
    ]  # fmt: skip


# --- servers that cannot follow ---------------------------------------------------------------------------------


def loses(verb: str, reply: str | None) -> Callable[[FakeSession, str], str | None]:
    """Answer a command with `reply` when it was not alone in its write."""

    def answer(its: FakeSession, argument: str) -> str | None:
        if len(its.write) > 1:
            return reply
        return getattr(its, verb)(argument)

    return answer


@pytest.mark.parametrize("refusal", ["425 Use EPSV first.", "503 Bad sequence.", "500 What?"])
def test_a_server_that_refuses_pairs_is_asked_again_one_by_one(fake, session, buffer, refusal: str) -> None:
    """The job does not fail, and the server is remembered: its next session begins gently."""
    server = fake(files={"/a": b"12345"}, answers={"RETR": loses("retr", refusal), "STOR": loses("stor", refusal)})
    ftp = session(server)
    for _ in range(3):
        assert content_of(ftp, "/a", buffer) == b"12345"
        assert ftp.write("/.p", Bytes(b"xyz"), buffer).size_bytes == 3
    assert server.files["/.p"] == b"xyz"
    other = session(server)
    content_of(other, "/a", buffer)
    assert writes_of(server, lambda: content_of(other, "/a", buffer)) == [["SIZE"], ["MDTM"], ["EPSV"], ["RETR"]]


def test_a_listing_refused_for_its_pair_is_asked_for_again(fake, session) -> None:
    """A folder is not taken for an empty one; the refused command's data connection is not used again."""
    server = fake(files={"/a": b""}, answers={"NLST": loses("nlst", "503 Bad sequence.")})
    ftp = session(server)
    assert ftp.names("/") == ["a"]
    once = [["CWD"], ["EPSV", "NLST"], ["EPSV"], ["NLST"]]
    assert writes_of(server, lambda: ftp.names("/")) == once
    assert ftp.names("/") == ["a"]


def test_a_server_that_loses_commands_is_found_by_its_silence(fake, session, buffer) -> None:
    """The first pair costs a time limit; the attempt after it works."""
    server = fake(files={"/a": b"12345"}, answers={"RETR": loses("retr", None)})
    ftp = session(server, SHORT)
    assert content_of(ftp, "/a", buffer) == b"12345"
    with pytest.raises(TransferTimeout):
        ftp.read("/a")
    ftp = session(server, SHORT)
    for _ in range(3):
        assert content_of(ftp, "/a", buffer) == b"12345"


def test_a_server_treated_gently_is_tried_again_some_day(fake, session, buffer, monkeypatch) -> None:
    """It may only have been away at the wrong moment: that must not cost it half its speed for good."""
    server = fake(files={"/a": b"12345"}, answers={"RETR": loses("retr", "500 What?")})
    ftp = session(server)
    for _ in range(2):
        content_of(ftp, "/a", buffer)
    del server.answers["RETR"]
    assert session(server).link.control.pipelining.is_one_by_one
    monkeypatch.setattr(pipelining, "NO_PIPELINING_SECONDS", 0.0)
    session(server).link.control.pipelining.slow_down()
    ftp = session(server)
    content_of(ftp, "/a", buffer)
    assert writes_of(server, lambda: content_of(ftp, "/a", buffer)) == [["SIZE", "MDTM", "EPSV", "RETR"]]


def test_a_server_that_proved_itself_is_not_blamed_for_a_silence(fake, session, buffer) -> None:
    """Any server may fall silent; it goes on in pairs afterwards."""
    server = fake(files={"/a": b"12345"})
    ftp = session(server, SHORT)
    for _ in range(2):
        content_of(ftp, "/a", buffer)
    server.answers["RETR"] = lambda its, argument: None
    with pytest.raises(EtlError):
        ftp.read("/a")
    del server.answers["RETR"]
    ftp = session(server, SHORT)
    content_of(ftp, "/a", buffer)
    assert writes_of(server, lambda: content_of(ftp, "/a", buffer)) == [["SIZE", "MDTM", "EPSV", "RETR"]]


CALM = TransferSettings(connect_timeout=5, login_timeout=1, reply_timeout=1, stall_timeout=5)


class Confused:
    """A server that cannot take a second command of one write: `how` it fails. Alone, every command works."""

    def __init__(self, how: str, spares: tuple[str, ...] = ()) -> None:
        self._how = how
        self._spares = set(spares)  # verbs that do no harm beside others
        self._kept: list[str] = []

    def answers(self) -> dict[str, Callable[[FakeSession, str], str | None]]:
        return {verb: self._answer(verb) for verb in VERBS}

    def _answer(self, verb: str) -> Callable[[FakeSession, str], str | None]:
        def answer(its: FakeSession, argument: str) -> str | None:
            write = [sent for sent in its.write if sent not in self._spares]
            is_first = verb == its.write[0]
            if verb in self._spares or len(write) < 2:
                return getattr(its, verb.lower())(argument)
            if self._how == "closes":
                its.drop()
                return None
            if self._how == "swaps":
                return self._swapped(its, argument, verb)
            if is_first:
                return getattr(its, verb.lower())(argument)
            return None if self._how == "loses" else self._how

        return answer

    def _swapped(self, its: FakeSession, argument: str, verb: str) -> str | None:
        """Answer the last command of a write first."""
        now = getattr(its, verb.lower())(argument)
        write = its.write
        self._kept = [now, *(self._kept if verb != write[0] else [])]
        return "\r\n".join(self._kept) if verb == write[-1] else None


VERBS = ("OPTS", "TYPE", "PWD", "SIZE", "MDTM", "EPSV", "RETR", "STOR", "CWD", "MFMT", "RNFR", "RNTO", "DELE")
TRANSFERS_ONLY = tuple(verb for verb in VERBS if verb not in {"EPSV", "RETR", "STOR"})


@pytest.mark.parametrize(
    ("how", "spares"),
    [(how, spares) for how in ("loses", "closes", "500 What?", "503 Bad sequence.") for spares in ((), TRANSFERS_ONLY)]
    + [("swaps", ())],  # at transfers the data would come first
)
def test_a_server_confused_by_pairs_still_gets_its_job_done(fake, session, buffer, how: str, spares) -> None:
    """It is found by its first misstep, which costs a session at most; from then on commands go one by one."""
    plain = fake(files={f"/a{number}": bytes([number]) * 1000 for number in range(6)})
    features = ("SIZE", "MDTM", "MFMT", "EPSV", "UTF8")
    files = {f"/a{number}": bytes([number]) * 1000 for number in range(6)} | {"/out/x": b""}
    odd = fake(files=files, features=features, answers=Confused(how, spares).answers())
    limits = relay.Limits(buffer, 0, 0)
    failures = 0
    fates = set()

    def run(number: int) -> bool:
        try:
            reading, writing = session(odd if number % 2 else plain, CALM), session(odd, CALM)
            for more in (number, number + 1):  # the second one of a session shares writes
                assert (
                    relay.run(a_task(more), reading, writing, "t", limits, partials.OrphanIndex()).verified_by
                    == receipts.SIZE
                )
        except EtlError as error:
            fates.add(error.fate)
            return False
        return True

    for number in range(5):
        while not run(number):
            failures += 1
            assert failures <= 2
    assert fates <= {Fate.RETRY, Fate.OUTAGE}
    assert {path: odd.files[path] for path in (f"/out/b{number}" for number in range(6))} == {
        f"/out/b{number}": bytes([number]) * 1000 for number in range(6)
    }
    assert {path for path in odd.files if path.startswith("/out/")} == {"/out/x", *(f"/out/b{n}" for n in range(6))}
    ways = writes_of(odd, lambda: run(1))
    assert all(len([verb for verb in write if verb not in spares]) < 2 or spares for write in ways)


# --- data before the 1xx ----------------------------------------------------------------------------------------


def test_a_refused_stor_is_sent_again_whole_when_its_folder_is_made(fake, session, buffer) -> None:
    """The bytes that were sent in vain are still at hand, whether they were all or only the first."""
    for size in (0, 10, len(buffer), len(buffer) * 3 + 1):
        server = fake(files={"/x": b"1"})
        ftp = session(server)
        content_of(ftp, "/x", buffer)
        content = bytes(range(256)) * (size // 256 + 1)
        stored = ftp.write("/new/deep/.p", Bytes(content[:size]), buffer)
        assert stored.size_bytes == size
        assert server.files["/new/deep/.p"] == content[:size]


@pytest.mark.parametrize("closes", [True, False])
def test_a_refusal_is_noticed_while_bytes_are_sent(fake, session, closes: bool) -> None:
    """Not only after the stall limit: the control connection is watched until the 1xx has come."""

    def refuse(its: FakeSession, _: str) -> None:
        data = its.data()
        its.reply("552 Full.")
        if closes:
            data.close()

    server = fake(files={"/x": b"1"}, answers={"STOR": refuse})
    ftp = session(server)
    buffer = memoryview(bytearray(16 << 20))  # more than sockets hold
    content_of(ftp, "/x", buffer)
    started = time.monotonic()
    with pytest.raises(StorageFull):
        ftp.write("/.p", Bytes(bytes(64 << 20)), buffer)
    assert time.monotonic() - started < 4


def test_a_refused_retr_need_not_wait_for_its_data_connection(fake, session, buffer) -> None:
    """The server closed its port with the refusal, or never answers there: the refusal is what counts."""

    def refuse(its: FakeSession, _: str) -> str:
        its.waiting.close()
        return "550 No."

    server = fake(files={"/x": b"1"})
    ftp = session(server)
    content_of(ftp, "/x", buffer)
    server.answers["RETR"] = refuse
    with pytest.raises(EtlError) as caught:
        ftp.read("/x")
    assert not isinstance(caught.value, ConnectionLost)
    del server.answers["RETR"]
    assert content_of(ftp, "/x", buffer) == b"1"


def test_a_connection_opened_ahead_serves_the_next_transfer(fake, session, buffer) -> None:
    """`prepare` adds an EPSV to the next write; a listing may use the connection too."""
    server = fake(files={"/x": b"1"})
    ftp = session(server)
    content_of(ftp, "/x", buffer)
    ftp.look("/x")  # the first one finds out whether SIZE answers for folders, too

    def prepared() -> None:
        ftp.prepare()
        ftp.prepare()
        ftp.look("/x")
        ftp.write("/.p", Bytes(b"2"), buffer)

    assert writes_of(server, prepared) == [["EPSV", "SIZE", "MDTM"], ["STOR"]]
    ftp.prepare()
    assert ftp.names("/") == [".p", "x"]
    ftp.ping()


def test_a_connection_opened_ahead_and_not_used_ends_its_session(fake, session, buffer, monkeypatch) -> None:
    """Servers have limits of their own for it, and some answer its closing with a 226 that nobody asked for."""
    server = fake(files={"/x": b"1"})
    ftp = session(server)
    content_of(ftp, "/x", buffer)
    ftp.prepare()
    ftp.ping()
    monkeypatch.setattr("etl.transfer.ftp.starting._PREPARED_SECONDS", 0.0)
    with pytest.raises(ConnectionLost, match="no use in time"):
        ftp.ping()
