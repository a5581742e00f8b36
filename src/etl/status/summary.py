"""The whole installation in a few lines: what needs somebody, servers as all processes see them, the backlog in time.

Pure: knows processes, holds and counts of dead letters, and finds no words; the kinds of `Need` have their words in the
command and in the page.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from etl.models.field import is_label
from etl.models.status import ServerStatus, down_since
from etl.status.unheld import NONE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from etl.models.control import Acknowledge, Hold
    from etl.models.status import Snapshot
    from etl.status.fleet import Process
    from etl.status.unheld import Unheld

DOWN_SECONDS = 600.0  # a server that is down for less needs nobody yet
OLD_SECONDS = 900.0  # so long the oldest job of a topic may wait
STALLED_SECONDS = 30.0
NEEDS = 10  # told at most
MORE_JOBS = 100  # than twice as many as were acknowledged: then a need has grown
# From the worst to what one should merely know.
KINDS = (
    "no-consumer",
    "login-refused",
    "server-down",
    "process-silent",
    "backlog-old",
    "transfer-stalled",
    "dead-letters",
    "settings-differ",
    "on-hold",
)


@dataclass(frozen=True)
class Need:
    """Something that needs somebody, or that one should know. `subject` names it; `jobs` are touched by it."""

    kind: str
    subject: str
    since: datetime | None = None
    jobs: int = 0
    detail: str = ""  # text of a server or a person: to be shown as such
    newest: datetime | None = None  # when it last grew
    known: Acknowledge | None = None  # who sees to it

    @property
    def name(self) -> str:
        """What it is known by, while `subject` may count: the same for as long as it is the same."""
        if self.kind == "dead-letters":
            return "all"
        return self.subject if is_label(self.subject) else hashlib.sha256(self.subject.encode()).hexdigest()[:16]

    @property
    def is_urgent(self) -> bool:
        """Does it need somebody? A hold was meant, and what somebody sees to is known."""
        return self.kind != "on-hold" and self.known is None

    def is_as_known(self, order: Acknowledge) -> bool:
        """Is it still what was acknowledged? Not if it began anew, or touches many more jobs."""
        began = self.newest or self.since
        is_new = began is not None and began > max(order.at, order.since or order.at)
        return not is_new and self.jobs <= 2 * order.jobs + MORE_JOBS


@dataclass(frozen=True)
class Server:
    """One server as all processes together see it: the worst breaker, the rest added up."""

    name: str
    status: ServerStatus
    processes: int


@dataclass(frozen=True)
class Topic:
    """The backlog of one topic and group. `clear_seconds` is missing where nothing is done at the moment."""

    topic: str
    group: str
    processes: int
    unfinished: int
    oldest_at: datetime | None
    parked: int
    next_due_at: datetime | None
    jobs_per_second: float

    @property
    def clear_seconds(self) -> float | None:
        """How long the jobs that can run take, at the present rate."""
        return self.unfinished / self.jobs_per_second if self.jobs_per_second > 0 else None


@dataclass(frozen=True)
class Summary:
    """Everything that is shown. Totals count since the start of the processes that run, `since` the first of them."""

    needs: Sequence[Need]
    processes: Sequence[Process]
    servers: Sequence[Server]
    topics: Sequence[Topic]
    done: int
    failed: int
    moved_bytes: int
    running: int
    since: datetime | None

    @property
    def is_well(self) -> bool:
        """Does nothing need anybody?"""
        return not any(need.is_urgent for need in self.needs)

    @property
    def known(self) -> int:
        """How many things would need somebody if nobody saw to them."""
        return sum(need.known is not None for need in self.needs)

    @property
    def urgent(self) -> int:
        """How many things need somebody."""
        return sum(need.is_urgent for need in self.needs)


def summarise(
    processes: Sequence[Process],
    now: datetime,
    holds: Iterable[Hold] = (),
    dead_letters: Mapping[str, int] | None = None,
    unheld: Mapping[tuple[str, str], Unheld] | None = None,
    known: Iterable[Acknowledge] = (),
    newest_letter: datetime | None = None,
) -> Summary:
    """Return the summary as of `now`.

    `dead_letters`: how many wait to be settled, by code; `newest_letter`: when the last of them came. `unheld`: what
    waits in partitions that nobody holds, by topic and group. `known`: what somebody sees to.
    """
    live = [one for one in processes if one.state not in ("silent", "stopped")]
    consumers = [one.snapshot for one in live if one.snapshot.kind == "consumer"]
    servers, topics = _servers(consumers), _topics(consumers, unheld or {})
    needs = [
        *_process_needs(processes, consumers, sum(topic.unfinished for topic in topics)),
        *_server_needs(servers, now),
        *_topic_needs(topics, servers, now),
        *_stalled(consumers),
        *_letters(dead_letters or {}, newest_letter),
        *(
            Need("on-hold", f"{one.what} {one.name}", one.at, _waiting(one, servers, topics), _words(one))
            for one in holds
        ),
    ]
    orders = {(one.need, one.name): one for one in known if one.counts(now)}
    for at, need in enumerate(needs):
        order = orders.get((need.kind, need.name))
        if order is not None and need.is_as_known(order):
            needs[at] = replace(need, known=order)
    needs.sort(key=lambda need: (need.known is not None, KINDS.index(need.kind), -need.jobs, need.subject))
    return Summary(
        needs=needs,
        processes=processes,
        servers=servers,
        topics=topics,
        done=sum(one.totals.jobs.get("done", 0) for one in consumers),
        failed=sum(one.totals.jobs.get("failed", 0) for one in consumers),
        moved_bytes=sum(row.bytes_out for one in consumers for row in one.totals.servers.values()),
        running=sum(len(one.transfers) + one.more.transfers for one in consumers),
        since=min((one.started_at for one in consumers), default=None),
    )


def _process_needs(processes: Sequence[Process], consumers: Sequence[Snapshot], jobs: int) -> list[Need]:
    needs = [
        Need("process-silent", one.snapshot.id, one.snapshot.at, one.snapshot.window.jobs)
        for one in processes
        if one.silent
    ]
    if not consumers:
        last = max((one.snapshot.at for one in processes if one.snapshot.kind == "consumer"), default=None)
        needs.append(Need("no-consumer", "", last, jobs))
    hashes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for one in consumers:
        hashes[one.topic, one.group].add(one.settings_hash)
    needs += [Need("settings-differ", f"{topic} {group}") for (topic, group), found in hashes.items() if len(found) > 1]
    return needs


def _server_needs(servers: Sequence[Server], now: datetime) -> list[Need]:
    needs = []
    for server in servers:
        status = server.status
        if status.breaker == "closed":
            continue
        is_refusal = status.error is not None and status.error.code == "AUTHENTICATION_FAILED"
        is_long = status.since is not None and (now - status.since).total_seconds() >= DOWN_SECONDS
        if is_refusal or is_long:
            kind = "login-refused" if is_refusal else "server-down"
            text = "" if status.error is None else status.error.text
            needs.append(Need(kind, server.name, status.since, status.waiting + status.deferred, text))
    return needs


def _topic_needs(topics: Sequence[Topic], servers: Sequence[Server], now: datetime) -> list[Need]:
    """Return the topics whose jobs wait for too long: unless a server is down or on hold, which tells it already."""
    if any(server.status.breaker != "closed" or server.status.held_by for server in servers):
        return []
    return [
        Need("backlog-old", topic.topic, topic.oldest_at, topic.unfinished)
        for topic in topics
        if topic.oldest_at is not None and (now - topic.oldest_at).total_seconds() > OLD_SECONDS
    ]


def _stalled(consumers: Iterable[Snapshot]) -> list[Need]:
    return [
        Need("transfer-stalled", f"{one.source} to {one.destination}", one.began_at, 1, one.job_id or one.place)
        for consumer in consumers
        for one in consumer.transfers
        if (one.stalled_seconds or 0.0) > STALLED_SECONDS
    ]


def _letters(dead_letters: Mapping[str, int], newest: datetime | None) -> list[Need]:
    """Return one need for all dead letters; those that an operator cancelled need nobody."""
    counts = {code: count for code, count in dead_letters.items() if count and code != "CANCELLED"}
    if not counts:
        return []
    codes = ", ".join(f"{count} {code}" for code, count in sorted(counts.items(), key=lambda item: -item[1]))
    return [Need("dead-letters", codes, None, sum(counts.values()), newest=newest)]


def _waiting(hold: Hold, servers: Sequence[Server], topics: Sequence[Topic]) -> int:
    """Return how many jobs a hold keeps back, as far as processes know."""
    if hold.what == "server":
        return sum(one.status.waiting + one.status.deferred for one in servers if one.name == hold.name)
    return sum(one.unfinished + one.parked for one in topics if hold.name in (one.topic, one.group))


def _words(hold: Hold) -> str:
    return f"{hold.author}: {hold.reason}" if hold.reason else hold.author


def _servers(consumers: Iterable[Snapshot]) -> list[Server]:
    rows: dict[str, list[ServerStatus]] = defaultdict(list)
    for consumer in consumers:
        for row in consumer.servers:
            rows[row.name].append(row)
    servers = [Server(name, _merge(found), len(found)) for name, found in rows.items()]
    servers.sort(key=lambda one: (one.status.breaker == "closed", -one.status.lanes, one.name))
    return servers


def _merge(rows: Sequence[ServerStatus]) -> ServerStatus:
    """Return one row for all: the worst breaker, down since the first of them; sums; the longest round trip."""
    order = ("open", "half-open", "closed")
    worst = min(rows, key=lambda row: order.index(row.breaker))
    rate = sum(row.jobs_per_second for row in rows)
    shares = sum(row.error_share * row.jobs_per_second for row in rows)
    return worst.model_copy(
        update={
            "since": down_since(rows),
            "lanes": sum(row.lanes for row in rows),
            "waiting": sum(row.waiting for row in rows),
            "deferred": sum(row.deferred for row in rows),
            "sessions": worst.sessions.model_copy(
                update={name: sum(getattr(row.sessions, name) for row in rows) for name in ("open", "idle", "limit")}
            ),
            "jobs_per_second": rate,
            "bytes_per_second": sum(row.bytes_per_second for row in rows),
            "error_share": shares / rate if rate else max(row.error_share for row in rows),
            "round_trip_seconds": max((row.round_trip_seconds or 0.0 for row in rows), default=0.0) or None,
            "bandwidth_limit": sum(row.bandwidth_limit or 0.0 for row in rows) or None,
            "held_by": next((row.held_by for row in rows if row.held_by), None),
        }
    )


def _topics(consumers: Iterable[Snapshot], unheld: Mapping[tuple[str, str], Unheld]) -> list[Topic]:
    groups: dict[tuple[str, str], list[Snapshot]] = {key: [] for key, found in unheld.items() if found.records}
    for consumer in consumers:
        groups.setdefault((consumer.topic, consumer.group), []).append(consumer)
    topics = []
    for (topic, group), members in sorted(groups.items()):
        rest = unheld.get((topic, group), NONE)
        times = [row.oldest_at for one in members for row in one.partitions if row.topic == topic]
        topics.append(
            Topic(
                topic=topic,
                group=group,
                processes=len(members),
                unfinished=sum(one.window.jobs + one.window.behind for one in members) + rest.records,
                oldest_at=min((at for at in (*times, rest.oldest_at) if at is not None), default=None),
                parked=sum(one.parked.jobs for one in members),
                next_due_at=min((one.parked.next_due_at for one in members if one.parked.next_due_at), default=None),
                # Each job counts at two servers.
                jobs_per_second=sum(row.jobs_per_second for one in members for row in one.servers) / 2,
            )
        )
    return topics
