"""What the outcomes in Kafka show of the jobs that a group has done: results, dead letters, and deferrals.

Read only where the group's offsets do not tell. Knows no job: the headers of a record name its origin.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

import structlog

from etl.broker import Reader
from etl.errors import BrokerUnavailable
from etl.models import header
from etl.models.task import Origin
from etl.models.wire import Partition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from etl.models.task import Record
    from etl.outcomes.seal import Seal
    from etl.topics.names import Topics

log = structlog.get_logger(__name__)


class Shown(NamedTuple):
    """The jobs of one partition that have an outcome: their offsets, sorted, and the times of the last outcomes."""

    offsets: array[int]
    times: array[float]  # seconds since the epoch, as Kafka has them

    def time_of(self, offset: int) -> float | None:
        """Return when the job at `offset` had its last outcome; None if it has none."""
        at = bisect_left(self.offsets, offset)
        return self.times[at] if at < len(self.offsets) and self.offsets[at] == offset else None

    def between(self, start: int, end: int) -> int:
        """Return how many jobs from `start` up to, but not including, `end` have an outcome."""
        return bisect_right(self.offsets, end - 1) - bisect_left(self.offsets, start)


class Evidence(NamedTuple):
    """All that was found, by the partition that the jobs came from first."""

    shown: Mapping[Partition, Shown]

    def shows(self, origin: Origin, time: float, *, at_once: bool) -> bool:
        """Is there an outcome of this job later than a record of it, written at `time`?

        Older ones are of another job at the same place, in a topic that was deleted since. `at_once`: the outcome may
        bear the same time.
        """
        of_partition = self.shown.get(Partition(origin.topic, origin.partition))
        done = None if of_partition is None else of_partition.time_of(origin.offset)
        return done is not None and (done > time or (at_once and done == time))


class Witness:
    """Reads the outcomes, in a thread of its own, as often as it is asked for evidence."""

    def __init__(self, topics: Topics, group: str, bootstrap_servers: str, seal: Seal | None = None) -> None:
        self._topics = topics
        self._seal = seal
        self._group = group.encode()
        self._bootstrap_servers = bootstrap_servers
        self._asked: set[Partition] = set()  # partitions whose answer is still to come
        self._found: dict[Partition, Evidence] = {}  # filled by the thread
        self._thread: threading.Thread | None = None

    def ask(self, partition: Partition) -> Evidence | None:
        """Return what is known of the outcomes that were committed before the first of these calls; None: not yet.

        After an answer, the next call for the partition begins anew. One reading answers for all that have asked.
        """
        if (found := self._found.pop(partition, None)) is not None:
            self._asked.discard(partition)
            return found
        self._asked.add(partition)
        if self._thread is None or not self._thread.is_alive():
            wanted = self._asked - self._found.keys()
            self._thread = threading.Thread(target=self._read, args=(wanted,), name="witness", daemon=True)
            self._thread.start()
        return None

    def _read(self, wanted: set[Partition]) -> None:
        try:
            times: dict[Partition, dict[int, float]] = {}
            for topic in dict.fromkeys(
                (self._topics.results, self._topics.failed, self._topics.dlq, self._topics.retry)
            ):
                with Reader(self._bootstrap_servers, topic) as reader:
                    for record in reader.scan():
                        self._note(record, times)
            for partition in wanted:
                if partition.topic == self._topics.source:
                    self._drop_of_another_topic(partition, times)
        except BrokerUnavailable as error:
            log.info("outcomes not read", error=str(error))  # the next call begins anew
            return
        evidence = Evidence({place: _sorted(of_place) for place, of_place in times.items()})
        self._found |= dict.fromkeys(wanted, evidence)

    def _note(self, record: Record, found: dict[Partition, dict[int, float]]) -> None:
        if record.header(header.GROUP) != self._group:
            return
        # A deferral that no member wrote is another job: whoever may write T-retry could have jobs left out with it.
        if self._seal is not None and record.topic == self._topics.retry and not self._seal.proves(record):
            return
        for told in filter(None, map(record.header, (header.ORIGIN, header.BUNDLE))):
            topic, *numbers = told.decode("utf-8", "replace").rsplit("-", 2)
            if len(numbers) == 2 and all(number.isdecimal() and len(number) < 20 for number in numbers):
                times = found.setdefault(Partition(topic, int(numbers[0])), {})
                times[int(numbers[1])] = max(record.timestamp, times.get(int(numbers[1]), 0.0))

    def _drop_of_another_topic(self, partition: Partition, found: dict[Partition, dict[int, float]]) -> None:
        """Drop what was done in a topic of the same name that is gone: all records of this one are younger."""
        times = found.get(partition)
        if times:
            with Reader(self._bootstrap_servers, partition.topic) as reader:
                first = reader.first(partition.partition)
            if first is not None and first.timestamp > max(times.values()):
                del found[partition]


def _sorted(times: dict[int, float]) -> Shown:
    offsets = sorted(times)
    return Shown(array("q", offsets), array("d", [times[offset] for offset in offsets]))
