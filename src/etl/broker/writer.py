"""Plain writing, for the command line: messages outside any transaction, each with its acknowledgement."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Self

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from etl.broker.connection import (
    MAX_MESSAGE_BYTES,
    TRANSACTION_TIMEOUT_SECONDS,
    common,
    create_client,
    translate_errors,
)


class Delivery:
    """A message on its way."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def result(self, timeout: float = TRANSACTION_TIMEOUT_SECONDS) -> tuple[int, int]:
        """Wait for the acknowledgement; return (partition, offset). Raises BrokerUnavailable."""
        with translate_errors("message was not acknowledged"):
            told = self._future.get(timeout=timeout)
        return told.partition, told.offset


class Writer:
    """Sends messages outside transactions, idempotently and acknowledged by all replicas."""

    def __init__(self, bootstrap_servers: str) -> None:
        with translate_errors(f"broker {bootstrap_servers} cannot be reached"):
            self._producer = create_client(
                KafkaProducer,
                **common(bootstrap_servers),
                max_request_size=MAX_MESSAGE_BYTES,
                max_block_ms=int(TRANSACTION_TIMEOUT_SECONDS * 1000),
                delivery_timeout_ms=30_000,
                linger_ms=5,
                allow_auto_create_topics=False,
            )

    def send(self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> Delivery:
        """Send one message; ask the returned delivery for its acknowledgement."""
        with translate_errors(f"message to {topic} was refused"):
            return Delivery(self._producer.send(topic, value=value, key=key, headers=list(headers)))

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until everything sent was acknowledged or failed."""
        with translate_errors("messages were not acknowledged"):
            self._producer.flush(timeout=timeout)

    def close(self) -> None:
        """Disconnect, sending what is left."""
        with contextlib.suppress(kafka_errors.KafkaError):
            self._producer.close(timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
