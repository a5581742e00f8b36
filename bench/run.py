"""Measure the product as it ships: jobs from a real broker, files between two real FTP servers, outcomes committed.

Starts a broker, two FTP servers and the consumers, each a process of its own on free ports, in a folder that is
removed at the end. `bench/README.md` says how to read what it prints.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

import stack  # noqa: E402 - the servers of the tests, which are no package
from etl.broker import Reader, Writer  # noqa: E402

KB, MB, MIB = 1000, 1_000_000, 1 << 20
SMALL_BYTES = 100 * KB
WARM_FILES = 32  # open the sessions, fill the caches
PARTITIONS = 8
RETRY_PARTITIONS = 8
SAMPLE_SECONDS = 0.05
START_SECONDS = 60.0
IN = "in"


class OutOfTimeError(Exception):
    """Raised when the time limit of the whole run is over."""


@dataclass(frozen=True)
class Site:
    """What everything runs in: the folder, the servers, the broker, and when to give up."""

    folder: Path
    source: stack.Vsftpd | stack.Ftpd
    target: stack.Vsftpd | stack.Ftpd
    broker: stack.Broker
    deadline: float

    def left(self) -> float:
        """Return the seconds that are left. Raises OutOfTimeError when there are none."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise OutOfTimeError
        return seconds


