"""Orders carried out in a consumer whose parts are real, and whose lanes a test plays."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from etl.control.book import Book
from etl.control.hands import Hands
from etl.lanes.run import Run
from etl.models.control import Cancel, Drain, Hold, Order, TryNow
from etl.models.task import Record
from scene import DOWN, JOB, NOW, Scene, result_in, succeed

pytestmark = pytest.mark.unit

AT = datetime.fromtimestamp(NOW, UTC)


class Acting:
    """A scene with hands."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.book, self.ready, self.runs = scene, Book(), threading.Event(), list[Run]()
        self.drained: list[str] = []
        me = SimpleNamespace(topic="jobs", group_id="group", token="cafe")
        self.snapshots = SimpleNamespace(me=me, key="consumer/group/jobs/h/0", held_by=None)
        self.hands = Hands(
            book=self.book,
            snapshots=self.snapshots,  # type: ignore[arg-type]  # as far as hands ask it
            ready=self.ready,
            dispatcher=scene.dispatcher,
            pools=scene.pools,
            lanes=SimpleNamespace(runs=lambda: self.runs),  # type: ignore[arg-type]  # lanes are threads
            reporter=scene.reporter,
            drain=self.drained.append,
            clock=scene.clock,
        )
        scene.runner.require_wanted = scene.admission.require_wanted = self.book.require_wanted
        self.book.go_live()
        self.ready.set()

    def give(self, kind: Any, **fields: Any) -> Order:
        """Give an order and have it carried out."""
        order: Order = kind(author="eve", at=AT, reason="why", **fields)
        self.book.note(Record("etl-control", 0, 0, order.key.encode(), order.to_json()))
        self.hands.tick()
        return order

    def take_back(self, order: Order) -> None:
        """Take an order back."""
        self.book.note(Record("etl-control", 0, 1, order.key.encode(), None))
        self.hands.tick()


@pytest.fixture
def acting(scene: Scene) -> Acting:
    return Acting(scene)


def failure(acting: Acting) -> Any:
    messages = acting.scene.messages()
    assert set(messages) == {"jobs-dlq", "jobs-results"}
    return result_in(messages["jobs-results"])


def test_nothing_is_read_before_the_orders_are_known(acting: Acting) -> None:
    """A hold counts from the first record on."""
    acting.ready.clear()
    assert acting.hands.takes_nothing
    acting.ready.set()
    assert not acting.hands.takes_nothing


@pytest.mark.parametrize(("what", "name"), [("topic", "jobs"), ("group", "group")])
def test_a_held_topic_or_group_stops_this_process(acting: Acting, what: str, name: str) -> None:
    """Until the release, or its end; others' topics and groups do not."""
    scene = acting.scene
    acting.give(Hold, what=what, name="other")
    assert not acting.hands.takes_nothing
    scene.accept()
    order = acting.give(Hold, what=what, name=name, until=AT + timedelta(seconds=60))
    assert acting.hands.takes_nothing
    assert "eve" in (acting.snapshots.held_by or "")
    assert scene.dispatcher.take(0) is None
    acting.take_back(order)
    assert (acting.hands.takes_nothing, acting.snapshots.held_by) == (False, None)
    acting.give(Hold, what=what, name=name, until=AT + timedelta(seconds=60))
    assert acting.hands.takes_nothing
    scene.clock.pass_(61)
    acting.hands.tick()
    assert not acting.hands.takes_nothing
    scene.run(succeed)


def test_a_held_server_keeps_its_jobs_without_attempts_or_patience(acting: Acting) -> None:
    """What is too much goes to T-retry, as for a server that is down, but waits for no outage."""
    scene = acting.scene
    order = acting.give(Hold, what="server", name="B")
    for number in range(20):
        scene.accept({**JOB, "job_id": f"j{number}", "destination": {"hostname": "B", "path": f"/{number}"}})
    assert scene.dispatcher.take(0) is None
    scene.defer_overflow()
    batch = scene.commit()
    assert batch is not None
    assert {message.topic for message in batch.messages} == {"jobs-retry"}
    headers = [dict(message.headers) for message in batch.messages]
    assert not any("etl-attempts" in one or "etl-waiting-since" in one for one in headers)
    assert all("etl-recallable" in one for one in headers)
    assert scene.reporter.totals.retries == {"held": len(headers)}
    acting.take_back(order)
    scene.run(succeed)


def test_a_waiting_job_is_cancelled_at_once_and_a_later_one_when_it_comes(acting: Acting) -> None:
    """Each is a dead letter with the reason."""
    acting.scene.accept()
    acting.give(Cancel, place="jobs-0-0")
    result = failure(acting)
    assert (result.error_code, result.error) == ("CANCELLED", "cancelled by eve: why")
    acting.give(Cancel, place="jobs-0-1")
    acting.scene.accept()
    assert failure(acting).error_code == "CANCELLED"
    acting.scene.accept()
    acting.scene.run(succeed)
    assert set(acting.scene.messages()) == {"jobs-results"}


def test_a_running_job_is_aborted_and_has_one_outcome(acting: Acting) -> None:
    """Also if it was taken and its run had not begun."""
    scene = acting.scene
    scene.accept()
    while (taken := scene.dispatcher.take(0)) is not None:
        run = Run(*taken, 0.0, None, lambda: memoryview(bytearray(16)))
        if taken[1].is_pair:
            break
        scene.runner.execute(run)
        scene.dispatcher.finish(taken[0], run.again_in)
    acting.give(Cancel, place="jobs-0-0")
    assert scene.messages() == {}
    scene.runner.execute(run)
    scene.dispatcher.finish(run.task, run.again_in)
    assert failure(acting).error_code == "CANCELLED"


def test_a_drain_is_for_this_life_and_obeyed_once(acting: Acting) -> None:
    """Not for another process, nor for the one that was here before."""
    acting.give(Drain, process="consumer/group/jobs/h/1", incarnation="cafe")
    acting.give(Drain, process="consumer/group/jobs/h/0", incarnation="babe")
    assert acting.drained == []
    acting.give(Drain, process="consumer/group/jobs/h/0", incarnation="cafe")
    acting.give(TryNow, server="NOBODY")
    assert acting.drained == ["drained by eve: why"]


def test_a_server_that_is_down_is_tried_when_asked(acting: Acting) -> None:
    """Also within the wait after a refused login."""
    scene = acting.scene
    scene.accept()
    scene.dispatcher.failed("B", DOWN)
    assert scene.dispatcher.take(0) is None
    acting.give(TryNow, server="B")
    scene.run(succeed)
    assert set(scene.messages()) == {"jobs-results"}
