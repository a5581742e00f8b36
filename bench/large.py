"""One file of 1 GiB against `curl | curl`; and the memory of a consumer whose eight lanes each have a large file."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import psutil
from ours import Consumers, Run
from peers import Curl, found
from rate import alternated
from table import Goal, Row, ratio
from world import MB, MIB, World

LANES = 8
SIZES_MIB = (128, 1024)
PEAK_MB, GROWTH, CURL_RATIO = 80.0, 1.05, 1.5
SPARE_BYTES = 4 << 30  # left for everybody else on the machine


def mb_per_second(runs: Sequence[Run]) -> list[float]:
    """Return the rate of each round."""
    return [run.size_bytes / run.seconds / MB for run in runs]


def compare(world: World, size_mib: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure; return the rows."""
    with ExitStack() as ending:
        consumers = Consumers(world, "large", LANES)
        ending.callback(consumers.stop)
        consumers.start()
        consumers.move(world.pairs[0], world.files("warm", LANES, MIB))  # opens the sessions
        return [_speed(world, consumers, size_mib, rounds, say), *_memory(world, consumers, say)]


def _speed(world: World, consumers: Consumers, size_mib: int, rounds: int, say: Callable[[str], None]) -> Row:
    files = world.files("large", 1, size_mib * MIB)
    peers = [Curl(world)] if found(Curl.name) else []
    runs = alternated(world, [consumers, *peers], world.pairs[0], files, rounds)
    shutil.rmtree(world.source_root / "large")
    values: dict[str, float | str] = {}
    for name, done in zip(("ours", "curl"), runs, strict=False):
        say(f"  {name}: {', '.join(f'{rate:.0f}' for rate in sorted(mb_per_second(done)))} MB/s")
        if done:
            values[name] = statistics.median(mb_per_second(done))
    found_ratio = ratio(mb_per_second(runs[0]), mb_per_second(runs[1])) if peers else None
    note = f"Large file: one of {size_mib} MiB, RTT 0, {len(runs[0])} rounds in alternating order; {Curl.settings}."
    return Row(f"1 file of {size_mib} MiB: MB/s", values, [Goal(" /curl", CURL_RATIO, found_ratio)], [note])


def _memory(world: World, consumers: Consumers, say: Callable[[str], None]) -> list[Row]:
    peaks: dict[int, float] = {}
    pair = world.pairs[0]
    for size_mib in SIZES_MIB:
        needed = LANES * size_mib * MIB + SPARE_BYTES
        free = min(shutil.disk_usage(world.folder).free, psutil.virtual_memory().available)
        if free < needed:
            say(f"  8 x {size_mib} MiB left out: {needed >> 30} GiB of memory are needed, {free >> 30} are free")
            continue
        files = world.files(f"huge-{size_mib}", LANES, size_mib * MIB, sparse=True)
        if not peaks:
            consumers.move(pair, files)  # lanes come one after the other: each has had its buffer then
        consumers.forget_peak()
        consumers.move(pair, files)
        peaks[size_mib] = consumers.peak_bytes() / MB
        say(f"  8 x {size_mib} MiB: at most {peaks[size_mib]:.1f} MB")
    smallest, largest = min(SIZES_MIB), max(SIZES_MIB)
    seen = ", ".join(f"{peak:.1f} MB with {size} MiB" for size, peak in peaks.items()) or "not measured"
    note = (
        f"Memory: the most that was resident while {LANES} lanes moved a file each: {seen}; "
        f"{consumers.idle_bytes / MB:.1f} MB at rest after the start."
    )
    growth = peaks[largest] / peaks[smallest] if len(peaks) == len(SIZES_MIB) else None
    return [
        _memory_row(f"{LANES} lanes, {largest} MiB each: MB resident", PEAK_MB, peaks.get(largest), note),
        _memory_row(f"  the same / with {smallest} MiB each", GROWTH, growth, note),
    ]


def _memory_row(what: str, at_most: float, value: float | None, note: str) -> Row:
    return Row(what, {} if value is None else {"ours": value}, [Goal("", at_most, value, at_most=True)], [note])
