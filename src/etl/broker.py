"""The seam to Kafka, and the only importer of its client: records in, transactions out, time limits on every call.

Written against kafka-python 3.0 (pinned): where its public calls have no time limit or no answer, the private ones
used instead are in the subclasses at the top of this file, and nowhere else.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka import TopicPartition as ClientPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.base import MemberState
from kafka.net.compat import KafkaNetClient
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment
from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch
from kafka.structs import OffsetAndMetadata

from etl.errors import BrokerRefused, BrokerUnavailable, CommitRejected, CommitUnknown, Fenced, MessageTooLarge
from etl.models.task import Record
from etl.models.wire import Batch, Commit, Message, Partition

if TYPE_CHECKING:
    from etl.config import Settings

log = structlog.get_logger(__name__)

SESSION_TIMEOUT_SECONDS = 15.0
HEARTBEAT_SECONDS = 3.0
LATE_HEARTBEAT_SECONDS = 2 * HEARTBEAT_SECONDS
TRANSACTION_TIMEOUT_SECONDS = 10.0
REQUEST_TIMEOUT_SECONDS = 8.0
REQUEST_TIMEOUT_MS = int(REQUEST_TIMEOUT_SECONDS * 1000)
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # what this client is willing to send; topics set their own, lower limits
_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


class _Lenient(bytes):
    """Bytes whose slices become text whatever they hold."""

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        return _Lenient(part) if isinstance(part, bytes) else part

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:  # noqa: ARG002 - never strict
        return super().decode(encoding, "replace")


class _Records(DefaultRecordBatch):  # type: ignore[misc]  # untyped library
    """Reads headers whose names are no UTF-8, which the library refuses, and with them all that follows."""

    _buffer: Any

    def _read_msg(self, *args: Any) -> Any:
        try:
            return super()._read_msg(*args)
        except UnicodeDecodeError:
            strict, self._buffer = self._buffer, _Lenient(self._buffer)
            try:
                return super()._read_msg(*args)
            finally:
                self._buffer = strict


memory_records.DefaultRecordBatch = _Records


class _Consumer(KafkaConsumer):  # type: ignore[misc]  # untyped library
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._confirmed_at = time.monotonic()
        coordinator, beat = self._coordinator, self._coordinator.heartbeat
        joined, answered = coordinator._enable_heartbeat, beat.received_heartbeat  # noqa: SLF001 - there is no public sign of it

        def on_joined() -> None:
            joined()
            self._confirmed_at = time.monotonic()

        def on_answered() -> None:
            # What an answer confirms is the moment of the question: a process that slept reads an old one on waking.
            answered()
            self._confirmed_at = beat.last_send

        coordinator._enable_heartbeat, beat.received_heartbeat = on_joined, on_answered  # noqa: SLF001 - as above

        # A join that outlasts one poll may be finished when the library sees no reason to join any more (its leader has
        # just noted the metadata that was the reason): then nobody collects it, and we are no member, for ever.
        wants_to_join = coordinator.need_rejoin
        coordinator.need_rejoin = lambda: wants_to_join() or coordinator.rejoining

        # What was fetched of a partition and set aside because it was paused comes back only while the slot for records
        # at hand is None; records that were used up stay in the slot. Without traffic elsewhere they would never come.
        fetcher = self._fetcher
        take = fetcher.fetched_records

        def fetched_records(*arguments: Any, **named: Any) -> Any:
            if not fetcher._next_partition_records:  # noqa: SLF001 - the library has no public way
                fetcher._next_partition_records = None  # noqa: SLF001 - as above
            return take(*arguments, **named)

        fetcher.fetched_records = fetched_records

    def forget_unreadable(self) -> None:
        """Drop the fetched records that the last poll met an error in; the next one would not return from them."""
        fetcher = self._fetcher
        left, fetcher._next_partition_records = fetcher._next_partition_records, None  # noqa: SLF001 - no public way
        if left is not None:
            left.drain()

    def is_overdue(self) -> bool:
        """Are we a member whose heartbeat should have been answered by now? While we join there are none."""
        coordinator = self._coordinator
        with coordinator._lock:  # noqa: SLF001 - the library has no public sign of it
            if coordinator.state is not MemberState.STABLE or coordinator.rejoin_needed:
                return False
        beat = coordinator.heartbeat
        return bool(time.monotonic() - max(beat.last_receive, beat.last_reset) > LATE_HEARTBEAT_SECONDS)

    def unconfirmed(self) -> float:
        """Return for how long nobody has confirmed that we are a member, in seconds.

        The library's own times start anew when it merely finds the coordinator again.
        """
        return time.monotonic() - self._confirmed_at

    def is_displaced(self) -> bool:
        """Has another live member taken our group instance id? The library stops its heartbeats then, and is silent."""
        coordinator = self._coordinator
        with coordinator._lock:  # noqa: SLF001 - the library has no public sign of it
            joined = coordinator.state is MemberState.STABLE and not coordinator.rejoining
            is_silent = not coordinator._heartbeat_enabled  # noqa: SLF001 - as above
            return joined and is_silent and not coordinator.is_dynamic_member()


class _Assignor(CooperativeStickyAssignor):  # type: ignore[misc]  # untyped library
    """Shares out each topic by itself, and claims nothing that was lost.

    The library's own balances the sum over all topics: one process could get the jobs and the other the partitions
    of `T-retry`. And a member that was thrown out would claim what others own by now.
    """

    def assign(self, cluster: Any, members: Any) -> dict[str, ConsumerProtocolAssignment]:
        shares: dict[str, list[tuple[str, list[int]]]] = {member.member_id: [] for member in members}
        for topic in sorted({topic for member in members for topic in member.metadata.topics}):
            narrowed = [_narrowed(member, topic) for member in members if topic in member.metadata.topics]
            for member_id, share in super().assign(cluster, narrowed).items():
                shares[member_id] += share.assigned_partitions
        return {who: ConsumerProtocolAssignment(self.version, share, b"") for who, share in shares.items()}

    def forget(self) -> None:
        """Claim nothing when we join next."""
        self.member_assignment = None


def _narrowed(member: Any, topic: str) -> SimpleNamespace:
    said = member.metadata
    owned = [claim for claim in said.owned_partitions or () if claim.topic == topic]
    narrow = SimpleNamespace(topics=[topic], owned_partitions=owned, generation_id=said.generation_id)
    return SimpleNamespace(member_id=member.member_id, metadata=narrow)


class _Producer(KafkaProducer):  # type: ignore[misc]  # untyped library
    """A producer whose transactional calls end: the library waits for their replies without a limit."""

    def _within(self, result: Any, what: str) -> None:
        self._sender.wakeup()
        if not result.wait(timeout_ms=REQUEST_TIMEOUT_MS):
            raise kafka_errors.KafkaTimeoutError(f"no reply to {what} within {REQUEST_TIMEOUT_SECONDS:g} s")

    def send_offsets_to_transaction(self, offsets: Any, group_metadata: Any) -> None:
        self._within(self._transaction_manager.send_offsets_to_transaction(offsets, group_metadata), "the offsets")

    def commit_transaction(self) -> None:
        self._within(self._transaction_manager.begin_commit(), "the commit")

    def abort_transaction(self) -> None:
        self._within(self._transaction_manager.begin_abort(), "the abort")

    def discard(self) -> None:
        """End at once, whatever is pending: `close` alone would raise for that before it ends its thread."""
        self._sender.force_close()
        with contextlib.suppress(Exception):  # it is broken already; whatever it still says changes nothing
            self.close(timeout=0)


_security: dict[str, Any] = {}  # of every client of this process


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn the client's errors into `BrokerUnavailable`, naming what was tried."""
    try:
        yield
    except (kafka_errors.KafkaError, OSError) as error:
        raise BrokerUnavailable(f"{what}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if (
        isinstance(error, kafka_errors.KafkaTimeoutError)
        and _security.get("security_protocol", "PLAINTEXT") != "PLAINTEXT"
    ):
        said += f" (or {_security['security_protocol']} was refused: its login, or its certificate)"
    return said


