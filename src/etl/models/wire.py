"""What goes to Kafka in one transaction: messages, and offsets. Knows no Kafka client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Partition(NamedTuple):
    """A partition of a topic; equal to any other tuple of the two, the client's own among them."""

    topic: str
    partition: int


class Commit(NamedTuple):
    """What a commit says of one partition: the next offset, and metadata (4096 bytes at most)."""

    offset: int
    metadata: str


class Message(NamedTuple):
    """One record to be sent. `partition` None: the client chooses by the key.

    `shrink` gives what is sent instead when the topic refuses its size: a shorter form, or other messages
    that say the same; None when there is nothing shorter.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None
    shrink: Callable[[], tuple[Message, ...]] | None = None


@dataclass(frozen=True)
class Batch:
    """One transaction: outcomes' messages, and where their partitions stand once they are committed.

    `membership` (the consumer's group metadata) was taken at the same moment as `offsets`: it fences them.
    """

    messages: tuple[Message, ...]
    offsets: Mapping[Partition, Commit]
    membership: object
    number: int = 0  # of its ledger
    clean: bool = False  # the last one of an owner that ended in good order
