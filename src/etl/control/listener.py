"""The thread `control`: keeps a book of the orders in `etl-control`. Knows nothing of what orders do."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

from etl.broker import Follower
from etl.errors import BrokerUnavailable
from etl.models.wire import Partition

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.control.book import Book

POLL_SECONDS = 0.5
PAUSE_SECONDS = 5.0  # after an error

log = structlog.get_logger(__name__)


class Listener:
    """Reads `topic` from its start into `book`, and on. `prepare` sees to it that the topic is there."""

    def __init__(self, bootstrap_servers: str, topic: str, book: Book, prepare: Callable[[], None]) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._partition = Partition(topic, 0)
        self._book = book
        self._prepare = prepare
        self._next = 0  # offset
        self._last_error = ""
        self._stopping = threading.Event()
        self.ready = threading.Event()  # the topic was read to its end, or cannot be read
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """End the thread; return whether it ended within `timeout` seconds."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._prepare()
                with Follower(self._bootstrap_servers) as follower:
                    self._follow(follower)
            except Exception as error:  # a bug here must not end the thread either
                is_expected = isinstance(error, BrokerUnavailable)
                if str(error) != self._last_error:
                    self._last_error = str(error)
                    log.warning(
                        "orders not read: holds and cancellations do not count",
                        topic=self._partition.topic,
                        error=str(error),
                        exc_info=None if is_expected else error,
                    )
                self.ready.set()
                self._stopping.wait(PAUSE_SECONDS)

    def _follow(self, follower: Follower) -> None:
        first, end = follower.bounds([self._partition])[self._partition]
        if end < self._next:  # the topic is another one
            self._book.clear()
            self._next = 0
        self._next = max(first, self._next)
        follower.follow({self._partition: self._next})
        while not self._stopping.is_set():
            for record in follower.poll(POLL_SECONDS):
                self._book.note(record)
            self._next = follower.positions()[self._partition]
            if self._next >= end and not self._book.is_live:
                self._book.go_live()
            if self._book.is_live:
                self._last_error = ""
                self.ready.set()