def _made(kind: Any, **settings: Any) -> Any:
    """Construct a client of the library; one that cannot reach the broker leaves no thread and no socket behind."""
    networks: list[Any] = []

    def network(**told: Any) -> Any:
        networks.append(KafkaNetClient(**told))
        return networks[-1]

    try:
        return kind(kafka_client=network, **settings)
    except BaseException:
        for left in networks:
            left.close()
            left._manager._net.close()  # noqa: SLF001 - the constructor failed before it could be closed
        raise


def secure(settings: Settings) -> None:
    """Make every client of this process talk and log in to Kafka as the settings say."""
    global _security  # noqa: PLW0603 - set up once for the process, as its logs are
    protocol = settings.kafka_security_protocol
    _security = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        _security |= {
            "ssl_check_hostname": settings.kafka_check_hostname,
            "ssl_cafile": settings.kafka_ca_file or None,
        }
    if protocol.startswith("SASL"):
        _security |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_username,
            "sasl_plain_password": settings.kafka_password,
        }


def _common(bootstrap_servers: str) -> dict[str, Any]:
    return _security | {
        "bootstrap_servers": [server.strip() for server in bootstrap_servers.split(",")],
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "bootstrap_timeout_ms": 5000,
        "reconnect_backoff_max_ms": 1000,
        "metrics_enabled": False,
    }


