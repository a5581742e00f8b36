"""The seam to Kafka, and the only importer of its client: records in, transactions out, time limits on every call.

Written against kafka-python 3.0 (pinned): where its public calls have no time limit or no answer, private ones are used
instead, beside the reason, and nowhere outside this package.
"""

from etl.broker.admin import Admin, NotAllowed, TopicFacts
from etl.broker.connection import MAX_MESSAGE_BYTES, is_listening, secure
from etl.broker.group import GroupConsumer, TakenOver
from etl.broker.producer import TransactionalProducer
from etl.broker.reader import Reader
from etl.broker.writer import Writer

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Admin",
    "GroupConsumer",
    "NotAllowed",
    "Reader",
    "TakenOver",
    "TopicFacts",
    "TransactionalProducer",
    "Writer",
    "is_listening",
    "secure",
]
