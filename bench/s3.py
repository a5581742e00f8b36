"""S3 over each link: objects of 100 KB, and one large file each way, against rclone; versitygw to versitygw."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from peers import Rclone, found
from rate import WARM_FILES, alternated, middles, rates
from sftp import FOLDER, LANES, SOURCE, TARGET, ConsumersBetween
from table import Goal, Row, ratio
from world import EVERYWHERE, KB, MB, MIB, REPOSITORY, Files, OutOfTimeError, Pair, World, die_with_parent

import stack

FILES = 400
RCLONE = (1.5, 3.0)  # must, aim
LARGE = 1.0
PEAK_MB = 100.0
PROGRAM = REPOSITORY / "build" / "zoo" / "go" / "bin" / "versitygw"
STORED = "stored"  # the large file, as it came by S3
BUCKET = "root"  # the folder of the world below which files lie
ACCESS, SECRET = "bench-access", "Bench-secret-4711"


@dataclass(frozen=True)
class Store:
    """One store as it is reached."""

    host: str
    port: int

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://{self.host}:{self.port}"


def fetch() -> None:
    """Build the store, unless it is there: before the world is made, from whose network nothing outside is reached."""
    subprocess.run([str(REPOSITORY / "tests" / "fetch-zoo.sh"), "go"], check=True, timeout=900)


@contextmanager
def serve(world: World, rtt_ms: int) -> Iterator[list[Store]]:
    """Start a store for each folder of the world, at the end of a link."""
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as ending:
        if rtt_ms:
            ending.enter_context(world.at_far_end())
        made = []
        for root in (world.source_root, world.target_root):
            port = stack.free_port()
            login = ["--access", ACCESS, "--secret", SECRET, "--keep-alive", "--quiet"]
            listen = ["--port", f"{EVERYWHERE if rtt_ms else '127.0.0.1'}:{port}"]
            command = [str(PROGRAM), *login, *listen, "posix", str(root.parent)]
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(command, stdout=quiet, stderr=quiet, preexec_fn=die_with_parent)  # noqa: PLW1509 - one prctl call
            processes.append(process)
            stack.wait_until(lambda: stack.answers(port), 20, "versitygw")  # noqa: B023 - called at once
            made.append(Store(world.pairs[rtt_ms].source.host, port))
        ending.close()  # back at the near end
        try:
            yield made
        finally:
            for process in processes:
                process.kill()
                process.wait(10)


def server_lines(stores: Sequence[Store], local: Path) -> list[str]:
    """Return the settings of both, and of a folder of this machine."""
    lines = [f"{FOLDER}_TYPE=local", f"{FOLDER}_BASE_PATH={local}"]
    for name, store in zip((SOURCE, TARGET), stores, strict=True):
        own = {"TYPE": "s3", "ENDPOINT": store.endpoint, "BUCKET": BUCKET}
        lines += [
            f"{name}_{key}={value}" for key, value in (own | {"ACCESS_KEY": ACCESS, "SECRET_KEY": SECRET}).items()
        ]
    return lines


class S3Rclone(Rclone):
    """`rclone copy` from one remote to the other, or a folder."""

    arguments = ("--transfers=8", "--checkers=8", "--no-check-dest", "--s3-no-check-bucket")
    settings = "rclone copy " + " ".join(arguments)

    def __init__(self, world: World, stores: Sequence[Store]) -> None:
        super().__init__(world)
        self._stores = stores

    def _run(self, pair: Pair, files: Files, out: str) -> None:  # noqa: ARG002 - as all contenders
        self.copy("copy", f"SOURCE:{BUCKET}/{files.folder}", f"TARGET:{BUCKET}/{out}")

    def copy(self, *command: str) -> float:
        """Run one command; return how long it took, in seconds."""
        environment = {"RCLONE_CONFIG": "/dev/null", "AWS_CA_BUNDLE": ""}  # a setting of the machine, which it refuses
        for name, store in zip(("SOURCE", "TARGET"), self._stores, strict=True):
            values = {"TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": store.endpoint, "REGION": "us-east-1"}
            values |= {"ACCESS_KEY_ID": ACCESS, "SECRET_ACCESS_KEY": SECRET}
            environment |= {f"RCLONE_CONFIG_{name}_{key}": value for key, value in values.items()}
        started = time.monotonic()
        self._do([found(self.name) or self.name, *command, *self.arguments], environment)
        return time.monotonic() - started


def compare(world: World, rtt_ms: int, rounds: int, large_mib: int, say: Callable[[str], None]) -> list[Row]:
    """Measure one link; return the rows."""
    pair = world.pairs[rtt_ms]
    files = world.files(f"s3-{rtt_ms}", FILES, 100 * KB)
    local = world.folder / f"s3-{rtt_ms}-local"
    local.mkdir()
    with ExitStack() as ending:
        stores = ending.enter_context(serve(world, rtt_ms))
        consumers = ConsumersBetween(world, f"s3-{rtt_ms}", LANES, server_lines(stores, local))
        ending.callback(consumers.stop)
        consumers.start()
        peers = [S3Rclone(world, stores)] if found("rclone") else []
        consumers.move(pair, files, WARM_FILES)  # opens the sessions
        runs = alternated(world, [consumers, *peers], pair, files, rounds)
        values, cpu = middles(consumers, peers, runs, say)
        theirs = rates(runs[1]) if peers else []
        must, aim = RCLONE if rtt_ms else (1.0, None)
        goals = [Goal(" /rclone", must, ratio(rates(runs[0]), theirs), aim)]
        size = f"{FILES} objects a round, {len(runs[0])} rounds, {LANES} lanes"
        note = f"S3, RTT {rtt_ms} ms: {size}; versitygw to versitygw."
        rows = [
            Row(f"S3, 100 KB, RTT {rtt_ms} ms: files/s", values, goals, [*(peer.settings for peer in peers), note]),
            Row("  client's CPU: ms/file", cpu),
        ]
        rows += _large(world, rtt_ms, consumers, peers, local, rounds, large_mib, say)
        return rows if rtt_ms else [*rows, _memory(world, consumers, say)]


def _memory(world: World, consumers: ConsumersBetween, say: Callable[[str], None]) -> Row:
    """Have all lanes busy with objects that wait in memory, and with large ones, which several connections read."""
    peaks: dict[str, float] = {}
    for what, count, size_mib in (("held", 16 * LANES, 2), ("large", LANES, 128)):
        files = world.files(f"s3-memory-{what}", count, size_mib * MIB, sparse=True)
        for _ in range(2):  # lanes come one after the other: each has had its buffer then
            consumers.forget_peak()
            consumers.move(world.pairs[0], files)
        peaks[what] = consumers.peak_bytes() / MB
        say(f"  {count} objects of {size_mib} MiB: at most {peaks[what]:.1f} MB")
        shutil.rmtree(world.source_root / files.folder)
    note = (
        f"S3 memory: the most that was resident while {LANES} lanes moved objects of 2 MiB ({peaks['held']:.1f} MB) "
        f"and of 128 MiB ({peaks['large']:.1f} MB); {consumers.idle_bytes / MB:.1f} MB at rest after the start."
    )
    most = max(peaks.values())
    return Row(f"S3, {LANES} lanes: MB resident", {"ours": most}, [Goal("", PEAK_MB, most, at_most=True)], [note])


def _large(
    world: World,
    rtt_ms: int,
    consumers: ConsumersBetween,
    peers: Sequence[S3Rclone],
    local: Path,
    rounds: int,
    size_mib: int,
    say: Callable[[str], None],
) -> list[Row]:
    """Move one large file each way, between a folder of this machine and a bucket.

    Down comes one that was stored by way of S3, as objects are: one that was only laid below the store has no ETag.
    """
    files = world.files(f"s3-large-{rtt_ms}", 1, size_mib * MIB)
    there = world.source_root / files.folder / files.names[0]
    shutil.copyfile(there, local / "large")
    consumers.run([((FOLDER, "large"), (SOURCE, f"{files.folder}/{STORED}"))], files)
    rows = []
    for way in ("up", "down"):
        ours: list[float] = []
        theirs: list[float] = []
        for number in range(rounds):
            for turn in (0, 1) if number % 2 == 0 else (1, 0):
                try:
                    world.left()
                except OutOfTimeError:
                    break
                if turn and not peers:
                    continue
                seconds = _one_way(world, consumers, peers[0] if turn else None, files, local, way)
                (ours, theirs)[turn].append(files.size_bytes / seconds / MB)
        say(
            f"  {way}: {', '.join(f'{rate:.0f}' for rate in ours)}; rclone {', '.join(f'{r:.0f}' for r in theirs)} MB/s"
        )
        if not ours:
            continue
        values: dict[str, float | str] = {"ours": statistics.median(ours)}
        if theirs:
            values["rclone"] = statistics.median(theirs)
        goal = Goal(" /rclone", LARGE, ratio(ours, theirs))
        rows.append(Row(f"S3, {size_mib} MiB {way}, RTT {rtt_ms} ms: MB/s", values, [goal]))
    (local / "large").unlink()
    shutil.rmtree(there.parent)
    return rows


def _one_way(
    world: World, consumers: ConsumersBetween, peer: S3Rclone | None, files: Files, local: Path, way: str
) -> float:
    """Move the file once; return the seconds."""
    out, name = world.new_out(), files.names[0]
    if way == "up":
        if peer is None:
            seconds = consumers.run([((FOLDER, "large"), (TARGET, f"{out}/{name}"))], files).seconds
        else:
            seconds = peer.copy("copyto", str(local / "large"), f"TARGET:{BUCKET}/{out}/{name}")
        world.check(files, out)
        return seconds
    copy = local / out
    if peer is None:
        seconds = consumers.run([((SOURCE, f"{files.folder}/{STORED}"), (FOLDER, out))], files).seconds
    else:
        seconds = peer.copy("copyto", f"SOURCE:{BUCKET}/{files.folder}/{STORED}", str(copy))
    if copy.stat().st_size != files.size_bytes:
        raise RuntimeError(f"{copy} is not whole")
    copy.unlink()
    return seconds
