"""Dead letters as a table for a spreadsheet: streamed a part at a time, bounded, and without formulas."""

from __future__ import annotations

import asyncio
import csv
import io
import threading
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime

import structlog
from fastapi import APIRouter
from starlette.responses import StreamingResponse

from etl.api.problems import Problem, describe
from etl.api.routes import showing
from etl.api.routes.asking import Served, Text, Viewer, When, Words
from etl.api.routes.letters import Filter, Settled
from etl.api.routes.shapes import Letter
from etl.api.services import Services
from etl.api.views.search import Where

router = APIRouter(prefix="/dead-letters", tags=["dead letters"], responses=describe(401, 403, 422, 429))

log = structlog.get_logger(__name__)

ROWS = 200_000  # at most; an older part is had with `older_than`
SECONDS = 600.0  # that an export may take: who does not read leaves its place to others
PART = 500  # rows of a read: none keeps the cache's file from being trimmed for long
AT_ONCE = 2
SPACES = 50  # before a formula
COLUMNS = [
    "place",
    "at",
    "code",
    "error",
    "job_id",
    "job",
    "source_server",
    "source_path",
    "destination_server",
    "destination_path",
    "replays",
    "state",
    "settled_at",
]
FORMULA = ("=", "+", "-", "@")  # a cell that begins so is a formula to one spreadsheet or another

_running = threading.Semaphore(AT_ONCE)


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {}}, "description": "The table, with a line of names"}},
)
def export_letters(
    services: Served,
    _who: Viewer,
    code: Words = [],  # noqa: B006 - FastAPI copies it
    server: Words = [],  # noqa: B006
    path: Text = None,
    job_id: Words = [],  # noqa: B006
    older_than: When = None,
    newer_than: When = None,
    settled: Settled = None,
) -> StreamingResponse:
    """Export dead letters as CSV (UTF-8), newest first, 200,000 at most: then the last line says so.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    where = Filter(code, server, path, job_id, older_than, newer_than, settled).where()
    if not _running.acquire(blocking=False):
        raise Problem("too-many", f"at most {AT_ONCE} exports run at the same time", headers={"Retry-After": "10"})
    name = f"dead-letters-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return _Export(_table(services, where), 200, headers, "text/csv; charset=utf-8")


class _Export(StreamingResponse):
    """One export; its place among those that run is free when it ends, also if it never began."""

    async def __call__(self, scope: object, receive: object, send: object) -> None:
        """Answer."""
        try:
            async with asyncio.timeout(SECONDS):
                await super().__call__(scope, receive, send)  # type: ignore[arg-type]  # what starlette gave us
        except TimeoutError:
            log.info("export given up: its reader is too slow", seconds=SECONDS)
        finally:
            _running.release()


def _table(services: Services, where: Where) -> Iterator[str]:
    """Yield the lines, a part at a time. The mark at the start has spreadsheets read UTF-8."""
    yield "\ufeff" + _lines([COLUMNS])
    after, left = None, ROWS
    while True:
        found = services.search.letters(where, min(PART, left), after)
        if found.rows:
            yield _lines([_row(showing.show_letter(row)) for row in found.rows])
        left -= len(found.rows)
        if found.after is None:
            return
        if left <= 0:
            yield _lines([[f"more match: only the newest {ROWS} are here; ask for the others with older_than"]])
            return
        after = found.after


def _row(letter: Letter) -> list[str]:
    source, destination = letter.source, letter.destination
    cells = (
        *(letter.place, letter.at, letter.code, letter.error, letter.job_id, letter.job),
        *(source.server, source.path, destination.server, destination.path),
        *(letter.replays, letter.state, letter.settled_at),
    )
    return [plain("" if cell is None else str(cell)) for cell in cells]


def plain(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: not behind spaces, nor in wide letters."""
    begin = unicodedata.normalize("NFKC", cell[:SPACES].lstrip()[:1])
    is_doubtful = begin.startswith(FORMULA) or cell[:1] in ("'", "\t", "\r", "\n") or cell[:SPACES].isspace()
    return f"'{cell}" if is_doubtful else cell


def _lines(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue().replace("\x00", "")
