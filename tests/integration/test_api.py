"""The API as its own process, on a real broker, over real HTTP: what it shows, and who may look."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import stack
from apiwork import TOKENS, Api
from etl.broker import Admin, TransactionalProducer, Writer
from etl.models import DLQMessage, TransferResult, header
from etl.models.task import Record
from etl.models.wire import Message
from etl.topics import letters

pytestmark = pytest.mark.integration

JOB = {"source": {"hostname": "SRC", "path": "/in/a.tif"}, "destination": {"hostname": "DST", "path": "/out/a.tif"}}
V1 = "/api/v1"


@pytest.fixture
def topics(broker: stack.Broker, topic: str) -> str:
    """The topics of a test, as a consumer would have made them."""
    admin = Admin(broker.bootstrap_servers)
    for name in (topic, f"{topic}-results", f"{topic}-dlq", f"{topic}-retry"):
        admin.create(name, 2, {"message.timestamp.type": "LogAppendTime"})
    return topic


@pytest.fixture
def make_api(broker: stack.Broker, topics: str, tmp_path: Path) -> Iterator[Callable[..., Api]]:
    """Start the API: `make_api(ETL_API_TOKENS_FILE="")`."""
    made: list[Api] = []

    def make(**settings: str) -> Api:
        folder = tmp_path / f"api{len(made)}"
        folder.mkdir()
        made.append(Api(folder, settings.pop("ETL_BOOTSTRAP_SERVERS", broker.bootstrap_servers), topics, **settings))
        return made[-1].start()

    yield make
    for api in made:
        api.close()


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    return make_api().wait_ready()


def bury(broker: stack.Broker, topic: str, count: int, first: int = 0, **job: Any) -> None:
    """Write dead letters as a consumer does: in transactions, so that there are gaps in the offsets."""
    producer = TransactionalProducer(broker.bootstrap_servers, f"test-{topic}-{first}")
    batch = []
    for number in range(first, first + count):
        original = json.dumps({**JOB, **job, "job_id": f"j{number}"}).encode()
        record = Record(topic, 0, number, None, original)
        letter = DLQMessage.from_record(record, FileNotFoundError(f"no such file {number}"), f"j{number}")
        batch.append(Message(f"{topic}-dlq", b"k%d" % number, letter.to_json().encode()))
        if len(batch) == 1000:
            producer.transact(batch)
            batch = []
    producer.transact(batch)
    producer.close()


def speak(broker: stack.Broker, instance: str, **told: Any) -> None:
    """Write a process's word to etl-status."""
    value = {
        "v": 1,
        "kind": "consumer",
        "id": f"{instance}/1",
        "incarnation": "a",
        "seq": 1,
        "at": "2026-03-02T07:00:00Z",
        "started_at": "2026-03-02T06:00:00Z",
        "interval_seconds": 2,
        "state": "running",
        **told,
    }
    with Writer(broker.bootstrap_servers) as writer:
        writer.send("etl-status", f"consumer///{instance}/1".encode(), json.dumps(value).encode())


def transfer(place: str, **told: Any) -> dict[str, Any]:
    """Return a running transfer as a process tells it."""
    ends = {"source": "SRC:/in/a.tif", "destination": "DST:/out/a.tif", "began_at": "2026-03-02T07:00:00Z"}
    return {"place": place, "phase": "streaming", "size": 10, **ends, **told}


def submit(broker: stack.Broker, topic: str, **job: Any) -> tuple[int, int]:
    with Writer(broker.bootstrap_servers) as writer:
        return writer.send(topic, b"key", json.dumps({**JOB, **job}).encode()).result()


def finish(broker: stack.Broker, topic: str, place: tuple[int, int], job_id: str, **result: Any) -> None:
    told = TransferResult(job_id=job_id, **{"status": "SUCCESS", "bytes": 1000, **result})
    headers = [(header.ORIGIN, f"{topic}-{place[0]}-{place[1]}".encode())]
    with Writer(broker.bootstrap_servers) as writer:
        writer.send(f"{topic}-results", job_id.encode(), told.to_json().encode(), headers)


