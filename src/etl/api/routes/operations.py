"""Operations on dead letters: replay and discard a set that is fixed when asked, follow them, stop them."""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from etl.api.acts.operation import CANARY, MOST_LETTERS, Kind, Operation, pack
from etl.api.problems import Problem, describe
from etl.api.routes import showing
from etl.api.routes.asking import Operator, Served, Viewer, moment
from etl.api.routes.shapes import Letter, View
from etl.api.services import Services
from etl.api.views.search import Where, letters_where
from etl.models import document
from etl.topics.letters import Place

router = APIRouter(tags=["operations"], responses=describe(401, 403, 422, 429))

Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
Id = Annotated[str, Path(pattern=r"^[0-9a-f]{8,32}$")]
Word = Annotated[str, Field(max_length=300)]
SAMPLE = 10
REASON_NEEDED = 100  # letters: above that the reason must be given


class Filter(BaseModel):
    """Which dead letters; what is not given matches all."""

    model_config = ConfigDict(extra="forbid")

    code: list[Word] = Field([], max_length=50)
    server: list[Word] = Field([], max_length=50)
    path: str | None = Field(None, max_length=1000)
    job_id: list[Word] = Field([], max_length=1000)
    older_than: str | None = Field(None, max_length=50)
    newer_than: str | None = Field(None, max_length=50)


class Wanted(BaseModel):
    """What to do with which dead letters: `places`, or all that match `filter`; the set is fixed now."""

    model_config = ConfigDict(extra="forbid")

    filter: Filter | None = None
    places: list[Annotated[str, Field(pattern=r"^\d{1,9}:\d{1,18}$")]] | None = Field(None, max_length=10_000)
    expected: int | None = Field(
        None, ge=0, description="how many there should be; another number is answered with 409"
    )
    dry_run: bool = Field(False, description="true: tell only what would be done")
    canary: bool = Field(False, description=f"true: {CANARY} go first, and the rest only when all of them succeeded")
    per_second: float | None = Field(None, gt=0, le=1000, description="how many a second; missing: as fast as it goes")
    reason: str = Field("", max_length=500)


class Preview(BaseModel):
    """What would be done."""

    count: int
    not_replayable: int = Field(description="too large to have been kept: they are left out of a replay")
    sample: list[Letter]


class Operations(View):
    """The operations, newest first."""

    items: list[Operation]


ASKED: dict[int | str, dict[str, Any]] = {
    200: {"description": "A dry run: what would be done", "model": Preview},
    202: {"description": "It is under way", "model": Operation},
    **describe(400, 409, 503),
}


@router.post("/dead-letters/replays", response_model=None, status_code=202, responses=ASKED)
def replay(
    wanted: Wanted, request: Request, response: Response, services: Served, who: Operator, key: Key = None
) -> Operation | Preview:
    """Replay dead letters: each is sent to its topic again, at most once."""
    return _ask("replay", wanted, request, response, services, who.name, key)


@router.post("/dead-letters/discards", response_model=None, status_code=202, responses=ASKED)
def discard(
    wanted: Wanted, request: Request, response: Response, services: Served, who: Operator, key: Key = None
) -> Operation | Preview:
    """Discard dead letters: each is noted as given up, with the reason."""
    return _ask("discard", wanted, request, response, services, who.name, key)


def _ask(
    kind: Kind, wanted: Wanted, request: Request, response: Response, services: Services, by: str, key: str | None
) -> Operation | Preview:
    told = wanted.filter.model_dump(exclude_defaults=True) if wanted.filter else {"places": wanted.places}
    audit: dict[str, Any] = request.state.audit
    audit |= {"action": kind, "filter": told, "reason": wanted.reason or None, "dry_run": wanted.dry_run}
    audit |= {"target": services.topics.dlq}
    if (wanted.filter is None) == (wanted.places is None):
        raise Problem("invalid", errors=[("/filter", "give either filter or places; an empty filter matches all")])
    asked = hashlib.sha256(wanted.model_dump_json().encode()).hexdigest()
    id_ = hashlib.sha256(f"{by}\n{kind}\n{key}".encode()).hexdigest()[:16] if key else uuid.uuid4().hex[:16]
    if key and (known := services.marks.get(f"operation/{id_}")):
        return _again(Operation.model_validate_json(known), asked, response)
    if not wanted.dry_run:
        services.require_broker()
    if not services.history.caught_up:
        raise Problem("not-ready", "dead letters are still being read")
    found, truncated = _find(kind, wanted, services)
    audit["count"] = len(found)
    if wanted.expected is not None and wanted.expected != len(found):
        raise Problem("count-differs", f"there are {len(found)}, not {wanted.expected}", count=len(found))
    if wanted.dry_run:
        response.status_code = 200
        rows = [services.search.letter(*place) for place in found[:SAMPLE]]
        sample = [showing.show_letter(row) for row in rows if row is not None]
        return Preview(count=len(found), not_replayable=truncated, sample=sample)
    _require_reason(kind, wanted, len(found))
    operation = Operation(
        id=id_,
        kind=kind,
        state="running" if found else "done",
        filter=told,
        reason=wanted.reason,
        by=by,
        at=document.iso(datetime.now(UTC)),
        request=asked,
        total=len(found),
        canary=CANARY if wanted.canary and kind == "replay" else 0,
        per_second=wanted.per_second,
    )
    audit["operation"] = id_
    # The set first: an operation whose record can be read has its set.
    services.marks.put({f"set/{id_}": pack(found), f"operation/{id_}": operation.model_dump_json()})
    services.engine.wake()
    response.headers["Location"] = f"/api/v1/operations/{id_}"
    return operation


