"""All comparisons in one go, and one table. `bench/README.md` says how to read it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import backlog
import doors
import ftps
import isolation
import large
import peers
import rate
import receipts
import s3
import sftp
import told
import trips
from table import Row, as_json, render
from world import OutOfTimeError, World, world

PARTS = (
    "rate-0",
    "rate-1",
    "rate-3",
    "rate-10",
    "rate-40",
    "ftps-0",
    "ftps-10",
    "sftp-0",
    "sftp-10",
    "s3-0",
    "s3-10",
    "large",
    "receipts",
    "trips",
    "backlog",
    "group",
    "isolation",
    "told",
    "doors",
)
NEEDS_MS = {
    "rate-1": 1,
    "rate-3": 3,
    "rate-10": 10,
    "ftps-10": 10,
    "sftp-10": 10,
    "s3-10": 10,
    "rate-40": 40,
    "group": 10,
    "isolation": 10,
}  # the link that a part runs on


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="only these (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (default: %(default)s)")
    parser.add_argument(
        "--far-rounds",
        type=int,
        default=3,
        help="the same at 40 ms, for three consumers, for competing pairs (default: %(default)s)",
    )
    parser.add_argument("--lanes", default="2,8", help="ours, to choose from without latency (default: %(default)s)")
    parser.add_argument("--large-mib", type=int, default=1024, help="size of the large file (default: %(default)s)")
    parser.add_argument("--trips-rtt", type=int, default=40, help="link for the round trips, ms (default: %(default)s)")
    parser.add_argument("--backlog", type=int, default=100_000, help="waiting jobs (default: %(default)s)")
    parser.add_argument("--deferred", type=int, default=100_000, help="jobs in T-retry (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where all data goes (default: /dev/shm)")
    parser.add_argument("--limit", type=float, default=1200, help="seconds for everything (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def measure(part: str, made: World, options: argparse.Namespace) -> list[Row]:
    """Run one comparison; return its rows."""
    lanes = [int(word) for word in options.lanes.split(",")]
    if part == "rate-0":
        return rate.compare(made, 0, lanes, options.rounds, say)
    if part.startswith("rate-"):
        far = part == "rate-40"
        return rate.compare(made, NEEDS_MS[part], lanes[-1:], options.far_rounds if far else options.rounds, say)
    if part.startswith("ftps-"):
        return ftps.compare(made, NEEDS_MS.get(part, 0), options.far_rounds, say)
    if part.startswith("sftp-"):
        return sftp.compare(made, NEEDS_MS.get(part, 0), options.far_rounds, options.large_mib, say)
    if part.startswith("s3-"):
        return s3.compare(made, NEEDS_MS.get(part, 0), options.far_rounds, options.large_mib, say)
    if part == "large":
        return large.compare(made, options.large_mib, 3 * options.rounds, say)  # one takes a second, and varies
    if part == "receipts":
        return receipts.compare(made, options.large_mib, 3 * options.rounds, say)
    if part == "trips":
        return trips.compare(made, options.trips_rtt, say)
    if part == "backlog":
        return backlog.compare(made, options.backlog, say)
    if part == "group":
        return backlog.group(made, 10, options.far_rounds, say)
    if part == "told":
        return told.compare(made, 4 * options.rounds, say)  # the difference is small
    if part == "doors":
        return doors.compare(made, 4 * options.rounds, say)
    return [
        *isolation.compare(made, 10, options.deferred, options.rounds, say),
        *isolation.compete(made, 10, options.far_rounds, say),
    ]


def main() -> int:
    """Run the comparisons and print the table; the exit code says whether all goals were measured and met."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # everything is taken down, as with Ctrl-C
    started = time.monotonic()
    peers.fetch()
    if any(part.startswith("s3-") for part in options.parts):
        s3.fetch()
    rtts = sorted({0, *(NEEDS_MS.get(part, 0) for part in options.parts), options.trips_rtt})
    with world(rtts, started + options.limit, options.folder) as made:
        rows, missing = measure_all(made, options)
    if options.json:
        print(json.dumps({"machine": machine(), "rows": as_json(rows), "missing": missing}))
    else:
        print(f"\n{machine()}\n\n{render(rows, missing)}\n\n{(time.monotonic() - started) / 60:.1f} minutes")
    return exit_code(rows, missing)


def measure_all(made: World, options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Run the comparisons that were asked for; return their rows, and a line for each that is not whole."""
    rows: list[Row] = []
    missing: list[str] = []
    for part in PARTS:
        if part not in options.parts:
            continue
        needed = options.trips_rtt if part == "trips" else NEEDS_MS.get(part, 0)
        if needed not in made.pairs:
            missing.append(f"{part}: left out, there is no link of {needed} ms")
            continue
        began = time.monotonic()
        say(f"{part} ...")
        try:
            made.left()
            rows += measure(part, made, options)
        except OutOfTimeError:
            pass  # the world remembers
        if made.was_cut_short:  # also when a comparison made do with fewer rounds
            missing.append(f"{part}: not whole, {options.limit:g} s are over")
        say(f"  {time.monotonic() - began:.0f} s")
    for line in missing:
        say(line)
    return rows, missing


def exit_code(rows: Sequence[Row], missing: Sequence[str]) -> int:
    """Return 0 when everything asked for was measured whole and every goal was met, else 1."""
    return 0 if not missing and all(goal.met for row in rows for goal in row.goals) else 1


def say(what: str) -> None:
    """Tell how far it is."""
    print(what, file=sys.stderr, flush=True)


def machine() -> str:
    """Return what it ran on."""
    processor = next(
        (line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?"
    )
    versions = [f"Python {platform.python_version()}", f"Linux {platform.release()}"]
    for name in ("rclone", "lftp", "curl"):
        program = peers.found(name)
        if program is not None:
            told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
            versions.append(" ".join(told.stdout.split("\n", 1)[0].replace("|", "").split()[:4]))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{os.cpu_count()} CPUs ({processor}), {', '.join(versions)}; load at the end {load}; vsftpd to vsftpd"


if __name__ == "__main__":
    sys.exit(main())
