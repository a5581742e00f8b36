"""What the connections of a client know of its brokers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import errors as kafka_errors
from kafka.cluster import ClusterMetadata
from kafka.future import Future

from etl.broker import network

pytestmark = pytest.mark.unit


def test_leaders_are_looked_for_after_an_error_of_somebody_elses_look() -> None:
    """The library's loop ends with that error; a partition that had no leader then would never be read again."""
    cluster = ClusterMetadata(bootstrap_servers="127.0.0.1:1")
    looks: list[int] = []

    async def look(*_: Any) -> None:
        looks.append(1)
        cluster.closed = True

    manager: Any = object.__new__(network._Manager)
    manager.closed, manager.cluster, manager._refresh = False, cluster, cluster._refresh_loop
    manager._bootstrap_future = Future().success(True)
    cluster._manager = SimpleNamespace(bootstrapped=True, connection_delay=lambda _: 0)
    cluster._do_refresh_metadata = look
    cluster._refresh_future = Future()  # the look of somebody else, under way
    loop = manager._keep_refreshing()
    loop.send(None)
    cluster._refresh_future.failure(kafka_errors.KafkaConnectionError("the broker restarts"))
    with pytest.raises(StopIteration):
        loop.send(None)
    assert looks


def test_a_client_that_never_found_its_broker_looks_for_none() -> None:
    """The error is told to whoever creates it."""

    async def refresh() -> None:
        raise kafka_errors.KafkaTimeoutError

    manager: Any = object.__new__(network._Manager)
    manager.closed, manager._refresh, manager._bootstrap_future = False, refresh, None
    with pytest.raises(kafka_errors.KafkaTimeoutError):
        asyncio.run(manager._keep_refreshing())


@pytest.mark.parametrize(("heard", "asked"), [(1, 1), ("coordinator-1", "bootstrap-0"), ("bootstrap-0", "bootstrap-0")])
def test_only_a_word_of_a_known_broker_proves_its_address(
    heard: Any, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that came back elsewhere is heard as the coordinator, and would never be asked for its partitions."""
    cluster = ClusterMetadata(bootstrap_servers="127.0.0.1:1")
    cluster._brokers = {1: SimpleNamespace(node_id=1)}
    manager: Any = object.__new__(network._Manager)
    net = SimpleNamespace(heard_at=0.0, broker_heard_at=0.0, call_soon=lambda *_: None)
    manager.cluster, manager._net, manager.connection_delay = cluster, net, lambda _: 0
    manager._conns = {"coordinator-1": SimpleNamespace(connected=True, paused=set(), in_flight_requests=())}
    connection: Any = object.__new__(network._Connection)
    connection.net, connection.node_id = net, heard
    monkeypatch.setattr(network.KafkaConnection, "data_received", lambda *_: None)
    connection.data_received(b"")
    assert net.heard_at > 0
    assert manager.least_loaded_node() == asked
