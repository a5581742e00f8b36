"""The thread that publishes: on time, at once on news, never in the way, and quiet about a broker that is away."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import structlog.testing

from etl.errors import BrokerUnavailable
from etl.models.status import Snapshot
from etl.status import publisher
from etl.status.publisher import PAUSE_SECONDS, Publisher

pytestmark = pytest.mark.unit

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Source:
    """Something to publish, whose news a test sets."""

    key = "consumer/g/t/h/0"

    def __init__(self) -> None:
        self.seq = 0
        self.told: object = "calm"
        self.bug: Exception | None = None

    def news(self) -> object:
        return self.told

    def build(self) -> Snapshot:
        if self.bug:
            raise self.bug
        self.seq += 1
        given = {"kind": "consumer", "incarnation": "a", "seq": self.seq, "interval_seconds": 5.0, "state": "running"}
        return Snapshot(id="h/0", at=AT, started_at=AT, **given)  # type: ignore[arg-type]  # checked by the model


class Broker:
    """The seam to Kafka."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.error: BrokerUnavailable | None = None
        self.connects = 0

    def connect(self, _: str) -> Broker:
        self.connects += 1
        return self

    def send(self, topic: str, key: bytes, value: bytes) -> bool:
        if self.error:
            raise self.error
        assert (topic, key) == ("etl-status", b"consumer/g/t/h/0")
        self.sent.append(Snapshot.from_json(value).seq)
        return True


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(publisher, "Beacon", broker.connect)
    return broker


def test_it_speaks_in_its_intervals_and_at_once_on_news(broker: Broker) -> None:
    """The topic is prepared, and connected to, once."""
    source, prepared = Source(), list[int]()
    made = Publisher("b", "etl-status", source, lambda: prepared.append(1))
    for now in (0.0, 1.0, 4.9):
        made.step(now)
    assert broker.sent == [1]
    made.step(5.0)
    source.told = "a server is down"
    made.step(6.0)
    made.step(7.0)
    assert (broker.sent, broker.connects, prepared) == ([1, 2, 3], 1, [1])


def test_a_broker_that_is_away_is_told_once_and_asked_seldom(broker: Broker) -> None:
    """Nothing piles up: what was not sent is dropped."""
    made = Publisher("b", "etl-status", Source(), lambda: None)
    broker.error = BrokerUnavailable("away")
    with structlog.testing.capture_logs() as lines:
        for now in range(25):
            made.step(float(now))
    assert [line["event"] for line in lines] == ["status not published"]
    broker.error = None
    made.step(25.0)
    made.step(20.0 + PAUSE_SECONDS)
    assert broker.sent == [4]


def test_a_bug_ends_nothing(broker: Broker) -> None:
    """It is logged once, and tried again."""
    source = Source()
    source.bug = ZeroDivisionError("x")
    made = Publisher("b", "etl-status", source, lambda: None)
    with structlog.testing.capture_logs() as lines:
        made.step(0.0)
        made.step(PAUSE_SECONDS)
    assert [line["log_level"] for line in lines] == ["warning"]
    source.bug = None
    made.step(2 * PAUSE_SECONDS)
    assert broker.sent == [1]
