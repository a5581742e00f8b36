"""The library's connections, mended: every given address counts, also later, and none is left idle.

Uses private names of the library, which has no public way to any of it. Knows nothing about what is sent.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

import structlog
from kafka import errors as kafka_errors
from kafka.future import Future
from kafka.net import manager as library
from kafka.net import selector
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.inet import KafkaNetSocket
from kafka.protocol.metadata import MetadataRequest

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 4.0  # for a connection to be there, at first; the library doubles it each time
RESOLVE_SECONDS = 5.0  # for a name to be resolved
# Without traffic for so long a connection gets a request of no consequence: proxies and firewalls cut idle connections
# without a word, and the next commit would wait for its time limit.
IDLE_SECONDS, PING_SECONDS = 3.0, 5.0
DEAF_SECONDS = 5.0  # without a word of the known brokers, before the given addresses are asked for others
SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        # Probes after 10 s, every 5 s; the connection is dead after 3, or 10 s after data that nobody acknowledges.
        for name, value in {
            "TCP_KEEPIDLE": 10,
            "TCP_KEEPINTVL": 5,
            "TCP_KEEPCNT": 3,
            "TCP_USER_TIMEOUT": 10_000,
        }.items()
        if hasattr(socket, name)  # Linux
    ),
]
# Below DEBUG, so that nobody ever sees it; it would be four calls at each of ten places of a turn of the I/O thread.
selector.log_trace = lambda *_: None
_told: set[str] = set()  # addresses named as dead by this process; those that answer are taken off


def create_network(**settings: Any) -> KafkaNetClient:
    """Create the network of one client."""
    settings["socket_options"] = SOCKET_OPTIONS
    settings["socket_connection_setup_timeout_ms"] = int(CONNECT_SECONDS * 1000)
    settings["socket_connection_setup_timeout_max_ms"] = int(2 * CONNECT_SECONDS * 1000)
    net = selector.NetworkSelector(**settings)
    return KafkaNetClient(net=net, manager=_Manager(net, **settings))


class _Connection(KafkaConnection):  # type: ignore[misc]  # untyped library
    """A connection that notes when something came, and when from where the metadata says that a broker is."""

    def data_received(self, data: Any) -> None:
        self.net.heard_at = time.monotonic()
        if isinstance(self.node_id, int):  # the given addresses and the coordinators have names
            self.net.broker_heard_at = self.net.heard_at
        super().data_received(data)


library.KafkaConnection = _Connection


class _Manager(library.KafkaConnectionManager):  # type: ignore[misc]  # untyped library
    """The connections of one client. All of it runs on the client's I/O thread."""

    def __init__(self, net: Any, **settings: Any) -> None:
        net.heard_at = net.broker_heard_at = time.monotonic()
        super().__init__(net, **settings)
        self._addresses: dict[Any, tuple[str, int]] = {}  # of the known brokers
        self.cluster.add_listener(self._notice_moves)
        self._refresh = self.cluster._refresh_loop  # noqa: SLF001 - there is no public hook
        self.cluster._refresh_loop = self._keep_refreshing  # noqa: SLF001 - as above
        net.call_later(IDLE_SECONDS, self._ping)

    async def _keep_refreshing(self) -> None:
        """Look for the leaders of partitions until the client is closed.

        The library's loop ends for ever with an error that it meets while it waits for a look that another one began,
        as in a restart of the broker. Partitions that had no leader then would never be read again.
        """
        while True:
            try:
                await self._refresh()
            except kafka_errors.KafkaError:
                if self.closed or not self.bootstrapped:
                    raise
            else:
                return

    # --- the given addresses

    async def _do_bootstrap(self, deadline: float | None) -> bool:
        """Try all given addresses side by side: the library takes one by chance, for as long as its time limit."""
        while not self.closed and (deadline is None or time.monotonic() < deadline):
            tried = {}
            for broker in self.cluster.bootstrap_brokers():
                with contextlib.suppress(kafka_errors.NodeNotReadyError):
                    tried[broker.node_id] = self.get_connection(
                        broker.node_id,
                        pop_on_close=False,
                        refresh_metadata_on_err=False,
                        reset_backoff_on_connect=False,
                    )
            delays = [self.connection_delay(broker.node_id) for broker in self.cluster.bootstrap_brokers()]
            if not tried:
                await self._bootstrap_wakeup(min(*delays, 1.0))
                continue
            while tried:
                limit = None if deadline is None else max(0.0, deadline - time.monotonic())
                node_id = await self._first(tried, limit)
                connection = tried.pop(node_id) if node_id is not None else None
                if connection is None:
                    break
                try:
                    await self.cluster.refresh_metadata(node_id)
                    if self.cluster.brokers():
                        self.reset_backoff(node_id)
                        self.cluster.start_refresh_loop()
                        return True
                    self.update_backoff(node_id)
                except kafka_errors.KafkaError:
                    self.update_backoff(node_id)
                finally:
                    self._drop(node_id, connection)
                    if self.cluster.brokers():
                        self._await_others(tried)
            for node_id, connection in tried.items():
                self._drop(node_id, connection)
        given = ", ".join(f"{broker.host}:{broker.port}" for broker in self.cluster.bootstrap_brokers())
        raise kafka_errors.KafkaTimeoutError(f"no answer from {given}")

    async def _first(self, tried: dict[Any, Any], limit: float | None) -> Any:
        """Return the node whose connection is ready first; None if none is within `limit` seconds. Drops the failed."""
        first = Future()

        def failed(node_id: Any, error: BaseException) -> None:
            self._fail(node_id, tried.pop(node_id), error)
            if not tried and not first.is_done:
                first.success(None)

        for node_id, connection in list(tried.items()):
            connection.init_future.add_callback(
                lambda _, ready=node_id: None if first.is_done or ready not in tried else first.success(ready)
            )
            connection.init_future.add_errback(
                lambda error, gone=node_id: None if first.is_done or gone not in tried else failed(gone, error)
            )
        # Without a limit, the connections' own limits end the wait before that.
        end = self._net.call_later(
            4 * CONNECT_SECONDS if limit is None else limit, lambda: None if first.is_done else first.success(None)
        )
        try:
            return await first
        finally:
            self._net.cancel(end)

    def _await_others(self, tried: dict[Any, Any]) -> None:
        """Leave the connections that are not ready yet alone until they are, or have failed: a dead one is named."""
        for node_id, connection in tried.items():
            connection.init_future.add_callback(lambda _, at=node_id, one=connection: self._drop(at, one))
            connection.init_future.add_errback(lambda error, at=node_id, one=connection: self._fail(at, one, error))
        tried.clear()

    def _drop(self, node_id: Any, connection: Any) -> None:
        self._conns.pop(node_id, None)
        connection.close()
        if not self.closed and connection.broker_version_data is not None:
            _told.discard(self._name(node_id))

    def _fail(self, node_id: Any, connection: Any, error: BaseException) -> None:
        self._conns.pop(node_id, None)
        connection.close(error)
        self.update_backoff(node_id)
        if isinstance(error, kafka_errors.IncompatibleBrokerVersion):
            log.error("this address is that of a controller, not of a broker", address=self._name(node_id))
        elif not self.closed and len(self.cluster.bootstrap_brokers()) > 1 and self._name(node_id) not in _told:
            _told.add(self._name(node_id))
            log.warning(
                "broker address does not answer; others are tried", address=self._name(node_id), error=str(error)
            )

    def _name(self, node_id: Any) -> str:
        broker = self.cluster.broker_metadata(node_id)
        return f"{broker.host}:{broker.port}" if broker is not None else str(node_id)

    # --- known brokers that are gone

    def least_loaded_node(self) -> Any:
        """Choose whom to ask what any broker may be asked: one of the given addresses, if no known broker answers.

        Brokers may have come back under other addresses. The library asks the given ones only once. A word of the
        coordinator proves nothing: whoever looks for it is told its new address, which the metadata lacks.
        """
        known = {broker.node_id for broker in self.cluster.brokers()}
        is_connected = any(node in known and conn.connected for node, conn in self._conns.items())
        if known and (is_connected or time.monotonic() - self._net.broker_heard_at < DEAF_SECONDS):
            return super().least_loaded_node()
        given = [broker.node_id for broker in self.cluster.bootstrap_brokers()]
        ready = [node_id for node_id in given if self.connection_delay(node_id) == 0]
        ready = [node_id for node_id in ready if node_id in self._conns and self._conns[node_id].connected] or ready
        return ready[int(time.monotonic() / CONNECT_SECONDS) % len(ready)] if ready else super().least_loaded_node()

    def _notice_moves(self, cluster: Any) -> None:
        """Close the connections to brokers that have another address now: they would wait for their time limits."""
        for broker in cluster.brokers():
            address = (broker.host, broker.port)
            if self._addresses.setdefault(broker.node_id, address) == address:
                continue
            log.warning("broker has another address now", broker=broker.node_id, address=f"{broker.host}:{broker.port}")
            self._addresses[broker.node_id] = address
            coordinator_id = f"coordinator-{broker.node_id}"
            coordinators = cluster._coordinator_brokers  # noqa: SLF001 - there is no public way
            if coordinator_id in coordinators:
                coordinators[coordinator_id] = type(broker)(coordinator_id, *address, None)
            for node_id in (broker.node_id, coordinator_id):
                self.reset_backoff(node_id)
                if (connection := self._conns.pop(node_id, None)) is not None:
                    connection.close(kafka_errors.KafkaConnectionError("the broker has another address now"))

    # --- idle connections

    def _ping(self) -> None:
        if self.closed:
            return
        now = time.monotonic()
        for connection in list(self._conns.values()):
            is_idle = connection.connected and not connection.in_flight_requests and not connection.paused
            if is_idle and now - connection.transport.last_activity >= IDLE_SECONDS - 0.5:
                request = MetadataRequest(topics=MetadataRequest.NO_TOPICS, allow_auto_topic_creation=False)
                connection.send_request(request, request_timeout_ms=PING_SECONDS * 1000)
        self._net.call_later(IDLE_SECONDS / 2, self._ping)


