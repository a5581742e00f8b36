"""The seam to Kafka with a real broker: what is taken over, committed, fenced, refused, read back."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import MemberToRemove
from kafka.coordinator.base import MemberState
from kafka.errors import KafkaTimeoutError, UnknownBrokerIdError

import stack
from etl import broker as seam
from etl.broker import AheadReader, GroupConsumer, Reader, TransactionalProducer, Writer
from etl.errors import BrokerUnavailable, CommitRejected, CommitUnknown, Fenced, MessageTooLarge
from etl.models.task import Record
from etl.models.wire import Batch, Commit, Message, Partition
from stack import wait_until
from workbench import Desk

pytestmark = pytest.mark.integration


class Member:
    """A group, the revocations it told of, and the batches it would commit."""

    def __init__(self, desk: Desk, topics: list[str] | None = None, **named: Any) -> None:
        self.revoked: list[Partition] = []
        self.group = GroupConsumer(
            desk.bootstrap_servers, desk.group, topics or [desk.topic], on_revoked=self.revoked.extend, **named
        )

    def join(self, count: int) -> list[Partition]:
        """Poll until so many partitions are there."""
        wait_until(lambda: self.group.poll(0.05) or len(self.group.new_partitions()) == count, 20, "assignment")
        return self.group.new_partitions()

    def take_over(self, partition: Partition) -> seam.TakenOver:
        """Take a partition over and fetch from it; the others silently, as the consumer does."""
        for other in self.group.new_partitions():
            if other != partition:
                self._take_over(other)
        told = self._take_over(partition)
        self.group.resume([partition])
        return told

    def _take_over(self, partition: Partition) -> seam.TakenOver:
        deadline = time.monotonic() + 20
        while (told := self.group.take_over(partition, lambda _: None)) is None:
            assert time.monotonic() < deadline, "not taken over"
            self.group.poll(0.05)
        return told

    def read(self, count: int, limit: float = 15.0) -> list[Record]:
        found: list[Record] = []
        deadline = time.monotonic() + limit
        while len(found) < count and time.monotonic() < deadline:
            found += self.group.poll(0.05)
        return found

    def batch(self, offsets: dict[Partition, Commit], *messages: Message, membership: object = None) -> Batch:
        return Batch(tuple(messages), offsets, membership or self.group.membership())


@pytest.fixture
def join(desk: Desk) -> Iterator[Callable[..., Member]]:
    """Make members of the desk's group."""
    made: list[Member] = []

    def make(**named: Any) -> Member:
        made.append(Member(desk, **named))
        return made[-1]

    yield make
    for member in made:
        member.group.close()


@pytest.fixture
def producer(desk: Desk) -> Iterator[TransactionalProducer]:
    """A transactional producer of the desk's group."""
    made = TransactionalProducer(desk.bootstrap_servers, f"tx-{desk.topic}", desk.group)
    yield made
    made.close()


def p(desk: Desk, number: int = 0) -> Partition:
    return Partition(desk.topic, number)


def result(desk: Desk, value: bytes = b'{"job_id": "x"}', **named: Any) -> Message:
    return Message(desk.results_topic, b"k", value, **named)


# --- taking over ----------------------------------------------------------------------------------------------


def test_without_a_commit_a_group_starts_at_the_earliest(desk: Desk, join: Callable[..., Member]) -> None:
    """Jobs sent before the first start are not skipped; records come with key, value, headers and time."""
    desk.send(b"one", b"two", headers=[("h", b"1")])
    member = join()
    assert member.join(2) == [p(desk, 0), p(desk, 1)]
    assert member.group.poll(0.3) == []  # silent until it is taken over
    assert member.take_over(p(desk)) == seam.TakenOver(Commit(0, ""), end=2, is_new=True)
    records = member.read(2)
    assert [record.value for record in records] == [b"one", b"two"]
    assert (records[0].key, records[0].header("h"), records[0].offset) == (b"key", b"1", 0)
    assert abs(records[0].timestamp - time.time()) < 60
    assert member.group.position(p(desk)) == 2
    assert member.group.new_partitions() == []
    assert re.fullmatch(rf"<GroupConsumer {desk.group} \S+ member assigned=2 to_take_over=0>", repr(member.group))


