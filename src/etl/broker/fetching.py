"""Repairs of the library's fetcher, which every client that reads records needs.

Uses private names of the library. Knows nothing about groups and records.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer

from etl.broker.records import is_flawed

# Bytes of records that one poll gives out; the last of them may exceed it.
POLL_BYTES = 4 << 20


class Consumer(KafkaConsumer):  # type: ignore[misc]  # untyped library
    """A consumer that is in no group, with the repairs."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        mend(self._fetcher, {})


class _Portions:
    """Gives the records of a fetch out until `left` bytes are used up, and goes on when there are more."""

    def __init__(self, records: Iterator[Any]) -> None:
        self._records = records
        self.left = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.left <= 0:
            raise StopIteration
        record = next(self._records)
        # The sizes that the library tells are -1 for what is not there. One that was not read whole took long enough.
        self.left -= record.serialized_key_size + record.serialized_value_size + record.serialized_header_size
        if is_flawed(record):
            self.left -= POLL_BYTES // 8
        return record


def mend(fetcher: Any, stable: dict[Any, int]) -> None:
    """Repair three defects of the library's fetcher, each of which stops a partition for ever; bound what it gives.

    It counts records alone, and a fetch of 2 MB may unpack to thousands. `stable` is filled with the last stable offset
    of each partition.
    """
    take, append, send = fetcher.fetched_records, fetcher._append, fetcher._send_fetches_async  # noqa: SLF001 - there is no public hook
    left = POLL_BYTES

    # Records fetched for a partition that was paused meanwhile are kept back. The library returns to them only while
    # its current batch is None, but leaves a used-up batch there: without other traffic they would never come.
    def fetched_records(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left = POLL_BYTES
        if not fetcher._next_partition_records:  # noqa: SLF001 - as above
            fetcher._next_partition_records = None  # noqa: SLF001 - as above
        return take(*arguments, **named)

    # A batch that ended with an error yields nothing more, yet the library asks it again and again: drain it. And an
    # empty fetch carries no leader epoch: keep that of the last record, by which a truncated log is detected.
    def append_records(drained: Any, part: Any, most: int, *arguments: Any) -> Any:
        nonlocal left
        state = fetcher._subscriptions.assignment.get(part.topic_partition) if part else None  # noqa: SLF001 - as above
        if state is not None and state.position is not None and part.leader_epoch < 0:
            part.leader_epoch = state.position.leader_epoch
        if not part:
            return append(drained, part, most, *arguments)
        if not isinstance(part.record_iterator, _Portions):
            part.record_iterator = _Portions(part.record_iterator)
        portions = part.record_iterator
        portions.left = left
        count = append(drained, part, most, *arguments)
        left = portions.left
        if not count:
            part.drain()
        return most if left <= 0 else count  # `most`: that is all for this poll

    # If a request could not even be sent, the library would wait for its answer for ever: forget that it is pending.
    async def send_fetches() -> Any:
        try:
            return await send()
        except BaseException:
            fetcher._nodes_with_pending_fetch_requests.clear()  # noqa: SLF001 - as above
            fetcher._session_handlers.clear()  # noqa: SLF001 - as above
            raise

    parse = fetcher._parse_fetched_data  # noqa: SLF001 - as above

    def parse_fetched(fetched: Any) -> Any:
        stable[fetched.topic_partition] = fetched.partition_data.last_stable_offset
        return parse(fetched)

    fetcher._parse_fetched_data = parse_fetched  # noqa: SLF001 - as above
    fetcher.fetched_records = fetched_records
    fetcher._append = append_records  # noqa: SLF001 - as above
    fetcher._send_fetches_async = send_fetches  # noqa: SLF001 - as above
