"""FileTransferConsumer: assembles the parts of a consumer, runs the main thread's loop, starts and stops in order.

The main thread owns the Kafka client and never waits for a transfer. Knows no protocol.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog

from etl import identity, logs
from etl.broker import Admin, AheadReader, GroupConsumer, NotAllowed, TransactionalProducer, is_listening, secure
from etl.config import ConfigLoader
from etl.control.book import Book
from etl.control.operations import Operations
from etl.dispatch.dispatcher import Dispatcher
from etl.dispatch.scheduling import CONNECTING_LANES, SPARE_LANES
from etl.errors import BrokerRefused, BrokerUnavailable, OwnershipLost
from etl.intake.admission import ROOMY, Admission
from etl.intake.lookahead import LookAhead
from etl.intake.partitions import MAX_POLL_RECORDS, Partitions
from etl.lanes.lanes import Lanes
from etl.lanes.run import Store
from etl.lanes.runner import Runner
from etl.outcomes.claims import Claims
from etl.outcomes.committer import Committer
from etl.outcomes.evidence import Witness
from etl.outcomes.ledger import Ledger
from etl.outcomes.messages import MessageBuilder
from etl.outcomes.reporter import Reporter
from etl.outcomes.seal import Seal
from etl.retry import tiers
from etl.retry.policy import Policy
from etl.sessions.pools import Pools
from etl.status.health import Health
from etl.status.reports import Reports
from etl.status.snapshot import Snapshots
from etl.topics import companions
from etl.topics.checking import Checker
from etl.topics.names import Topics
from etl.topics.trimming import Trimmer
from etl.transfer import resuming

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.identity import Identity
    from etl.models.wire import Partition

T = TypeVar("T")

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.1
LISTENING_PAUSE_SECONDS = 0.2  # at the start, while nothing listens at the broker's address
BROKER_PAUSE_SECONDS = 1.0  # at the start, after a request to the broker that failed
RESET_SECONDS = 0.7  # limit for lanes to end and remove their partial files once the grace time is over
COMMIT_SECONDS = 1.5  # limit of the last commit
BYSTANDER_SECONDS = 0.2  # limit for trimmer, checker and looking ahead to finish a request


@dataclass(frozen=True)
class Parts:
    """The parts of a consumer, in the order of a job's way through them."""

    group: GroupConsumer
    partitions: Partitions
    admission: Admission
    dispatcher: Dispatcher
    pools: Pools
    lanes: Lanes
    reporter: Reporter
    committer: Committer
    producer: TransactionalProducer
    look_ahead: LookAhead
    trimmer: Trimmer
    checker: Checker
    reports: Reports
    operations: Operations
    health: Health

    def start(self) -> None:
        """Start the threads."""
        # Ends a transaction that a killed predecessor left open, without which its partitions cannot be taken over. If
        # the broker does not answer now, the first commit does so.
        with contextlib.suppress(BrokerUnavailable):
            self.producer.open()
        self.pools.start()
        self.committer.start()
        self.lanes.start()
        self.look_ahead.start()
        self.trimmer.start()
        self.checker.start()
        self.operations.start()


