"""Whole consumers on servers whose sessions end, or answer, as no session should: every file arrives once."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

import stack
from servers.fake import FakeFTP, FakeSession
from workbench import Desk, folder, job, login

pytestmark = pytest.mark.integration

JOBS = 24  # each way
RESTARTED = 120  # files, when a server restarts
COMMANDS = 25  # in a session that ends by itself: more than a login has, fewer than a handful of jobs


class Counting(FakeSession):
    """A session that counts its commands."""

    served = 0

    def serve(self, verb: str, argument: str) -> None:
        """Serve one command more."""
        self.served += 1
        super().serve(verb, argument)

    def end(self) -> None:
        """Hang up, once all that was said is on its way."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class HangsUp(Counting):
    """Ends without a word after some commands."""

    def serve(self, verb: str, argument: str) -> None:
        """Serve, or hang up."""
        if self.served < COMMANDS:
            super().serve(verb, argument)
        else:
            self.end()


class SaysGoodbye(HangsUp):
    """Ends with a 421."""

    def end(self) -> None:
        """Say so."""
        with contextlib.suppress(OSError):
            self.reply("421 Too many commands, goodbye.")
        super().end()


class OneTransfer(Counting):
    """Ends once a file was stored or sent."""

    def serve(self, verb: str, argument: str) -> None:
        """Serve."""
        super().serve(verb, argument)
        if verb in {"STOR", "RETR"}:
            self.end()