@dataclass
class Consumer:
    """One consumer process with its own topic and group, and the memory it had."""

    site: Site
    name: str
    lanes: int
    process: subprocess.Popen[bytes] | None = None
    idle_bytes: int = 0
    during_bytes: list[int] = field(default_factory=list)
    sent: int = 0

    @property
    def topic(self) -> str:
        """The topic of its jobs; its group has the same name."""
        return f"bench-{self.name}"

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.site.folder / f"{self.name}.log"

    def start(self) -> None:
        """Start it and wait until it holds its partitions."""
        env_file = self.site.folder / f"{self.name}.env"
        lines = [f"ETL_WORKERS={self.lanes}", f"ETL_NUM_PARTITIONS={PARTITIONS}", "ETL_CONSUMER_COUNT=1"]
        for name, server in (("SRC", self.site.source), ("DST", self.site.target)):
            lines += [f"{name}_TYPE=ftp", f"{name}_HOST={server.host}", f"{name}_PORT={server.port}"]
            lines += [f"{name}_USER={server.username}", f"{name}_PASS={server.password}"]
        env_file.touch(mode=0o600)
        env_file.write_text("\n".join(lines) + "\n")
        command = [sys.executable, "-m", "etl.main", self.topic, self.topic, self.site.broker.bootstrap_servers]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--env-file", str(env_file)],
                env={name: value for name, value in os.environ.items() if not name.startswith("ETL_")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        stack.wait_until(self._is_ready, START_SECONDS, f"start of the consumer, see {self.log}")
        self.idle_bytes = self._info().rss

    def _is_ready(self) -> bool:
        assert self.process is not None
        log = self.log.read_text(errors="replace")
        if self.process.poll() is not None:
            raise RuntimeError(f"the consumer ended with {self.process.returncode}:\n{log[-3000:]}")
        return log.count("partition taken over") >= PARTITIONS + RETRY_PARTITIONS

    def _info(self) -> psutil._pslinux.pmem:
        assert self.process is not None
        return psutil.Process(self.process.pid).memory_info()

    def stop(self) -> None:
        """End it in good order."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)

    @property
    def peak_bytes(self) -> int:
        """The most memory that the process ever had, as the kernel says."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

    def cpu_seconds(self) -> dict[str, float]:
        """Return the processor time used so far: by the consumer, both FTP servers, the broker."""
        assert self.process is not None
        servers = cpu_seconds(self.site.source.pid) + cpu_seconds(self.site.target.pid)
        return {
            "consumer": cpu_seconds(self.process.pid),
            "FTP servers": servers,
            "broker": cpu_seconds(self.site.broker.pid),
        }

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Note the process's memory now and then."""
        end = threading.Event()

        def sample() -> None:
            while not end.wait(SAMPLE_SECONDS):
                self.during_bytes.append(self._info().rss)

        thread = threading.Thread(target=sample, name="sampler")
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def move(self, names: Sequence[str]) -> Run:
        """Submit a job for each of the source's files; return once the last outcome is committed.

        The files are compared byte for byte afterwards, outside the measured time, and removed.
        """
        servers = self.site.broker.bootstrap_servers
        self.sent += 1
        folder = f"out-{self.name}-{self.sent}"
        jobs = [self._job(name, folder) for name in names]
        with Reader(servers, f"{self.topic}-results") as reader, Writer(servers) as writer:
            # Read from the end; the first poll connects, before the clock runs.
            records = reader.follow(reader.ends())
            next(records)
            cpu, started = self.cpu_seconds(), time.monotonic()
            with self.sampled():
                for key, value in jobs:
                    writer.send(self.topic, key, value)
                writer.flush()
                for _ in names:
                    while (record := next(records)) is None:
                        self.site.left()
                    if b'"SUCCESS"' not in (record.value or b""):
                        raise RuntimeError(f"a job failed: {record.value!r}")
            seconds = time.monotonic() - started
            cpu = {who: used - cpu[who] for who, used in self.cpu_seconds().items()}
        size_bytes = self._compare(names, folder)
        return Run(len(names), size_bytes, seconds, cpu)

    def _job(self, name: str, folder: str) -> tuple[bytes, bytes]:
        path = f"/{folder}/{name}"
        job = {"source": {"hostname": "SRC", "path": f"/{IN}/{name}"}, "destination": {"hostname": "DST", "path": path}}
        return f"DST:{path}".encode(), json.dumps(job).encode()

    def _compare(self, names: Sequence[str], folder: str) -> int:
        arrived = self.site.target.root / folder
        found = sorted(path.name for path in arrived.iterdir())
        if found != sorted(names):
            raise RuntimeError(f"{len(names)} files were sent, the destination holds {len(found)}")
        _, different, unreadable = filecmp.cmpfiles(self.site.source.root / IN, arrived, names, shallow=False)
        if different or unreadable:
            raise RuntimeError(f"not the same as their sources: {different + unreadable}")
        size_bytes = sum((arrived / name).stat().st_size for name in names)
        shutil.rmtree(arrived)
        return size_bytes


@dataclass(frozen=True)
class Run:
    """What one round came to."""

    files: int
    size_bytes: int
    seconds: float
    cpu_seconds: dict[str, float]

    @property
    def files_per_second(self) -> float:
        """Files that arrived, per second."""
        return self.files / self.seconds

    @property
    def mb_per_second(self) -> float:
        """Millions of bytes that arrived, per second."""
        return self.size_bytes / self.seconds / MB


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and of all that it started: vsftpd has one for each session."""
    total = 0.0
    process = psutil.Process(pid)
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def main() -> int:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(prog="bench", description="Files per second, MB per second, memory.")
    parser.add_argument("--files", type=int, default=1000, help="files of 100 KB in a round (default: %(default)s)")
    parser.add_argument("--lanes", default="2,8", help="numbers of lanes to compare (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of small files (default: %(default)s)")
    parser.add_argument("--large-mib", type=int, default=1024, help="size of the large file; 0: none (%(default)s)")
    parser.add_argument("--large-rounds", type=int, default=3, help="rounds of the large file (default: %(default)s)")
    parser.add_argument("--server", choices=["auto", "vsftpd", "pyftpdlib"], default="auto", help="FTP server to use")
    parser.add_argument("--folder", type=Path, help="where all data goes (default: /dev/shm if it has room)")
    parser.add_argument("--limit", type=float, default=220, help="seconds for everything (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    options = parser.parse_args()
    lanes = [int(word) for word in options.lanes.split(",")]
    deadline = time.monotonic() + options.limit
    needed_bytes = 2 * (options.large_mib * MIB + options.files * SMALL_BYTES) + (1 << 30)
    with ExitStack() as ending:
        folder = Path(tempfile.mkdtemp(prefix="etl-bench-", dir=options.folder or roomy_folder(needed_bytes)))
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        site = start(folder, options.server, deadline, ending)
        small, large = make_files(site.source.root / IN, options.files, options.large_mib * MIB)
        consumers = [Consumer(site, f"{count}-lanes", count) for count in lanes]
        rounds: dict[str, list[Run]] = {consumer.name: [] for consumer in consumers}
        one = Consumer(site, "large-file", max(lanes))
        rounds[one.name] = []
        used = []
        try:
            for consumer in consumers:
                ending.callback(consumer.stop)
                consumer.start()
                used.append(consumer)
                consumer.move(small[:WARM_FILES])
            measure(consumers, small, options.rounds, rounds)
            if large:
                ending.callback(one.stop)
                one.start()
                used.append(one)
                measure([one], large, options.large_rounds, rounds)
        except OutOfTimeError:
            print(f"bench: {options.limit:g} s are over; what was not measured is missing", file=sys.stderr)
        figures = summed_up(site, used, rounds, options.large_mib)
        print(json.dumps(figures) if options.json else table(figures))
    return 0


def roomy_folder(needed_bytes: int) -> Path | None:
    """Return a folder in memory if it has room, so that no disk is measured; None: the usual temporary one."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 2 * needed_bytes else None


def start(folder: Path, kind: str, deadline: float, ending: ExitStack) -> Site:
    """Start the broker and two FTP servers."""
    stack.sweep_pam_services()
    broker = stack.Broker(folder / "broker")
    ending.callback(broker.stop, limit=10)
    servers = [ftp_server(folder / name, kind) for name in ("source", "target")]
    for server in servers:
        ending.callback(server.kill)
        server.start()
    broker.start()
    return Site(folder, servers[0], servers[1], broker, deadline)


def ftp_server(folder: Path, kind: str) -> stack.Vsftpd | stack.Ftpd:
    """Return the FTP server asked for; `auto` is vsftpd where it was fetched."""
    folder.mkdir()
    if kind != "pyftpdlib":
        try:
            return stack.Vsftpd(folder)
        except stack.MissingInfrastructureError:
            if kind == "vsftpd":
                raise
    return stack.Ftpd(folder, {"bench": f"Bench-{random.getrandbits(48):012x}"})


def make_files(folder: Path, count: int, large_bytes: int) -> tuple[list[str], list[str]]:
    """Write the source files; return the names of the small ones, and of the large one."""
    folder.mkdir(parents=True)
    chance = random.Random(1)
    small = [f"small-{number:05d}.bin" for number in range(count)]
    for name in small:
        (folder / name).write_bytes(chance.randbytes(SMALL_BYTES))
    if not large_bytes:
        return small, []
    block = chance.randbytes(MIB)
    with (folder / "large.bin").open("wb") as file:
        for _ in range(large_bytes // MIB):
            file.write(block)
    return small, ["large.bin"]


def measure(consumers: Sequence[Consumer], names: Sequence[str], count: int, rounds: dict[str, list[Run]]) -> None:
    """Run rounds, in turn and in reversed order every other time: what the machine does meanwhile hits all alike."""
    for number in range(count):
        for consumer in consumers if number % 2 == 0 else reversed(consumers):
            consumer.site.left()
            rounds[consumer.name].append(consumer.move(names))


def summed_up(site: Site, used: Sequence[Consumer], rounds: dict[str, list[Run]], large_mib: int) -> dict[str, object]:
    """Return all figures: speed as (median, least, most), memory in bytes."""
    speed: list[dict[str, object]] = []
    cpu: list[dict[str, object]] = []
    for consumer in used:
        runs = rounds[consumer.name]
        if not runs:
            continue
        if consumer.name == "large-file":
            what = f"1 file of {large_mib} MiB"
            speed.append(figure(what, "MB/s", [run.mb_per_second for run in runs]))
        else:
            what = f"{runs[0].files} files of 100 KB, {consumer.lanes} lanes"
            speed.append(figure(what, "files/s", [run.files_per_second for run in runs]))
        parts = {
            who: round(statistics.median(run.cpu_seconds[who] / run.files * 1000 for run in runs), 2)
            for who in runs[0].cpu_seconds
        }
        cpu.append({"what": what, **parts})
    memory = [
        {
            "consumer": consumer.name.replace("-", " "),
            "idle": consumer.idle_bytes,
            "during": statistics.median(consumer.during_bytes),
            "peak": consumer.peak_bytes,
        }
        for consumer in used
        if consumer.during_bytes
    ]
    server = "vsftpd" if isinstance(site.source, stack.Vsftpd) else "pyftpdlib"
    return {
        "servers": server,
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "speed": speed,
        "cpu": cpu,
        "memory": memory,
    }


def figure(what: str, unit: str, values: Sequence[float]) -> dict[str, object]:
    """Return one line of the first table."""
    median, least, most = (round(value) for value in (statistics.median(values), min(values), max(values)))
    return {"what": what, "unit": unit, "median": median, "min": least, "max": most, "rounds": len(values)}


def table(figures: dict[str, Any]) -> str:
    """Return the figures for people."""
    server = figures["servers"]
    lines = [f"{server} to {server}, loopback, {figures['cpus']} CPUs, Python {figures['python']}"]
    lines += ["", line("speed", ["median", "min", "max", "unit", "rounds"])]
    for row in figures["speed"]:
        lines.append(line(row["what"], [row[name] for name in ("median", "min", "max", "unit", "rounds")]))
    names = ("consumer", "FTP servers", "broker")
    lines += ["", line("processor time, ms for each file (median)", names)]
    lines += [line(row["what"], [row[name] for name in names]) for row in figures["cpu"]]
    names = ("idle", "during", "peak")
    lines += ["", line("resident memory of the consumer, MB", names)]
    lines += [line(row["consumer"], [round(row[name] / MB) for name in names]) for row in figures["memory"]]
    return "\n".join(lines)


def line(what: str, values: Sequence[object]) -> str:
    """Return one line of a table."""
    return f"{what:44}" + "".join(f"{value!s:>12}" for value in values)


if __name__ == "__main__":
    sys.exit(main())
