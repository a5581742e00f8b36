"""Start the appliance: check the settings, then become supervisord, which runs the broker and the consumers.

Takes the options of `etl consume`. A broker of our own runs when the bootstrap server is this machine's loopback
address, unless KAFKA_AUTOSTART (true or false) says otherwise; see kafka/bin/kafka-appliance.sh for its settings.
Exit code 2: wrong settings, one message that names them all, and nothing was started.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from etl.config import ConfigLoader, Settings
from etl.errors import SettingsError

HOME = Path(__file__).resolve().parent.parent
LOOPBACK = ("localhost", "127.0.0.1")
LAST_COMMIT_SECONDS = 10  # that a consumer may need after its grace time, before supervisord kills it
MAX_SOCKET_PATH = 90  # a UNIX socket's path ends at 104 bytes (macOS) or 108 (Linux)


def main() -> int:
    """Check, prepare, become supervisord."""
    parser = argparse.ArgumentParser(prog="appliance", description="Run the broker and the consumers.")
    parser.add_argument("--topic", help="topic that jobs come from (ETL_TOPIC)")
    parser.add_argument("--group-id", help="consumer group (ETL_GROUP_ID)")
    parser.add_argument("--bootstrap-servers", help="HOST:PORT; another machine's: no broker is started here")
    parser.add_argument("--env-file", help="file of settings (default: .env, if there)")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    options = parser.parse_args()
    overrides = {
        name: value
        for name, value in {
            "ETL_TOPIC": options.topic,
            "ETL_GROUP_ID": options.group_id,
            "ETL_BOOTSTRAP_SERVERS": options.bootstrap_servers,
        }.items()
        if value is not None
    }
    try:
        settings = ConfigLoader(env_file=options.env_file, overrides=overrides).settings
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2

    return become_supervisord(settings, consumer_arguments=sys.argv[1:])


def become_supervisord(settings: Settings, consumer_arguments: list[str]) -> NoReturn:
    """Put into the environment what supervisord.conf reads there, and replace this process."""
    host, _, port = settings.bootstrap_servers.partition(":")
    own_broker = os.environ.get("KAFKA_AUTOSTART") or str(host in LOOPBACK).lower()
    os.environ.update(
        APPLIANCE_HOME=str(HOME),
        APPLIANCE_RUN_DIR=str(run_folder()),
        APPLIANCE_CONSUMER=shlex.join([sys.executable, "-m", "etl.main", *consumer_arguments]),
        APPLIANCE_STOP_SECONDS=str(math.ceil(settings.shutdown_grace_seconds) + LAST_COMMIT_SECONDS),
        ETL_CONSUMER_COUNT=str(settings.consumer_count),
        KAFKA_AUTOSTART=own_broker,
    )
    if host in LOOPBACK:
        os.environ.setdefault("KAFKA_PORT", port or "9092")
    command = [sys.executable, "-m", "supervisor.supervisord", "--nodaemon"]
    command += [f"--configuration={HOME / 'docker' / 'supervisord.conf'}"]
    if os.geteuid() == 0:
        command += ["--user=root"]  # asked for, so it is no news to warn of
    sys.stdout.flush()
    os.execv(command[0], command)


def run_folder() -> Path:
    """Return the folder of supervisord's socket and process id (APPLIANCE_RUN_DIR), made if need be."""
    folder = Path(os.environ.get("APPLIANCE_RUN_DIR") or HOME / "build" / "run").absolute()
    if len(os.fsencode(folder)) > MAX_SOCKET_PATH:
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"etl-run-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
