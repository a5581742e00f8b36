"""FTPS (RFC 4217), explicit and implicit: FTP whose connections are encrypted. `session.py` is the way in."""

from etl.transfer.ftps.session import FTPSTransfer

__all__ = ["FTPSTransfer"]
