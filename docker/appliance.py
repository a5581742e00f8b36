"""Start the appliance: check the settings, then become supervisord, which runs the broker, the consumers and the API.

Takes the options of `etl consume`; with the word `broker` only the broker runs. A broker of our own runs when the
bootstrap server is this machine's loopback address, unless KAFKA_AUTOSTART (true or false) says otherwise; see
kafka/bin/kafka-appliance.sh for its settings. Exit code 2: wrong settings, one message that names them all, and
nothing was started.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import math
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from etl import cli
from etl.config import ConfigLoader, Settings, read_env_file
from etl.errors import SettingsError

HOME = Path(__file__).resolve().parent.parent
LOOPBACK = ("localhost", "127.0.0.1")
EXIT_WRONG_SETTINGS = 2
STANDARD_ERROR = 2  # its descriptor, the last of the standard streams
LAST_COMMIT_SECONDS = 10  # that a consumer may need after its grace time, before supervisord kills it
SHORTEST_POLL_LIMIT = 5  # seconds; supervisord asks as often
MAX_SOCKET_PATH = 90  # a UNIX socket's path ends at 104 bytes (macOS) or 108 (Linux)


def main() -> None:
    """Check, prepare, become supervisord."""
    open_missing_streams()
    parser = argparse.ArgumentParser(prog="appliance", description="Run the broker and the consumers.")
    parser.add_argument("topic_", metavar="TOPIC", nargs="?", help="as --topic; `broker`: run the broker alone")
    parser.add_argument("group_id_", metavar="GROUP_ID", nargs="?", help="as --group-id")
    parser.add_argument("bootstrap_servers_", metavar="BOOTSTRAP_SERVERS", nargs="?", help="as --bootstrap-servers")
    parser.add_argument("--topic", help="topic that jobs come from (ETL_TOPIC)")
    parser.add_argument("--group-id", help="consumer group (ETL_GROUP_ID)")
    parser.add_argument("--bootstrap-servers", help="HOST:PORT; another machine's: no broker is started here")
    parser.add_argument("--env-file", help="file of settings (default: .env, if there)")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    options = parser.parse_args()
    word = options.topic_ or ""
    broker_only = word == "broker"
    if broker_only and options.group_id_:
        parser.error("`broker` runs the broker alone and takes no further words (a topic of that name: --topic)")
    if word and not broker_only:
        refuse_misspelled(parser, word)
    if broker_only:
        options.topic_ = None
    overrides = {
        name: value
        for name, value in {
            "ETL_TOPIC": options.topic or options.topic_,
            "ETL_GROUP_ID": options.group_id or options.group_id_,
            "ETL_BOOTSTRAP_SERVERS": options.bootstrap_servers or options.bootstrap_servers_,
            "ETL_LOG_LEVEL": "DEBUG" if options.verbose else None,
        }.items()
        if value is not None
    }
    try:
        config = ConfigLoader(env_file=options.env_file, overrides=overrides)
        take_broker_settings(options.env_file)
        check_own_settings()
        if not broker_only:
            config.require_servers()
        folder = run_folder()
    except SettingsError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_WRONG_SETTINGS)
    if options.env_file:
        overrides["APPLIANCE_ENV_FILE"] = str(Path(options.env_file).absolute())
    become_supervisord(config.settings, overrides, folder, broker_only=broker_only)


def open_missing_streams() -> None:
    """Open what is closed of the three standard streams (`>&-`): any file opened later would be taken for it."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
        os.set_inheritable(opened, True)
    os.close(opened)


def refuse_misspelled(parser: argparse.ArgumentParser, word: str) -> None:
    """Refuse a first word that was hardly meant as a topic; as one it would run for ever."""
    if instead := cli.refusal(word, [*cli.COMMANDS, "broker"]):
        parser.error(instead)


def take_broker_settings(env_file: str | None) -> None:
    """Put the KAFKA_ settings of the file into the environment, where they are not yet; and take quotes off.

    `docker --env-file` leaves the quotes of the file where they are.
    """
    if env_file or Path(".env").exists():
        for name, value in read_env_file(env_file or ".env")[0].items():
            if name.startswith("KAFKA_"):
                os.environ.setdefault(name, value)
    for name, value in os.environ.items():
        if name.startswith("KAFKA_") and len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            os.environ[name] = value[1:-1]


