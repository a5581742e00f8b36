"""The API as its own process, on a real broker, over real HTTP: what it shows, and who may look."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import stack
from apiwork import JOB, TOKENS, V1, Api, bury, eventually, finish, speak, submit, transfer
from etl.broker import Admin, Reader, TransactionalProducer, Writer
from etl.models.wire import Partition
from etl.topics import letters

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def test_views_are_rebuilt_from_topics(broker: stack.Broker, api_topics: str, make_api: Callable[..., Api]) -> None:
    """Claim: a job's story, a dead letter and a process are shown from what stands in api_topics, before and after."""
    first = submit(broker, api_topics, job_id="one")
    finish(broker, api_topics, first, "one")
    bury(broker, api_topics, 3)
    own = api_topics.upper()  # processes of other tests tell of SRC in the same topic
    api = make_api(**{f"{own}_TYPE": "local", f"{own}_BASE_PATH": "/tmp"}).wait_ready()
    assert api.get(f"{V1}/jobs?job_id=one").json()["items"][0]["state"] == "done"
    assert len(api.get(f"{V1}/dead-letters").json()["items"]) == 3
    story = api.get(f"{V1}/jobs/{api_topics}/{first[0]}/{first[1]}").json()
    assert story["message"]["source"] == JOB["source"]
    assert [event["what"] for event in story["events"]] == ["submitted", "done"]

    second = submit(broker, api_topics, job_id="two")
    speak(
        broker,
        api_topics,
        transfers=[transfer(f"{api_topics}-{second[0]}-{second[1]}", moved=5)],
        servers=[{"name": own, "breaker": "half-open", "sessions": {"open": 2, "idle": 1, "limit": 8}}],
    )
    jobs = eventually(lambda: api.get(f"{V1}/jobs?state=running").json()["items"], lambda items: items)
    assert jobs[0]["job_id"] == "two"
    assert jobs[0]["transfer"]["moved"] == 5
    assert api.get("/pool/circuit-breakers").json()["circuit_breakers"][own] == "half_open"
    assert api.get("/pool/sessions").json()["sessions"][own] == {"open": 2, "idle": 1, "limit": 8}
    mine = [p for p in api.get(f"{V1}/pool/processes").json()["items"] if p["id"] == f"{api_topics}/1"]
    assert mine[0]["state"] == "running"

    def state() -> str:
        items = api.get(f"{V1}/pool/processes").json()["items"]
        return next(p["state"] for p in items if p["id"] == f"{api_topics}/1")

    eventually(state, lambda found: found == "silent")
    assert api.get("/stats").json()["jobs"] == {"done": 1, "failed": 3}


def test_the_cache_may_be_deleted(broker: stack.Broker, api_topics: str, api: Api) -> None:
    """Claim: after a restart without its cache, and with a damaged one, it shows the same."""
    bury(broker, api_topics, 5)
    before = eventually(lambda: api.get(f"{V1}/dead-letters").json()["items"], lambda items: len(items) == 5)
    for spoil in (Path.unlink, lambda path: path.write_bytes(b"no database at all" * 1000)):
        api.stop()
        for path in (api.folder / "data").glob("cache.db*"):
            spoil(path)
        api.start().wait_ready()
        assert api.get(f"{V1}/dead-letters").json()["items"] == before


def test_only_the_open_paths_are_open(api: Api) -> None:
    """Claim: without a token there is /live, /ready, the word of /health, and nothing else."""
    assert api.get("/live", role=None).json() == {"status": "pass"}
    assert api.get("/ready", role=None).status_code == 200
    assert set(api.get("/health", role=None).json()) == {"status"}
    assert "checks" in api.get("/health").json()
    for path in (f"{V1}/jobs", f"{V1}/stats", "/stats", "/metrics", "/openapi.json", "/pool/sessions", "/nothing"):
        answer = api.get(path, role=None)
        assert answer.status_code == 401, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["instance"] == answer.headers["x-request-id"]


