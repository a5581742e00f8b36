"""Commits outcomes: messages and offsets in one transaction, and reports how the transaction ended.

Knows neither what the messages say nor what to do after a failed transaction.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
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

Place = tuple[Partition, int]  # of a message: its partition and offset
Note = Callable[[list[Place]], Sequence[Message]]

_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


class _Producer(KafkaProducer):  # type: ignore[misc]  # untyped library
    """A producer whose transactional calls have a time limit: the library waits for their replies without one."""

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
        """End at once, whatever is pending: `close` alone would raise because of it and leave its thread running."""
        self._sender.force_close()
        with contextlib.suppress(Exception):  # the producer is given up: no error of it matters any more
            self.close(timeout=0)


class TransactionalProducer:
    """A transactional producer that survives its errors: whatever happened to a transaction, the next starts clean.

    One thread at a time. `transactional_id` must be unique among live processes and the same after a restart, so that
    the successor of a process ends what that left open. Every call may block for tens of seconds.
    """

    def __init__(self, bootstrap_servers: str, transactional_id: str, group_id: str = "") -> None:
        self._bootstrap_servers = bootstrap_servers
        self._transactional_id = transactional_id
        self._group_id = group_id  # the group for which offsets are committed
        self._producer: _Producer | None = None

    def __repr__(self) -> str:
        state = "closed" if self._producer is None else "open"
        return f"<TransactionalProducer {self._transactional_id} {state}>"

    def open(self) -> None:
        """Take the transactional id: end a transaction that its last holder left open, and fence a live rival.

        Does nothing if already open. Raises BrokerUnavailable; call again then.
        """
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
                retry_backoff_ms=5,  # also the wait before the next transaction while the last one is being completed
                allow_auto_create_topics=False,
            )
            producer.init_transactions()
        except (kafka_errors.KafkaError, OSError) as error:
            if producer is not None:
                producer.discard()
            raise BrokerUnavailable(
                f"transactional producer {self._transactional_id} cannot be opened: {in_words(error)}"
            ) from error
        self._producer = producer

    def commit(self, batch: Batch) -> None:
        """Send the messages and offsets of a batch in one transaction; open the producer first if it is closed.

        Raises:
            CommitUnknown: if the transaction may or may not be committed; `recover` finds out.
            CommitRejected: if nothing was committed; the batch may be sent again.
            Fenced: if nothing was committed, because another process uses our id, or because the transaction timed out
                while the broker was away.
            MessageTooLarge: if nothing was committed, because a topic refuses the size of a message.
            BrokerRefused: if nothing was committed, because another live process uses our group instance id.
        """
        self._transact(batch.messages, batch.offsets, batch.membership)

    def transact(self, messages: Sequence[Message], note: Note | None = None) -> list[Place]:
        """Send messages in one transaction, without offsets; return their places. Raises what `commit` raises.

        `note` is told the places before the commit, and returns further messages for the same transaction, whose places
        are the last ones.
        """
        return self._transact(messages, None, None, note)

    def _transact(
        self,
        messages: Sequence[Message],
        offsets: Mapping[Partition, Commit] | None,
        membership: object,
        note: Note | None = None,
    ) -> list[Place]:
        try:
            self.open()
        except BrokerUnavailable as error:
            raise CommitRejected(str(error)) from error
        producer = self._producer
        assert producer is not None  # noqa: S101 - open() would have raised
        # Until the commit is requested, an error proves that nothing was committed. After that only a reply does.
        try:
            producer.begin_transaction()
            places = self._send(producer, messages)
            if note is not None:
                places += self._send(producer, note(list(places)))
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
        return places

    def _send(self, producer: _Producer, messages: Sequence[Message]) -> list[Place]:
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
            # Wait for each message, not with flush(): that fails when the client splits a batch that is too large.
            end = time.monotonic() + TRANSACTION_TIMEOUT_SECONDS
            told = [future.get(timeout=max(0.0, end - time.monotonic())) for future in futures]
            return [(Partition(one.topic, one.partition), int(one.offset)) for one in told]
        except kafka_errors.KafkaError as error:
            # One refused message makes later ones fail with other errors: look for the refusal among all of them.
            refused = {
                index: future.exception
                for index, future in enumerate(futures)
                if isinstance(future.exception, _TOO_LARGE)
            }
            if not refused:
                raise
            # Messages that share a produce request fail together: the largest is the one to shorten.
            index = max(refused, key=lambda i: len(messages[i].value or b""))
            raise MessageTooLarge(in_words(refused[index]), index=index) from error

    def _abort(self, producer: _Producer) -> None:
        """Abort a failed transaction and discard the producer.

        The library would carry state over into the next transaction: refused offsets, which would then be committed
        even for partitions that another member owns by now, and sequence numbers of records that were never written.
        """
        with contextlib.suppress(
            kafka_errors.KafkaError, OSError
        ):  # if that fails, the next open() ends the transaction
            producer.abort_transaction()
        self.discard()

    def discard(self) -> None:
        """Drop the producer at once; the next `open` creates another, which ends a transaction left open."""
        if self._producer is not None:
            self._producer.discard()
            self._producer = None

    def recover(self, batch: Batch) -> dict[Partition, Commit]:
        """After CommitUnknown: return the offsets that the group has committed in the partitions of the batch.

        An offset of -1 stands for none. Raises BrokerUnavailable while that cannot be known yet; call again then.
        """
        self.open()  # completes or aborts the transaction, so that the offsets read next are final
        with translate_errors("committed offsets cannot be read"), contextlib.closing(self._reader()) as reader:
            found = {
                partition: reader.committed(ClientPartition(*partition), metadata=True, timeout_ms=REQUEST_TIMEOUT_MS)
                for partition in batch.offsets
            }
        return {p: Commit(told.offset, told.metadata or "") if told else Commit(-1, "") for p, told in found.items()}

    def _reader(self) -> Any:
        """Create a consumer to read offsets: unlike the admin client, it waits for an ending transaction."""
        settings = common_of_consumers(self._bootstrap_servers)
        return create_client(KafkaConsumer, **settings, group_id=self._group_id, isolation_level="read_committed")

    def close(self, timeout: float = 3.0) -> None:
        """Close the producer within `timeout` seconds, by force if need be. Never raises; `open` may follow."""
        if self._producer is not None:
            try:
                self._producer.close(timeout=timeout)
            except (kafka_errors.KafkaError, OSError):
                self._producer.discard()
            self._producer = None


def _is_fence(error: BaseException) -> bool:
    """Was the producer fenced? If its own thread noticed first, the client wraps that in a plain KafkaError."""
    # The second is the answer to a produce request.
    fences = (kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError)
    return any(isinstance(part, fences) for part in (error, *error.args))
