"""What cannot work says so in one sentence before anything runs: the broker's script, the appliance, the FTP server."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import stack

pytestmark = pytest.mark.e2e

APPLIANCE = (sys.executable, str(stack.REPOSITORY / "docker" / "appliance.py"))
BROKER = (str(stack.KAFKA_BIN / "kafka-appliance.sh"),)
_TOO_LONG = "/nowhere/" + "long-" * 20 + "path"
FTP_SERVER = (sys.executable, str(stack.REPOSITORY / "docker" / "ftp_server.py"))


def refusal(*command: str, **settings: str) -> tuple[int, str]:
    """Run what must end at once; return its exit code and all it said, which is no traceback of any language."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "ETL_"))}
    done = subprocess.run(
        command,
        env=inherited | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "\tat " not in said
    assert "supervisord" not in said
    return done.returncode, said


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """A broker's own folder and free ports, and a server."""
    return {
        "HERE_TYPE": "local",
        "HERE_BASE_PATH": str(tmp_path),
        "KAFKA_DATA_DIR": str(tmp_path / "data"),
        "KAFKA_PORT": str(stack.free_port()),
        "KAFKA_CONTROLLER_PORT": str(stack.free_port()),
        "APPLIANCE_RUN_DIR": str(tmp_path / "run"),
    }


@pytest.mark.parametrize("command", [BROKER, APPLIANCE])
def test_a_taken_port_is_named_with_its_setting(command: tuple[str, ...], place: dict[str, str]) -> None:
    """It may be free the next time: exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        code, said = refusal(*command, **place | {"KAFKA_PORT": taken})
    assert code == 1
    assert f"port {taken} (KAFKA_PORT) is taken" in said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"KAFKA_PORT": "none"}, "KAFKA_PORT=none is not a port"),
        (
            {"KAFKA_PORT": "19092", "KAFKA_CONTROLLER_PORT": "19092"},
            "KAFKA_PORT and KAFKA_CONTROLLER_PORT are the same",
        ),
        ({"KAFKA_HEAP": "much"}, "KAFKA_HEAP=much is not a size"),
        ({"KAFKA_ADVERTISED_HOST": "h", "KAFKA_ADVERTISED_PROTOCOL": "TLS"}, "KAFKA_ADVERTISED_PROTOCOL=TLS"),
        ({"KAFKA_AUTOSTART": "maybe"}, "KAFKA_AUTOSTART: 'maybe' is not true or false"),
        ({"APPLIANCE_POLL_LIMIT_SECONDS": "soon"}, "APPLIANCE_POLL_LIMIT_SECONDS: 'soon' is not a number"),
    ],
)
def test_wrong_settings_of_the_broker_end_the_appliance_before_anything_runs(
    settings: dict[str, str], says: str, place: dict[str, str]
) -> None:
    """Exit code 2, one message."""
    code, said = refusal(*APPLIANCE, **place | settings)
    assert code == 2
    assert says in said


def test_an_appliance_without_servers_does_not_start_its_broker(place: dict[str, str]) -> None:
    """Its consumers would not start, either. The broker alone needs none."""
    del place["HERE_TYPE"]
    code, said = refusal(*APPLIANCE, **place)
    assert code == 2
    assert "no servers are set" in said
    code, said = refusal(*APPLIANCE, "broker", **place | {"KAFKA_HEAP": "much"})
    assert code == 2
    assert "KAFKA_HEAP=much is not a size" in said


def test_a_misspelled_setting_of_the_broker_is_named(place: dict[str, str]) -> None:
    """Others' names begin with KAFKA_ as well: a word of warning, and only where ours is near."""
    more = {"KAFKA_ADVERTISED_PRT": "1", "KAFKA_SERVICE_HOST": "h", "KAFKA_HEAP": "much"}
    _code, said = refusal(*APPLIANCE, **place | more)
    assert "KAFKA_ADVERTISED_PRT is no setting of the broker (nearest: KAFKA_ADVERTISED_PORT)" in said
    assert "KAFKA_SERVICE_HOST" not in said


@pytest.mark.parametrize("how", ["readable", "link", "nobodys", "long"])
def test_a_run_folder_that_others_can_reach_is_not_taken(how: str, place: dict[str, str], tmp_path: Path) -> None:
    """Who may write there decides what supervisord runs: made before by somebody, it is refused; nothing runs."""
    run = tmp_path / "run"
    if how == "long":  # a path too long for a socket: the folder is in the temporary folder, under a name one can guess
        run = tmp_path / f"etl-run-{os.getuid()}-{hashlib.sha256(os.fsencode(_TOO_LONG)).hexdigest()[:12]}"
        place |= {"APPLIANCE_RUN_DIR": _TOO_LONG, "TMPDIR": str(tmp_path)}
    if how == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        run.symlink_to(tmp_path / "elsewhere")
    else:
        run.mkdir()
        run.chmod(0o700 if how == "nobodys" else 0o755)
        if how == "nobodys":
            if os.geteuid() != 0:
                pytest.skip("only root can give a folder away")
            os.chown(run, 65534, 65534)
    code, said = refusal(*APPLIANCE, **place)
    assert code == 2
    assert f"APPLIANCE_RUN_DIR: {run} must be a folder of this user's" in said
    assert list(run.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [(("submitt", "A:/a", "B:/b"), "did you mean submit?"), (("brocker",), "did you mean broker?"),
     (("broker", "group"), "takes no further words")],
)  # fmt: skip
def test_a_mistyped_command_is_not_taken_for_a_topic(words: tuple[str, ...], says: str, place: dict[str, str]) -> None:
    """It would run for ever, and make topics."""
    code, said = refusal(*APPLIANCE, *words, **place)
    assert code == 2
    assert says in said


def test_a_folder_that_another_broker_uses_is_not_touched(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Kafka's own lock comes after its first write; here the second one does not even begin.

    Nobody but its owner can even read it.
    """
    broker = stack.Broker(tmp_path / "broker")
    request.addfinalizer(broker.kill)
    broker.start()
    data = tmp_path / "broker" / "data"
    assert data.stat().st_mode & 0o077 == 0
    assert not [path for path in data.rglob("*") if path.stat().st_mode & 0o077], "others can neither read nor lock"
    before = (data / "server.properties").stat().st_mtime_ns
    ports = {"KAFKA_PORT": str(stack.free_port()), "KAFKA_CONTROLLER_PORT": str(stack.free_port())}
    code, said = refusal(*BROKER, KAFKA_DATA_DIR=str(data), **ports)
    assert code == 2
    assert "is in use by another broker" in said
    assert (data / "server.properties").stat().st_mtime_ns == before
    broker.kill()
    data.chmod(0o755)  # as older versions made it
    broker.start()  # a killed one holds nothing
    assert data.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("options", "accounts", "says"),
    [
        (["--root", "/nowhere"], '{"a": "b"}', "--root /nowhere: no such folder"),
        (["--root", "/", "--port", "70000"], '{"a": "b"}', "--port 70000: not from 0 to 65535"),
        (["--root", "/", "--max-connections", "0"], '{"a": "b"}', "--max-connections 0"),
        (["--root", "/"], "", "FTP_SERVER_ACCOUNTS"),
        (["--root", "/"], "a:b", "FTP_SERVER_ACCOUNTS"),
        (["--root", "/"], '{"a": 1}', "FTP_SERVER_ACCOUNTS"),
    ],
)
def test_the_small_ftp_server_names_a_wrong_argument(options: list[str], accounts: str, says: str) -> None:
    """Exit code 2."""
    code, said = refusal(*FTP_SERVER, *options, FTP_SERVER_ACCOUNTS=accounts)
    assert code == 2
    assert says in said


def test_the_small_ftp_server_names_a_taken_port(tmp_path: Path) -> None:
    """Exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        accounts = '{"a": "b"}'
        code, said = refusal(*FTP_SERVER, f"--root={tmp_path}", f"--port={taken}", FTP_SERVER_ACCOUNTS=accounts)
    assert code == 1
    assert str(taken) in said
