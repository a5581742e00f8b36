"""What processes say of themselves, read from the real topic."""

from __future__ import annotations

import time
from typing import Any

import pytest

import stack
from etl.broker import Admin
from etl.status.fleet import Process
from etl.status.reader import StatusReader
from workbench import Desk, job

pytestmark = pytest.mark.integration


def process_of(reader: StatusReader, desk: Desk) -> Process | None:
    """Return the consumer of this test's group, as it is known now."""
    found = [one for one in reader.fleet.processes(time.monotonic()) if one.snapshot.group == desk.group]
    return found[0] if found else None


def follow_until(reader: StatusReader, wanted: Any, what: str, limit: float = 30.0) -> Any:
    """Follow the topic until `wanted()` is true; return what it returned."""
    end = time.monotonic() + limit
    for _ in reader.follow():
        if found := wanted():
            return found
        assert time.monotonic() < end, f"{what} did not come within {limit:g} s"
    raise AssertionError


def test_a_consumer_tells_what_it_is_and_does(desk: Desk, places: Any) -> None:
    """Its partitions, servers, totals and lanes; and at its end that it stopped, and why."""
    places.put("SRC:/in/a", b"content")
    with desk.consuming(places.settings):
        desk.do(job("SRC:/in/a", "DST:/out/a"), job("SRC:/in/none", "DST:/out/none"))
        stack.wait_until(lambda: Admin(desk.bootstrap_servers).describe(["etl-status"]), 10, "topic")
        reader = StatusReader(desk.bootstrap_servers, "etl-status")
        reader.catch_up()

        def done() -> Process | None:
            found = process_of(reader, desk)
            jobs = {} if found is None else found.snapshot.totals.jobs
            return found if sum(jobs.values()) == 2 else None

        said = follow_until(reader, done, "both jobs").snapshot
    assert said.totals.jobs == {"done": 1, "failed": 1}
    assert said.totals.failures == {"FILE_NOT_FOUND": 1}
    assert (said.totals.servers["SRC"].bytes_in, said.totals.servers["DST"].bytes_out) == (7, 7)
    assert said.totals.servers["SRC"].connects >= 1
    assert said.last_error is not None
    assert said.last_error.code == "FILE_NOT_FOUND"
    assert {(row.topic, row.unfinished) for row in said.partitions} >= {(desk.topic, 0)}
    assert {row.name: row.breaker for row in said.servers} == {"SRC": "closed", "DST": "closed"}
    assert (said.state, said.transfers, said.window.jobs) == ("running", (), 0)
    gone = follow_until(reader, lambda: (one := process_of(reader, desk)) and one.state == "stopped" and one, "its end")
    assert (gone.silent, gone.snapshot.reason) == (False, "stop()")
    reader.close()
