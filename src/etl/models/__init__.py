"""The shapes of the messages that the product reads and writes."""

from etl.models.letter import DLQMessage
from etl.models.message import Endpoint, FileTransferJob, TransferOptions, TransferResult

__all__ = ["DLQMessage", "Endpoint", "FileTransferJob", "TransferOptions", "TransferResult"]
