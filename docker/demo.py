"""The demonstration: broker, consumers and two FTP servers; 200 good jobs and 3 bad ones; what became of them.

`demo.py` runs it and stops everything, `demo.py --keep` leaves it running with a few files in flight, `demo.py --down`
ends what runs. All that it makes is in build/demo of this clone (or in DEMO_FOLDER), all its ports are free ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import traffic

HOME = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("DEMO_FOLDER") or HOME / "build" / "demo").absolute()
STATE = FOLDER / "processes.json"
ENV_FILE = FOLDER / ".env"
GOOD_JOBS = 200
BAD_JOBS = 3
WAIT_SECONDS = 180
PATIENCE_SECONDS = 8  # of the consumers' grace time and the broker's stop
STOP_SECONDS = 30


class DemoError(Exception):
    """Raised when the demonstration cannot go on; its text is all that the user needs."""


@dataclass(frozen=True)
class FtpServer:
    """One of the two FTP servers."""

    name: str
    root: Path
    port: int
    username: str
    password: str


def main() -> int:
    """Run the demonstration, or end one that was left running."""
    parser = argparse.ArgumentParser(description="Two hundred files move between two FTP servers.")
    parser.add_argument("--keep", action="store_true", help="leave it running")
    parser.add_argument("--down", action="store_true", help="end what was left running")
    options = parser.parse_args()
    if options.down:
        ended = stop_processes()
        print("demo: stopped" if ended else "demo: nothing was running")
        return 0
    if running():
        print("demo: it is running already; end it first with: make down", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    keep = False
    try:
        run()
        if options.keep:
            start("traffic", [sys.executable, traffic.__file__, str(FOLDER / "scanner"), str(ENV_FILE)], {})
        keep = options.keep
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 130
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    finally:
        if not keep:
            # A second Ctrl-C must not leave something running: it is late, not ignored for long.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            stop_processes()
    if keep:
        say_how_to_go_on_up()
    else:
        say_how_to_go_on_down()
    return 0


class _Interrupt:
    """A handler of signals that raises KeyboardInterrupt: at once, or at the end of what must not be interrupted."""

    def __init__(self) -> None:
        self._is_held = self._came = False

    def __call__(self, _number: int, _frame: object) -> None:
        self._came = True
        if not self._is_held:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let no signal come in between."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._came:
            raise KeyboardInterrupt


_interrupt = _Interrupt()


def run() -> None:
    """Start everything, submit, wait, and show what became of the jobs."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    FOLDER.chmod(0o700)
    ports = free_ports(5)
    source = FtpServer("SRC_FTP_SERVER1", FOLDER / "source", ports[0], "reader", secrets.token_urlsafe(12))
    target = FtpServer("DST_FTP_SERVER1", FOLDER / "destination", ports[1], "writer", secrets.token_urlsafe(12))
    write_settings((source, target), kafka_port=ports[2], api_port=ports[4])
    jobs, total = write_jobs(source, target)

    step("starting two FTP servers, the broker, two consumers and the API")
    for server in (source, target):
        start_ftp_server(server)
    start_appliance(kafka_port=ports[2], controller_port=ports[3])
    wait_until_consuming()

    step(f"the page is at {login_link()}")
    step(f"submitting {GOOD_JOBS} good and {BAD_JOBS} bad jobs")
    command = ["submit", "--file", str(jobs), "--no-check", "--wait", "--timeout", str(WAIT_SECONDS)]
    # In a session of its own: Ctrl-C is for us alone, and we end it.
    submitted = subprocess.run(etl(*command), env=clean_environment({}), start_new_session=True, check=False)
    if submitted.returncode not in {0, 1}:
        raise DemoError(f"etl submit ended with exit code {submitted.returncode}; see {FOLDER / 'appliance.log'}")
    arrived = compare(source.root, target.root)
    print(f"{arrived} of {GOOD_JOBS} files arrived ({total / 1e6:.1f} MB), each the same byte for byte")

    step("where the consumers are (kafka-consumer-groups.sh --describe)")
    show_group()
    step("the dead letters (etl dlq list)")
    listed = subprocess.run(etl("dlq", "list"), env=clean_environment({}), check=False)
    if listed.returncode != 0:
        raise DemoError(f"etl dlq list ended with exit code {listed.returncode}")
    if arrived != GOOD_JOBS:
        raise DemoError(f"{GOOD_JOBS - arrived} files did not arrive; see {FOLDER / 'appliance.log'}")


