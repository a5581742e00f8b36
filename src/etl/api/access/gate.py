"""The gate before every resource: host, rate, identity, origin; the headers of every answer; the audit of every act.

An ASGI middleware. What is not in OPEN needs an identity, so a resource that forgot to ask for one is closed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

import structlog

from etl.api.access.guard import Guard
from etl.api.access.identity import NOBODY, Identity
from etl.api.problems import Problem

log = structlog.get_logger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Note = Callable[[str | None, str, int, float], None]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PREFIX = "/api/v1"
OPEN = frozenset({("GET", "/"), ("GET", "/live"), ("GET", "/ready"), ("GET", "/health"), ("GET", "/login")}) | {
    ("POST", "/api/v1/session"),
}
OPEN_FOLDERS = ("/ui/",)  # the page's own files: they hold no data
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
COOKIE, SECURE_COOKIE = "etl_session", "__Host-etl_session"
BODY_BYTES = 10 << 20

_CSP = (
    "default-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; style-src 'self'; "
    "object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
_HEADERS = (
    (b"content-security-policy", _CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)


class Gate:
    """Lets requests through to the application. `audit` gets a record of each act, done or refused.

    `note` is told each answer: the template of its route, method, status, and the seconds until it began.
    """

    def __init__(self, app: App, guard: Guard, audit: Callable[[dict[str, Any]], None], note: Note) -> None:
        self._app = app
        self._guard = guard
        self._audit = audit
        self._note = note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = Visit(scope)
        answered = False

        async def answer(message: dict[str, Any]) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                visit.status = message["status"]
                self._note(visit.route, visit.method, visit.status, time.monotonic() - visit.began)
                names = {name.lower() for name, _ in message["headers"]}
                extra = [*_HEADERS, (b"x-request-id", visit.id.encode())]
                if scope["path"].startswith("/api/") or scope["path"] == "/login":
                    extra.append((b"cache-control", b"no-store"))
                elif scope["path"].startswith(OPEN_FOLDERS):
                    extra.append((b"cache-control", b"no-cache"))  # after an upgrade all files are those of one version
                if scope["scheme"] == "https":
                    extra.append((b"strict-transport-security", b"max-age=31536000"))
                message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in names)]
            await send(message)

        try:
            await self._admit(visit)
            await self._app(scope, _limited(receive), answer)
        except Problem as problem:
            await problem.response(visit.id)(scope, receive, answer)  # type: ignore[arg-type]  # the same callables
        except Exception:
            log.exception("request failed", request_id=visit.id, method=scope["method"], path=scope["path"])
            if answered:
                raise
            await Problem("bug", "it is in the log").response(visit.id)(scope, receive, answer)  # type: ignore[arg-type]  # the same callables
        finally:
            if visit.is_act:
                await asyncio.to_thread(self._audit, visit.record())

    async def _admit(self, visit: Visit) -> None:
        """Raise Problem unless the request may go on."""
        guard = self._guard
        if not guard.knows_host(visit.header("host")):
            raise Problem("bad-host", "ETL_API_ALLOWED_HOSTS lists the names that are known")
        if wait := guard.requests.take(visit.address):
            raise Problem("too-many", headers={"Retry-After": str(int(wait) + 1)})
        length = visit.header("content-length")
        if length and (not length.isdecimal() or len(length) > 12 or int(length) > BODY_BYTES):
            raise Problem("too-large", f"at most {BODY_BYTES} bytes are read")
        who = await self._identify(visit)
        if who is None and not visit.is_open:
            raise Problem("login-needed")
        visit.state["identity"] = visit.identity = who or NOBODY
        if visit.method not in SAFE and not visit.is_of_this_site(needs_proof=who is not None and who.via == "session"):
            raise Problem("foreign-origin")

    async def _identify(self, visit: Visit) -> Identity | None:
        """Return who asks; None if nothing was shown. Raises Problem for what was shown and is not good."""
        guard = self._guard
        certificate = visit.scope.get("etl.certificate")
        if certificate and (who := guard.by_certificate(certificate)):
            return who
        kind, _, token = visit.header("authorization").partition(" ")
        if kind:
            if wait := guard.failures.take(visit.address, only_look=True):
                raise Problem("too-many", headers={"Retry-After": str(int(wait) + 1)})
            who = None
            if kind.lower() == "bearer" and token:
                who = await asyncio.to_thread(guard.by_token, token.strip())
            if who is None:
                await visit.fail_login(guard)
            return who
        if cookie := visit.cookie():
            return await asyncio.to_thread(guard.vault.resume, cookie)
        return None


class Visit:
    """One request, from its start to its audit record."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.id = secrets.token_hex(8)
        self.method: str = scope["method"]
        self.began = time.monotonic()
        self.status = 0
        self.identity = NOBODY
        self.address: str = scope["client"][0] if scope.get("client") else "unknown"
        self._headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self.state |= {"request_id": self.id, "identity": NOBODY, "address": self.address, "audit": {}}

    def header(self, name: str) -> str:
        """Return a header, or nothing."""
        return self._headers.get(name, "")

    @property
    def is_open(self) -> bool:
        """Is this a resource for everybody?"""
        path = self.scope["path"]
        method = "GET" if self.method == "HEAD" else self.method
        return (method, path) in OPEN or (method == "GET" and path.startswith(OPEN_FOLDERS))

    @property
    def is_act(self) -> bool:
        """Does it belong into the audit: an act, a login, or a try to log in?"""
        return self.method not in SAFE or self.scope["path"] == "/login" or bool(self.state["audit"].get("action"))

    @property
    def route(self) -> str | None:
        """The template of the resource, once it is known; None: there is none, or the request did not get so far."""
        asked: str = self.scope["path"]
        if asked.startswith(OPEN_FOLDERS):
            return OPEN_FOLDERS[0]
        path: str | None = getattr(self.scope.get("route"), "path", None)
        # The library tells the path below the router that has it.
        return f"{PREFIX}{path}" if path and asked.startswith(f"{PREFIX}/") and not path.startswith(PREFIX) else path

    def cookie(self) -> str | None:
        """Return the secret of the session."""
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load(self.header("cookie"))
        except CookieError:
            return None
        found = jar.get(SECURE_COOKIE if self.scope["scheme"] == "https" else COOKIE)
        return None if found is None else str(found.value)

    def is_of_this_site(self, *, needs_proof: bool) -> bool:
        """Was it sent by our own page, or by a program? A browser tells the origin of what other pages send."""
        origin, fetched = self.header("origin"), self.header("sec-fetch-site")
        if origin:
            return origin == f"{self.scope['scheme']}://{self.header('host')}" or (
                # Behind a proxy that ends TLS, the page's scheme is not ours.
                urlsplit(origin).netloc == self.header("host") and self.scope["scheme"] == "http"
            )
        if fetched:
            return fetched in ("same-origin", "none")
        return not needs_proof

    async def fail_login(self, guard: Guard) -> None:
        """Count a login that failed. Raises Problem."""
        wait = guard.failures.take(self.address)
        self.state["audit"] |= {"action": "login"}
        if wait:
            raise Problem("too-many", "too many logins failed", headers={"Retry-After": str(int(wait) + 1)})
        raise Problem("login-failed")

    def record(self) -> dict[str, Any]:
        """Return what the audit keeps."""
        told: Mapping[str, Any] = self.state["audit"]
        identity: Identity = self.state.get("identity", self.identity)
        return {
            "request_id": self.id,
            "actor": identity.name,
            "via": identity.via,
            "address": self.address,
            "action": f"{self.method} {self.route or self.scope['path']}",
            "target": self.scope["path"],
            "result": "done" if self.status < 400 else "refused" if self.status < 500 else "failed",
            **told,
        }


def _limited(receive: Receive) -> Receive:
    """Return `receive` that raises once a body is longer than it may be."""
    count = 0

    async def limited() -> dict[str, Any]:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > BODY_BYTES:
            raise Problem("too-large", f"at most {BODY_BYTES} bytes are read")
        return message

    return limited