def test_a_partition_that_is_revoked_while_it_is_set_up_is_revoked_again(
    desk: Desk, join: Callable[..., Member]
) -> None:
    """The first revocation may have found nothing to revoke; `None` says that the partition is not ours."""
    member = join()
    member.join(2)
    taken: list[object] = []

    def revoke(_: seam.TakenOver) -> None:
        member.group.forget([p(desk)])  # as the client does on its own thread

    wait_until(
        lambda: taken.append(member.group.take_over(p(desk), revoke)) or member.revoked or member.group.poll(0.05),
        20,
        "a take-over",
    )
    assert set(taken) == {None}
    assert member.revoked == [p(desk), p(desk)]


def test_a_member_goes_on_where_the_group_stands(
    desk: Desk, join: Callable[..., Member], producer: TransactionalProducer
) -> None:
    """Offset and metadata come back as they were committed."""
    desk.send(b"one", b"two", b"three")
    first = join()
    first.join(2)
    first.take_over(p(desk))
    producer.commit(first.batch({p(desk): Commit(2, "said")}))
    first.group.close()
    second = join()
    second.join(2)
    assert second.take_over(p(desk)) == seam.TakenOver(Commit(2, "said"), end=3)
    assert [record.value for record in second.read(1)] == [b"three"]


def test_what_was_fetched_before_a_pause_comes_after_it(desk: Desk, join: Callable[..., Member]) -> None:
    """Also when nothing else comes any more that would wake the library up: the last jobs would wait for ever."""
    desk.send(*(b"%d" % number for number in range(50)))
    member = join(max_poll_records=10)
    member.join(2)
    member.take_over(p(desk))
    member.group.resume([p(desk, 1)])
    seen = [record.value for record in member.read(10)]
    member.group.pause([p(desk)])
    desk.send(b"elsewhere", partition=1)
    assert [record.value for record in member.read(1)] == [b"elsewhere"]
    assert member.group.poll(0.3) == []
    member.group.resume([p(desk)])
    seen += [record.value for record in member.read(40, limit=5.0)]
    assert seen == [b"%d" % number for number in range(50)]


def test_records_that_are_gone_are_counted(
    desk: Desk, join: Callable[..., Member], producer: TransactionalProducer
) -> None:
    """The topic was truncated below the committed offset: how many were lost is reported, never a silent jump."""
    desk.send(*(b"%d" % number for number in range(10)))
    first = join()
    first.join(2)
    first.take_over(p(desk))
    producer.commit(first.batch({p(desk): Commit(3, "")}))
    first.group.close()
    admin = KafkaAdminClient(bootstrap_servers=desk.bootstrap_servers)
    admin.delete_records({TopicPartition(desk.topic, 0): 8})
    admin.close()
    second = join()
    second.join(2)
    assert second.take_over(p(desk)) == seam.TakenOver(Commit(8, ""), end=10, lost=5, first=8, as_read=False)
    assert [record.value for record in second.read(2)] == [b"8", b"9"]


def test_the_position_passes_transaction_markers(
    desk: Desk, join: Callable[..., Member], producer: TransactionalProducer
) -> None:
    """They are offsets without records; committing the position makes Kafka's lag 0. Aborted records never come."""
    producer.transact([Message(desk.topic, None, b"one", partition=0)])
    rival = TransactionalProducer(desk.bootstrap_servers, f"aborted-{desk.topic}")
    rival.open()
    raw: Any = rival._producer
    raw.begin_transaction()
    raw.send(desk.topic, value=b"aborted", partition=0).get(timeout=10)
    raw.abort_transaction()
    rival.close()
    member = join()
    member.join(2)
    member.take_over(p(desk))
    assert [record.value for record in member.read(1)] == [b"one"]
    wait_until(lambda: member.group.poll(0.05) or member.group.position(p(desk)) == 4, 10, "position")
    assert member.group.behind(p(desk)) == 0
    producer.commit(member.batch({p(desk): Commit(4, "")}))
    assert desk.committed()[desk.topic, 0] == 4
    assert desk.lag() == 0


def test_pausing_and_seeking(desk: Desk, join: Callable[..., Member]) -> None:
    """A paused partition keeps its place; a sought one goes on from there."""
    member = join()
    member.join(2)
    member.take_over(p(desk))
    member.group.pause([p(desk), p(desk, 7)])
    desk.send(b"one", b"two")
    assert member.group.poll(0.4) == []
    member.group.resume([p(desk), p(desk, 7)])
    assert len(member.read(2)) == 2
    member.group.seek(p(desk), 1)
    assert [record.value for record in member.read(1)] == [b"two"]
    assert member.group.position(p(desk, 7)) is None
    assert member.group.behind(p(desk, 7)) == 0


