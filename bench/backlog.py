"""What a backlog of waiting jobs costs, in speed and memory; and what more consumers bring.

The files are of 1 KB, without latency: there is nothing that a backlog's cost could hide behind.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from ours import Consumers, job, require_success
from table import Goal, Row
from world import KB, MB, Files, Pair, World

LANES = 4
STEP = 1500  # jobs of one measurement
FEW = 4 * STEP  # waiting jobs of the small backlog; the first step of either is not timed
HALF = 2  # small backlogs before the large one, and after it
LEAST = 2 * HALF * FEW  # waiting jobs of the large one: what is measured of it
SPEED, MEMORY = 0.95, 1.05

GROUP_LANES, GROUP_PARTITIONS = 2, 12
GROUP_JOBS = 1200  # for three; a third of it for one
GROUP_RATIO = 2.5


def compare(world: World, count: int, say: Callable[[str], None]) -> list[Row]:
    """Measure a small backlog before and after a large one, as many jobs of each; a consumer for either."""
    rates: dict[str, list[float]] = {"few": [], "many": []}
    memory: dict[str, list[float]] = {"few": [], "many": []}
    files, out = world.files("tiny", 100, KB), world.new_out()
    numbers = itertools.count()

    def run(consumers: Consumers, waiting: int, timed: int) -> None:
        world.left()
        with consumers.results() as results:
            consumers.submit(_jobs(world.pairs[0], files.names, out, numbers, waiting))
            _steps(results, STEP)  # some were done while the others were sent
            rates[consumers.name] += _steps(results, timed)
        memory[consumers.name].append(consumers.rss_bytes() / MB)

    with ExitStack() as ending:
        few, many = (Consumers(world, name, LANES) for name in rates)
        for consumers in (few, many):
            ending.callback(consumers.stop)
            consumers.start()
        for _ in range(HALF):
            run(few, FEW, FEW - STEP)
        run(many, max(count, LEAST), LEAST - STEP)
        many.stop()
        for _ in range(HALF):
            run(few, FEW, FEW - STEP)
    for name, found in rates.items():
        say(f"  {name}: {_list(found)} files/s; {_list(memory[name])} MB")
    return _rows(max(count, LEAST), rates, memory)


def _jobs(
    pair: Pair, names: Sequence[str], out: str, numbers: Iterator[int], count: int
) -> Iterator[tuple[bytes, bytes]]:
    for number in itertools.islice(numbers, count):
        yield job(pair, f"tiny/{names[number % len(names)]}", f"{out}/{number // 1000}/{number}")


def _steps(results: Iterator[bytes], count: int) -> list[float]:
    found, done = [], 0
    while done + STEP <= count:
        started = time.monotonic()
        for result in itertools.islice(results, STEP):
            require_success(result)
        done += STEP
        found.append(STEP / (time.monotonic() - started))
    return found


def _rows(count: int, rates: dict[str, list[float]], memory: dict[str, list[float]]) -> list[Row]:
    deep, shallow = statistics.median(rates["many"]), statistics.median(rates["few"])
    deep_mb, shallow_mb = memory["many"][-1], memory["few"][-1]
    note = (
        f"Backlog: 1 KB files, RTT 0, {LANES} lanes; {count} jobs waiting against {FEW}, {STEP} timed at a time; "
        "few, many, few. MB: in the end, after as many jobs of either."
    )
    speed = Goal(f" /{FEW} waiting", SPEED, deep / shallow)
    space = Goal(f" /{FEW} waiting", MEMORY, deep_mb / shallow_mb, at_most=True)
    return [
        Row(f"backlog of {count}: files/s", {"ours": deep}, [speed], [note]),
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
    one, three = (statistics.median(rates[count]) for count in (1, 3))
    note = (
        f"Three consumers: 100 KB files, RTT {rtt_ms} ms, {GROUP_LANES} lanes each, {GROUP_PARTITIONS} partitions, "
        f"{rounds} rounds in alternating order; timed between a tenth and six tenths of the jobs, while all have work."
    )
    goal = Goal(" /one", GROUP_RATIO, three / one)
    return [Row("3 consumers x 2 lanes: files/s", {"ours": three}, [goal], [note])]


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
