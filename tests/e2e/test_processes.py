"""The appliance's processes: a folder of any name, standard output of any kind, programs that cannot be started."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stack
from workbench import Command, folder

pytestmark = pytest.mark.e2e

# Each character means something to a shell, to supervisord, to Java or to Kafka's files of settings.
ODD_NAME = 'it\'s a "clone" 100% #1 & {ü😀} [ab] $HOME (x); z\\n'
LINES = 2_000
WRITERS = ("a", "b", "c")
WRITER = """
import os, sys
name, lines = sys.argv[1], int(sys.argv[2])
text = "".join(f"{name} {number} " + "x" * (number % 300) + " end\\n" for number in range(lines)).encode()
for start in range(0, len(text), 1013):  # never at the end of a line
    os.write(1, text[start : start + 1013])
os.write(1, f"{name} unfinished".encode())
"""


def clone(place: Path) -> Path:
    """Make a copy of the programs of the appliance, with the jars that were fetched for this one."""
    place.mkdir(parents=True)
    for name in ("docker", "kafka"):
        shutil.copytree(stack.REPOSITORY / name, place / name, symlinks=True)
    (place / "build" / "kafka").mkdir(parents=True)
    for name in ("libs", "classes.jsa", "classes.jsa.made-by"):
        (place / "build" / "kafka" / name).symlink_to(stack.REPOSITORY / "build" / "kafka" / name)
    return place


def appliance_of(home: Path) -> list[str]:
    """Return the command that starts an appliance."""
    return [sys.executable, str(home / "docker" / "appliance.py")]


def settings(*more: dict[str, str]) -> dict[str, str]:
    """Return an environment in which nobody else's broker is found."""
    port = stack.free_port()
    own = {"ETL_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}", "KAFKA_CONTROLLER_PORT": str(stack.free_port())}
    own |= {"ETL_NUM_PARTITIONS": "2", "ETL_CONSUMER_COUNT": "1"}
    for one in more:
        own |= one
    return own


def test_it_works_in_a_folder_of_any_name(tmp_path: Path) -> None:
    """Repository, data and the servers' folders in it: broker and consumer start, a job is done, all stop."""
    home = clone(tmp_path / ODD_NAME)
    (home / "in").mkdir()
    (home / "in" / "a b.txt").write_text("content")
    run = tmp_path / "r #1%s"
    own = settings(folder("A", home / "in"), folder("B", home), {"APPLIANCE_RUN_DIR": str(run)})
    with Command(tmp_path, environment=own, program=appliance_of(home)) as appliance:
        stack.wait_until(lambda: "consumer started" in appliance.output, 60, "the consumer")
        states = subprocess.run(
            [Path(sys.executable).parent / "supervisorctl", "-c", home / "docker" / "supervisord.conf", "status"],
            env={"PATH": os.environ["PATH"], "APPLIANCE_RUN_DIR": str(run)},
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout  # fmt: skip
        assert {line.split()[0]: line.split()[1] for line in states.splitlines()} == dict.fromkeys(
            ("kafka", "watch", "etl-consumer:consumer_00", "etl-api:api"), "RUNNING"
        )
        with Command(
            tmp_path, "submit", "A:/a b.txt", "B:/c d.txt", "--wait", "--timeout", "30", environment=own
        ) as it:
            assert it.wait(60) == 0, it.output
        assert appliance.stop(40) == 0
    assert (home / "c d.txt").read_text() == "content"
    assert (home / "build" / "kafka" / "data" / "log" / "meta.properties").exists()


@pytest.mark.parametrize(
    ("setting", "name"), [("KAFKA_LIBS", "a:b"), ("KAFKA_DATA_DIR", "a,b")], ids=["Java's colon", "Kafka's comma"]
)
def test_a_folder_that_cannot_be_is_named_and_ends_it(tmp_path: Path, setting: str, name: str) -> None:
    """Java and Kafka take it for two folders, whatever one writes: exit code 2, not a restart for ever."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "kafka_2.13-9.9.9.jar").touch()
    own = settings({setting: str(tmp_path / name), "APPLIANCE_RUN_DIR": str(tmp_path / "run")}, folder("A", tmp_path))
    with Command(tmp_path, environment=own, program=appliance_of(stack.REPOSITORY)) as appliance:
        assert appliance.wait(30) == 2
        assert f"{tmp_path / name} has a" in appliance.output
        assert setting in appliance.output


class Reader:
    """Collects what comes out at the other end of an output."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self.data = b""
        self._read = read
        self._thread = threading.Thread(target=self._run, name="reader")
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # a terminal's other end is gone
            while data := self._read():
                self.data += data

    def join(self) -> None:
        self._thread.join(20)


@contextlib.contextmanager
def output_of(kind: str, tmp_path: Path) -> Iterator[tuple[int, Callable[[], bytes], Callable[[], None]]]:
    """Yield the descriptor of an output, what came out so far, and how to let go of our copy of it."""
    if kind in {"file", "file that is cut"}:
        path = tmp_path / "out.log"
        with path.open("wb") as file:
            yield file.fileno(), path.read_bytes, lambda: None
        return
    if kind == "socket":
        ours, theirs = socket.socketpair()
        reader = Reader(lambda: ours.recv(1 << 16))
        ends, descriptor = [ours.close], theirs.detach()
    else:
        inner, descriptor = pty.openpty() if kind == "terminal" else os.pipe()
        if kind == "pipe that does not block":
            os.set_blocking(descriptor, False)
        pause = threading.Event()  # never set: a reader that takes its time
        is_slow = kind == "slow pipe"
        reader = Reader(lambda: (is_slow and pause.wait(0.02) and b"") or os.read(inner, 1 << 14))
        ends = [lambda: os.close(inner)]
    is_open = [True]

    def let_go() -> None:
        if is_open.pop() if is_open else False:
            os.close(descriptor)

    try:
        yield descriptor, lambda: reader.data.replace(b"\r\n", b"\n"), let_go
    finally:
        let_go()
        reader.join()
        for end in ends:
            end()


@pytest.mark.parametrize(
    "kind", ["pipe", "pipe that does not block", "slow pipe", "file", "file that is cut", "socket", "terminal"]
)
def test_no_line_is_lost_torn_or_written_over(kind: str, tmp_path: Path) -> None:
    """Three programs write at once, in pieces that end anywhere; each line comes out whole, and once."""
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "writer.py").write_text(WRITER)
    plain = (stack.REPOSITORY / "docker" / "supervisord.conf").read_text().partition("; Programs are started")[0]
    programs = "".join(
        f"[program:{name}]\ncommand={sys.executable} {tmp_path}/writer.py {name} {LINES}\nautorestart=false\n"
        "startsecs=0\nredirect_stderr=true\nstdout_logfile=/dev/fd/1\nstdout_logfile_maxbytes=0\n"
        for name in WRITERS
    )
    (tmp_path / "supervisord.conf").write_text(plain + programs)
    command = [sys.executable, str(stack.REPOSITORY / "docker" / "supervise.py"), "--nodaemon",
               f"--configuration={tmp_path / 'supervisord.conf'}"]  # fmt: skip
    with output_of(kind, tmp_path) as (descriptor, printed, let_go):
        if kind == "file that is cut":  # as logrotate's copytruncate does
            os.write(descriptor, b"old\n" * 1000)
            os.ftruncate(descriptor, 0)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=subprocess.PIPE, start_new_session=True,
            env=os.environ | {"APPLIANCE_RUN_DIR": str(run)},
        )  # fmt: skip
        try:
            let_go()
            stack.wait_until(lambda: printed().count(b" unfinished\n") == len(WRITERS), 30, "the last words")
            process.send_signal(signal.SIGTERM)
            _, complaints = process.communicate(timeout=20)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        lines = printed().decode().splitlines()
    assert process.returncode == 0
    assert complaints == b""
    for name in WRITERS:
        found = [line for line in lines if line.startswith(f"{name} ") and line.endswith(" end")]
        assert found == [f"{name} {number} {'x' * (number % 300)} end" for number in range(LINES)]
    assert len(lines) - len(WRITERS) * (LINES + 1) == sum(" supervisord " in line for line in lines)
    assert "\0" not in "".join(lines)


