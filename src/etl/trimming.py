"""Trimming `T-retry`, which forgets nothing by itself: what every group has read is deleted now and then.

Jobs of a server that is down or slow go through it again and again, hundreds of records a second for days.
A record belongs to the group that wrote it, in the same transaction as an offset of its own. So whoever may still need
one is seen to have an offset in these topics by the time that we, who read committed records only, have passed it.
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
    from etl.topics import Topics

log = structlog.get_logger(__name__)

LOOK_SECONDS = 300.0
WORTHWHILE = 10_000  # records, of all partitions


class Trimmer:
    """Looks every few minutes, in the thread `trimmer`; what was read by all at two looks in a row goes.

    Every process does it, on its own: what another has deleted is not found again. Shares nothing with the others.
    """

    def __init__(self, topics: Topics, group: str, admin: Admin) -> None:
        self._topics = topics
        self._group = group
        self._admin = admin
        self._last: dict[Partition, int] = {}  # what the look before found
        self._said = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trimmer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread, which may be waiting for the broker: it is left behind then, and does no harm."""
        self._stopping.set()
        self._thread.join(timeout)

    def look(self) -> int:
        """Delete what may be deleted, if it is worthwhile; return how many records. Raises BrokerUnavailable."""
        before, self._last = self._last, {}
        ours = self._admin.committed(self._group, {self._topics.retry})  # before the others': see above
        starts = self._admin.starts(ours) if ours else {}
        if _between(starts, ours) < WORTHWHILE:
            return 0
        groups = self._admin.committed_by_all({self._topics.source, self._topics.retry})
        behind = sorted(name for name, places in groups.items() if _between(starts, places) < WORTHWHILE)
        if behind:
            self._say(f"group {behind[0]} has not read it (kafka-consumer-groups.sh --delete, if nobody needs it)")
        self._last = {p: min(at, *(places.get(p, 0) for places in groups.values())) for p, at in ours.items()}
        limits = {p: min(at, before.get(p, 0)) for p, at in self._last.items()}
        count = _between(starts, limits)
        if count < WORTHWHILE:
            return 0
        self._admin.delete_before({p: at for p, at in limits.items() if at > starts[p]})
        log.info("retry topic trimmed", topic=self._topics.retry, records=count)
        return count

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.look()
            except BrokerUnavailable as error:
                self._say(str(error))

    def _say(self, reason: str) -> None:
        if reason != self._said:
            self._said = reason
            log.info("retry topic not trimmed", topic=self._topics.retry, reason=reason)


def _between(starts: Mapping[Partition, int], ends: Mapping[Partition, int]) -> int:
    """Return how many offsets lie between them."""
    return sum(max(0, ends.get(partition, 0) - start) for partition, start in starts.items())
