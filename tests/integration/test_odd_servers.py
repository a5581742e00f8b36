"""Whole consumers on servers whose sessions end, or answer, as no session should: every file arrives once."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servers.fake import FakeFTP, FakeSession
from workbench import Desk, folder, job, login

pytestmark = pytest.mark.integration

JOBS = 24  # each way
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


@pytest.mark.parametrize("sort", [HangsUp, SaysGoodbye, ForgetsLogins, Shouts])
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


def _unlike(results: list[dict[str, Any]]) -> list[Any]:
    """Return the errors of jobs that failed, and of source actions that were not done."""
    return [
        result.get("error") or result.get("source_action_error")
        for result in results
        if result["status"] != "SUCCESS" or result.get("source_action_done") is False
    ]


@pytest.mark.parametrize(
    ("verb", "answer"),
    [
        ("SIZE", lambda its, name: its.size(name).replace("213", "250")),
        ("STOR", lambda its, name: its.stor(name).replace("226", "213")),
    ],
)
def test_a_server_with_codes_of_its_own_is_a_dead_letter_that_says_so(
    desk: Desk, tmp_path: Path, verb: str, answer: Callable[..., str]
) -> None:
    """What cannot be that command's answer is believed of nobody; nor is it tried for ever."""
    (tmp_path / "in").write_bytes(b"12345")
    with FakeFTP(answers={verb: answer}) as server:
        with desk.consuming(login("ODD", server) | folder("FILES", tmp_path)):
            desk.send(job("FILES:/in", "ODD:/to/f", "j"))
            desk.wait(desk.results, 60.0)
            desk.wait(desk.letters)
        (told,) = desk.results()
        assert told["status"] == "FAILED"
        assert f"answered {verb} with" in told["error"]
        assert not any(".part" in name for name in server.files)
