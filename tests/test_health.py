"""The image's health check (docker/health.py), as Docker calls it: a program that says what is wrong, or `well`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import stack

pytestmark = pytest.mark.integration

# Length, correlation 1, error code 0, and no API at all: as much as the check reads of a broker's answer.
GOOD = b"\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00"
REFUSING = b"\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x23\x00\x00\x00\x00"


@contextmanager
def listening(answer: bytes) -> Iterator[int]:
    """Yield the port of something that answers one request."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 10)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, name="broker")
        thread.start()
        yield server.getsockname()[1]
        thread.join(20)


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run the check against what the appliance said that it started: `check(KAFKA_PORT=…)`."""

    def run(*arguments: str, empty: bool = False, **started: object) -> tuple[int, str]:
        if started or empty:
            with_defaults = {"KAFKA_AUTOSTART": "false", "APPLIANCE_CONSUMERS": "false"} | started if started else {}
            (tmp_path / "environment").write_text("".join(f"{name}={value}\n" for name, value in with_defaults.items()))
        done = subprocess.run(
            [sys.executable, str(stack.REPOSITORY / "docker" / "health.py"), *arguments],
            env=os.environ | {"APPLIANCE_RUN_DIR": str(tmp_path), "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout.strip()

    return run


def test_a_single_command_is_well_as_long_as_it_lives(check: Callable[..., tuple[int, str]]) -> None:
    """Nothing was started by an appliance here."""
    assert check()[0] == 0


def test_an_appliance_that_checks_its_settings_is_starting(check: Callable[..., tuple[int, str]]) -> None:
    """The entrypoint leaves an empty file."""
    assert check(empty=True) == (1, "the appliance is starting")


def test_a_broker_that_answers_is_well(check: Callable[..., tuple[int, str]]) -> None:
    """It tells the versions it speaks."""
    with listening(GOOD) as port:
        assert check(KAFKA_AUTOSTART="true", KAFKA_PORT=port) == (0, "well")


@pytest.mark.parametrize(
    ("answer", "says"),
    [(b"", "the broker hung up"), (GOOD[:6], "the broker hung up"), (REFUSING, "the broker answers with error 35")],
)
def test_a_broker_that_answers_wrongly_is_not(check: Callable[..., tuple[int, str]], answer: bytes, says: str) -> None:
    """It hangs up, or refuses."""
    with listening(answer) as port:
        assert check(KAFKA_AUTOSTART="true", KAFKA_PORT=port) == (1, says)


def test_a_broker_that_is_not_there_is_not_well(check: Callable[..., tuple[int, str]]) -> None:
    """Nobody listens."""
    code, said = check(KAFKA_AUTOSTART="true", KAFKA_PORT=stack.free_port())
    assert code == 1
    assert "does not answer" in said


def test_consumers_that_do_not_poll_are_counted(check: Callable[..., tuple[int, str]]) -> None:
    """None has noted that it polled."""
    code, said = check(APPLIANCE_CONSUMERS="true", ETL_CONSUMER_COUNT=1_000)
    assert code == 1
    assert said.split(" of ")[1].startswith("1000 consumers polled")
