"""The command as a process of its own: how it is told what to consume, what it says, how it ends."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import stack
from workbench import Command, Desk, folder, job, login

pytestmark = pytest.mark.e2e

Run = Callable[..., Command]


def without_names(desk: Desk, *more: dict[str, str]) -> dict[str, str]:
    """Return a consumer's environment without what the command line shall say."""
    return {
        name: value
        for name, value in desk.settings(*more).items()
        if name not in {"ETL_TOPIC", "ETL_GROUP_ID", "ETL_BOOTSTRAP_SERVERS"}
    }


@pytest.mark.parametrize("way", ["options", "positions", "env file", "mixed"])
def test_it_consumes_what_it_is_told_to(way: str, desk: Desk, run: Run, vsftpd: stack.Vsftpd, tmp_path: Path) -> None:
    """By options, by three arguments, by a file of settings; ends with 0 on SIGTERM, everything committed."""
    names = (desk.topic, desk.group, desk.bootstrap_servers)
    (vsftpd.root / desk.topic).mkdir()
    (vsftpd.root / desk.topic / "a").write_bytes(b"content")
    servers = login("SRC", vsftpd, BASE_PATH=f"/{desk.topic}") | folder("HERE", tmp_path / "here")
    environment = without_names(desk, servers, {"ETL_LOG_FORMAT": "json"})
    if way == "options":
        arguments = ["--topic", names[0], "--group-id", names[1], "--bootstrap-servers", names[2]]
    elif way == "positions":
        arguments = [*names]
    elif way == "mixed":
        arguments = ["consume", "--group-id", names[1], "--bootstrap-servers", names[2], names[0], "-v"]
    else:
        lines = [f"{name}={value}" for name, value in desk.settings(servers, {"ETL_LOG_FORMAT": "json"}).items()]
        (tmp_path / "settings.env").write_text("\n".join([*lines, "A_TYPO=1"]))
        arguments, environment = ["--env-file", "settings.env"], {}
    command = run(*arguments, environment=environment)
    (result,) = desk.do(job("SRC:/a", "HERE:/b", "first"), limit=30)
    assert result["status"] == "SUCCESS"
    assert (tmp_path / "here" / "b").read_bytes() == b"content"
    assert command.stop() == 0
    assert desk.lag() == 0

    events = command.events()  # every line is JSON
    (done,) = [line for line in events if line["event"] == "job done"]
    assert (done["job_id"], done["source"], done["destination"]) == ("first", "SRC:/a", "HERE:/b")
    assert {"topic", "partition", "offset", "level", "time"} <= done.keys()
    warned = [str(line) for line in events if line["event"] == "settings warning"]
    assert any("A_TYPO" in line for line in warned) == (way == "env file")


def test_on_a_terminal_lines_are_for_people(desk: Desk, run: Run, tmp_path: Path) -> None:
    """The default: one line for a job that went well, and no traceback for one that did not."""
    (tmp_path / "a").write_bytes(b"x")
    command = run(environment=desk.settings(folder("HERE", tmp_path)))
    desk.do(job("HERE:/a", "HERE:/b", "good"), job("HERE:/none", "HERE:/c", "bad"), limit=30)
    assert command.stop() == 0
    said = command.output
    assert sum("good" in line for line in said.splitlines()) == 1
    assert "FILE_NOT_FOUND" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        ([], {"ETL_WORKERS": "many", "ETL_NUM_PARTITONS": "2", "FTP_PASSIVE_MODE": "perhaps"}, 3),
        ([], {"SRC_TYPE": "ftp", "SRC_PORT": "70000"}, 4),
        (["--topic", "no topic!"], {}, 1),
        ([], {"DLQ_TOPIC_SUFFIX": ""}, 1),
        (["--env-file", "missing.env"], {}, 1),
        ([], {"ETL_PLUGINS": "no_such_module_anywhere"}, 1),
    ],
)
def test_wrong_settings_are_one_message(
    arguments: list[str], environment: dict[str, str], named: int, run: Run
) -> None:
    """Exit code 2, all of them by name, no traceback; the broker is not asked."""
    command = run(*arguments, environment=environment)
    assert command.wait() == 2
    said = command.output
    assert "Traceback" not in said
    assert said.startswith("1 setting is wrong" if named == 1 else f"{named} settings are wrong"), said
    assert said.rstrip().count("\n") == named
    for name in environment:
        assert name in said or name == "SRC_TYPE"
    assert ("missing.env" in said) == ("missing.env" in arguments)


def test_the_nearest_known_name_is_told(run: Run) -> None:
    """A typo costs seconds, not hours."""
    command = run(environment={"ETL_NUM_PARTITONS": "2"})
    assert command.wait() == 2
    assert "ETL_NUM_PARTITIONS" in command.output