def test_every_codec_is_read(desk: Desk, join: Callable[..., Member]) -> None:
    """Jobs may arrive compressed by any of them."""
    codecs = ("gzip", "snappy", "lz4", "zstd")
    for codec in codecs:
        producer = KafkaProducer(bootstrap_servers=desk.bootstrap_servers, compression_type=codec)
        producer.send(desk.topic, value=codec.encode() * 100, partition=0).get(timeout=10)
        producer.close()
    member = join()
    member.join(2)
    member.take_over(p(desk))
    assert [record.value for record in member.read(4)] == [codec.encode() * 100 for codec in codecs]


def test_a_newcomer_takes_a_share_and_the_first_hears_of_it(desk: Desk, join: Callable[..., Member]) -> None:
    """What it keeps goes on; what is taken away is told before anybody else has it."""
    first = join()
    for partition in first.join(2):
        first.take_over(partition)
    second = join()
    wait_until(
        lambda: first.group.poll(0.05) or second.group.poll(0.05) or second.group.new_partitions(), 20, "a share"
    )
    (moved,) = second.group.new_partitions()
    assert first.revoked == [moved]
    assert first.group.assigned() == [tp for tp in (p(desk, 0), p(desk, 1)) if tp != moved]
    assert first.group.is_member()
    assert second.group.membership() is None  # it took nothing over yet
    second.take_over(moved)
    assert second.group.is_member()
    second.group.close()
    wait_until(lambda: first.group.poll(0.05) or first.group.new_partitions() == [moved], 20, "its return")