def is_listening(bootstrap_servers: str, timeout: float = 1.0) -> bool:
    """Tell whether any of these addresses takes connections: asked before a client, which is slow and loud about it."""
    for server in bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":") if ":" in server.rpartition("]")[2] else (server.strip(), "", "")
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port or 9092)), timeout):
            return True
    return False


def _record(raw: Any) -> Record:
    return Record(
        raw.topic,
        raw.partition,
        raw.offset,
        raw.key,
        raw.value,
        tuple((name, value or b"") for name, value in raw.headers),
        raw.timestamp / 1000,
    )


# --- reading jobs as a member of the group --------------------------------------------------------------------


class Truncated(NamedTuple):
    """A partition whose committed offset is gone from the topic: `lost` records were never read."""

    partition: Partition
    lost: int
    start: int


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # untyped library
    """Called on the client's I/O thread, where nothing may block: only takes notes and passes revocations on."""

    def __init__(self, intake: Intake, assignor: _Assignor) -> None:
        self._intake, self._assignor = intake, assignor

    def on_partitions_revoked(self, revoked: Iterable[ClientPartition]) -> None:
        self._intake.forget(Partition(*tp) for tp in revoked)

    def on_partitions_lost(self, lost: Iterable[ClientPartition]) -> None:
        self._assignor.forget()
        self._intake.forget(Partition(*tp) for tp in lost)

    def on_partitions_assigned(self, assigned: Iterable[ClientPartition]) -> None:
        self._intake.welcome(Partition(*tp) for tp in assigned)


