"""`etl status`: what needs somebody, servers, backlog and processes, as the topics tell. Works without the API."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from etl.broker import Admin, is_listening
from etl.cli import terminal
from etl.cli.options import with_config
from etl.control.operator import read_book
from etl.errors import BrokerUnavailable
from etl.models import document
from etl.models.control import Acknowledge, Hold, Order
from etl.status import unheld
from etl.status.fleet import SILENT_INTERVALS, SLACK_SECONDS
from etl.status.reader import StatusReader
from etl.status.summary import NEEDS, Need, Summary, summarise
from etl.topics import letters
from etl.topics.companions import SystemTopics
from etl.topics.names import Topics

if TYPE_CHECKING:
    from rich.console import RenderableType

    from etl.config import ConfigLoader, Settings
    from etl.models.status import ServerStatus
    from etl.status.fleet import Process
    from etl.status.unheld import Unheld

EXIT_NEEDED, EXIT_NO_BROKER = 1, 3
WATCH_SECONDS = 2.0
LETTERS_SECONDS = 30.0  # between two looks at dead letters and holds while watching
TRANSFERS_SHOWN = 20
CLOCK_SECONDS = 60.0  # our clock and the broker's may differ by so much before a fresh record is doubted
ACTS = {
    "no-consumer": "start one",
    "login-refused": "etl try-now {0}, or etl hold server {0}",
    "server-down": "etl try-now {0}, or etl hold server {0}",
    "dead-letters": "etl dlq list, etl dlq replay",
    "on-hold": "etl release {0}",
}


@click.command()
@click.option("--watch", is_flag=True, help="Show it anew every two seconds, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (with --watch: one a line).")
@click.option("--no-dead-letters", is_flag=True, help="Do not read the dead letters: faster where there are very many.")
@with_config
def status(config: ConfigLoader, watch: bool, as_json: bool, no_dead_letters: bool) -> None:
    """Print one sentence, what needs somebody, and how servers, backlog and processes are.

    The exit code is 0 if all is well, 1 if something needs somebody, 2 for wrong usage, 3 without a broker.
    """
    settings = config.settings
    try:
        with contextlib.ExitStack() as stack:
            live = Live(console=terminal.console(), auto_refresh=False) if watch and not as_json else None
            for summary in summaries(settings, watch=watch, with_letters=not no_dead_letters):
                if as_json:
                    print(terminal.json_line(to_dict(summary)), flush=True)
                elif live is None:
                    terminal.console().print(_whole(summary))
                else:
                    if not live.is_started:
                        stack.enter_context(live)
                    live.update(_whole(summary), refresh=True)
    except BrokerUnavailable as error:
        click.echo(terminal.visible(error), err=True)
        sys.exit(EXIT_NO_BROKER)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if summary.is_well else EXIT_NEEDED)


def summaries(settings: Settings, *, watch: bool, with_letters: bool) -> Generator[Summary, None, None]:
    """Yield one summary, or with `watch` one every two seconds for ever."""
    system = SystemTopics.of(settings)
    if not is_listening(settings.bootstrap_servers):
        raise BrokerUnavailable(f"nothing listens at {settings.bootstrap_servers}")
    if not Admin(settings.bootstrap_servers).describe([system.status]):
        yield summarise([], datetime.now(UTC), *_beside(settings, system, [], with_letters=with_letters))
        return
    with StatusReader(settings.bootstrap_servers, system.status) as reader:
        reader.catch_up()
        news = reader.follow()
        _listen_to_doubtful(reader, news)
        beside = _beside(settings, system, reader.fleet.processes(time.monotonic()), with_letters=with_letters)

        def summary() -> Summary:
            return summarise(reader.fleet.processes(time.monotonic()), datetime.now(UTC), *beside)

        yield summary()
        looked_at = shown_at = time.monotonic()
        for _ in news if watch else ():
            now = time.monotonic()
            if now - looked_at >= LETTERS_SECONDS:
                looked_at = now
                beside = _beside(settings, system, reader.fleet.processes(now), with_letters=with_letters)
            if now - shown_at >= WATCH_SECONDS:
                shown_at = now
                yield summary()


def _beside(
    settings: Settings, system: SystemTopics, processes: Sequence[Process], *, with_letters: bool
) -> tuple[list[Hold], dict[str, int], dict[tuple[str, str], Unheld], list[Acknowledge], datetime | None]:
    """Return what `summarise` is told beside the processes.

    That is the holds in force, how many dead letters wait, by code, what waits where nobody reads, what somebody sees
    to, and when the newest dead letter came.
    """
    admin, dlq = Admin(settings.bootstrap_servers), Topics.of(settings.topic, settings).dlq
    there = admin.describe([system.control, dlq])
    orders: list[Order] = []
    if system.control in there:
        orders = read_book(settings.bootstrap_servers, system.control).orders(datetime.now(UTC))
    holds = [order for order in orders if isinstance(order, Hold)]
    known = [order for order in orders if isinstance(order, Acknowledge)]
    counts: Counter[str] = Counter()
    newest: datetime | None = None
    if with_letters and dlq in there:
        found, _ = letters.read(settings.bootstrap_servers, dlq)
        waiting = [letter.message for letter in found if not letter.settled]
        counts.update(letter.error_code for letter in waiting)
        newest = max((letter.timestamp for letter in waiting if letter.error_code != "CANCELLED"), default=None)
    return holds, dict(counts), _unheld(settings, processes), known, newest


def _unheld(settings: Settings, processes: Sequence[Process]) -> dict[tuple[str, str], Unheld]:
    """Return what nobody holds, of the groups whose processes told all of their partitions, and of our own."""
    held: dict[tuple[str, str], set[int]] = {(settings.topic, settings.group_id): set()}
    cut = set()
    for process in (process for process in processes if process.snapshot.kind == "consumer"):
        one = process.snapshot
        mine = held.setdefault((one.topic, one.group), set())
        if process.state not in ("silent", "stopped"):
            mine |= {row.partition for row in one.partitions if row.topic == one.topic}
            cut |= {(one.topic, one.group)} if one.more.partitions else set()
    return {
        (topic, group): unheld.read(settings.bootstrap_servers, topic, group, mine)
        for (topic, group), mine in held.items()
        if (topic, group) not in cut
    }


def _listen_to_doubtful(reader: StatusReader, news: Iterator[object]) -> None:
    """Wait until it is certain who is silent: nobody's clock is trusted to say how old the newest record is.

    A record that our clock, too, calls fresh needs no proof.
    """
    began, wall = time.monotonic(), time.time()
    while any(_is_doubtful(one.key, reader, wall) for one in reader.fleet.processes(time.monotonic())):
        next(news)
        if time.monotonic() - began > 3600:
            return


def _is_doubtful(key: str, reader: StatusReader, wall: float) -> bool:
    one = next(one for one in reader.fleet.processes(time.monotonic()) if one.key == key)
    if one.spoken or one.silent or one.snapshot.state == "stopped":
        return False
    return not -CLOCK_SECONDS < wall - reader.fleet.appended_at(key) < _limit(one.snapshot.interval_seconds)


def _limit(interval_seconds: float) -> float:
    return SILENT_INTERVALS * interval_seconds + SLACK_SECONDS


# --- words ----------------------------------------------------------------------------------------------------


def sentence(summary: Summary) -> str:
    """Return the summary in one sentence."""
    if not summary.is_well:
        return "1 thing needs you." if summary.urgent == 1 else f"{summary.urgent} things need you."
    files = f"{terminal.plural(summary.done, 'file')} ({terminal.size(summary.moved_bytes)})"
    since = "" if summary.since is None else f" since {_local(summary.since)}"
    if summary.known:
        return f"Nothing new needs you: {files}{since}; somebody sees to {terminal.plural(summary.known, 'thing')}."
    return f"All is well: {files}{since}, nothing needs you."


def words(need: Need, now: datetime) -> str:
    """Return what needs somebody, since when, and what one would do."""
    age = "" if need.since is None else _age((now - need.since).total_seconds())
    jobs = terminal.plural(need.jobs, "job")
    wait = f": {jobs} {'waits' if need.jobs == 1 else 'wait'}, none lost" if need.jobs else ""
    text = {
        "no-consumer": "no consumer runs" + wait + (f"; the last one spoke {age} ago" if age else ""),
        "login-refused": f"{need.subject} refuses the login" + (f" for {age}" if age else "") + wait,
        "server-down": f"{need.subject} is down" + (f" for {age}" if age else "") + wait,
        "process-silent": f"process {need.subject} is silent" + (f" for {age}" if age else ""),
        "backlog-old": f"the oldest job of {need.subject} waits for {age}: {jobs} unfinished",
        "transfer-stalled": f"transfer {need.subject} stands still ({need.detail})",
        "dead-letters": f"{terminal.plural(need.jobs, 'dead letter')}: {need.subject}",
        "settings-differ": f"consumers of {need.subject} have different servers in their settings",
        "on-hold": f"{need.subject} is on hold for {age}{wait}",
    }[need.kind]
    if need.detail and need.kind in {"login-refused", "server-down", "on-hold"}:
        text += f" ({need.detail})"
    if need.known is not None:
        until = "" if need.known.until is None else f" until {_local(need.known.until)}"
        return f"{text}; {need.known.author} sees to it{until}: {need.known.reason}"
    act = ACTS.get(need.kind)
    return text + (f" -> {act.format(need.subject)}" if act else "")


def _whole(summary: Summary) -> RenderableType:
    now = datetime.now(UTC)
    parts: list[RenderableType] = [Text(sentence(summary), style="bold" if summary.is_well else "bold red")]
    parts += [Text(terminal.visible(f"  {words(need, now)}")) for need in summary.needs[:NEEDS]]
    if len(summary.needs) > NEEDS:
        parts.append(Text(f"  and {len(summary.needs) - NEEDS} more"))
    if transfers := _transfers(summary):
        parts += [Text(""), transfers]
    if summary.servers:
        parts += [Text(""), _servers(summary, now)]
    if summary.topics:
        parts += [Text(""), _topics(summary, now)]
    if summary.processes:
        parts += [Text(""), _processes(summary)]
    return Group(*parts)


def _transfers(summary: Summary) -> RenderableType | None:
    rows = [
        (one, process.snapshot.id)
        for process in summary.processes
        if process.state not in ("silent", "stopped")
        for one in process.snapshot.transfers
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: (-(row[0].stalled_seconds or 0), row[0].began_at))
    made = terminal.table(
        ["transfer", "to", "phase", "moved", "rate", "left", "process"],
        [
            (
                one.source,
                one.destination,
                one.phase if one.stalled_seconds is None else f"still for {_age(one.stalled_seconds)}",
                terminal.size(one.moved) + ("" if one.size is None else f" of {terminal.size(one.size)}"),
                f"{terminal.size(one.rate)}/s" if one.rate else "",
                "" if one.eta_seconds is None else _age(one.eta_seconds),
                name,
            )
            for one, name in rows[:TRANSFERS_SHOWN]
        ],
        numbers=["moved", "rate", "left"],
    )
    more = summary.running - min(len(rows), TRANSFERS_SHOWN)
    return Group(made, Text(f"{more} more transfers")) if more > 0 else made


def _servers(summary: Summary, now: datetime) -> RenderableType:
    rows = []
    for server in summary.servers:
        one = server.status
        state = {"closed": "up", "open": "down", "half-open": "probed"}[one.breaker]
        if one.since is not None:
            state += f" {_age((now - one.since).total_seconds())}"
        if one.next_probe_at is not None and one.next_probe_at > now:
            state += f", next try in {_age((one.next_probe_at - now).total_seconds())}"
        if one.held_by:
            state = f"on hold, {state}"
        rows.append(
            (
                server.name,
                state,
                f"{one.jobs_per_second:.1f}",
                _rate(one),
                f"{one.error_share:.0%}",
                "" if one.round_trip_seconds is None else f"{one.round_trip_seconds * 1000:.1f} ms",
                f"{one.sessions.open}/{one.sessions.limit}",
                one.waiting + one.deferred,
            )
        )
    columns = ["server", "state", "jobs/s", "bytes/s", "failed", "round trip", "sessions", "waiting"]
    return terminal.table(columns, rows, numbers=columns[2:])


def _rate(one: ServerStatus) -> str:
    """Return how fast bytes move, both directions together, and what each of them may be at most."""
    limit = "" if one.bandwidth_limit is None else f" (limit {terminal.size(one.bandwidth_limit)}/s)"
    return f"{terminal.size(one.bytes_per_second)}/s{limit}"


def _topics(summary: Summary, now: datetime) -> RenderableType:
    rows = []
    for one in summary.topics:
        oldest = "" if one.oldest_at is None else _age((now - one.oldest_at).total_seconds())
        clear = "" if not one.unfinished or one.clear_seconds is None else f"about {_age(one.clear_seconds)}"
        parked = str(one.parked)
        if one.next_due_at is not None and one.next_due_at > now:
            parked += f", next in {_age((one.next_due_at - now).total_seconds())}"
        rows.append(
            (one.topic, one.group, one.unfinished, oldest, f"{one.jobs_per_second:.1f}", clear, parked, one.processes)
        )
    columns = ["topic", "group", "unfinished", "oldest waits", "jobs/s", "clear in", "deferred", "processes"]
    return terminal.table(columns, rows, numbers=columns[2:])


def _processes(summary: Summary) -> RenderableType:
    rows = []
    for process in summary.processes:
        one = process.snapshot
        state = f"silent for {_age(process.age_seconds)}" if process.silent else one.state
        if one.held_by:
            state += f", {one.held_by}"
        lanes = f"{one.lanes.busy}/{one.lanes.size}" if process.state not in ("silent", "stopped") else ""
        rows.append((one.id, one.kind, state, lanes, one.version, _local(one.started_at)))
    return terminal.table(["process", "kind", "state", "lanes", "version", "started"], rows)


def _local(at: datetime) -> str:
    """Return a time on this machine's clock: without the date if it is today's."""
    local = at.astimezone()
    return f"{local:%H:%M}" if local.date() == datetime.now(UTC).astimezone().date() else f"{local:%Y-%m-%d %H:%M}"


def _age(seconds: float) -> str:
    """Return a duration in its largest unit: 40 s, 4 min, 2.5 h, 3 d."""
    for limit, unit in ((120, 1), (7200, 60), (172_800, 3600)):
        if seconds < limit:
            return f"{max(0.0, seconds) / unit:.0f} {({1: 's', 60: 'min', 3600: 'h'})[unit]}"
    return f"{seconds / 86400:.0f} d"


def to_dict(summary: Summary) -> dict[str, Any]:
    """Return the summary as a JSON object."""
    now = datetime.now(UTC)
    return {
        "as_of": document.iso(now),
        "well": summary.is_well,
        "sentence": sentence(summary),
        "needs": [
            {
                "kind": need.kind,
                "subject": need.subject,
                "since": None if need.since is None else document.iso(need.since),
                "jobs": need.jobs,
                "detail": need.detail,
                "urgent": need.is_urgent,
                "known": None if need.known is None else need.known.model_dump(mode="json", exclude_none=True),
                "text": words(need, now),
            }
            for need in summary.needs
        ],
        "totals": {"done": summary.done, "failed": summary.failed, "bytes": summary.moved_bytes},
        "running": summary.running,
        "servers": [
            {**one.status.model_dump(mode="json", exclude_none=True), "processes": one.processes}
            for one in summary.servers
        ],
        "topics": [
            {
                "topic": one.topic,
                "group": one.group,
                "processes": one.processes,
                "unfinished": one.unfinished,
                "oldest_at": None if one.oldest_at is None else document.iso(one.oldest_at),
                "deferred": one.parked,
                "next_due_at": None if one.next_due_at is None else document.iso(one.next_due_at),
                "jobs_per_second": round(one.jobs_per_second, 2),
                "clear_seconds": None if one.clear_seconds is None else round(one.clear_seconds, 1),
            }
            for one in summary.topics
        ],
        "processes": [
            {
                **one.snapshot.model_dump(mode="json", exclude_none=True),
                "state": one.state,
                "age_seconds": round(one.age_seconds, 1),
            }
            for one in summary.processes
        ],
    }
