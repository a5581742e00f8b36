"""Trims `T-retry`, whose records never expire: deletes those that every group has read.

Jobs of a server that is down or slow pass through the topic again and again, hundreds of records a second for days.

A group writes its records in the same transaction as an offset of a job topic or of T-retry. Consumers read committed
records only, so by the time they have read a record, the group that still needs it is known to have an offset there. As
a coordinator that has just moved may not list all of its groups, only records that were read at two checks in a row are
deleted.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

from etl.errors import BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from etl.broker import Admin
    from etl.models.wire import Partition
    from etl.topics.names import Topics

log = structlog.get_logger(__name__)

LOOK_SECONDS = 300.0  # between two checks
WORTHWHILE = 10_000  # records in all partitions; fewer are left alone
AWAY_DAYS = 30.0  # a group may be absent for as long as jobs are kept: brokers must not forget its offsets sooner


class Trimmer:
    """Trims every few minutes, in the thread `trimmer`.

    Each process does so by itself, without coordination: records that another one has deleted are gone for all.
    """

    def __init__(self, topics: Topics, group: str, admin: Admin) -> None:
        self._topics = topics
        self._group = group
        self._admin = admin
        self._groups: dict[str, dict[Partition, int]] = {}  # the offsets of each group at the last check
        self._last_reason = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trimmer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread; leave it behind, harmlessly, if it still waits for the broker after `timeout` seconds."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def trim(self) -> int:
        """Check what every group has read; delete it if that is worthwhile. Return how many records were deleted.

        Raises:
            BrokerUnavailable: the broker does not answer, or does not show the offsets of all groups.
        """
        before, self._groups = self._groups, {}
        # Read before the offsets of the others: by now, whoever wrote a record that these have passed has an offset.
        own = self._admin.committed(self._group, {self._topics.retry})
        starts = self._admin.starts(own) if own else {}
        if _count_between(starts, own) < WORTHWHILE:
            return 0
        groups = self._admin.committed_by_all({self._topics.source, self._topics.retry}, AWAY_DAYS)
        if self._group not in groups:
            raise BrokerUnavailable("our own group is missing from the list of groups")
        own = {p: min(at, groups[self._group].get(p, 0)) for p, at in own.items()}
        self._groups = groups = groups | {self._group: own}
        behind = [name for name, offsets in groups.items() if _count_between(starts, offsets) < WORTHWHILE]
        stopped = [name for name in behind if groups[name] == before.get(name)]
        if stopped:
            self._log_obstacle(f"group {min(stopped)} does not read it")
        if not before:
            return 0
        limits = {p: min(offsets.get(p, 0) for offsets in (*before.values(), *groups.values())) for p in own}
        count = _count_between(starts, limits)
        if count < WORTHWHILE:
            return 0
        self._admin.delete_before({p: at for p, at in limits.items() if at > starts[p]})
        log.info("retry topic trimmed", topic=self._topics.retry, records=count)
        self._last_reason = ""
        return count

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.trim()
            except BrokerUnavailable as error:
                self._log_obstacle(str(error))
            except Exception as error:  # noqa: BLE001 - a bug of the client; the next check may succeed
                self._log_obstacle(f"{type(error).__name__}: {error}")

    def _log_obstacle(self, reason: str) -> None:
        """Log why nothing is trimmed, unless the last line gave the same reason."""
        if reason != self._last_reason:
            self._last_reason = reason
            log.info("retry topic not trimmed", topic=self._topics.retry, reason=reason)


def _count_between(starts: Mapping[Partition, int], ends: Mapping[Partition, int]) -> int:
    """Return how many offsets lie from `starts` to `ends` in all partitions."""
    return sum(max(0, ends.get(partition, 0) - start) for partition, start in starts.items())
