"""What somebody in the network can do to the appliance's broker: it lives, or is started again, and serves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

import stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

LIMIT = 90.0  # seconds to start, or to start again, beside other tests
TAKEN_BEFORE = bytes.fromhex("06400000")  # a request of 100 MB is announced; nothing of it comes
LARGEST = struct.pack(">i", 20971520)


class Appliance:
    """The appliance with the broker alone, as `docker/appliance.py broker` runs it, and its listener for others."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.port, self.external = stack.free_port(), stack.free_port()
        self.log = folder / "log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ETL_", "KAFKA_"))}
        environment |= {
            "APPLIANCE_RUN_DIR": str(folder / "run"),
            "ETL_BOOTSTRAP_SERVERS": f"127.0.0.1:{self.port}",
            "KAFKA_DATA_DIR": str(folder / "data"),
            "KAFKA_CONTROLLER_PORT": str(stack.free_port()),
            "KAFKA_ADVERTISED_HOST": "localhost",
            "KAFKA_ADVERTISED_PORT": str(self.external),
            "KAFKA_BIND_ADDRESS": "127.0.0.1",
            "KAFKA_HEAP": "192M",
            "KAFKA_JVM_OPTS": "-XX:TieredStopAtLevel=1",
            **settings,
        }
        with self.log.open("ab") as log:  # supervisord opens it once more
            self.process = subprocess.Popen(
                [sys.executable, str(stack.REPOSITORY / "docker" / "appliance.py"), "broker"],
                cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def serves(self) -> bool:
        """Ask for the broker's versions, where others ask."""
        request = struct.pack(">hhih", 18, 0, 1, -1)
        try:
            with socket.create_connection(("127.0.0.1", self.external), 5) as connection:
                connection.sendall(struct.pack(">i", len(request)) + request)
                return len(connection.recv(8)) == 8
        except OSError:
            return False

    def wait_until_serving(self) -> None:
        try:
            stack.wait_until(lambda: self.serves() or self.process.poll() is not None, LIMIT, "an answer")
            assert self.process.poll() is None
        except (TimeoutError, AssertionError):
            raise AssertionError(self.log.read_text()[-4000:]) from None

    def java(self) -> int:
        """Return the broker's process id."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        (found,) = [child.pid for child in children if "kafka.Kafka" in child.cmdline()]
        return found

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Appliance]]:
    started: list[Appliance] = []

    def begin(**settings: str) -> Appliance:
        started.append(Appliance(tmp_path, settings))
        return started[-1]

    yield begin
    for appliance in started:
        if appliance.process.poll() is None:
            appliance.stop()


@contextlib.contextmanager
def announced(port: int, length: bytes, connections: int) -> Iterator[list[socket.socket]]:
    """Hold connections on each of which a request of this length was announced."""
    with contextlib.ExitStack() as held:
        made = []
        for _ in range(connections):
            made.append(held.enter_context(socket.create_connection(("127.0.0.1", port), 5)))
            made[-1].sendall(length)
        yield made


def test_a_neighbour_who_announces_requests_beyond_the_memory_is_hung_up_on(start: Callable[..., Appliance]) -> None:
    """Eight bytes were the end of the whole appliance; now the same process serves on."""
    appliance = start()
    appliance.wait_until_serving()
    before = appliance.java()
    with announced(appliance.external, TAKEN_BEFORE, 2) as connections:
        for connection in connections:
            connection.settimeout(10)
            assert connection.recv(1) == b""
        assert appliance.serves()
    with announced(appliance.external, LARGEST, 60):
        pass
    appliance.wait_until_serving()
    assert appliance.java() == before
    assert appliance.stop() == 0


def test_one_address_does_not_take_all_connections(start: Callable[..., Appliance]) -> None:
    """The 501st from there is closed at once; who comes from elsewhere is served meanwhile."""
    appliance = start()
    appliance.wait_until_serving()
    with contextlib.ExitStack() as held:
        connections = [
            held.enter_context(
                socket.create_connection(("127.0.0.1", appliance.external), 5, source_address=("127.0.0.2", 0))
            )
            for _ in range(510)
        ]
        for connection in connections[500:]:
            connection.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        connections[0].settimeout(0.2)
        with pytest.raises(TimeoutError):
            connections[0].recv(1)
        assert appliance.serves()


def test_a_broker_that_ran_out_of_memory_is_started_again(start: Callable[..., Appliance], tmp_path: Path) -> None:
    """Whatever used it up (here the limits are off): Java's exit code for that ends nothing but the broker."""
    extra = tmp_path / "extra.properties"
    extra.write_text("socket.request.max.bytes=104857600\nqueued.max.request.bytes=-1\n")
    appliance = start(KAFKA_EXTRA_PROPERTIES=str(extra))
    appliance.wait_until_serving()
    before = appliance.java()
    with announced(appliance.external, TAKEN_BEFORE, 4):
        stack.wait_until(lambda: not psutil.pid_exists(before), 30, "the broker's end")
    assert "Terminating due to java.lang.OutOfMemoryError" in appliance.log.read_text()
    appliance.wait_until_serving()
    assert appliance.stop() == 0


def test_an_appliance_without_kafka_is_not_started_again_and_again(
    start: Callable[..., Appliance], tmp_path: Path
) -> None:
    """No jars, no Java: exit code 2 with a sentence, which starting again does not mend."""
    appliance = start(KAFKA_LIBS=str(tmp_path / "none"))
    assert appliance.process.wait(60) == 2
    assert "no Kafka in" in appliance.log.read_text()


def test_java_that_goes_away_ends_the_appliance(start: Callable[..., Appliance], tmp_path: Path) -> None:
    """It passed the first look and is not there when the broker starts."""
    appliance = start(KAFKA_JAVA=str(tmp_path / "no-java"))
    assert appliance.process.wait(60) == 2
    log = appliance.log.read_text()
    assert "is not a program" in log
    assert "kafka ended with exit code 2, which starting again does not mend" in log
