"""Count round trips per job at the transfer layer: one lane, small files, vsftpd to vsftpd, over a link of our own.

    python bench/trips.py [--rtt-ms 10] [--jobs 60] [--bytes 1000] [--passive/--active]

Prints the round trips of one job among many (the slope between a short and a long run, so that logging in is not in
it) and of a lone job in warm sessions (the median of jobs that are given one after the other's end). Needs root, gcc
and `make test-servers`; takes some seconds.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "src")]

from link import FAR_ADDRESS, link  # noqa: E402

import stack  # noqa: E402 - the servers of the tests, which are no package
from etl.config import ConfigLoader, ServerConfig  # noqa: E402
from etl.models.message import FileTransferJob  # noqa: E402
from etl.models.task import Origin, Record, Task  # noqa: E402
from etl.runner import Runner  # noqa: E402
from etl.transfer.lane import Lanes  # noqa: E402
from etl.transfer.lease import Lease  # noqa: E402
from etl.transfer.pool import Pools  # noqa: E402
from etl.transfer.row import Store  # noqa: E402

LIMIT_SECONDS = 120
SHORT = 20  # jobs of the short run
LONE = 9


class FarVsftpd(stack.Vsftpd):
    """A server at the far end of the link."""

    host = FAR_ADDRESS


def serve(folder: Path, jobs: int, size_bytes: int) -> None:
    """Run two servers until standard input ends; print where they are."""
    servers = [FarVsftpd(folder / name) for name in ("source", "target")]
    for server in servers:
        server.folder.mkdir(parents=True, exist_ok=True)
    for number in range(jobs):
        (servers[0].root / f"{number}").write_bytes(number.to_bytes(4, "big") * (size_bytes // 4))
    try:
        found = [{"port": s.start().port, "user": s.username, "password": s.password} for s in servers]
        print(json.dumps(found), flush=True)
        sys.stdin.read()
    finally:
        for server in servers:
            server.kill()
    wrong = sum(
        (servers[0].root / f"{number}").read_bytes() != (servers[1].root / f"{number}").read_bytes()
        for number in range(jobs)
    )
    print(json.dumps(wrong), flush=True)


def a_task(number: int) -> Task:
    """Return the job of one file."""
    ends = {side: {"hostname": side.upper(), "path": f"/{number}"} for side in ("source", "destination")}
    job = FileTransferJob.from_dict({"job_id": str(number), **ends})
    return Task(Record("bench", 0, number, None, b"{}"), Origin("bench", 0, number), job)


def work(servers: list[dict[str, object]], jobs: int) -> dict[str, float]:
    """Move the files; return the figures, in round trips."""
    configs = [
        ServerConfig(name, "ftp", FAR_ADDRESS, int(str(s["port"])), str(s["user"]), str(s["password"]))
        for name, s in zip(("SOURCE", "DESTINATION"), servers, strict=True)
    ]
    trip = statistics.median(connect_seconds(config) for config in configs * 5)
    bench = Bench(configs)
    bench.run(range(SHORT))  # opens the sessions
    short = bench.run(range(SHORT))
    long = bench.run(range(SHORT, jobs + SHORT))
    lone = [bench.run(range(number, number + 1)) for number in range(jobs + SHORT, jobs + SHORT + LONE)]
    bench.pools.close()
    return {
        "rtt_ms": round(trip * 1000, 2),
        "trips_per_job": round((long - short) / (jobs - SHORT) / trip, 2),
        "trips_of_a_lone_job": round(statistics.median(lone) / trip, 2),
    }


def connect_seconds(config: ServerConfig) -> float:
    """Measure one round trip: a connect."""
    started = time.monotonic()
    with socket.create_connection((config.host, config.port or 21), 5):
        return time.monotonic() - started


class Queue:
    """Jobs of one pair of servers, for one lane: what the dispatcher is to it."""

    def __init__(self, pools: Pools, numbers: range) -> None:
        self._pools = pools
        self._tasks = deque(a_task(number) for number in numbers)
        self._left = len(self._tasks)
        self.done = threading.Event()

    def take(self, timeout: float) -> tuple[Task, Lease] | None:
        """Return the next job and a lease."""
        if not self._tasks:
            self.done.wait(min(timeout, 0.01))
            return None
        lease = self._pools.reserve(self._pools.server("SOURCE"), self._pools.server("DESTINATION"))
        return None if lease is None else (self._tasks.popleft(), lease)

    def another(self, _task: Task) -> Task | None:
        """Return the next job."""
        return self._tasks.popleft() if self._tasks else None

    def finish(self, _task: Task) -> None:
        """Count."""
        self._left -= 1
        if not self._left:
            self.done.set()

    def later(self, task: Task, _delay: float) -> None:
        """Nothing may fail here."""
        raise RuntimeError(f"job {task.job.job_id} failed")


class Bare(Runner):
    """The product's stages without outcomes."""

    def _succeeded(self, *_: object) -> None:
        """Nobody is told."""

    def _failed(self, task: Task, error: BaseException, _started: float) -> None:
        raise RuntimeError(f"job {task.job.job_id} failed") from error

    def _tell_dispatcher(self, *_: object, **__: object) -> None:
        """There is none."""

    def _let_in(self, _task: Task) -> None:
        """The same."""


class Bench:
    """One lane and its pools, kept warm between runs."""

    def __init__(self, configs: list[ServerConfig]) -> None:
        self._settings = ConfigLoader(environ={}).settings
        self.pools = Pools({config.hostname: config for config in configs}.__getitem__, self._settings)

    def run(self, numbers: range) -> float:
        """Return the seconds that one lane takes for these files."""
        work, none = Queue(self.pools, numbers), None
        store = Store(self._settings.store_bytes)
        runner = Bare(self._settings, "bench", "bench", self.pools, none, none, none, none, store, lambda: False)  # type: ignore[arg-type]
        lanes = Lanes(work, runner.run, 1, buffer_bytes=1 << 20, stages=runner)
        started = time.monotonic()
        lanes.start()
        if not work.done.wait(LIMIT_SECONDS):
            raise RuntimeError("the lane does not end")
        seconds = time.monotonic() - started
        lanes.stop(5)
        return seconds


def main() -> int:
    """Make the link, start both ends, print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rtt-ms", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--bytes", type=int, default=1000)
    parser.add_argument("--part", choices=["serve", "work"], help=argparse.SUPPRESS)
    parser.add_argument("--given", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = options.jobs + SHORT + LONE
    if options.part == "serve":
        serve(Path(options.given), files, options.bytes)
        return 0
    if options.part == "work":
        print(json.dumps(work(json.loads(options.given), options.jobs)))
        return 0
    again = [sys.executable, __file__, "--jobs", str(options.jobs), "--bytes", str(options.bytes)]
    with tempfile.TemporaryDirectory(prefix="etl-bench-") as folder, link(options.rtt_ms / 2) as made:
        server = subprocess.Popen(
            made.inside(made.far, [*again, "--part", "serve", "--given", folder]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            given = server.stdout.readline()
            client = made.inside(made.near, [*again, "--part", "work", "--given", given.strip()])
            done = subprocess.run(client, check=True, timeout=LIMIT_SECONDS, stdout=subprocess.PIPE, text=True)
            server.stdin.close()
            wrong = int(server.stdout.readline())
            server.wait(10)
        finally:
            server.kill()
    print(json.dumps({**json.loads(done.stdout), "bytes": options.bytes, "wrong_files": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