class FileTransferConsumer:
    """Reads jobs from `topic` as a member of `group_id` and transfers their files, until it is stopped.

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
        self._is_stopping = False  # without a lock, as a signal handler sets it, whose thread might hold that lock
        self._is_draining = False
        self._stop_reason = ""
        self._fatal: BaseException | None = None

    def stop(self, reason: str = "stop()") -> None:
        """Request the end: running transfers may finish within the grace time. Any thread, or a signal handler."""
        self._stop_reason = reason
        self._is_draining = False  # whoever wants the end after a drain began gets the usual grace time
        self._is_stopping = True

    def drain(self, reason: str) -> None:
        """Request the end, for which running transfers may take as long as they need. Main thread."""
        self.stop(reason)
        self._is_draining = True

    def start(self) -> None:
        """Consume until `stop` is called; return once everything is committed and closed.

        Raises:
            SettingsError: a topic has settings with which the consumer cannot work, or its identity is in use.
            BrokerUnavailable: the broker refuses this process for good.
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
        """Call `act` as soon as the broker answers; return its result, or None if the consumer is stopped before."""
        last_reason = ""
        while not self._is_stopping:
            me.beat(polls=False)
            try:
                if is_listening(self.bootstrap_servers):
                    return act()
                if not last_reason:
                    last_reason = "nothing listens"
                    log.info("waiting for the broker", bootstrap_servers=self.bootstrap_servers)
                time.sleep(LISTENING_PAUSE_SECONDS)
            except (NotAllowed, BrokerRefused):
                raise
            except BrokerUnavailable as error:
                if str(error) != last_reason:
                    last_reason = str(error)
                    log.warning("waiting for the broker", bootstrap_servers=self.bootstrap_servers, error=last_reason)
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
                me.beat(polls=True, problem=parts.health.problem)
                self._iterate(parts)
        except BrokerUnavailable as error:
            self._fail(error)
        finally:
            self._shut_down(parts)
            log.info("consumer stopped", jobs=parts.reporter.done)

    def _iterate(self, parts: Parts) -> None:
        """Run one iteration of the main thread: take over, poll, admit, defer the overflow, pause and resume."""
        parts.operations.hands.tick()
        parts.partitions.take_over_new()
        parts.pools.sharing.processes = parts.group.workers()
        for record in parts.group.poll(POLL_SECONDS):
            parts.admission.accept(record)
        with logs.together():
            for overflow in parts.dispatcher.overflow():
                parts.reporter.defer_untried(*overflow)
        parts.partitions.steer(window_full=parts.dispatcher.full or parts.operations.hands.takes_nothing)
        parts.look_ahead.watch(parts.partitions.standing())
        now = time.monotonic()
        parts.lanes.tick(now)
        parts.reports.tick(now)
        parts.health.tick(now)

    def _assemble(self, me: Identity, names: Topics, retry_blocks: int) -> Parts | None:
        """Build the parts, from the servers to the topics; return None if stopped before the broker answers."""
        settings = self.config.settings
        ledger = Ledger(me.token)
        pools = Pools(self.config.get_server_config, settings)
        pools.register(self.config.servers.values())
        dispatcher = Dispatcher(pools, settings)
        seal = Seal(settings.group_secret) if settings.group_secret else None
        builder = MessageBuilder(names, self.group_id, retry_blocks, seal=seal)
        reporter = Reporter(
            me.name,
            dispatcher,
            ledger,
            Policy.of(settings),
            builder,
            lambda: self._is_stopping,
            partial(resuming.forget, server_of=pools.server, remember=pools.remember_orphan),
        )
        book = Book()
        runner = Runner(
            settings,
            me.token,
            pools,
            dispatcher,
            reporter,
            Store(settings.store_bytes),
            require_wanted=book.require_wanted,
        )
        lanes = Lanes(
            dispatcher,
            runner.execute,
            settings.workers + SPARE_LANES + CONNECTING_LANES,
            buffer_bytes=settings.buffer_bytes,
            transfer_timeout=settings.transfer_timeout_seconds,
            on_bug=reporter.dead,
            stages=runner,
        )

        look_ahead = LookAhead(
            partial(AheadReader, self.bootstrap_servers),
            names.retry,
            self.group_id,
            self.config,
            ledger.is_done,
            has_room=lambda pair: dispatcher.room(pair) in ROOMY,
        )

        def revoke(gone: list[Partition]) -> None:
            taken = set(gone)
            partitions.revoke(taken)
            lanes.abort(lambda task: task.partition in taken, OwnershipLost("the partition was taken away"))
            dispatcher.drop(lambda task: task.partition in taken)
            look_ahead.forget(taken)

        group = self._once_reachable(
            me,
            lambda: GroupConsumer(
                self.bootstrap_servers,
                self.group_id,
                [names.source, names.retry],
                on_revoked=revoke,  # `poll` calls it; `partitions` exists before the first poll
                instance_id=me.group_instance_id if settings.instance_id_is_set else None,
                leave_on_stop=settings.leave_on_stop,
                max_poll_records=MAX_POLL_RECORDS,
                kind_of=lambda topic, number: tiers.kind_of(number, retry_blocks) if topic == names.retry else topic,
            ),
        )
        if group is None:
            return None
        witness = Witness(names, self.group_id, self.bootstrap_servers, builder.seal)
        claims = Claims(names, self.group_id, settings.on_lost_offsets, witness.ask, self._fail)
        group.decide = claims.decide
        partitions = Partitions(group, ledger, settings.window_records)
        admission = Admission(
            names,
            self.group_id,
            self.config,
            builder,
            partitions,
            ledger,
            dispatcher,
            reporter,
            look_ahead,
            is_done=claims.is_done,
            require_wanted=book.require_wanted,
        )
        producer = TransactionalProducer(self.bootstrap_servers, me.transactional_id, self.group_id)
        checker = Checker(names, settings, Admin(self.bootstrap_servers))
        committer = Committer(
            ledger,
            producer,
            group.membership,
            self._fail,
            interval_seconds=settings.commit_interval_seconds,
            max_records=settings.commit_max_records,
            totals=reporter.totals,
            on_refused=checker.hurry,
        )
        ledger.on_complete = committer.hurry
        snapshots = Snapshots(
            me=me,
            topics=names,
            config=self.config,
            group=group,
            partitions=partitions,
            ledger=ledger,
            dispatcher=dispatcher,
            pools=pools,
            lanes=lanes,
            totals=reporter.totals,
            retry_blocks=retry_blocks,
        )
        return Parts(
            group=group,
            partitions=partitions,
            admission=admission,
            dispatcher=dispatcher,
            pools=pools,
            lanes=lanes,
            reporter=reporter,
            committer=committer,
            producer=producer,
            look_ahead=look_ahead,
            trimmer=Trimmer(names, self.group_id, Admin(self.bootstrap_servers)),
            checker=checker,
            reports=Reports(names, group, partitions, dispatcher),
            operations=Operations.of(
                self.bootstrap_servers, settings, snapshots, book, dispatcher, pools, lanes, reporter, self.drain
            ),
            health=Health([group.problem, committer.problem, lambda _now: checker.problem]),
        )

    def _shut_down(self, parts: Parts) -> None:
        """Stop in order: start no job, let running ones finish, reset the rest, commit once more, leave the group."""
        grace = self.config.settings.shutdown_grace_seconds
        running = len(parts.lanes.runs())
        parts.operations.begin_end(self._stop_reason)
        log.info("stopping", reason=self._stop_reason, running=running, grace_seconds=grace)
        parts.dispatcher.stop()  # jobs that have not started are left to the next owners of their partitions
        drained = self._drain(parts, grace)
        if not drained:
            count = parts.lanes.abort(lambda _task: True, OwnershipLost("the process stops"))
            log.warning("transfers reset", count=count)
            drained = parts.lanes.drain(time.monotonic() + RESET_SECONDS)
        # Clean: no orphan of this process, or of one before it, is left for the next owners to look for.
        clean = drained and parts.reporter.drop_unscanned() and parts.partitions.has_scanned()
        if self._fatal is None and not parts.committer.flush(time.monotonic() + COMMIT_SECONDS, clean=clean):
            log.warning("last commit not confirmed: its jobs may be repeated")
        parts.committer.stop(time.monotonic() + COMMIT_SECONDS)
        if waiting := parts.reporter.ledger.waiting:
            log.warning("outcomes not committed: their jobs are repeated", count=waiting)
        parts.lanes.stop(RESET_SECONDS)
        parts.operations.stop()
        parts.group.close(leave=self._is_draining)
        parts.look_ahead.stop(BYSTANDER_SECONDS)
        parts.checker.stop(BYSTANDER_SECONDS)
        parts.trimmer.stop(BYSTANDER_SECONDS)
        parts.producer.close()
        parts.pools.close()

    def _drain(self, parts: Parts, grace: float) -> bool:
        """Let running transfers finish, for `grace` seconds unless this is a drain; return whether all have ended."""
        drained, end = False, math.inf
        while not drained and time.monotonic() < end and self._fatal is None:
            if not self._is_draining:
                end = min(end, time.monotonic() + grace)
            parts.operations.snapshots.me.beat(polls=True)  # a drain may take hours
            drained = parts.lanes.drain(min(end, time.monotonic() + POLL_SECONDS))
            parts.partitions.pause_all()
            with contextlib.suppress(BrokerUnavailable):
                parts.group.poll(0)  # stays a member, and learns of revocations
        return drained

    def _fail(self, error: BaseException) -> None:
        self._fatal = error
        self.stop(f"{type(error).__name__}: {error}")
