"""Sends messages outside any transaction, each with its own acknowledgement, for the commands."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Self

from kafka import KafkaProducer
from kafka import errors as kafka_errors

from etl.broker.connection import (
    MAX_MESSAGE_BYTES,
    METADATA_PACE_MS,
    TRANSACTION_TIMEOUT_SECONDS,
    common,
    create_client,
    translate_errors,
)

BEACON_BYTES = 1 << 20  # most that a Beacon sends at once


class Delivery:
    """A message in flight."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def result(self, timeout: float = TRANSACTION_TIMEOUT_SECONDS) -> tuple[int, int]:
        """Wait up to `timeout` seconds for the acknowledgement; return its partition and offset.

        Raises BrokerUnavailable if it failed, or if it is late; in that case the message may still be written.
        """
        with translate_errors("message was not acknowledged"):
            told = self._future.get(timeout=timeout)
        return told.partition, told.offset


class Beacon:
    """Sends the newest state of something, outside transactions, and never waits for an acknowledgement.

    One thread at a time. While a message is on its way a further one is dropped: the next one is newer anyway.
    """

    def __init__(self, bootstrap_servers: str) -> None:
        """Connect. Raises BrokerUnavailable."""
        with translate_errors(f"broker {bootstrap_servers} cannot be reached"):
            self._producer = create_client(
                KafkaProducer,
                **common(bootstrap_servers),
                acks=1,
                enable_idempotence=False,
                retries=0,
                compression_type="lz4",
                max_block_ms=2000,
                delivery_timeout_ms=10_000,
                linger_ms=0,
                max_request_size=BEACON_BYTES,
                allow_auto_create_topics=False,
            )
        self._last: Any = None

    def send(self, topic: str, key: bytes, value: bytes) -> bool:
        """Send a message; return False if it was dropped. May block for two seconds. Raises BrokerUnavailable.

        What is raised may be the fate of the last message.
        """
        with translate_errors(f"message to {topic} was not sent"):
            if self._last is not None:
                if not self._last.is_done:
                    return False
                last, self._last = self._last, None
                last.get(timeout=0)
            self._last = self._producer.send(topic, value=value, key=key)
            return True

    def close(self, timeout: float) -> None:
        """Send what is on its way, for `timeout` seconds at most, and disconnect. Never raises."""
        with contextlib.suppress(kafka_errors.KafkaError):
            self._producer.close(timeout=timeout)


class Writer:
    """Sends messages outside transactions, idempotently and acknowledged by all replicas. One thread at a time."""

    def __init__(self, bootstrap_servers: str) -> None:
        with translate_errors(f"broker {bootstrap_servers} cannot be reached"):
            self._producer = create_client(
                KafkaProducer,
                **common(bootstrap_servers),
                retry_backoff_ms=METADATA_PACE_MS,
                max_request_size=MAX_MESSAGE_BYTES,
                max_block_ms=int(TRANSACTION_TIMEOUT_SECONDS * 1000),
                delivery_timeout_ms=30_000,
                linger_ms=5,
                allow_auto_create_topics=False,
            )

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> Delivery:
        """Queue one message; `result` of the returned delivery waits for its acknowledgement.

        May block while the topic's metadata is fetched. Raises BrokerUnavailable.
        """
        with translate_errors(f"message to {topic} was refused"):
            return Delivery(self._producer.send(topic, value=value, key=key, headers=list(headers)))

    def flush(self, timeout: float = 30.0) -> None:
        """Wait up to `timeout` seconds until every message is acknowledged or has failed. Raises BrokerUnavailable."""
        with translate_errors("messages were not acknowledged"):
            self._producer.flush(timeout=timeout)

    def close(self) -> None:
        """Send what is still queued, for five seconds at most, and disconnect. Never raises."""
        with contextlib.suppress(kafka_errors.KafkaError):
            self._producer.close(timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
