"""Gives orders, takes them back, and writes each act into the audit: for commands and the API alike.

Every method may block for seconds, and raises BrokerUnavailable.
"""

from __future__ import annotations

import getpass
import os
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from etl import broker
from etl.control.book import Book
from etl.logs import redact
from etl.models.control import AuditRecord, Cancel
from etl.topics import companions

if TYPE_CHECKING:
    from etl.models.control import Order
    from etl.topics.companions import SystemTopics


class Operator:
    """One operator at work. `via` and `address` say how he came: for a command, from this host's shell."""

    def __init__(
        self, bootstrap_servers: str, topics: SystemTopics, actor: str, via: str = "cli", address: str | None = None
    ) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topics = topics
        self.actor = actor
        self._via = via
        self._address = address
        companions.ensure_system(topics, broker.Admin(bootstrap_servers))
        self._writer = broker.Writer(bootstrap_servers)
        self._name = f"{via}:{actor}-{secrets.token_hex(4)}"  # a writer of the audit, which begins a chain of its own

    def orders(self) -> Book:
        """Return the orders that were given."""
        return read_book(self._bootstrap_servers, self._topics.control)

    def give(self, order: Order, action: str) -> None:
        """Give an order; return once it is written."""
        self._writer.send(self._topics.control, order.key.encode(), order.to_json()).result()
        self.record(action, target=order.key.partition("/")[2], reason=order.reason or None)

    def take_back(self, key: str, action: str, reason: str | None = None) -> None:
        """Take an order back; so do cancellations that are too old to count, or the topic would only grow."""
        now = datetime.now(UTC)
        book = self.orders()
        in_force = {order.key for order in book.orders(now)}
        old = [order.key for order in book.all() if isinstance(order, Cancel) and order.key not in in_force]
        for one in (key, *old):
            self._writer.send(self._topics.control, one.encode(), None)
        self._writer.flush()
        self.record(action, target=key.partition("/")[2], reason=reason)

    def record(self, action: str, **fields: Any) -> None:
        """Write one act into the audit: fields of `AuditRecord`."""
        if isinstance(fields.get("reason"), str):
            fields["reason"] = redact(fields["reason"])
        record = AuditRecord(
            at=datetime.now(UTC),
            writer=self._name,
            actor=self.actor,
            via=self._via,
            address=self._address,
            action=action,
            **fields,
        )
        self._writer.send(self._topics.audit, self._name.encode(), record.to_json()).result()

    def close(self) -> None:
        """Disconnect."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_book(bootstrap_servers: str, topic: str) -> Book:
    """Return the orders that were given by now. Raises BrokerUnavailable, also if the topic does not exist."""
    book = Book()
    with broker.Reader(bootstrap_servers, topic, committed=False) as reader:
        for record in reader.scan():
            book.note(record)
    return book


def user_at_host() -> str:
    """Return who uses this shell: USER@HOST."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        name = str(os.getuid())
    return f"{name}@{os.uname().nodename}"
