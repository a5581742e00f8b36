"""Periodic lines in the log: how many jobs are deferred, the state of servers, whether this process has work.

Belongs to the consumer's main thread. Changes nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from etl import clock as wall_clock

if TYPE_CHECKING:
    from etl.broker import GroupConsumer
    from etl.dispatch.dispatcher import Dispatcher
    from etl.intake.partitions import Partitions
    from etl.topics.names import Topics

log = structlog.get_logger(__name__)

DEFERRED_SECONDS = 30.0
SERVERS_SECONDS = 60.0
IDLE_SECONDS = 20.0  # without a partition of the source topic: longer than the group keeps a member that died


class Reports:
    """The periodic reports of one process. `tick` is called in each iteration of the consumer's loop."""

    def __init__(self, topics: Topics, group: GroupConsumer, partitions: Partitions, dispatcher: Dispatcher) -> None:
        self._topics = topics
        self._group = group
        self._partitions = partitions
        self._dispatcher = dispatcher
        now = time.monotonic()
        self._deferred_due = now + DEFERRED_SECONDS
        self._servers_due = now + SERVERS_SECONDS
        self._counted: dict[str, tuple[int, int]] = {}  # runs and failures of each server at the last report
        self._idle_since = now
        self._has_reported_idle = False

    def tick(self, now: float) -> None:
        """Log the reports that are due. `now`: monotonic."""
        if now >= self._deferred_due:
            self._deferred_due = now + DEFERRED_SECONDS
            self._report_deferred()
        if now >= self._servers_due:
            self._servers_due = now + SERVERS_SECONDS
            self._report_servers()
        if not self._has_reported_idle:
            self._report_idle(now)

    def _report_deferred(self) -> None:
        """Log how many jobs wait in T-retry, and when the next one is due."""
        count, next_due = self._partitions.count_deferred(self._topics.retry)
        if count:
            seconds = None if next_due is None else round(max(0.0, next_due - wall_clock.now()), 1)
            log.info("jobs deferred", topic=self._topics.retry, count=count, next_due_seconds=seconds)

    def _report_servers(self) -> None:
        """Log the state of each server that has work or is down."""
        for name, report in self._dispatcher.servers().items():
            runs, failures = self._counted.get(name, (0, 0))
            self._counted[name] = report.runs, report.failures
            runs, failures = report.runs - runs, report.failures - failures
            if report.lanes or runs or report.state != "closed":
                trip = report.round_trip_seconds
                log.info(
                    "server",
                    server=name,
                    breaker=report.state,
                    next_probe_seconds=round(report.next_probe_seconds, 1),
                    lanes=report.lanes,
                    jobs_per_second=round(runs / SERVERS_SECONDS, 2),
                    error_share=round(failures / runs, 3) if runs else 0.0,
                    round_trip_ms=None if trip is None else round(trip * 1000, 1),
                    deferred=report.deferred,
                )

    def _report_idle(self, now: float) -> None:
        """Log once that this process has no work, because other members hold all partitions of the source topic."""
        topic = self._topics.source
        if not self._group.is_member() or any(held.topic == topic for held in self._group.assigned()):
            self._idle_since = now
        elif now - self._idle_since > IDLE_SECONDS:
            self._has_reported_idle = True
            log.info("idle: the group has more processes than the topic has partitions", topic=topic)