class _Socket(KafkaNetSocket):  # type: ignore[misc]  # untyped library
    """A socket that is closed when its client is closed while it still connects: the library leaves it open."""

    SCHEMES = ()  # of proxies: none

    async def sock_connect(self, net: Any, sock: Any, sockaddr: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise


async def _create_connection(
    net: Any,
    host: str,
    port: int,
    options: Any,
    *,
    proxy_url: None,  # noqa: ARG001 - part of the library's call; no proxy is ever set
    timeout_at: float | None = None,
) -> Any:
    """Connect to one of a host's addresses. One that is silent leaves the others their part of the time."""
    found = _look_up(host, port) if _is_quick(host) else await _resolve(net, host, port)
    end = time.monotonic() + CONNECT_SECONDS if timeout_at is None else timeout_at
    failure = f"{host} cannot be resolved"
    for index, address in enumerate(found):
        now = time.monotonic()
        try:
            limit = now + (end - now) / (len(found) - index)
            return await _Socket().connect(net, address, options, timeout_at=limit)
        except (kafka_errors.KafkaError, OSError) as error:
            failure = str(error)
    raise kafka_errors.KafkaConnectionError(failure)


library.create_connection = _create_connection


def _look_up(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []


async def _resolve(net: Any, host: str, port: int) -> list[Any]:
    """Look a name up in a thread of its own: the look-up cannot be interrupted, and would hold up the I/O thread."""
    found = Future()

    def tell(addresses: list[Any]) -> None:
        if not found.is_done:
            found.success(addresses)

    def look_up() -> None:
        addresses = _look_up(host, port)
        with contextlib.suppress(Exception):  # the client may be closed by now
            net.call_soon_threadsafe(lambda: tell(addresses))

    timer = net.call_later(RESOLVE_SECONDS, lambda: tell([]))
    threading.Thread(target=look_up, name="kafka-resolver", daemon=True).start()
    try:
        return list(await found)
    finally:
        net.cancel(timer)


def _is_quick(host: str) -> bool:
    """Is no name server asked for this host?"""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return True
    return host == "localhost"
