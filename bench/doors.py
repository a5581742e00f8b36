"""What it costs that strangers are kept out: the good path with every door shut, and with all of them taken out.

Shut: a broker that asks for a login and has ACLs, seals on deferred jobs, limits of what jobs may do, of files and of
the disk, and the guards that cannot be switched off. Open: none of that, by `unguarded.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from ours import Consumers, Run
from rate import WARM_FILES, alternated, cpu_ms, rates
from table import Goal, Row, ratio
from world import KB, START_SECONDS, Pair, World

import stack

LANES = 8
FILES = {100: 1000, 10: 2000}  # by their size in KB: as jobs are measured elsewhere, and where guards weigh most
# Two processes of the same program differ by some percent for as long as they live: many starts count, not one.
ROUNDS_A_START = 4
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


def compare(world: World, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure without latency, where the processors are the limit; return the rows."""
    files = {kb: world.files(f"doors-{kb}", count, kb * KB) for kb, count in FILES.items()}
    pairs = {"FTP": world.pairs[0], "local folders": Pair(LOCAL, world.pairs[0].source, world.pairs[0].target)}
    runs: dict[tuple[str, int], tuple[list[Run], list[Run]]] = {(what, kb): ([], []) for what in pairs for kb in FILES}
    folders = [
        f"{name}{LOCAL}_{line}"
        for name, root in (("SRC", world.source_root), ("DST", world.target_root))
        for line in ("TYPE=local", f"BASE_PATH={root}")
    ]
    with ExitStack() as ending:
        broker = Shut(world.folder / "doors", f"consume bench-shut worker:{PASSWORD}\n")
        ending.callback(broker.stop, limit=10)
        broker.start_with_users()
        login = {"SECURITY_PROTOCOL": "SASL_PLAINTEXT", "USERNAME": "worker", "PASSWORD": PASSWORD}
        shut = [
            *(f"ETL_KAFKA_{name}={value}" for name, value in login.items()),
            "ETL_GROUP_SECRET=bench-secret-of-the-group",
            *(f"SRC{rtt}_ACCESS=read" for rtt in (0, LOCAL)),
            *(f"DST{rtt}_ACCESS=read,write" for rtt in (0, LOCAL)),
            f"ETL_ALLOWED_PAIRS=SRC0:DST0,SRC{LOCAL}:DST{LOCAL}",
            "ETL_MAX_FILE_BYTES=1000000000",
            f"DST{LOCAL}_MIN_FREE=1000000",
        ]
        unguarded = [str(Path(__file__).with_name("unguarded.py"))]
        outer = f"127.0.0.1:{broker.outer}"
        both = [
            Consumers(world, "shut", LANES, more=[*folders, *shut], broker=broker, listener=outer),
            Consumers(world, "open", LANES, more=folders, program=unguarded),
        ]
        for number in range(0, rounds, ROUNDS_A_START):
            with ExitStack() as stopping:
                for one in both if number % (2 * ROUNDS_A_START) == 0 else reversed(both):
                    stopping.callback(one.stop)
                    one.start()
                count = min(ROUNDS_A_START, rounds - number)
                for (what, kb), wholes in runs.items():
                    for one in both:
                        one.move(pairs[what], files[kb], WARM_FILES)  # opens the sessions
                    for whole, found in zip(
                        wholes, alternated(world, both, pairs[what], files[kb], count), strict=True
                    ):
                        whole.extend(found)
    for (what, kb), done in runs.items():
        for name, found in zip(("shut", "open"), done, strict=True):
            each = ", ".join(f"{rate:.0f}" for rate in rates(found))
            say(
                f"  {what}, {kb} KB, {name}: {each} files/s"
                + (f"; CPU {cpu_ms(found, 'client'):.3f} ms/file" if found else "")
            )
    return [row for (what, kb), done in runs.items() for row in _rows(what, kb, *done)]


def _rows(what: str, kb: int, shut: Sequence[Run], opened: Sequence[Run]) -> list[Row]:
    note = (
        f"Doors: {FILES[kb]} files of {kb} KB a round, {len(shut)} rounds with all doors shut (login and ACLs at a "
        "broker of its own, seals, ACCESS, ETL_ALLOWED_PAIRS, limits of files and of the disk, limits of records, "
        f"names, folders) and as many with all of them taken out, in alternating order, {LANES} lanes, both started "
        f"anew after every {ROUNDS_A_START} rounds; the ratios are those of both in the same round."
    )
    if not shut:
        return [Row(f"doors shut, {what}, {kb} KB: files/s", {}, [Goal(" /open", RATE, None)], [note])]
    used = [[run.cpu["client"] / run.files for run in runs] for runs in (shut, opened)]
    rate = ratio(rates(shut), rates(opened))
    return [
        Row(
            f"doors shut, {what}, {kb} KB: files/s",
            {"ours": statistics.median(rates(shut))},
            [Goal(" /open", RATE, rate)],
            [note],
        ),
        Row(
            "  client's CPU: ms/file",
            {"ours": cpu_ms(shut, "client")},
            [Goal(" /open", CPU, ratio(*used), at_most=True)],
        ),
    ]
