"""Gives orders to the consumers through `etl-control`, and tells which are in force."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from etl.api.acts.marks import put
from etl.errors import InvalidMessage
from etl.models.control import Acknowledge, Hold, Order, read_order

if TYPE_CHECKING:
    from etl.api.views.following import Following
    from etl.api.views.search import Search


class Orders:
    """The orders of an installation. Any thread; giving one may block for seconds, and raises BrokerUnavailable."""

    def __init__(self, bootstrap_servers: str, topic: str, search: Search, following: Following) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._search = search
        self._following = following

    def give(self, order: Order) -> None:
        """Give an order, instead of an earlier one with its key."""
        put(self._bootstrap_servers, self._topic, {order.key: order.to_json()}, self._following)

    def take_back(self, key: str) -> None:
        """Take an order back."""
        put(self._bootstrap_servers, self._topic, {key: None}, self._following)

    def get(self, key: str) -> Order | None:
        """Return the order with this key, also one that is over."""
        value = self._search.note(self._topic, key)
        return None if value is None else _read(key, value)

    def holds(self) -> list[Hold]:
        """Return the holds in force, newest first."""
        now = datetime.now(UTC)
        orders = [_read(row["key"], row["value"]) for row in self._search.notes(self._topic, "hold/")]
        return [one for one in orders if isinstance(one, Hold) and (one.until is None or one.until > now)]

    def known(self) -> list[Acknowledge]:
        """Return what somebody sees to, newest first."""
        return [one for one in self._acknowledged() if one.counts(datetime.now(UTC))]

    def acknowledge(self, order: Acknowledge) -> None:
        """Note that somebody sees to a need; drop such notes that are over, or the topic would only grow."""
        now = datetime.now(UTC)
        old = {one.key: None for one in self._acknowledged() if not one.counts(now) and one.key != order.key}
        put(self._bootstrap_servers, self._topic, {order.key: order.to_json(), **old}, self._following)

    def _acknowledged(self) -> list[Acknowledge]:
        orders = [_read(row["key"], row["value"]) for row in self._search.notes(self._topic, "known/")]
        return [one for one in orders if isinstance(one, Acknowledge)]


def _read(key: str, value: str) -> Order | None:
    try:
        return read_order(key, value.encode("utf-8", "replace"))
    except InvalidMessage:
        return None
