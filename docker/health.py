"""The image's health check: the broker of this container answers, and every consumer works.

A consumer works if it has polled within its limits and says of itself that nothing stands still: it has heard the
broker, committed what was to be committed, and read what was to be read.

Prints what is wrong and exits with 1. What should run is in the file that appliance.py leaves in the run folder;
a container without that file is a single command, and well as long as it lives. With `--consumer` it is one consumer,
which may as well wait for Kafka: to start it again would not help. With `--consumer --working` it must work.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path

from etl import identity

ENVIRONMENT_FILE = Path(os.environ.get("APPLIANCE_RUN_DIR") or "/tmp/etl-run") / "environment"
POLL_LIMIT_SECONDS = float(os.environ.get("APPLIANCE_POLL_LIMIT_SECONDS") or 60)
API_VERSIONS = 18
LIMIT_SECONDS = 5


def main() -> int:
    """Return 0 when all is well."""
    if "--consumer" in sys.argv[1:]:
        return told(consumer_problems(1, may_wait="--working" not in sys.argv[1:]))
    if not ENVIRONMENT_FILE.exists():
        return 0
    expected = dict(line.split("=", 1) for line in ENVIRONMENT_FILE.read_text().splitlines())
    if not expected:
        return told(["the appliance is starting"])
    problems = []
    if expected["KAFKA_AUTOSTART"] == "true" and (problem := broker_problem(int(expected["KAFKA_PORT"]))):
        problems.append(problem)
    if expected["APPLIANCE_CONSUMERS"] == "true":
        problems += consumer_problems(int(expected["ETL_CONSUMER_COUNT"]), may_wait=False)
    return told(problems)


def told(problems: list[str]) -> int:
    """Print the problems and return the exit code."""
    print("; ".join(problems) or "well")
    return 1 if problems else 0


def broker_problem(port: int) -> str | None:
    """Ask the broker for the versions it speaks, which its network and its request threads must answer."""
    request = struct.pack(">hhih", API_VERSIONS, 0, 1, -1)
    try:
        with socket.create_connection(("127.0.0.1", port), LIMIT_SECONDS) as connection:
            connection.settimeout(LIMIT_SECONDS)
            connection.sendall(struct.pack(">i", len(request)) + request)
            reply = b""
            while len(reply) < 10:  # length, correlation, error code
                received = connection.recv(10 - len(reply))
                if not received:
                    return "the broker hung up"
                reply += received
    except OSError as error:
        return f"the broker does not answer: {error}"
    _length, correlation, code = struct.unpack(">iih", reply)
    return None if (correlation, code) == (1, 0) else f"the broker answers with error {code}"


def consumer_problems(count: int, *, may_wait: bool) -> list[str]:
    """Say how many of the consumers have come round lately (and work, unless they may wait for Kafka), if not all."""
    beats = [beat for beat in identity.beats().values() if beat.age <= POLL_LIMIT_SECONDS]
    well = sum(may_wait or (beat.polls and not beat.problem) for beat in beats)
    if well >= count:
        return []
    waiting = sum(not beat.polls for beat in beats)
    reasons = sorted({beat.problem for beat in beats if beat.problem})
    polled = sum(beat.polls for beat in beats)
    return [f"{polled} of {count} consumers polled within {POLL_LIMIT_SECONDS:g} s, {waiting} wait for Kafka", *reasons]


if __name__ == "__main__":
    sys.exit(main())
