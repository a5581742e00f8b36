"""Who may do what: every resource, every role; and what a stranger may send without harm."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apiwork import TOKENS
from apiworld import World
from etl.api.access.identity import Role

pytestmark = pytest.mark.unit

OPEN = {
    ("GET", "/live"),
    ("GET", "/ready"),
    ("GET", "/health"),
    ("GET", "/login"),
    ("GET", "/"),
    ("POST", "/api/v1/session"),
}
# What needs more than to look.
ACTS = {
    ("POST", "/api/v1/jobs"): "operator",
    ("POST", "/api/v1/jobs/{topic}/{partition}/{offset}/cancel"): "operator",
    ("POST", "/api/v1/dead-letters/replays"): "operator",
    ("POST", "/api/v1/dead-letters/discards"): "operator",
    ("DELETE", "/api/v1/operations/{operation_id}"): "operator",
    ("POST", "/api/v1/operations/{operation_id}/go"): "operator",
    ("POST", "/api/v1/needs/acknowledgements"): "operator",
    ("DELETE", "/api/v1/needs/acknowledgements"): "operator",
    ("PUT", "/api/v1/holds/{what}/{name}"): "operator",
    ("DELETE", "/api/v1/holds/{what}/{name}"): "operator",
    ("POST", "/api/v1/pool/processes/{name:path}/drain"): "operator",
    ("POST", "/api/v1/pool/servers/{name}/try"): "operator",
    ("POST", "/api/v1/pool/servers/{name}/check"): "operator",
    ("GET", "/api/v1/tokens"): "admin",
    ("POST", "/api/v1/tokens"): "admin",
    ("DELETE", "/api/v1/tokens/{token_id}"): "admin",
    ("GET", "/api/v1/sessions"): "admin",
    ("DELETE", "/api/v1/sessions/{session_id}"): "admin",
}
ENDLESS = "/api/v1/events"
VALUES = {
    "topic": "t",
    "partition": "0",
    "offset": "0",
    "operation_id": "0" * 16,
    "what": "server",
    "name": "SRC",
    "place": "0:0",
    "token_id": "x",
    "session_id": "x",
    "check_id": "0" * 16,
}


def resources(app: Any) -> list[tuple[str, str]]:
    """Return method and path of every route, however deep it is included."""
    found: list[tuple[str, str]] = []

    def walk(routes: Any, prefix: str) -> None:
        for route in routes:
            if isinstance(route, APIRoute):
                found.extend((method, prefix + route.path) for method in route.methods)
            elif hasattr(route, "original_router"):
                walk(route.original_router.routes, prefix + (getattr(route, "prefix", "") or ""))

    walk(app.routes, "")
    return found


def test_every_resource_lets_in_those_roles_and_no_others(world: World) -> None:
    """Claim: without a token 401, with too small a role 403, both in the audit for acts; else neither."""
    told = world.client("viewer").get("/openapi.json").json()
    described = [(method.upper(), path) for path, item in told["paths"].items() for method in item]
    # FastAPI writes {name:path} as {name}.
    acts = {(method, path.replace(":path", "")): role for (method, path), role in ACTS.items()}
    assert acts.keys() <= set(described)
    for method, path in [*described, ("GET", "/openapi.json"), ("GET", "/login")]:
        if path == ENDLESS:
            continue
        needed = acts.get((method, path), "viewer")
        url = re.sub(r"{(\w+)}", lambda found: VALUES[found[1]], path)
        for role in (None, "viewer", "operator", "admin"):
            world.acts.clear()
            answer = world.client(role).request(method, url, json={})
            if (method, path) in OPEN:
                assert answer.status_code != 403, (method, path, role)
            elif role is None:
                assert answer.status_code == 401, (method, path)
            elif Role[role.upper()] < Role[needed.upper()]:
                assert (answer.status_code, answer.json()["code"]) == (403, "role-missing"), (method, path, role)
                assert needed in answer.json()["detail"]
            else:
                assert answer.status_code not in (401, 403, 500), (method, path, role, answer.text)
            if method != "GET":
                assert len(world.acts) == 1, (method, path, role)
                assert (world.acts[0]["result"] == "done") == (answer.status_code < 400)


def test_what_is_not_described_is_closed(world: World) -> None:
    """Claim: a path that nobody thought of needs a login, too; traversal leaves no folder."""
    for path in ("/api/v2/x", "/metrics/x", "/ui/../../pyproject.toml", "/ui/%2e%2e/app.py", "/live/"):
        assert world.client(None).get(path).status_code in (400, 401, 404), path
    assert world.client(None).get("/ui/%2e%2e/app.py").status_code != 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 403),  # a browser's session, and no word of where the request comes from
        ({"Origin": "http://localhost"}, 204),
        ({"Origin": "http://localhost:81"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 204),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_a_session_acts_only_for_our_own_page(world: World, headers: dict[str, str], code: int) -> None:
    """Claim: the cookie alone is no proof (CSRF)."""
    with world.client(None) as browser:
        assert browser.post("/api/v1/session", json={"token": TOKENS["admin"]}).status_code == 200
        assert browser.delete("/api/v1/session", headers=headers).status_code == code


def test_every_answer_carries_the_policy(world: World) -> None:
    """Claim: pages, data and errors alike."""
    for path in ("/ui/", "/live", "/api/v1/me", "/nothing"):
        answer = world.client(None).get(path)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers


def test_tokens_are_shown_once_and_revoked(world: World) -> None:
    """Claim: a token that was made works until it is revoked, with the sessions it opened; nobody sees it again."""
    admin = world.client("admin")
    made = admin.post("/api/v1/tokens", json={"name": "cron", "role": "operator"})
    assert made.status_code == 201
    token = made.json()["token"]
    assert token not in admin.get("/api/v1/tokens").text
    assert admin.post("/api/v1/tokens", json={"name": "cron", "role": "viewer"}).status_code == 409
    with world.client(None) as page:
        assert page.post("/api/v1/session", json={"token": token}).json()["role"] == "operator"
        assert page.get("/api/v1/me").status_code == 200
        assert admin.delete(f"/api/v1/tokens/{made.json()['id']}").status_code == 204
        assert page.get("/api/v1/me").status_code == 401
    assert world.client(None).get("/api/v1/me", headers={"Authorization": f"Bearer {token}"}).status_code == 401
    assert all(token not in json.dumps(act) for act in world.acts)


def test_an_endless_body_is_cut_off(world: World) -> None:
    """Claim: with or without a length, no more than the limit is read."""
    client = world.client("operator")
    headers = {"Idempotency-Key": "k", "Content-Type": "application/x-ndjson"}
    assert client.post("/api/v1/jobs", content=b"x" * (11 << 20), headers=headers).status_code == 413
    chunks = (b"x" * (1 << 20) for _ in range(12))
    assert client.post("/api/v1/jobs", content=chunks, headers=headers).status_code == 413


cursors = st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda raw: raw.hex()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(cursor=cursors, path=st.text(max_size=60), when=st.text(max_size=30), word=st.text(max_size=60))
def test_no_parameter_makes_the_api_fail(filled: World, cursor: str, path: str, when: str, word: str) -> None:
    """Claim: whatever stands in cursors, filters and times, it is an answer or a problem, never a bug."""
    client = filled.client("viewer")
    for url, names in (
        ("/api/v1/jobs", {"path": path, "since": when, "job_id": word, "server": word, "cursor": cursor}),
        ("/api/v1/jobs", {"path": path, "group_id": word, "until": when}),
        ("/api/v1/dead-letters", {"path": path, "code": word, "older_than": when}),
        ("/api/v1/dead-letters", {"cursor": cursor}),
        ("/api/v1/dead-letters/causes", {"path": path, "newer_than": when}),
        ("/api/v1/audit", {"actor": word, "since": when, "cursor": cursor}),
        ("/api/v1/stats", {"window": when}),
        ("/api/v1/events", {"topics": f"no-{word}"}),
    ):
        answer = client.get(url, params=names)
        assert answer.status_code in (200, 400, 422), (url, names, answer.text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=100)
@given(
    token=st.one_of(
        st.text(max_size=80),
        st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}", fullmatch=True),
    ),
    cookie=st.binary(max_size=60),
)
def test_no_credential_makes_the_api_fail(world: World, token: str, cookie: bytes) -> None:
    """Claim: a wrong one is refused, whatever it is made of."""
    world.services.guard.failures._buckets.clear()
    client = world.client(None)
    value = f"Bearer {token}".encode("utf-8", "replace").replace(b"\n", b"").replace(b"\r", b"").replace(b"\0", b"")
    answers = [
        client.get("/api/v1/me", headers={b"Authorization": value}),
        client.post("/api/v1/session", json={"token": token}),
        client.get("/api/v1/me", headers={b"Cookie": b"etl_session=" + cookie.hex().encode()}),
    ]
    assert {answer.status_code for answer in answers} <= {401, 422}


def test_a_cursor_that_was_changed_is_refused(filled: World) -> None:
    """Claim: every single letter of it counts."""
    client = filled.client("viewer")
    cursor = client.get("/api/v1/jobs?limit=5").json()["next"]
    assert client.get("/api/v1/jobs", params={"limit": 5, "cursor": cursor}).status_code == 200
    for index in range(len(cursor) - 1):
        wrong = cursor[:index] + ("A" if cursor[index] != "A" else "B") + cursor[index + 1 :]
        assert client.get("/api/v1/jobs", params={"limit": 5, "cursor": wrong}).status_code == 400, index


@pytest.mark.parametrize("text", ["\\ud800", "\\u0000", "\\u0085", " ", "\\ud83d\\ude00"])
def test_no_text_of_a_body_makes_the_api_fail(world: World, text: str) -> None:
    """Claim: halves of surrogate pairs, controls and blanks are an answer or a problem, never a bug."""
    client = world.client("admin")
    body = (
        f'{{"reason": "{text}", "name": "{text}", "role": "viewer", "token": "{text}", "filter": {{"path": "{text}"}}}}'
    )
    for method, url in (
        ("PUT", "/api/v1/holds/group/x"),
        ("PUT", "/api/v1/holds/group/%20"),
        ("PUT", "/api/v1/holds/topic/%C2%85"),
        ("POST", f"/api/v1/jobs/{world.topic}/0/0/cancel"),
        ("POST", "/api/v1/dead-letters/replays"),
        ("POST", "/api/v1/tokens"),
        ("POST", "/api/v1/session"),
        ("POST", "/api/v1/jobs"),
    ):
        sent = {"Content-Type": "application/json", "Idempotency-Key": "k"}
        answer = client.request(method, url, content=body.encode(), headers=sent)
        assert answer.status_code in (401, 404, 422, 503), (method, url, answer.text)
