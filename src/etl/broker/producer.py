"""Commits outcomes: messages and offsets in one transaction, and reports how the transaction ended.

Knows neither what the messages say nor what to do after a failed transaction.
"""

from __future__ import annotations

import contextlib
import re
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import structlog
from kafka import KafkaConsumer, KafkaProducer
from kafka import TopicPartition as ClientPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from etl import clock
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
from etl.errors import (
    BrokerRefused,
    BrokerUnavailable,
    CommitRejected,
    CommitUnknown,
    Fenced,
    MessageRefused,
    MessageTooLarge,
    TopicRefused,
)
from etl.models.wire import Batch, Commit, Message, Partition

Place = tuple[Partition, int]  # of a message: its partition and offset
Note = Callable[[list[Place]], Sequence[Message]]

# What the broker says of a topic, or of one of its partitions, whatever the message is.
_NO_SUCH_TOPIC = (kafka_errors.UnknownTopicOrPartitionError, kafka_errors.InvalidTopicError)
_LATE = (kafka_errors.KafkaTimeoutError, kafka_errors.RequestTimedOutError)
_OF_PARTITION = (
    kafka_errors.NotEnoughReplicasError,
    kafka_errors.NotEnoughReplicasAfterAppendError,
    kafka_errors.LeaderNotAvailableError,
    kafka_errors.NotLeaderForPartitionError,
    kafka_errors.KafkaStorageError,
)
_OF_TOPIC = (
    *_NO_SUCH_TOPIC,
    *_OF_PARTITION,
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.CorruptRecordError,
)
# What it says of the producer or its transaction.
_OF_SENDER = (
    kafka_errors.AuthorizationError,
    kafka_errors.ConcurrentTransactionsError,
    kafka_errors.DuplicateSequenceNumberError,
    kafka_errors.InvalidProducerEpochError,
    kafka_errors.InvalidProducerIdMappingError,
    kafka_errors.InvalidTxnStateError,
    kafka_errors.OutOfOrderSequenceNumberError,
    kafka_errors.ProducerFencedError,
    kafka_errors.TransactionAbortableError,
    kafka_errors.TransactionCoordinatorFencedError,
    kafka_errors.UnknownProducerIdError,
)
log = structlog.get_logger(__name__)

_ALLOWED_TIMES = re.compile(r"within \[(-?\d+), (\d+)\]")  # of a message, in the broker's refusal of another time
_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