def test_who_does_not_poll_is_no_member(
    desk: Desk, join: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that slept publishes nothing before the coordinator has confirmed it again."""
    member = join()
    member.join(2)
    member.take_over(p(desk))
    assert member.group.is_member()
    monkeypatch.setattr(seam.group, "SESSION_TIMEOUT_SECONDS", 0.2)
    time.sleep(0.3)
    assert not member.group.is_member()


# --- committing -----------------------------------------------------------------------------------------------


def test_messages_and_offsets_are_one(desk: Desk, join: Callable[..., Member], producer: TransactionalProducer) -> None:
    """Both are there, or neither; `recover` reads back what the group has."""
    member = join()
    member.join(2)
    member.take_over(p(desk))
    batch = member.batch({p(desk): Commit(0, "m1")}, result(desk), result(desk))
    producer.commit(batch)
    desk.wait(lambda: len(desk.results()) == 2)
    assert producer.recover(batch)[p(desk)] == Commit(0, "m1")


@pytest.mark.parametrize("reached", [True, False])
def test_an_unknown_end_is_read_back(
    reached: bool,
    desk: Desk,
    join: Callable[..., Member],
    producer: TransactionalProducer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reply to the commit was lost: whether it had reached the coordinator is told by what the group has."""
    member = join()
    member.join(2)
    member.take_over(p(desk))
    producer.commit(member.batch({p(desk): Commit(0, "before")}))
    commit = seam.producer._Producer.commit_transaction

    def lose_the_reply(self: Any) -> None:
        if reached:
            commit(self)
        raise KafkaTimeoutError("no reply")

    batch = member.batch({p(desk): Commit(0, "unknown")}, result(desk))
    with monkeypatch.context() as patch:
        patch.setattr(seam.producer._Producer, "commit_transaction", lose_the_reply)
        with pytest.raises(CommitUnknown):
            producer.commit(batch)
    assert producer.recover(batch)[p(desk)] == Commit(0, "unknown" if reached else "before")
    producer.transact([result(desk, b'{"job_id": "after"}')])
    desk.wait(lambda: any(one["job_id"] == "after" for one in desk.results()))
    assert [one["job_id"] for one in desk.results()] == (["x", "after"] if reached else ["after"])


def test_a_join_that_nobody_collected_is_done_again(desk: Desk, join: Callable[..., Member]) -> None:
    """The library may leave a finished join alone when the reason for it is gone: then it is no member, for ever."""
    member = join()
    member.join(2)
    for partition in (p(desk, 0), p(desk, 1)):
        member.take_over(partition)
    coordinator = member.group._client._coordinator
    with coordinator._lock:  # as it is between the reply to a join and the poll that takes note of it
        coordinator.state, coordinator.rejoining = MemberState.REBALANCING, True
        coordinator._disable_heartbeat()
    wait_until(
        lambda: member.group.poll(0.1) or (coordinator.state == MemberState.STABLE and member.group.is_member()),
        20,
        "a member again",
    )
    assert not coordinator.rejoining


def test_a_join_that_ends_between_two_polls_is_not_begun_anew(desk: Desk, join: Callable[..., Member]) -> None:
    """Of a leader that would have all others join again, and so on while the machine is busy."""
    group = join().group
    client, coordinator = group._client, group._client._coordinator
    # What the leader learns of its topics while it joins is a reason to join again.
    wait_until(
        lambda: client.partitions_for_topic(desk.topic) and coordinator._metadata_snapshot.get(desk.topic),
        20,
        "metadata",
    )

    def joined() -> bool:
        group.poll(0.001)
        if coordinator._join_task is not None:
            wait_until(lambda: coordinator._join_task.is_done, 20, "the end of a join")
        return len(group.new_partitions()) == 2

    wait_until(joined, 20, "assignment")
    assert client.group_metadata().generation_id == 1


def test_who_is_thrown_out_while_it_joins_hears_of_it(desk: Desk, join: Callable[..., Member]) -> None:
    """Before it joins again: else it would claim partitions that another member has by now."""
    first, second = join(), join()
    both = (first.group, second.group)

    def have_shares() -> bool:
        for one in both:
            one.poll(0.05)
        return all(one.new_partitions() and not one._client._coordinator.need_rejoin() for one in both)

    wait_until(have_shares, 30, "shares")
    (held,) = first.group.new_partitions()
    first.take_over(held)
    coordinator, member_id = first.group._client._coordinator, first.group._client.group_metadata().member_id
    coordinator.request_rejoin()
    wait_until(lambda: first.group.poll(0.05) or coordinator.rejoining, 10, "a join")  # the second does not take part
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=desk.bootstrap_servers)) as admin:
        admin.remove_group_members(desk.group, [MemberToRemove(member_id=member_id)])
    wait_until(lambda: second.group.poll(0.05) or len(second.group.assigned()) == 2, 30, "the other's take-over")
    wait_until(lambda: first.group.poll(0.05) or held in first.revoked, 30, "the revocation")
    assert first.group.assigned() == []


def test_an_answer_that_came_too_late_is_not_believed(
    desk: Desk, join: Callable[..., Member], producer: TransactionalProducer
) -> None:
    """A take-over that timed out asks anew: what was committed meanwhile counts."""
    member = join()
    member.join(2)
    member.take_over(p(desk, 1))
    assert member.group.take_over(p(desk), lambda _: None, timeout=0.0) is None
    wait_until(
        lambda: all(one.is_done for one in member.group._client._coordinator._offset_fetch_futures.values()), 10, "it"
    )
    producer.commit(member.batch({p(desk): Commit(0, "since then")}))
    assert member.take_over(p(desk)).committed == Commit(0, "since then")


def test_a_fetch_that_could_not_be_sent_is_sent_again(desk: Desk, join: Callable[..., Member]) -> None:
    """As after the reply of a broker that names another one, which is not known yet."""
    member = join()
    member.join(2)
    member.take_over(p(desk))
    desk.send({"job_id": "one"})
    assert len(member.read(1)) == 1
    manager = member.group._client._manager
    send, refused = manager.send, []

    def refuse(request: Any, **named: Any) -> Any:
        if type(request).__name__.startswith("FetchRequest") and not refused:
            refused.append(request)
            raise UnknownBrokerIdError("a test's")
        return send(request, **named)

    manager.send = refuse
    wait_until(lambda: member.group.poll(0.05) or refused, 10, "a fetch")
    desk.send({"job_id": "two"})
    assert len(member.read(1)) == 1


