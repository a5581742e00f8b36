"""What waits in partitions that no process holds: because none runs, or while they are being shared out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from etl.broker import Admin, Reader
from etl.models import document

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime


class Unheld(NamedTuple):
    """Records from the committed offsets to the ends, markers of transactions included; and the first one's time."""

    records: int
    oldest_at: datetime | None


NONE = Unheld(0, None)


def read(bootstrap_servers: str, topic: str, group: str, held: Collection[int]) -> Unheld:
    """Look at the partitions of a topic that are not `held`. Blocks for seconds; raises BrokerUnavailable."""
    admin = Admin(bootstrap_servers)
    if topic not in admin.describe([topic]):
        return NONE
    with Reader(bootstrap_servers, topic) as reader:
        ends = {partition: end for partition, end in reader.ends().items() if partition not in held}
        committed = {place.partition: offset for place, offset in admin.committed(group, [topic]).items()}
        start = {partition: committed.get(partition, 0) for partition in ends}
        behind = {partition: end for partition, end in ends.items() if end > start[partition]}
        times: dict[int, float] = {}  # of the first record of each
        count = 0
        for record in reader.scan(until=behind, start=start) if behind else ():
            if record.partition not in times:
                times[record.partition] = record.timestamp
                count += behind[record.partition] - record.offset
                if len(times) == len(behind):
                    break
    return Unheld(count, document.moment(min(times.values())) if times else None)
