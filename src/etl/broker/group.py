"""Reading jobs as a member of the group: what is polled, which partitions are ours, where they start.

Knows nothing of jobs, and commits nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import structlog
from kafka import TopicPartition as ClientPartition
from kafka import errors as kafka_errors
from kafka.admin import MemberToRemove
from kafka.consumer.subscription_state import ConsumerRebalanceListener

from etl.broker.connection import (
    admin_client,
    common_of_consumers,
    create_client,
    displaced_message,
    in_words,
    translate_errors,
)
from etl.broker.member import HEARTBEAT_SECONDS, SESSION_TIMEOUT_SECONDS, Assignor, Consumer
from etl.broker.records import as_record
from etl.errors import BrokerRefused
from etl.models.task import Record
from etl.models.wire import Commit, Partition

# Fetched ahead, of each partition and of all: some 500 jobs, however many wait. What is larger comes by itself.
PARTITION_FETCH_BYTES, FETCH_BYTES = 128 << 10, 2 << 20

log = structlog.get_logger(__name__)


class TakenOver(NamedTuple):
    """Where the group stands in a partition, and the partition's `end`: no owner before us received what lies beyond.

    `lost`: the committed offset is gone from the topic, and so many records were never read.
    """

    committed: Commit
    end: int
    lost: int | None = None


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # untyped library
    """Called on the client's I/O thread, where nothing may block: only takes notes and passes revocations on."""

    def __init__(self, group: GroupConsumer, assignor: Assignor) -> None:
        self._group, self._assignor = group, assignor

    def on_partitions_revoked(self, revoked: Iterable[ClientPartition]) -> None:
        self._group.forget(Partition(*tp) for tp in revoked)

    def on_partitions_lost(self, lost: Iterable[ClientPartition]) -> None:
        self._assignor.forget()
        self._group.forget(Partition(*tp) for tp in lost)

    def on_partitions_assigned(self, assigned: Iterable[ClientPartition]) -> None:
        self._group.welcome(Partition(*tp) for tp in assigned)


