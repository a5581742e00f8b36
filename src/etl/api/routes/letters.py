"""Dead letters: list them, group them by cause, show one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field

from etl.api.paging import Page
from etl.api.problems import Problem, describe
from etl.api.routes import showing
from etl.api.routes.asking import DEFAULT_LIMIT, Cursor, Limit, Served, Text, Viewer, When, Words, moment, when
from etl.api.routes.shapes import Letter, View
from etl.api.services import Services
from etl.api.views.rows import letter_of
from etl.api.views.search import Where, letters_where

router = APIRouter(prefix="/dead-letters", tags=["dead letters"], responses=describe(401, 403, 422, 429))

Place = Annotated[str, Path(pattern=r"^\d{1,9}:\d{1,18}$", description="PARTITION:OFFSET")]
Settled = Annotated[bool | None, Query(description="true: those that are settled alone; missing: those that wait")]


class Sample(BaseModel):
    """One dead letter of a cause."""

    place: str
    error: str | None


class Cause(BaseModel):
    """Dead letters that have code, servers and folder in common."""

    code: str
    source: str | None
    destination: str | None
    folder: str
    count: int
    first_at: str
    last_at: str
    sample: Sample


class Causes(View):
    """The causes of dead letters, the most frequent first."""

    items: list[Cause]
    total: int = Field(description="dead letters in all of these causes")


class WholeLetter(BaseModel):
    """A dead letter with all that it holds."""

    letter: Letter
    message: dict[str, Any] = Field(description="the dead letter as it is in its topic")
    note: str | None = Field(description="how it was settled")
    others: list[Letter] = Field(description="other dead letters of this job")


@dataclass(frozen=True)
class Filter:
    """Which dead letters are asked for, as the parameters say."""

    code: list[str]
    server: list[str]
    path: str | None
    job_id: list[str]
    older_than: str | None
    newer_than: str | None
    settled: bool | None

    def where(self) -> Where:
        """Return the conditions. Raises Problem for a time that is none."""
        return letters_where(
            codes=self.code,
            servers=self.server,
            path=self.path,
            job_ids=self.job_id,
            since=moment("newer_than", self.newer_than),
            until=moment("older_than", self.older_than),
            settled=bool(self.settled),
        )


@router.get("", responses=describe(400))
def list_letters(
    services: Served,
    _who: Viewer,
    code: Words = [],  # noqa: B006 - FastAPI copies it
    server: Words = [],  # noqa: B006
    path: Text = None,
    job_id: Words = [],  # noqa: B006
    older_than: When = None,
    newer_than: When = None,
    settled: Settled = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[Letter]:
    """List dead letters, newest first."""
    query = Filter(code, server, path, job_id, older_than, newer_than, settled)
    where = query.where()
    after = services.cursors.read({"letters": asdict(query)}, cursor) if cursor else None
    found = services.search.letters(where, limit, after)
    return Page[Letter](
        items=[showing.show_letter(row) for row in found.rows],
        next=services.cursors.write({"letters": asdict(query)}, found.after) if found.after else None,
        searched_until=when(found.searched_until),
        complete=found.complete,
        **services.envelope(),
    )


@router.get("/causes")
def group_letters(
    services: Served,
    _who: Viewer,
    code: Words = [],  # noqa: B006 - FastAPI copies it
    server: Words = [],  # noqa: B006
    path: Text = None,
    job_id: Words = [],  # noqa: B006
    older_than: When = None,
    newer_than: When = None,
    settled: Settled = None,
) -> Causes:
    """Group dead letters by cause: code, servers and folder."""
    where = Filter(code, server, path, job_id, older_than, newer_than, settled).where()
    groups = services.search.causes(where)
    items = [
        Cause(**{**group, "first_at": when(group["first_at"]), "last_at": when(group["last_at"])}) for group in groups
    ]
    return Causes(items=items, total=sum(item.count for item in items), **services.envelope())


@router.get("/{place}", responses=describe(404))
def show_letter(place: Place, services: Served, _who: Viewer) -> WholeLetter:
    """Show a dead letter whole."""
    row = _row(services, place)
    others = services.search.letters_of(row["origin"] or "", row["job_id"])
    return WholeLetter(
        letter=showing.show_letter(row),
        message=letter_of(row).message.to_dict(),
        note=row["note"],
        others=[showing.show_letter(other) for other in others if showing.show_letter(other).place != place],
    )


@router.get(
    "/{place}/original",
    responses={**describe(404), 200: {"content": {"application/octet-stream": {}}, "description": "The exact bytes"}},
    response_class=Response,
)
def download_original(place: Place, services: Served, _who: Viewer) -> Response:
    """Download the message of a dead letter as it was sent, byte for byte."""
    content = letter_of(_row(services, place)).message.original_bytes()
    if content is None:
        raise Problem("not-found", "the message was too large to be kept")
    name = f"dead-letter-{place.replace(':', '-')}"
    return Response(content, 200, {"Content-Disposition": f'attachment; filename="{name}"'}, "application/octet-stream")


def _row(services: Services, place: str) -> Any:
    partition, _, offset = place.partition(":")
    row = services.search.letter(int(partition), int(offset))
    if row is None:
        raise Problem("not-found", f"there is no dead letter {place}")
    return row
