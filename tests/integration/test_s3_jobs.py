"""A consumer with a real broker, a real FTP server and a store of objects: whole jobs, and a store in trouble."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servers.s3 import FakeStore
from workbench import Desk, job

pytestmark = pytest.mark.integration

MTIME = 1_600_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FakeStore]:
    """A store whose objects lie on this disk."""
    made = FakeStore(tmp_path / "store")
    yield made
    made.close()


def bucket(store: FakeStore, **more: str) -> dict[str, str]:
    """Return the settings of the store."""
    return {f"CLOUD_{name}": value for name, value in store.settings(TYPE="s3", **more).items()}


def test_files_go_to_a_bucket_and_come_back(desk: Desk, places: Any, store: FakeStore) -> None:
    """From FTP and from a folder; small ones in a row, one in parts; then back to FTP, sources deleted or moved."""
    contents = {f"{number}": os.urandom(1000 * number) for number in range(40)} | {"large": os.urandom(17 << 20)}
    for name, content in contents.items():
        places.put(f"SRC:/in/{name}", content, MTIME)
    places.put("HERE:/here", b"of a folder")
    with desk.consuming(places.settings, bucket(store, BASE_PATH="base")):
        there = [job(f"SRC:/in/{name}", f"CLOUD:/out/{name}", f"up-{name}") for name in contents]
        there.append(job("HERE:/here", "CLOUD:/out/é +", "up-here", source_action="delete", overwrite="fail"))
        assert {result["status"] for result in desk.do(*there, limit=60)} == {"SUCCESS"}
        assert set(store.objects()) == {f"base/out/{name}" for name in (*contents, "é +")}
        back = [job(f"CLOUD:/out/{name}", f"DST:/{name}", f"down-{name}", source_action="delete") for name in contents]
        back.append(job("CLOUD:/out/é +", "DST:/here", "down-here", source_action={"move": "/done/x"}))
        results = desk.do(*back, limit=60)
    assert {result["status"] for result in results} == {"SUCCESS"}
    assert {result["verified_by"] for result in results} == {"size"}
    assert places.files("DST") == {f"/{name}" for name in (*contents, "here")}
    assert {name: places.get(f"DST:/{name}") for name in contents} == contents
    assert int(places.path("DST:/large").stat().st_mtime) == MTIME
    assert store.objects() == ["base/done/x"]
    assert not store.uploads
    assert places.get("HERE:/here") is None


def test_a_busy_store_costs_no_attempt(
    desk: Desk, places: Any, store: FakeStore, short_tiers: tuple[float, ...]
) -> None:
    """It says SlowDown to logins and files for a while; all jobs succeed with their first attempt."""
    store.faults |= {"HEAD": ["", "slow_down", "slow_down"], "LIST": ["slow_down"] * 2, "PUT": ["slow_down"] * 8}
    for number in range(10):
        places.put(f"SRC:/in/{number}", b"content")
    with desk.consuming(places.settings, bucket(store), {"ETL_RETRY_BACKOFF_MAX_SECONDS": "1"}):
        results = desk.do(*(job(f"SRC:/in/{n}", f"CLOUD:/{n}", f"{n}") for n in range(10)), limit=60)
    assert {(result["status"], result["attempts"]) for result in results} == {("SUCCESS", 1)}
    assert not store.faults["PUT"]
    assert len(store.objects()) == 10


def test_a_missing_object_is_a_dead_letter_and_a_missing_bucket_waits(
    desk: Desk, places: Any, store: FakeStore, short_tiers: tuple[float, ...]
) -> None:
    """The one will not come; the other may, as with a share that is not mounted."""
    places.put("SRC:/a")
    with desk.consuming(places.settings, bucket(store), {"ETL_RETRY_BACKOFF_MAX_SECONDS": "1"}):
        desk.send(job("CLOUD:/none", "DST:/none", "gone"))
        assert desk.outcome("gone")["error_code"] == "FILE_NOT_FOUND"
        store.bucket, right = "elsewhere", store.bucket
        store._server.end_connections()
        desk.send(job("SRC:/a", "CLOUD:/a", "waits"))
        desk.wait(lambda: len(store.refusals) >= 0 and store.requests.count("LIST") >= 2, 30, "tried again")
        assert "waits" not in {result["job_id"] for result in desk.results()}
        store.bucket = right
        outcome = desk.outcome("waits", 60)
    assert (outcome["status"], outcome["attempts"]) == ("SUCCESS", 1)
