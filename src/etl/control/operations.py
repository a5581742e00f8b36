"""What lets operators see a consumer and act on it: its parts, started and stopped together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from etl.broker import Admin
from etl.control.hands import Hands
from etl.control.listener import Listener
from etl.status.port import MetricsPort
from etl.status.publisher import Publisher
from etl.topics import companions
from etl.topics.companions import SystemTopics

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.config import Settings
    from etl.control.book import Book
    from etl.dispatch.dispatcher import Dispatcher
    from etl.lanes.lanes import Lanes
    from etl.outcomes.reporter import Reporter
    from etl.sessions.pools import Pools
    from etl.status.snapshot import Snapshots

LISTENER_SECONDS = 0.7  # limit for the thread that reads orders to end its poll


@dataclass(frozen=True)
class Operations:
    """The parts; `publisher` is None without ETL_STATUS, `port` without ETL_METRICS_PORT."""

    snapshots: Snapshots
    publisher: Publisher | None
    listener: Listener
    hands: Hands
    port: MetricsPort | None

    @classmethod
    def of(
        cls,
        bootstrap_servers: str,
        settings: Settings,
        snapshots: Snapshots,
        book: Book,
        dispatcher: Dispatcher,
        pools: Pools,
        lanes: Lanes,
        reporter: Reporter,
        drain: Callable[[str], None],
    ) -> Self:
        """Build them. Raises SettingsError if the metrics' port is taken."""
        topics = SystemTopics.of(settings)
        prepare = partial(companions.ensure_system, topics, Admin(bootstrap_servers))
        listener = Listener(bootstrap_servers, topics.control, book, prepare)
        number = settings.metrics_port and settings.metrics_port + snapshots.me.slot
        return cls(
            snapshots=snapshots,
            publisher=Publisher(bootstrap_servers, topics.status, snapshots, prepare) if settings.status else None,
            listener=listener,
            hands=Hands(book, snapshots, listener.ready, dispatcher, pools, lanes, reporter, drain),
            port=MetricsPort(number, snapshots.build) if number else None,
        )

    def start(self) -> None:
        """Start the threads."""
        self.listener.start()
        for part in (self.port, self.publisher):
            if part is not None:
                part.start()

    def begin_end(self, reason: str) -> None:
        """Tell that the process is ending. No order matters any more: the thread that reads them ends meanwhile."""
        self.snapshots.state, self.snapshots.reason = "draining", reason
        self.listener.stop(0)

    def stop(self) -> None:
        """Tell that the process has stopped, and end the threads."""
        self.snapshots.state = "stopped"
        if self.publisher is not None:
            self.publisher.stop()
        self.listener.stop(LISTENER_SECONDS)
        if self.port is not None:
            self.port.stop()
