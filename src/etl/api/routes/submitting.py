"""Submitting jobs: one, an array of them, or one on each line; all are checked before any is sent."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, Field

from etl.api.acts import submitting
from etl.api.problems import Problem, describe
from etl.api.routes.asking import Operator, Served
from etl.errors import InvalidMessage
from etl.models import document

router = APIRouter(tags=["jobs"], responses=describe(400, 401, 403, 409, 413, 415, 422, 429, 503))

NDJSON = "application/x-ndjson"
ARRAY_JOBS = 1000
_END = {
    "type": "object",
    "required": ["hostname", "path"],
    "properties": {"hostname": {"type": "string"}, "path": {"type": "string"}},
    "additionalProperties": False,
}
_JOB = {
    "type": "object",
    "description": "README.md tells all fields, the flat form, and that of several files",
    "required": ["source", "destination"],
    "properties": {
        "job_id": {"type": "string"},
        "source": _END,
        "destination": _END,
        "priority": {"enum": ["high", "normal", "low"]},
        "options": {"type": "object"},
        "metadata": {"type": "object"},
    },
}
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"oneOf": [_JOB, {"type": "array", "items": _JOB, "minItems": 1, "maxItems": ARRAY_JOBS}]}
        },
        NDJSON: {"schema": {"type": "string", "description": f"at most {submitting.MOST_JOBS} lines"}},
    },
}


class Sent(BaseModel):
    """A job that was sent."""

    job_id: str
    place: str = Field(description="TOPIC/PARTITION/OFFSET")


class Answer(BaseModel):
    """The jobs that were sent."""

    jobs: list[Sent]


async def _body(request: Request) -> bytes:
    return await request.body()


@router.post("/jobs", status_code=202, openapi_extra={"requestBody": _BODY})
def submit(
    request: Request,
    response: Response,
    services: Served,
    who: Operator,
    body: Annotated[bytes, Depends(_body)],
    key: Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)] = None,
) -> Answer:
    """Submit jobs. The same Idempotency-Key with the same jobs sends them once, and gets the same answer for a day.

    A message of version 2.0, which holds several jobs, is sent as single jobs.
    """
    request.state.audit |= {"action": "submit", "target": services.topics.source}
    if key is None:
        raise Problem("key-missing")
    drafts = submitting.check(_lines(request.headers.get("content-type", ""), body))
    services.require_broker()
    if not services.status.caught_up:
        raise Problem("not-ready", "earlier requests are still being read")
    jobs, is_repeated = services.submitter.submit(who.name, key, body, drafts)
    request.state.audit |= {"count": len(jobs), "result": "repeated" if is_repeated else "done"}
    if len(jobs) == 1:
        request.state.audit["target"] = jobs[0]["place"]
    response.headers["Location"] = f"/api/v1/jobs/{jobs[0]['place']}"
    if is_repeated:
        response.headers["Idempotency-Replayed"] = "true"
    return Answer(jobs=[Sent(**job) for job in jobs])


def _lines(content_type: str, body: bytes) -> list[tuple[str, Any]]:
    """Return the jobs of a body, each with its pointer. Raises Problem."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == NDJSON:
        lines = [line.rstrip(b"\r") for line in body.split(b"\n")]
        return [(f"/{number}", line) for number, line in enumerate(lines) if line.strip()]
    if kind != "application/json":
        raise Problem("wrong-type", f"jobs are read as application/json or {NDJSON}")
    if not body.lstrip().startswith(b"["):
        return [("", body)]
    try:
        # Wrapped, so that it is read by the same strict rules as a job.
        items = document.parse(b'{"jobs":' + body + b"}")["jobs"]
    except InvalidMessage as error:
        raise Problem("bad-request", str(error)) from None
    if len(items) > ARRAY_JOBS:
        raise Problem("too-large", f"an array has at most {ARRAY_JOBS} jobs; send more as {NDJSON}")
    return [(f"/{number}", item if isinstance(item, dict) else json.dumps(item)) for number, item in enumerate(items)]
