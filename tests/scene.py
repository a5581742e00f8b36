"""A consumer process without Kafka and servers: what admission, runner and reporter are tested with.

Dispatcher, pools, ledger and message builder are real; the servers' sessions and the partitions are fakes.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest

import pretend
from etl import errors
from etl.config import ConfigLoader
from etl.dispatch.dispatcher import Dispatcher
from etl.intake.admission import Admission
from etl.intake.lookahead import LookAhead
from etl.lanes.run import Run, Store
from etl.lanes.runner import Runner
from etl.models import header
from etl.models.message import TransferResult
from etl.models.task import Facts, Record, Task
from etl.models.wire import Batch, Message, Partition
from etl.outcomes.ledger import Ledger
from etl.outcomes.messages import MessageBuilder
from etl.outcomes.reporter import Reporter
from etl.outcomes.seal import Seal
from etl.retry.policy import Policy
from etl.sessions.pools import Pools
from etl.topics.names import Topics
from etl.transfer import receipts, relay, resuming

NOW = 1_700_000_000.0
P0 = Partition("jobs", 0)
JOB = {
    "job_id": "j1",
    "source": {"hostname": "A", "path": "/in/a"},
    "destination": {"hostname": "B", "path": "/out/a"},
    "metadata": {"n": 1},
}
ENVIRONMENT = {
    f"{name}_{key}": value
    for name in ("A", "B")
    for key, value in {"TYPE": "ftp", "HOST": name.lower(), "USER": "u", "PASS": "p"}.items()
}
DOWN = errors.ServerUnavailable("refused", server="B")


class FakePartitions:
    """All partitions are held, owned and not delayed."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.held: dict[Partition, int] = {}
        self.delayed: dict[Partition, tuple[int, float]] = {}
        self.seen_by_predecessor = self.stands = False  # of the last delay; so is `may_go`
        self.may_go: Callable[[], bool] | None = None
        self.unclean = False  # jobs have to look for orphans of the last owner
        self.is_owner = True

    def epoch(self, partition: Partition) -> int | None:
        return self.held.get(partition)

    def is_delayed(self, partition: Partition) -> bool:
        return partition in self.delayed

    def delay(
        self,
        partition: Partition,
        offset: int,
        until: float,
        *,
        seen_by_predecessor: bool,
        may_go: Callable[[], bool] | None = None,
        stands: bool = False,
    ) -> None:
        self.delayed[partition] = (offset, until)
        self.stands = stands
        self.seen_by_predecessor, self.may_go = seen_by_predecessor, may_go

    def orphan_scan_since(self, partition: Partition, offset: int) -> float | None:
        return 0.0 if self.unclean else None

    def owns(self, partition: Partition, epoch: int) -> bool:
        return self.is_owner and self.ledger.owns(partition, epoch)