class Intake:
    """A member of the consumer group: polls jobs, and knows which partitions are ours.

    One thread calls it, but for `membership` and `is_member`, which any thread may call. `on_revoked` is called on
    the client's I/O thread, before anybody else can own the partitions, and must not block.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        group_id: str,
        topics: Sequence[str],
        *,
        on_revoked: Callable[[list[Partition]], None],
        instance_id: str | None = None,
        leave_on_stop: bool = False,
        max_poll_records: int = 200,
    ) -> None:
        self._on_revoked = on_revoked
        self._instance_id = instance_id
        self._leave_on_stop = leave_on_stop
        self._bootstrap_servers = bootstrap_servers
        self._group_id = group_id
        assignor = _Assignor()
        self._new: set[Partition] = set()
        self._member: str | None = None  # the member id under which the partitions we hold were taken over
        self._polled_at = time.monotonic()
        self._is_silent = False
        with translated(f"broker {bootstrap_servers} cannot be reached"):
            self._client = _made(
                _Consumer,
                **_common(bootstrap_servers) | {"request_timeout_ms": 30_000},
                group_id=group_id,
                group_instance_id=instance_id,
                partition_assignment_strategy=[assignor],
                auto_offset_reset="none",
                enable_auto_commit=False,
                isolation_level="read_committed",
                allow_auto_create_topics=False,
                max_poll_records=max_poll_records,
                # Also the limit of a rebalance: long enough for a member that is being restarted.
                max_poll_interval_ms=30_000,
                session_timeout_ms=int(SESSION_TIMEOUT_SECONDS * 1000),
                heartbeat_interval_ms=int(HEARTBEAT_SECONDS * 1000),
                metadata_max_age_ms=30_000,
                fetch_max_wait_ms=100,
            )
        with translated("topics cannot be read"):  # without them in its metadata the first assignment would be empty
            for topic in topics:
                self._client.partitions_for_topic(topic)
        self._client.subscribe(topics=list(topics), listener=_Listener(self, assignor))

    def poll(self, timeout: float) -> list[Record]:
        """Return new records, in order within each partition; blocks at most about `timeout` seconds.

        New partitions are silent until `take_over` was called for them. Raises nothing for a broker that is away,
        BrokerRefused when it does not let us be a member, or lets another live process be the one that we are.
        """
        if self._client.is_displaced():
            raise BrokerRefused(_displaced(self._instance_id))
        self._tell_silence(self._client.is_overdue())
        if self._is_silent:
            # The client's own wait is a busy loop then, which piles up callbacks. Without time it never joins, though.
            time.sleep(timeout)
            timeout = 0.0
        try:
            polled = self._client.poll(timeout_ms=int(timeout * 1000))
        except kafka_errors.NoOffsetForPartitionError:
            return []  # a partition without a committed offset: `take_over` finds its start
        except kafka_errors.OffsetOutOfRangeError as error:
            gone = [Partition(*tp) for tp in getattr(error, "args", [{}])[0] or ()]
            self.welcome(gone or self.assigned())
            return []
        except kafka_errors.FencedInstanceIdError as error:
            raise BrokerRefused(_displaced(self._instance_id)) from error
        except kafka_errors.AuthorizationError as error:
            raise BrokerRefused(f"the group's coordinator refuses us: {_said(error)}") from error
        except kafka_errors.KafkaError as error:
            if isinstance(error, kafka_errors.CorruptRecordError):
                self._client.forget_unreadable()
            log.warning("poll failed", error=_said(error))
            time.sleep(min(timeout, 0.5))
            return []
        finally:
            self._polled_at = time.monotonic()
            self._notice_new_membership()
        return [_record(raw) for batch in polled.values() for raw in batch]

    def _tell_silence(self, now_silent: bool) -> None:
        if now_silent != self._is_silent:
            self._is_silent = now_silent
            if now_silent:
                log.warning("broker does not answer; transfers that run go on")
            else:
                log.info("broker answers again")

    def new_partitions(self) -> list[Partition]:
        """Return the assigned partitions that wait for `take_over`."""
        return sorted(self._new)

    def take_over(self, partition: Partition, timeout: float = 5.0) -> tuple[Commit, Truncated | None] | None:
        """Read where the group stands in a partition and start there: (what is committed, what was lost).

        None: not now (broker away, the last owner's transaction still open): call again.
        """
        tp = ClientPartition(*partition)
        limit_ms = timeout * 1000
        try:
            committed = self._client.committed(tp, metadata=True, timeout_ms=limit_ms)
            first = self._client.beginning_offsets([tp], timeout_ms=limit_ms)[tp]
            truncated = None
            if committed is None:
                offset, metadata = first, ""
            else:
                offset, metadata = committed.offset, committed.metadata or ""
                last = self._client.end_offsets([tp], timeout_ms=limit_ms)[tp]
                if not first <= offset <= last:
                    truncated = Truncated(partition, max(0, first - offset), first)
                    offset, metadata = first, ""
            self._client.seek(tp, offset)
        except (kafka_errors.KafkaError, ValueError, KeyError, AssertionError) as error:
            log.debug("partition not ready", topic=partition.topic, partition=partition.partition, error=_said(error))
            return None
        self._new.discard(partition)
        self._member = self._client.group_metadata().member_id
        return Commit(offset, metadata), truncated

    def position(self, partition: Partition) -> int | None:
        """Return the offset of the next record to come, past transaction markers; None when it is not known now."""
        try:
            state = self._client._subscription.assignment.get(ClientPartition(*partition))  # noqa: SLF001 - the public call may block
            return None if state is None or state.position is None else int(state.position.offset)
        except (AttributeError, kafka_errors.KafkaError):
            return None

    def behind(self, partition: Partition) -> int:
        """Return how many offsets lie between the position and the last known end; 0 when that is not known."""
        with contextlib.suppress(KeyError, AssertionError, kafka_errors.KafkaError):
            end, position = self._client.highwater(ClientPartition(*partition)), self.position(partition)
            if end is not None and position is not None:
                return max(0, int(end) - position)
        return 0

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Stop fetching from partitions; their positions stay."""
        for partition in partitions:
            with contextlib.suppress(KeyError, kafka_errors.KafkaError):  # revoked meanwhile
                self._client.pause(ClientPartition(*partition))

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Fetch from partitions again."""
        for partition in partitions:
            with contextlib.suppress(KeyError, kafka_errors.KafkaError):  # revoked meanwhile
                self._client.resume(ClientPartition(*partition))

    def seek(self, partition: Partition, offset: int) -> None:
        """Fetch a partition from `offset` on."""
        with contextlib.suppress(KeyError, ValueError, kafka_errors.KafkaError):  # revoked meanwhile
            self._client.seek(ClientPartition(*partition), offset)

    def assigned(self) -> list[Partition]:
        """Return the partitions that are ours now."""
        return sorted(Partition(*tp) for tp in self._client.assignment())

    def membership(self) -> object | None:
        """Return what fences our commits; None while we are no member, or a new one that took nothing over yet."""
        now: Any = self._client.group_metadata()
        return None if now.generation_id < 0 or now.member_id != self._member else cast("object", now)

    def is_member(self) -> bool:
        """Can nobody else own our partitions yet? Confirmed and polled within the session limit."""
        fresh = max(self._client.unconfirmed(), time.monotonic() - self._polled_at) < SESSION_TIMEOUT_SECONDS
        return fresh and self.membership() is not None

    def close(self, timeout: float = 3.0) -> None:
        """Leave the group (a static member only disconnects, unless it was made with `leave_on_stop`)."""
        with contextlib.suppress(kafka_errors.KafkaError, RuntimeError):
            self._client.close(autocommit=False, timeout_ms=int(timeout * 1000))
        if self._leave_on_stop and self._instance_id is not None:
            self._leave()

    def _leave(self) -> None:
        """Give the partitions of a static member to the others now; its own goodbye leaves them to wait for it."""
        member = MemberToRemove(group_instance_id=self._instance_id, reason="stopped")
        try:
            with _admin(self._bootstrap_servers) as admin:
                admin.remove_group_members(self._group_id, [member])
        except (kafka_errors.KafkaError, OSError) as error:
            log.warning("group not left: its partitions wait for the session to end", error=_said(error))

    def forget(self, partitions: Iterable[Partition]) -> None:
        """Note that partitions were taken away."""
        gone = list(partitions)
        self._new.difference_update(gone)
        self._on_revoked(gone)

    def welcome(self, partitions: Iterable[Partition]) -> None:
        """Note new partitions; they stay paused until they are taken over."""
        for partition in partitions:
            self._new.add(partition)
            self.pause([partition])

    def _notice_new_membership(self) -> None:
        # A member that was thrown out and joins again within one call keeps partitions without any callback,
        # though somebody else may have owned them in between: take them over anew.
        now = self._client.group_metadata()
        if self._member is not None and now.generation_id >= 0 and now.member_id != self._member:
            self._member = None
            held = self.assigned()
            self._on_revoked(held)
            self.welcome(held)


# --- committing outcomes --------------------------------------------------------------------------------------


class Outbox:
    """A transactional producer that survives: whatever happens to a transaction, the next one starts clean.

    One thread at a time. Its `transactional_id` must be unique to a live process and the same after a restart.
    """

    def __init__(self, bootstrap_servers: str, transactional_id: str, group_id: str = "") -> None:
        self._bootstrap_servers = bootstrap_servers
        self._transactional_id = transactional_id
        self._group_id = group_id  # whose offsets are committed
        self._producer: _Producer | None = None

    def open(self) -> None:
        """Become the one holder of the transactional id: ends what a predecessor left open, fences a rival."""
        if self._producer is not None:
            return
        producer = None
        try:
            producer = _made(
                _Producer,
                **_common(self._bootstrap_servers),
                transactional_id=self._transactional_id,
                transaction_timeout_ms=int(TRANSACTION_TIMEOUT_SECONDS * 1000),
                delivery_timeout_ms=int(TRANSACTION_TIMEOUT_SECONDS * 1000),
                max_block_ms=int(TRANSACTION_TIMEOUT_SECONDS * 1000),
                max_request_size=MAX_MESSAGE_BYTES,
                batch_size=256 * 1024,
                linger_ms=2,
                retry_backoff_ms=5,  # the wait between back-to-back transactions
                allow_auto_create_topics=False,
            )
            producer.init_transactions()
        except (kafka_errors.KafkaError, OSError) as error:
            if producer is not None:
                producer.discard()
            raise BrokerUnavailable(f"no transactional producer {self._transactional_id}: {_said(error)}") from error
        self._producer = producer

    def commit(self, batch: Batch) -> None:
        """Send a batch's messages and offsets in one transaction.

        Raises CommitRejected (surely not committed), CommitUnknown (ask with `read_back`), MessageTooLarge,
        Fenced (surely not committed; somebody uses our id, or the transaction timed out while the broker was away),
        BrokerRefused (surely not committed; another live process is the member of the group that we were).
        """
        self._transact(batch.messages, batch.offsets, batch.membership)

    def transact(self, messages: Sequence[Message]) -> None:
        """Send messages in one transaction; raises as `commit`."""
        self._transact(messages, None, None)

    def _transact(
        self, messages: Sequence[Message], offsets: Mapping[Partition, Commit] | None, membership: object
    ) -> None:
        try:
            self.open()
        except BrokerUnavailable as error:
            raise CommitRejected(str(error)) from error
        producer = self._producer
        assert producer is not None  # noqa: S101 - open() raised otherwise
        try:
            producer.begin_transaction()
            self._send(producer, messages)
            if offsets:
                producer.send_offsets_to_transaction(
                    {ClientPartition(*tp): OffsetAndMetadata(at, said) for tp, (at, said) in offsets.items()},
                    membership,
                )
        except MessageTooLarge:
            self._abort(producer)
            self.discard()  # its sequence numbers do not survive a refused batch: the next ones would be refused, too
            raise
        except kafka_errors.FencedInstanceIdError as error:
            self._abort(producer)
            raise BrokerRefused(_displaced(getattr(membership, "group_instance_id", None))) from error
        except (kafka_errors.KafkaError, OSError) as error:
            if _is_fence(error):
                self.discard()
                raise Fenced(f"transactional id {self._transactional_id}: {_said(error)}") from error
            self._abort(producer)
            raise CommitRejected(_said(error)) from error
        try:
            producer.commit_transaction()
        except (kafka_errors.KafkaError, OSError) as error:
            self.discard()
            raise CommitUnknown(_said(error)) from error

    def _send(self, producer: _Producer, messages: Sequence[Message]) -> None:
        futures: list[Any] = []
        try:
            for index, message in enumerate(messages):
                try:
                    future = producer.send(
                        message.topic,
                        value=message.value,
                        key=message.key,
                        headers=list(message.headers),
                        partition=message.partition,
                    )
                except kafka_errors.MessageSizeTooLargeError as error:
                    raise MessageTooLarge(_said(error), index=index) from error
                futures.append(future)
            # Not flush(): it fails when the client splits a batch that is too large for the topic.
            end = time.monotonic() + TRANSACTION_TIMEOUT_SECONDS
            for future in futures:
                future.get(timeout=max(0.0, end - time.monotonic()))
        except kafka_errors.KafkaError as error:  # one refusal makes the sends that follow it fail, in other words
            refused = {
                index: future.exception
                for index, future in enumerate(futures)
                if isinstance(future.exception, _TOO_LARGE)
            }
            if not refused:
                raise
            # messages that share a produce request fail together: the largest is the one to shorten
            index = max(refused, key=lambda i: len(messages[i].value or b""))
            raise MessageTooLarge(_said(refused[index]), index=index) from error

    def _abort(self, producer: _Producer) -> None:
        try:
            producer.abort_transaction()
        except (kafka_errors.KafkaError, OSError):
            self.discard()  # the next open() ends the transaction

    def discard(self) -> None:
        """Drop the producer; the next `open` makes a new one, which ends a transaction left open."""
        if self._producer is not None:
            self._producer.discard()
            self._producer = None

    def recover(self, batch: Batch) -> dict[Partition, Commit]:
        """End the batch's transaction one way or the other, then read what the group has committed.

        Raises BrokerUnavailable: not known yet, call again.
        """
        self.open()
        tps = [ClientPartition(*partition) for partition in batch.offsets]
        with translated("committed offsets cannot be read"), _admin(self._bootstrap_servers) as admin:
            found = admin.list_group_offsets({self._group_id: tps})[self._group_id]
        return {Partition(*tp): Commit(told.offset, told.metadata or "") for tp, told in found.items()}

    def close(self, timeout: float = 3.0) -> None:
        """Close the producer in good order."""
        if self._producer is not None:
            try:
                self._producer.close(timeout=timeout)
            except (kafka_errors.KafkaError, OSError):
                self._producer.discard()
            self._producer = None


def _displaced(instance_id: str | None) -> str:
    return f"another live process is group member {instance_id}, too: each needs its own ETL_INSTANCE_ID or slot"


def _is_fence(error: BaseException) -> bool:
    """Was the producer fenced? Noticed by its own thread first, the client wraps that in a plain KafkaError."""
    fences = (
        kafka_errors.ProducerFencedError,
        kafka_errors.InvalidProducerEpochError,
    )  # the second: of a produce request
    return any(isinstance(part, fences) for part in (error, *error.args))


# --- plain reading and writing: the command line --------------------------------------------------------------


class Reader:
    """Reads a topic outside any group."""

    def __init__(self, bootstrap_servers: str, topic: str, *, committed: bool = True) -> None:
        self._topic = topic
        with translated(f"broker {bootstrap_servers} cannot be reached"):
            self._client = _made(
                KafkaConsumer,
                **_common(bootstrap_servers) | {"request_timeout_ms": 30_000},
                group_id=None,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                isolation_level="read_committed" if committed else "read_uncommitted",
                allow_auto_create_topics=False,
                fetch_max_wait_ms=100,
            )

    def ends(self) -> dict[int, int]:
        """Return the end offset of every partition. Raises BrokerUnavailable, also for a topic that is not there."""
        with translated(f"topic {self._topic} cannot be read"):
            tps = self._partitions()
            ends = self._client.end_offsets(tps, timeout_ms=REQUEST_TIMEOUT_MS)
            return {tp.partition: end for tp, end in ends.items()}

    def _partitions(self) -> list[ClientPartition]:
        found = self._client.partitions_for_topic(self._topic)
        if not found:
            raise BrokerUnavailable(f"topic {self._topic} does not exist")
        return [ClientPartition(self._topic, partition) for partition in sorted(found)]

    def scan(self, until: dict[int, int] | None = None, start: dict[int, int] | None = None) -> Iterator[Record]:
        """Yield the records from `start` (default: the beginning) to `until` (default: the ends now)."""
        until = dict(self.ends() if until is None else until)
        tps = self._assign(start)
        while any(self._at(tp) < until.get(tp.partition, 0) for tp in tps):
            for record in self._poll(0.5):
                if record.offset < until.get(record.partition, 0):
                    yield record

    def follow(self, start: dict[int, int]) -> Iterator[Record | None]:
        """Yield records from `start` for ever; None about every half second when there is none."""
        self._assign(start)
        while True:
            records = self._poll(0.5)
            yield from records
            if not records:
                yield None

    def _assign(self, start: dict[int, int] | None) -> list[ClientPartition]:
        with translated(f"topic {self._topic} cannot be read"):
            tps = self._partitions()
            self._client.assign(tps)
            first = self._client.beginning_offsets(tps, timeout_ms=REQUEST_TIMEOUT_MS)
            for tp in tps:
                self._client.seek(tp, max(first[tp], (start or {}).get(tp.partition, 0)))
            return tps

    def _at(self, tp: ClientPartition) -> int:
        with translated(f"topic {self._topic} cannot be read"):
            return int(self._client.position(tp, timeout_ms=REQUEST_TIMEOUT_MS) or 0)

    def _poll(self, timeout: float) -> list[Record]:
        with translated(f"topic {self._topic} cannot be read"):
            polled = self._client.poll(timeout_ms=int(timeout * 1000))
        return [_record(raw) for batch in polled.values() for raw in batch]

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(kafka_errors.KafkaError):
            self._client.close(autocommit=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Delivery:
    """A message on its way."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def result(self, timeout: float = TRANSACTION_TIMEOUT_SECONDS) -> tuple[int, int]:
        """Wait for the acknowledgement; return (partition, offset). Raises BrokerUnavailable."""
        with translated("message was not acknowledged"):
            told = self._future.get(timeout=timeout)
        return told.partition, told.offset


class Writer:
    """Sends messages outside transactions, idempotently and acknowledged by all replicas."""

    def __init__(self, bootstrap_servers: str) -> None:
        with translated(f"broker {bootstrap_servers} cannot be reached"):
            self._producer = _made(
                KafkaProducer,
                **_common(bootstrap_servers),
                max_request_size=MAX_MESSAGE_BYTES,
                max_block_ms=int(TRANSACTION_TIMEOUT_SECONDS * 1000),
                delivery_timeout_ms=30_000,
                linger_ms=5,
                allow_auto_create_topics=False,
            )

    def send(self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> Delivery:
        """Send one message; ask the returned delivery for its acknowledgement."""
        with translated(f"message to {topic} was refused"):
            return Delivery(self._producer.send(topic, value=value, key=key, headers=list(headers)))

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until everything sent was acknowledged or failed."""
        with translated("messages were not acknowledged"):
            self._producer.flush(timeout=timeout)

    def close(self) -> None:
        """Disconnect, sending what is left."""
        with contextlib.suppress(kafka_errors.KafkaError):
            self._producer.close(timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- topics ---------------------------------------------------------------------------------------------------


class NotAllowed(BrokerUnavailable):
    """Raised when the broker does not let us create or describe topics."""


class TopicFacts(NamedTuple):
    """An existing topic: number of partitions, and the settings that we depend on."""

    partitions: int
    max_message_bytes: int
    settings: dict[str, str]


@contextlib.contextmanager
def _admin(bootstrap_servers: str) -> Iterator[Any]:
    admin = _made(KafkaAdminClient, **{k: v for k, v in _common(bootstrap_servers).items() if k != "metrics_enabled"})
    try:
        yield admin
    finally:
        with contextlib.suppress(kafka_errors.KafkaError):
            admin.close()


class Admin:
    """Creates and describes topics."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers

    def describe(self, names: Sequence[str]) -> dict[str, TopicFacts]:
        """Return the facts of those topics that exist. Raises BrokerUnavailable."""
        with (
            translated(f"broker {self._bootstrap_servers} cannot describe topics"),
            _admin(self._bootstrap_servers) as admin,
        ):
            known = set(admin.list_topics())
            wanted = [name for name in names if name in known]
            if not wanted:
                return {}
            partitions = {t["name"]: len(t["partitions"]) for t in admin.describe_topics(wanted)}
            settings = admin.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, name) for name in wanted], config_filter="all"
            )["topic"]
        return {name: _facts(partitions[name], settings[name]) for name in wanted}

    def create(self, name: str, partitions: int, settings: Mapping[str, str]) -> bool:
        """Create a topic and wait until it is usable; False when it was there. Raises NotAllowed, BrokerUnavailable."""
        wanted = {name: {"num_partitions": partitions, "configs": dict(settings)}}
        with (
            translated(f"topic {name} cannot be created"),
            _admin(self._bootstrap_servers) as admin,
        ):
            try:
                admin.create_topics(wanted, timeout_ms=REQUEST_TIMEOUT_MS)
                created = True
            except kafka_errors.TopicAlreadyExistsError:
                created = False
            except (kafka_errors.AuthorizationError, kafka_errors.PolicyViolationError) as error:
                raise NotAllowed(f"topic {name} is not there and may not be created: {_said(error)}") from error
            admin.wait_for_topics([name], timeout_ms=REQUEST_TIMEOUT_MS)
        return created


def _facts(partitions: int, settings: Mapping[str, Any]) -> TopicFacts:
    plain = {key: str(entry["value"]) for key, entry in settings.items()}
    return TopicFacts(partitions, int(plain.get("max.message.bytes", 1_048_588)), plain)
