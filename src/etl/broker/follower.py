"""Follows several topics at once, outside any group, for views that are kept up to date. Knows nothing of contents."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from typing import Self

from kafka import TopicPartition as ClientPartition
from kafka import errors as kafka_errors

from etl.broker.connection import REQUEST_TIMEOUT_MS, common_of_consumers, create_client, translate_errors
from etl.broker.fetching import Consumer
from etl.broker.records import as_record
from etl.models.task import Record
from etl.models.wire import Partition


class Follower:
    """Reads committed records of several topics from given offsets on; commits nothing. One thread at a time.

    Topics may be created later: `find` tells which partitions exist. Every method may block for seconds and raises
    BrokerUnavailable.
    """

    def __init__(self, bootstrap_servers: str) -> None:
        with translate_errors(f"broker {bootstrap_servers} cannot be reached"):
            self._client = create_client(
                Consumer,
                **common_of_consumers(bootstrap_servers),
                group_id=None,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                fetch_max_wait_ms=500,
                metadata_max_age_ms=30_000,
            )

    def find(self, topics: Collection[str]) -> set[Partition]:
        """Return the partitions of those of the topics that exist."""
        with translate_errors("topics cannot be listed"):
            known = self._client.topics()
            return {Partition(t, p) for t in topics if t in known for p in self._client.partitions_for_topic(t) or ()}

    def bounds(self, partitions: Collection[Partition]) -> dict[Partition, tuple[int, int]]:
        """Return the first and the end offset of each partition; the end counts records not yet committed, too."""
        with translate_errors("offsets cannot be read"):
            tps = [ClientPartition(*partition) for partition in partitions]
            firsts = self._client.beginning_offsets(tps, timeout_ms=REQUEST_TIMEOUT_MS)
            ends = self._client.end_offsets(tps, timeout_ms=REQUEST_TIMEOUT_MS)
            return {Partition(*tp): (int(firsts[tp]), int(ends[tp])) for tp in tps}

    def follow(self, positions: Mapping[Partition, int]) -> None:
        """Read these partitions from these offsets on, and no others."""
        with translate_errors("topics cannot be read"):
            self._client.assign([ClientPartition(*partition) for partition in positions])
            for partition, offset in positions.items():
                self._client.seek(ClientPartition(*partition), offset)

    def poll(self, timeout: float) -> list[Record]:
        """Return the next records, after `timeout` seconds at the latest."""
        with translate_errors("topics cannot be read"):
            polled = self._client.poll(timeout_ms=int(timeout * 1000))
        return [as_record(raw) for batch in polled.values() for raw in batch]

    def positions(self) -> dict[Partition, int]:
        """Return the next offset of each partition that is followed: behind markers of transactions, too."""
        with translate_errors("topics cannot be read"):
            return {
                Partition(*tp): int(self._client.position(tp, timeout_ms=REQUEST_TIMEOUT_MS) or 0)
                for tp in self._client.assignment()
            }

    def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(kafka_errors.KafkaError):
            self._client.close(autocommit=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
