"""Round trips of the transfer layer per verified file of 1 KB: one lane, over a link.

Of a job among many it is the slope between a short and a long run, so that nothing that happens once is in it. Of a
lone job it is the slope between loopback and the link, so that nobody's processor time is in it: the median of jobs
given one after the other's end, in sessions that are open.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from alone import Alone
from table import Goal, Row
from world import KB, Files, Pair, World

SHORT, LONG, LONE = 20, 80, 9
ROUNDS = 3
TRIPS, LONE_TRIPS = 4.2, 7.0


def compare(world: World, rtt_ms: int, say: Callable[[str], None]) -> list[Row]:
    """Measure; return the row."""
    pair, near = world.pairs[rtt_ms], world.pairs[0]
    files = world.files("trips", LONG, KB)
    trip = statistics.median(connect_seconds(pair) for _ in range(9))
    slopes = []
    with _opened(world, pair, files) as alone:
        for _ in range(ROUNDS):
            world.left()
            short, long = alone.move(pair, files, SHORT).seconds, alone.move(pair, files, LONG).seconds
            slopes.append((long - short) / (LONG - SHORT) / trip)
        far_seconds = _lone(world, alone, files)
    with _opened(world, near, files) as alone:
        near_seconds = _lone(world, alone, files)
    lone = (far_seconds - near_seconds) / (trip - statistics.median(connect_seconds(near) for _ in range(9)))
    say(f"  {', '.join(f'{slope:.2f}' for slope in sorted(slopes))}; lone {lone:.2f}")
    note = f"Round trips: 1 KB files, RTT {trip * 1000:.1f} ms measured, one lane, transfer layer alone."
    many = statistics.median(slopes)
    return [
        Row("1 KB: round trips per verified job", {"ours": many}, [Goal("", TRIPS, many, 4.0, at_most=True)], [note]),
        Row("1 KB: round trips of a lone job", {"ours": lone}, [Goal("", LONE_TRIPS, lone, at_most=True)], [note]),
    ]


@contextmanager
def _opened(world: World, pair: Pair, files: Files) -> Iterator[Alone]:
    """Give one lane whose sessions are open."""
    alone = Alone(world, pair, 1)
    try:
        alone.move(pair, files, SHORT)
        yield alone
    finally:
        alone.stop()


def _lone(world: World, alone: Alone, files: Files) -> float:
    out = world.new_out()
    runs = [alone.pass_on([f"{files.folder}/{name}"], [f"{out}/{name}"], files) for name in files.names[:LONE]]
    world.check(files, out, LONE)
    return statistics.median(run.seconds for run in runs)


def connect_seconds(pair: Pair) -> float:
    """Measure one round trip: a connect."""
    started = time.monotonic()
    with closing(socket.create_connection((pair.source.host, pair.source.port), 5)):
        return time.monotonic() - started