def _require_reason(kind: Kind, wanted: Wanted, count: int) -> None:
    if (kind == "discard" or count > REASON_NEEDED) and not wanted.reason.strip():
        why = "a discarded dead letter" if kind == "discard" else f"more than {REASON_NEEDED} at once"
        raise Problem("invalid", errors=[("/reason", f"is needed for {why}")])


def _again(operation: Operation, asked: str, response: Response) -> Operation:
    """Answer a request that was made before with the same key."""
    if operation.request != asked:
        raise Problem("key-reused")
    response.headers["Location"] = f"/api/v1/operations/{operation.id}"
    return operation


def _find(kind: Kind, wanted: Wanted, services: Services) -> tuple[list[Place], int]:
    """Return the dead letters that match now, and how many more cannot be replayed. Raises Problem."""
    if wanted.places is not None:
        where = letters_where(settled=None)
        places = {(int(partition), int(offset)) for partition, offset in (one.split(":") for one in wanted.places)}
        where.places(sorted(places))
        there = services.search.places(where)
        if len(there) < len(places):
            raise Problem("not-found", f"{len(places) - len(there)} of the places hold no dead letter")
        where.add("settled IS NULL")
    else:
        where = _where(wanted.filter or Filter())
    found = services.search.places(where)
    kept = [place for place, is_whole in found.items() if is_whole or kind == "discard"]
    if len(kept) > MOST_LETTERS:
        raise Problem("invalid", f"at most {MOST_LETTERS} dead letters fit into one operation: narrow the filter")
    return kept, len(found) - len(kept)


def _where(given: Filter) -> Where:
    return letters_where(
        codes=given.code,
        servers=given.server,
        path=given.path,
        job_ids=given.job_id,
        since=moment("/filter/newer_than", given.newer_than),
        until=moment("/filter/older_than", given.older_than),
    )


@router.get("/operations")
def list_operations(services: Served, _who: Viewer) -> Operations:
    """List the operations of the last 30 days, newest first, with the checks of servers since the start."""
    return Operations(items=services.engine.operations()[:200], **services.envelope())


@router.get("/operations/{operation_id}", responses=describe(404))
def show_operation(operation_id: Id, services: Served, _who: Viewer) -> Operation:
    """Show an operation: how far it is, and how it ended."""
    known = services.marks.get(f"operation/{operation_id}")
    if known is None:
        raise Problem("not-found")
    return Operation.model_validate_json(known)


@router.delete("/operations/{operation_id}", status_code=202, responses=describe(404, 409, 503))
def stop_operation(operation_id: Id, request: Request, services: Served, who: Operator) -> Operation:
    """Stop an operation after the step under way. What is done stays done."""
    return _tell(operation_id, "stop", request, services, who.name)


@router.post("/operations/{operation_id}/go", status_code=202, responses=describe(404, 409, 503))
def release_operation(operation_id: Id, request: Request, services: Served, who: Operator) -> Operation:
    """Let an operation go on though not all of its first jobs have succeeded yet."""
    return _tell(operation_id, "go", request, services, who.name)


def _tell(id_: str, word: Literal["stop", "go"], request: Request, services: Services, by: str) -> Operation:
    request.state.audit |= {"action": f"{word} operation", "operation": id_}
    operation = show_operation(id_, services, request.state.identity)
    if operation.is_over:
        raise Problem("conflict", f"the operation is over: {operation.state}")
    services.require_broker()
    services.marks.put({f"{word}/{id_}": json.dumps({"by": by, "at": document.iso(datetime.now(UTC))})})
    services.engine.wake()
    return operation