class GroupConsumer:
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
        assignor = Assignor()
        self._new: set[Partition] = set()
        self._cut: dict[Partition, int] = {}  # where the broker lost what we had read: other records come from there on
        self._taking: Partition | None = None  # being taken over, and not taken away meanwhile
        self._member: str | None = None  # the member id under which the partitions we hold were taken over
        self._polled_at = time.monotonic()
        self._is_silent = False
        with translate_errors(f"broker {bootstrap_servers} cannot be reached"):
            self._client = create_client(
                Consumer,
                **common_of_consumers(bootstrap_servers),
                group_id=group_id,
                group_instance_id=instance_id,
                partition_assignment_strategy=[assignor],
                auto_offset_reset="none",
                isolation_level="read_committed",
                max_poll_records=max_poll_records,
                max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
                fetch_max_bytes=FETCH_BYTES,
                # Also the limit of a rebalance: long enough for a member that is being restarted.
                max_poll_interval_ms=30_000,
                session_timeout_ms=int(SESSION_TIMEOUT_SECONDS * 1000),
                heartbeat_interval_ms=int(HEARTBEAT_SECONDS * 1000),
                metadata_max_age_ms=30_000,
                fetch_max_wait_ms=100,
            )
        with translate_errors(
            "topics cannot be read"
        ):  # without them in its metadata the first assignment would be empty
            for topic in topics:
                self._client.partitions_for_topic(topic)
        self._client.subscribe(topics=list(topics), listener=_Listener(self, assignor))

    def poll(self, timeout: float) -> list[Record]:
        """Return new records, in order within each partition; blocks at most about `timeout` seconds.

        New partitions are silent until `take_over` was called for them. Raises nothing for a broker that is away,
        BrokerRefused when it does not let us be a member, or lets another live process be the one that we are.
        """
        if self._client.is_displaced():
            raise BrokerRefused(displaced_message(self._instance_id))
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
        except kafka_errors.LogTruncationError as error:
            self._go_back(error.divergent_offsets)
            return []
        except kafka_errors.FencedInstanceIdError as error:
            raise BrokerRefused(displaced_message(self._instance_id)) from error
        except kafka_errors.AuthorizationError as error:
            raise BrokerRefused(f"the group's coordinator refuses us: {in_words(error)}") from error
        except kafka_errors.KafkaError as error:
            log.warning("poll failed", error=in_words(error))
            time.sleep(min(timeout, 0.5))
            return []
        finally:
            self._polled_at = time.monotonic()
            self._notice_new_membership()
        return [as_record(raw) for batch in polled.values() for raw in batch]

    def _go_back(self, ends: Mapping[ClientPartition, Any]) -> None:
        """Take over anew what the broker no longer has as far as it was read; `ends`: where it diverges, if known."""
        for tp, end in ends.items():
            partition = Partition(*tp)
            position, is_later = self.position(partition), self._client.leads_later(tp)
            if position is None or is_later is None or (end is not None and position <= end.offset):
                continue  # not ours any more, gone back already, or not to be told now: then it is noticed again
            if end is not None and is_later:  # a topic that was made anew begins with the first epoch: that is no cut
                self._cut[partition] = end.offset
            log.error(
                "records lost: the broker no longer has what was read",
                topic=partition.topic,
                partition=partition.partition,
                goes_on_at=self._cut.get(partition),
            )
            self.welcome([partition])

    def _tell_silence(self, now_silent: bool) -> None:
        if now_silent != self._is_silent:
            self._is_silent = now_silent
            if now_silent:
                log.warning("broker does not answer; transfers that run go on")
            else:
                log.info("broker answers again")

    def new_partitions(self) -> list[Partition]:
        """Return the assigned partitions that wait for `take_over`."""
        return sorted(self._new.intersection(self.assigned())) if self._new else []

    def take_over(self, partition: Partition, timeout: float = 5.0) -> TakenOver | None:
        """Read where the group stands in a partition and start there; `settled` must follow.

        None: not now (broker away, the last owner's transaction still open): call again.
        """
        tp = ClientPartition(*partition)
        limit_ms = timeout * 1000
        self._new.discard(partition)
        self._taking = partition
        self._client.forget_answers()
        membership = self._client.group_metadata()
        try:
            committed = self._client.committed(tp, metadata=True, timeout_ms=limit_ms)
            first = self._client.beginning_offsets([tp], timeout_ms=limit_ms)[tp]
            end = self._client.end_offsets([tp], timeout_ms=limit_ms)[tp]
            lost = None
            cut = self._cut.get(partition)
            if committed is None:
                start = Commit(first, "")
            elif cut is not None:  # what the metadata says of later records was said of those that are lost
                start = Commit(max(first, min(committed.offset, cut)), "")
            elif first <= committed.offset <= end:
                start = Commit(committed.offset, committed.metadata or "")
            else:
                start, lost = Commit(first, ""), max(0, first - committed.offset)
            self._client.seek(tp, start.offset)
        except (kafka_errors.KafkaError, ValueError, KeyError, AssertionError) as error:
            log.debug(
                "partition not ready", topic=partition.topic, partition=partition.partition, error=in_words(error)
            )
            self._put_off(partition)
            return None
        if membership.generation_id < 0 or self._client.group_metadata().member_id != membership.member_id:
            self._put_off(partition)
            return None
        self._member = membership.member_id
        self._cut.pop(partition, None)
        return TakenOver(start, end, lost)

    def _put_off(self, partition: Partition) -> None:
        if self.settled(partition):
            self._new.add(partition)

    def settled(self, partition: Partition) -> bool:
        """Note that its new owner is set up; False: it was taken away before `on_revoked` could find one."""
        is_ours, self._taking = self._taking == partition, None
        return is_ours

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
        since = min(self._client.confirmed_at, self._polled_at)
        return bool(time.monotonic() - since < SESSION_TIMEOUT_SECONDS and self._client.is_member(self._member))

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
            with admin_client(self._bootstrap_servers) as admin:
                admin.remove_group_members(self._group_id, [member])
        except (kafka_errors.KafkaError, OSError) as error:
            log.warning("group not left: its partitions wait for the session to end", error=in_words(error))

    def forget(self, partitions: Iterable[Partition]) -> None:
        """Note that partitions were taken away."""
        gone = list(partitions)
        self._new.difference_update(gone)
        for partition in gone:
            self._cut.pop(partition, None)
        if self._taking in gone:
            self._taking = None
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
            self._cut.clear()
            held = self.assigned()
            self._on_revoked(held)
            self.welcome(held)
