"""The views: what records become, in whatever order they come; what is asked of them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiwork import transfer
from apiworld import NOW, World
from etl.api.acts.operation import pack, unpack
from etl.api.views.live import Live
from etl.api.views.search import Search, Where
from etl.api.views.store import Store
from etl.models import DLQMessage, header
from etl.models.task import Record
from etl.topics import letters
from pretend import Clock

pytestmark = pytest.mark.unit


def status(number: int = 1, at: float = NOW, **told: Any) -> Record:
    value = {
        "kind": "consumer", "id": f"host/{number}", "incarnation": "a", "seq": 1, "at": "2026-03-02T07:00:00Z",
        "started_at": "2026-03-02T06:00:00Z", "interval_seconds": 2, "state": "running", **told,
    }  # fmt: skip
    return Record("etl-status", 0, 0, f"consumer///host/{number}".encode(), json.dumps(value).encode(), (), at)


def test_a_job_is_told_the_same_in_whatever_order_its_records_are_read(world: World) -> None:
    """Claim: job, result and dead letter come from topics that are read side by side."""
    dead = [world.job(1), world.result(1, status="FAILED", error="no", error_code="IO_ERROR"), world.letter(1)]
    told = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        with world.services.store.writing() as connection:
            connection.execute("DELETE FROM jobs")
        world.take(*(dead[n] for n in order))
        (item,) = world.client("viewer").get("/api/v1/jobs").json()["items"]
        told.append({name: item[name] for name in ("state", "at", "job_id", "source", "letter")})
    assert told[0] == told[1] == told[2]
    assert told[0]["state"] == "failed"
    assert told[0]["letter"] == "0:1"


def test_what_is_set_aside_waits_until_it_is_done(world: World) -> None:
    """Claim: a deferral tells until when and why; a result ends it, and a late deferral does not bring it back."""
    attempts = json.dumps([{"at": "2026-03-02T07:00:00Z", "where": "host/1", "what": "refused"}])
    headers = (
        (header.ORIGIN, f"{world.topic}-0-1".encode()),
        (header.NOT_BEFORE, b"2026-03-02T07:10:00+00:00"),
        (header.ATTEMPTS, attempts.encode()),
    )
    deferral = Record(f"{world.topic}-retry", 0, 0, None, world.job(1).value, headers, NOW)
    world.take(world.job(1), deferral)
    client = world.client("viewer")
    (item,) = client.get("/api/v1/jobs?state=waiting").json()["items"]
    assert (item["not_before"], item["waits"]) == ("2026-03-02T07:10:00Z", 1)
    story = client.get(f"/api/v1/jobs/{world.topic}/0/1/events").json()
    assert [event["what"] for event in story] == ["attempt", "submitted", "waiting"]
    world.take(world.result(1), deferral)
    assert client.get("/api/v1/jobs?state=waiting").json()["items"] == []
    assert client.get("/api/v1/jobs?state=done").json()["items"][0]["not_before"] is None


def test_a_run_ends_behind_its_last_attempt(world: World) -> None:
    """Claim: whichever of them was noted first, by milliseconds."""
    attempts = json.dumps([{"at": "2026-03-02T07:00:05.2Z", "where": "host/1", "what": "no such file"}])
    headers = ((header.ORIGIN, f"{world.topic}-0-1".encode()), (header.ATTEMPTS, attempts.encode()))
    deferral = Record(f"{world.topic}-retry", 0, 0, None, world.job(1).value, headers, NOW)
    times = {"started_at": "2026-03-02T07:00:05.05Z", "finished_at": "2026-03-02T07:00:05.1Z"}
    world.take(world.job(1), deferral, world.result(1, status="FAILED", error="no", error_code="IO_ERROR", **times))
    story = world.client("viewer").get(f"/api/v1/jobs/{world.topic}/0/1/events").json()
    assert [event["what"] for event in story] == ["submitted", "started", "attempt", "failed"]


def test_the_first_note_of_a_letter_counts(world: World) -> None:
    """Claim: a second one changes nothing; a discarded job is shown as that, and the story tells why."""
    record = world.letter(3)
    letter = letters.Letter(record, DLQMessage.from_json(record.value), False)
    notes = [letters.discard(letter, "not needed"), letters.replay(letter, world.topic)[1]]
    world.take(world.job(3), record)
    for number, note in enumerate(notes):
        world.take(Record(note.topic, 0, 10 + number, note.key, note.value, note.headers, NOW + 60))
    client = world.client("viewer")
    whole = client.get("/api/v1/dead-letters/0:3").json()
    assert whole["letter"]["state"] == "discarded"
    assert client.get("/api/v1/jobs?state=discarded").json()["items"][0]["job_id"] == "j3"
    story = client.get(f"/api/v1/jobs/{world.topic}/0/3").json()
    assert ("discarded", "not needed") in [(event["what"], event["detail"]) for event in story["events"]]
    assert client.get("/api/v1/stats?window=3650d").json()["jobs"] == {"discarded": 1}


@given(value=st.one_of(st.binary(max_size=80), st.none()), kind=st.integers(0, 5), headers=st.booleans())
def test_no_record_stops_a_view(
    tmp_path_factory: pytest.TempPathFactory, value: bytes | None, kind: int, headers: bool
) -> None:
    """Claim: whatever stands in a topic, the view goes on behind it."""
    if not WORLDS:  # one for all examples: each has databases on disk
        WORLDS.append(World(tmp_path_factory.mktemp("world")))
    world = WORLDS[0]
    topics = world.services.topics
    names = (topics.source, topics.results, topics.retry, topics.dlq, "etl-control", "etl-audit")
    heads = ((header.ORIGIN, value or b""), (header.MARKER, value or b""), (header.REPLAYS, value or b""))
    world.take(Record(names[kind], 0, 0, value, value, heads if headers else (), NOW))
    world.services.live.take([Record("etl-status", 0, 0, value, value)], caught_up=False)


WORLDS: list[World] = []


def test_a_silent_process_is_not_counted_on() -> None:
    """Claim: three intervals without a word: it is silent, its transfers are marked, and its servers do not count."""
    clock = Clock()
    live = Live(clock)
    live.take([status(1, transfers=[transfer("t-0-1")], servers=[{"name": "a", "breaker": "open"}])], caught_up=True)
    live.take([status(2, servers=[{"name": "A", "breaker": "half-open", "sessions": {"open": 1}}])], caught_up=True)
    assert live.servers(["B"])[0]["breaker"] == "open"
    assert [one["name"] for one in live.servers(["B"])] == ["A", "B"]
    clock.pass_(4)
    live.take([status(2, seq=2)], caught_up=True)
    clock.pass_(4)
    assert {one["id"]: one["state"] for one in live.processes()} == {"host/1": "silent", "host/2": "running"}
    assert live.transfers()[0]["process_state"] == "silent"
    assert live.running() == {}
    assert live.servers() == []
    clock.pass_(4000)
    assert live.processes() == []


def test_the_bandwidth_limit_of_a_server_is_that_of_all_its_processes() -> None:
    """Claim: their parts add up; a server without a limit has none."""
    live = Live(Clock())
    for number in (1, 2):
        live.take([status(number, servers=[{"name": "A", "bandwidth_limit": 2e6}, {"name": "B"}])], caught_up=True)
    assert {one["name"]: one["bandwidth_limit"] for one in live.servers()} == {"A": 4e6, "B": None}


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_server_is_down_since_the_first_process_found_it_so(order: tuple[int, int]) -> None:
    """Claim: one that has met the outage just now does not make it a new one; one that still works is no end of it."""
    since = {1: "2026-03-02T06:00:00Z", 2: "2026-03-02T06:59:00.5Z"}
    live = Live(Clock())
    for number in order:
        down = {"name": "A", "breaker": "open" if number == 2 else "half-open", "since": since[number]}
        live.take([status(number, servers=[down])], caught_up=True)
    live.take([status(3, servers=[{"name": "A"}])], caught_up=True)
    (server,) = live.servers()
    assert (server["breaker"], server["since"]) == ("open", since[1])


def test_metrics_are_those_of_all_processes(filled: World) -> None:
    """Claim: what processes say, and what the API knows of dead letters."""
    filled.services.live.take([status(1, lanes={"size": 8, "busy": 3})], caught_up=True)
    text = filled.client("viewer").get("/metrics").text
    assert 'etl_lanes_busy{process="host/1"} 3' in text
    assert 'code="FILE_NOT_FOUND"} 7' in text or 'code="UNKNOWN_ERROR"} 7' in text
    assert filled.client(None).get("/metrics").status_code == 401


def test_the_summary_is_that_of_the_command(filled: World) -> None:
    """Claim: what needs somebody comes from processes, holds and dead letters."""
    down = {"name": "SRC", "breaker": "open", "since": "2026-03-02T06:00:00Z", "waiting": 3}
    filled.services.live.take([status(1, servers=[down])], caught_up=True)
    told = filled.client("viewer").get("/api/v1/summary").json()
    assert {need["kind"]: need["jobs"] for need in told["needs"]} == {"server-down": 3, "dead-letters": 7}
    assert not told["is_well"]


def test_what_has_not_changed_is_not_sent_again(world: World) -> None:
    """Claim: an ETag spares a page that asks again; a new word of a process makes another one."""
    client = world.client("viewer")
    first = client.get("/api/v1/pool/processes")
    again = client.get("/api/v1/pool/processes", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    world.services.live.take([status()], caught_up=True)
    assert client.get("/api/v1/pool/processes", headers={"If-None-Match": first.headers["etag"]}).status_code == 200


def test_a_search_without_time_says_how_far_it_came(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: it is cut off, told as not complete, and its cursor goes on to the end."""
    monkeypatch.setattr("etl.api.views.search.CHUNK", 1)
    search = Search(filled.services.store, budget=-1.0)
    where = Where()
    where.ends((), "/nowhere/*")
    found, told = search.jobs(where, 10), []
    assert search.jobs(Where(), 3).rows
    while not found.complete and len(told) < 100:
        told.append(found.searched_until)
        found = search.jobs(where, 10, found.after)
    assert found.complete
    assert found.searched_until is None
    assert found.rows == []
    times = [row["at"] for row in filled.services.store.rows("SELECT at FROM jobs ORDER BY at DESC")]
    assert told == times[: len(told)]
    assert told


