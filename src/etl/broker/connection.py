"""How every client is made: where it connects, how it logs in, its time limits, and its errors in our words.

Knows nothing of what a client is used for.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient

from etl.errors import BrokerUnavailable

if TYPE_CHECKING:
    from etl.config import Settings

TRANSACTION_TIMEOUT_SECONDS = 10.0
REQUEST_TIMEOUT_SECONDS = 8.0
REQUEST_TIMEOUT_MS = int(REQUEST_TIMEOUT_SECONDS * 1000)
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # what this client is willing to send; topics set their own, lower limits
_security: dict[str, Any] = {}  # of every client of this process


@contextlib.contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Turn the client's errors into `BrokerUnavailable`, naming what was tried."""
    try:
        yield
    except (kafka_errors.KafkaError, OSError) as error:
        raise BrokerUnavailable(f"{what}: {in_words(error)}") from error


def in_words(error: BaseException) -> str:
    """Return an error of the client as text: its kind, what it says, and what else may be behind a timeout."""
    kind, text = type(error).__name__, str(error)
    said = text if kind in text else f"{kind}: {text}" if text else kind  # the client's own name it
    if (
        isinstance(error, kafka_errors.KafkaTimeoutError)
        and _security.get("security_protocol", "PLAINTEXT") != "PLAINTEXT"
    ):
        said += f" (or {_security['security_protocol']} was refused: its login, or its certificate)"
    return said


def displaced_message(instance_id: str | None) -> str:
    """Return what to say of a rival that is the member of the group that we are."""
    return f"another live process is group member {instance_id}, too: each needs its own ETL_INSTANCE_ID or slot"


def create_client(kind: Any, **settings: Any) -> Any:
    """Construct a client of the library; one that cannot reach the broker leaves no thread and no socket behind."""
    networks: list[Any] = []

    def network(**told: Any) -> Any:
        networks.append(KafkaNetClient(**told))
        return networks[-1]

    try:
        return kind(kafka_client=network, **settings)
    except BaseException:
        for left in networks:
            left.close()
            left._manager._net.close()  # noqa: SLF001 - the constructor failed before it could be closed
        raise


def secure(settings: Settings) -> None:
    """Make every client of this process talk and log in to Kafka as the settings say."""
    global _security  # noqa: PLW0603 - set up once for the process, as its logs are
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
    """Return the settings that every client has."""
    return _security | {
        "bootstrap_servers": [server.strip() for server in bootstrap_servers.split(",")],
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "bootstrap_timeout_ms": 5000,
        "reconnect_backoff_max_ms": 1000,
        "metrics_enabled": False,
    }


def common_of_consumers(bootstrap_servers: str) -> dict[str, Any]:
    """Return the settings that every consumer has: nothing is committed or made by the way."""
    return common(bootstrap_servers) | {
        "request_timeout_ms": 30_000,
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
    }


@contextlib.contextmanager
def admin_client(bootstrap_servers: str) -> Iterator[Any]:
    """Give an admin client of the library while the context lasts."""
    admin = create_client(
        KafkaAdminClient, **{k: v for k, v in common(bootstrap_servers).items() if k != "metrics_enabled"}
    )
    try:
        yield admin
    finally:
        with contextlib.suppress(kafka_errors.KafkaError):
            admin.close()


def is_listening(bootstrap_servers: str, timeout: float = 1.0) -> bool:
    """Tell whether any of these addresses takes connections: asked before a client, which is slow and loud about it."""
    for server in bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":") if ":" in server.rpartition("]")[2] else (server.strip(), "", "")
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port or 9092)), timeout):
            return True
    return False
