"""Trimming `T-retry`, which forgets nothing by itself: what every group has read is deleted now and then.

Jobs of a server that is down or slow go through it again and again, hundreds of records a second for days.
A record belongs to the group that wrote it, in the same transaction as an offset of its own. So whoever may still need
one is seen to have an offset in these topics by the time that we, who read committed records only, have passed it. For
moments in which that is not so yet, or a group's coordinator moves, there are two looks.
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
    from etl.topics.companions import Topics

log = structlog.get_logger(__name__)

LOOK_SECONDS = 300.0
WORTHWHILE = 10_000  # records, of all partitions
AWAY_DAYS = 30.0  # for so long a group may be away, as jobs are kept: brokers that forget it sooner are not trusted


class Trimmer:
    """Looks every few minutes, in the thread `trimmer`; what was read by all at two looks in a row goes.

    Every process does it, on its own: what another has deleted is not found again. Shares nothing with the others.
    """

    def __init__(self, topics: Topics, group: str, admin: Admin) -> None:
        self._topics = topics
        self._group = group
        self._admin = admin
        self._groups: dict[str, dict[Partition, int]] = {}  # up to where the look before found it read, by each
        self._said = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trimmer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread, which may be waiting for the broker: it is left behind then, and does no harm."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def look(self) -> int:
        """Delete what may be deleted, if it is worthwhile; return how many records. Raises BrokerUnavailable."""
        before, self._groups = self._groups, {}
        ours = self._admin.committed(self._group, {self._topics.retry})  # before the others': see above
        starts = self._admin.starts(ours) if ours else {}
        if _between(starts, ours) < WORTHWHILE:
            return 0
        groups = self._admin.committed_by_all({self._topics.source, self._topics.retry}, AWAY_DAYS)
        if self._group not in groups:
            raise BrokerUnavailable("our own group is not among those listed")
        ours = {p: min(at, groups[self._group].get(p, 0)) for p, at in ours.items()}
        self._groups = groups = groups | {self._group: ours}
        behind = [name for name, places in groups.items() if _between(starts, places) < WORTHWHILE]
        stopped = [name for name in behind if groups[name] == before.get(name)]
        if stopped:
            self._say(f"group {min(stopped)} does not read it")
        if not before:
            return 0
        limits = {p: min(places.get(p, 0) for places in (*before.values(), *groups.values())) for p in ours}
        count = _between(starts, limits)
        if count < WORTHWHILE:
            return 0
        self._admin.delete_before({p: at for p, at in limits.items() if at > starts[p]})
        log.info("retry topic trimmed", topic=self._topics.retry, records=count)
        self._said = ""
        return count

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.look()
            except BrokerUnavailable as error:
                self._say(str(error))
            except Exception as error:  # noqa: BLE001 - of the client; the next look may do better
                self._say(f"{type(error).__name__}: {error}")

    def _say(self, reason: str) -> None:
        if reason != self._said:
            self._said = reason
            log.info("retry topic not trimmed", topic=self._topics.retry, reason=reason)


def _between(starts: Mapping[Partition, int], ends: Mapping[Partition, int]) -> int:
    """Return how many offsets lie between them."""
    return sum(max(0, ends.get(partition, 0) - start) for partition, start in starts.items())
