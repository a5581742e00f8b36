"""Sessions and tokens: log in, log out, make and revoke tokens."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

from etl.api.access.gate import COOKIE, SECURE_COOKIE
from etl.api.access.identity import ROLES, Identity
from etl.api.access.vault import LONGEST_SECONDS
from etl.api.problems import Problem, describe
from etl.api.routes.asking import Admin, Served, Viewer, when
from etl.api.services import Services

router = APIRouter(tags=["access"], responses=describe(401, 403, 422, 429))

Id = Annotated[str, Path(max_length=64)]


class Login(BaseModel):
    """A token, to be exchanged for a session."""

    token: str = Field(max_length=8192)


class Me(BaseModel):
    """Who asks."""

    name: str
    role: str
    via: str = Field(description="token, jwt, cert or session")


class NewToken(BaseModel):
    """The token to make."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._@-]+$")
    role: Literal["viewer", "operator", "admin"]
    days: int | None = Field(None, ge=1, le=3650, description="how long it is valid; missing: until it is revoked")


class MadeToken(BaseModel):
    """A new token. It is shown this once."""

    id: str
    name: str
    role: str
    token: str


class Token(BaseModel):
    """A token that was made here, without itself."""

    id: str
    name: str
    role: str
    created_at: str | None
    created_by: str
    expires_at: str | None


class Session(BaseModel):
    """An open session."""

    id: str
    name: str
    role: str
    origin: str = Field(description="by what it was opened: token, jwt or cert")
    address: str
    opened_at: str | None
    used_at: str | None
    ends_at: str | None
    is_mine: bool


@router.get("/me")
def who_am_i(who: Viewer) -> Me:
    """Tell who asks, and in which role."""
    return Me(name=who.name, role=who.role.word, via=who.via)


@router.post("/session")
def log_in(login: Login, request: Request, response: Response, services: Served) -> Me:
    """Open a session: its secret is in a cookie that scripts cannot read."""
    return enter(login.token, request, response, services)


@router.delete("/session", status_code=204)
def log_out(request: Request, response: Response, services: Served, who: Viewer) -> None:
    """End the session."""
    if who.session is not None:
        services.vault.end_session(who.session)
    response.delete_cookie(_cookie(request), path="/", secure=request.url.scheme == "https", httponly=True)


def enter(token: str, request: Request, response: Response, services: Services) -> Me:
    """Exchange a token for a session, which the response sets as a cookie. Raises Problem."""
    guard, address, audit = services.guard, request.state.address, request.state.audit
    audit |= {"action": "login"}
    if wait := guard.failures.take(address, only_look=True):
        raise Problem("too-many", "too many logins failed", headers={"Retry-After": str(int(wait) + 1)})
    who = guard.by_token(token)
    if who is None:
        guard.failures.take(address)
        raise Problem("login-failed")
    request.state.identity = who
    set_cookie(who, request, response, services)
    return Me(name=who.name, role=who.role.word, via="session")


def set_cookie(who: Identity, request: Request, response: Response, services: Services) -> None:
    """Open a session for somebody, and set its cookie."""
    response.set_cookie(
        _cookie(request),
        services.vault.open_session(who, request.state.address),
        max_age=int(LONGEST_SECONDS),
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


@router.get("/sessions")
def list_sessions(services: Served, who: Admin) -> list[Session]:
    """List the open sessions."""
    return [
        Session(**{**one, **_times(one, "opened_at", "used_at", "ends_at")}, is_mine=one["id"] == who.session)
        for one in services.vault.sessions()
    ]


@router.delete("/sessions/{session_id}", status_code=204, responses=describe(404))
def revoke_session(session_id: Id, services: Served, _who: Admin) -> None:
    """End somebody's session."""
    if not services.vault.end_session(session_id):
        raise Problem("not-found")


@router.get("/tokens")
def list_tokens(services: Served, _who: Admin) -> list[Token]:
    """List the tokens that were made here; those of the file of tokens are not among them."""
    return [Token(**{**one, **_times(one, "created_at", "expires_at")}) for one in services.vault.tokens()]


@router.post("/tokens", status_code=201, responses=describe(409))
def make_token(wanted: NewToken, services: Served, who: Admin) -> MadeToken:
    """Make a token. The answer is the only place where it is shown."""
    ends = None if wanted.days is None else datetime.now(UTC).timestamp() + wanted.days * 86400
    made = services.vault.make_token(wanted.name, ROLES[wanted.role], who.name, ends)
    if made is None:
        raise Problem("conflict", f"there is a token named {wanted.name}")
    return MadeToken(id=made[0], name=wanted.name, role=wanted.role, token=made[1])


@router.delete("/tokens/{token_id}", status_code=204, responses=describe(404))
def revoke_token(token_id: Id, services: Served, _who: Admin) -> None:
    """Revoke a token, and end the sessions that it opened."""
    if services.vault.revoke_token(token_id) is None:
        raise Problem("not-found")


def _times(row: dict[str, Any], *names: str) -> dict[str, str | None]:
    return {name: when(row[name]) for name in names}


def _cookie(request: Request) -> str:
    return SECURE_COOKIE if request.url.scheme == "https" else COOKIE