class Scene:
    """A process in which the test itself accepts records, runs jobs one by one, and commits."""

    def __init__(self, environ: Mapping[str, str] | None = None, **values: Any) -> None:
        self.clock = pretend.Clock(NOW)
        self.settings = pretend.settings(workers=2, **values)
        config = ConfigLoader(environ={**ENVIRONMENT, **(environ or {})})
        self.world = pretend.World()
        self.world.configs = config.servers
        self.pools = Pools(config.get_server_config, self.settings, create=self.world.create)
        self.passed = pretend.Clock(0.0)  # seconds that a test adds to the monotonic clock
        self.dispatcher = Dispatcher(self.pools, self.settings, lambda: time.monotonic() + self.passed())
        self.ledger = Ledger("token")
        self.topics = Topics.of("jobs", self.settings)
        seal = Seal(self.settings.group_secret) if self.settings.group_secret else None
        self.builder = MessageBuilder(self.topics, "group", 1, self.clock, seal)
        self.partitions = FakePartitions(self.ledger)
        for partition in (P0, *(Partition("jobs-retry", number) for number in range(4))):
            self.partitions.held[partition] = self.ledger.assign(partition, 0)
        self.stopping = threading.Event()
        policy = Policy(2, 1.0, 300.0, 3600.0, jitter=lambda: 0.5)
        forget = partial(resuming.forget, server_of=self.pools.server, remember=self.pools.remember_orphan)
        self.reporter = Reporter(
            "worker/1", self.dispatcher, self.ledger, policy, self.builder, self.stopping.is_set, forget
        )
        self.runner = Runner(self.settings, "cafe", self.pools, self.dispatcher, self.reporter, Store(1 << 20))
        self.ahead: list[Record] = []
        self.look_ahead = LookAhead(
            lambda _most: self,  # type: ignore[arg-type,return-value]
            self.topics.retry,
            "group",
            config,
            self.ledger.is_done,
            has_room=lambda _pair: True,
        )
        self.admission = Admission(
            self.topics,
            "group",
            config,
            self.builder,
            self.partitions,  # type: ignore[arg-type]
            self.ledger,
            self.dispatcher,
            self.reporter,
            self.look_ahead,
            self.clock,
        )
        self.offset = 0

    def accept(
        self,
        value: object = JOB,
        headers: tuple[tuple[str, bytes], ...] = (),
        partition: Partition = P0,
        timestamp: float = NOW,
        fault: str | None = None,
    ) -> Record:
        raw = value if isinstance(value, bytes | None) else json.dumps(value).encode()
        record = Record(*partition, self.offset, b"key", raw, headers, timestamp, fault)
        self.offset += 1
        self.admission.accept(record)
        return record

    def stands_behind(self, value: object, partition: Partition = P0, *headers: tuple[str, bytes]) -> None:
        """Have it known that far ahead in a partition there is this message."""
        self.ahead = [Record(*partition, 10_000, b"key", json.dumps(value).encode(), headers)]
        self.look_ahead.watch({partition: 0})
        self.look_ahead.look(self)  # type: ignore[arg-type]

    def read(self, _starts: object) -> list[Record]:
        """Be the reader of what is ahead."""
        return self.ahead

    def run(self, relayed: Callable[[], receipts.Receipt]) -> Task:
        """Run the next job of the dispatcher as a lane would, with `relayed` in place of its relay."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(relay, "run", lambda *_: relayed())
            patch.setattr(relay, "finish", lambda *_: relayed().size_bytes)
            return self.run_next()

    def run_next(self) -> Task:
        """Run the next job with the real relay, once its servers are connected to one by one; return it."""
        ran: list[Task] = []
        while (taken := self.dispatcher.take(0)) is not None:
            task, lease = taken
            run = Run(task, lease, 0.0, None, lambda: memoryview(bytearray(16)))
            self.runner.execute(run)
            self.dispatcher.finish(task, run.again_in)
            ran.append(task)
            if lease.is_pair:
                break
        return ran[-1]

    def admit(self) -> Task:
        """Accept a job; return its task, which the dispatcher no longer holds."""
        self.accept()
        (task,) = self.dispatcher.drop(lambda _task: True)
        return task

    def defer_overflow(self) -> None:
        for overflow in self.dispatcher.overflow():
            self.reporter.defer_untried(*overflow)

    def commit(self) -> Batch | None:
        batch = self.ledger.batch(100, now=self.clock(), membership=object)
        if batch is not None:
            self.ledger.end_batch(batch, committed=True)
        return batch

    def messages(self) -> dict[str, Message]:
        batch = self.commit()
        return {message.topic: message for message in batch.messages} if batch is not None else {}


def fail_with(error: BaseException) -> Callable[[], receipts.Receipt]:
    def relayed() -> receipts.Receipt:
        raise error

    return relayed


def succeed() -> receipts.Receipt:
    return receipts.Receipt(11, "size", facts=Facts(11, 1.0))


def fail_leaving_a_partial_file(
    error: errors.EtlError, act: Callable[[], object] = lambda: None
) -> Callable[..., receipts.Receipt]:
    def run(task: Task, *_: object) -> receipts.Receipt:
        task.leaves_partial = True
        act()
        raise error

    return run


def deferred_record(*more: tuple[str, bytes]) -> dict[str, Any]:
    """Return the arguments with which `Scene.accept` takes a due job from T-retry; `more`: headers."""
    headers = ((header.GROUP, b"group"), (header.ORIGIN, b"jobs-0-7"), *more)
    return {"headers": headers, "partition": Partition("jobs-retry", 1), "timestamp": NOW - 3600}


def result_in(message: Message) -> TransferResult:
    assert message.value is not None
    return TransferResult.from_json(message.value)
