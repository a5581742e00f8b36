"""The orders in force, as `etl-control` tells them. Any thread; knows no Kafka client and carries nothing out."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from etl.errors import Cancelled, InvalidMessage
from etl.models.control import Acknowledge, Cancel, Drain, Hold, Order, Target, TryNow, read_order

if TYPE_CHECKING:
    from datetime import datetime

    from etl.models.task import Record, Task

MOST_ORDERS = 100_000  # a flooded topic fills no memory
CANCEL_SECONDS = 30 * 86400.0  # as long as a job is kept: a cancellation does not count any more


class Book:
    """All orders, by their keys. `version` changes with each of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._orders: dict[str, Order] = {}
        self._tries: list[TryNow] = []  # that came since the last look
        self._is_live = False
        self.version = 0
        self.unreadable = 0  # records that are no orders

    def note(self, record: Record) -> None:
        """Take in a record, in the order of the topic."""
        key = (record.key or b"").decode("utf-8", "replace")
        order: Order | None = None
        if record.value is not None or record.fault is not None:
            try:
                order = read_order(key, record.value)
            except InvalidMessage:
                self.unreadable += 1  # it takes back what was there: whoever may write orders may also end them
        with self._lock:
            self.version += 1
            if order is None:
                self._orders.pop(key, None)
            elif key in self._orders or len(self._orders) < MOST_ORDERS:
                self._orders[key] = order
                if self._is_live and isinstance(order, TryNow):
                    self._tries.append(order)

    def go_live(self) -> None:
        """Note that the topic was read to its end: what comes from now on is new."""
        with self._lock:
            self._is_live = True

    @property
    def is_live(self) -> bool:
        """Was the topic read to its end?"""
        return self._is_live

    def clear(self) -> None:
        """Forget everything: the topic is another one."""
        with self._lock:
            self._orders, self._is_live, self.version = {}, False, self.version + 1

    def orders(self, now: datetime) -> list[Order]:
        """Return all orders that are in force at `now`."""
        return [order for order in self.all() if _in_force(order, now)]

    def all(self) -> list[Order]:
        """Return all orders, also those that do not count any more."""
        with self._lock:
            return list(self._orders.values())

    def holds(self, what: Target, now: datetime) -> dict[str, Hold]:
        """Return the holds of servers, topics or groups in force, by name."""
        return {one.name: one for one in self.orders(now) if isinstance(one, Hold) and one.what == what}

    def cancel_of(self, place: str) -> Cancel | None:
        """Return the cancellation of a job that was first delivered there."""
        order = self._orders.get(f"cancel/{place}")  # without the lock: one look, and asked for each record
        return order if isinstance(order, Cancel) else None

    def require_wanted(self, task: Task) -> None:
        """Raise Cancelled for a job that was cancelled. Any thread."""
        if self._orders and (order := self.cancel_of(str(task.origin))) is not None:
            raise cancelled(order)

    def drain_of(self, process: str, incarnation: str) -> Drain | None:
        """Return the order that this life of a process is to leave."""
        order = self._orders.get(f"drain/{process}")
        return order if isinstance(order, Drain) and order.incarnation == incarnation else None

    def take_tries(self) -> list[TryNow]:
        """Return the servers to be tried at once, each only once."""
        with self._lock:
            tries, self._tries = self._tries, []
        return tries


def cancelled(order: Cancel) -> Cancelled:
    """Return the error that ends a cancelled job."""
    return Cancelled(f"cancelled by {order.author}" + (f": {order.reason}" if order.reason else ""))


def _in_force(order: Order, now: datetime) -> bool:
    if isinstance(order, Acknowledge):
        return order.counts(now)
    if isinstance(order, Hold):
        return order.until is None or order.until > now
    return not isinstance(order, Cancel) or (now - order.at).total_seconds() < CANCEL_SECONDS