@given(places=st.sets(st.tuples(st.integers(0, 20), st.integers(0, 10**15)), max_size=50))
def test_a_set_is_kept_as_it_is(places: set[tuple[int, int]]) -> None:
    """Claim: packing loses nothing."""
    assert unpack(pack(places)) == sorted(places)


def test_the_oldest_jobs_that_are_over_are_forgotten(filled: World) -> None:
    """Claim: beyond the newest ones, and never a job that is still to be done."""
    store = filled.services.store
    assert store.prune(100) == 0
    assert store.prune(10) == 10
    left = {row["offset"] for row in store.rows("SELECT offset FROM jobs")}
    assert left == set(range(10, 20))


def test_a_cache_of_another_topic_or_version_is_not_taken(tmp_path: Path) -> None:
    """Claim: it is built anew; so is one that is no database."""
    path = tmp_path / "cache.db"
    store = Store(path, "one")
    with store.writing() as connection:
        connection.execute("INSERT INTO positions VALUES ('t', 0, 5)")
    store.close()
    same = Store(path, "one")
    assert len(same.positions()) == 1
    same.close()
    other = Store(path, "two")
    assert other.positions() == {}
    with pytest.raises(sqlite3.OperationalError), other.reading() as connection:
        connection.execute("DELETE FROM positions")
    other.close()
    path.write_bytes(b"\0" * 5000)
    assert Store(path, "two").positions() == {}


