"""A consumer with a real broker and a real sshd: what happens to the jobs when the server is in trouble."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

import stack
from workbench import Desk, job, login

pytestmark = pytest.mark.integration


def by_key(name: str, server: stack.Sshd, **properties: str) -> dict[str, str]:
    """Return the settings of an sshd."""
    return login(
        name,
        server,
        TYPE="sftp",
        PASS="",
        KEY_FILE=str(server.key),
        HOST_KEY=server.fingerprint,
        BASE_PATH=str(server.root),
        **properties,
    )


def test_a_server_that_dies_in_the_middle_of_its_work_loses_nothing(
    short_tiers: tuple[float, ...], desk: Desk, make_sshd: Callable[..., stack.Sshd]
) -> None:
    """Its sessions are killed, then the server with them; it is source and destination of all jobs."""
    server = make_sshd()
    contents = {f"{number}": random.Random(number).randbytes(150_000) for number in range(150)}
    (server.root / "in").mkdir()
    for name, content in contents.items():
        (server.root / "in" / name).write_bytes(content)
    settings = by_key("A", server) | by_key("B", server)
    settings |= {"ETL_RETRY_BACKOFF_MAX_SECONDS": "2", "ETL_RETRY_MAX_ATTEMPTS": "20"}
    with desk.consuming(settings):
        desk.send(*(job(f"A:/in/{name}", f"B:/out/{name}", name, source_action="delete") for name in contents))
        desk.wait(lambda: len(desk.results()) >= 20, 60, "work begun")
        server.kill_sessions()
        desk.wait(lambda: len(desk.results()) >= 60, 60, "work went on")
        server.kill()
        server.start()
        desk.wait(lambda: len(desk.results()) == 150, 90, "all")
        desk.wait(lambda: desk.lag() == 0, 20, "lag 0")
    assert {result["status"] for result in desk.results()} == {"SUCCESS"}
    assert desk.letters() == []
    assert {path.name: path.read_bytes() for path in (server.root / "out").iterdir()} == contents
    assert list((server.root / "in").iterdir()) == []


def test_jobs_of_a_server_whose_key_changed_wait_until_it_is_as_before(
    short_tiers: tuple[float, ...], desk: Desk, make_sshd: Callable[..., stack.Sshd], places: Any
) -> None:
    """No attempt is spent, few logins are tried, jobs of others go on, and the reason is in the log."""
    server = make_sshd()
    settings = places.settings | by_key("A", server) | {"ETL_LOGIN_BACKOFF_SECONDS": "1"}
    (server.root / "a").write_bytes(b"content")
    places.put("SRC:/in/a", b"others")
    server.kill()
    right, server.host_key = server.host_key, server.new_key("another")
    server.start()
    with desk.consuming(settings):
        desk.send(job("A:/a", "DST:/a", "waits"), job("SRC:/in/a", "DST:/b", "goes"))
        assert desk.outcome("goes")["status"] == "SUCCESS"
        desk.wait(lambda: "Connection closed" in server.log.read_text(), 20, "the key was refused")
        assert {result["job_id"] for result in desk.results()} == {"goes"}
        server.kill()
        server.host_key = right
        server.start()
        outcome = desk.outcome("waits", 60)
    assert outcome["status"] == "SUCCESS"
    assert outcome["attempts"] == 1
    assert places.get("DST:/a") == b"content"