def test_a_stale_membership_is_rejected(
    desk: Desk, join: Callable[..., Member], producer: TransactionalProducer
) -> None:
    """After a rebalance the old generation commits nothing, neither at once nor along with the next transaction."""
    member = join()
    member.join(2)
    both = (p(desk, 0), p(desk, 1))
    for partition in both:
        member.take_over(partition)
    stale = member.batch(dict.fromkeys(both, Commit(0, "stale")), result(desk, b'{"job_id": "stale"}'))
    second = join()
    wait_until(
        lambda: member.group.poll(0.05) or second.group.poll(0.05) or second.group.new_partitions(), 60, "a share"
    )
    with pytest.raises(CommitRejected):
        producer.commit(stale)
    kept = member.group.assigned()[0]
    producer.commit(member.batch({kept: Commit(0, "fresh")}, result(desk, b'{"job_id": "fresh"}')))
    desk.wait(desk.results)
    assert [one["job_id"] for one in desk.results()] == ["fresh"]
    assert {tp: told.metadata for tp, told in producer.recover(stale).items() if told.metadata} == {kept: "fresh"}


def test_a_rival_fences_us_once(desk: Desk, join: Callable[..., Member], producer: TransactionalProducer) -> None:
    """The one who came last has the id; whoever lost it can take it back."""
    producer.transact([result(desk)])
    rival = TransactionalProducer(desk.bootstrap_servers, f"tx-{desk.topic}", desk.group)
    rival.transact([result(desk)])
    with pytest.raises(Fenced):
        producer.transact([result(desk, b'{"job_id": "fenced"}')])
    producer.transact([result(desk)])
    with pytest.raises(Fenced):
        rival.transact([result(desk, b'{"job_id": "fenced"}')])
    rival.close()
    desk.wait(lambda: len(desk.results()) == 3)
    assert {one["job_id"] for one in desk.results()} == {"x"}


@pytest.mark.parametrize("number", [0, 2])
def test_a_message_too_large_is_named_and_nothing_is_committed(
    number: int, make_desk: Callable[..., Desk], topic: str
) -> None:
    """By its place in the batch: refused by the topic, or by our own limit; the next transaction is as any other."""
    desk = make_desk(configs={f"{topic}-results": {"max.message.bytes": "10000"}})
    producer = TransactionalProducer(desk.bootstrap_servers, f"tx-{topic}")
    messages = [result(desk, b'{"job_id": "%d"}' % index) for index in range(5)]
    for size_bytes in (50_000, seam.MAX_MESSAGE_BYTES + 1):
        large = result(desk, bytes(size_bytes))
        with pytest.raises(MessageTooLarge) as told:
            producer.transact([*messages[:number], large, *messages[number + 1 :]])
        assert told.value.index == number
        started = time.monotonic()
        producer.transact([result(desk, b'{"job_id": "after"}')])
        assert time.monotonic() - started < 5
    producer.close()
    desk.wait(lambda: len(desk.results()) == 2)
    assert {one["job_id"] for one in desk.results()} == {"after"}


def test_many_too_large_are_named_one_after_the_other(make_desk: Callable[..., Desk], topic: str) -> None:
    """However the failure of one shows in the sends of the others."""
    desk = make_desk(configs={f"{topic}-results": {"max.message.bytes": "10000"}})
    producer = TransactionalProducer(desk.bootstrap_servers, f"tx-{topic}")
    messages = [result(desk, b'{"job_id": "%d", "x": "%s"}' % (index, b"x" * 300_000)) for index in range(6)]
    for _ in range(6):
        with pytest.raises(MessageTooLarge) as told:
            producer.transact(messages)
        messages[told.value.index] = result(desk, b'{"job_id": "short"}')
    producer.transact(messages)
    producer.close()
    desk.wait(lambda: len(desk.results()) == 6)


def test_a_transaction_left_open_is_ended_by_its_successor(desk: Desk, join: Callable[..., Member]) -> None:
    """The id comes back after a kill: what the dead one had begun is not in, and blocks nobody."""
    dead = TransactionalProducer(desk.bootstrap_servers, f"tx-{desk.topic}", desk.group)
    dead.open()
    producer: Any = dead._producer
    producer.begin_transaction()
    producer.send(desk.results_topic, value=b'{"job_id": "half"}').get(timeout=10)
    heir = TransactionalProducer(desk.bootstrap_servers, f"tx-{desk.topic}", desk.group)
    started = time.monotonic()
    heir.transact([result(desk)])
    desk.wait(desk.results, 5)
    assert time.monotonic() - started < 5
    assert [one["job_id"] for one in desk.results()] == ["x"]
    dead.discard()
    heir.close()


