"""The seam to Kafka: reads records, commits transactions, and limits the time of every call.

The only package that imports the Kafka client. Written against kafka-python 3.0 (pinned): where a public call has no
time limit or does not tell what we need, a private one is used instead, with the reason beside it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etl.broker.admin import Admin, NotAllowed, TopicFacts
    from etl.broker.connection import MAX_MESSAGE_BYTES, is_listening, secure
    from etl.broker.follower import Follower
    from etl.broker.group import GroupConsumer, TakenOver
    from etl.broker.producer import Place, TransactionalProducer
    from etl.broker.reader import AheadReader, Reader
    from etl.broker.writer import Beacon, Writer

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Admin",
    "AheadReader",
    "Beacon",
    "Follower",
    "GroupConsumer",
    "NotAllowed",
    "Place",
    "Reader",
    "TakenOver",
    "TopicFacts",
    "TransactionalProducer",
    "Writer",
    "is_listening",
    "secure",
]

# Where each of these is. Imported when it is asked for first: a command that only prints its help, or says what is
# wrong with a job, does not wait for the client.
_HOMES = {"MAX_MESSAGE_BYTES": "connection", "is_listening": "connection", "secure": "connection"}
_HOMES |= {"Admin": "admin", "NotAllowed": "admin", "TopicFacts": "admin", "Follower": "follower"}
_HOMES |= {"GroupConsumer": "group", "TakenOver": "group", "Place": "producer", "TransactionalProducer": "producer"}
_HOMES |= {"AheadReader": "reader", "Reader": "reader", "Beacon": "writer", "Writer": "writer"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found
