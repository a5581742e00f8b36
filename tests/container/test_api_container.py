"""The API of the appliance, as `docker run -p 8080:8080` gives it."""

from __future__ import annotations

import re

import httpx2 as httpx
import pytest
from containers import World

import stack

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]


def test_one_docker_run_gives_a_page_a_login_link_and_rest(world: World) -> None:
    """The link of the log logs in through the published port; a job by REST ends; nobody is let in without it."""
    port = stack.free_port()
    env = {"A_TYPE": "local", "A_BASE_PATH": "/data/a", "B_TYPE": "local", "B_BASE_PATH": "/data/b"}
    appliance = world.run(options=["--publish", f"127.0.0.1:{port}:8080"], env=env)
    appliance.wait_healthy()
    appliance.exec("mkdir", "-p", "/data/a", "/data/b")
    appliance.write("/data/a/one.txt", "content")
    appliance.wait_until_consuming()
    appliance.wait_for("/login?token=", 60)
    token = re.findall(r"/login\?token=([\w-]+)", appliance.logs())[-1]
    address = f"http://localhost:{port}"
    with httpx.Client(base_url=address, timeout=30) as browser:
        assert browser.get("/api/v1/stats").status_code == 401
        assert browser.get(f"/login?token={token}", follow_redirects=True).status_code == 200
        stack.wait_until(lambda: browser.get("/ready").status_code == 200, 60, "the API ready")
        job = {"source": {"hostname": "A", "path": "one.txt"}, "destination": {"hostname": "B", "path": "one.txt"}}
        sent = browser.post("/api/v1/jobs", json=job, headers={"Idempotency-Key": "1", "Origin": address})
        assert sent.status_code == 202, sent.text
        path = sent.headers["location"]

        def is_done() -> bool:
            answer = browser.get(path)
            return answer.status_code == 200 and answer.json()["job"]["state"] == "done"

        stack.wait_until(is_done, 60, "the job's end")
        states = browser.get("/api/v1/pool/processes").json()["items"]
        assert {one["state"] for one in states if one["kind"] == "consumer"} <= {"running", "waiting"}
    assert appliance.exec("cat", "/data/b/one.txt") == "content"
