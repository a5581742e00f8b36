"""The library's consumer as a member of a group: how sure its membership is, and how partitions are shared out.

Written against private names of the library, to see what it does not say and to mend what it forgets. Knows nothing of
what the intake does with the records.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from kafka import KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.base import MemberState
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment

SESSION_TIMEOUT_SECONDS = 15.0
HEARTBEAT_SECONDS = 3.0
LATE_HEARTBEAT_SECONDS = 2 * HEARTBEAT_SECONDS


class Consumer(KafkaConsumer):  # type: ignore[misc]  # untyped library
    """A consumer that tells how it stands with its group, and in which nothing gets stuck."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # When somebody confirmed last that we are a member. The library's own times start anew when it merely finds the
        # coordinator again.
        self.confirmed_at = time.monotonic()
        coordinator, beat = self._coordinator, self._coordinator.heartbeat
        joined, answered = coordinator._enable_heartbeat, beat.received_heartbeat  # noqa: SLF001 - there is no public sign of it

        def on_joined() -> None:
            joined()
            self.confirmed_at = ended.pop()[0] if ended else time.monotonic()

        def on_answered() -> None:
            # What an answer confirms is the moment of the question: a process that slept reads an old one on waking.
            answered()
            self.confirmed_at = beat.last_send

        coordinator._enable_heartbeat, beat.received_heartbeat = on_joined, on_answered  # noqa: SLF001 - as above

        # A join that ends between two polls is not collected by the next one, which begins another. After the leader's
        # all members join again: on a busy machine that goes on and on. So its end is kept, with the time of it.
        attempt = coordinator._do_join_and_sync_async  # noqa: SLF001 - as above
        ended: list[tuple[float, Any]] = []

        async def join() -> Any:
            if not ended:
                assignment = await attempt()
                ended.append((time.monotonic(), assignment))
            return ended[0][1]

        coordinator._do_join_and_sync_async = join  # noqa: SLF001 - as above

        # A join that outlasts one poll may be finished when the library sees no reason to join any more (its leader has
        # just noted the metadata that was the reason): then nobody collects it, and we are no member, for ever.
        wants_to_join = coordinator.need_rejoin
        coordinator.need_rejoin = lambda: wants_to_join() or coordinator.rejoining

        # Who is thrown out while it joins hears of what it lost when the library begins a join, but not when it goes on
        # with one; and would claim it as its own, against who has it by now.
        reset = coordinator.reset_generation

        def reset_generation(*arguments: Any, **named: Any) -> None:
            reset(*arguments, **named)
            coordinator.rejoining = False
            ended.clear()

        coordinator.reset_generation = reset_generation
        _mend(self._fetcher)

    def forget_answers(self) -> None:
        """Ask anew for committed offsets: an answer that came too late waits for the next question, however long."""
        self._coordinator._offset_fetch_futures.clear()  # noqa: SLF001 - the library has no public way

    def leads_later(self, tp: Any) -> bool | None:
        """Is the epoch of a partition's leader a later one than that of what was read last? None: not known now."""
        state, now = self._subscription.assignment.get(tp), self._cluster.leader_epoch_for_partition(tp)
        if state is None or state.position is None or now is None or now < 0:
            return None
        return bool(now > state.position.leader_epoch)

    def is_overdue(self) -> bool:
        """Are we a member whose heartbeat should have been answered by now? While we join there are none."""
        coordinator = self._coordinator
        with coordinator._lock:  # noqa: SLF001 - the library has no public sign of it
            if coordinator.state is not MemberState.STABLE or coordinator.rejoin_needed:
                return False
        beat = coordinator.heartbeat
        return bool(time.monotonic() - max(beat.last_receive, beat.last_reset) > LATE_HEARTBEAT_SECONDS)

    def is_member(self, member_id: str | None) -> bool:
        """Are we, in some generation of the group, the member of that id?

        Asked several times for each job: without the library's lock, which is held for as long as a request takes. Id
        and generation are one object, which is replaced as a whole.
        """
        now = self._coordinator._generation  # noqa: SLF001 - the public call takes the lock
        return bool(now.generation_id >= 0 and now.member_id == member_id)

    def is_displaced(self) -> bool:
        """Has another live member taken our group instance id? The library stops its heartbeats then, and is silent."""
        coordinator = self._coordinator
        with coordinator._lock:  # noqa: SLF001 - the library has no public sign of it
            joined = coordinator.state is MemberState.STABLE and not coordinator.rejoining
            is_silent = not coordinator._heartbeat_enabled  # noqa: SLF001 - as above
            return joined and is_silent and not coordinator.is_dynamic_member()


def _mend(fetcher: Any) -> None:
    """Have a fetcher of the library never stand still, nor go round for ever."""
    take, append, send = fetcher.fetched_records, fetcher._append, fetcher._send_fetches_async  # noqa: SLF001 - no public way

    # What was fetched of a partition and set aside because it was paused comes back only while the slot for records
    # at hand is None; records that were used up stay in the slot. Without traffic elsewhere they would never come.
    def fetched_records(*arguments: Any, **named: Any) -> Any:
        if not fetcher._next_partition_records:  # noqa: SLF001 - as above
            fetcher._next_partition_records = None  # noqa: SLF001 - as above
        return take(*arguments, **named)

    # Records that ended with an error give nothing more, and are asked again and again. An empty fetch knows no epoch,
    # and would take away that of what was read before it, by which a log is noticed that was cut.
    def append_records(drained: Any, part: Any, *arguments: Any) -> Any:
        state = fetcher._subscriptions.assignment.get(part.topic_partition) if part else None  # noqa: SLF001 - as above
        if state is not None and state.position is not None and part.leader_epoch < 0:
            part.leader_epoch = state.position.leader_epoch
        count = append(drained, part, *arguments)
        if part and not count:
            part.drain()
        return count

    # A broker whose request could not even be sent would be waited for, for ever.
    async def send_fetches() -> Any:
        try:
            return await send()
        except BaseException:
            fetcher._nodes_with_pending_fetch_requests.clear()  # noqa: SLF001 - as above
            fetcher._session_handlers.clear()  # noqa: SLF001 - as above
            raise

    fetcher.fetched_records = fetched_records
    fetcher._append = append_records  # noqa: SLF001 - as above
    fetcher._send_fetches_async = send_fetches  # noqa: SLF001 - as above


class Assignor(CooperativeStickyAssignor):  # type: ignore[misc]  # untyped library
    """Shares out each topic by itself, and claims nothing that was lost.

    The library's own balances the sum over all topics: one process could get the jobs and the other the partitions
    of `T-retry`. And a member that was thrown out would claim what others own by now.
    """

    def assign(self, cluster: Any, members: Any) -> dict[str, ConsumerProtocolAssignment]:
        """Share out every topic among those members that want it."""
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
