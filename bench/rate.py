"""Files of 100 KB per second over each link, against rclone, lftp and, without latency, a C program."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Protocol

from alone import Alone
from ours import Consumers, Run
from peers import Ceiling, Lftp, Peer, Rclone, found
from table import Goal, Row, ratio
from world import KB, Files, OutOfTimeError, Pair, World

WARM_FILES = 32
C_THREADS = 2  # with more it is no faster on two cores
FILES = {0: 1000, 1: 1000, 3: 600, 10: 400, 40: 200}
FOLDERS = 50  # with all files in one folder rclone, which lists that after each upload, takes twice as long
GOALS = {  # rclone: must, aim; lftp: must, aim
    0: ((0.85, 1.5), (0.5, 1.0)),
    1: ((1.3, 2.0), (0.9, 1.4)),
    3: ((2.2, 3.0), (1.7, 2.0)),
    10: ((2.7, 3.0), (1.8, 2.0)),
    40: ((3.0, 3.2), (2.0, 2.1)),
}
C_SHARE = 0.85


class Contender(Protocol):
    """Whoever moves files."""

    @property
    def name(self) -> str:
        """Who it is."""
        ...

    def move(self, pair: Pair, files: Files) -> Run:
        """Move them all; return what it took."""
        ...


def alternated(world: World, contenders: Sequence[Contender], pair: Pair, files: Files, count: int) -> list[list[Run]]:
    """Return the rounds of each: all take turns, in reversed order every other round; what hits one hits all."""
    runs: list[list[Run]] = [[] for _ in contenders]
    for number in range(count):
        order = list(range(len(contenders)))
        for which in order if number % 2 == 0 else reversed(order):
            try:
                world.left()
                runs[which].append(contenders[which].move(pair, files))
            except OutOfTimeError:
                return [found[:number] for found in runs]  # whole rounds only
    return runs


def rates(runs: Sequence[Run]) -> list[float]:
    """Return the rate of each round."""
    return [run.rate for run in runs]


def cpu_ms(runs: Sequence[Run], who: str) -> float:
    """Return the median processor time per file, in ms, of at least one round."""
    return statistics.median(run.cpu[who] / run.files * 1000 for run in runs)


def middles(
    ours: Consumers, peers: Sequence[Contender], runs: Sequence[Sequence[Run]], say: Callable[[str], None]
) -> tuple[dict[str, float | str], dict[str, float | str]]:
    """Say the rates of each; return by column the median of the rates, and the client's CPU in ms per file."""
    values: dict[str, float | str] = {}
    cpu: dict[str, float | str] = {}
    for who, done in zip((ours, *peers), runs, strict=True):
        say(f"  {who.name}: {', '.join(f'{rate:.0f}' for rate in sorted(rates(done)))} files/s")
        if done:
            name = "ours" if who is ours else who.name
            values[name], cpu[name] = statistics.median(rates(done)), cpu_ms(done, "client")
    return values, cpu


def compare(world: World, rtt_ms: int, lanes: Sequence[int], rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure one link; return the rows."""
    pair = world.pairs[rtt_ms]
    files = world.files(f"small-{rtt_ms}", FILES[rtt_ms], 100 * KB, folders=FOLDERS)
    with ExitStack() as ending:
        ours = [Consumers(world, f"rate-{rtt_ms}-{count}", count) for count in lanes]
        alone: list[Alone] = []
        for consumers in ours:
            ending.callback(consumers.stop)
            consumers.start()
        peers: list[Peer] = [kind(world) for kind in (Rclone, Lftp) if found(kind.name)]
        if rtt_ms == 0:
            alone = [Alone(world, pair, count) for count in lanes]
            for one in alone:
                ending.callback(one.stop)
            peers.append(Ceiling(world, C_THREADS))
        contenders: list[Contender] = [*ours, *peers, *alone]
        lasting: list[Consumers | Alone] = [*ours, *alone]
        for client in lasting:
            client.move(pair, files, WARM_FILES)  # opens the sessions
        runs = dict(zip(contenders, alternated(world, contenders, pair, files, rounds), strict=True))
        for contender, done in runs.items():
            say(f"  {contender.name}: {', '.join(f'{rate:.0f}' for rate in sorted(rates(done)))} files/s")
        best = max(ours, key=lambda one: statistics.median(rates(runs[one]) or [0.0]))
        by_name = {peer.name: runs[peer] for peer in peers}
        result = [_rate_row(rtt_ms, best.lanes, runs[best], by_name, [peer.settings for peer in peers])]
        if rtt_ms == 0:
            fastest = max(alone, key=lambda one: statistics.median(rates(runs[one]) or [0.0]))
            result += [_alone_row(fastest.lanes, runs[fastest], by_name["C"]), *_cpu_rows(runs[best], by_name)]
        return result


def _rate_row(
    rtt_ms: int, lanes: int, runs: Sequence[Run], peers: dict[str, list[Run]], settings: Sequence[str]
) -> Row:
    values: dict[str, float | str] = {}
    for name, done in {"ours": list(runs), **peers}.items():
        if done:
            values[name] = statistics.median(rates(done))
    goals = [
        Goal(f" /{name}", must, ratio(rates(runs), rates(peers.get(name, []))), aim)
        for name, (must, aim) in zip(("rclone", "lftp"), GOALS[rtt_ms], strict=True)
    ]
    how = (
        "100 KB files: jobs from Kafka, outcomes committed, sizes verified, published by rename; the time runs from "
        "the first job sent to the last outcome read. The others have 8 transfers, and log in and list inside theirs."
    )
    count = (
        f"RTT {rtt_ms} ms: {FILES[rtt_ms]} files in {FOLDERS} folders a round, {len(runs)} rounds in turns; "
        f"ours: {lanes} lanes."
    )
    return Row(f"100 KB, RTT {rtt_ms} ms: files/s", values, goals, [*settings, how, count])


def _alone_row(lanes: int, runs: Sequence[Run], ceiling: Sequence[Run]) -> Row:
    values: dict[str, float | str] = {}
    for name, done in (("ours", runs), ("C", ceiling)):
        if done:
            values[name] = statistics.median(rates(done))
    goal = Goal(" /C", C_SHARE, ratio(rates(runs), rates(ceiling)))
    return Row("  transfer layer alone: files/s", values, [goal], [f"Transfer layer alone: no Kafka, {lanes} lanes."])


def _cpu_rows(runs: Sequence[Run], peers: dict[str, list[Run]]) -> list[Row]:
    everybody = {"ours": list(runs), **peers}
    client = {name: cpu_ms(done, "client") for name, done in everybody.items() if done}
    rows = [Row("  client's CPU: ms/file", client)]
    if runs:
        rows.append(Row("  servers' CPU: ms/file", {"ours": cpu_ms(runs, "servers")}))
        rows.append(Row("  broker's CPU: ms/file", {"ours": cpu_ms(runs, "broker")}))
    return rows