def test_a_set_holds_what_was_named_and_nothing_else(filled: World) -> None:
    """Claim: by places or by filter; a place without a letter is told, a settled one is left out."""
    client = filled.client("operator")
    assert (
        client.post("/api/v1/dead-letters/replays", json={"filter": {}, "dry_run": True}).json()["code"] == "not-ready"
    )
    filled.services.history._caught_up = True

    def dry(**wanted: Any) -> Any:
        return client.post("/api/v1/dead-letters/replays", json={**wanted, "dry_run": True})

    assert dry(filter={}).json()["count"] == 7
    assert [one["place"] for one in dry(places=["0:5", "0:7"]).json()["sample"]] == ["0:7", "0:5"]
    assert dry(filter={"path": "/in/*", "server": ["dst"]}).json()["count"] == 7
    assert dry(filter={"job_id": ["j6"]}).json()["count"] == 1
    assert dry(places=["0:5", "0:99"]).status_code == 404
    assert dry().status_code == 422
    assert dry(filter={}, places=[]).status_code == 422
    with filled.services.store.writing() as connection:
        connection.execute("UPDATE letters SET settled = 'replayed' WHERE offset = 5")
        connection.execute("UPDATE letters SET truncated = 1 WHERE offset = 6")
    assert dry(places=["0:5", "0:6", "0:7"]).json() == {
        "count": 1, "not_replayable": 1, "sample": dry(places=["0:7"]).json()["sample"],
    }  # fmt: skip


