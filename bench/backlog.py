"""What a backlog of waiting jobs costs, in speed and memory; and what more consumers bring.

The files are of 1 KB, without latency: there is nothing that a backlog's cost could hide behind.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice

from ours import Consumers, job, require_success
from table import Goal, Row
from world import KB, MB, OutOfTimeError, Pair, World

from etl.broker import Writer

LANES = 4
STEP = 1500  # jobs of one measurement
FEW = 4 * STEP  # waiting jobs of the small backlog; the first step of either is not timed
SPEED, MEMORY = 0.95, 1.05

GROUP_LANES, GROUP_PARTITIONS = 2, 12
GROUP_JOBS = 1200  # for three; a third of it for one
GROUP_RATIO = 2.5


def compare(world: World, count: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure a small and a large backlog in turns: one consumer for each, `STEP` jobs at a time."""
    pair = world.pairs[0]
    files = world.files("tiny", 100, KB)
    with ExitStack() as ending, Writer(world.broker.bootstrap_servers) as writer:
        few, many = (Consumers(world, name, LANES) for name in ("few", "many"))
        out = world.new_out()
        for consumers in (few, many):
            ending.callback(consumers.stop)
            consumers.start()
        rates: dict[str, list[float]] = {"few": [], "many": []}
        memory: dict[str, list[float]] = {"few": [], "many": []}
        sent = 0
        for _ in range(rounds):  # of the small backlog: that many jobs, and no more
            world.left()
            with few.results() as results:
                jobs = _jobs(pair, files.names, out, sent, FEW)
                sent += FEW
                few.submit(writer, jobs)
                _steps(results, STEP)  # some were done while the others were sent
                rates["few"] += _steps(results, FEW - STEP)
            memory["few"].append(few.rss_bytes() / MB)
        few.stop()
        with many.results() as results:
            started = time.monotonic()
            many.submit(writer, _jobs(pair, files.names, out, sent, count))
            say(f"  {count} jobs sent in {time.monotonic() - started:.0f} s")
            done = len(_steps(results, 2 * STEP)) * STEP
            first, end = many.rss_bytes() / MB, time.monotonic() + 10 * rounds
            while time.monotonic() < end and done + STEP < count:
                rates["many"] += _steps(results, STEP)
                memory["many"].append(many.rss_bytes() / MB)
                done += STEP
        say(f"  few: {_list(rates['few'])} files/s; many: {_list(rates['many'])} files/s")
        say(f"  few: {_list(memory['few'])} MB; many: {first:.0f}, then {_list(memory['many'])} MB")
    return _rows(count, rates, memory)


def _jobs(pair: Pair, names: tuple[str, ...], out: str, start: int, count: int) -> Iterator[tuple[bytes, bytes]]:
    for number in range(start, start + count):
        yield job(pair, f"tiny/{names[number % len(names)]}", f"{out}/{number // 1000}/{number}")


def _steps(results: Iterator[bytes], count: int) -> list[float]:
    found, done = [], 0
    while done + STEP <= count:
        started = time.monotonic()
        for result in islice(results, STEP):
            require_success(result)
        done += STEP
        found.append(STEP / (time.monotonic() - started))
    return found


def _rows(count: int, rates: dict[str, list[float]], memory: dict[str, list[float]]) -> list[Row]:
    deep, shallow = statistics.median(rates["many"]), statistics.median(rates["few"])
    deep_mb, shallow_mb = max(memory["many"]), max(memory["few"])
    note = (
        f"Backlog: 1 KB files, RTT 0, {LANES} lanes; {count} jobs waiting against {FEW}, {STEP} timed at a time; "
        "memory is what was resident after each."
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
                try:
                    rates[count].append(_middle(world, teams[count], pair, files.names[: GROUP_JOBS // 3 * count]))
                except OutOfTimeError:
                    break
    say(f"  one: {_list(rates[1])} files/s; three: {_list(rates[3])} files/s")
    one, three = (statistics.median(rates[count]) for count in (1, 3))
    note = (
        f"Three consumers: 100 KB files, RTT {rtt_ms} ms, {GROUP_LANES} lanes each, {GROUP_PARTITIONS} partitions, "
        f"{rounds} rounds in alternating order; timed between a tenth and six tenths of the jobs, while all have work."
    )
    goal = Goal(" /one", GROUP_RATIO, three / one)
    return [Row("3 consumers x 2 lanes: files/s", {"ours": three}, [goal], [note])]


def _middle(world: World, team: Consumers, pair: Pair, names: tuple[str, ...]) -> float:
    out = world.new_out()
    times = []
    with team.results() as results, Writer(world.broker.bootstrap_servers) as writer:
        team.submit(writer, [job(pair, f"group/{name}", f"{out}/{name}") for name in names])
        for _ in names:
            require_success(next(results))
            times.append(time.monotonic())
    first, last = len(times) // 10, len(times) * 6 // 10
    return (last - first) / (times[last] - times[first])


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)
