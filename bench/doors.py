"""What it costs that strangers are kept out: the good path with every door shut, and with all of them taken out.

One consumer does both, by turns (`unguarded.py`): two processes of the same program differ by more than what is looked
for, for as long as they live. Its broker asks for a login and has ACLs all the while.
"""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from ours import Consumers, Run
from rate import WARM_FILES, alternated, rates
from table import Goal, Row, ratio
from world import KB, START_SECONDS, Files, Pair, World

import stack

LANES = 8
FILES = {100: 1000, 10: 2000}  # by their size in KB: as jobs are measured elsewhere, and where guards weigh most
RATE, CPU = 0.98, 1.02
LOCAL = 9999  # stands for an RTT in the names of the two local servers
PASSWORD = "Bench-password-of-the-doors"
APPLIED = "users of the listeners with login: "


class Shut(stack.Broker):
    """A broker whose outer listener asks for a login, and where each user may do what a file says."""

    def __init__(self, folder: Path, users: str) -> None:
        folder.mkdir()
        self.outer = stack.free_port()
        file = folder / "users"
        file.touch(mode=0o600)
        file.write_text(users)
        environment = {
            "KAFKA_ADVERTISED_HOST": "127.0.0.1",
            "KAFKA_ADVERTISED_PORT": str(self.outer),
            "KAFKA_BIND_ADDRESS": "127.0.0.1",
            "KAFKA_ADVERTISED_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA_USERS_FILE": str(file),
        }
        super().__init__(folder, environment=environment)

    def start_with_users(self) -> None:
        """Start it, and wait until its users are known."""
        self.start()
        stack.wait_until(lambda: APPLIED in self.log.read_text(), START_SECONDS, "the users")


class Doors:
    """A consumer with its guards in, or out of it."""

    def __init__(self, consumers: Consumers, name: str, number: signal.Signals, told: str) -> None:
        self.name = name
        self._consumers, self._signal, self._told = consumers, number, told

    def move(self, pair: Pair, files: Files) -> Run:
        """Have files copied."""
        self._consumers.signal(self._signal, self._told)
        return self._consumers.move(pair, files)


def compare(world: World, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure without latency, where the processors are the limit; return the rows."""
    rows = []
    pairs = {"FTP": world.pairs[0], "local folders": Pair(LOCAL, world.pairs[0].source, world.pairs[0].target)}
    settings = [
        f"{name}{LOCAL}_{line}"
        for name, root in (("SRC", world.source_root), ("DST", world.target_root))
        for line in ("TYPE=local", f"BASE_PATH={root}")
    ]
    login = {"SECURITY_PROTOCOL": "SASL_PLAINTEXT", "USERNAME": "worker", "PASSWORD": PASSWORD}
    settings += [
        *(f"ETL_KAFKA_{name}={value}" for name, value in login.items()),
        "ETL_GROUP_SECRET=bench-secret-of-the-group",
        *(f"SRC{rtt}_ACCESS=read" for rtt in (0, LOCAL)),
        *(f"DST{rtt}_ACCESS=read,write" for rtt in (0, LOCAL)),
        f"ETL_ALLOWED_PAIRS=SRC0:DST0,SRC{LOCAL}:DST{LOCAL}",
        "ETL_MAX_FILE_BYTES=1000000000",
        f"DST{LOCAL}_MIN_FREE=1000000",
    ]
    with ExitStack() as ending:
        broker = Shut(world.folder / "doors", f"consume bench-doors worker:{PASSWORD}\n")
        ending.callback(broker.stop, limit=10)
        broker.start_with_users()
        program = [str(Path(__file__).with_name("unguarded.py"))]
        outer = f"127.0.0.1:{broker.outer}"
        ours = Consumers(world, "doors", LANES, more=settings, program=program, broker=broker, listener=outer)
        ending.callback(ours.stop)
        ours.start()
        both = [
            Doors(ours, "shut", signal.SIGUSR2, "guards are in"),
            Doors(ours, "open", signal.SIGUSR1, "guards are out"),
        ]
        for kb, count in FILES.items():
            files = world.files(f"doors-{kb}", count, kb * KB)
            for what, pair in pairs.items():
                ours.move(pair, files, WARM_FILES)  # opens the sessions
                runs = alternated(world, both, pair, files, rounds)
                for one, done in zip(both, runs, strict=True):
                    say(f"  {what}, {kb} KB, {one.name}: {', '.join(f'{rate:.0f}' for rate in rates(done))} files/s")
                rows += _rows(what, kb, *runs)
    return rows


def _rows(what: str, kb: int, shut: Sequence[Run], opened: Sequence[Run]) -> list[Row]:
    note = (
        f"Doors: {FILES[kb]} files of {kb} KB a round, {len(shut)} rounds with all doors shut (seals, ACCESS, "
        "ETL_ALLOWED_PAIRS, limits of files and of the disk, limits of records, names, folders) and as many with all "
        f"of them taken out of the same process, in alternating order, {LANES} lanes; the ratios are those of both in "
        "the same round. A login and ACLs are asked for in both."
    )
    if not shut:
        return [Row(f"doors shut, {what}, {kb} KB: files/s", {}, [Goal(" /open", RATE, None)], [note])]
    used = [[run.cpu["client"] / run.files * 1000 for run in runs] for runs in (shut, opened)]
    return [
        Row(
            f"doors shut, {what}, {kb} KB: files/s",
            {"ours": statistics.median(rates(shut))},
            [Goal(" /open", RATE, ratio(rates(shut), rates(opened)))],
            [note],
        ),
        Row(
            "  client's CPU: ms/file",
            {"ours": statistics.median(used[0])},
            [Goal(" /open", CPU, ratio(*used), at_most=True)],
        ),
    ]
