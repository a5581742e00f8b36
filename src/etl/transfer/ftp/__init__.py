"""FTP (RFC 959, 2428, 3659), plain, passive and active. `session.py` is the way in; the others are its parts."""

from etl.transfer.ftp.session import FTPTransfer

__all__ = ["FTPTransfer"]
