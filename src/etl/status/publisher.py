"""The thread `status`: publishes snapshots with a producer of its own, and is never waited for.

A record goes out when its time has come, or within a second of news. If the broker is away, or slow, snapshots are
dropped: the next one says more. Knows nothing of what a snapshot tells.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

import structlog

from etl.broker import Beacon
from etl.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.status import Snapshot

STEP_SECONDS = 1.0  # at most one record in that time
PAUSE_SECONDS = 10.0  # without a try, after an error
FAREWELL_SECONDS = 0.5  # for the last record to get away

log = structlog.get_logger(__name__)


class Source(Protocol):
    """What is published."""

    @property
    def key(self) -> str:
        """The key of the records."""
        ...

    def news(self) -> object:
        """Return what is told at once when it changes."""
        ...

    def build(self) -> Snapshot:
        """Return the snapshot of this moment."""
        ...


class Publisher:
    """Publishes the snapshots of `source` to `topic`, from `start` until `stop`.

    `prepare` sees to it that the topic is there.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        source: Source,
        prepare: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._source = source
        self._clock = clock
        self._prepare = prepare
        self._beacon: Beacon | None = None
        self._due = 0.0
        self._news: object = None
        self._last_error = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = FAREWELL_SECONDS * 2) -> bool:
        """Publish once more and end; return whether that was within `timeout` seconds."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.wait(STEP_SECONDS):
            self.step(self._clock())
        if self._beacon is not None:  # without a connection nobody has heard of us
            self._due = self._clock()
            self.step(self._due)
            self._beacon.close(FAREWELL_SECONDS)

    def step(self, now: float) -> None:
        """Publish a snapshot if one is due. Blocks for seconds while the broker is away; never raises."""
        try:
            news = self._source.news()
            if now < self._due and (news == self._news or self._last_error):
                return
            snapshot = self._source.build()
            if self._beacon is None:
                self._prepare()
                self._beacon = Beacon(self._bootstrap_servers)
            self._beacon.send(self._topic, self._source.key.encode(), snapshot.to_json())
        except BrokerUnavailable as error:
            self._fail(now, error)
        except Exception as error:  # noqa: BLE001 - a bug here must not end the thread
            self._fail(now, error, exc_info=error)
        else:
            self._last_error = ""
            self._news, self._due = news, now + snapshot.interval_seconds

    def _fail(self, now: float, error: Exception, **more: object) -> None:
        self._due = now + PAUSE_SECONDS
        if str(error) != self._last_error:
            log.warning("status not published", topic=self._topic, error=str(error), **more)
        self._last_error = str(error)
