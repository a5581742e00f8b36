"""What a member of a group says of its partitions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kafka.structs import TopicPartition

from etl.broker import member

pytestmark = pytest.mark.unit


def test_a_partition_without_a_known_leader_is_told_after_a_while() -> None:
    """It is not read, although the group and the commits get on."""
    leader = -1
    one: Any = object.__new__(member.Consumer)
    one._leaderless, one._obstructed = {}, {}
    state = SimpleNamespace(paused=True)
    one._subscription = SimpleNamespace(assignment={TopicPartition("T", 3): state})
    one._cluster = SimpleNamespace(leader_for_partition=lambda _: leader)
    late = member.LEADERLESS_SECONDS + 1
    assert [one.describe_obstacle(now) for now in (0.0, 1.0)] == ["", ""]
    assert one.describe_obstacle(late) == f"T 3: no broker is known that leads it, for {late:.0f} s now"
    leader = 1
    assert one.describe_obstacle(late) == ""
    leader = -1
    assert one.describe_obstacle(late + 1) == ""
