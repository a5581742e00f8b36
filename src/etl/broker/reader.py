"""Reads topics outside any group: whole ones for the commands, and ahead of what a consumer has admitted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Self

from kafka import TopicPartition as ClientPartition
from kafka import errors as kafka_errors

from etl.broker.connection import (
    METADATA_PACE_MS,
    REQUEST_TIMEOUT_MS,
    common_of_consumers,
    create_client,
    translate_errors,
)
from etl.broker.fetching import Consumer
from etl.broker.records import as_record
from etl.errors import BrokerUnavailable
from etl.models.task import Record
from etl.models.wire import Partition

AHEAD_SECONDS = 0.2  # how long a read ahead waits for records
AHEAD_FETCH_BYTES, AHEAD_PARTITION_BYTES = 1 << 20, 128 << 10  # that are held of what is read ahead


class Reader:
    """Reads one topic from given offsets; commits nothing. One thread at a time.

    With `committed`, records of aborted transactions are skipped, and reading waits behind an open transaction. Every
    method may block for seconds and raises BrokerUnavailable.
    """

    def __init__(self, bootstrap_servers: str, topic: str, *, committed: bool = True) -> None:
        self._topic = topic
        with translate_errors(f"broker {bootstrap_servers} cannot be reached"):
            self._client = create_client(
                Consumer,
                **common_of_consumers(bootstrap_servers),
                retry_backoff_ms=METADATA_PACE_MS,
                group_id=None,
                auto_offset_reset="earliest",
                isolation_level="read_committed" if committed else "read_uncommitted",
                fetch_max_wait_ms=100,
            )

    def ends(self) -> dict[int, int]:
        """Return the end offset of every partition. Raises BrokerUnavailable, also if the topic does not exist."""
        with translate_errors(f"topic {self._topic} cannot be read"):
            tps = self._partitions()
            ends = self._client.end_offsets(tps, timeout_ms=REQUEST_TIMEOUT_MS)
            return {tp.partition: end for tp, end in ends.items()}

    def _partitions(self) -> list[ClientPartition]:
        found = self._client.partitions_for_topic(self._topic)
        if not found:
            raise BrokerUnavailable(f"topic {self._topic} does not exist; a consumer creates it when it starts")
        return [ClientPartition(self._topic, partition) for partition in sorted(found)]

    def scan(self, until: dict[int, int] | None = None, start: dict[int, int] | None = None) -> Iterator[Record]:
        """Yield the records from `start` (default: the beginning) up to `until` (default: the current ends).

        Both map a partition to an offset; the record at `until` itself is not included.
        """
        until = dict(self.ends() if until is None else until)
        tps = self._assign(start)
        while any(self._at(tp) < until.get(tp.partition, 0) for tp in tps):
            for record in self._poll(0.5):
                if record.offset < until.get(record.partition, 0):
                    yield record

    def one(self, partition: int, offset: int) -> Record | None:
        """Return one record; None if it is not there (any more)."""
        with translate_errors(f"topic {self._topic} cannot be read"):
            tp = ClientPartition(self._topic, partition)
            if tp not in self._partitions():
                return None
            self._client.assign([tp])
            first = self._client.beginning_offsets([tp], timeout_ms=REQUEST_TIMEOUT_MS)[tp]
            end = self._client.end_offsets([tp], timeout_ms=REQUEST_TIMEOUT_MS)[tp]
            if not first <= offset < end:
                return None
            self._client.seek(tp, offset)
        while self._at(tp) <= offset:
            for record in self._poll(0.5):
                return record if record.offset == offset else None
        return None

    def offsets_at(self, moment: float) -> dict[int, int]:
        """Return, by partition, the first offset whose record is not older than `moment` (wall clock), else the end."""
        with translate_errors(f"topic {self._topic} cannot be read"):
            tps = self._partitions()
            found = self._client.offsets_for_times(dict.fromkeys(tps, int(moment * 1000)))
            ends = self._client.end_offsets(tps, timeout_ms=REQUEST_TIMEOUT_MS)
            return {tp.partition: int(found[tp].offset if found.get(tp) else ends[tp]) for tp in tps}

    def first(self, partition: int) -> Record | None:
        """Return the first record of a partition; None if there is none. Raises BrokerUnavailable."""
        end = self.ends().get(partition, 0)
        ends = {partition: end}
        for record in self.scan(ends):
            if record.partition == partition:
                return record
        return None

    def follow(self, start: dict[int, int]) -> Iterator[Record | None]:
        """Yield records from `start` (partition to offset) for ever, and None about every half second without any."""
        self._assign(start)
        while True:
            records = self._poll(0.5)
            yield from records
            if not records:
                yield None

    def _assign(self, start: dict[int, int] | None) -> list[ClientPartition]:
        with translate_errors(f"topic {self._topic} cannot be read"):
            tps = self._partitions()
            self._client.assign(tps)
            first = self._client.beginning_offsets(tps, timeout_ms=REQUEST_TIMEOUT_MS)
            for tp in tps:
                self._client.seek(tp, max(first[tp], (start or {}).get(tp.partition, 0)))
            return tps

    def _at(self, tp: ClientPartition) -> int:
        with translate_errors(f"topic {self._topic} cannot be read"):
            return int(self._client.position(tp, timeout_ms=REQUEST_TIMEOUT_MS) or 0)

    def _poll(self, timeout: float) -> list[Record]:
        with translate_errors(f"topic {self._topic} cannot be read"):
            polled = self._client.poll(timeout_ms=int(timeout * 1000))
        return [as_record(raw) for batch in polled.values() for raw in batch]

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(kafka_errors.KafkaError):
            self._client.close(autocommit=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AheadReader:
    """Reads partitions of any topics from given offsets on, at most `most` records at a time; commits nothing.

    One thread at a time. Every method may block for seconds and raises BrokerUnavailable.
    """

    def __init__(self, bootstrap_servers: str, most: int) -> None:
        self._at: dict[Partition, int] = {}  # the next offset of each assigned partition, at least
        with translate_errors(f"broker {bootstrap_servers} cannot be reached"):
            self._client = create_client(
                Consumer,
                **common_of_consumers(bootstrap_servers),
                group_id=None,
                auto_offset_reset="earliest",  # of a partition that was trimmed beyond our offset
                isolation_level="read_committed",
                max_poll_records=most,
                fetch_max_wait_ms=100,
                fetch_max_bytes=AHEAD_FETCH_BYTES,
                max_partition_fetch_bytes=AHEAD_PARTITION_BYTES,
            )

    def __repr__(self) -> str:
        return f"AheadReader({self._at})"

    def read(self, starts: Mapping[Partition, int]) -> list[Record]:
        """Return some more records of these partitions, none before its start; of one that was read before, the next.

        Partitions that are not named are forgotten. Blocks for AHEAD_SECONDS if there are none.
        """
        with translate_errors("cannot read ahead"):
            if self._at.keys() != starts.keys():
                self._client.assign([ClientPartition(*partition) for partition in starts])
                self._at = {partition: at for partition, at in self._at.items() if partition in starts}
            for partition, start in starts.items():
                if self._at.get(partition, -1) < start:
                    self._at[partition] = start
                    self._client.seek(ClientPartition(*partition), start)
            polled = self._client.poll(timeout_ms=int(AHEAD_SECONDS * 1000))
        for tp, batch in polled.items():
            self._at[Partition(*tp)] = batch[-1].offset + 1
        return [as_record(raw) for batch in polled.values() for raw in batch]

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(kafka_errors.KafkaError):
            self._client.close(autocommit=False)
