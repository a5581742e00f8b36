"""`make demo` as a user runs it: it ends by itself, it leaves nothing running, Ctrl-C included."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

import stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

DEMO = [sys.executable, str(stack.REPOSITORY / "docker" / "demo.py")]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The demonstration's folder; whatever it left running is ended."""
    made = tmp_path / "demo"
    yield made
    subprocess.run([*DEMO, "--down"], env=environment(made), check=True, stdout=subprocess.DEVNULL)
    stack.remove_tree(made)


def environment(folder: Path) -> dict[str, str]:
    """A user's environment with the demonstration's folder, and with settings of theirs that must not count."""
    return {**os.environ, "DEMO_FOLDER": str(folder), "ETL_TOPIC": "somebody-elses", "KAFKA_PORT": "1"}


def working_for(folder: Path) -> list[str]:
    """The command lines of all processes that name the folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if str(folder) in line and process.pid != os.getpid():
                found.append(line)
    return found


def wait_for_text(log: Path, text: str) -> None:
    stack.wait_until(lambda: log.exists() and text in log.read_text(), 90, f"{text!r} in {log}")


def test_the_demo_moves_every_file_and_can_be_left_running(folder: Path) -> None:
    """200 files arrive, 3 dead letters are listed; `--keep` keeps it up, `--down` ends all of it."""
    done = subprocess.run(
        [*DEMO, "--keep"], env=environment(folder), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 of 200 files arrived" in done.stdout
    assert "3 dead letters" in done.stdout
    assert "CURRENT-OFFSET" in done.stdout
    running = working_for(folder)
    # -P: no module of the current folder is run
    assert sum("-P -m etl.main --env-file" in line for line in running) == 2
    assert sum("-P -m etl.main api --env-file" in line for line in running) == 1
    link = re.search(r"^page +(\S+/login\?token=\S+)$", done.stdout, re.MULTILINE)
    assert link, done.stdout
    with httpx.Client(follow_redirects=True) as browser:
        assert browser.get(link[1]).status_code == 200
        api = httpx.URL(link[1]).join("/api/v1/")
        stats = browser.get(api.join("stats")).json()
        in_flight = lambda: [one["source"] for one in browser.get(api.join("pool/transfers")).json()["items"]]  # noqa: E731
        stack.wait_until(lambda: any("SCANNER:/plate" in source for source in in_flight()), 30, "a file in flight")
    assert stats["jobs"]["done"] >= 200
    assert stats["jobs"]["failed"] == 3
    assert sum("ftp_server.py" in line for line in running) == 2
    assert sum("kafka.Kafka" in line for line in running) == 1
    secrets = [line.split("=", 1)[1] for line in (folder / ".env").read_text().splitlines() if "_PASS=" in line]
    assert len(secrets) == 2
    assert not [line for line in running if any(secret in line for secret in secrets)]

    again = subprocess.run(DEMO, env=environment(folder), capture_output=True, text=True, timeout=30, check=False)
    assert again.returncode == 1
    assert "make down" in again.stderr

    down = subprocess.run([*DEMO, "--down"], env=environment(folder), capture_output=True, timeout=60, check=False)
    assert down.returncode == 0
    assert not working_for(folder)


@pytest.mark.parametrize("moment", ["starting", "submitting"])
def test_ctrl_c_ends_the_demo_and_all_that_it_started(folder: Path, tmp_path: Path, moment: str) -> None:
    """Interrupted at any moment it is gone within seconds, with everything."""
    printed = tmp_path / "printed"
    with printed.open("wb") as output:
        demo = subprocess.Popen(
            DEMO, env=environment(folder), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for_text(printed, f"== {moment}")
        time.sleep(0.5)
        os.killpg(demo.pid, signal.SIGINT)
        assert demo.wait(60) == 130, printed.read_text()
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()
    assert "Traceback" not in printed.read_text()
    assert not working_for(folder)


def test_the_appliance_starts_nothing_with_wrong_settings(tmp_path: Path) -> None:
    """All that is wrong is named at once, exit code 2, and neither broker nor supervisord was there."""
    env_file = tmp_path / "wrong.env"
    env_file.write_text("ETL_WORKERS=none\nA_TYPE=ftp\n")
    done = subprocess.run(
        [sys.executable, str(stack.REPOSITORY / "docker" / "appliance.py"), "--env-file", str(env_file)],
        env={**os.environ, "APPLIANCE_RUN_DIR": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "ETL_WORKERS" in done.stderr
    assert "A_HOST" in done.stderr
    assert not (tmp_path / "run").exists()
