"""Reads records as a member of the consumer group: polls, and knows which partitions are ours and where they start.

Knows nothing about jobs, and commits nothing.
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

# Limits of what is fetched ahead, per partition and in all: some 500 jobs, which bounds memory however many wait. A
# record that is larger comes all the same, alone.
PARTITION_FETCH_BYTES, FETCH_BYTES = 128 << 10, 2 << 20

# Seconds without a word of the broker, and outside the group (a rebalance may take 30), before we count as unwell.
SILENCE_SECONDS, OUTSIDE_SECONDS = 20.0, 60.0

log = structlog.get_logger(__name__)


class TakenOver(NamedTuple):
    """Where the group stands in a partition that we took over.

    `end` is the partition's end offset at that time: no earlier owner has received anything from there on. `lost` is
    how many records were deleted from the topic before the group read them; None if it lost none.
    """

    committed: Commit
    end: int
    lost: int | None = None
    first: int = 0  # the first offset that the partition holds
    is_new: bool = False  # the group has committed nothing here, or Kafka has forgotten it
    as_read: bool = True  # `committed` is as the group has it; False: the topic does not hold that offset


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # untyped library
    """Called on the client's I/O thread, where nothing may block: takes notes and passes revocations on."""

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
    """A member of the consumer group: polls records, and knows which partitions are ours.

    `kind_of` says of which kind a partition of a topic is: members share each kind evenly.

    Only one thread may call it, except `membership` and `is_member`, which any thread may call. `on_revoked` must not
    block: it is called on the client's I/O thread, before any other member can own the partitions, or by the calling
    thread, when it learns only afterwards that they were lost.
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
        kind_of: Callable[[str, int], object] = lambda topic, _partition: topic,
    ) -> None:
        self._on_revoked = on_revoked
        # Where a partition starts; None: not known yet. To be set before the first poll.
        self.decide: Callable[[Partition, TakenOver], TakenOver | None] = lambda _, taken: taken
        self._instance_id = instance_id
        self._leave_on_stop = leave_on_stop
        self._bootstrap_servers = bootstrap_servers
        self._group_id = group_id
        assignor = Assignor(kind_of)
        self.workers = assignor.workers  # how many members have partitions
        self._new: set[Partition] = set()  # assigned, and not taken over yet
        self._cut: dict[Partition, int] = {}  # offset from which on the broker lost records that we had read
        self._taking: Partition | None = None  # being taken over; None again as soon as it is revoked meanwhile
        self._member: str | None = None  # the member id under which our partitions were taken over
        self._polled_at = time.monotonic()
        self._is_silent = False  # the broker leaves our heartbeats unanswered
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
                # Also the time limit of a rebalance: long enough for a member that is being restarted.
                max_poll_interval_ms=30_000,
                session_timeout_ms=int(SESSION_TIMEOUT_SECONDS * 1000),
                heartbeat_interval_ms=int(HEARTBEAT_SECONDS * 1000),
                metadata_max_age_ms=30_000,
                fetch_max_wait_ms=100,
            )
        # The client must know the topics before it joins: otherwise its first assignment would be empty.
        with translate_errors("topics cannot be read"):
            for topic in topics:
                self._client.partitions_for_topic(topic)
        self._client.subscribe(topics=list(topics), listener=_Listener(self, assignor))

    def __repr__(self) -> str:
        state = "silent" if self._is_silent else "member" if self.is_member() else "not a member"
        return (
            f"<GroupConsumer {self._group_id} {self._instance_id or self._member or 'unnamed'} {state} "
            f"assigned={len(self.assigned())} to_take_over={len(self._new)}>"
        )

    def poll(self, timeout: float) -> list[Record]:
        """Return new records, in order within each partition; block for about `timeout` seconds at most.

        A new partition yields nothing before `take_over`. While the broker is away, the list is empty.

        Raises:
            BrokerRefused: if the broker does not let us join, or another live process uses our group instance id.
        """
        if self._client.is_displaced():
            raise BrokerRefused(displaced_message(self._instance_id))
        self._tell_silence(self._client.is_overdue())
        if self._is_silent:
            # Wait here: the client's own wait is then a busy loop that piles up callbacks. It must still be polled
            # (with a timeout of 0), as it joins again only within a poll.
            time.sleep(timeout)
            timeout = 0.0
        try:
            polled = self._client.poll(timeout_ms=int(timeout * 1000))
        except kafka_errors.NoOffsetForPartitionError:
            return []  # a partition without a committed offset: `take_over` decides where it starts
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
            raise BrokerRefused(f"Kafka denies access to group {self._group_id}: {in_words(error)}") from error
        except kafka_errors.KafkaError as error:
            log.warning("poll failed", error=in_words(error))
            time.sleep(min(timeout, 0.5))
            return []
        finally:
            self._polled_at = time.monotonic()
            self._notice_new_membership()
        return [as_record(raw) for batch in polled.values() for raw in batch]

    def _go_back(self, ends: Mapping[ClientPartition, Any]) -> None:
        """Have partitions taken over again whose log the broker truncated below our position.

        `ends` says for each partition where its log diverges from what we read; None if the broker does not know.
        """
        for tp, end in ends.items():
            partition = Partition(*tp)
            position, is_later = self.position(partition), self._client.leads_later(tp)
            if position is None or is_later is None or (end is not None and position <= end.offset):
                continue  # revoked, gone back already, or not known now: the client will report it again
            # Only under a later leader was the log truncated: a topic that was deleted and created again restarts at
            # the first leader epoch, and its committed offsets are handled like any that the topic does not hold.
            if end is not None and is_later:
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
                log.warning("broker does not answer; running transfers go on")
            else:
                log.info("broker answers again")

    def new_partitions(self) -> list[Partition]:
        """Return the assigned partitions that `take_over` must be called for."""
        return sorted(self._new.intersection(self.assigned())) if self._new else []

    def take_over(
        self, partition: Partition, set_up: Callable[[TakenOver], None], timeout: float = 5.0
    ) -> TakenOver | None:
        """Start a partition where the group stands, and let `set_up` prepare its new owner.

        Each question to the broker may block for `timeout` seconds. The partition stays paused. `decide` may
        choose another start, or none yet.

        Returns:
            Where the group stands; None if the partition is not ours to work on. Then either the broker is away or the
            last owner's transaction is still open, so `new_partitions` offers it again; or it was revoked meanwhile,
            and `on_revoked` has been called after `set_up`.
        """
        taken = self._start(partition, timeout)
        if taken is None:
            return None
        decided = self.decide(partition, taken)
        if decided is None:
            self._postpone(partition)
            return None
        if decided.committed.offset != taken.committed.offset:
            self.seek(partition, decided.committed.offset)
        taken = decided
        set_up(taken)
        # A revocation before this line may have found nothing to revoke: repeat it. A later one finds what was set up.
        if not self._is_still_ours(partition):
            self._on_revoked([partition])
            return None
        return taken

    def _start(self, partition: Partition, timeout: float) -> TakenOver | None:
        """Seek to where the group stands, and return that; None if it cannot be read now."""
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
            lost, as_read = None, True
            cut = self._cut.get(partition)
            if committed is None:
                start = Commit(first, "")
            elif cut is not None:
                # The metadata describes records behind the committed offset. They may be other ones now: drop it.
                start, as_read = Commit(max(first, min(committed.offset, cut)), ""), False
            elif first <= committed.offset <= end:
                start = Commit(committed.offset, committed.metadata or "")
            else:
                start, lost, as_read = Commit(first, ""), max(0, first - committed.offset), False
            self._client.seek(tp, start.offset)
        except (kafka_errors.KafkaError, ValueError, KeyError, AssertionError) as error:
            log.debug(
                "partition not ready", topic=partition.topic, partition=partition.partition, error=in_words(error)
            )
            self._postpone(partition)
            return None
        # The answers count only if we were the same member before and after: otherwise another one may have owned the
        # partition in between and committed more.
        if membership.generation_id < 0 or self._client.group_metadata().member_id != membership.member_id:
            self._postpone(partition)
            return None
        self._member = membership.member_id
        self._cut.pop(partition, None)
        return TakenOver(start, end, lost, first, is_new=committed is None, as_read=as_read)

    def _postpone(self, partition: Partition) -> None:
        if self._is_still_ours(partition):
            self._new.add(partition)

    def _is_still_ours(self, partition: Partition) -> bool:
        """End a takeover: was the partition not revoked since it began?"""
        is_ours, self._taking = self._taking == partition, None
        return is_ours

    def position(self, partition: Partition) -> int | None:
        """Return the offset of the next record, past transaction markers; None if it is not known now."""
        try:
            state = self._client._subscription.assignment.get(ClientPartition(*partition))  # noqa: SLF001 - the public call may block
            return None if state is None or state.position is None else int(state.position.offset)
        except (AttributeError, kafka_errors.KafkaError):
            return None

    def behind(self, partition: Partition) -> int:
        """Return the number of offsets from the position to the last known end; 0 if that is not known."""
        with contextlib.suppress(KeyError, AssertionError, kafka_errors.KafkaError):
            end, position = self._client.highwater(ClientPartition(*partition)), self.position(partition)
            if end is not None and position is not None:
                return max(0, int(end) - position)
        return 0

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Stop fetching from partitions and keep their positions."""
        for partition in partitions:
            with contextlib.suppress(KeyError, kafka_errors.KafkaError):  # revoked meanwhile
                self._client.pause(ClientPartition(*partition))

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Fetch from partitions again."""
        for partition in partitions:
            with contextlib.suppress(KeyError, kafka_errors.KafkaError):  # revoked meanwhile
                self._client.resume(ClientPartition(*partition))

    def seek(self, partition: Partition, offset: int) -> None:
        """Continue a partition at `offset`."""
        with contextlib.suppress(KeyError, ValueError, kafka_errors.KafkaError):  # revoked meanwhile
            self._client.seek(ClientPartition(*partition), offset)

    def assigned(self) -> list[Partition]:
        """Return the partitions assigned to us now, in order."""
        return sorted(Partition(*tp) for tp in self._client.assignment())

    def membership(self) -> object | None:
        """Return the group metadata that fences our commits; None while we hold no partition as the current member."""
        now: Any = self._client.group_metadata()
        return None if now.generation_id < 0 or now.member_id != self._member else cast("object", now)

    def is_member(self) -> bool:
        """Is it certain that nobody else owns our partitions yet?

        It is while the coordinator has confirmed us, and this process has polled, within SESSION_TIMEOUT_SECONDS.
        """
        since = min(self._client.confirmed_at, self._polled_at)
        return bool(time.monotonic() - since < SESSION_TIMEOUT_SECONDS and self._client.is_member(self._member))

    def problem(self, now: float) -> str:
        """Say what keeps this member from reading; empty if nothing does. `now`: monotonic."""
        silent = now - self._client.heard_at
        if silent > SILENCE_SECONDS:
            return f"nothing heard from the broker for {silent:.0f} s"
        outside = now - self._client.confirmed_at
        if outside > OUTSIDE_SECONDS:
            return f"not confirmed as a member of group {self._group_id} for {outside:.0f} s"
        return str(self._client.describe_obstacle(now))

    def close(self, timeout: float = 3.0, *, leave: bool = False) -> None:
        """Leave the group within `timeout` seconds.

        A static member only disconnects, except with `leave` or `leave_on_stop`.
        """
        with contextlib.suppress(kafka_errors.KafkaError, RuntimeError):
            self._client.close(autocommit=False, timeout_ms=int(timeout * 1000))
        if (leave or self._leave_on_stop) and self._instance_id is not None:
            self._leave()

    def _leave(self) -> None:
        """Remove this static member from the group, so that the others get its partitions at once."""
        member = MemberToRemove(group_instance_id=self._instance_id, reason="stopped")
        try:
            with admin_client(self._bootstrap_servers) as admin:
                admin.remove_group_members(self._group_id, [member])
        except (kafka_errors.KafkaError, OSError) as error:
            log.warning("group not left: partitions stay idle until the session times out", error=in_words(error))

    def forget(self, partitions: Iterable[Partition]) -> None:
        """Note that partitions were revoked, and tell `on_revoked`. Called on the client's I/O thread."""
        gone = list(partitions)
        self._new.difference_update(gone)
        for partition in gone:
            self._cut.pop(partition, None)
        if self._taking in gone:
            self._taking = None
        self._on_revoked(gone)

    def welcome(self, partitions: Iterable[Partition]) -> None:
        """Note partitions to be taken over, and pause them until then."""
        for partition in partitions:
            self._new.add(partition)
            self.pause([partition])

    def _notice_new_membership(self) -> None:
        # A member that is evicted and joins again within one poll keeps its partitions without any callback, although
        # another member may have owned them in between: take them over again.
        now = self._client.group_metadata()
        if self._member is not None and now.generation_id >= 0 and now.member_id != self._member:
            self._member = None
            self._cut.clear()
            held = self.assigned()
            self._on_revoked(held)
            self.welcome(held)
