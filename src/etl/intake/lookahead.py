"""Looks ahead in partitions whose next job waits for room: whose jobs stand behind it?

Reads with a client of its own, which belongs to no group and commits nothing; at a limited rate, each record once, and
of each only which servers it is for. While transfers need the processor, and what it finds are jobs for which there is
no room either, it reads rarely. Knows no dispatcher: whether these jobs matter is decided by who asks.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import structlog

from etl.dispatch.concurrency import BUSY
from etl.errors import BrokerUnavailable, EtlError
from etl.models import header
from etl.models.message import servers_of
from etl.models.wire import Partition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from etl.broker import AheadReader
    from etl.config import ConfigLoader
    from etl.models.task import Record

    Pair = tuple[str, str]  # names of source and destination

log = structlog.get_logger(__name__)

PAUSE_SECONDS = 0.1  # between two reads, each of at most MAX_LOOK_RECORDS: what they cost is taken from transfers
BUSY_PAUSE_SECONDS = 2.0  # while transfers need the processor, and the last read found nobody who matters
MAX_LOOK_RECORDS = 200
IDLE_SECONDS = 5.0  # between two checks whether to end
BROKER_PAUSE_SECONDS = 2.0  # after a read that failed


class LookAhead:
    """Reads ahead in the thread `look-ahead`.

    `connect` makes the client when it is needed first. `retry`: the topic whose records belong to a group each.
    `is_done`: does a commit cover this record? `has_room`: is there room for one more job of a pair?
    """

    def __init__(
        self,
        connect: Callable[[int], AheadReader],
        retry: str,
        group_id: str,
        config: ConfigLoader,
        is_done: Callable[[Partition, int], bool],
        has_room: Callable[[Pair], bool],
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._connect = connect
        self._retry, self._group = retry, group_id.encode()
        self._config = config
        self._is_done, self._has_room = is_done, has_room
        self._clock, self._cpu = clock, cpu
        self._measured_at, self._measured_cpu = clock(), cpu()
        self._found_room = False  # for a job that the last read found
        self._lock = threading.Lock()  # guards the three below
        self._standing: dict[Partition, int] = {}  # where to look, and the offset of the job that waits
        self._next: dict[Partition, int] = {}  # the next offset to read
        self._seen: dict[Partition, dict[Pair, int]] = {}  # the last offset at which each pair was seen
        self._work = threading.Event()  # there are partitions to look into, or the end has come
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="look-ahead", daemon=True)

    def __repr__(self) -> str:
        standing, seen = dict(self._standing), sum(map(len, list(self._seen.values())))  # no lock: its holder may print
        return f"LookAhead({len(standing)} partitions, {seen} pairs seen)"

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread; leave it behind, harmlessly, if it still waits for the broker after `timeout` seconds."""
        self._stopping.set()
        self._work.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def watch(self, standing: Mapping[Partition, int]) -> None:
        """Look into these partitions from now on, behind these offsets."""
        with self._lock:
            self._standing = dict(standing)
        if standing:
            self._work.set()
        else:
            self._work.clear()

    def behind(self, partition: Partition, offset: int) -> list[Pair]:
        """Return whose jobs are known to stand behind this offset."""
        with self._lock:
            seen = self._seen.get(partition, {})
            for pair in [pair for pair, last in seen.items() if last <= offset]:
                del seen[pair]
            return list(seen)

    def forget(self, partitions: Iterable[Partition]) -> None:
        """Forget partitions that were taken away. Any thread."""
        with self._lock:
            for partition in partitions:
                self._standing.pop(partition, None)
                self._next.pop(partition, None)
                self._seen.pop(partition, None)

    def look(self, reader: AheadReader) -> None:
        """Read some records of the partitions that stand. Raises BrokerUnavailable."""
        with self._lock:
            starts = {p: max(offset + 1, self._next.get(p, 0)) for p, offset in self._standing.items()}
        found = [(record, self._pair_of(record)) for record in reader.read(starts)]
        self._found_room = any(self._has_room(pair) for pair in {pair for _, pair in found if pair is not None})
        with self._lock:  # critical section: decide which partitions are still looked into
            for record, pair in found:
                partition = Partition(record.topic, record.partition)
                if partition in self._standing or partition in self._next:
                    self._next[partition] = record.offset + 1
                    if pair is not None:
                        self._seen.setdefault(partition, {})[pair] = record.offset

    def pause_seconds(self) -> float:
        """Return how long to wait before the next read. Measures from one call to the next how busy this process is."""
        now, cpu = self._clock(), self._cpu()
        is_busy = cpu - self._measured_cpu > BUSY * (now - self._measured_at)
        self._measured_at, self._measured_cpu = now, cpu
        return BUSY_PAUSE_SECONDS if is_busy and not self._found_room else PAUSE_SECONDS

    def _pair_of(self, record: Record) -> Pair | None:
        """Return whose job a record is; None: nobody's that could run here."""
        is_foreign = record.topic == self._retry and record.header(header.GROUP) != self._group
        if is_foreign or self._is_done(Partition(record.topic, record.partition), record.offset):
            return None
        pair = servers_of(record.value)
        try:
            return pair and (self._name(pair[0]), self._name(pair[1]))
        except EtlError:
            return None

    def _name(self, name: str) -> str:
        return self._config.get_server_config(name).hostname

    def _run(self) -> None:
        reader: AheadReader | None = None
        while not self._stopping.wait(self.pause_seconds()):
            if not self._work.wait(IDLE_SECONDS) or self._stopping.is_set():
                continue
            try:
                reader = reader or self._connect(MAX_LOOK_RECORDS)
                self.look(reader)
            except BrokerUnavailable as error:
                log.debug("could not look ahead", error=str(error))
                if reader is not None:
                    reader.close()
                reader = None
                self._stopping.wait(BROKER_PAUSE_SECONDS)
            except Exception:  # a bug: jobs wait longer than they need to
                log.exception("could not look ahead")
                self._stopping.wait(BROKER_PAUSE_SECONDS)
        if reader is not None:
            reader.close()
