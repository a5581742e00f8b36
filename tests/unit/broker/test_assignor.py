"""Partitions are shared out kind by kind: whoever comes later gets its part of each."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from etl.broker.member import Assignor
from etl.retry import tiers

pytestmark = pytest.mark.unit

TOPICS = {"jobs": 8, "jobs-retry": tiers.PARTITIONS}
CLUSTER = SimpleNamespace(topics=TOPICS.keys, partitions_for_topic=lambda topic: set(range(TOPICS[topic])))

Held = dict[str, set[tuple[str, int]]]


def kind_of(topic: str, partition: int) -> object:
    return tiers.kind_of(partition, tiers.BLOCKS) if topic == "jobs-retry" else topic


def assign(held: Held) -> Held:
    """Have the leader assign once, as members that hold these partitions join; return what each gets."""
    members: list[Any] = []
    for name, owned in held.items():
        claims = [
            SimpleNamespace(topic=topic, partitions=[number for which, number in owned if which == topic])
            for topic in TOPICS
        ]
        said = SimpleNamespace(topics=list(TOPICS), owned_partitions=claims, generation_id=1)
        members.append(SimpleNamespace(member_id=name, metadata=said))
    assigned = Assignor(kind_of).assign(CLUSTER, members)
    return {
        name: {(topic, number) for topic, numbers in share.assigned_partitions for number in numbers}
        for name, share in assigned.items()
    }


def settled(held: Held) -> Held:
    """Assign until nothing moves, and see that nobody gets what another member still holds."""
    for _ in range(5):
        now = assign(held)
        for name, share in now.items():
            others = set().union(*(owned for other, owned in held.items() if other != name))
            assert share.isdisjoint(others)
        if now == held:
            return now
        held = now
    raise AssertionError("the group does not come to rest")


@pytest.mark.parametrize("count", range(1, 9))
def test_every_kind_is_shared_evenly(count: int) -> None:
    """Also with the members that were there before, one by one."""
    held: Held = {}
    for number in range(count):
        held = settled(held | {f"member-{number}": set()})
    everything = [share for owned in held.values() for share in owned]
    assert len(everything) == len(set(everything)) == sum(TOPICS.values())
    kinds = {kind_of(topic, number) for topic, number in everything}
    for kind in kinds:
        counts = Counter({name: sum(kind_of(*share) == kind for share in owned) for name, owned in held.items()})
        assert max(counts.values()) - min(counts.values()) <= 1


def test_what_could_run_at_once_is_a_part_of_three_members() -> None:
    """Jobs that made way for others wait in the shortest tier of what is recallable."""
    held = settled({f"member-{number}": set() for number in range(3)})
    assert all(any(kind_of(*share) == (0, True) for share in owned) for owned in held.values())


def test_who_stays_keeps_what_is_his() -> None:
    """A member that leaves moves no partition between the others."""
    held = settled({f"member-{number}": set() for number in range(3)})
    left = {name: owned for name, owned in held.items() if name != "member-1"}
    after = settled(left)
    assert all(owned <= after[name] for name, owned in left.items())


def test_every_member_is_told_how_many_work() -> None:
    """Those that are left without a partition do not count; a leader of another version tells nothing."""
    members = [
        SimpleNamespace(member_id=name, metadata=SimpleNamespace(topics=["one"], owned_partitions=[], generation_id=1))
        for name in "abc"
    ]
    cluster = SimpleNamespace(topics=["one"], partitions_for_topic=lambda _topic: {0, 1})
    shares = Assignor().assign(cluster, members)
    for share in shares.values():
        member = Assignor()
        assert member.workers() == 1
        member.on_assignment(share, 1)
        assert member.workers() == 2
        member.on_assignment(SimpleNamespace(user_data=b"", partitions=list), 2)
        assert member.workers() == 1
