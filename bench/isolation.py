"""What bad servers cost the good ones: a consumer alone with good servers, and one with as many jobs for bad ones.

The second one has deferred jobs on top. Both are the same otherwise and take turns; the bad servers' jobs of earlier
rounds stay with it, waiting and tried again.

Then two good pairs compete for the lanes of one consumer: D to E has worked for a while when jobs from C to B come, and
A1, A2, A3, which have jobs for B as well, are silent. Half of the lanes are C to B's.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle, islice

from bad import BadServers
from ours import RETRY_PARTITIONS, Consumers, job, job_of, require_success, server_lines
from table import Goal, Row, ratio
from world import KB, MB, End, Files, Pair, World

from etl.broker import TransactionalProducer
from etl.config import ConfigLoader
from etl.models.message import FileTransferJob
from etl.models.task import Origin, Record, Task
from etl.models.wire import Message
from etl.outcomes.messages import MessageBuilder
from etl.retry import tiers
from etl.topics.names import Topics

LANES = 8
JOBS = 400  # for good servers in a round; as many for bad ones
SHARE, GROWTH = 0.95, 1.1
SILENT = ("A1", "A2", "A3")
PART = 0.45  # of the files of two pairs that compete, the least for the one that comes later
HEAD_START_SECONDS = 5.0  # of the other one
COUNTED = 2000  # files of both in a round, from the first one of the later pair
WAITING, REFILL = 300, 25  # jobs of each pair at once, so that neither ever has none; and how many follow at a time
PARKED_FOR = (600.0, 3600.0)  # seconds until a deferred job is due: none within the run
BATCH = 2000


def compare(world: World, rtt_ms: int, deferred: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure; return the rows."""
    pair = world.pairs[rtt_ms]
    files = world.files("good", JOBS, 100 * KB)
    with ExitStack() as ending:
        with world.at_far_end():
            bad = BadServers()
        ending.callback(bad.stop)
        lines: list[str] = []
        for name, port in bad.ports.items():
            lines += server_lines(name, End(pair.source.host, port, "someone", "Some-password"))
        alone = Consumers(world, "alone", LANES, more=lines)
        beside = Consumers(world, "beside", LANES, more=lines)
        for consumers in (alone, beside):
            ending.callback(consumers.stop)
            consumers.start()
            consumers.move(pair, files, 32)  # opens the sessions
        _park(world, beside.topic, pair, list(bad.ports), deferred)
        say(f"  {deferred} jobs deferred")
        rates: dict[Consumers, list[float]] = {alone: [], beside: []}
        memory: list[float] = []
        for number in range(rounds):
            world.left()
            beside.forget_peak()
            for consumers in (alone, beside) if number % 2 == 0 else (beside, alone):
                others = list(bad.ports) if consumers is beside else []
                rates[consumers].append(_round(world, consumers, pair, files, others))
            memory.append(beside.peak_bytes() / MB)
            say(f"  alone {rates[alone][-1]:.0f}, beside {rates[beside][-1]:.0f} files/s, {memory[-1]:.0f} MB")
    note = (
        f"Isolation: {LANES} lanes, RTT {rtt_ms} ms, {rounds} rounds in alternating order, {JOBS} jobs of 100 KB "
        f"for good servers in each; beside them {JOBS} more, in turn, from or to servers that are dead (refused), "
        f"silent, full (421) and full (530 at login), and {deferred} jobs for these deferred in T-retry. "
        "MB: the most that was resident in the last round, against the first."
    )
    kept, growth = ratio(rates[beside], rates[alone]), memory[-1] / memory[0]
    return [
        Row(
            "good beside bad servers: files/s",
            {"ours": statistics.median(rates[beside])},
            [Goal(" /alone", SHARE, kept)],
            [note],
        ),
        Row("  MB resident", {"ours": memory[-1]}, [Goal(" /first", GROWTH, growth, at_most=True)], [note]),
    ]


