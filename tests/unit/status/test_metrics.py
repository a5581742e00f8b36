"""The metrics: each declared once and documented, bounded, and the number that scaling goes by."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from etl.models.status import Parked, ServerStatus, ServerTotals, Snapshot, TotalsStatus, Window
from etl.status import metrics
from etl.status.fleet import Process

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).resolve().parents[3]
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def process(name: str = "h/0", age: float = 0.0, **fields: Any) -> Process:
    given: dict[str, Any] = {"kind": "consumer", "group": "g", "topic": "t", "incarnation": "a", "seq": 1}
    given |= {"at": NOW, "started_at": NOW - timedelta(hours=1), "interval_seconds": 2.0, "state": "running"}
    snapshot = Snapshot(id=name, **(given | fields))
    return Process(snapshot.key, snapshot, age, spoken=True)


def samples(text: str) -> dict[str, float]:
    """Return the value of each series."""
    rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {series: float(value) for series, _, value in rows}


def test_every_metric_keeps_the_conventions() -> None:
    """Base units, `_total` for counters alone, plain names, a sentence of help."""
    for metric in metrics.METRICS.values():
        assert re.fullmatch(r"etl_[a-z]+(_[a-z]+)*", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert metric.help.endswith((".", ")"))
        assert not re.search(r"_(ms|milliseconds|minutes|percent|kb|mb)\b", metric.name)


def test_the_documentation_is_what_the_declaration_says() -> None:
    """docs/metrics.md: written by `python -m etl.status.metrics`."""
    assert (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8") == metrics.document()


def test_what_is_written_can_be_read() -> None:
    """Each line is a sample of a metric that was declared before; histograms rise to their count."""
    totals = TotalsStatus(
        jobs={"done": 5, "failed": 1},
        failures={"FILE_NOT_FOUND": 1},
        servers={"A": ServerTotals(bytes_in=7, connects=2)},
        duration_seconds={"counts": (1, 2, 0, 3), "sum": 1.25},  # type: ignore[arg-type]  # as JSON has it
    )
    text = metrics.render([process(totals=totals, servers=(ServerStatus(name="A"),), version="1")], NOW)
    line = re.compile(r'[a-z_]+(\{[a-z]+="([^"\\]|\\.)*"(,[a-z]+="([^"\\]|\\.)*")*\})? [0-9.e+-]+')
    assert [one for one in text.splitlines() if not one.startswith("#") and not line.fullmatch(one)] == []
    read = samples(text)
    assert read['etl_jobs_total{process="h/0",topic="t",outcome="done"}'] == 5
    assert read['etl_transfer_bytes_total{process="h/0",server="A",direction="in"}'] == 7
    assert read['etl_transfer_duration_seconds_bucket{process="h/0",le="0.05"}'] == 3
    assert read['etl_transfer_duration_seconds_bucket{process="h/0",le="+Inf"}'] == 6
    assert read['etl_transfer_duration_seconds_count{process="h/0"}'] == 6
    assert read['etl_server_up{server="A"}'] == 1


def test_a_silent_process_has_its_counters_and_no_gauges_of_the_moment() -> None:
    """Its lanes are not busy any more, as far as anybody knows; after an hour it is forgotten."""
    text = metrics.render([process(age=100.0, window=Window(jobs=5))], NOW)
    read = samples(text)
    assert read['etl_process_state{process="h/0",kind="consumer",state="silent"}'] == 1
    assert 'etl_jobs_total{process="h/0",topic="t",outcome="done"}' in read
    assert not any(series.startswith(("etl_window_jobs", "etl_backlog_jobs")) for series in read)
    assert "h/0" not in metrics.render([process(age=3601.0)], NOW)


def test_hostile_names_stay_within_their_quotes() -> None:
    """Whoever may write the topic chooses them."""
    text = metrics.render([process('x"} 1\nevil{a="\u202e\\')], NOW)
    assert not any(line.startswith("evil") for line in text.splitlines())
    assert "\u202e" not in text


def test_a_server_is_down_since_the_first_process_found_it_so() -> None:
    """The alarm before the patience ends goes by that."""
    found = [
        process(
            f"h/{number}", servers=(ServerStatus(name="A", breaker="open", since=NOW - timedelta(seconds=seconds)),)
        )
        for number, seconds in enumerate((20, 4000, 60))
    ]
    assert samples(metrics.render(found, NOW))['etl_server_down_since_seconds{server="A"}'] == 4000


def test_too_many_processes_and_servers_are_cut_and_counted() -> None:
    """64 processes, 200 servers each; the rest is a number."""
    servers = tuple(ServerStatus(name=f"S{number}") for number in range(300))
    text = metrics.render([process(f"h/{number}", servers=servers) for number in range(100)], NOW)
    read = samples(text)
    assert sum(series.startswith("etl_lanes{") for series in read) == 64
    assert sum(series.startswith("etl_server_up{") for series in read) == 200
    assert read["etl_metric_labels_dropped_total"] == 36 + 100


@pytest.mark.parametrize(
    ("snapshot", "wanted"),
    [
        ({}, 0),
        ({"window": Window(jobs=1000, behind=50_000), "servers": (ServerStatus(name="FAST", waiting=990),)}, 51_000),
        (
            {
                "window": Window(jobs=250),
                "servers": (ServerStatus(name="SLOW", waiting=250),),
                "parked": Parked(jobs=5000, busy=5000),
            },
            5250,
        ),
        (
            {
                "window": Window(jobs=9),
                "servers": (ServerStatus(name="DEAD", breaker="open", waiting=8, deferred=900_000),),
                "parked": Parked(jobs=900_000),
            },
            1,
        ),
        ({"window": Window(jobs=9), "servers": (ServerStatus(name="HELD", held_by="x", waiting=9),)}, 0),
        ({"window": Window(jobs=9, behind=1000), "held_by": "topic t is on hold"}, 0),
    ],
    ids=["nothing", "a fast pair", "a slow pair", "a dead server", "a held server", "a held topic"],
)
def test_scaling_goes_by_the_jobs_that_more_processes_could_run(snapshot: dict[str, Any], wanted: int) -> None:
    """Jobs for a busy server count, also in T-retry; those of a server that is down or on hold do not."""
    text = metrics.render([process(**snapshot)], NOW)
    assert samples(text)['etl_runnable_jobs{topic="t",group="g"}'] == wanted
