"""Protocols. Importing this package registers the built-in ones and those of installed packages."""

from etl.transfer.base import BaseTransfer, Session, TransferFactory
from etl.transfer.ftp import FTPTransfer
from etl.transfer.ftps import FTPSTransfer
from etl.transfer.local import LocalTransfer
from etl.transfer.plugins import register_installed
from etl.transfer.s3 import S3Transfer
from etl.transfer.sftp import SFTPTransfer

TransferFactory.register("ftp", FTPTransfer)
TransferFactory.register("ftps", FTPSTransfer)
TransferFactory.register("local", LocalTransfer)
TransferFactory.register("s3", S3Transfer)
TransferFactory.register("sftp", SFTPTransfer)
register_installed()

__all__ = [
    "BaseTransfer",
    "FTPSTransfer",
    "FTPTransfer",
    "LocalTransfer",
    "S3Transfer",
    "SFTPTransfer",
    "Session",
    "TransferFactory",
]
