"""Every metric: its name, type, labels and help, and how it is read from the snapshots of `etl-status`.

`render(processes, …)` writes them in the text format of Prometheus, for the API's `/metrics` and for a consumer's own
port. Names and units follow Prometheus' conventions. Labels are bounded: processes, servers and topics as they are
configured, codes and reasons as the product knows them; never a job, a path, a host's address or the text of an error.
Beyond PROCESSES and SERVERS the split by process is summed up, and `etl_metric_labels_dropped_total` says so. Counters
are what processes say: a restart is an ordinary reset.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from etl.models.status import down_since
from etl.outcomes.totals import SECONDS_BUCKETS, SIZE_BUCKETS, WAIT_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from etl.models.status import HistogramStatus, Snapshot
    from etl.status.fleet import Process

PROCESSES, SERVERS = 64, 200
FORGET_SECONDS = 3600.0  # after the last word of a process, its series end
STATES = ("starting", "waiting", "running", "draining", "stopped", "silent")
BREAKERS = ("closed", "open", "half-open")
STALLED_SECONDS = 30.0


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    kind: str  # counter, gauge, histogram
    labels: tuple[str, ...]
    help: str


def _metric(name: str, kind: str, labels: str, help_: str) -> Metric:
    return Metric(name, kind, tuple(labels.split()), help_)


METRICS: dict[str, Metric] = {
    row.name: row
    for row in (
        _metric("etl_jobs_total", "counter", "process topic outcome", "Jobs that ended: done, skipped or failed."),
        _metric("etl_job_failures_total", "counter", "process topic code", "Jobs that failed for good, by error code."),
        _metric(
            "etl_job_retries_total",
            "counter",
            "process reason",
            "Times that a job was put off: after an attempt, an outage, as busy, held, or not_before.",
        ),
        _metric(
            "etl_transfer_bytes_total",
            "counter",
            "process server direction",
            "Bytes read from a server (in) or written to it (out), also by attempts that failed.",
        ),
        _metric("etl_transfer_duration_seconds", "histogram", "process", "Duration of successful runs."),
        _metric("etl_transfer_size_bytes", "histogram", "process", "Sizes of transferred files."),
        _metric("etl_job_wait_seconds", "histogram", "process topic", "From a job's arrival at the broker to its run."),
        _metric("etl_transfers_running", "gauge", "process", "Transfers that run now."),
        _metric("etl_lanes", "gauge", "process", "Transfers that can run at once."),
        _metric("etl_lanes_busy", "gauge", "process", "Lanes that hold sessions."),
        _metric("etl_transfer_oldest_seconds", "gauge", "process", "Age of the oldest running transfer."),
        _metric("etl_transfer_stalled", "gauge", "process", "Transfers of which no byte has moved for 30 seconds."),
        _metric("etl_window_jobs", "gauge", "process", "Unfinished jobs in memory."),
        _metric("etl_window_limit", "gauge", "process", "Most unfinished jobs that a process holds in memory."),
        _metric("etl_parked_jobs", "gauge", "topic group", "Jobs that wait in T-retry."),
        _metric("etl_backlog_jobs", "gauge", "topic group", "Unfinished jobs: in memory, and not read yet."),
        _metric(
            "etl_runnable_jobs",
            "gauge",
            "topic group",
            "Unfinished jobs that more processes could run: all but those of servers that are down or on hold.",
        ),
        _metric(
            "etl_backlog_oldest_age_seconds",
            "gauge",
            "topic group",
            "Age of the oldest unfinished record that was received; 0 without any.",
        ),
        _metric(
            "etl_consumer_lag_records",
            "gauge",
            "group topic partition",
            "Records from the committed offset to the end, as Kafka's tools count them.",
        ),
        _metric("etl_server_up", "gauge", "server", "1: no process finds the server down; 0: one does."),
        _metric("etl_server_breaker", "gauge", "server state", "1 for the worst state of the server's breakers."),
        _metric("etl_server_held", "gauge", "server", "1: an operator holds the server's jobs back."),
        _metric(
            "etl_server_down_since_seconds", "gauge", "server", "For how long the server has been down; 0: it is up."
        ),
        _metric("etl_server_round_trip_seconds", "gauge", "server", "Longest round trip that a process measured."),
        _metric("etl_server_error_ratio", "gauge", "server", "Part of the runs of the last minute that failed."),
        _metric("etl_server_sessions", "gauge", "process server state", "Sessions that are in use, or idle."),
        _metric("etl_server_sessions_limit", "gauge", "process server", "Most sessions that there may be now."),
        _metric("etl_server_waiting_jobs", "gauge", "server", "Jobs in memory that wait for the server."),
        _metric("etl_server_logins_refused_total", "counter", "process server", "Logins that the server refused."),
        _metric("etl_server_connects_total", "counter", "process server", "Sessions that were opened."),
        _metric("etl_commits_total", "counter", "process result", "Transactions, committed or failed."),
        _metric("etl_commit_duration_seconds", "histogram", "process", "Duration of transactions."),
        _metric("etl_process_status_age_seconds", "gauge", "process kind", "Time since the process last spoke."),
        _metric("etl_process_state", "gauge", "process kind state", "1 for the state of the process."),
        _metric("etl_process_start_time_seconds", "gauge", "process kind", "When the process started (Unix time)."),
        _metric("etl_process_resident_memory_bytes", "gauge", "process", "Memory of the process."),
        _metric("etl_process_cpu_seconds_total", "counter", "process", "Processor time of the process."),
        _metric("etl_process_threads", "gauge", "process", "Threads of the process."),
        _metric("etl_process_open_fds", "gauge", "process", "Open files and connections of the process."),
        _metric("etl_settings_mismatch", "gauge", "topic group", "1: consumers of a group have different servers."),
        _metric("etl_dead_letters", "gauge", "topic code", "Dead letters that wait to be settled (API alone)."),
        _metric(
            "etl_dead_letters_settled", "gauge", "topic how", "Those replayed or discarded, and not purged (API alone)."
        ),
        _metric("etl_dead_letter_oldest_age_seconds", "gauge", "topic", "Age of the oldest of them (API alone)."),
        _metric("etl_http_requests_total", "counter", "route method status", "Requests answered (API alone)."),
        _metric(
            "etl_http_request_duration_seconds",
            "histogram",
            "route method",
            "From a request to the beginning of its answer (API alone).",
        ),
        _metric("etl_build_info", "gauge", "version", "1 for each version that runs."),
        _metric("etl_metric_labels_dropped_total", "counter", "", "Series that were summed up, as they were too many."),
    )
}


@dataclass
class DeadLetters:
    """What the caller knows of the dead letters of a topic: how many wait, by code, and since when; how many do not."""

    counts: Mapping[str, int] = field(default_factory=dict)
    oldest: datetime | None = None
    settled: Mapping[str, int] = field(default_factory=dict)  # by how


@dataclass
class Requests:
    """What the API has answered: by route, method and class of status; and how long that took."""

    counts: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    seconds: Mapping[tuple[str, str], HistogramStatus] = field(default_factory=dict)


@dataclass
class _Text:
    """The lines under construction, by metric."""

    lines: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def put(self, name: str, value: float, *labels: object, suffix: str = "", more: str = "") -> None:
        """Add a sample; `labels` in the order of the declaration."""
        metric = METRICS[name]
        pairs = [f'{key}="{_escape(str(text))}"' for key, text in zip(metric.labels, labels, strict=True)]
        inner = ",".join([*pairs, *([more] if more else [])])
        self.lines[name].append(f"{name}{suffix}{{{inner}}} {_number(value)}" if inner else f"{name} {_number(value)}")

    def histogram(self, name: str, told: HistogramStatus, bounds: Sequence[float], *labels: object) -> None:
        """Add a histogram."""
        counts, total = list(told.counts) + [0] * (len(bounds) + 1 - len(told.counts)), 0
        for bound, count in zip((*bounds, float("inf")), counts, strict=False):
            total += count
            more = f'le="{"+Inf" if bound == float("inf") else _number(bound)}"'
            self.put(name, total, *labels, suffix="_bucket", more=more)
        self.put(name, told.sum, *labels, suffix="_sum")
        self.put(name, total, *labels, suffix="_count")

    def __str__(self) -> str:
        """Return the whole text; metrics without a sample are left out."""
        parts = []
        for name, metric in METRICS.items():
            if self.lines.get(name):
                parts += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}", *self.lines[name]]
        return "\n".join(parts) + "\n" if parts else ""


def render(
    processes: Sequence[Process],
    now: datetime,
    dead_letters: Mapping[str, DeadLetters] | None = None,
    requests: Requests | None = None,
) -> str:
    """Return all metrics as text. `dead_letters` by topic, and `requests`: where the caller knows them."""
    text = _Text()
    known = [one for one in processes if one.age_seconds < FORGET_SECONDS]
    shown, rest = known[:PROCESSES], known[PROCESSES:]
    dropped = len(rest)
    for process in shown:
        dropped += _put_process(text, process, now)
    live = [one.snapshot for one in known if one.state not in ("silent", "stopped")]
    consumers = [one for one in live if one.kind == "consumer"]
    dropped += _put_servers(text, consumers, now)
    _put_topics(text, consumers, now)
    for topic, letters in (dead_letters or {}).items():
        for code, count in sorted(letters.counts.items()):
            text.put("etl_dead_letters", count, topic, code)
        for how, count in sorted(letters.settled.items()):
            text.put("etl_dead_letters_settled", count, topic, how)
        age = 0.0 if letters.oldest is None else max(0.0, (now - letters.oldest).total_seconds())
        text.put("etl_dead_letter_oldest_age_seconds", age, topic)
    if requests is not None:
        for labels, count in sorted(requests.counts.items()):
            text.put("etl_http_requests_total", count, *labels)
        for route, told in sorted(requests.seconds.items()):
            text.histogram("etl_http_request_duration_seconds", told, SECONDS_BUCKETS, *route)
    for version in sorted({one.version for one in live if one.version}):
        text.put("etl_build_info", 1, version)
    text.put("etl_metric_labels_dropped_total", dropped)
    return str(text)


def _put_process(text: _Text, process: Process, now: datetime) -> int:
    """Write the series of one process; return how many were summed up."""
    one, totals = process.snapshot, process.snapshot.totals
    name = one.id
    text.put("etl_process_status_age_seconds", round(process.age_seconds, 1), name, one.kind)
    for state in STATES:
        text.put("etl_process_state", process.state == state, name, one.kind, state)
    text.put("etl_process_start_time_seconds", one.started_at.timestamp(), name, one.kind)
    text.put("etl_process_cpu_seconds_total", one.resources.cpu_seconds, name)
    text.put("etl_process_resident_memory_bytes", one.resources.rss_bytes, name)
    text.put("etl_process_threads", one.resources.threads, name)
    text.put("etl_process_open_fds", one.resources.fds, name)
    if one.kind != "consumer":
        return 0
    for outcome in ("done", "skipped", "failed"):
        text.put("etl_jobs_total", totals.jobs.get(outcome, 0), name, one.topic, outcome)
    for code, count in sorted(totals.failures.items()):
        text.put("etl_job_failures_total", count, name, one.topic, code)
    for reason, count in sorted(totals.retries.items()):
        text.put("etl_job_retries_total", count, name, reason)
    for result, count in (("committed", totals.commits), ("failed", totals.commits_failed)):
        text.put("etl_commits_total", count, name, result)
    text.histogram("etl_transfer_duration_seconds", totals.duration_seconds, SECONDS_BUCKETS, name)
    text.histogram("etl_transfer_size_bytes", totals.size_bytes, SIZE_BUCKETS, name)
    text.histogram("etl_job_wait_seconds", totals.wait_seconds, WAIT_BUCKETS, name, one.topic)
    text.histogram("etl_commit_duration_seconds", totals.commit_seconds, SECONDS_BUCKETS, name)
    _put_window(text, process, now)
    servers = sorted(totals.servers.items())
    for server, counts in servers[:SERVERS]:
        text.put("etl_transfer_bytes_total", counts.bytes_in, name, server, "in")
        text.put("etl_transfer_bytes_total", counts.bytes_out, name, server, "out")
        text.put("etl_server_connects_total", counts.connects, name, server)
        text.put("etl_server_logins_refused_total", counts.logins_refused, name, server)
    return max(0, len(servers) - SERVERS)


def _put_window(text: _Text, process: Process, now: datetime) -> None:
    """Write what is so at the moment: of a process that is silent or stopped nothing is."""
    one = process.snapshot
    if process.state in ("silent", "stopped"):
        return
    began = min((row.began_at for row in one.transfers), default=None)
    stalled = sum((row.stalled_seconds or 0.0) > STALLED_SECONDS for row in one.transfers)
    text.put("etl_transfers_running", len(one.transfers) + one.more.transfers, one.id)
    text.put("etl_lanes", one.lanes.size, one.id)
    text.put("etl_lanes_busy", one.lanes.busy, one.id)
    age = 0.0 if began is None else max(0.0, (now - began).total_seconds())
    text.put("etl_transfer_oldest_seconds", round(age, 1), one.id)
    text.put("etl_transfer_stalled", stalled, one.id)
    text.put("etl_window_jobs", one.window.jobs, one.id)
    text.put("etl_window_limit", one.window.limit, one.id)
    for row in one.servers:
        sessions = row.sessions
        text.put("etl_server_sessions", max(0, sessions.open - sessions.idle), one.id, row.name, "used")
        text.put("etl_server_sessions", sessions.idle, one.id, row.name, "idle")
        limit = sessions.limit if sessions.shrunk_to is None else sessions.shrunk_to
        text.put("etl_server_sessions_limit", limit, one.id, row.name)


def _put_servers(text: _Text, consumers: Iterable[Snapshot], now: datetime) -> int:
    """Write the series of each server, as all processes together see it; return how many were left out."""
    rows = defaultdict(list)
    for consumer in consumers:
        for row in consumer.servers:
            rows[row.name].append(row)
    for name, seen in sorted(rows.items())[:SERVERS]:
        worst = max(seen, key=lambda row: ("closed", "half-open", "open").index(row.breaker))
        text.put("etl_server_up", worst.breaker == "closed", name)
        for state in BREAKERS:
            text.put("etl_server_breaker", worst.breaker == state, name, state)
        text.put("etl_server_held", any(row.held_by for row in seen), name)
        since = down_since(seen)
        down = 0.0 if since is None else max(0.0, (now - since).total_seconds())
        text.put("etl_server_down_since_seconds", round(down, 1), name)
        trips = [row.round_trip_seconds for row in seen if row.round_trip_seconds is not None]
        if trips:
            text.put("etl_server_round_trip_seconds", max(trips), name)
        rate = sum(row.jobs_per_second for row in seen)
        failed = sum(row.error_share * row.jobs_per_second for row in seen)
        text.put("etl_server_error_ratio", round(failed / rate, 4) if rate else 0.0, name)
        text.put("etl_server_waiting_jobs", sum(row.waiting for row in seen), name)
    return max(0, len(rows) - SERVERS)


def _put_topics(text: _Text, consumers: Iterable[Snapshot], now: datetime) -> None:
    groups: dict[tuple[str, str], list[Snapshot]] = defaultdict(list)
    for consumer in consumers:
        groups[consumer.topic, consumer.group].append(consumer)
    for (topic, group), members in sorted(groups.items()):
        backlog = sum(one.window.jobs + one.window.behind for one in members)
        text.put("etl_backlog_jobs", backlog, topic, group)
        text.put("etl_runnable_jobs", sum(runnable(one) for one in members), topic, group)
        text.put("etl_parked_jobs", sum(one.parked.jobs for one in members), topic, group)
        own = [row for one in members for row in one.partitions if row.topic == topic]
        oldest = min((row.oldest_at for row in own if row.oldest_at is not None), default=None)
        age = 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())
        text.put("etl_backlog_oldest_age_seconds", round(age, 1), topic, group)
        text.put("etl_settings_mismatch", len({one.settings_hash for one in members}) > 1, topic, group)
        for row in (row for one in members for row in one.partitions):
            lag = max(0, row.end - row.committed)
            text.put("etl_consumer_lag_records", lag, group, row.topic, row.partition)


def runnable(one: Snapshot) -> int:
    """Return how many jobs of a process more processes could run.

    Jobs of a server that is down, or on hold, wait however many processes there are; so do those of a held topic.
    """
    if one.held_by:
        return 0
    blocked = sum(row.waiting for row in one.servers if row.breaker != "closed" or row.held_by)
    return max(0, one.window.jobs - blocked) + one.window.behind + one.parked.busy


def document() -> str:
    """Return docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Written by `python -m etl.status.metrics` from `src/etl/status/metrics.py`; a test compares the two. The API",
        "serves them at `/metrics` for all processes, and a consumer with `ETL_METRICS_PORT` its own. Values are as",
        "old as the last word of a process (`etl_process_status_age_seconds`), usually a few seconds.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{row.name}` | {row.kind} | {', '.join(row.labels)} | {row.help} |" for row in METRICS.values()]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Return a label's value: without what would end it, or could not be seen."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:255]


def _number(value: float) -> str:
    return f"{int(value)}" if isinstance(value, bool | int) or value == int(value) else repr(float(value))


if __name__ == "__main__":
    print(document(), end="")  # noqa: T201 - a tool that writes a file