AVOIDED_SECONDS = 60.0  # for which a partition that accepts nothing is left alone
TOPIC_SECONDS = 5.0  # for which a message waits for the broker to name the partitions of its topic


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

    def _wait_on_metadata(self, topic: str, max_wait_ms: float) -> Any:
        """Return the partitions of a topic. A topic that is not there is no reason to hold others up for long."""
        return super()._wait_on_metadata(topic, min(max_wait_ms, TOPIC_SECONDS * 1000))

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
        self._avoided: dict[Partition, float] = {}  # partitions that accept nothing, and until when they are left alone
        self._behind_seconds = 0.0  # what is taken off the times of messages: our clock is ahead of the broker's

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
            MessageRefused: if nothing was committed, because the broker refuses a message (or its size) for what it is.
            TopicRefused: if nothing was committed, because one topic accepts no message now.
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
                try:
                    places += self._send(producer, note(list(places)))
                except MessageRefused as error:
                    error.index += len(messages)
                    raise
            if offsets:
                producer.send_offsets_to_transaction(
                    {ClientPartition(*tp): OffsetAndMetadata(at, said) for tp, (at, said) in offsets.items()},
                    membership,
                )
        except (MessageRefused, TopicRefused):
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
        stamp_ms = int((clock.now() - self._behind_seconds) * 1000)
        try:
            for index, message in enumerate(messages):
                try:
                    future = producer.send(
                        message.topic,
                        value=message.value,
                        key=message.key,
                        headers=list(message.headers),
                        partition=self._choose_partition(producer, message),
                        timestamp_ms=stamp_ms,
                    )
                except kafka_errors.MessageSizeTooLargeError as error:
                    raise MessageTooLarge(in_words(error), index=index) from error
                except (kafka_errors.KafkaTimeoutError, *_NO_SUCH_TOPIC, kafka_errors.AuthorizationError) as error:
                    # Only a topic that the broker does not know makes `send` wait.
                    raise TopicRefused(f"topic {message.topic}: {in_words(error)}", topic=message.topic) from error
                futures.append(future)
            # Wait for each message, not with flush(): that fails when the client splits a batch that is too large.
            end = time.monotonic() + TRANSACTION_TIMEOUT_SECONDS
            told = [future.get(timeout=max(0.0, end - time.monotonic())) for future in futures]
            if told and told[-1].timestamp != stamp_ms:  # the topic has the broker's time
                clock.hear(told[-1].timestamp / 1000)
                self._behind_seconds = 0.0
            return [(Partition(one.topic, one.partition), int(one.offset)) for one in told]
        except kafka_errors.KafkaError:
            failures = {index: future.exception for index, future in enumerate(futures) if future.failed()}
            if not (self._adjust(failures.values()) or self._avoid(producer, messages, futures)):
                _raise_refusal(messages, failures, any(future.succeeded() for future in futures))
            raise

    def _choose_partition(self, producer: _Producer, message: Message) -> int | None:
        """Return the partition of a message; None if its key decides, as all of its topic accept messages."""
        if not self._avoided:
            return message.partition
        now = time.monotonic()
        self._avoided = {place: until for place, until in self._avoided.items() if until > now}
        if message.partition is not None or not any(place.topic == message.topic for place in self._avoided):
            return message.partition
        left = [
            one for one in sorted(producer.partitions_for(message.topic)) if (message.topic, one) not in self._avoided
        ]
        return left[zlib.crc32(message.key or b"") % len(left)] if left else None

    def _avoid(self, producer: _Producer, messages: Sequence[Message], futures: Sequence[Any]) -> bool:
        """Avoid a partition that accepts nothing while others of its topic may; return whether there is one."""
        others_came = any(future.succeeded() for future in futures)
        for message, future in zip(messages, futures, strict=False):
            failed = isinstance(future.exception, (*_OF_PARTITION, *_LATE) if others_came else _OF_PARTITION)
            if message.partition is not None or not failed:
                continue
            place = Partition(*future._produce_future.topic_partition)  # noqa: SLF001 - there is no public way
            self._avoided[place] = time.monotonic() + AVOIDED_SECONDS
            if any((place.topic, one) not in self._avoided for one in producer.partitions_for(place.topic)):
                log.warning("partition accepts nothing: others are used", topic=place.topic, partition=place.partition)
                return True
        return False

    def _adjust(self, failures: Iterable[BaseException]) -> bool:
        """Choose other times for messages if the broker refused ours: it says within which limits they must be."""
        for allowed in filter(None, (_ALLOWED_TIMES.search(str(error)) for error in failures)):
            earliest, latest = (int(limit) / 1000 for limit in allowed.groups())
            now = clock.now()
            self._behind_seconds = now - max(earliest + 1, min(now, latest - 1))
            log.error(
                "clock differs from the broker's, which refuses our times: messages get others",
                seconds=round(self._behind_seconds),
            )
            return True
        return False

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


def _raise_refusal(messages: Sequence[Message], failures: Mapping[int, Any], others_came: bool) -> None:
    """Raise MessageRefused or TopicRefused if the failures of these messages have one of them or one topic as cause.

    Returns if they say nothing of the kind: the broker is away, or the producer was fenced.
    """
    # One refused message makes others fail with other errors: look for the refusal among all of them.
    large = [index for index, error in failures.items() if isinstance(error, _TOO_LARGE)]
    if large:
        # Messages that share a produce request fail together: the largest is the one to shorten.
        index = max(large, key=lambda i: len(messages[i].value or b""))
        raise MessageTooLarge(in_words(failures[index]), index=index) from failures[index]
    if any(_is_fence(error) for error in failures.values()):
        return
    refused = [index for index, error in failures.items() if _is_refusal(error)]
    if refused:
        index, said = refused[0], failures[refused[0]]
        raise MessageRefused(
            f"topic {messages[index].topic}: {in_words(said)}", index=index, is_alone=len(refused) == 1
        ) from said
    for index, error in failures.items():
        if isinstance(error, (*_OF_TOPIC, *_LATE) if others_came else _OF_TOPIC):
            topic = messages[index].topic
            raise TopicRefused(f"topic {topic}: {in_words(error)}", topic=topic) from error


def _is_refusal(error: Any) -> bool:
    """Was a message refused for what it is? Waiting would not help, and neither topic nor sender is at fault."""
    return isinstance(error, kafka_errors.BrokerResponseError) and not isinstance(
        error, (kafka_errors.RetriableError, *_OF_TOPIC, *_OF_SENDER)
    )


def _is_fence(error: BaseException) -> bool:
    """Was the producer fenced? If its own thread noticed first, the client wraps that in a plain KafkaError."""
    # The second is the answer to a produce request.
    fences = (kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError)
    return any(isinstance(part, fences) for part in (error, *error.args))
