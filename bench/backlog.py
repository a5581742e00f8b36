"""What a backlog of waiting jobs costs, in speed and memory; and what more consumers bring.

The files are of 1 KB, without latency: there is nothing that a backlog's cost could hide behind.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from ours import Consumers, job, require_success
from table import Goal, Row, ratio
from world import KB, MB, Files, Pair, World

LANES = 4
STEP = 1500  # jobs of one measurement
FEW_STEPS = 3  # measurements of a small backlog; what is done while it is sent, and the first step, are not timed
FEW = (FEW_STEPS + 2) * STEP  # its jobs
HALF = 2  # small backlogs before the large one, and after it
LEAST = 2 * HALF * FEW  # jobs of the large one that are done: as many as of all small ones
SPEED, MEMORY = 0.95, 1.05

GROUP_LANES, GROUP_PARTITIONS = 2, 12
GROUP_JOBS = 1200  # for three; a third of it for one
GROUP_RATIO = 2.5


def compare(world: World, count: int, say: Callable[[str], None]) -> list[Row]:
    """Measure a small backlog before and after a large one, as many jobs of each; a consumer for either."""
    rates: dict[str, list[float]] = {"few": [], "many": []}
    memory: dict[str, list[float]] = {"few": [], "many": []}
    files = world.files("tiny", 100, KB)

    def source(path: Path) -> str:
        return _source(files, int(path.name))

    def run(consumers: Consumers, waiting: int, steps: int, least: int) -> tuple[str, int]:
        """Send jobs, have at least so many done; return the folder that the files went to, and how many were done."""
        world.left()
        out = world.new_out()
        consumers.forget_peak()
        with consumers.results() as results:
            consumers.submit(_jobs(world.pairs[0], files, out, waiting))
            done = results.catch_up(STEP // 2)  # outcomes that wait to be read say nothing of the rate
            whole = min(1 + steps, (waiting - done) // STEP)
            say(f"  {consumers.name}: {done} of {waiting} were done before the first step")
            rates[consumers.name] += _steps(results, whole)[1:]  # the last of those are in the first step
            done += whole * STEP
            _read(results, least - done)
        memory[consumers.name].append(consumers.peak_bytes() / MB)
        return out, max(done, least)

    def run_few(few: Consumers) -> None:
        for _ in range(HALF):
            out, done = run(few, FEW, FEW_STEPS, FEW)
            world.check_copies(out, source, done)

    with ExitStack() as ending:
        few, many = (Consumers(world, name, LANES) for name in rates)
        for consumers in (few, many):
            ending.callback(consumers.stop)
            consumers.start()
        run_few(few)
        out, done = run(many, max(count, LEAST), 2 * HALF * FEW_STEPS, LEAST)
        many.stop()  # its other jobs go on waiting
        world.check_copies(out, source, done)
        run_few(few)
    for name, found in rates.items():
        say(f"  {name}: {_list(found)} files/s; {_list(memory[name])} MB")
    return _rows(max(count, LEAST), rates, memory)


def _source(files: Files, number: int) -> str:
    return f"{files.folder}/{files.names[number % len(files.names)]}"


def _jobs(pair: Pair, files: Files, out: str, count: int) -> Iterator[tuple[bytes, bytes]]:
    for number in range(count):
        yield job(pair, _source(files, number), f"{out}/{number // 1000}/{number}")


def _read(results: Iterator[bytes], count: int) -> None:
    for result in itertools.islice(results, max(count, 0)):
        require_success(result)


def _steps(results: Iterator[bytes], count: int) -> list[float]:
    found = []
    for _ in range(count):
        started = time.monotonic()
        _read(results, STEP)
        found.append(STEP / (time.monotonic() - started))
    return found


def _rows(count: int, rates: dict[str, list[float]], memory: dict[str, list[float]]) -> list[Row]:
    deep, shallow = (statistics.median(rates[name]) if rates[name] else None for name in ("many", "few"))
    deep_mb, shallow_mb = memory["many"][-1], memory["few"][-1]
    note = (
        f"Backlog: 1 KB files, RTT 0, {LANES} lanes; {count} jobs waiting against {FEW}, {STEP} timed at a time; "
        "few, many, few. What was done before all were sent is not timed, nor the step after. "
        f"MB: the most that was resident, of the small ones in the last, after {LEAST} jobs of either, or more."
    )
    speed = Goal(f" /{FEW} waiting", SPEED, deep / shallow if deep and shallow else None)
    space = Goal(f" /{FEW} waiting", MEMORY, deep_mb / shallow_mb, at_most=True)
    return [
        Row(f"backlog of {count}: files/s", {"ours": deep} if deep else {}, [speed], [note]),
        Row("  MB resident", {"ours": deep_mb}, [space], [note]),
    ]


def group(world: World, rtt_ms: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Compare three consumers of two lanes with one, over a link."""
    pair = world.pairs[rtt_ms]
    files = world.files("group", GROUP_JOBS, 100 * KB)
    rates: dict[int, list[float]] = {1: [], 3: []}
    with ExitStack() as ending:
        teams = {}
        for count in rates:
            teams[count] = Consumers(world, f"group-{count}", GROUP_LANES, processes=count, partitions=GROUP_PARTITIONS)
            ending.callback(teams[count].stop)
            teams[count].start()
            teams[count].move(pair, files, 60)  # opens the sessions
        for number in range(rounds):
            for count in rates if number % 2 == 0 else reversed(rates):
                world.left()
                rates[count].append(_middle(world, teams[count], pair, files, GROUP_JOBS // 3 * count))
    say(f"  one: {_list(rates[1])} files/s; three: {_list(rates[3])} files/s")
    note = (
        f"Three consumers: 100 KB files, RTT {rtt_ms} ms, {GROUP_LANES} lanes each, {GROUP_PARTITIONS} partitions, "
        f"{rounds} rounds in alternating order; timed between a tenth and six tenths of the jobs, while all have work."
    )
    goal = Goal(" /one", GROUP_RATIO, ratio(rates[3], rates[1]))
    return [Row("3 consumers x 2 lanes: files/s", {"ours": statistics.median(rates[3])}, [goal], [note])]


def _middle(world: World, team: Consumers, pair: Pair, files: Files, count: int) -> float:
    out, names = world.new_out(), files.names[:count]
    times = []
    with team.results() as results:
        team.submit([job(pair, f"{files.folder}/{name}", f"{out}/{name}") for name in names])
        for _ in names:
            require_success(next(results))
            times.append(time.monotonic())
    world.check(files, out, count)
    first, last = len(times) // 10, len(times) * 6 // 10
    return (last - first) / (times[last] - times[first])


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)
