"""The API under load: 100,000 dead letters; 40 processes with 50 servers and 200 transfers each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

import stack
from apiwork import V1, Api, bury, eventually, transfer
from etl.broker import Writer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

LETTERS = [2_000, pytest.param(100_000, marks=pytest.mark.long)]
PROCESSES = [4, pytest.param(40, marks=pytest.mark.long)]
MEMORY_BYTES = 200 << 20


@pytest.mark.parametrize("count", LETTERS)
def test_the_first_page_comes_at_once(
    broker: stack.Broker, api_topics: str, make_api: Callable[..., Api], count: int
) -> None:
    """Claim: the first page of many dead letters comes in under a second, and filters and causes soon after."""
    bury(broker, api_topics, count)
    started = time.monotonic()
    api = make_api().wait_ready(300)
    print(f"{count} dead letters: ready after {time.monotonic() - started:.1f} s")
    assert api.get(f"{V1}/dead-letters/causes").json()["total"] == count
    for path, limit in (
        (f"{V1}/dead-letters", 1.0),
        (f"{V1}/dead-letters?code=FILE_NOT_FOUND&server=SRC", 1.0),
        (f"{V1}/dead-letters?job_id=j{count - 1}", 1.0),
        (f"{V1}/jobs", 1.0),
        (f"{V1}/stats", 2.0),
        (f"{V1}/dead-letters?path=/nowhere/*", 5.5),
        (f"{V1}/dead-letters/causes", 5.0),
    ):
        best = min(_seconds(api, path) for _ in range(3))
        print(f"{path}: {best * 1000:.0f} ms")
        assert best < limit, path
    assert psutil.Process(api.pid).memory_info().rss < MEMORY_BYTES


def _seconds(api: Api, path: str) -> float:
    started = time.monotonic()
    assert api.get(path).status_code == 200
    return time.monotonic() - started


@pytest.mark.parametrize("processes", PROCESSES)
def test_many_processes_fit_into_memory(broker: stack.Broker, api_topics: str, api: Api, processes: int) -> None:
    """Claim: each speaks several times; the API stays small, and tells what is new within a second."""
    servers = [
        {
            "name": f"SERVER_{number}",
            "breaker": "open" if number % 7 == 0 else "closed",
            "sessions": {"open": 8, "idle": 2, "limit": 8},
            "jobs_per_second": 1.5,
        }
        for number in range(50)
    ]
    with Writer(broker.bootstrap_servers) as writer:
        for seq in range(1, 11):
            for process in range(processes):
                # A process lists 32 of its 200 transfers, and counts the others.
                running = [
                    transfer(f"{api_topics}-0-{process * 200 + n}", moved=seq, job_id=f"{api_topics}-{n}", size=10**9)
                    for n in range(32)
                ]
                told: dict[str, Any] = {
                    "kind": "consumer", "id": f"{api_topics}/{process}", "incarnation": "a", "seq": seq,
                    "at": "2026-03-02T07:00:00Z", "started_at": "2026-03-02T06:00:00Z", "interval_seconds": 60,
                    "state": "running", "servers": servers, "transfers": running, "more": {"transfers": 168},
                }  # fmt: skip
                key = f"consumer///{api_topics}/{process}".encode()
                writer.send("etl-status", key, json.dumps(told).encode())
            writer.flush()
        mine = f"{api_topics}/"

        def heard() -> list[dict[str, Any]]:
            items = api.get(f"{V1}/pool/processes").json()["items"]
            return [one for one in items if one["id"].startswith(mine) and one["seq"] >= 10]

        eventually(heard, lambda found: len(found) == processes)
        assert all(one["running"] == 200 for one in heard())
        memory = psutil.Process(api.pid).memory_info().rss
        slowest = 0.0
        for seq in range(11, 16):  # how soon is it seen?
            told["seq"] = seq
            writer.send("etl-status", key, json.dumps(told).encode()).result()
            sent = time.monotonic()
            path = f"{V1}/pool/processes/{told['id']}"
            eventually(lambda path=path: api.get(path).json()["seq"], lambda found, want=seq: found == want)
            slowest = max(slowest, time.monotonic() - sent)
    print(f"{processes} processes: {memory >> 20} MB, told within {slowest * 1000:.0f} ms")
    for path in ("pool/processes", "pool/transfers", "pool/servers", "stats"):
        print(f"{path}: {_seconds(api, f'{V1}/{path}') * 1000:.0f} ms")
    assert memory < MEMORY_BYTES
    assert slowest < 1.0
