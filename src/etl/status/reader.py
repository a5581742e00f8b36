"""Reads `etl-status` from its start, and follows it: the fleet as of now. One thread at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from etl.broker import Reader
from etl.status.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etl.models.task import Record


class StatusReader:
    """The processes of an installation. `fleet` is filled by `catch_up`, and kept up to date by `follow`.

    Every method may block for seconds, and raises BrokerUnavailable.
    """

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self.fleet = Fleet()
        self._reader = Reader(bootstrap_servers, topic, committed=False)
        self._ends: dict[int, int] = {}

    def catch_up(self) -> None:
        """Read the topic to its end."""
        self._ends = self._reader.ends()
        for record in self._reader.scan(self._ends):
            self.fleet.accept(record, time.monotonic())
        self.fleet.caught_up(time.monotonic())

    def follow(self) -> Iterator[Record | None]:
        """Take in what comes from now on, and yield it; None about every half second without anything."""
        for record in self._reader.follow(self._ends):
            if record is not None:
                self.fleet.accept(record, time.monotonic())
            yield record

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
