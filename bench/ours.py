"""The product as it ships: consumer processes of one group with a topic of their own, and jobs for them.

A round begins with the first job sent to the topic and ends when a reader of committed records has the last outcome.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
from world import START_SECONDS, End, Files, Pair, World, cpu_seconds, die_with_parent

import stack
from etl.broker import Reader, Writer
from etl.retry import tiers

PARTITIONS = 8
RETRY_PARTITIONS = tiers.PARTITIONS


@dataclass(frozen=True)
class Run:
    """What one round came to."""

    files: int
    size_bytes: int  # of all
    seconds: float
    cpu: Mapping[str, float] = field(default_factory=dict)  # seconds, by who used them

    @property
    def rate(self) -> float:
        """Files per second."""
        return self.files / self.seconds


def server_lines(name: str, end: End) -> list[str]:
    """Return the settings of a server."""
    settings = {"TYPE": "ftp", "HOST": end.host, "PORT": end.port, "USER": end.username, "PASS": end.password}
    return [f"{name}_{key}={value}" for key, value in settings.items()]


def job(pair: Pair, source: str, destination: str) -> tuple[bytes, bytes]:
    """Return key and value of a job between the servers of a pair."""
    return job_of(f"SRC{pair.rtt_ms}", source, f"DST{pair.rtt_ms}", destination)


def job_of(source_name: str, source: str, target_name: str, destination: str) -> tuple[bytes, bytes]:
    """Return key and value of a job between any two servers."""
    ends = {
        "source": {"hostname": source_name, "path": f"/{source}"},
        "destination": {"hostname": target_name, "path": f"/{destination}"},
    }
    return f"{target_name}:{destination}".encode(), json.dumps(ends).encode()


class Results:
    """Committed outcomes, from the moment it is made. Raises OutOfTimeError while one is waited for."""

    def __init__(self, world: World, reader: Reader) -> None:
        self._world, self._reader = world, reader
        self._start = reader.ends()
        self._records = reader.follow(self._start)
        next(self._records)  # connects, before any clock runs

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        while (record := next(self._records)) is None:
            self._world.left()
        return record.value or b""

    def catch_up(self, most: int) -> int:
        """Pass over what was committed already, until no more than `most` came meanwhile; return how many it were.

        To be called before the first is read. What is read next comes as it is committed, but for some `most`.
        """
        passed = 0
        while True:
            self._world.left()
            ends, found = self._reader.ends(), 0
            for record in self._reader.scan(ends, self._start):
                require_success(record.value or b"")
                found += 1
            self._start = ends
            passed += found
            if found <= most:
                self._records = self._reader.follow(ends)
                return passed


class Consumers:
    """Processes of one group; each knows both servers over every link (SRC0, DST0, SRC10, ...)."""

    def __init__(
        self,
        world: World,
        name: str,
        lanes: int,
        *,
        processes: int = 1,
        partitions: int = PARTITIONS,
        more: Sequence[str] = (),
        program: Sequence[str] = ("-m", "etl.main"),
        broker: stack.Broker | None = None,
        listener: str | None = None,
    ) -> None:
        self.world, self.name, self.lanes = world, name, lanes
        self.broker = broker or world.broker
        self._program, self._listener = program, listener or self.broker.bootstrap_servers
        self.topic = f"bench-{name}"
        self.idle_bytes = 0
        self._count, self._partitions, self._more = processes, partitions, more
        self._processes: list[subprocess.Popen[bytes]] = []
        self._writer: Writer | None = None  # for all rounds: who sends jobs all day does not begin by connecting

    def start(self) -> None:
        """Start them and wait until they share the partitions."""
        env_file = self.world.folder / f"{self.name}.env"
        lines = [f"ETL_WORKERS={self.lanes}", f"ETL_NUM_PARTITIONS={self._partitions}", "ETL_CONSUMER_COUNT=1"]
        for rtt, pair in self.world.pairs.items():
            lines += server_lines(f"SRC{rtt}", pair.source) + server_lines(f"DST{rtt}", pair.target)
        env_file.touch(mode=0o600)
        env_file.write_text("\n".join([*lines, *self._more]) + "\n")
        command = [sys.executable, *self._program, self.topic, self.topic, self._listener]
        for number in range(self._count):
            with self._log(number).open("wb") as log:
                process = subprocess.Popen(
                    [*command, "--env-file", str(env_file)],
                    env={name: value for name, value in os.environ.items() if not name.startswith("ETL_")},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, no locks
                )
            self._processes.append(process)
        stack.wait_until(self._are_ready, START_SECONDS, f"start of {self.name}, see {self._log(0)}")
        self.idle_bytes = self.rss_bytes()
        self._writer = Writer(self.broker.bootstrap_servers)

    def stop(self) -> None:
        """End them in good order."""
        if self._writer is not None:
            self._writer.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        self._processes.clear()

    def signal(self, number: signal.Signals, told: str) -> None:
        """Send a signal, and wait until each process has said once more what it says of it."""
        for which, process in enumerate(self._processes):
            log = self._log(which)
            before = log.read_text(errors="replace").count(told)
            process.send_signal(number)
            stack.wait_until(
                lambda log=log, before=before: log.read_text(errors="replace").count(told) > before, 10, told
            )

    def rss_bytes(self) -> int:
        """Return the resident memory of the largest process."""
        return max(int(psutil.Process(process.pid).memory_info().rss) for process in self._processes)

    def peak_bytes(self) -> int:
        """Return the most memory that a process had since `forget_peak`, as the kernel says."""
        found = []
        for process in self._processes:
            status = Path(f"/proc/{process.pid}/status").read_text()
            found.append(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024)
        return max(found)

    def forget_peak(self) -> None:
        """Have the kernel count the peak anew."""
        for process in self._processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def cpu(self) -> dict[str, float]:
        """Return the processor time used so far, in seconds."""
        return {
            "client": sum(cpu_seconds(process.pid) for process in self._processes),
            "servers": self.world.server_cpu(),
            "broker": cpu_seconds(self.broker.pid),
        }

    def move(self, pair: Pair, files: Files, count: int | None = None) -> Run:
        """Have files copied; they are compared with their sources afterwards, outside the measured time."""
        out, names = self.world.new_out(), files.names[:count]
        jobs = [job(pair, f"{files.folder}/{name}", f"{out}/{name}") for name in names]
        with self.results() as results:
            cpu, started = self.cpu(), time.monotonic()
            self.submit(jobs)
            for _ in names:
                require_success(next(results))
            seconds = time.monotonic() - started
            used = {who: value - cpu[who] for who, value in self.cpu().items()}
        self.world.check(files, out, len(names))
        return Run(len(names), len(names) * files.size_bytes, seconds, used)

    def submit(self, jobs: Iterable[tuple[bytes, bytes]]) -> None:
        """Send jobs; returns when the broker has them."""
        assert self._writer is not None
        for key, value in jobs:
            self._writer.send(self.topic, key, value)
        self._writer.flush()

    @contextmanager
    def results(self) -> Iterator[Results]:
        """Have the outcomes from now on, committed ones alone."""
        with Reader(self.broker.bootstrap_servers, f"{self.topic}-results") as reader:
            yield Results(self.world, reader)

    def _log(self, number: int) -> Path:
        return self.world.folder / f"{self.name}-{number}.log"

    def _are_ready(self) -> bool:
        taken = []
        for number, process in enumerate(self._processes):
            log = self._log(number).read_text(errors="replace")
            if process.poll() is not None:
                raise RuntimeError(f"a consumer ended with {process.returncode}:\n{log[-3000:]}")
            taken.append(log.count("partition taken over"))
        # Several of them share what there is; the one that was first had all of it for a moment.
        return min(taken) >= (self._partitions + RETRY_PARTITIONS) // self._count - 1


def require_success(result: bytes) -> None:
    """Raise RuntimeError for an outcome that is none."""
    if b'"SUCCESS"' not in result:
        raise RuntimeError(f"a job failed: {result!r}")
