"""What handlers ask of a request: the services, who asks, a page's limits, times."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Security
from fastapi.security import APIKeyCookie, HTTPBearer

from etl.api.access.gate import COOKIE
from etl.api.access.identity import Identity, Role
from etl.api.paging import CURSOR_CHARACTERS, LIMIT, MOST
from etl.api.problems import Problem
from etl.api.services import Services
from etl.models import document
from etl.topics import letters

_BEARER = HTTPBearer(auto_error=False, scheme_name="token", description="a token or a JSON web token")
_COOKIE = APIKeyCookie(name=COOKIE, auto_error=False, scheme_name="session", description="the page's session")


def _services(request: Request) -> Services:
    return request.app.state.services  # type: ignore[no-any-return]  # untyped state


Served = Annotated[Services, Depends(_services)]


def needs(role: Role) -> Callable[..., Identity]:
    """Return the dependency that lets in this role and those above it. The gate has found out who asks."""

    def check(
        request: Request,
        _bearer: Annotated[Any, Security(_BEARER)],  # for the description alone, both
        _cookie: Annotated[Any, Security(_COOKIE)],
    ) -> Identity:
        who: Identity = request.state.identity
        if who.via == "none":
            raise Problem("login-needed")
        if who.role < role:
            raise Problem("role-missing", f"this needs the role {role.word}; yours is {who.role.word}")
        return who

    check.role = role  # type: ignore[attr-defined]  # the table of who may do what reads it
    return check


Viewer = Annotated[Identity, Depends(needs(Role.VIEWER))]
Operator = Annotated[Identity, Depends(needs(Role.OPERATOR))]
Admin = Annotated[Identity, Depends(needs(Role.ADMIN))]

Limit = Annotated[int, Query(ge=1, le=MOST, description="items of a page")]
Cursor = Annotated[str | None, Query(max_length=CURSOR_CHARACTERS, description="`next` of the page before")]
Words = Annotated[list[str], Query(max_length=50)]
Text = Annotated[str | None, Query(max_length=1000)]
When = Annotated[str | None, Query(max_length=50, description="ISO 8601 with its zone, or an age such as 30m, 2h, 3d")]

DEFAULT_LIMIT = LIMIT


def moment(name: str, text: str | None) -> float | None:
    """Return the time that a parameter means, in seconds since the epoch. Raises Problem."""
    if text is None:
        return None
    try:
        if re.fullmatch(r"\s*[0-9.]+[smhdwSMHDW]\s*", text):
            return (datetime.now(UTC) - letters.parse_age(text)).timestamp()
        found = datetime.fromisoformat(text.replace(" ", "+"))  # a + that nobody escaped
        if found.tzinfo is None:
            raise ValueError("it has no time zone")
        return found.timestamp()
    except (ValueError, OverflowError) as error:
        raise Problem("invalid", errors=[(name, f"is neither a time nor an age: {error}")]) from None


def when(seconds: float | None) -> str | None:
    """Return seconds since the epoch as ISO 8601 in UTC."""
    return None if seconds is None else document.iso(document.moment(seconds))
