"""FileTransferConsumer: poll → dispatch → outcome → commit; partitions come and go; start and stop in order.

The main thread owns the Kafka client and never waits for a transfer. Knows no protocol.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import structlog

from etl import identity, logs
from etl.broker import Admin, GroupConsumer, NotAllowed, TransactionalProducer, is_listening, secure
from etl.config import ConfigLoader
from etl.dispatch.dispatcher import Dispatcher
from etl.dispatch.scheduling import CONNECTING_LANES, SPARE_LANES
from etl.errors import BrokerRefused, BrokerUnavailable, OwnershipLost
from etl.intake.admission import Admission
from etl.intake.partitions import POLLED, Partitions
from etl.lanes.lanes import Lanes
from etl.lanes.run import Store
from etl.lanes.runner import Runner
from etl.outcomes.committer import Committer
from etl.outcomes.ledger import Ledger
from etl.outcomes.messages import MessageBuilder
from etl.outcomes.reporter import Reporter
from etl.retry.policy import Policy
from etl.sessions.pools import Pools
from etl.status.reports import Reports
from etl.topics import companions
from etl.topics.companions import Topics
from etl.topics.trimming import Trimmer

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.identity import Identity
    from etl.models.wire import Partition

T = TypeVar("T")

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.1
LISTENING_PAUSE_SECONDS = 0.2
BROKER_PAUSE_SECONDS = 1.0  # between tries to reach the broker at the start
RESET_SECONDS = 0.7  # for lanes to end, and their partial files to be removed, once the grace time is over
COMMIT_SECONDS = 1.5  # for the last commit
TRIMMER_SECONDS = 0.2  # for a look at the broker


@dataclass(frozen=True)
class Parts:
    """What a consumer is made of, from the topics to the servers and back."""

    group: GroupConsumer
    partitions: Partitions
    admission: Admission
    dispatcher: Dispatcher
    pools: Pools
    lanes: Lanes
    reporter: Reporter
    committer: Committer
    producer: TransactionalProducer
    trimmer: Trimmer
    reports: Reports

    def start(self) -> None:
        """Start the threads. A transaction that a killed predecessor left open is ended first: its partitions wait."""
        with contextlib.suppress(BrokerUnavailable):  # then the first commit does it
            self.producer.open()
        self.pools.start()
        self.committer.start()
        self.lanes.start()
        self.trimmer.start()


class FileTransferConsumer:
    """Takes jobs from `topic` as a member of `group_id` and transfers their files, until it is stopped.

    `config` defaults to the settings of the environment and `.env`.
    """

    def __init__(
        self,
        topic: str,
        group_id: str,
        bootstrap_servers: str,
        config: ConfigLoader | None = None,
    ) -> None:
        self.topic = topic
        self.group_id = group_id
        self.bootstrap_servers = bootstrap_servers
        self.config = config or ConfigLoader()
        self._is_stopping = False  # set by a signal handler: no lock, as it may have interrupted who holds it
        self._stop_reason = ""
        self._fatal: BaseException | None = None

    def stop(self, reason: str = "stop()") -> None:
        """Ask for the end: running transfers may finish within the grace time. Safe in a signal handler."""
        self._stop_reason = reason
        self._is_stopping = True

    def start(self) -> None:
        """Consume until `stop`; returns when everything is committed and closed.

        Raises SettingsError for topics that cannot work, BrokerUnavailable when Kafka refuses us for good.
        """
        settings = self.config.settings
        secure(settings)
        me = identity.claim(self.group_id, self.topic, settings.instance_id, settings.slot, self.bootstrap_servers)
        try:
            names = Topics.of(self.topic, settings)
            blocks = self._once_reachable(me, lambda: companions.ensure(names, settings, Admin(self.bootstrap_servers)))
            if blocks is not None:
                self._consume(me, names, blocks)
        finally:
            me.release()
        if self._fatal is not None:
            raise self._fatal

    def _once_reachable(self, me: Identity, act: Callable[[], T]) -> T | None:
        """Do what needs the broker, as soon as it is there; None when we were stopped before."""
        said = ""
        while not self._is_stopping:
            me.beat(polls=False)
            try:
                if is_listening(self.bootstrap_servers):
                    return act()
                if not said:
                    said = "nobody listens"
                    log.info("waiting for the broker", bootstrap_servers=self.bootstrap_servers)
                time.sleep(LISTENING_PAUSE_SECONDS)
            except (NotAllowed, BrokerRefused):
                raise
            except BrokerUnavailable as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("waiting for the broker", bootstrap_servers=self.bootstrap_servers, error=said)
                time.sleep(BROKER_PAUSE_SECONDS)
        return None

    def _consume(self, me: Identity, names: Topics, retry_blocks: int) -> None:
        parts = self._assemble(me, names, retry_blocks)
        if parts is None:
            return
        log.info(
            "consumer started",
            topic=self.topic,
            group=self.group_id,
            worker=me.name,
            bootstrap_servers=self.bootstrap_servers,
            lanes=self.config.settings.workers,
            servers=len(self.config.servers),
        )
        try:
            parts.start()
            while not self._is_stopping:
                me.beat(polls=True)
                self._iterate(parts)
        except BrokerUnavailable as error:
            self._fail(error)
        finally:
            self._shut_down(parts)
            log.info("consumer stopped", jobs=parts.reporter.done)

    def _iterate(self, parts: Parts) -> None:
        """Do one round of the main thread: take over, poll, admit, defer what is too much, pause and resume."""
        parts.partitions.take_over_new()
        for record in parts.group.poll(POLL_SECONDS):
            parts.admission.accept(record)
        with logs.together():
            for surplus in parts.dispatcher.overflow():
                parts.reporter.defer_untried(*surplus)
        parts.partitions.steer(window_full=parts.dispatcher.full)
        now = time.monotonic()
        parts.lanes.tick(now)
        parts.reports.tick(now)

    def _assemble(self, me: Identity, names: Topics, retry_blocks: int) -> Parts | None:
        """Build the parts from the servers up to the topics; None when we were stopped before the broker answered."""
        settings = self.config.settings
        ledger = Ledger(me.token)
        pools = Pools(self.config.get_server_config, settings)
        pools.register(self.config.servers.values())
        dispatcher = Dispatcher(pools, settings)
        builder = MessageBuilder(names, self.group_id, retry_blocks)
        reporter = Reporter(me.name, dispatcher, ledger, Policy.of(settings), builder, lambda: self._is_stopping)
        runner = Runner(settings, me.token, pools, dispatcher, reporter, Store(settings.store_bytes))
        lanes = Lanes(
            dispatcher,
            runner.execute,
            settings.workers + SPARE_LANES + CONNECTING_LANES,
            buffer_bytes=settings.buffer_bytes,
            transfer_timeout=settings.transfer_timeout_seconds,
            on_bug=reporter.dead,
            stages=runner,
        )

        def revoked(gone: list[Partition]) -> None:
            taken = set(gone)
            partitions.revoked(taken)
            lanes.abort(lambda task: task.partition in taken, OwnershipLost("the partition was taken away"))
            dispatcher.drop(lambda task: task.partition in taken)

        group = self._once_reachable(
            me,
            lambda: GroupConsumer(
                self.bootstrap_servers,
                self.group_id,
                [names.source, names.retry],
                on_revoked=revoked,  # called by `poll` at the earliest: `partitions` is there by then
                instance_id=me.group_instance_id if settings.instance_id_is_set else None,
                leave_on_stop=settings.leave_on_stop,
                max_poll_records=POLLED,
            ),
        )
        if group is None:
            return None
        partitions = Partitions(group, ledger, settings.window_records)
        producer = TransactionalProducer(self.bootstrap_servers, me.transactional_id, self.group_id)
        committer = Committer(
            ledger,
            producer,
            group.membership,
            self._fail,
            interval_seconds=settings.commit_interval_seconds,
            max_records=settings.commit_max_records,
        )
        ledger.on_complete = committer.hurry
        return Parts(
            group=group,
            partitions=partitions,
            admission=Admission(names, self.group_id, self.config, builder, partitions, ledger, dispatcher, reporter),
            dispatcher=dispatcher,
            pools=pools,
            lanes=lanes,
            reporter=reporter,
            committer=committer,
            producer=producer,
            trimmer=Trimmer(names, self.group_id, Admin(self.bootstrap_servers)),
            reports=Reports(names, group, partitions, dispatcher),
        )

    def _shut_down(self, parts: Parts) -> None:
        """End in order: nothing new in, what runs may finish, the rest is reset, one last commit, leave the group."""
        grace = self.config.settings.shutdown_grace_seconds
        running = len(parts.lanes.runs())
        log.info("stopping", reason=self._stop_reason, running=running, grace_seconds=grace)
        parts.dispatcher.stop()  # what waits is not started: whoever owns the partitions next does it
        drained = self._drain(parts, time.monotonic() + grace)
        if not drained:
            count = parts.lanes.abort(lambda _task: True, OwnershipLost("the process stops"))
            log.warning("transfers reset", count=count)
            drained = parts.lanes.drain(time.monotonic() + RESET_SECONDS)
        tidy = drained and parts.reporter.give_up_waiting() and parts.partitions.has_scanned()
        if self._fatal is None and not parts.committer.flush(time.monotonic() + COMMIT_SECONDS, clean=tidy):
            log.warning("last commit not confirmed: what it held is repeated")
        if parts.committer.stop(time.monotonic() + COMMIT_SECONDS):
            with logs.together():
                parts.reporter.ledger.write()  # those files are in place, and the log says so
        parts.lanes.stop(RESET_SECONDS)
        parts.group.close()
        parts.trimmer.stop(TRIMMER_SECONDS)
        parts.producer.close()
        parts.pools.close()

    def _drain(self, parts: Parts, end: float) -> bool:
        """Let running transfers finish until `end` (monotonic); return whether all did."""
        drained = False
        while not drained and time.monotonic() < end and self._fatal is None:
            drained = parts.lanes.drain(min(end, time.monotonic() + POLL_SECONDS))
            parts.partitions.pause_all()
            with contextlib.suppress(BrokerUnavailable):
                parts.group.poll(0)  # stay a member, and hear of revocations
        return drained

    def _fail(self, error: BaseException) -> None:
        self._fatal = error
        self.stop(f"{type(error).__name__}: {error}")
