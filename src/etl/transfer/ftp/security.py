"""What guards a session's connections: here nothing. FTPS has its own, which encrypts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl.transfer.ftp.opening import DataConnections

if TYPE_CHECKING:
    import socket

    from etl.models.server import TransferSettings
    from etl.transfer.ftp.control import Control
    from etl.transfer.ftp.known import ServerQuirks
    from etl.transfer.ftp.sockets import Sockets


class Security:
    """The steps of a login at which connections may be encrypted."""

    def __init__(self, sockets: Sockets) -> None:
        self.sockets = sockets

    def meet(self, sock: socket.socket) -> socket.socket:
        """Return the control connection's socket, before the server's first word."""
        return sock

    def before_login(self, control: Control) -> None:
        """Ask for what must be there before a password is sent."""

    def after_login(self, control: Control) -> None:
        """Ask for what data connections need."""

    def ways(
        self, control: Control, settings: TransferSettings, quirks: ServerQuirks, *, passive: bool, epsv: bool
    ) -> DataConnections:
        """Return what opens data connections."""
        return DataConnections(control, self.sockets, settings, quirks, passive=passive, epsv=epsv)
