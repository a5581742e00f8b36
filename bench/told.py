"""What it costs that a consumer tells its state on `etl-status`: the same files with ETL_STATUS=true and false."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack

from ours import Consumers
from rate import WARM_FILES, alternated, cpu_ms, rates
from table import Goal, Row, ratio
from world import KB, World

LANES = 8
FILES = 2000  # a round lasts for some snapshots, which come every two seconds
RATE, CPU = 0.98, 1.02


def compare(world: World, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure without latency, where the processors are the limit; return the rows."""
    pair = world.pairs[0]
    files = world.files("told", FILES, 10 * KB)
    with ExitStack() as ending:
        both = [Consumers(world, f"told-{word}", LANES, more=[f"ETL_STATUS={word}"]) for word in ("true", "false")]
        for one in both:
            ending.callback(one.stop)
            one.start()
            one.move(pair, files, WARM_FILES)  # opens the sessions
        telling, silent = alternated(world, both, pair, files, rounds)
    for name, runs in (("telling", telling), ("silent", silent)):
        each = ", ".join(f"{rate:.0f}" for rate in rates(runs))
        say(f"  {name}: {each} files/s" + (f"; CPU {cpu_ms(runs, 'client'):.3f} ms/file" if runs else ""))
    used = [[run.cpu["client"] / run.files for run in runs] for runs in (telling, silent)]
    note = (
        f"Telling: {FILES} files of 10 KB a round, {len(telling)} rounds with ETL_STATUS=true and as many without, in "
        f"alternating order, {LANES} lanes; the ratios are those of both in the same round."
    )
    if not telling:
        return [Row("telling the state: files/s", {}, [Goal(" /silent", RATE, None)], [note])]
    return [
        Row(
            "telling the state: files/s",
            {"ours": statistics.median(rates(telling))},
            [Goal(" /silent", RATE, ratio(rates(telling), rates(silent)))],
            [note],
        ),
        Row(
            "  client's CPU: ms/file",
            {"ours": cpu_ms(telling, "client")},
            [Goal(" /silent", CPU, ratio(*used), at_most=True)],
        ),
    ]