def test_metadata_up_to_the_brokers_limit_is_taken(
    desk: Desk, join: Callable[..., Member], producer: TransactionalProducer
) -> None:
    """4096 bytes; the ledger never sends more."""
    member = join()
    member.join(2)
    member.take_over(p(desk))
    producer.commit(member.batch({p(desk): Commit(0, "m" * 4096)}))
    with pytest.raises(CommitRejected):
        producer.commit(member.batch({p(desk): Commit(0, "m" * 4097)}))
    producer.commit(member.batch({p(desk): Commit(0, "again")}))


# --- plain reading and writing --------------------------------------------------------------------------------


def test_a_reader_sees_what_a_writer_sent(desk: Desk) -> None:
    """From a place to a place; a delivery tells where its message is."""
    with Writer(desk.bootstrap_servers) as writer:
        sent = [writer.send(desk.dlq, b"k", b"%d" % number, [("h", b"x")]) for number in range(5)]
        writer.flush()
        assert [delivery.result() for delivery in sent] == [(0, number) for number in range(5)]
    with Reader(desk.bootstrap_servers, desk.dlq) as reader:
        assert reader.ends() == {0: 5}
        assert [record.value for record in reader.scan()] == [b"0", b"1", b"2", b"3", b"4"]
        assert [record.value for record in reader.scan(until={0: 4}, start={0: 2})] == [b"2", b"3"]
        following = reader.follow({0: 4})
        seen = [record.value if record else None for record in (next(following), next(following))]
        assert seen == [b"4", None]


# In a process of its own: the client leaves the closing of refused connections to the garbage collector.
UNREACHABLE = """
import logging, sys
from concurrent.futures import ThreadPoolExecutor
from etl.broker import Admin, GroupConsumer, TransactionalProducer, Writer

logging.disable(logging.CRITICAL)
nowhere = sys.argv[1]
makes = [
    lambda: Writer(nowhere),
    lambda: Admin(nowhere).describe(["t"]),
    lambda: GroupConsumer(nowhere, "g", ["t"], on_revoked=lambda _: None),
    lambda: TransactionalProducer(nowhere, "tx").transact([]),
]
with ThreadPoolExecutor(4) as threads:
    for tried in [threads.submit(make) for make in makes]:
        print(f"{type(tried.exception()).__name__}: {tried.exception()}")
"""


def test_reading_ahead_goes_on_where_it_was(desk: Desk, producer: TransactionalProducer) -> None:
    """From an offset on, each record once, of partitions of several topics that come and go; committed ones alone."""
    desk.send(*(b"%d" % number for number in range(5)), partition=0)
    desk.send(*(b"%d" % number for number in range(10, 15)), partition=1)
    producer.transact([result(desk, b"r")])
    results = Partition(desk.results_topic, 0)
    reader = AheadReader(desk.bootstrap_servers, 2)

    def read(starts: dict[Partition, int], count: int) -> list[bytes]:
        found: list[Record] = []
        wait_until(lambda: found.extend(reader.read(starts)) or len(found) >= count, 20, "records")
        assert not reader.read(starts), "more than there are"
        return sorted(record.value or b"" for record in found)

    with contextlib.closing(reader):
        assert read({p(desk): 2}, 3) == [b"2", b"3", b"4"]
        desk.send(b"5", partition=0)
        assert read({p(desk): 1, p(desk, 1): 4}, 2) == [b"14", b"5"]
        assert read({p(desk, 1): 0, results: 0}, 1) == [b"r"]
        assert read({p(desk): 5}, 1) == [b"5"]  # it was forgotten: who asks knows what was read


def test_what_is_not_there_is_one_error(desk: Desk) -> None:
    """A topic, or the broker; soon, and by name."""
    with (
        Reader(desk.bootstrap_servers, "typo") as reader,
        pytest.raises(BrokerUnavailable, match="typo does not exist"),
    ):
        reader.ends()
    nowhere = f"127.0.0.1:{stack.free_port()}"
    done = subprocess.run(
        [sys.executable, "-c", UNREACHABLE, nowhere], capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in said] == ["BrokerUnavailable"] * 3 + ["CommitRejected"], done.stderr
    assert all("broker" in line or "producer" in line for line in said)
