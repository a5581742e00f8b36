"""What the hash of a receipt costs: a large file, and small ones, with it and without, in the transfer layer alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack

from alone import Alone
from rate import alternated
from table import Goal, Row, ratio
from world import KB, MIB, World

SHARE = 0.97  # of the rate without a hash
SMALL_FILES, WARM_FILES = 1000, 32


def compare(world: World, size_mib: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure; return the rows."""
    with ExitStack() as ending:
        pair = world.pairs[0]
        with_hash, without = Alone(world, pair, 2), Alone(world, pair, 2, hashes=False)
        warm = world.files("warm", WARM_FILES, MIB)
        for one in (with_hash, without):
            ending.callback(one.stop)
            one.move(pair, warm)  # opens the sessions
        rows = []
        for what, count, size_bytes in (
            (f"1 file of {size_mib} MiB", 1, size_mib * MIB),
            ("100 KB files", SMALL_FILES, 100 * KB),
        ):
            files = world.files(f"hashed-{size_bytes}", count, size_bytes)
            runs = alternated(world, [with_hash, without], pair, files, rounds)
            cpu_ms = [
                statistics.median(run.cpu["client"] * 1e12 / run.size_bytes for run in done) for done in runs if done
            ]
            rates = [[run.size_bytes / run.seconds / 1e6 for run in done] for done in runs]
            for name, found in zip(("with", "without"), rates, strict=True):
                say(f"  {what}, {name} a hash: {', '.join(f'{rate:.0f}' for rate in sorted(found))} MB/s")
            values: dict[str, float | str] = {"ours": statistics.median(rates[0])} if rates[0] else {}
            note = (
                f"Receipts: xxh3-128 in the pass against none, 2 lanes, RTT 0, {len(runs[0])} alternating rounds; "
                f"{what}: {' against '.join(f'{ms:.0f}' for ms in cpu_ms)} CPU-ms per GB."
            )
            goal = Goal(" /no hash", SHARE, ratio(*rates))
            rows.append(Row(f"{what}, hashed: MB/s", values, [goal], [note]))
        return rows
