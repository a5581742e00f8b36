"""What becomes of a message that holds several jobs: a record for each of them. Knows no ledger, no Kafka client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl.outcomes.messages import Carried
from etl.retry import tiers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from etl.models.message import FileTransferJob
    from etl.models.task import Record
    from etl.models.wire import Message
    from etl.outcomes.messages import MessageBuilder


def build(
    builder: MessageBuilder, record: Record, carried: Carried, jobs: Iterable[FileTransferJob]
) -> tuple[Message, ...]:
    """Build a record for each job, to be written in one transaction with the offset of the message.

    They go to T-retry, as other groups that read the message split it for themselves; each runs as soon as there is
    room for it. From then on its place there is its origin: its partial files are not those of its neighbours.
    """
    whole = Carried(carried.origin, replays=carried.replays, bundle=carried.origin)
    messages: tuple[Message, ...] = ()
    for job in jobs:
        part = record._replace(key=job.ordering_key, value=job.to_json().encode())
        task = whole.task(part, job)
        task.recallable = True
        messages += builder.deferral(task, builder.clock() + tiers.TIERS[0])
    return messages