def step(text: str) -> None:
    """Say what comes next."""
    print(f"\n== {text}", flush=True)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, below those from which the kernel numbers outgoing connections."""
    ports: set[int] = set()
    while len(ports) < count:
        port = random.randint(12000, 30000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.add(port)
    return list(ports)


def write_settings(servers: tuple[FtpServer, ...], kafka_port: int, api_port: int) -> None:
    """Write the `.env` that the consumers read, and the user afterwards."""
    lines = [
        "ETL_TOPIC=demo-jobs",
        f"ETL_GROUP_ID=demo-workers-{kafka_port}",  # another clone's demo on this host is another group
        f"ETL_BOOTSTRAP_SERVERS=127.0.0.1:{kafka_port}",
        "ETL_CONSUMER_COUNT=2",
        "ETL_NUM_PARTITIONS=4",
        f"ETL_API_PORT={api_port}",
        f"ETL_API_DATA_DIR={FOLDER / 'api'}",
    ]
    for server in servers:
        lines += [
            f"{server.name}_TYPE=ftp",
            f"{server.name}_HOST=127.0.0.1",
            f"{server.name}_PORT={server.port}",
            f"{server.name}_USER={server.username}",
            f"{server.name}_PASS={server.password}",
        ]
    ENV_FILE.touch(mode=0o600)
    ENV_FILE.write_text("\n".join([*lines, *traffic.settings(FOLDER / "scanner")]) + "\n")


def write_jobs(source: FtpServer, target: FtpServer) -> tuple[Path, int]:
    """Make the sample files and the jobs that move them; return the file of jobs and the size of all files."""
    chance = random.Random(7)
    target.root.mkdir()
    lines, total = [], 0
    for number in range(1, GOOD_JOBS + 1):
        day = f"2026-03-{number % 28 + 1:02d}"
        name = f"서울 관측 {number:03d}.tif" if number % 20 == 0 else f"scan_{number:03d}.tif"
        content = chance.randbytes(chance.randint(10_000, 400_000))
        path = source.root / "data" / "in" / day / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        total += len(content)
        lines.append(
            job(f"demo-{number:03d}", source.name, f"/data/in/{day}/{name}", target.name, f"/archive/{day}/{name}")
        )
    lines[50] += "\n" + job("demo-no-such-file", source.name, "/data/in/nobody.tif", target.name, "/archive/nobody.tif")
    lines[100] += "\n" + job("demo-no-such-server", "SRC_FTP_SERVER9", "/data/in/a.tif", target.name, "/archive/a.tif")
    lines[150] += '\n{"job_id": "demo-broken", "source": '
    path = FOLDER / "jobs.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path, total


def job(job_id: str, source: str, source_path: str, destination: str, destination_path: str) -> str:
    """Return one job as a line of JSON."""
    endpoints = {
        "source": {"hostname": source, "path": source_path},
        "destination": {"hostname": destination, "path": destination_path},
    }
    return json.dumps({"job_id": job_id, **endpoints}, ensure_ascii=False)


def etl(*arguments: str) -> list[str]:
    """Return the command line of `etl` with the demonstration's settings."""
    return [sys.executable, "-m", "etl.main", *arguments, "--env-file", str(ENV_FILE)]


def clean_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without a user's own settings, which must not change the demonstration."""
    ours = (
        "ETL_",
        "SRC_FTP_SERVER1_",
        "DST_FTP_SERVER1_",
        "SCANNER_",
        "FTP_PASSIVE_MODE",
        "DLQ_",
        "RESULT_",
        "RETRY_",
        "FAIL_",
    )
    ours += ("KAFKA_PORT", "KAFKA_CONTROLLER_PORT", "KAFKA_DATA_DIR", "KAFKA_AUTOSTART", "KAFKA_ADVERTISED_")
    ours += ("KAFKA_NETWORK_", "KAFKA_EXTERNAL_", "KAFKA_EXTRA_PROPERTIES")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | dict(more)


