"""The shapes of what the product reads and writes."""

from etl.models.message import DLQMessage, Endpoint, FileTransferJob, TransferOptions, TransferResult

__all__ = ["DLQMessage", "Endpoint", "FileTransferJob", "TransferOptions", "TransferResult"]
