"""Carries the orders out in this consumer. Belongs to its main thread.

Holds of servers go to the dispatcher, which treats such a server like one that is down. Holds of the topic or the group
stop the whole process. A cancelled job is ended wherever it is: before it begins, while it waits, while it runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from etl.control.book import cancelled
from etl.errors import OnHold
from etl.models.control import Cancel

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from etl.control.book import Book
    from etl.dispatch.dispatcher import Dispatcher
    from etl.lanes.lanes import Lanes
    from etl.models.control import Hold
    from etl.models.task import Task
    from etl.outcomes.reporter import Reporter
    from etl.sessions.pools import Pools
    from etl.status.snapshot import Snapshots

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0  # between two looks without a new order: a hold may have ended


@dataclass
class Hands:
    """What the orders do here. `snapshots` says who we are, and tells of holds; `drain` ends the process."""

    book: Book
    snapshots: Snapshots
    ready: threading.Event  # the orders were read, or cannot be read
    dispatcher: Dispatcher
    pools: Pools
    lanes: Lanes
    reporter: Reporter
    drain: Callable[[str], None]
    clock: Callable[[], float] = time.time  # wall clock
    hold: Hold | None = None  # of the whole process
    _seen: int = -1
    _due: float = 0.0
    _drains: bool = False

    @property
    def takes_nothing(self) -> bool:
        """Must no record be read: because of a hold, or because it is not known yet whether there is one?"""
        return self.hold is not None or not self.ready.is_set()

    def tick(self) -> None:
        """Carry out what is new. Cheap when nothing is."""
        now = self.clock()
        if self.book.version == self._seen and now < self._due:
            return
        has_news, self._seen, self._due = self.book.version != self._seen, self.book.version, now + LOOK_SECONDS
        at = datetime.fromtimestamp(now, UTC)
        servers = self.book.holds("server", at)
        self.dispatcher.hold({name: OnHold(_words(one), server=name) for name, one in servers.items()})
        me = self.snapshots.me
        own = self.book.holds("topic", at).get(me.topic) or self.book.holds("group", at).get(me.group_id)
        if own != self.hold:
            log.warning("on hold", hold=_words(own)) if own is not None else log.info("hold released")
            self.hold = own
            self.snapshots.held_by = None if own is None else _words(own)
            self.dispatcher.pause(paused=own is not None)
        if not has_news:
            return
        self._cancel(at)
        for wanted in self.book.take_tries():
            log.info("server is to be tried now", server=wanted.server, by=wanted.author)
            self.pools.try_now(wanted.server)
            self.dispatcher.try_now(wanted.server)
        order = self.book.drain_of(self.snapshots.key, self.snapshots.me.token)
        if order is not None and not self._drains:
            self._drains = True
            self.drain(f"drained by {order.author}" + (f": {order.reason}" if order.reason else ""))

    def _cancel(self, at: datetime) -> None:
        """End the jobs here that were cancelled."""
        places = {order.place: order for order in self.book.orders(at) if isinstance(order, Cancel)}
        if not places:
            return

        def picked(task: Task) -> bool:
            return str(task.origin) in places

        for run in self.lanes.runs():
            if picked(run.task):
                run.abort(cancelled(places[str(run.task.origin)]))
        # A run that begins after that look asks the book by itself (`Book.require_wanted`).
        for task in self.dispatcher.drop(picked, running=False):
            self.reporter.dead(task, cancelled(places[str(task.origin)]))


def _words(hold: Hold) -> str:
    until = "" if hold.until is None else f" until {hold.until:%Y-%m-%d %H:%M} UTC"
    return f"{hold.what} {hold.name} is on hold by {hold.author}{until}" + (f": {hold.reason}" if hold.reason else "")