def test_the_first_start_makes_one_token_and_one_login_link(make_api: Callable[..., Api]) -> None:
    """Claim: only the hash of the first token is kept, its link logs in, and a restart prints none."""
    api = make_api(ETL_API_TOKENS_FILE="").wait_ready()
    token = api.link()
    assert all(token.encode() not in path.read_bytes() for path in (api.folder / "data").iterdir())
    with httpx.Client(base_url=api.url) as browser:
        answer = browser.get(f"/login?token={token}")
        assert answer.status_code == 303
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert browser.get(f"{V1}/me").json() == {"name": "first", "role": "admin", "via": "session"}
        assert browser.delete(f"{V1}/session", headers={"Origin": "http://evil.example"}).status_code == 403
        assert browser.delete(f"{V1}/session").status_code == 403, "a browser that shows no origin"
        assert browser.delete(f"{V1}/session", headers={"Origin": api.url}).status_code == 204
        browser.cookies.set("etl_session", cookie.split("=", 1)[1].split(";")[0])
        assert browser.get(f"{V1}/me").status_code == 401, "the session was revoked"
    log = api.log.read_text()
    api.stop()
    api.start().wait_ready()
    assert "login?token=" not in api.log.read_text()[len(log) :]
    assert api.client(None).get(f"{V1}/me", headers={"Authorization": f"Bearer {token}"}).json()["role"] == "admin"


