"""The audit: who did what, when, why, and how it ended; what was refused, too."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query

from etl.api.paging import Page
from etl.api.problems import describe
from etl.api.routes.asking import DEFAULT_LIMIT, Cursor, Limit, Served, Text, Viewer, When, moment, when
from etl.api.routes.shapes import Open
from etl.api.views.search import Where

router = APIRouter(tags=["audit"], responses=describe(400, 401, 403, 422, 429))


@router.get("/audit")
def list_acts(
    services: Served,
    _who: Viewer,
    actor: Text = None,
    action: Text = None,
    target: Text = None,
    result: Annotated[str | None, Query(max_length=50)] = None,
    since: When = None,
    until: When = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[Open]:
    """List acts, newest first."""
    query = {"actor": actor, "action": action, "target": target, "result": result, "since": since, "until": until}
    where = Where()
    for column in ("actor", "action", "target", "result"):
        if (value := query[column]) is not None:
            where.add(f"{column} = ?", value)
    if (first := moment("since", since)) is not None:
        where.add("at >= ?", first)
    if (last := moment("until", until)) is not None:
        where.add("at < ?", last)
    after = services.cursors.read({"audit": query}, cursor) if cursor else None
    found = services.search.audit(where, limit, after)
    return Page[Open](
        items=[Open(**json.loads(row["value"])) for row in found.rows],
        next=services.cursors.write({"audit": query}, found.after) if found.after else None,
        searched_until=when(found.searched_until),
        complete=found.complete,
        **services.envelope(),
    )
