"""The seam to Kafka: reads records, commits transactions, and limits the time of every call.

The only package that imports the Kafka client. Written against kafka-python 3.0 (pinned): where a public call has no
time limit or does not tell what we need, a private one is used instead, with the reason beside it.
"""

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