@pytest.mark.parametrize("kind", ["socket", "closed"])
def test_it_starts_whatever_standard_output_is(kind: str, tmp_path: Path) -> None:
    """The appliance itself: its consumer runs and is stopped in order."""
    own = settings({"KAFKA_AUTOSTART": "false", "APPLIANCE_RUN_DIR": str(tmp_path / "run")}, folder("A", tmp_path))
    beats = tmp_path / "run" / "consumer_00.starts"
    command = appliance_of(stack.REPOSITORY)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if kind == "closed":
            command = ["bash", "-c", 'exec "$@" >&- 2>&-', "bash", *command]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, cwd=tmp_path, start_new_session=True,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **own},
        )  # fmt: skip
        try:
            stack.wait_until(beats.exists, 30, "a consumer")
            if kind == "socket":
                ours.settimeout(30)
                said = b""
                while b"waiting for the broker" not in said:
                    said += ours.recv(1 << 16)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.mark.parametrize(
    ("harm", "code"), [("not executable", 1), ("not there", 1), ("broken", 127), ("no interpreter", 127)]
)
def test_an_appliance_with_nothing_to_run_ends(harm: str, code: int, tmp_path: Path) -> None:
    """Programs that cannot be started: it ends with their code, or 1 where they have none, and says so."""
    home = clone(tmp_path / "clone")
    script = home / "docker" / "backoff.sh"
    if harm == "not executable":
        script.chmod(0o644)
    elif harm == "not there":
        script.unlink()
    elif harm == "broken":
        script.write_text("#!/usr/bin/env bash\nexec /no/such/program\n")
    else:
        script.write_text("#!/no/such/interpreter\n")
    (tmp_path / "a").mkdir()
    here = {"KAFKA_AUTOSTART": "false", "ETL_CONSUMER_COUNT": "2", "APPLIANCE_RUN_DIR": str(tmp_path / "run")}
    own = settings(here, folder("A", tmp_path / "a"))
    with Command(tmp_path, environment=own, program=appliance_of(home)) as appliance:
        assert appliance.wait(60) == code, appliance.output
        assert "stopping" in appliance.output


def test_a_start_says_nothing_that_every_start_says(tmp_path: Path) -> None:
    """Of supervisord only which programs it started; no warning, nothing of sockets and interfaces."""
    (tmp_path / "a").mkdir()
    own = settings(
        {"KAFKA_AUTOSTART": "false", "APPLIANCE_RUN_DIR": str(tmp_path / "run")}, folder("A", tmp_path / "a")
    )
    with Command(tmp_path, environment=own, program=appliance_of(stack.REPOSITORY)) as appliance:
        stack.wait_until(lambda: "waiting for the broker" in appliance.output, 30, "the consumer")
        lines = appliance.output.splitlines()
        assert appliance.stop(30) == 0
    ours = [line for line in lines if " supervisord " in line]
    assert len(ours) == 2
    assert all("supervisord spawned" in line for line in ours)
    assert [line for line in lines if any(word in line for word in ("WARN", "CRIT", "authentication"))] == []
