"""Errors as they are answered: problem details (RFC 9457), the same shape for every error and every resource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from etl.errors import BrokerUnavailable
from etl.logs import redact

MEDIA_TYPE = "application/problem+json"
ABOUT = "https://etl-file-sync.invalid/problems#"  # a name, not an address: docs/api.md explains each code
ERRORS_SHOWN = 50
RETRY_SECONDS = 5

# Code: status and title. `docs/api.md` has the same list.
KINDS = {
    "bad-request": (400, "The request cannot be read"),
    "bad-cursor": (400, "The cursor is not valid for this query"),
    "bad-host": (400, "The API is not known under this host name"),
    "key-missing": (400, "The header Idempotency-Key is missing"),
    "login-needed": (401, "Log in first"),
    "login-failed": (401, "These credentials are not valid"),
    "role-missing": (403, "Your role does not allow this"),
    "foreign-origin": (403, "The request comes from another site"),
    "not-found": (404, "There is no such resource"),
    "method-not-allowed": (405, "The resource has no such method"),
    "conflict": (409, "The state of the resource does not allow this"),
    "count-differs": (409, "The number found differs from the number expected"),
    "key-in-use": (409, "A request with this Idempotency-Key is still running"),
    "too-large": (413, "The request is too large"),
    "wrong-type": (415, "The content type is not one of those that are read here"),
    "invalid": (422, "The request is not valid"),
    "key-reused": (422, "This Idempotency-Key belongs to another request"),
    "too-many": (429, "Too many requests"),
    "bug": (500, "The API has met a bug"),
    "broker-away": (503, "Kafka does not answer"),
    "not-ready": (503, "The views are still being built"),
}


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    pointer: str = Field(description="JSON pointer into the body, or the name of a parameter")
    detail: str


class ProblemDetails(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str = Field(description="a word for programs; docs/api.md explains each")
    detail: str | None = None
    instance: str = Field(description="id of the request, as in the header X-Request-Id, the log and the audit")
    errors: list[Fault] = []
    extra: dict[str, Any] | None = Field(None, description="facts that belong to the code")


class Problem(Exception):
    """Raised to answer with a problem."""

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail or code)
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})
        self.extra = extra

    @property
    def status(self) -> int:
        """The status that it is answered with."""
        return KINDS[self.code][0]

    def response(self, request_id: str) -> JSONResponse:
        """Return the answer."""
        status, title = KINDS[self.code]
        headers = dict(self.headers)
        if status == 503:
            headers.setdefault("Retry-After", str(RETRY_SECONDS))
        if status == 401:
            headers.setdefault("WWW-Authenticate", 'Bearer realm="etl"')
        details = ProblemDetails(
            type=ABOUT + self.code,
            title=title,
            status=status,
            code=self.code,
            detail=None if self.detail is None else redact(self.detail),
            instance=request_id,
            errors=[Fault(pointer=pointer, detail=redact(detail)) for pointer, detail in self.errors[:ERRORS_SHOWN]],
            extra=self.extra or None,
        )
        content = jsonable_encoder(details, exclude_none=True)
        return JSONResponse(content, status, headers, MEDIA_TYPE)


def describe(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: which problems it may answer with."""
    return {
        code: {
            "description": "; ".join(title for status, title in KINDS.values() if status == code),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for code in codes
    }


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem."""

    @app.exception_handler(Problem)
    def _problem(request: Request, error: Problem) -> Response:
        return error.response(request.state.request_id)

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, error: RequestValidationError) -> Response:
        faults = []
        for fault in error.errors()[:ERRORS_SHOWN]:
            where, *path = [str(part) for part in fault["loc"]]
            pointer = "/" + "/".join(part.replace("~", "~0").replace("/", "~1") for part in path)
            faults.append((pointer if where == "body" else ".".join(path), fault["msg"]))
        is_unreadable = any(fault["type"] == "json_invalid" for fault in error.errors())
        return Problem("bad-request" if is_unreadable else "invalid", errors=faults).response(request.state.request_id)

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> Response:
        codes = {404: "not-found", 405: "method-not-allowed", 413: "too-large", 415: "wrong-type"}
        code = codes.get(error.status_code, "bad-request")
        return Problem(code, headers=error.headers).response(request.state.request_id)

    @app.exception_handler(BrokerUnavailable)
    def _away(request: Request, error: BrokerUnavailable) -> Response:
        return Problem("broker-away", str(error)).response(request.state.request_id)
