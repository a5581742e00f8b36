"""Creates every Kafka client: addresses, login, time limits, and the translation of its errors into ours.

Knows nothing about what a client is used for.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from etl.broker.network import create_network
from etl.errors import BrokerUnavailable

if TYPE_CHECKING:
    from etl.config import Settings

# The broker aborts a transaction that takes longer. It must be short: an open transaction hides every later record of
# its partitions from readers of committed records. A request must fail before that, so that its error is reported.
TRANSACTION_TIMEOUT_SECONDS = 10.0
REQUEST_TIMEOUT_SECONDS = 8.0
REQUEST_TIMEOUT_MS = int(REQUEST_TIMEOUT_SECONDS * 1000)
# Clients of commands ask for the metadata of a topic so soon after their first; the library's 100 ms is felt there.
METADATA_PACE_MS = 10
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # the largest message this client sends; topics set their own, lower limits
_security: dict[str, Any] = {}  # login and encryption, shared by every client of this process


@contextlib.contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Raise `BrokerUnavailable` for any error of the client; `what` opens its message and says what failed."""
    try:
        yield
    except (kafka_errors.KafkaError, OSError) as error:
        raise BrokerUnavailable(f"{what}: {in_words(error)}") from error


def in_words(error: BaseException) -> str:
    """Return an error of the client as text: its class and its message.

    A timeout over an encrypted or authenticated connection may hide a refusal, so the text says that too.
    """
    kind, text = type(error).__name__, str(error)
    said = text if kind in text else f"{kind}: {text}" if text else kind  # most of the client's texts name the class
    if (
        isinstance(error, kafka_errors.KafkaTimeoutError)
        and _security.get("security_protocol", "PLAINTEXT") != "PLAINTEXT"
    ):
        said += f" (or the {_security['security_protocol']} login or certificate was refused)"
    return said


def displaced_message(instance_id: str | None) -> str:
    """Return the error message for when another process uses our group instance id."""
    return (
        f"group member {instance_id} is already in use by another live process; "
        "give each its own ETL_INSTANCE_ID or slot"
    )


def create_client(kind: Any, **settings: Any) -> Any:
    """Construct a client of the library. If that fails, leave no thread and no socket behind."""
    networks: list[Any] = []

    def network(**told: Any) -> Any:
        networks.append(create_network(**told))
        if "retry_backoff_ms" in settings:  # the library does not pass it on to where it paces metadata
            networks[-1]._manager.cluster.config["retry_backoff_ms"] = settings["retry_backoff_ms"]  # noqa: SLF001
        return networks[-1]

    try:
        return kind(kafka_client=network, **settings)
    except BaseException:
        for left in networks:
            left.close()
            left._manager._net.close()  # noqa: SLF001 - a client that was never constructed has no public close
        raise


def secure(settings: Settings) -> None:
    """Set the encryption and the login that every later client of this process uses."""
    global _security  # noqa: PLW0603 - set up once for the process, like logging
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


def common(bootstrap_servers: str) -> dict[str, Any]:
    """Return the library settings shared by all clients."""
    return _security | {
        "bootstrap_servers": [server.strip() for server in bootstrap_servers.split(",")],
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "bootstrap_timeout_ms": 5000,
        "reconnect_backoff_max_ms": 1000,
        "metrics_enabled": False,
    }


def common_of_consumers(bootstrap_servers: str) -> dict[str, Any]:
    """Return the library settings shared by all consumers: no automatic commits, no automatic creation of topics."""
    return common(bootstrap_servers) | {
        "request_timeout_ms": 30_000,
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
    }


@contextlib.contextmanager
def admin_client(bootstrap_servers: str) -> Iterator[Any]:
    """Connect an admin client of the library for the length of the context."""
    admin = create_client(
        KafkaAdminClient, **{k: v for k, v in common(bootstrap_servers).items() if k != "metrics_enabled"}
    )
    try:
        yield admin
    finally:
        with contextlib.suppress(kafka_errors.KafkaError):
            admin.close()


def is_listening(bootstrap_servers: str, timeout: float = 1.0) -> bool:
    """Does any of these addresses accept a TCP connection within `timeout` seconds?

    A cheap test before a client is created: the library takes long to fail, and logs every attempt.
    """
    addresses = [_split(server) for server in bootstrap_servers.split(",")]
    if len(addresses) == 1:
        return _accepts(addresses[0], timeout)
    answers: SimpleQueue[bool] = SimpleQueue()
    for address in addresses:  # side by side: a dead one takes all of its time, a name that nobody resolves even more
        ask = partial(lambda one: answers.put(_accepts(one, timeout)), address)
        threading.Thread(target=ask, name="listening", daemon=True).start()
    with contextlib.suppress(Empty):
        return any(answers.get(timeout=2 * timeout) for _ in addresses)
    return False


def _accepts(address: tuple[str, int], timeout: float) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout):
        return True
    return False


def _split(server: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, HOST or [IPV6]:PORT."""
    server = server.strip()
    host, _, port = server.rpartition(":") if ":" in server.rpartition("]")[2] else (server, "", "")
    return host.strip("[]"), int(port or 9092)