def test_groups_are_told_as_one(world: World) -> None:
    """Claim: what the consumers of a group say is added up; the silent are counted, and those that stopped are not."""

    def word(number: int, **told: Any) -> Record:
        value = {
            "kind": "consumer", "id": f"h/{number}", "group": "g", "topic": "t", "incarnation": "a", "seq": 1,
            "at": "2026-03-02T07:00:00Z", "started_at": "2026-03-02T06:00:00Z", "interval_seconds": 2,
            "state": "running", **told,
        }  # fmt: skip
        return Record("etl-status", 0, 0, f"consumer/g/t/h/{number}".encode(), json.dumps(value).encode(), (), NOW)

    partition = {"topic": "t", "partition": 3, "oldest_at": "2026-03-02T06:30:00Z"}
    world.services.live.take([word(1, window={"jobs": 5, "behind": 2}, partitions=[partition])], caught_up=False)
    world.services.live.take([word(2, window={"jobs": 1}, held_by="topic t", settings_hash="other")], caught_up=False)
    world.services.live.take([word(3, state="stopped")], caught_up=False)
    (told,) = world.client("viewer").get("/api/v1/pool/groups").json()["items"]
    wanted = {"topic": "t", "group": "g", "processes": 2, "silent": 0, "partitions": 1, "unfinished": 8, "runnable": 7}
    assert told.items() >= wanted.items()
    assert (told["held_by"], told["settings_differ"], told["oldest_at"]) == ("topic t", True, "2026-03-02T06:30:00Z")


PATHS = ("/a/b/c.tif", "/a/b/d.tif", "/a/b", "x", "", "//", "/a//b", "/\ud55c\uae00/%_'.tif", "/a b/ c", "/a/b/c/")


def test_causes_are_the_same_by_either_way(world: World) -> None:
    """Claim: SQL groups as Python does, whatever paths hold; a pattern that matches all changes nothing."""
    source = [{"hostname": "SRC", "path": path} for path in PATHS]
    world.take(*(world.letter(n, source=source[n % len(source)]) for n in range(50)))
    search = world.services.search
    everything = Where()
    everything.ends((), "*")

    def told(where: Where) -> list[dict[str, Any]]:
        return sorted(search.causes(where), key=lambda one: (one["code"], one["folder"], one["count"]))

    assert told(Where()) == told(everything)
    assert sum(one["count"] for one in told(Where())) == 50


def test_a_pattern_costs_no_more_than_a_row_is_worth(world: World) -> None:
    """Claim: a pattern of hundreds of wildcards, each row compared with it, is refused wherever one may be given."""
    pattern = "*?" * 16
    client = world.client("operator")
    for path in ("/jobs", "/dead-letters", "/dead-letters/causes", "/dead-letters/export"):
        (fault,) = client.get(f"/api/v1{path}", params={"path": pattern}).json()["errors"]
        assert fault["detail"] == "has more than 30 wildcards"
        assert client.get(f"/api/v1{path}", params={"path": pattern[:30]}).status_code == 200
    asked = {"filter": {"path": pattern}, "dry_run": True}
    world.services.history._caught_up = True
    assert client.post("/api/v1/dead-letters/discards", json=asked).status_code == 422