class OneTransferReset(OneTransfer):
    """Ends by a reset: nobody reads what lies there still."""

    def end(self) -> None:
        """Cut."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.close()


class TwiceDone(FakeSession):
    """Says twice how some commands ended."""

    doubled = frozenset({"STOR"})

    def serve(self, verb: str, argument: str) -> None:
        """Serve, and remember what it was."""
        self.verb = verb
        super().serve(verb, argument)

    def reply(self, text: str) -> None:
        """Send a final reply twice."""
        is_final = self.verb in self.doubled and text[0] != "1"
        super().reply(f"{text}\r\n{text}" if is_final else text)

    verb = ""


class TwiceRenamed(TwiceDone):
    """Doubles the reply to RNTO."""

    doubled = frozenset({"RNTO"})


class TwiceDeleted(TwiceDone):
    """Doubles the reply to DELE."""

    doubled = frozenset({"DELE"})


class TwiceMeasured(TwiceDone):
    """Doubles the reply to SIZE."""

    doubled = frozenset({"SIZE"})


class TwiceSent(TwiceDone):
    """Doubles the reply to RETR."""

    doubled = frozenset({"RETR"})


class ForgetsLogins(Counting):
    """Wants a login again in the middle."""

    def serve(self, verb: str, argument: str) -> None:
        """Serve, or not."""
        if self.served < COMMANDS:
            super().serve(verb, argument)
        else:
            self.reply("530 Please login with USER and PASS.")


class Shouts(FakeSession):
    """Says something unasked before each tenth answer."""

    count = 0

    def reply(self, text: str) -> None:
        """Send a reply, and perhaps one more."""
        Shouts.count += 1
        super().reply(f"200 Type set.\r\n{text}" if Shouts.count % 41 == 0 else text)


@pytest.mark.parametrize(
    "sort",
    [
        HangsUp,
        SaysGoodbye,
        OneTransfer,
        OneTransferReset,
        TwiceDone,
        TwiceRenamed,
        TwiceDeleted,
        TwiceMeasured,
        TwiceSent,
        ForgetsLogins,
        Shouts,
    ],
)
def test_every_file_arrives_though_sessions_do_not_last(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sort: type[FakeSession]
) -> None:
    """To the server, and from it with its source deleted: each once, whole, and nothing is left."""
    monkeypatch.setattr(FakeFTP, "session_type", sort)
    files = {f"/from/{number}": bytes([number]) * 1000 for number in range(JOBS)}
    for number in range(JOBS):
        (tmp_path / f"in-{number}").write_bytes(bytes([100 + number]) * 1000)
    with FakeFTP(files=files) as server:
        settings = login("ODD", server) | folder("FILES", tmp_path) | {"ETL_RETRY_MAX_ATTEMPTS": "5"}
        with desk.consuming(settings):
            desk.send(*(job(f"FILES:/in-{n}", f"ODD:/to/{n}") for n in range(JOBS)))
            desk.send(*(job(f"ODD:/from/{n}", f"FILES:/out/{n}", source_action="delete") for n in range(JOBS)))
            desk.wait(lambda: len(desk.results()) == 2 * JOBS, 60.0)
        assert _unlike(desk.results()) == []
        assert server.files == {f"/to/{number}": bytes([100 + number]) * 1000 for number in range(JOBS)}
    for number in range(JOBS):
        assert (tmp_path / "out" / str(number)).read_bytes() == bytes([number]) * 1000


def test_a_restart_is_one_warning(desk: Desk, tmp_path: Path, make_vsftpd: Callable[..., stack.Vsftpd]) -> None:
    """A server that refuses connections until it is back: it is down, and no limit of sessions is what it means."""
    server = make_vsftpd()
    for number in range(RESTARTED):
        (tmp_path / f"in-{number}").write_bytes(bytes([number]) * 400_000)
    settings = login("FAR", server, MAX_CONNECTIONS="8") | folder("FILES", tmp_path)
    settings |= {"ETL_WORKERS": "8", "ETL_RETRY_MAX_ATTEMPTS": "5", "ETL_RETRY_BACKOFF_SECONDS": "0.2"}
    with structlog.testing.capture_logs() as lines, desk.consuming(settings):
        desk.send(*(job(f"FILES:/in-{n}", f"FAR:/to/{n}") for n in range(RESTARTED)))
        stack.wait_until(lambda: len(list(server.root.glob("to/*"))) >= 8, 30, "the first files")
        server.kill()
        desk.wait(lambda: any(line["event"] == "server is down" for line in lines))
        server.start()
        desk.wait(lambda: len(desk.results()) == RESTARTED, 60.0)
    assert _unlike(desk.results()) == []
    assert max(result["attempts"] for result in desk.results()) <= 2
    told = [line["event"] for line in lines if line["log_level"] == "warning" and line.get("server") == "FAR"]
    assert told == ["server is down"]
    for number in range(RESTARTED):
        assert (server.root / "to" / str(number)).read_bytes() == bytes([number]) * 400_000
    assert len(list((server.root / "to").iterdir())) == RESTARTED


def _unlike(results: list[dict[str, Any]]) -> list[Any]:
    """Return the errors of jobs that failed, and of source actions that were not done."""
    return [
        result.get("error") or result.get("source_action_error")
        for result in results
        if result["status"] != "SUCCESS" or result.get("source_action_done") is False
    ]


def test_a_size_told_by_codes_of_its_own_is_believed_of_no_server_and_costs_no_file(desk: Desk, tmp_path: Path) -> None:
    """What cannot be that command's answer ends the session; after two ends the server is not asked any more."""
    (tmp_path / "in").write_bytes(b"12345")
    with FakeFTP(answers={"SIZE": lambda its, name: its.size(name).replace("213", "331")}) as server:
        with desk.consuming(login("ODD", server) | folder("FILES", tmp_path)):
            desk.send(job("FILES:/in", "ODD:/to/f", "j"))
            desk.wait(desk.results, 60.0)
        (told,) = desk.results()
        assert (told["status"], told["verified_by"]) == ("SUCCESS", "none")
        assert server.files == {"/to/f": b"12345"}


def test_a_server_with_codes_of_its_own_is_a_dead_letter_that_says_so(desk: Desk, tmp_path: Path) -> None:
    """What cannot be that command's answer is believed of nobody; nor is it tried for ever."""
    (tmp_path / "in").write_bytes(b"12345")
    with FakeFTP(answers={"STOR": lambda its, name: its.stor(name).replace("226", "213")}) as server:
        settings = login("ODD", server) | folder("FILES", tmp_path)
        settings["ODD_CONNECTS_PER_MINUTE"] = "60000"  # beyond the limit, the last partial file would be left to others
        with desk.consuming(settings):
            desk.send(job("FILES:/in", "ODD:/to/f", "j"))
            desk.wait(desk.results, 60.0)
            desk.wait(desk.letters)
        (told,) = desk.results()
        assert told["status"] == "FAILED"
        assert "answered STOR with" in told["error"]
        assert not any(".part" in name for name in server.files)
