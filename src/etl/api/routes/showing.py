"""Rows of the cache as they are answered."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from etl.api.routes.asking import when
from etl.api.routes.shapes import Event, File, Job, Letter
from etl.topics.names import Topics


def show_job(row: sqlite3.Row, running: Mapping[str, dict[str, Any]]) -> Job:
    """Return a job; `running` are the transfers that processes speak of, by place."""
    transfer = running.get(f"{row['topic']}-{row['partition']}-{row['offset']}")
    is_open = row["state"] in ("queued", "waiting")
    started, finished = row["started_at"], row["finished_at"]
    return Job(
        place=f"{row['topic']}/{row['partition']}/{row['offset']}",
        job_id=row["job_id"],
        state="running" if transfer and is_open else row["state"],
        at=when(row["at"]) or "",
        source=File(server=row["source"], path=row["source_path"]),
        destination=File(server=row["destination"], path=row["destination_path"]),
        priority=row["priority"],
        replays=row["replays"] or 0,
        code=row["code"],
        error=row["error"],
        bytes=row["bytes"],
        attempts=row["attempts"],
        started_at=when(started),
        finished_at=when(finished),
        duration_seconds=None if started is None or finished is None else round(max(0.0, finished - started), 3),
        worker=row["worker"],
        not_before=when(row["not_before"]) if is_open else None,
        waits=row["waits"] or 0,
        letter=row["letter"],
        group=row["group_id"],
        transfer=transfer if is_open else None,
    )


def show_letter(row: sqlite3.Row) -> Letter:
    """Return a dead letter of a list."""
    return Letter(
        place=f"{row['partition']}:{row['offset']}",
        at=when(row["at"]) or "",
        code=row["code"],
        error=row["error"],
        job_id=row["job_id"],
        job=place_of(row["origin"]),
        source=File(server=row["source"] or None, path=row["source_path"] or None),
        destination=File(server=row["destination"] or None, path=row["destination_path"] or None),
        replays=row["replays"] or 0,
        can_replay=not row["truncated"],
        state=row["settled"] or "waiting",
        settled_at=when(row["settled_at"]),
    )


def place_of(origin: str | None) -> str | None:
    """Return an origin, TOPIC-PARTITION-OFFSET, as the place of a job."""
    return "/".join(origin.rsplit("-", 2)) if origin else None


def tell(
    job: sqlite3.Row,
    letters: list[sqlite3.Row],
    namesakes: list[sqlite3.Row],
    acts: list[dict[str, Any]],
    topics: Topics,
) -> list[Event]:
    """Return the story of a job, in the order in which it happened."""
    place = f"{job['topic']}/{job['partition']}/{job['offset']}"
    events = []
    if job["submitted_at"] is not None:
        what = "replayed" if job["replays"] else "submitted"
        events.append(Event(at=when(job["submitted_at"]), what=what, place=place))
    for attempt in _history(job["history"]):
        detail = ": ".join(str(attempt[part]) for part in ("where", "what") if attempt.get(part))
        events.append(Event(at=str(attempt.get("at") or "") or None, what="attempt", detail=detail))
    if job["not_before"] is not None and job["state"] == "waiting":
        events.append(Event(at=None, what="waiting", detail=f"until {when(job['not_before'])}"))
    if job["started_at"] is not None:
        events.append(Event(at=when(job["started_at"]), what="started", who=job["worker"]))
    if job["finished_at"] is not None:
        error = job["error"] if job["state"] != "done" else None
        what = "failed" if job["state"] in ("failed", "discarded") else str(job["state"])
        events.append(Event(at=when(job["finished_at"]), what=what, detail=error, who=job["worker"]))
    for letter in letters:
        if place_of(letter["origin"]) == place:
            name = f"{letter['partition']}:{letter['offset']}"
            events.append(Event(at=when(letter["timestamp"]), what="dead-letter", place=name, detail=letter["error"]))
            if letter["settled"]:
                reason = _history_note(letter["note"]).get("reason")
                events.append(Event(at=when(letter["settled_at"]), what=letter["settled"], place=name, detail=reason))
    for other in namesakes:
        other_place = f"{other['topic']}/{other['partition']}/{other['offset']}"
        if other_place != place and (other["replays"] or 0) > (job["replays"] or 0) and other["topic"] == topics.source:
            events.append(Event(at=when(other["at"]), what="replay", place=other_place, detail=other["state"]))
    events += [
        Event(at=act.get("at"), what=str(act.get("action")), who=act.get("actor"), detail=act.get("reason"))
        for act in acts
    ]
    # The end of a run is noted a moment before its last attempt is.
    last = max((event.at or "" for event in events if event.what == "attempt"), default="")
    ends = ("done", "failed")
    return sorted(events, key=lambda event: max(event.at or "9", last if event.what in ends else ""))


def _history(text: str | None) -> list[dict[str, Any]]:
    try:
        found = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _history_note(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