def test_failed_logins_are_limited(api: Api) -> None:
    """Claim: after ten wrong tokens of an address in a minute, not even a right one is looked at."""
    with httpx.Client(base_url=api.url) as stranger:
        codes = [stranger.get(f"{V1}/me", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(12)]
        assert codes == [401] * 10 + [429] * 2
        late = stranger.post(f"{V1}/session", json={"token": TOKENS["viewer"]})
        assert late.status_code == 429
        assert int(late.headers["retry-after"]) >= 1


def test_a_name_that_is_not_ours_is_refused(api: Api) -> None:
    """Claim: a page of another site whose name was made to point here reads nothing."""
    answer = api.get(f"{V1}/me", headers={"Host": "evil.example"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "bad-host"


def test_letters_are_read_page_by_page(broker: stack.Broker, api_topics: str, api: Api) -> None:
    """Claim: each once, newest first, however many arrive meanwhile; another filter with the cursor is refused."""
    bury(broker, api_topics, 25)
    eventually(lambda: api.get(f"{V1}/dead-letters?limit=200").json()["items"], lambda items: len(items) == 25)
    found: list[str] = []
    cursor = ""
    while True:
        page = api.get(f"{V1}/dead-letters?limit=10&path=/in/*{cursor}").json()
        found += [item["job_id"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
        bury(broker, api_topics, 2, first=100 + len(found))
        time.sleep(0.6)
    assert sorted(found) == sorted(f"j{n}" for n in range(25))
    wrong = api.get(f"{V1}/dead-letters?limit=10&path=/other/*{cursor}")
    assert (wrong.status_code, wrong.json()["code"]) == (400, "bad-cursor")
    causes = api.get(f"{V1}/dead-letters/causes").json()
    assert causes["items"][0]["folder"] == "/in"
    assert causes["total"] >= 25


def test_a_settled_letter_is_shown_as_settled(broker: stack.Broker, api_topics: str, api: Api) -> None:
    """Claim: a note of `etl dlq` beside a letter settles it here, too; the exact message can be downloaded."""
    bury(broker, api_topics, 2)
    items = eventually(lambda: api.get(f"{V1}/dead-letters").json()["items"], lambda items: len(items) == 2)
    found, _ = letters.read(broker.bootstrap_servers, f"{api_topics}-dlq")
    producer = TransactionalProducer(broker.bootstrap_servers, letters.transactional_id(f"{api_topics}-dlq"))
    producer.transact([letters.discard(found[0], "not needed any more")])
    producer.close()
    left = eventually(lambda: api.get(f"{V1}/dead-letters").json()["items"], lambda items: len(items) == 1)
    assert left[0] in items
    whole = api.get(f"{V1}/dead-letters/{found[0].name}").json()
    assert whole["letter"]["state"] == "discarded"
    assert "not needed" in whole["note"]
    original = api.get(f"{V1}/dead-letters/{found[1].name}/original")
    assert original.content == found[1].message.original_bytes()
    assert original.headers["content-disposition"].startswith("attachment")


def test_letters_that_were_purged_are_gone(broker: stack.Broker, api_topics: str, api: Api) -> None:
    """Claim: what `etl dlq purge` deletes is not shown, and cannot be replayed, any more."""
    bury(broker, api_topics, 6)
    eventually(lambda: api.get(f"{V1}/dead-letters").json()["items"], lambda items: len(items) == 6)
    with Reader(broker.bootstrap_servers, f"{api_topics}-dlq") as reader:
        ends = reader.ends()
    Admin(broker.bootstrap_servers).delete_before({Partition(f"{api_topics}-dlq", p): end for p, end in ends.items()})
    eventually(lambda: api.get(f"{V1}/dead-letters").json()["items"], lambda items: not items)


def test_the_api_says_that_it_is_there(api: Api, api_topics: str) -> None:
    """Claim: it is a process among the others, with what it takes; stopped in order it says so."""

    def told() -> dict[str, Any]:
        items = api.get(f"{V1}/pool/processes").json()["items"]
        return next((one for one in items if (one["kind"], one["topic"]) == ("api", api_topics)), {})

    mine = eventually(told, lambda found: found.get("state") == "running")
    assert mine["resources"]["rss_bytes"] > 10_000_000
    assert f'etl_process_state{{process="{mine["id"]}",kind="api",state="running"}} 1' in api.get("/metrics").text
    api.stop()
    with Reader(api.settings["ETL_BOOTSTRAP_SERVERS"], "etl-status") as reader:
        said = [json.loads(one.value or b"{}") for one in reader.scan() if one.key == mine["key"].encode()]
    assert said[-1]["state"] == "stopped"


def test_a_scaler_is_told_what_more_processes_could_run(
    broker: stack.Broker, api_topics: str, make_api: Callable[..., Api]
) -> None:
    """Claim: without consumers all that waits, if it is not held; with them, not what waits for a dead server."""
    api = make_api(ETL_GROUP_ID=f"{api_topics}-group").wait_ready()

    def runnable(group: str = f"{api_topics}-group") -> int:
        answer = api.get(f"{V1}/pool/runnable?group={group}")
        assert answer.status_code == 200, answer.text + api.log.read_text()[-3000:]
        return int(answer.json()["runnable"])

    # The first to ask for a group has the broker make its topic of offsets.
    eventually(lambda: api.get(f"{V1}/pool/runnable").status_code, lambda code: code == 200)
    assert runnable() == 0
    for n in range(3):
        submit(broker, api_topics, job_id=f"waits-{n}")
    assert runnable() == 3
    assert api.client("operator").put(f"{V1}/holds/topic/{api_topics}", json={"reason": "x"}).status_code == 200
    assert runnable() == 0
    assert api.client("operator").delete(f"{V1}/holds/topic/{api_topics}").status_code == 204
    told = {"group": "crowd", "topic": api_topics, "id": f"{api_topics}/1", "interval_seconds": 60}
    with Writer(broker.bootstrap_servers) as writer:
        word = {
            "kind": "consumer", "incarnation": "a", "seq": 1, "at": "2026-03-02T07:00:00Z", "state": "running",
            "started_at": "2026-03-02T06:00:00Z", "window": {"jobs": 100, "behind": 50},
            "parked": {"jobs": 9, "busy": 4},
            "servers": [{"name": "DEAD", "breaker": "open", "waiting": 90}], **told,
        }  # fmt: skip
        writer.send("etl-status", f"consumer/crowd/{api_topics}/{api_topics}/1".encode(), json.dumps(word).encode())
    eventually(lambda: runnable("crowd"), lambda found: found == 10 + 50 + 4)
