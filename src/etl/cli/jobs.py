"""`etl jobs`: finds jobs by id, place, path, server or time, and tells one job's whole story. Reads topics alone."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from etl.broker import Admin
from etl.cli import stories, terminal
from etl.cli.options import Age, with_config
from etl.cli.stories import Event, Query, Story
from etl.models import document
from etl.models.bundle import FILES_LIMIT
from etl.status.reader import StatusReader
from etl.topics.companions import SystemTopics
from etl.topics.names import Topics

if TYPE_CHECKING:
    from etl.config import ConfigLoader, Settings

EXIT_NOT_FOUND = 1
DAY = timedelta(days=1)
MONTH = timedelta(days=30)  # as long as a topic that we create keeps jobs
SHOWN = FILES_LIMIT + 10  # jobs of one name: those of a message, and replays
PLACE = re.compile(r"(.+)-(\d{1,9})-(\d{1,19})")


@click.group()
def jobs() -> None:
    """Find jobs, and see what became of them."""


@jobs.command()
@click.argument("names", metavar="[ID|TOPIC-PARTITION-OFFSET|PATH|PATTERN]...", nargs=-1)
@click.option("--server", multiple=True, help="Only those from or to this server; repeatable.")
@click.option("--since", type=Age(), help="Sent at most so long ago: 30m, 2h, 3d ... (default: 1d).")
@click.option("--until", type=Age(), help="Sent at least so long ago.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, help="Show so many, the newest (default: 100).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@with_config
def find(
    config: ConfigLoader,
    names: tuple[str, ...],
    server: tuple[str, ...],
    since: timedelta | None,
    until: timedelta | None,
    limit: int,
    as_json: bool,
) -> None:
    """Print the jobs that match, newest first. What has a slash is a path or a pattern, such as '/in/*.tif'."""
    patterns = [name for name in names if "/" in name]
    if len(patterns) > 1:
        raise click.UsageError("give one path or pattern")
    settings, now = config.settings, datetime.now(UTC)
    query = Query(
        names=frozenset(name for name in names if "/" not in name),
        servers=frozenset(name.upper() for name in server),
        pattern=patterns[0] if patterns else None,
        since=now - (since or DAY),
        until=None if until is None else now - until,
    )
    topics = Topics.of(settings.topic, settings)
    found, count = stories.find(settings.bootstrap_servers, topics, query, limit)
    _add_running(settings, found)
    if as_json:
        for story in found:
            print(terminal.json_line(_to_dict(story)))
    else:
        if found:
            terminal.console().print(_table(found))
        shown = "" if count == len(found) else f"; the newest {len(found)} are shown"
        print(f"{terminal.plural(count, 'job')} of {topics.source} in the last {_span(since or DAY)}{shown}")
    if not found:
        sys.exit(EXIT_NOT_FOUND)


@jobs.command()
@click.argument("name", metavar="ID|TOPIC-PARTITION-OFFSET")
@click.option("--since", type=Age(), help="Look for an id so far back (default: 30d).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one line for each job of this id.")
@with_config
def show(config: ConfigLoader, name: str, since: timedelta | None, as_json: bool) -> None:
    """Print a job's whole story: sent, waited and why, attempts, result, source, dead letter, replays.

    Of a message of several jobs, by its id or place: all of them, in a table.
    """
    settings = config.settings
    topics = Topics.of(settings.topic, settings)
    found = _named(settings, topics, name, since or MONTH)
    if not found:
        click.echo(f"{topics.source} holds no job {terminal.visible(name)}", err=True)
        sys.exit(EXIT_NOT_FOUND)
    stories.tell(settings.bootstrap_servers, topics, found)
    _add_running(settings, found)
    if len(found) > 1 and not as_json and all(_is_only_of(story, name) for story in found):
        terminal.console().print(_table(found))
        states = Counter(story.state for story in found)
        counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
        print(terminal.visible(f"message {found[0].message_id} of {terminal.plural(len(found), 'job')}: {counts}"))
        return
    for index, story in enumerate(found):
        if as_json:
            print(terminal.json_line(_to_dict(story)))
            continue
        if index:
            print()
        _print_story(story)


def _named(settings: Settings, topics: Topics, name: str, since: timedelta) -> list[Story]:
    """Return the jobs of a name: that of a place, or all of an id, oldest first, with their replays."""
    place = PLACE.fullmatch(name)
    query = Query(names=frozenset([name]), since=datetime.now(UTC) - since)
    found: list[Story] = []
    if place is not None and place[1] in (topics.source, topics.retry):
        found = stories.at_place(settings.bootstrap_servers, topics, place[1], int(place[2]), int(place[3]))
        if found:  # replays have its id
            query = dataclasses.replace(query, names=frozenset(story.job_id for story in found))
            query = dataclasses.replace(query, since=document.moment(found[0].record.timestamp))
    others, _ = stories.find(settings.bootstrap_servers, topics, query, SHOWN)
    is_named = place is not None and bool(found)
    found += [
        story for story in others if story.key not in {one.key for one in found} and (not is_named or _is_replay(story))
    ]
    # What was found so was told once already; a story is told from its beginning.
    return sorted((_anew(story) for story in found), key=lambda story: story.record.timestamp)


def _is_only_of(story: Story, name: str) -> bool:
    """Does the name mean the message of several jobs that this one was in, and not the job itself?"""
    return story.message_id is not None and name not in (story.job_id, story.place)


def _is_replay(story: Story) -> bool:
    return story.events[0].text.startswith("as a replay")


def _anew(story: Story) -> Story:
    return Story(story.record, story.job, events=story.events[:1], message_id=story.message_id)


def _add_running(settings: Settings, found: list[Story]) -> None:
    """Add what processes say of those that run now."""
    topic = SystemTopics.of(settings).status
    if not found or not Admin(settings.bootstrap_servers).describe([topic]):
        return
    with StatusReader(settings.bootstrap_servers, topic) as reader:
        reader.catch_up()
        processes = reader.fleet.processes(time.monotonic())
    running = {one.place: (one, process) for process in processes for one in process.snapshot.transfers}
    for story in found:
        places = [story.place] if story.deferral is None else [story.place, stories.place_of(story.deferral)]
        here = next((running[place] for place in places if place in running), None)
        if here is not None and story.result is None and here[1].state not in ("silent", "stopped"):
            story.running = here[0]
            moved = terminal.size(here[0].moved) + (
                "" if here[0].size is None else f" of {terminal.size(here[0].size)}"
            )
            text = f"by {here[1].snapshot.id}: {here[0].phase}, {moved}"
            story.events.append(Event(here[0].began_at, "running", text))


def _table(found: list[Story]) -> object:
    rows = [
        (
            story.place,
            f"{document.moment(story.record.timestamp):%Y-%m-%d %H:%M:%S}",
            story.state,
            story.job_id,
            story.end("source"),
            story.end("destination"),
        )
        for story in found
    ]
    return terminal.table(["place", "sent (UTC)", "state", "job", "from", "to"], rows, whole=["place", "state"])


def _print_story(story: Story) -> None:
    print(terminal.visible(f"{story.job_id}: {story.state}"))
    for name, value in {"place": story.place, "from": story.end("source"), "to": story.end("destination")}.items():
        if value:
            print(terminal.visible(f"{name + ':':7}{value}"))
    for event in story.events:
        at = "(unknown time)     " if event.at is None else f"{event.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
        print(terminal.visible(f"  {at}  {event.what}" + (f": {event.text}" if event.text else "")))


def _to_dict(story: Story) -> dict[str, Any]:
    """Return a job as a JSON object."""
    return {
        "place": story.place,
        "message_id": story.message_id,
        "job_id": story.job_id,
        "state": story.state,
        "sent_at": document.iso(document.moment(story.record.timestamp)),
        "job": None if story.job is None else story.job.to_dict(),
        "result": None if story.result is None else story.result.to_dict(),
        "dead_letter": None if story.letter is None else story.letter.name,
        "events": [
            {"at": None if event.at is None else document.iso(event.at), "what": event.what, "text": event.text}
            for event in story.events
        ],
    }


def _span(length: timedelta) -> str:
    hours = length.total_seconds() / 3600
    return f"{hours:g} h" if hours < 48 else f"{hours / 24:g} days"