def check_own_settings() -> None:
    """Refuse what would only show later, as a process that never works; name what is nearly a setting of the broker."""
    problems = []
    if os.environ.get("KAFKA_AUTOSTART", "true").lower() not in {"true", "false"}:
        problems.append(f"KAFKA_AUTOSTART: {os.environ['KAFKA_AUTOSTART']!r} is not true or false")
    limit = os.environ.get("APPLIANCE_POLL_LIMIT_SECONDS") or "60"
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", limit) or float(limit) < SHORTEST_POLL_LIMIT:
        problems.append(f"APPLIANCE_POLL_LIMIT_SECONDS: {limit!r} is not a number from {SHORTEST_POLL_LIMIT}")
    if problems:
        raise SettingsError("\n  ".join(["settings of the appliance are wrong:", *problems]))
    scripts = "".join((HOME / "kafka" / "bin" / name).read_text() for name in ("kafka-appliance.sh", "kafka-run.sh"))
    known = {*re.findall(r"KAFKA_[A-Z_]+", scripts), "KAFKA_AUTOSTART"}
    for name in sorted(name for name in os.environ if name.startswith("KAFKA_") and name not in known):
        # Others' names begin so, too: only what is nearly ours is worth a word.
        if near := difflib.get_close_matches(name, known, 1, 0.9):
            print(f"appliance: {name} is no setting of the broker (nearest: {near[0]})", file=sys.stderr, flush=True)


def become_supervisord(settings: Settings, overrides: dict[str, str], folder: Path, *, broker_only: bool) -> NoReturn:
    """Put into the environment what supervisord.conf reads there, and replace this process."""
    host, _, port = settings.bootstrap_servers.partition(":")
    own_broker = broker_only or os.environ.get("KAFKA_AUTOSTART", str(host in LOOPBACK)).lower() == "true"
    if host in LOOPBACK:
        os.environ.setdefault("KAFKA_PORT", port or "9092")
    if own_broker:
        # Its own script says whether it could start: in one sentence, before anything else runs.
        os.environ["APPLIANCE_PYTHON"] = sys.executable
        checked = subprocess.run([HOME / "kafka" / "bin" / "kafka-appliance.sh", "--check"], check=False)
        if checked.returncode:
            sys.exit(checked.returncode)
    backoff = str(HOME / "docker" / "backoff.sh")
    broker = [backoff, str(HOME / "kafka" / "bin" / "kafka-appliance.sh")]
    consumer = [backoff, sys.executable, "-P", "-m", "etl.main"]  # -P: no module of the folder that it is started in
    api = [*consumer, "api"]
    if env_file := overrides.pop("APPLIANCE_ENV_FILE", None):
        consumer += ["--env-file", env_file]
        api += ["--env-file", env_file]
    if own_broker and not settings.instance_id_is_set:
        # Nobody else on this broker has this name: after a kill, or in a new container on the same volume, the
        # consumers are the same static members again, and nobody waits for their former selves.
        overrides = overrides | {"ETL_INSTANCE_ID": "appliance"}
    started_with = overrides | {
        "KAFKA_AUTOSTART": str(own_broker).lower(),
        "KAFKA_PORT": os.environ.get("KAFKA_PORT", "9092"),
        "ETL_CONSUMER_COUNT": str(settings.consumer_count),
        # One API is enough for a cluster: where the broker is elsewhere, it has a container of its own.
        "ETL_API": str(settings.api and own_broker and not broker_only).lower(),
        "APPLIANCE_CONSUMERS": str(not broker_only).lower(),
    }
    os.environ.update(
        started_with,
        APPLIANCE_RUN_DIR=str(folder),
        APPLIANCE_PYTHON=sys.executable,
        APPLIANCE_BROKER=shlex.join(broker),
        APPLIANCE_CONSUMER=shlex.join(consumer),
        APPLIANCE_WATCH=shlex.join([sys.executable, str(HOME / "docker" / "watch.py")]),
        APPLIANCE_API=shlex.join(api),
        APPLIANCE_STOP_SECONDS=str(math.ceil(settings.shutdown_grace_seconds) + LAST_COMMIT_SECONDS),
    )
    for left in folder.glob("*.starts"):
        left.unlink()
    # For the health check, and for commands that are run beside (docker/inside.sh).
    (folder / "environment").write_text("".join(f"{name}={value}\n" for name, value in started_with.items()))
    command = [sys.executable, str(HOME / "docker" / "supervise.py"), "--nodaemon"]
    command += [f"--configuration={HOME / 'docker' / 'supervisord.conf'}"]
    if os.geteuid() == 0:
        command += ["--user=root"]  # asked for, so it is no news to warn of
    print(end="", flush=True)
    os.execv(command[0], command)


def run_folder() -> Path:
    """Return the folder of supervisord's socket and process id (APPLIANCE_RUN_DIR), made if need be.

    Who may write there decides what runs here. Raises SettingsError when others may, or may read.
    """
    folder = Path(os.environ.get("APPLIANCE_RUN_DIR") or HOME / "build" / "run").absolute()
    if len(os.fsencode(folder)) > MAX_SOCKET_PATH:
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"etl-run-{os.getuid()}-{name}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise SettingsError(f"APPLIANCE_RUN_DIR: {folder} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise SettingsError(
            f"APPLIANCE_RUN_DIR: {folder} must be a folder of this user's that nobody else may read or write "
            "(mode 0700): remove it, or choose another"
        )
    return folder


if __name__ == "__main__":
    main()
