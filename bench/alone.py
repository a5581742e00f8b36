"""The transfer layer alone: lanes and sessions of the product, with a list of jobs in memory and no Kafka.

`Alone` is the process's handle; run as a program, this file is that process. It keeps its sessions between rounds, so
logging in is never measured.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ours import Run
from world import Files, Pair, World

from etl.config import ConfigLoader, ServerConfig
from etl.lanes.lanes import Lanes
from etl.lanes.run import Store
from etl.lanes.runner import Runner
from etl.models.checksum import OWN
from etl.models.message import FileTransferJob
from etl.models.task import Origin, Record, Task
from etl.process import GC_THRESHOLDS
from etl.sessions.lease import Lease
from etl.sessions.pools import Pools
from etl.transfer import hashing

LIMIT_SECONDS = 120.0


class Alone:
    """A process that moves lists of files through `lanes` lanes; without `hashes` it makes none of what passes."""

    def __init__(self, world: World, pair: Pair, lanes: int, *, hashes: bool = True) -> None:
        self.name, self.lanes = f"alone, {lanes} lanes", lanes
        self._world = world
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._say({"ends": [asdict(pair.source), asdict(pair.target)], "lanes": lanes, "hashes": hashes})

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process.stdout.close()

    def move(self, _pair: Pair, files: Files, count: int | None = None) -> Run:
        """Copy a folder, or `count` files of it; compared afterwards."""
        out, names = self._world.new_out(), files.names[:count]
        run = self.pass_on([f"{files.folder}/{name}" for name in names], [f"{out}/{name}" for name in names], files)
        self._world.check(files, out, len(names))
        return run

    def pass_on(self, sources: Sequence[str], targets: Sequence[str], files: Files) -> Run:
        """Copy files; the time runs from the first job taken to the last one done."""
        assert self._process.stdout is not None
        self._say({"sources": sources, "targets": targets})
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the transfer layer ended")
        done = json.loads(answer)
        return Run(len(sources), len(sources) * files.size_bytes, done["seconds"], {"client": done["cpu"]})

    def _say(self, what: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()


class Jobs:
    """Jobs of one pair of servers: what the dispatcher is to the lanes."""

    def __init__(self, pools: Pools, tasks: Sequence[Task]) -> None:
        self._pools = pools
        self._tasks = deque(tasks)
        self._lock = threading.Lock()  # guards _left
        self._left = len(tasks)
        self.done = threading.Event()
        self.error: str | None = None

    def take(self, timeout: float) -> tuple[Task, Lease] | None:
        """Return the next job and a lease."""
        lease = self._pools.reserve(self._pools.server("SOURCE"), self._pools.server("TARGET")) if self._tasks else None
        if not isinstance(lease, Lease):
            self.done.wait(min(timeout, 0.01))
            return None
        try:
            return self._tasks.popleft(), lease
        except IndexError:
            lease.release(reusable=True)
            return None

    def another(self, _task: Task) -> Task | None:
        """Return the next job."""
        try:
            return self._tasks.popleft()
        except IndexError:
            return None

    def finish(self, task: Task, again_in: float | None = None) -> None:
        """Count; nothing may fail here."""
        if again_in is not None:
            self.give_up(f"{task.job.source.path} is to run again")
        with self._lock:
            self._left -= 1
            if not self._left:
                self.done.set()

    def worked(self, _name: str) -> None:
        """A server could be logged in to."""

    def answered(self, _task: Task) -> None:
        """Both servers of a job answered."""

    def failed(self, name: str, error: BaseException, _task: Task) -> float:
        """Nothing may fail here."""
        self.give_up(f"{name}: {error}")
        return 0.0

    def give_up(self, why: str) -> None:
        """End the round with an error."""
        self.error = why
        self.done.set()


class NoHash:
    """Stands for a hash that costs nothing."""

    def update(self, _block: memoryview, /) -> None:
        """Take no look."""

    def copy(self) -> NoHash:
        """Return itself."""
        return self

    def hexdigest(self) -> str:
        """Return none."""
        return ""


class Untold:
    """Stands for the product's `Reporter`: no outcomes."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def succeeded(self, *_: object) -> None:
        """Nobody is told."""

    def failed(self, task: Task, error: BaseException, *_: object) -> None:
        """Nothing may fail here."""
        self._jobs.give_up(f"{task.job.source.path}: {error!r}")


def a_task(number: int, source: str, target: str) -> Task:
    """Return the job of one file."""
    ends = {
        "source": {"hostname": "SOURCE", "path": f"/{source}"},
        "destination": {"hostname": "TARGET", "path": f"/{target}"},
    }
    job = FileTransferJob.from_dict({"job_id": str(number), **ends})
    return Task(Record("bench", 0, number, None, b"{}"), Origin("bench", 0, number), job)


def run(pools: Pools, lanes: int, tasks: Sequence[Task]) -> dict[str, float]:
    """Run jobs through lanes; return what it took."""
    settings, jobs = pools_settings(lanes), Jobs(pools, tasks)
    runner = Runner(settings, "bench", pools, jobs, Untold(jobs), Store(settings.store_bytes))  # type: ignore[arg-type]
    threads = Lanes(jobs, runner.execute, lanes, buffer_bytes=settings.buffer_bytes, stages=runner)
    cpu, started = time.process_time(), time.monotonic()
    threads.start()
    ended = jobs.done.wait(LIMIT_SECONDS)
    taken = {"seconds": time.monotonic() - started, "cpu": time.process_time() - cpu}
    threads.stop(5)
    if not ended or jobs.error:
        raise RuntimeError(jobs.error or "the lanes do not end")
    return taken


def pools_settings(lanes: int) -> Any:
    """Return the settings of a consumer with so many lanes."""
    return ConfigLoader(environ={"ETL_WORKERS": str(lanes)}).settings


def main() -> None:
    """Answer lines of JSON until standard input ends."""
    given = json.loads(sys.stdin.readline())
    ends = dict(zip(("SOURCE", "TARGET"), given["ends"], strict=True))
    configs = {
        name: ServerConfig(name, "ftp", end["host"], end["port"], end["username"], end["password"])
        for name, end in ends.items()
    }
    if not given["hashes"]:
        hashing.MAKERS[OWN] = NoHash
    pools = Pools(configs.__getitem__, pools_settings(given["lanes"]))
    gc.freeze()  # as the consumer does
    gc.set_threshold(*GC_THRESHOLDS)
    for line in sys.stdin:
        asked = json.loads(line)
        pairs = zip(asked["sources"], asked["targets"], strict=True)
        tasks = [a_task(number, *pair) for number, pair in enumerate(pairs)]
        print(json.dumps(run(pools, given["lanes"], tasks)), flush=True)
    pools.close()


if __name__ == "__main__":
    main()
