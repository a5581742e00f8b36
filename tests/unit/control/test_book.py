"""The orders in force: replaced by a later one of their key, ended by an empty record, bounded, obeyed once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from etl.control.book import Book
from etl.errors import Cancelled, InvalidMessage
from etl.models.control import Cancel, Drain, Hold, Order, TryNow, new_order, read_order
from etl.models.task import Record

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def order(kind: Any, **fields: Any) -> Any:
    return kind(author="eve@host", at=NOW, **fields)


def record(one: Order, value: bytes | None = b"?") -> Record:
    return Record("etl-control", 0, 0, one.key.encode(), one.to_json() if value == b"?" else value)


HOLD = order(Hold, what="server", name="A", until=NOW + timedelta(hours=1))
CANCEL = order(Cancel, place="jobs-3-17", reason="by mistake")
DRAIN = order(Drain, process="consumer/g/t/h/0", incarnation="a")
TRY = order(TryNow, server="A")


@pytest.mark.parametrize("one", [HOLD, CANCEL, DRAIN, TRY])
def test_an_order_is_read_as_it_was_written(one: Order) -> None:
    """And under its own key alone: nobody holds one server in the name of another."""
    assert read_order(one.key, one.to_json()) == one
    with pytest.raises(InvalidMessage, match="another order"):
        read_order(f"{one.key}x", one.to_json())


def test_a_hold_counts_until_its_end_or_its_release() -> None:
    """By its name."""
    book = Book()
    book.note(record(HOLD))
    assert book.holds("server", NOW) == {"A": HOLD}
    assert book.holds("topic", NOW) == {}
    assert book.holds("server", NOW + timedelta(hours=2)) == {}
    book.note(record(HOLD, None))
    assert book.holds("server", NOW) == {}


@pytest.mark.parametrize("value", [b"", b"[]", b"{", b'{"kind":"hold"}', b"\xff", b"x" * 100_000])
def test_what_is_no_order_is_counted_and_holds_nothing(value: bytes) -> None:
    """Each one changes the version, so that whoever obeyed the last one looks again."""
    book = Book()
    book.note(record(HOLD))
    before = book.version
    book.note(record(HOLD, value))
    assert (book.unreadable, book.orders(NOW)) == (1, [])
    assert book.version > before


def test_a_cancelled_job_is_not_wanted(a_task: Any) -> None:
    """Wherever it comes from: its origin is what counts."""
    book = Book()
    book.require_wanted(a_task)
    book.note(record(CANCEL))
    with pytest.raises(Cancelled, match="cancelled by eve@host: by mistake"):
        book.require_wanted(a_task)


def test_a_cancellation_is_forgotten_after_a_month_and_a_drain_is_for_one_life() -> None:
    """Jobs are kept no longer; the next life of the process is not drained."""
    book = Book()
    book.note(record(CANCEL))
    book.note(record(DRAIN))
    assert CANCEL in book.orders(NOW + timedelta(days=29))
    assert CANCEL not in book.orders(NOW + timedelta(days=31))
    assert book.drain_of("consumer/g/t/h/0", "a") == DRAIN
    assert book.drain_of("consumer/g/t/h/0", "b") is None
    assert book.drain_of("consumer/g/t/h/1", "a") is None


def test_only_a_new_wish_to_try_a_server_is_obeyed_and_once() -> None:
    """Not those that were in the topic before."""
    book = Book()
    book.note(record(TRY))
    book.go_live()
    assert book.take_tries() == []
    book.note(record(TRY))
    assert book.take_tries() == [TRY]
    assert book.take_tries() == []


def test_a_reason_that_is_too_long_and_a_name_that_is_none_are_refused() -> None:
    """The field is named."""
    with pytest.raises(InvalidMessage, match="reason"):
        new_order(TryNow, "eve", "x" * 501, server="A")
    with pytest.raises(InvalidMessage, match="server"):
        new_order(TryNow, "eve", "", server="a\nb")