def compete(world: World, rtt_ms: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure what part of the files the pair gets that shares a server with silent ones; return the row."""
    files = world.files("competing", JOBS, 10 * KB)
    with ExitStack() as ending:
        other = ending.enter_context(world.other_pair(rtt_ms))
        with world.at_far_end():
            bad = BadServers()
        ending.callback(bad.stop)
        lines = server_lines("C", other.source) + server_lines("B", other.target)
        for name in SILENT:  # a name of its own at the login makes each a server of its own
            lines += server_lines(name, End(other.source.host, bad.ports["SILENT"], name.lower(), "Some-password"))
        consumers = Consumers(world, "competing", LANES, more=lines)
        ending.callback(consumers.stop)
        consumers.start()
        consumers.submit([job_of(name, "file", "B", f"from-{name}") for name in SILENT])
        parts = []
        for _ in range(rounds):
            parts.append(_compete_once(world, consumers, rtt_ms, files))
            say(f"  the later pair's part: {parts[-1]:.2f}")
    note = (
        f"Competing: {LANES} lanes, RTT {rtt_ms} ms, files of 10 KB, {rounds} rounds. A pair of servers has worked "
        f"alone for {HEAD_START_SECONDS:g} s when another comes, whose destination {len(SILENT)} silent "
        f"servers have jobs for as well. Its part of the next {COUNTED} files of both; a half is its due."
    )
    part = statistics.median(parts)
    return [Row("competing pair: part of the files", {"ours": part}, [Goal("", PART, part)], [note])]


def _compete_once(world: World, consumers: Consumers, rtt_ms: int, files: Files) -> float:
    """Have the first pair work alone, then both; each gets jobs for those that end, until enough are counted."""
    first, later = (f"SRC{rtt_ms}", f"DST{rtt_ms}"), ("C", "B")
    out, names = world.new_out(), enumerate(cycle(files.names))
    ended: Counter[tuple[str, str]] = Counter()  # since the pair got jobs last
    counted: Counter[tuple[str, str]] = Counter()
    waiting = 0

    def submit(pair: tuple[str, str], count: int) -> int:
        jobs = []
        for number, name in islice(names, count):
            jobs.append(job_of(pair[0], f"{files.folder}/{name}", pair[1], f"{out}/{number:06d}-{name}"))
        consumers.submit(jobs)
        return count

    with consumers.results() as results:
        waiting += submit(first, WAITING)
        comes_at = time.monotonic() + HEAD_START_SECONDS
        while waiting:
            if time.monotonic() >= comes_at:
                comes_at = math.inf
                waiting += submit(later, WAITING)
            result = next(results)
            require_success(result)
            waiting -= 1
            pair = later if b'"C"' in result else first
            if counted or pair is later:
                counted[pair] += counted.total() < COUNTED
            ended[pair] += 1
            if ended[pair] == REFILL and counted.total() < COUNTED:
                waiting += submit(pair, ended.pop(pair))
    world.check_copies(out, lambda path: f"{files.folder}/{path.name.partition('-')[2]}", COUNTED)
    return counted[later] / COUNTED


def _round(world: World, consumers: Consumers, pair: Pair, files: Files, others: Sequence[str]) -> float:
    out = world.new_out()
    jobs = []
    bad = cycle(others)
    for number, name in enumerate(files.names):
        jobs.append(job(pair, f"{files.folder}/{name}", f"{out}/{name}"))
        if others:
            jobs.append(_bad_job(pair, next(bad), number % (2 * len(others)) < len(others), f"{out}-bad/{name}"))
    with consumers.results() as results:
        started = time.monotonic()
        consumers.submit(jobs)
        left = len(files.names)
        while left:
            result = next(results)
            if b'"SUCCESS"' in result:
                left -= 1
            elif not any(f'"{name}"'.encode() in result for name in others):
                raise RuntimeError(f"a job failed: {result!r}")
        seconds = time.monotonic() - started
    world.check(files, out)
    return len(files.names) / seconds


def _bad_job(pair: Pair, name: str, reads: bool, path: str) -> tuple[bytes, bytes]:
    """Return a job from a bad server, or to it."""
    if reads:
        return job_of(name, "file", f"DST{pair.rtt_ms}", path)
    return job_of(f"SRC{pair.rtt_ms}", "good/000000.bin", name, path)


def _park(world: World, topic: str, pair: Pair, names: Sequence[str], count: int) -> None:
    """Set jobs of bad servers aside, as a consumer of this group does."""
    topics = Topics.of(topic, ConfigLoader(environ={}).settings)
    builder = MessageBuilder(topics, topic, tiers.BLOCKS)
    producer = TransactionalProducer(world.broker.bootstrap_servers, "bench-parking")
    producer.open()
    now, (shortest, longest) = time.time(), PARKED_FOR
    try:
        messages: list[Message] = []
        for number in range(count):
            name = names[number % len(names)]
            key, value = _bad_job(pair, name, number % (2 * len(names)) < len(names), f"deferred/{number}")
            record = Record(topic, number % RETRY_PARTITIONS, 10**9 + number, key, value)
            origin = Origin(record.topic, record.partition, record.offset)
            task = Task(record, origin, FileTransferJob.from_json(value).with_id(str(origin)), recallable=True)
            due = now + shortest + (longest - shortest) * number / count
            messages += builder.deferral(task, due)
            if len(messages) >= BATCH or number == count - 1:
                producer.transact(messages)
                messages = []
    finally:
        producer.close()