def start(name: str, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start one process in a session of its own, and note it down before anything else can happen."""
    with _interrupt.held(), (FOLDER / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=FOLDER,
            env=clean_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        known = read_state()
        known[name] = [process.pid, psutil.Process(process.pid).create_time()]
        STATE.write_text(json.dumps(known))
    return process


def start_ftp_server(server: FtpServer) -> None:
    """Start an FTP server and wait until it listens."""
    command = [sys.executable, str(HOME / "docker" / "ftp_server.py"), f"--root={server.root}", f"--port={server.port}"]
    accounts = json.dumps({server.username: server.password})
    process = start(server.root.name, command, {"FTP_SERVER_ACCOUNTS": accounts})
    wait_for(process, server.port, FOLDER / f"{server.root.name}.log")


def start_appliance(kafka_port: int, controller_port: int) -> None:
    """Start supervisord with the broker and the consumers, and wait until the broker listens."""
    command = [sys.executable, str(HOME / "docker" / "appliance.py"), "--env-file", str(ENV_FILE)]
    environment = {
        "APPLIANCE_RUN_DIR": str(FOLDER / "run"),
        "KAFKA_DATA_DIR": str(FOLDER / "kafka"),
        "KAFKA_CONTROLLER_PORT": str(controller_port),
    }
    wait_for(start("appliance", command, environment), kafka_port, FOLDER / "appliance.log")


def wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the port is served; a process that ended instead is an error with the end of its log."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise DemoError(f"nobody listens on port {port}; the end of {log}:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)


def wait_until_consuming() -> None:
    """Wait until a consumer has made the topics: from then on jobs can be sent."""
    deadline = time.monotonic() + 60
    while "demo-jobs-dlq" not in kafka("kafka-topics.sh", "--list", check=False):
        if time.monotonic() > deadline:
            raise DemoError(f"the consumers made no topics; the end of their log:\n{log_end()}")
        time.sleep(0.2)


def login_link() -> str:
    """Return the page's address that logs in, once the API has written it to the log."""
    deadline = time.monotonic() + 60
    while True:
        found = re.search(r"https?://\S+/login\?token=[\w-]+", (FOLDER / "appliance.log").read_text(errors="replace"))
        if found:
            return found[0]
        if time.monotonic() > deadline:
            raise DemoError(f"the API does not start; the end of the log:\n{log_end()}")
        time.sleep(0.2)


def log_end() -> str:
    """Return the end of the appliance's log."""
    return (FOLDER / "appliance.log").read_text(errors="replace")[-3000:]


def kafka(command: str, *arguments: str, check: bool = True) -> str:
    """Run a command of kafka/bin against the demonstration's broker and return what it printed."""
    done = subprocess.run(
        [str(HOME / "kafka" / "bin" / command), *arguments],
        env=clean_environment(dict(settings())),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode != 0:
        raise DemoError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


def settings() -> Iterator[tuple[str, str]]:
    """Yield the demonstration's ETL_ settings."""
    for line in ENV_FILE.read_text().splitlines():
        name, _, value = line.partition("=")
        if name.startswith("ETL_"):
            yield name, value


def show_group() -> None:
    """Print the group's table, once everything is committed; the last commit may be a moment behind its results."""
    group = dict(settings())["ETL_GROUP_ID"]
    deadline = time.monotonic() + 10
    while True:
        table = kafka("kafka-consumer-groups.sh", "--describe", "--group", group).strip()
        rows = [line.split() for line in table.splitlines() if line.startswith(group)]
        if all(row[5] in {"0", "-"} for row in rows) or time.monotonic() > deadline:
            print(table)
            return


def compare(source: Path, target: Path) -> int:
    """Return how many files below both folders are the same."""
    archive, originals = target / "archive", source / "data" / "in"
    arrived = [path for path in archive.rglob("*") if path.is_file()]
    return sum(path.read_bytes() == (originals / path.relative_to(archive)).read_bytes() for path in arrived)


def read_state() -> dict[str, list[float]]:
    """Return what was started: name to process id and when that process was created."""
    try:
        return dict(json.loads(STATE.read_text()))
    except (OSError, ValueError):
        return {}


def running() -> list[psutil.Process]:
    """Return those of the started processes that live; an id that was dealt out again is somebody else's."""
    found = []
    for pid, created in read_state().values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def stop_processes() -> bool:
    """End everything that was started, in good order; return whether there was anything."""
    processes = running()
    everyone = list(processes)
    for process in reversed(processes):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            children = process.children(recursive=True)
            everyone += children
            process.terminate()
            try:
                process.wait(PATIENCE_SECONDS)
            except psutil.TimeoutExpired:
                # A signal that supervisord sends in the instant of a start is lost before the program is there.
                for child in children:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.terminate()
                process.wait(STOP_SECONDS)
    for process in psutil.wait_procs(everyone, timeout=1)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    STATE.unlink(missing_ok=True)
    return bool(processes)


def say_how_to_go_on_up() -> None:
    """Print addresses and next commands of a demonstration that was left running."""
    values = dict(line.split("=", 1) for line in ENV_FILE.read_text().splitlines())
    python = Path(sys.executable).parent
    print(f"""
== it is still running, and copies a few large files every ten seconds
page          {login_link()}
broker        {values["ETL_BOOTSTRAP_SERVERS"]}
source        ftp://{values["SRC_FTP_SERVER1_USER"]}@127.0.0.1:{values["SRC_FTP_SERVER1_PORT"]}/
destination   ftp://{values["DST_FTP_SERVER1_USER"]}@127.0.0.1:{values["DST_FTP_SERVER1_PORT"]}/
settings      {ENV_FILE} (with the passwords)
log           {FOLDER / "appliance.log"}

one more job  {python}/etl submit SRC_FTP_SERVER1:/data/in/2026-03-02/scan_001.tif \\
                  DST_FTP_SERVER1:/again.tif --wait --env-file {ENV_FILE}
dead letters  {python}/etl dlq list --env-file {ENV_FILE}
the group     ETL_BOOTSTRAP_SERVERS={values["ETL_BOOTSTRAP_SERVERS"]} kafka/bin/kafka-consumer-groups.sh \\
                  --describe --group {values["ETL_GROUP_ID"]}
the end       make down""")


def say_how_to_go_on_down() -> None:
    """Print what to do next, when everything was stopped."""
    print(f"""
== done; everything was stopped
the files     {FOLDER / "destination"}
the log       {FOLDER / "appliance.log"}
again         make demo KEEP=1   leaves it running, for jobs of your own; make down ends it
your servers  .env.example lists all settings; README.md has the first job by hand""")


if __name__ == "__main__":
    sys.exit(main())
