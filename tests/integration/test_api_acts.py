"""What the API does, on a real broker, over real HTTP: jobs sent once, dead letters settled once, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from click.testing import CliRunner

import stack
from apiwork import JOB, V1, Api, bury, eventually, finish, speak, submit
from etl.broker import Admin, Reader
from etl.cli import main
from etl.models.task import Record
from workbench import SHORT_LIMITS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def records(broker: stack.Broker, topic: str) -> list[Record]:
    with Reader(broker.bootstrap_servers, topic) as reader:
        return list(reader.scan())


def ids(broker: stack.Broker, topic: str) -> Counter[str]:
    return Counter(json.loads(record.value or b"{}")["job_id"] for record in records(broker, topic))


def letters_seen(api: Api, count: int) -> None:
    eventually(lambda: api.get(f"{V1}/dead-letters/causes").json()["total"], lambda total: total == count, 60)


def ended(api: Api, operation: dict[str, Any], limit: float = 60.0) -> dict[str, Any]:
    path = f"{V1}/operations/{operation['id']}"
    return eventually(lambda: api.get(path).json(), lambda told: told["state"] in ("done", "stopped"), limit)


def test_a_job_is_sent_once_for_each_key(broker: stack.Broker, api_topics: str, api: Api) -> None:
    """Claim: the same request again, also after a restart, gets the same answer and sends nothing."""
    key = {"Idempotency-Key": "night-1"}
    first = api.post(f"{V1}/jobs", {**JOB, "job_id": "a"}, headers=key)
    assert first.status_code == 202, first.text
    assert first.headers["location"] == f"{V1}/jobs/{first.json()['jobs'][0]['place']}"
    with ThreadPoolExecutor(4) as threads:
        again = list(threads.map(lambda _: api.post(f"{V1}/jobs", {**JOB, "job_id": "a"}, headers=key), range(4)))
    assert {answer.status_code for answer in again} <= {202, 409}
    api.stop()
    api.start().wait_ready()
    late = api.post(f"{V1}/jobs", {**JOB, "job_id": "a"}, headers=key)
    assert late.json() == first.json()
    assert late.headers["idempotency-replayed"] == "true"
    other = api.post(f"{V1}/jobs", {**JOB, "job_id": "b"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "key-reused")
    assert api.post(f"{V1}/jobs", JOB).json()["code"] == "key-missing"
    assert ids(broker, api_topics) == {"a": 1}


def test_many_jobs_are_checked_before_any_is_sent(broker: stack.Broker, api_topics: str, api: Api) -> None:
    """Claim: an array and NDJSON; every wrong one is named by its pointer, and nothing is sent."""
    lines = [json.dumps({**JOB, "job_id": f"n{n}"}) for n in range(500)]
    headers = {"Idempotency-Key": "lines", "Content-Type": "application/x-ndjson"}
    client = api.client("operator")
    bad = client.post(f"{V1}/jobs", content="\n".join([*lines[:3], "{", '{"job_id": "x"}', ""]), headers=headers)
    assert bad.status_code == 422
    assert [fault["pointer"] for fault in bad.json()["errors"]] == ["/3", "/4"]
    assert records(broker, api_topics) == []
    good = client.post(f"{V1}/jobs", content="\n".join(lines) + "\n", headers=headers)
    assert len(good.json()["jobs"]) == 500
    array = api.post(f"{V1}/jobs", [JOB, {**JOB, "job_id": "z"}], headers={"Idempotency-Key": "array"})
    assert len(array.json()["jobs"]) == 2
    assert sum(ids(broker, api_topics).values()) == 502
    story = eventually(lambda: api.get(f"{V1}/jobs?job_id=z").json()["items"], lambda items: items)
    assert story[0]["state"] == "queued"


def test_a_set_is_fixed_when_asked(broker: stack.Broker, api_topics: str, api: Api) -> None:
    """Claim: a dry run changes nothing, a wrong number is refused, what dies later is not swept along."""
    bury(broker, api_topics, 30)
    bury(broker, api_topics, 5, first=50, source={"hostname": "OTHER", "path": "/x"})
    letters_seen(api, 35)
    wanted = {"filter": {"server": ["SRC"], "path": "/in/*"}}
    dry = api.post(f"{V1}/dead-letters/replays", {**wanted, "dry_run": True})
    assert (dry.status_code, dry.json()["count"], len(dry.json()["sample"])) == (200, 30, 10)
    wrong = api.post(f"{V1}/dead-letters/replays", {**wanted, "expected": 29})
    assert (wrong.status_code, wrong.json()["extra"]["count"]) == (409, 30)
    slow = api.post(f"{V1}/dead-letters/replays", {**wanted, "expected": 30, "per_second": 10})
    assert slow.status_code == 202
    bury(broker, api_topics, 4, first=90)
    told = ended(api, slow.json())
    assert (told["state"], told["done"], told["skipped"], told["total"]) == ("done", 30, 0, 30)
    assert ids(broker, api_topics) == {f"j{n}": 1 for n in range(30)}
    discard = api.post(f"{V1}/dead-letters/discards", {"filter": {"server": ["OTHER"]}})
    assert discard.json()["errors"][0]["pointer"] == "/reason"
    discard = api.post(f"{V1}/dead-letters/discards", {"filter": {"server": ["OTHER"]}, "reason": "old"})
    assert ended(api, discard.json())["done"] == 5
    letters_seen(api, 4)

    def acts() -> list[dict[str, Any]]:
        found = api.get(f"{V1}/audit?action=replay").json()["items"]
        return [act for act in found if act["target"] == f"{api_topics}-dlq"]  # other tests replay, too

    shown = eventually(acts, lambda items: len(items) == 3)
    assert [act["result"] for act in shown] == ["done", "refused", "done"]
    assert shown[0]["count"] == 30
    assert shown[0]["operation"] == told["id"]


def test_two_operators_and_a_shell_replay_each_letter_once(
    broker: stack.Broker, api_topics: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claim: two operations on one set and `etl dlq replay` at the same time send each letter once."""
    bury(broker, api_topics, 400)
    letters_seen(api, 400)
    monkeypatch.setenv("ETL_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    monkeypatch.setenv("ETL_TOPIC", api_topics)
    wanted = {"filter": {}, "reason": "both", "per_second": 20}
    with ThreadPoolExecutor(2) as threads:
        asked = list(
            threads.map(lambda role: api.post(f"{V1}/dead-letters/replays", wanted, role), ["operator", "admin"])
        )
    CliRunner().invoke(main, ["dlq", "replay", "--all", "--yes"])
    told = [ended(api, answer.json(), 90) for answer in asked]
    # Both sets were fixed while nearly all letters waited: they overlap, and the command's overlaps both.
    assert min(one["total"] for one in told) > 300
    assert all(one["done"] + one["skipped"] == one["total"] for one in told)
    assert sum(one["done"] for one in told) <= 400  # 0 where the command was faster
    assert ids(broker, api_topics) == {f"j{n}": 1 for n in range(400)}
    letters_seen(api, 0)


def test_an_operation_goes_on_after_a_kill(broker: stack.Broker, api_topics: str, api: Api) -> None:
    """Claim: killed in the middle, several times, and with its cache gone, it ends with each letter sent once."""
    bury(broker, api_topics, 300)
    letters_seen(api, 300)
    asked = api.post(f"{V1}/dead-letters/replays", {"filter": {}, "reason": "all", "per_second": 60}).json()
    for number in range(3):
        before = api.get(f"{V1}/operations/{asked['id']}").json()["done"]
        eventually(
            lambda before=before: api.get(f"{V1}/operations/{asked['id']}").json()["done"],
            lambda done, before=before: done > before,
        )
        api.kill()
        if number == 1:
            for path in (api.folder / "data").glob("cache.db*"):
                path.unlink()
        api.start().wait_ready()
    told = ended(api, asked)
    assert (told["done"], told["skipped"], told["failed"]) == (300, 0, 0)
    assert ids(broker, api_topics) == {f"j{n}": 1 for n in range(300)}


@pytest.mark.parametrize("good", [True, False])
def test_the_first_letters_decide_about_the_rest(
    broker: stack.Broker, api_topics: str, api: Api, *, good: bool
) -> None:
    """Claim: five go first; the rest follows when all of them are done, and stays when one failed again."""
    bury(broker, api_topics, 20)
    letters_seen(api, 20)
    asked = api.post(f"{V1}/dead-letters/replays", {"filter": {}, "canary": True}).json()
    path = f"{V1}/operations/{asked['id']}"
    told = eventually(lambda: api.get(path).json(), lambda told: told["state"] == "canary")
    assert (told["done"], len(told["canary_jobs"])) == (5, 5)
    for number, record in enumerate(records(broker, api_topics)):
        status = {} if good or number else {"status": "FAILED", "error": "again", "error_code": "IO_ERROR"}
        finish(broker, api_topics, (record.partition, record.offset), f"c{number}", **status)
    told = ended(api, asked)
    assert (told["state"], told["done"]) == (("done", 20) if good else ("stopped", 5))
    assert sum(ids(broker, api_topics).values()) == told["done"]


def test_an_operation_can_be_stopped(broker: stack.Broker, api_topics: str, api: Api) -> None:
    """Claim: what is done stays done, the rest stays; a viewer may not stop it."""
    bury(broker, api_topics, 100)
    letters_seen(api, 100)
    asked = api.post(f"{V1}/dead-letters/replays", {"filter": {}, "per_second": 2}).json()
    path = f"{V1}/operations/{asked['id']}"
    assert api.client("viewer").delete(path).status_code == 403
    assert api.client("operator").delete(path).status_code == 202
    told = ended(api, asked)
    assert told["state"] == "stopped"
    assert told["done"] < 100
    letters_seen(api, 100 - told["done"])
    assert api.client("operator").delete(path).status_code == 409


def test_the_broker_away(new_broker: Callable[..., stack.Broker], make_api: Callable[..., Api], topic: str) -> None:
    """Claim: reads answer from the cache and say so, writes are refused with 503, and all is well once it is back."""
    broker = new_broker()
    admin = Admin(broker.bootstrap_servers)
    for name in (topic, f"{topic}-results", f"{topic}-dlq", f"{topic}-retry"):
        admin.create(name, 1, {"message.timestamp.type": "LogAppendTime"})
    bury(broker, topic, 3)
    api = make_api(program=SHORT_LIMITS, ETL_BOOTSTRAP_SERVERS=broker.bootstrap_servers, ETL_TOPIC=topic).wait_ready()
    broker.kill()
    page = eventually(lambda: api.get(f"{V1}/dead-letters").json(), lambda page: page["stale"], 60)
    assert len(page["items"]) == 3
    assert api.get("/ready", role=None).status_code == 503
    assert api.get("/live", role=None).status_code == 200
    for path, body in ((f"{V1}/jobs", JOB), (f"{V1}/dead-letters/replays", {"filter": {}})):
        answer = api.post(path, body, headers={"Idempotency-Key": "k"})
        assert (answer.status_code, answer.json()["code"]) == (503, "broker-away")
        assert answer.headers["retry-after"]
    api.stop()
    api.start()
    assert len(api.get(f"{V1}/dead-letters").json()["items"]) == 3, "from the cache, after a restart without broker"
    broker.start()
    api.wait_ready(60)
    assert api.post(f"{V1}/jobs", JOB, headers={"Idempotency-Key": "k"}).status_code == 202
    refused = eventually(
        lambda: (
            api.get(f"{V1}/audit?result=refused").json()["items"] + api.get(f"{V1}/audit?result=failed").json()["items"]
        ),
        lambda items: len(items) >= 2,
    )
    assert {act["action"] for act in refused} >= {"submit", "replay"}


def test_a_stream_tells_what_changes_and_ends_with_the_process(broker: stack.Broker, api_topics: str, api: Api) -> None:
    """Claim: whole snapshots; the process ends in good order though a client reads for ever."""
    events: list[str] = []
    ready = threading.Event()

    def read() -> None:
        with api.client("viewer").stream("GET", f"{V1}/events?topics=servers,stats") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for line in stream.iter_lines():
                events.append(line)
                if len([line for line in events if line.startswith("event: stats")]) >= 2:
                    ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    api.post(f"{V1}/jobs", JOB, headers={"Idempotency-Key": "k"})
    assert ready.wait(20), events
    assert any(line.startswith("event: servers") for line in events)
    started = time.monotonic()
    os.kill(api.pid, signal.SIGTERM)
    assert api._process is not None
    assert api._process.wait(15) == 0
    assert time.monotonic() - started < 10
    reader.join(10)
    assert "Traceback" not in api.log.read_text()
    unknown = api.start().wait_ready().get(f"{V1}/events?topics=everything")
    assert unknown.status_code == 422


def test_orders_are_given_and_taken_back(broker: stack.Broker, api_topics: str, make_api: Callable[..., Api]) -> None:
    """Claim: a hold is shown with author, reason and end, until it is released; a cancel is one record of its job."""
    name = f"SRC{api_topics[-8:]}".upper()
    api = make_api(**{f"{name}_TYPE": "local", f"{name}_BASE_PATH": "/tmp"}).wait_ready()
    path = f"{V1}/holds/server/{name.lower()}"
    client = api.client("operator")
    assert client.put(path, json={"reason": ""}).status_code == 422
    assert client.put(f"{V1}/holds/server/UNKNOWN", json={"reason": "x"}).status_code == 404
    made = client.put(path, json={"reason": "disk is changed", "until": "2035-01-01T00:00:00+09:00"})
    assert made.status_code == 200, made.text
    mine = [hold for hold in api.get(f"{V1}/holds").json()["items"] if hold["name"] == name]
    assert mine[0]["author"] == "operator-1"
    assert mine[0]["until"] == "2034-12-31T15:00:00Z"
    with Reader(broker.bootstrap_servers, "etl-control") as reader:
        keys = [record.key for record in reader.scan() if record.value is not None]
    assert f"hold/server/{name}".encode() in keys
    assert client.delete(path).status_code == 204
    assert client.delete(path).status_code == 404
    assert api.get(path).status_code == 404

    partition, offset = submit(broker, api_topics, job_id="one")
    job = f"{V1}/jobs/{api_topics}/{partition}/{offset}"
    eventually(lambda: api.get(job).status_code, lambda code: code == 200)
    assert client.post(f"{job}/cancel", json={"reason": "wrong file"}).status_code == 202
    told = eventually(lambda: api.get(f"{job}/events").json(), lambda events: len(events) == 2)
    assert [(event["what"], event["who"]) for event in told] == [("submitted", None), ("cancel", "operator-1")]
    finish(broker, api_topics, (partition, offset), "one")
    eventually(lambda: api.get(job).json()["job"]["state"], lambda state: state == "done")
    assert client.post(f"{job}/cancel", json={}).status_code == 409

    begun = client.post(f"{V1}/pool/servers/{name}/check")
    assert begun.status_code == 202
    told = eventually(lambda: api.get(begun.headers["location"]).json(), lambda check: check["state"] == "done")
    assert told["result"]["ok"] is True
    speak(broker, api_topics)
    process = f"{V1}/pool/processes/{api_topics}/1"
    eventually(lambda: api.get(process).status_code, lambda code: code == 200)
    assert client.post(f"{process}/drain", json={"reason": "upgrade"}).status_code == 202
    assert client.post(f"{V1}/pool/servers/{name}/try", json={}).status_code == 202