def eventually(ask: Callable[[], Any], wanted: Callable[[Any], object], limit: float = 20.0) -> Any:
    found: list[Any] = []

    def happened() -> bool:
        found[:] = [ask()]
        return bool(wanted(found[0]))

    stack.wait_until(happened, limit, "the view that was waited for")
    return found[0]


def test_views_are_rebuilt_from_topics(broker: stack.Broker, topics: str, make_api: Callable[..., Api]) -> None:
    """Claim: a job's story, a dead letter and a process are shown from what stands in topics, before and after."""
    first = submit(broker, topics, job_id="one")
    finish(broker, topics, first, "one")
    bury(broker, topics, 3)
    api = make_api().wait_ready()
    assert api.get(f"{V1}/jobs?job_id=one").json()["items"][0]["state"] == "done"
    assert len(api.get(f"{V1}/dead-letters").json()["items"]) == 3
    story = api.get(f"{V1}/jobs/{topics}/{first[0]}/{first[1]}").json()
    assert story["message"]["source"] == JOB["source"]
    assert [event["what"] for event in story["events"]] == ["submitted", "done"]

    second = submit(broker, topics, job_id="two")
    speak(
        broker,
        topics,
        transfers=[transfer(f"{topics}-{second[0]}-{second[1]}", moved=5)],
        servers=[{"name": "SRC", "breaker": "half-open", "sessions": {"open": 2, "idle": 1, "limit": 8}}],
    )
    jobs = eventually(lambda: api.get(f"{V1}/jobs?state=running").json()["items"], lambda items: items)
    assert jobs[0]["job_id"] == "two"
    assert jobs[0]["transfer"]["moved"] == 5
    assert api.get("/pool/circuit-breakers").json()["circuit_breakers"]["SRC"] == "half_open"
    assert api.get("/pool/sessions").json()["sessions"]["SRC"] == {"open": 2, "idle": 1, "limit": 8}
    mine = [p for p in api.get(f"{V1}/pool/processes").json()["items"] if p["id"] == f"{topics}/1"]
    assert mine[0]["state"] == "running"

    def state() -> str:
        items = api.get(f"{V1}/pool/processes").json()["items"]
        return next(p["state"] for p in items if p["id"] == f"{topics}/1")

    eventually(state, lambda found: found == "silent")
    assert api.get("/stats").json()["jobs"] == {"done": 1, "failed": 3}


def test_the_cache_may_be_deleted(broker: stack.Broker, topics: str, api: Api) -> None:
    """Claim: after a restart without its cache, and with a damaged one, it shows the same."""
    bury(broker, topics, 5)
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


def test_letters_are_read_page_by_page(broker: stack.Broker, topics: str, api: Api) -> None:
    """Claim: each once, newest first, however many arrive meanwhile; another filter with the cursor is refused."""
    bury(broker, topics, 25)
    eventually(lambda: api.get(f"{V1}/dead-letters?limit=200").json()["items"], lambda items: len(items) == 25)
    found: list[str] = []
    cursor = ""
    while True:
        page = api.get(f"{V1}/dead-letters?limit=10&path=/in/*{cursor}").json()
        found += [item["job_id"] for item in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
        bury(broker, topics, 2, first=100 + len(found))
        time.sleep(0.6)
    assert sorted(found) == sorted(f"j{n}" for n in range(25))
    wrong = api.get(f"{V1}/dead-letters?limit=10&path=/other/*{cursor}")
    assert (wrong.status_code, wrong.json()["code"]) == (400, "bad-cursor")
    causes = api.get(f"{V1}/dead-letters/causes").json()
    assert causes["items"][0]["folder"] == "/in"
    assert causes["total"] >= 25


def test_a_settled_letter_is_shown_as_settled(broker: stack.Broker, topics: str, api: Api) -> None:
    """Claim: a note of `etl dlq` beside a letter settles it here, too; the exact message can be downloaded."""
    bury(broker, topics, 2)
    items = eventually(lambda: api.get(f"{V1}/dead-letters").json()["items"], lambda items: len(items) == 2)
    found, _ = letters.read(broker.bootstrap_servers, f"{topics}-dlq")
    producer = TransactionalProducer(broker.bootstrap_servers, letters.transactional_id(f"{topics}-dlq"))
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
