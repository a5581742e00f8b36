"""What bad servers cost the good ones: a consumer alone with good servers, and one with as many jobs for bad ones.

The second one has deferred jobs on top. Both are the same otherwise and take turns; the bad servers' jobs of earlier
rounds stay with it, waiting and tried again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle

from bad import BadServers
from ours import RETRY_PARTITIONS, Consumers, job, job_of, server_lines
from table import Goal, Row, ratio
from world import KB, MB, End, Files, Pair, World

from etl.broker import TransactionalProducer
from etl.config import ConfigLoader
from etl.models.message import FileTransferJob
from etl.models.task import Origin, Record, Task
from etl.models.wire import Message
from etl.outcomes.messages import MessageBuilder
from etl.topics.companions import RETRY_BLOCKS, Topics

LANES = 8
JOBS = 400  # for good servers in a round; as many for bad ones
SHARE, GROWTH = 0.95, 1.1
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
    builder = MessageBuilder(topics, topic, RETRY_BLOCKS)
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
