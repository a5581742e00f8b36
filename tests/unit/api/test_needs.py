"""What somebody sees to: known to all, not urgent, and back when it grows, begins anew or the time is over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apiworld import NOW, World
from etl.models.control import KNOWN_FOR, Acknowledge, read_order
from etl.models.task import Record
from etl.status.summary import MORE_JOBS, Need

pytestmark = pytest.mark.unit

AT = datetime(2026, 3, 2, 7, 0, tzinfo=UTC)


def order(**fields: Any) -> Acknowledge:
    given = {"author": "ann", "at": AT, "reason": "seen", "need": "server-down", "name": "SRC", "jobs": 10}
    return Acknowledge(**{**given, **fields})  # type: ignore[arg-type]  # checked by the model


def ago(minutes: float) -> datetime:
    return AT - timedelta(minutes=minutes)


@pytest.mark.parametrize(
    ("need", "known", "is_as_known"),
    [
        (Need("server-down", "SRC", ago(10), 10), order(), True),
        (Need("server-down", "SRC", ago(10), 20 + MORE_JOBS), order(), True),
        (Need("server-down", "SRC", ago(10), 21 + MORE_JOBS), order(), False),
        (Need("server-down", "SRC", ago(-1), 10), order(), False),
        (Need("server-down", "SRC", ago(-1), 10), order(since=ago(-1)), True),
        (Need("dead-letters", "5 X", None, 5, newest=ago(1)), order(), True),
        (Need("dead-letters", "5 X", None, 5, newest=ago(-1)), order(), False),
        (Need("settings-differ", "t g", None, 0), order(), True),
    ],
    ids=["the same", "a little more", "much more", "began anew", "a fast clock", "letters", "a new letter", "no time"],
)
def test_what_has_grown_or_begun_anew_is_not_what_was_seen(
    need: Need, known: Acknowledge, *, is_as_known: bool
) -> None:
    """Claim: an acknowledgement is of one occurrence, of about one size."""
    assert need.is_as_known(known) == is_as_known


def test_none_lasts_for_ever() -> None:
    """Claim: it ends when it says so, and after 30 days at the latest."""
    assert order().counts(AT + KNOWN_FOR - timedelta(seconds=1))
    assert not order().counts(AT + KNOWN_FOR)
    assert not order(until=AT + timedelta(hours=1)).counts(AT + timedelta(hours=1))


def test_one_of_the_end_of_time_stops_nobody() -> None:
    """Claim: whoever may write the topic may write any time, which every consumer reads."""
    assert order(at=datetime.max.replace(tzinfo=UTC)).counts(AT)


def test_its_record_can_be_read_whatever_its_name_holds() -> None:
    """Claim: names with slashes, and those too long or unprintable for a key, find their need again."""
    for subject in ("a/b to c/d", "x" * 5000, "A:/\u202e\x07"):
        name = Need("transfer-stalled", subject).name
        written = order(need="transfer-stalled", name=name)
        assert read_order(written.key, written.to_json()) == written


def test_the_summary_tells_who_sees_to_it(filled: World) -> None:
    """Claim: dead letters that somebody sees to are told with name and reason, and are urgent no more."""
    with filled.client("viewer") as client:
        (before,) = [one for one in client.get("/api/v1/summary").json()["needs"] if one["kind"] == "dead-letters"]
        assert before["is_urgent"]
        later = datetime.now(UTC) + timedelta(seconds=1)
        written = order(need="dead-letters", name=before["name"], jobs=7, at=later)
        filled.take(Record("etl-control", 0, 0, written.key.encode(), written.to_json(), (), NOW))
        told = client.get("/api/v1/summary").json()
    (after,) = [one for one in told["needs"] if one["kind"] == "dead-letters"]
    assert (after["is_urgent"], after["known"]["author"], after["known"]["reason"]) == (False, "ann", "seen")
    assert told["known"] == 1


def test_a_viewer_sees_to_nothing(filled: World) -> None:
    """Claim: it is an act of an operator, and needs a reason; without Kafka it is refused; it is in the audit."""
    body = {"kind": "dead-letters", "name": "all", "reason": "seen"}
    with filled.client("viewer") as viewer, filled.client("operator") as operator:
        url = "/api/v1/needs/acknowledgements"
        assert viewer.post(url, json=body).status_code == 403
        assert viewer.delete(f"{url}?kind=dead-letters&name=all").status_code == 403
        assert operator.post(url, json={**body, "reason": ""}).status_code == 422
        assert operator.post(url, json={**body, "until": "2020-01-01T00:00:00Z"}).status_code == 422
        assert operator.post(url, json=body).status_code == 503
    assert [(act["action"], act["result"]) for act in filled.acts[-1:]] == [("acknowledge", "failed")]
