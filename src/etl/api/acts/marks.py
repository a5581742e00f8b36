"""The topic `etl-marks`, read through the cache: what the API is at, and which requests it has answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from etl import broker
from etl.errors import BrokerUnavailable
from etl.models.wire import Message, Partition

if TYPE_CHECKING:
    from etl.api.views.following import Following
    from etl.api.views.search import Search

CATCH_UP_SECONDS = 30.0


class Marks:
    """Reads and writes marks. Any thread may use it; writing may block for seconds, and raises BrokerUnavailable."""

    def __init__(self, bootstrap_servers: str, topic: str, search: Search, following: Following) -> None:
        self._bootstrap_servers = bootstrap_servers
        self.topic = topic
        self._search = search
        self._following = following

    def get(self, key: str) -> str | None:
        """Return the value of a mark."""
        return self._search.note(self.topic, key)

    def all(self, prefix: str) -> dict[str, str]:
        """Return the marks whose keys begin so, newest first, by the rest of their keys."""
        return {row["key"][len(prefix) :]: row["value"] for row in self._search.notes(self.topic, prefix)}

    def older_than(self, prefix: str, seconds: float) -> list[str]:
        """Return the keys that begin so and were written so long ago."""
        limit = time.time() - seconds
        return [row["key"] for row in self._search.notes(self.topic, prefix) if row["at"] < limit]

    def message(self, key: str, value: str | None) -> Message:
        """Return the message that sets a mark."""
        return Message(self.topic, key.encode(), None if value is None else value.encode())

    def put(self, marks: Mapping[str, str | None]) -> None:
        """Set marks, in their order, and wait until they can be read here."""
        values = {key: None if value is None else value.encode() for key, value in marks.items()}
        put(self._bootstrap_servers, self.topic, values, self._following)

    def wait_for(self, place: broker.Place) -> None:
        """Wait until a mark can be read here that was written to this place. Raises BrokerUnavailable."""
        partition, offset = place
        if not self._following.wait_until({partition: offset + 1}, CATCH_UP_SECONDS):
            raise BrokerUnavailable(f"topic {self.topic} cannot be read to its end: a transaction may be open")

    def catch_up(self) -> None:
        """Wait until all that was written by now can be read here. Raises BrokerUnavailable."""
        catch_up(self._bootstrap_servers, self.topic, self._following)


def catch_up(
    bootstrap_servers: str, topic: str, following: Following, is_stopping: Callable[[], bool] = lambda: False
) -> None:
    """Wait until the view has all of a topic that was written by now. Raises BrokerUnavailable."""
    with broker.Reader(bootstrap_servers, topic, committed=False) as reader:
        ends = {Partition(topic, partition): end for partition, end in reader.ends().items()}
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while not following.wait_until(ends, 1.0):
        if is_stopping() or time.monotonic() > deadline:
            raise BrokerUnavailable(f"topic {topic} cannot be read to its end: a transaction may be open")


def put(bootstrap_servers: str, topic: str, values: Mapping[str, bytes | None], following: Following) -> None:
    """Write records to a compacted topic, in order, and wait until the view has them. Raises BrokerUnavailable."""
    with broker.Writer(bootstrap_servers) as writer:
        deliveries = [writer.send(topic, key.encode(), value) for key, value in values.items()]
        places = [delivery.result() for delivery in deliveries]
    following.wait_until({Partition(topic, partition): offset + 1 for partition, offset in places}, CATCH_UP_SECONDS)
