"""Where a partition starts whose offset is gone, or was committed by somebody else; and which of its jobs are done.

Belongs to the consumer's main thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import structlog

from etl.errors import SettingsError
from etl.models.wire import Commit, Partition
from etl.outcomes import offsets

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.broker import TakenOver
    from etl.models.task import Origin, Record
    from etl.outcomes.evidence import Evidence, Shown
    from etl.topics.names import Topics

log = structlog.get_logger(__name__)

FOREIGN = "foreign"  # stands for the metadata of a commit that has none: its owner did not leave the partition cleanly


class _Doubt(NamedTuple):
    """What decides about the records of a partition that may be done already: those up to `end`."""

    evidence: Evidence
    end: int


class Claims:
    """Decides about partitions whose offset does not tell what is done: a job that an outcome shows is not done again.

    `on_lost` is ETL_ON_LOST_OFFSETS: what happens where the group has no offset although it has worked there: `stop`,
    `oldest` or `newest`. `on_fatal` is called instead of starting a partition where the answer is `stop`.
    """

    def __init__(
        self,
        topics: Topics,
        group: str,
        on_lost: str,
        ask: Callable[[Partition], Evidence | None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._topics = topics
        self._group = group
        self._on_lost = on_lost
        self._ask = ask
        self._on_fatal = on_fatal
        self._doubts: dict[Partition, _Doubt] = {}

    def decide(self, partition: Partition, taken: TakenOver) -> TakenOver | None:
        """Return where the partition starts; None if that is not known yet, or not to be decided by us."""
        self._doubts.pop(partition, None)
        is_foreign = not taken.is_new and taken.as_read and not offsets.is_ours(taken.committed)
        if not (taken.is_new or is_foreign or taken.lost is not None):
            return taken
        if taken.first >= taken.end:
            return taken  # nothing is there that could have been done
        evidence = self._ask(partition)
        if evidence is None:
            return None
        # Where the topic does not hold the offset any more, it begins with the first record, and that is told.
        start = taken.first if taken.lost is not None else self._start(partition, taken, evidence)
        if start is not None and start < taken.end:
            self._doubts[partition] = _Doubt(evidence, taken.end)
        metadata = FOREIGN if is_foreign else ""
        return None if start is None else taken._replace(committed=Commit(start, metadata))

    def is_done(self, partition: Partition, record: Record, origin: Origin) -> bool:
        """Does an outcome show that this record, just received, is done?"""
        doubt = self._doubts.get(partition)
        if doubt is None:
            return False
        if record.offset >= doubt.end:
            del self._doubts[partition]
            return False
        return doubt.evidence.shows(origin, record.timestamp, at_once=partition.topic == self._topics.source)

    def _start(self, partition: Partition, taken: TakenOver, evidence: Evidence) -> int | None:
        if partition.topic == self._topics.retry:
            # Whoever reads T-retry skips what is not its own: all that is left in it is looked at again.
            if not taken.is_new:
                self._tell_foreign(partition, taken, taken.first, None)
            return taken.first
        shown = evidence.shown.get(partition)
        if taken.is_new:
            return taken.first if shown is None else self._without_offset(partition, taken, shown)
        if shown is None:
            log.warning(
                "offset of another program taken as the start: no outcome shows that this group has worked here",
                topic=partition.topic,
                partition=partition.partition,
                offset=taken.committed.offset,
                note=taken.committed.metadata,
            )
            return taken.committed.offset
        start = max(taken.first, min(taken.committed.offset, shown.offsets[0]))
        self._tell_foreign(partition, taken, start, shown)
        return start

    def _without_offset(self, partition: Partition, taken: TakenOver, shown: Shown) -> int | None:
        done = shown.between(taken.first, taken.end)
        facts = {
            "topic": partition.topic,
            "partition": partition.partition,
            "records": taken.end - taken.first,
            "shown_done": done,
        }
        if self._on_lost == "stop":
            self._on_fatal(
                SettingsError(
                    f"Kafka has forgotten the offsets of group {self._group}, although results show that it has worked "
                    f"on {partition.topic}: of {taken.end - taken.first} records of partition {partition.partition}, "
                    f"{done} are shown to be done. Set ETL_ON_LOST_OFFSETS=oldest to do all that no result shows, or "
                    "newest to do only jobs that come from now on; `etl offsets list` shows where the group stands"
                )
            )
            return None
        log.error("offsets lost: Kafka has forgotten where this group stood", **facts, start=self._on_lost)
        return taken.first if self._on_lost == "oldest" else taken.end

    def _tell_foreign(self, partition: Partition, taken: TakenOver, start: int, shown: Shown | None) -> None:
        at = taken.committed.offset
        low, high = min(start, at), max(start, at)
        log.error(
            "offset was committed by another program: jobs that no outcome shows are done all the same",
            topic=partition.topic,
            partition=partition.partition,
            group=self._group,
            note=taken.committed.metadata,
            committed=at,
            looked_at_from=start,
            jobs_not_shown=high - low - (shown.between(low, high) if shown is not None else 0),
            to_accept_it="stop the consumers, `etl offsets accept`, start them",
        )
