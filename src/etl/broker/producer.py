"""Committing outcomes: messages and offsets in one transaction, and how each ended.

Knows nothing of what the messages say, nor of what to do after a transaction that failed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer, KafkaProducer
from kafka import TopicPartition as ClientPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from etl.broker.connection import (
    MAX_MESSAGE_BYTES,
    REQUEST_TIMEOUT_MS,
    REQUEST_TIMEOUT_SECONDS,
    TRANSACTION_TIMEOUT_SECONDS,
    common,
    common_of_consumers,
    create_client,
    displaced_message,
    in_words,
    translate_errors,
)
from etl.errors import BrokerRefused, BrokerUnavailable, CommitRejected, CommitUnknown, Fenced, MessageTooLarge
from etl.models.wire import Batch, Commit, Message, Partition

_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


class _Producer(KafkaProducer):  # type: ignore[misc]  # untyped library
    """A producer whose transactional calls end: the library waits for their replies without a limit."""

    def _within(self, result: Any, what: str) -> None:
        self._sender.wakeup()
        if not result.wait(timeout_ms=REQUEST_TIMEOUT_MS):
            raise kafka_errors.KafkaTimeoutError(f"no reply to {what} within {REQUEST_TIMEOUT_SECONDS:g} s")

    def send_offsets_to_transaction(self, offsets: Any, group_metadata: Any) -> None:
        self._within(self._transaction_manager.send_offsets_to_transaction(offsets, group_metadata), "the offsets")

    def commit_transaction(self) -> None:
        self._within(self._transaction_manager.begin_commit(), "the commit")

    def abort_transaction(self) -> None:
        self._within(self._transaction_manager.begin_abort(), "the abort")

    def discard(self) -> None:
        """End at once, whatever is pending: `close` alone would raise for that before it ends its thread."""
        self._sender.force_close()
        with contextlib.suppress(Exception):  # it is broken already; whatever it still says changes nothing
            self.close(timeout=0)


class TransactionalProducer:
    """A transactional producer that survives: whatever happens to a transaction, the next one starts clean.

    One thread at a time. Its `transactional_id` must be unique to a live process and the same after a restart.
    """

    def __init__(self, bootstrap_servers: str, transactional_id: str, group_id: str = "") -> None:
        self._bootstrap_servers = bootstrap_servers
        self._transactional_id = transactional_id
        self._group_id = group_id  # whose offsets are committed
        self._producer: _Producer | None = None

    def open(self) -> None:
        """Become the one holder of the transactional id: ends what a predecessor left open, fences a rival."""
        if self._producer is not None:
            return
        producer = None
        try:
            producer = create_client(
                _Producer,
                **common(self._bootstrap_servers),
                transactional_id=self._transactional_id,
                transaction_timeout_ms=int(TRANSACTION_TIMEOUT_SECONDS * 1000),
                delivery_timeout_ms=int(TRANSACTION_TIMEOUT_SECONDS * 1000),
                max_block_ms=int(TRANSACTION_TIMEOUT_SECONDS * 1000),
                max_request_size=MAX_MESSAGE_BYTES,
                batch_size=256 * 1024,
                linger_ms=2,
                retry_backoff_ms=5,  # the wait between back-to-back transactions
                allow_auto_create_topics=False,
            )
            producer.init_transactions()
        except (kafka_errors.KafkaError, OSError) as error:
            if producer is not None:
                producer.discard()
            raise BrokerUnavailable(f"no transactional producer {self._transactional_id}: {in_words(error)}") from error
        self._producer = producer

    def commit(self, batch: Batch) -> None:
        """Send a batch's messages and offsets in one transaction.

        Raises CommitRejected (surely not committed), CommitUnknown (ask with `recover`), MessageTooLarge,
        Fenced (surely not committed; somebody uses our id, or the transaction timed out while the broker was away),
        BrokerRefused (surely not committed; another live process is the member of the group that we were).
        """
        self._transact(batch.messages, batch.offsets, batch.membership)

    def transact(self, messages: Sequence[Message]) -> None:
        """Send messages in one transaction; raises as `commit`."""
        self._transact(messages, None, None)

    def _transact(
        self, messages: Sequence[Message], offsets: Mapping[Partition, Commit] | None, membership: object
    ) -> None:
        try:
            self.open()
        except BrokerUnavailable as error:
            raise CommitRejected(str(error)) from error
        producer = self._producer
        assert producer is not None  # noqa: S101 - open() raised otherwise
        try:
            producer.begin_transaction()
            self._send(producer, messages)
            if offsets:
                producer.send_offsets_to_transaction(
                    {ClientPartition(*tp): OffsetAndMetadata(at, said) for tp, (at, said) in offsets.items()},
                    membership,
                )
        except MessageTooLarge:
            self._abort(producer)
            raise
        except kafka_errors.FencedInstanceIdError as error:
            self._abort(producer)
            raise BrokerRefused(displaced_message(getattr(membership, "group_instance_id", None))) from error
        except (kafka_errors.KafkaError, OSError) as error:
            if _is_fence(error):
                self.discard()
                raise Fenced(f"transactional id {self._transactional_id}: {in_words(error)}") from error
            self._abort(producer)
            raise CommitRejected(in_words(error)) from error
        try:
            producer.commit_transaction()
        except (kafka_errors.KafkaError, OSError) as error:
            self.discard()
            raise CommitUnknown(in_words(error)) from error

    def _send(self, producer: _Producer, messages: Sequence[Message]) -> None:
        futures: list[Any] = []
        try:
            for index, message in enumerate(messages):
                try:
                    future = producer.send(
                        message.topic,
                        value=message.value,
                        key=message.key,
                        headers=list(message.headers),
                        partition=message.partition,
                    )
                except kafka_errors.MessageSizeTooLargeError as error:
                    raise MessageTooLarge(in_words(error), index=index) from error
                futures.append(future)
            # Not flush(): it fails when the client splits a batch that is too large for the topic.
            end = time.monotonic() + TRANSACTION_TIMEOUT_SECONDS
            for future in futures:
                future.get(timeout=max(0.0, end - time.monotonic()))
        except kafka_errors.KafkaError as error:  # one refusal makes the sends that follow it fail, in other words
            refused = {
                index: future.exception
                for index, future in enumerate(futures)
                if isinstance(future.exception, _TOO_LARGE)
            }
            if not refused:
                raise
            # messages that share a produce request fail together: the largest is the one to shorten
            index = max(refused, key=lambda i: len(messages[i].value or b""))
            raise MessageTooLarge(in_words(refused[index]), index=index) from error

    def _abort(self, producer: _Producer) -> None:
        """End a transaction that failed, and the producer with it.

        The library takes over from it into the next one: offsets that were refused, which would be committed then, also
        of partitions that are another member's by now; and sequence numbers of records that were never written.
        """
        with contextlib.suppress(kafka_errors.KafkaError, OSError):  # else the next open() ends the transaction
            producer.abort_transaction()
        self.discard()

    def discard(self) -> None:
        """Drop the producer; the next `open` makes a new one, which ends a transaction left open."""
        if self._producer is not None:
            self._producer.discard()
            self._producer = None

    def recover(self, batch: Batch) -> dict[Partition, Commit]:
        """End the batch's transaction one way or the other, then read what the group has committed.

        Raises BrokerUnavailable: not known yet, call again.
        """
        self.open()
        with translate_errors("committed offsets cannot be read"), contextlib.closing(self._reader()) as reader:
            found = {
                partition: reader.committed(ClientPartition(*partition), metadata=True, timeout_ms=REQUEST_TIMEOUT_MS)
                for partition in batch.offsets
            }
        return {p: Commit(told.offset, told.metadata or "") if told else Commit(-1, "") for p, told in found.items()}

    def _reader(self) -> Any:
        """Return a consumer to ask for offsets: unlike the admin client it waits for those of an ending transaction."""
        settings = common_of_consumers(self._bootstrap_servers)
        return create_client(KafkaConsumer, **settings, group_id=self._group_id, isolation_level="read_committed")

    def close(self, timeout: float = 3.0) -> None:
        """Close the producer in good order."""
        if self._producer is not None:
            try:
                self._producer.close(timeout=timeout)
            except (kafka_errors.KafkaError, OSError):
                self._producer.discard()
            self._producer = None


def _is_fence(error: BaseException) -> bool:
    """Was the producer fenced? Noticed by its own thread first, the client wraps that in a plain KafkaError."""
    fences = (
        kafka_errors.ProducerFencedError,
        kafka_errors.InvalidProducerEpochError,
    )  # the second: of a produce request
    return any(isinstance(part, fences) for part in (error, *error.args))
