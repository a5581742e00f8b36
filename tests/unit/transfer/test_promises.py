"""Promises that a session has not settled yet."""

from __future__ import annotations

import pytest

from etl.errors import IOFailure
from etl.transfer.promises import Unsettled

pytestmark = pytest.mark.unit


def test_all_are_settled_in_their_order_and_an_error_is_told_to_who_asks() -> None:
    promises, asked = Unsettled(), list[int]()

    def fail() -> None:
        asked.append(0)
        raise IOFailure("no")

    failing = promises.later(fail)
    promises.later(lambda: asked.append(1))
    promises.settle()
    promises.settle()
    assert asked == [0, 1]
    with pytest.raises(IOFailure, match="no"):
        failing.result()


def test_where_nothing_may_be_asked_only_those_are_settled_that_ask_nothing() -> None:
    """The others keep their order, also behind what is promised later."""
    promises, asked = Unsettled(), list[str]()
    promises.later(lambda: asked.append("first"))
    promises.later(lambda: asked.append("answered"), asks_more=False)
    assert promises.asks_more
    promises.settle(answered=True)
    assert asked == ["answered"]
    promises.later(lambda: asked.append("last"))
    promises.settle()
    assert asked == ["answered", "first", "last"]
    assert not promises.asks_more


def test_those_that_somebody_asked_for_are_not_kept() -> None:
    """However many there were: a session may live for hours, and never be flushed."""
    promises = Unsettled()
    for _ in range(1000):
        promises.later(lambda: 1).result()
        assert not promises.asks_more
    assert not promises._promises
