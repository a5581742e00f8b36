"""Which processes are known, which of their records counts, and who is silent: by the reader's clock alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from etl.models.status import Snapshot
from etl.models.task import Record
from etl.status.fleet import Fleet

pytestmark = pytest.mark.unit

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
BROKER = AT.timestamp()


def snapshot(name: str = "h/0", seq: int = 1, incarnation: str = "a", **fields: Any) -> Snapshot:
    given: dict[str, Any] = {"kind": "consumer", "group": "g", "topic": "t", "at": AT, "started_at": AT}
    given |= {"interval_seconds": 2.0, "state": "running"} | fields
    return Snapshot(id=name, incarnation=incarnation, seq=seq, **given)


def told(one: Snapshot, appended: float = BROKER, key: str | None = None) -> Record:
    return Record("etl-status", 0, 0, (key or one.key).encode(), one.to_json(), timestamp=appended)


def states(fleet: Fleet, now: float) -> dict[str, str]:
    return {one.snapshot.id: one.state for one in fleet.processes(now)}


def test_the_newest_record_of_a_life_counts_and_a_new_life_counts_more() -> None:
    """By sequence and incarnation, not by any time in the record."""
    fleet = Fleet()
    assert fleet.accept(told(snapshot(seq=5)), 0.0)
    assert not fleet.accept(told(snapshot(seq=4)), 0.0)
    assert not fleet.accept(told(snapshot(seq=5)), 0.0)
    assert fleet.accept(told(snapshot(seq=1, incarnation="b")), 0.0)
    assert [one.snapshot.seq for one in fleet.processes(0.0)] == [1]


def test_a_process_is_silent_after_three_of_its_own_intervals() -> None:
    """One that said it stopped never is."""
    fleet = Fleet()
    fleet.caught_up(100.0)
    fleet.accept(told(snapshot("busy")), 100.0)
    fleet.accept(told(snapshot("idle", interval_seconds=5.0)), 100.0)
    fleet.accept(told(snapshot("gone", state="stopped")), 100.0)
    assert states(fleet, 106.9) == {"busy": "running", "gone": "stopped", "idle": "running"}
    assert states(fleet, 107.1) == {"busy": "silent", "gone": "stopped", "idle": "running"}
    assert states(fleet, 117.0) == {"busy": "silent", "gone": "stopped", "idle": "silent"}
    fleet.accept(told(snapshot("busy", seq=2)), 117.0)
    assert states(fleet, 117.0)["busy"] == "running"


@pytest.mark.parametrize("skew", [-600.0, 0.0, 600.0])
def test_what_was_there_before_is_as_old_as_the_broker_says(skew: float) -> None:
    """The clocks of hosts do not count: neither the writer's nor ours."""
    fleet = Fleet()
    at = datetime.fromtimestamp(BROKER + skew, UTC)
    fleet.accept(told(snapshot("dead", at=at), BROKER - 8), 50.0)
    fleet.accept(told(snapshot("alive", at=at), BROKER), 50.0)
    fleet.caught_up(50.0)
    assert states(fleet, 50.0) == {"alive": "running", "dead": "silent"}
    assert states(fleet, 57.5)["alive"] == "silent"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b"{",
        b'{"v":2}',
        b"\xff",
        b"1" * 300_000,
        json.dumps({"v": 1, "kind": "consumer", "id": "h/0"}).encode(),
        json.dumps(json.loads(snapshot().to_json()) | {"seq": -1}).encode(),
        json.dumps(json.loads(snapshot().to_json()) | {"lanes": {"size": 1e300}}).encode(),
    ],
)
def test_what_is_no_snapshot_is_counted_and_changes_nothing(value: bytes) -> None:
    """Anybody who may write the topic could write it."""
    fleet = Fleet()
    fleet.accept(told(snapshot()), 0.0)
    assert not fleet.accept(Record("etl-status", 0, 0, b"consumer/g/t/h/0", value, timestamp=BROKER), 0.0)
    assert (fleet.unreadable, len(fleet.processes(0.0))) == (1, 1)


def test_nobody_speaks_for_another() -> None:
    """A record whose key is another one's is no record."""
    fleet = Fleet()
    assert not fleet.accept(told(snapshot("h/1"), key="consumer/g/t/h/0"), 0.0)
    assert (fleet.unreadable, fleet.processes(0.0)) == (1, [])


def test_an_empty_record_removes_a_process() -> None:
    """A tombstone of the compacted topic."""
    fleet = Fleet()
    fleet.accept(told(snapshot()), 0.0)
    assert fleet.accept(Record("etl-status", 0, 1, snapshot().key.encode(), None), 0.0)
    assert fleet.processes(0.0) == []


def test_unknown_fields_are_ignored() -> None:
    """A later version may tell more."""
    value = json.loads(snapshot().to_json()) | {"later": {"x": 1}}
    assert Snapshot.from_json(json.dumps(value).encode()) == snapshot()