def test_topics_that_cannot_work_end_it(desk: Desk, run: Run, broker: stack.Broker, tmp_path: Path) -> None:
    """Found at the broker, told in one line; exit code 2: starting again would not help."""
    broker.command("kafka-topics.sh", "--create", "--topic", f"{desk.topic}-few", "--partitions", "1")
    command = run(environment=desk.settings({"RETRY_TOPIC_SUFFIX": "-few"}, folder("INBOX", tmp_path)))
    assert command.wait() == 2
    assert f"{desk.topic}-few has 1 partitions" in command.output
    assert "Traceback" not in command.output


FOREIGN = {
    # a desktop
    "XDG_SESSION_TYPE": "wayland",
    "TERM_PROGRAM": "x",
    "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/1000/bus",
    "SSH_CONNECTION": "10.0.0.1 22",
    "GPG_TTY": "/dev/pts/1",
    "QT_ACCESSIBILITY": "1",
    "DESKTOP_SESSION": "plasma",
    "LC_TYPE": "C",
    # a Kubernetes pod, with services of our names too
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
    "KUBERNETES_PORT": "tcp://10.96.0.1:443",
    "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
    "KAFKA_SERVICE_HOST": "10.96.0.7",
    "KAFKA_PORT": "tcp://10.96.0.7:9092",
    "KAFKA_PORT_9092_TCP_PORT": "9092",
    "ETL_PORT": "tcp://10.96.0.8:80",
    "ETL_SERVICE_HOST": "10.96.0.8",
    "ETL_PORT_80_TCP": "tcp://10.96.0.8:80",
    # a container with linked services
    "DB_PORT": "tcp://172.17.0.5:5432",
    "DB_PORT_5432_TCP": "tcp://172.17.0.5:5432",
    "DB_NAME": "/etl/db",
    "DB_ENV_PGTYPE": "x",
    "NODE_TYPE": "worker",
    "HERE_PORT": "tcp://172.17.0.6:21",
}


def test_foreign_environments_do_not_trip_it(desk: Desk, run: Run, tmp_path: Path) -> None:
    """A desktop, a pod, a container with links: none of it is ours."""
    (tmp_path / "a").write_bytes(b"x")
    command = run(environment=FOREIGN | desk.settings(folder("HERE", tmp_path), {"ETL_LOG_FORMAT": "json"}))
    (result,) = desk.do(job("HERE:/a", "HERE:/b"), limit=30)
    assert result["status"] == "SUCCESS"
    assert command.stop() == 0
    (started,) = command.events("consumer started")
    assert started["servers"] == 1


def test_the_command_says_what_it_can_do(tmp_path: Path) -> None:
    """Help names the options and commands, also when called by its module."""
    for program in (["-m", "etl.main"], ["-c", "from etl.cli import main; main()"]):
        done = subprocess.run(
            [sys.executable, *program, "--help"], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path
        )
        for word in ("consume", "submit", "dlq", "servers", "config"):
            assert word in done.stdout
        for option in ("--topic", "--group-id", "--bootstrap-servers", "--env-file", "-v, --verbose"):
            assert option in done.stdout


def test_supervisord_runs_restarts_and_stops_consumers(desk: Desk, tmp_path: Path) -> None:
    """The appliance's own configuration: as many as asked, each with its slot; a killed one is back; all stop."""
    (tmp_path / "a").write_bytes(b"x")
    own = desk.settings(
        folder("HERE", tmp_path), {"ETL_CONSUMER_COUNT": "2", "ETL_INSTANCE_ID": "box", "ETL_LOG_FORMAT": "json"}
    )
    own |= {"KAFKA_AUTOSTART": "false", "APPLIANCE_RUN_DIR": str(tmp_path / "run")}
    program = [sys.executable, str(stack.REPOSITORY / "docker" / "appliance.py")]
    with Command(tmp_path, environment=own, program=program) as appliance:

        def started() -> set[str]:
            lines = [line for line in appliance.output.splitlines() if '"consumer started"' in line]
            return {json.loads(line)["worker"] for line in lines}

        def consumers() -> list[psutil.Process]:
            found = []
            for child in psutil.Process(appliance.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it ended meanwhile
                    if child.cmdline()[1:4] == ["-P", "-m", "etl.main"] and "api" not in child.cmdline():
                        found.append(child)
            return found

        stack.wait_until(lambda: started() == {"box/0", "box/1"}, 40, "two consumers")
        desk.do(job("HERE:/a", "HERE:/b"), limit=30)
        first = consumers()
        assert len(first) == 2
        first[0].kill()
        stack.wait_until(lambda: len(set(consumers()) - set(first)) == 1, 40, "its successor")
        stack.wait_until(lambda: appliance.output.count('"consumer started"') == 3, 30, "its start")
        desk.send(*(job("HERE:/a", f"HERE:/c{number}") for number in range(4)), partition=0)
        desk.send(*(job("HERE:/a", f"HERE:/d{number}") for number in range(4)), partition=1)
        desk.wait(lambda: len(desk.results()) == 9, 30)
        assert appliance.stop(40) == 0
        assert appliance.output.count('"consumer stopped"') == 2
    assert {result["status"] for result in desk.results()} == {"SUCCESS"}
