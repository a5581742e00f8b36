"""What the parts of an FTP session share: the control connection, how names are written there, what the server offers.

A parcel, an upload or a rename is given the link; it never sees the session that made it. One thread at a time.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from etl.errors import EtlError
from etl.models.server import zone_of
from etl.transfer.ftp import known, telnet
from etl.transfer.ftp.names import Names, check_encoding
from etl.transfer.ftp.sockets import is_readable
from etl.transfer.ftp.starting import Starting
from etl.transfer.paths import basename, parent, refuse_misread
from etl.transfer.promises import Unsettled

if TYPE_CHECKING:
    from etl.models.server import ServerConfig
    from etl.transfer.ftp.control import Control
    from etl.transfer.ftp.opening import DataConnections
    from etl.transfer.ftp.pending import Pending

_WRITTEN_LIMIT = 16  # paths whose bytes are kept
_LAST_BYTES_SECONDS = 3.0  # for what a network still holds when the server has said its last word


class Link:
    """One login at a server. Paths are whole paths: absolute ones of the server."""

    def __init__(
        self, server: ServerConfig, control: Control, names: Names, features: dict[str, str], ways: DataConnections
    ) -> None:
        self.server = server
        self.control = control
        self.names = names
        self.zone = zone_of(server.time_zone)  # of the times that the server tells, and is told
        self.quirks = known.of(server.address)
        self.promises = Unsettled()
        self.starting = Starting(control, ways, partial(self.promises.settle, answered=True))
        self.tries_bare = False  # names without a folder, in this session alone: the server may take no others
        self._folder: str | None = None  # that was entered to name its files
        self._written: dict[str, bytes] = {}  # paths lately asked for: each is sent three or four times
        self.refuses_times = False  # stamps of files, as far as this session has seen
        self.hash_name: str | None = None  # the algorithm that HASH is set to, as far as this session has set it
        self._features = features

    @property
    def name(self) -> str:
        """The server's name, for errors."""
        return self.server.hostname

    def adopt(self, server: ServerConfig) -> None:
        """Go on under another name of the same address."""
        encoding = check_encoding(server.encoding or "utf-8", server.hostname)
        home = Names(encoding).read(self.names.wire(self.names.home))
        self.server, self.control.server = server, server.hostname
        self.zone = zone_of(server.time_zone)
        self.names = Names(encoding, server.base_path, home)
        self._written.clear()

    def ask(self, verb: str, whole_path: str) -> Pending:
        """Queue a command about a path."""
        if verb == "CWD":
            self._folder = None
            return self.control.send(verb, self.wire(whole_path))
        return self.control.send(verb, self.locate(whole_path))

    def command(self, verb: str, argument: bytes) -> Pending:
        """Queue any command."""
        return self.control.send(verb, argument)

    def wire(self, whole_path: str) -> bytes:
        """Return the bytes of a whole path, as they are sent."""
        path = self.names.wire(whole_path)
        refuse_misread(whole_path, path)
        if telnet.IAC not in path:
            return path
        return telnet.written(self.control, self.quirks, path, may_make="write" in self.server.access)

    def locate(self, whole_path: str) -> bytes:
        """Return how a command names a path: whole; or by its last part where a server takes no other.

        Then its folder is entered before, and that is waited for: a command must not meet another folder's file.
        """
        if not (self.quirks.bare_names or self.tries_bare):
            if (written := self._written.get(whole_path)) is None:
                written = self.wire(whole_path)
                if telnet.IAC not in written:  # else how it is written may change
                    if len(self._written) >= _WRITTEN_LIMIT:
                        self._written.clear()
                    self._written[whole_path] = written
            return written
        folder = parent(whole_path) or "/"
        if folder != self._folder:
            if not self.ask("CWD", folder).result().is_success:
                return self.wire(whole_path)
            self._folder = folder
        return self.wire(basename(whole_path))

    def rest(self, seconds: float) -> None:
        """Wait, with nothing due; ends at once when the server says something, or the session is aborted."""
        is_readable(self.control.sock, seconds)

    def takes_bare(self, is_so: bool | None) -> None:
        """End such a try: names without a folder are what the server takes, it takes others, or that is not known."""
        if is_so is not None and self.quirks.bare_names is None:
            self.quirks.bare_names = is_so
        self.tries_bare = False

    def offers(self, feature: str) -> bool:
        """Is a feature in the server's FEAT?"""
        return feature in self._features

    def feature(self, feature: str) -> str:
        """Return what the server's FEAT says behind a feature; empty without it."""
        return self._features.get(feature, "")

    def may_offer(self, feature: str) -> bool:
        """Is a feature in the server's FEAT, or is there none, so that it must be tried to be known?"""
        return feature in self._features or not self._features

    def has_ended(self, transfer: Pending, silent_seconds: float) -> bool:
        """Has a transfer, of which nothing comes, ended? Some servers leave its data connection open.

        That all is well counts a little later: bytes may still be on their way.
        """
        try:
            self.control.peek()
        except EtlError:  # a session that ends behind its last word
            if transfer.reply is None:
                raise
        return transfer.has_failed or (transfer.reply is not None and silent_seconds >= _LAST_BYTES_SECONDS)

    def abandon(self, error: EtlError) -> None:
        """Make the session unusable."""
        self.control.abandon(error)

    def flush(self) -> None:
        """Send what is corked, read every reply that is due, settle every promise."""
        self.promises.settle()
        self.control.flush()
        self.starting.connect_prepared()

    def settle_all(self) -> None:
        """Settle promises before a transfer whose answers may need commands, which a transfer forbids."""
        if self.promises.asks_more:
            self.flush()
