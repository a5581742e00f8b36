"""The protocol `sftp`: SFTP spoken by ourselves, over the pipes of OpenSSH's ssh."""

from etl.transfer.sftp.session import SFTPTransfer

__all__ = ["SFTPTransfer"]
