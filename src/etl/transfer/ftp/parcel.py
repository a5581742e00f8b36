"""A file on its way out of an FTP server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from etl.errors import ConnectionLost, EtlError, SizeMismatch

if TYPE_CHECKING:
    from etl.models.task import Facts
    from etl.transfer.ftp.control import Pending
    from etl.transfer.ftp.data import DataConnection
    from etl.transfer.ftp.replies import Reply


class Reader(Protocol):
    """What a parcel needs of its session."""

    name: str

    def abandon(self, error: EtlError) -> None:
        """Make the session unusable."""
        ...

    def why_not_read(self, path: str, refusal: Reply) -> EtlError:
        """Return the error for a refused RETR."""
        ...


class FTPParcel:
    """A RETR that runs. Its session writes nothing until `close`."""

    def __init__(self, session: Reader, path: str, facts: Facts, retr: Pending, data: DataConnection) -> None:
        self.path = path
        self.facts = facts
        self._session = session
        self._retr = retr
        self._data = data
        self.held: memoryview | None = None
        self._ahead = memoryview(b"")  # what `load` read, and `readinto` did not give out yet
        self._at_end = False  # end of file seen, data connection closed
        self._is_closed = False

    def load(self, limit_bytes: int) -> bool:
        """Take the whole file into memory if it is known to be small enough."""
        size_bytes = self.facts.size_bytes
        if size_bytes is None or size_bytes > limit_bytes:
            return False
        room = memoryview(bytearray(size_bytes + 1))  # one byte more than there should be: so its end is seen
        filled = 0
        while filled < len(room) and (count := self._receive(room[filled:])):
            filled += count
        self._ahead = room[:filled]
        if self._at_end:
            self.held = self._ahead
        return self._at_end

    def readinto(self, buffer: memoryview) -> int:
        """Give what was read ahead first, then what comes."""
        if self._ahead:
            count = min(len(buffer), len(self._ahead))
            buffer[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
            return count
        return 0 if self._at_end or self._is_closed else self._receive(buffer)

    def close(self, *, complete: bool) -> None:
        """Read the final reply, or cut the transfer."""
        if self._is_closed:
            return
        self._is_closed = True
        if not complete:
            self._cut(ConnectionLost(f"{self._session.name}: a transfer was broken off", server=self._session.name))
            return
        if not self._at_end and self._receive(memoryview(bytearray(1))):
            error = SizeMismatch(f"{self._session.name}:{self.path}: more bytes came than were asked for")
            self._cut(error)
            raise error
        reply = self._retr.result()
        if not reply.is_success:
            raise self._session.why_not_read(self.path, reply)

    def _receive(self, buffer: memoryview) -> int:
        try:
            count = self._data.readinto(buffer)
        except EtlError as error:
            self._cut(error)
            raise
        if count == 0:
            self._at_end = True
            # Before the final reply is waited for: vsftpd lingers on its side until ours is closed (FTP.md section 4).
            self._data.close()
        return count

    def _cut(self, error: EtlError) -> None:
        self._is_closed = True
        self._data.reset()
        self._session.abandon(error)
