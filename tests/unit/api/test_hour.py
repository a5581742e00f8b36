"""The last hour of a server: added up from what processes say, bounded, and the same after a restart."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from apiworld import World
from etl.api.views import hour, outages
from etl.api.views.hour import Hour
from etl.models import document
from etl.models.status import ServerStatus, Snapshot
from etl.models.task import Record

pytestmark = pytest.mark.unit

MINUTE = 60 * 1_000_000.0


def said(key: str = "h/0", seq: int = 1, **server: Any) -> Snapshot:
    given = {"name": "SRC", "jobs_per_second": 2.0, "bytes_per_second": 100.0, **server}
    return Snapshot(
        kind="consumer", id=key, incarnation="a", seq=seq, at="2026-03-02T07:00:00Z", state="running",  # type: ignore[arg-type]  # as JSON has it
        started_at="2026-03-02T06:00:00Z", interval_seconds=5.0, servers=(ServerStatus(**given),),  # type: ignore[arg-type]
    )  # fmt: skip


def test_rates_of_all_processes_add_up_to_a_minute() -> None:
    """Claim: two processes of two jobs a second are 240 jobs a minute, however often each of them speaks."""
    found = Hour()
    for second in range(0, 120, 5):
        found.accept(said("h/0"), MINUTE + second)
    for second in range(120):
        found.accept(said("h/1", error_share=0.5, round_trip_seconds=0.02), MINUTE + second)
    first, second = found.of("src", MINUTE + 119)
    assert (first["at"], second["at"]) == (MINUTE, MINUTE + 60)
    assert second["jobs"] == pytest.approx(240, abs=5)
    assert second["failed"] == pytest.approx(60, abs=3)
    assert second["bytes"] == pytest.approx(12_000, abs=300)
    assert second["round_trip_seconds"] == 0.02


def test_silence_is_a_gap_and_not_a_rate() -> None:
    """Claim: what a process said before it fell silent counts for two of its intervals at most."""
    found = Hour()
    found.accept(said(), MINUTE)
    found.accept(said(), MINUTE + 1800)
    before, after = found.of("SRC", MINUTE + 1800)
    assert (before["jobs"], after["jobs"]) == (10, 20)
    assert after["at"] - before["at"] == 1800


def test_an_outage_shows() -> None:
    """Claim: a minute says which part of it the server was down, as processes found it."""
    found = Hour()
    found.accept(said("h/0", breaker="open"), MINUTE)
    found.accept(said("h/1"), MINUTE)
    assert found.of("SRC", MINUTE)[0]["down"] == 0.5


def test_the_hour_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: older minutes, servers beyond the limit and processes that are gone are forgotten."""
    monkeypatch.setattr(hour, "SERVERS", 10)
    found = Hour()
    for minute in range(200):
        found.accept(said(f"h/{minute}", name=f"S{minute % 20}"), MINUTE + 60 * minute)
        found.accept(said("x"), MINUTE + 60 * minute)
    at = MINUTE + 60 * 199
    assert len(found.of("SRC", at)) == 60
    assert len(found._servers) <= 10
    assert len(found._spoke) <= 62
    assert found.of("SRC", at + 3600) == []


def test_it_is_asked_for_by_server(world: World) -> None:
    """Claim: records that stand in the topic make the graph, also those from before our start; others are 404."""
    now = time.time()
    for seq, at in enumerate((now - 120, now - 60, now), start=1):
        written = said(seq=seq)
        world.services.live.take(
            [Record("etl-status", 0, seq, written.key.encode(), written.to_json(), (), at)], caught_up=False
        )
    with world.client("viewer") as client:
        items = client.get("/api/v1/pool/servers/src/hour").json()["items"]
        assert client.get("/api/v1/pool/servers/nobody/hour").status_code == 404
    assert [one["jobs"] for one in items] == [10, 20, 20]
    assert json.dumps(items)


def test_outages_are_kept_with_their_beginning_and_their_end(world: World) -> None:
    """Claim: what several processes say of one is one; one that is over stays; no time of a stranger is believed."""
    now = time.time()
    began = now - 3000

    def down(key: str, at: float, since: float | None, name: str = "src") -> tuple[Snapshot, float]:
        told = None if since is None else document.iso(document.moment(since))
        return said(key, breaker="open", since=told, name=name), at

    def told(window: str) -> list[tuple[str, str, str]]:
        with world.client("viewer") as client:
            found = client.get(f"/api/v1/stats?window={window}").json()["outages"]
        return [(one["server"], one["began_at"], one["ended_at"]) for one in found]

    outages.note(world.services.store, [down("h/0", began + 600, began), down("h/1", began + 900, began + 5)])
    again = [down("h/1", began + at, None) for at in (2000, 2005, 2010)]  # no word of when it began
    outages.note(world.services.store, [(said("h/0"), began + 1000), *again])
    times = [document.iso(document.moment(at)) for at in (began, began + 900, began + 2000, began + 2010)]
    assert told("1h") == [("SRC", times[2], times[3]), ("SRC", times[0], times[1])]
    assert told("20m") == [("SRC", times[2], times[3])]
    outages.note(world.services.store, [down("h/0", began + 2000, began + 800)])  # it was down all the time
    assert told("1h") == [("SRC", times[0], times[3])]
    outages.note(world.services.store, [down("x", now, now - 1e9, "old"), down("x", now, now + 1e9, "new")])
    forged = {server: began for server, began, _ in told("1h")}
    assert forged["OLD"] == document.iso(document.moment(now - outages.KEPT_SECONDS))
    assert forged["NEW"] == document.iso(document.moment(now))
