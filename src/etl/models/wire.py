"""The contents of a Kafka transaction: messages and offsets. Knows no Kafka client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Partition(NamedTuple):
    """A partition of a topic. Equal to the Kafka client's own tuple of the same values."""

    topic: str
    partition: int


class Commit(NamedTuple):
    """What is committed for one partition: the next offset, and metadata of at most 4096 bytes."""

    offset: int
    metadata: str


class Message(NamedTuple):
    """One record to send. If `partition` is None, the client chooses one by the key.

    `shrink` returns the messages to send instead if the topic refuses the size: a shorter form, or several messages
    that say the same. It is None if there is nothing shorter. `whole` is what this message has replaced, if anything.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None
    shrink: Callable[[], tuple[Message, ...]] | None = None
    whole: Message | None = None


@dataclass(frozen=True)
class Batch:
    """One transaction: the messages of outcomes, and the offsets that their partitions reach with it.

    `membership` is the consumer's group metadata, taken at the same moment as `offsets`: it fences them.
    """

    messages: tuple[Message, ...]
    offsets: Mapping[Partition, Commit]
    membership: object
    number: int = 0  # counted by its ledger
    clean: bool = False  # the last batch of an owner that stopped in good order and left no partial file
