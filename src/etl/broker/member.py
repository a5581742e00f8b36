"""The library's consumer as a group member: tracks how certain its membership is, and assigns partitions.

Uses private names of the library to read what it does not expose and to repair its defects. Knows nothing about the
records.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from kafka import KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.base import MemberState
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment

from etl.broker import fetching

SESSION_TIMEOUT_SECONDS = 15.0  # without a heartbeat for that long the broker gives our partitions to others
HEARTBEAT_SECONDS = 3.0  # between two heartbeats: several may be lost before the session ends
LATE_HEARTBEAT_SECONDS = 2 * HEARTBEAT_SECONDS  # without an answer for that long the broker counts as silent
OBSTACLE_SECONDS = 15.0  # behind an open transaction, before that is told: ours end within ten
LEADERLESS_SECONDS = 30.0  # without a known leader of a partition, before that is told: a new one is chosen in less


class Consumer(KafkaConsumer):  # type: ignore[misc]  # untyped library
    """A consumer that exposes its standing in the group, with repairs for the ways in which the library gets stuck."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # When the coordinator last confirmed our membership (monotonic). The library's own times cannot be used: they
        # restart when it merely finds the coordinator again.
        self.confirmed_at = time.monotonic()
        coordinator, beat = self._coordinator, self._coordinator.heartbeat
        joined, answered = coordinator._enable_heartbeat, beat.received_heartbeat  # noqa: SLF001 - there is no public hook

        def on_joined() -> None:
            joined()
            self.confirmed_at = ended.pop()[0] if ended else time.monotonic()

        def on_answered() -> None:
            # An answer confirms the moment of its request: a process that was suspended may read an old answer.
            answered()
            self.confirmed_at = beat.last_send

        coordinator._enable_heartbeat, beat.received_heartbeat = on_joined, on_answered  # noqa: SLF001 - as above

        # The next poll does not collect a join that ended between two polls: it starts another. If the leader does,
        # all members join again, and on a busy machine that never ends. So the result of a join is kept, with its time.
        attempt = coordinator._do_join_and_sync_async  # noqa: SLF001 - as above
        ended: list[tuple[float, Any]] = []

        async def join() -> Any:
            if not ended:
                assignment = await attempt()
                ended.append((time.monotonic(), assignment))
            return ended[0][1]

        coordinator._do_join_and_sync_async = join  # noqa: SLF001 - as above

        # A join may outlast one poll. If the reason for it is gone by then (the leader has just stored the metadata
        # that caused it), the library never collects the finished join, and we stay outside the group for ever.
        wants_to_join = coordinator.need_rejoin
        coordinator.need_rejoin = lambda: wants_to_join() or coordinator.rejoining

        # The library reports lost partitions when it begins a join, but not when it continues one. A member evicted
        # during a join must therefore begin again: otherwise it claims partitions that others own by now.
        reset = coordinator.reset_generation

        def reset_generation(*arguments: Any, **named: Any) -> None:
            reset(*arguments, **named)
            coordinator.rejoining = False
            ended.clear()

        coordinator.reset_generation = reset_generation
        self._obstructed: dict[Any, tuple[int, float]] = {}  # positions behind an open transaction, and since when
        self._leaderless: dict[Any, float] = {}  # partitions without a known leader, and since when
        self.stable: dict[Any, int] = {}  # up to which offset each partition may be read: open transactions hide more
        fetching.mend(self._fetcher, self.stable)

    @property
    def heard_at(self) -> float:
        """When a broker last said anything (monotonic)."""
        return float(self._net.heard_at)

    def forget_answers(self) -> None:
        """Discard answers about committed offsets that came too late: the library would give them to the next call."""
        self._coordinator._offset_fetch_futures.clear()  # noqa: SLF001 - the library has no public way

    def describe_obstacle(self, now: float) -> str:
        """Say which partition cannot be read on: no leader is known, or a transaction is open; empty if all can."""
        if (leaderless := self._describe_leaderless(now)) is not None:
            return leaderless
        before, self._obstructed = self._obstructed, {}
        for tp, state in list(self._subscription.assignment.items()):
            if state.paused or state.position is None or state.highwater is None:
                continue
            at = state.position.offset
            if at != self.stable.get(tp) or at >= state.highwater:
                continue
            known, since = before.get(tp, (at, now))
            self._obstructed[tp] = at, since if known == at else now
            if known == at and now - since > OBSTACLE_SECONDS:
                return (
                    f"{tp.topic} {tp.partition}: waiting behind an open transaction at offset {at}, for "
                    f"{now - since:.0f} s now, with {state.highwater - at} records behind it"
                )
        return ""

    def _describe_leaderless(self, now: float) -> str | None:
        before, self._leaderless = self._leaderless, {}
        for tp in list(self._subscription.assignment):
            if self._cluster.leader_for_partition(tp) in (None, -1):
                since = self._leaderless[tp] = before.get(tp, now)
                if now - since > LEADERLESS_SECONDS:
                    return f"{tp.topic} {tp.partition}: no broker is known that leads it, for {now - since:.0f} s now"
        return None

    def leads_later(self, tp: Any) -> bool | None:
        """Has the partition's leader changed since the last record was read? None if that is not known now."""
        state, now = self._subscription.assignment.get(tp), self._cluster.leader_epoch_for_partition(tp)
        if state is None or state.position is None or now is None or now < 0:
            return None
        return bool(now > state.position.leader_epoch)

    def is_overdue(self) -> bool:
        """Should a heartbeat have been answered by now? False during a join, when none are sent."""
        coordinator = self._coordinator
        with coordinator._lock:  # noqa: SLF001 - the library does not expose its state
            if coordinator.state is not MemberState.STABLE or coordinator.rejoin_needed:
                return False
        beat = coordinator.heartbeat
        return bool(time.monotonic() - max(beat.last_receive, beat.last_reset) > LATE_HEARTBEAT_SECONDS)

    def is_member(self, member_id: str | None) -> bool:
        """Are we in the group, in any generation, under this member id?

        Called several times for each job, so it does not take the library's lock, which may be held for a whole
        request. That is safe: id and generation are one object, which the library replaces as a whole.
        """
        now = self._coordinator._generation  # noqa: SLF001 - the public call takes the lock
        return bool(now.generation_id >= 0 and now.member_id == member_id)

    def is_displaced(self) -> bool:
        """Has another live process taken our group instance id? The library then silently stops its heartbeats."""
        coordinator = self._coordinator
        with coordinator._lock:  # noqa: SLF001 - the library does not expose its state
            joined = coordinator.state is MemberState.STABLE and not coordinator.rejoining
            is_silent = not coordinator._heartbeat_enabled  # noqa: SLF001 - as above
            return joined and is_silent and not coordinator.is_dynamic_member()


