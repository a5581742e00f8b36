"""Bandwidth limits, kept by consumers with real servers: within a tenth, whatever moves."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from test_sftp import by_key

import stack
from etl.status.reader import StatusReader
from workbench import Desk, consuming, job

pytestmark = pytest.mark.integration

IS_LONG = os.environ.get("TEST_LONG", "") not in {"", "0"}
LIMIT = 2_000_000
SECONDS = 10 if IS_LONG else 4
# Whatever waits for the limit must not be taken for a server that stands still, or is too slow.
IMPATIENT = {"ETL_STALL_TIMEOUT_SECONDS": "1", "ETL_MIN_BYTES_PER_SECOND": "1000000", "ETL_WORKERS": "6"}


def seconds(results: list[dict[str, Any]]) -> float:
    """Return the time from the begin of the first job to the end of the last."""
    began, ended = (
        [datetime.fromisoformat(result[key]) for result in results] for key in ("started_at", "finished_at")
    )
    return (max(ended) - min(began)).total_seconds()


def put(puts: Callable[[str, bytes], object], source: str, total_bytes: int = LIMIT * SECONDS) -> list[str]:
    """Make half of the bytes one file, the other half small ones; return their names."""
    sizes = {"large": total_bytes // 2, **{f"small{number}": 50_000 for number in range(total_bytes // 100_000)}}
    for name, size_bytes in sizes.items():
        puts(f"{source}:/in/{name}", (name.encode() * (size_bytes // len(name) + 1))[:size_bytes])
    return list(sizes)


def is_kept(results: list[dict[str, Any]]) -> None:
    assert {(result["status"], result["attempts"]) for result in results} == {("SUCCESS", 1)}
    moved_bytes, took = sum(result["bytes"] for result in results), seconds(results)
    assert took >= 0.9 * moved_bytes / LIMIT, f"{moved_bytes / took:.0f} bytes a second"
    if IS_LONG:  # on a busy machine less may pass than is allowed
        assert took <= 1.1 * moved_bytes / LIMIT, f"{moved_bytes / took:.0f} bytes a second"


@pytest.mark.parametrize("limited", ["SRC", "DST", "HERE"])
def test_large_and_small_files_together_keep_to_the_limit_of_a_server(limited: str, desk: Desk, places: Any) -> None:
    """A source (vsftpd), a destination (pyftpdlib), a folder; no attempt is spent on it."""
    source, destination = ("HERE", "DST") if limited != "SRC" else ("SRC", "HERE")
    names = put(places.put, source)
    jobs = [job(f"{source}:/in/{name}", f"{destination}:/out/{name}", name) for name in names]
    with desk.consuming(places.settings, IMPATIENT, {f"{limited}_BANDWIDTH_LIMIT": "2M"}):
        is_kept(desk.do(*jobs, limit=60))
    for name in names:
        assert places.get(f"{destination}:/out/{name}") == places.get(f"{source}:/in/{name}")


@pytest.mark.parametrize(
    ("source", "destination", "limited"), [("A", "DST", "A"), ("A", "DST", "DST"), ("HERE", "A", "A")]
)
def test_sftp_keeps_to_the_limit(
    source: str, destination: str, limited: str, desk: Desk, places: Any, make_sshd: Callable[..., stack.Sshd]
) -> None:
    """As a source, as what is read for a destination with a limit, and as a destination."""
    server = make_sshd()
    places.roots["A"] = server.root
    names = put(places.put, source)
    jobs = [job(f"{source}:/in/{name}", f"{destination}:/out/{name}", name) for name in names]
    with desk.consuming(places.settings, by_key("A", server), IMPATIENT, {f"{limited}_BANDWIDTH_LIMIT": "2M"}):
        is_kept(desk.do(*jobs, limit=60))
    for name in names:
        assert places.get(f"{destination}:/out/{name}") == places.get(f"{source}:/in/{name}")


def test_the_processes_of_a_group_divide_the_limit(desk: Desk, places: Any) -> None:
    """Two of them move together what one may; each says in its status what it may. One that is left has all of it."""
    names = put(places.put, "SRC")
    places.put("SRC:/in/first")
    jobs = [job(f"SRC:/in/{name}", f"HERE:/out/{name}", name) for name in names]
    settings = desk.settings(places.settings, IMPATIENT, {"SRC_BANDWIDTH_LIMIT": "00:00-24:00 2M, 100M"})
    with consuming(settings):
        with consuming(settings):
            desk.wait(lambda: _told(desk, "one") == [LIMIT / 2] * 2, 60, "divided")
            for number, message in enumerate(jobs):  # the large file takes as long as all small ones together
                desk.send(message, partition=min(number, 1))
            is_kept([desk.outcome(message["job_id"], 60) for message in jobs])
        desk.wait(lambda: _told(desk, "two") == [LIMIT], 60, "left alone")


def _told(desk: Desk, name: str) -> list[float | None]:
    """Have every process work for SRC; return what each says of its limit."""
    first = [job("SRC:/in/first", f"HERE:/out/{name}{uuid.uuid4().hex}") for _ in range(2)]
    for number, message in enumerate(first):
        desk.send(message, partition=number)
    for message in first:
        assert desk.outcome(message["job_id"])["status"] == "SUCCESS"
    reader = StatusReader(desk.bootstrap_servers, "etl-status")
    try:
        reader.catch_up()
        found = [one for one in reader.fleet.processes(time.monotonic()) if one.snapshot.group == desk.group]
    finally:
        reader.close()
    rows = [row for one in found if one.state != "stopped" for row in one.snapshot.servers if row.name == "SRC"]
    return [row.bandwidth_limit for row in rows]