class Assignor(CooperativeStickyAssignor):  # type: ignore[misc]  # untyped library
    """A cooperative sticky assignor that balances each kind of partitions separately.

    The library's own balances the sum over all topics, so one process could get all jobs and another one all partitions
    of `T-retry`. It also lets an evicted member claim partitions that others own by now: see `forget`.
    """

    def __init__(self, kind_of: Callable[[str, int], object] = lambda topic, _partition: topic) -> None:
        super().__init__()
        self._kind_of = kind_of
        self._workers = 1  # members with partitions, as the leader told last

    def workers(self) -> int:
        """Return how many members have partitions."""
        return self._workers

    def assign(self, cluster: Any, members: Any) -> dict[str, ConsumerProtocolAssignment]:
        """Assign the partitions of each kind to the members that subscribe to their topic."""
        shares: dict[str, dict[str, list[int]]] = {member.member_id: {} for member in members}
        for topic in sorted({topic for member in members for topic in member.metadata.topics}):
            kinds: dict[object, set[int]] = {}
            for partition in cluster.partitions_for_topic(topic) or ():
                kinds.setdefault(self._kind_of(topic, partition), set()).add(partition)
            for partitions in kinds.values():
                narrowed = [
                    _narrowed(member, topic, partitions) for member in members if topic in member.metadata.topics
                ]
                kind = SimpleNamespace(topics={topic: partitions}.keys, partitions_for_topic={topic: partitions}.get)
                for member_id, share in super().assign(kind, narrowed).items():
                    for _, assigned in share.assigned_partitions:
                        shares[member_id].setdefault(topic, []).extend(assigned)
        told = str(sum(map(bool, shares.values()))).encode()
        return {
            who: ConsumerProtocolAssignment(self.version, [(topic, sorted(its)) for topic, its in share.items()], told)
            for who, share in shares.items()
        }

    def on_assignment(self, assignment: Any, generation: int) -> None:
        """Note how many members work."""
        super().on_assignment(assignment, generation)
        told = bytes(assignment.user_data or b"")
        self._workers = max(1, int(told)) if told.isdigit() else 1

    def forget(self) -> None:
        """Claim no partition at the next join."""
        self.member_assignment = None


def _narrowed(member: Any, topic: str, partitions: set[int]) -> SimpleNamespace:
    said = member.metadata
    owned = [
        SimpleNamespace(topic=topic, partitions=[number for number in claim.partitions if number in partitions])
        for claim in said.owned_partitions or ()
        if claim.topic == topic
    ]
    narrow = SimpleNamespace(topics=[topic], owned_partitions=owned, generation_id=said.generation_id)
    return SimpleNamespace(member_id=member.member_id, metadata=narrow)
