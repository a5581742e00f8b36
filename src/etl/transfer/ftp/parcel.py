"""A file on its way out of an FTP server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl.errors import ConnectionLost, EtlError, NotAFile, SizeMismatch, SourceChanged
from etl.transfer.ftp import asking
from etl.transfer.ftp.refusals import plain_error

if TYPE_CHECKING:
    from etl.models.task import Facts
    from etl.transfer.ftp.data import DataConnection
    from etl.transfer.ftp.link import Link
    from etl.transfer.ftp.pending import Pending
    from etl.transfer.ftp.replies import Reply

_PIECE_BYTES = 256 * 1024
_LAST_SECONDS = 0.5  # for the end of the data once the final reply has come
_LOOK_SECONDS = 1.0
_REST_BYTES = 4 << 20  # read beyond the end of a file at most, to find out whether it has grown


class FTPParcel:
    """A RETR that runs. Its session writes nothing until `close`."""

    def __init__(
        self, link: Link, path: str, whole: str, facts: Facts, retr: Pending, data: DataConnection, offset: int = 0
    ) -> None:
        self.path = path
        self.facts = facts
        self._link = link
        self._whole = whole
        self._retr = retr
        self._data = data
        self.held: memoryview | None = None
        self._ahead = memoryview(b"")  # what `load` read, and `readinto` did not give out yet
        self._given_bytes = offset  # of the file, from its start
        self._is_longer = False  # more came than the file's size
        self._at_end = False  # end of file seen, data connection closed
        self._is_closed = False

    def load(self, limit_bytes: int) -> bool:
        """Take the whole file into memory if it is known to be small enough."""
        size_bytes = self.facts.size_bytes
        if size_bytes is None or size_bytes > limit_bytes:
            return False
        room = memoryview(bytearray(size_bytes))
        filled = 0
        while filled < size_bytes and (count := self._receive(room[filled:], fill=True)):
            filled += count
        self._ahead, self._is_longer = room[:filled], not self._is_at_end()
        if self._at_end and not self._is_longer:
            self.held = self._ahead
        return self.held is not None

    def readinto(self, buffer: memoryview) -> int:
        """Give what was read ahead first, then what comes; never more than the file's size.

        A server that sends on and on would fill the destination.
        """
        if self.facts.size_bytes is not None:
            buffer = buffer[: self.facts.size_bytes - self._given_bytes]
        if self._ahead:
            count = min(len(buffer), len(self._ahead))
            buffer[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
        else:
            count = self._receive(buffer) if buffer and not (self._at_end or self._is_closed) else 0
        self._given_bytes += count
        return count

    @property
    def is_whole(self) -> bool:
        """Did all bytes come, and the end?"""
        return self._at_end and not (self._is_longer or self._is_closed)

    @property
    def is_proven(self) -> bool:
        """Came as many bytes as SIZE told, the end, and a last word that all is well?"""
        came_bytes = self._given_bytes if self.held is None else len(self.held)
        return self._at_end and came_bytes == self.facts.size_bytes and self._is_told_whole()

    def leave(self) -> None:
        """End the reading of a whole parcel; what the final reply says `judged` tells later."""
        self._is_closed = True

    def judged(self, *, is_same: bool) -> bool:
        """Return whether the file is the same as before, or raise what the final reply says."""
        reply = self._retr.result()
        if reply.is_success:
            return is_same
        raise plain_error(self._link.name, self.path, reply) if is_same else self._changed(reply)

    def close(self, *, complete: bool) -> None:
        """Read the final reply, or cut the transfer."""
        if self._is_closed:
            return
        self._is_closed = True
        if not complete:
            if self._has_come_whole():
                return
            self._cut(ConnectionLost(f"{self._link.name}: a transfer was broken off", server=self._link.name))
            return
        if self._is_longer or not self._is_at_end():
            error = self._why_longer()
            self._cut(error)
            raise error
        reply = self._retr.result()
        if reply.is_success and self.facts.size_bytes is None and not self._given_bytes:
            self._require_file()
        if not reply.is_success:
            raise self._changed(reply) if self._has_changed() else asking.why_not_read(self._link, self._whole, reply)

    def _require_file(self) -> None:
        """Raise NotAFile for what gave no byte, and has no size: some servers send a folder as an empty file."""
        if asking.ask_entry(self._link, self._whole)():
            raise NotAFile(f"{self._link.name}:{self._whole} is a folder", server=self._link.name)

    def _changed(self, reply: Reply) -> EtlError:
        # vsftpd says 426 when it finds a file shorter than it was
        where = f"{self._link.name}:{self.path}"
        return SourceChanged(f"{where} changed while it was read ({reply.text})", server=self._link.name)

    def _why_longer(self) -> EtlError:
        """Return the error for a file of more bytes than were asked for: it has grown, or its size was a wrong one."""
        rest = memoryview(bytearray(_PIECE_BYTES))
        left_bytes = _REST_BYTES
        while left_bytes > 0 and not self._at_end:
            left_bytes -= self._receive(rest)
        where, server = f"{self._link.name}:{self.path}", self._link.name
        if self._at_end and self._retr.result().is_success and self._has_changed():
            return SourceChanged(f"{where} grew while it was read", server=server)
        return SizeMismatch(f"{where}: more bytes came than the {self.facts.size_bytes} that SIZE told", server=server)

    def _has_changed(self) -> bool:
        try:
            return asking.ask_facts(self._link, self._whole)() != self.facts
        except EtlError:  # what is known already says more than a broken session
            return False

    def _has_come_whole(self) -> bool:
        """Did all come that nobody wants any more? Then nothing is under way, and the session goes on."""
        try:
            if not self._at_end:
                is_whole = self._given_bytes == self.facts.size_bytes and self._data.wait(None, _LAST_SECONDS)
                if not is_whole or self._receive(memoryview(bytearray(1))):
                    return False
            return self._retr.result(limit=_LOOK_SECONDS).code > 0
        except EtlError:
            return False

    def _is_at_end(self) -> bool:
        """Wait for the end of the data; False when one byte more comes.

        The final reply says as much: some servers leave the data connection open behind it.
        """
        spare, control = memoryview(bytearray(1)), self._link.control
        while not self._at_end:
            is_told = self._is_told_whole()
            if not self._data.wait(None if is_told else control.sock, _LAST_SECONDS if is_told else _LOOK_SECONDS):
                if is_told:
                    self._at_end = True
                    self._data.close()
                    break
                try:
                    control.peek()
                except EtlError:  # a session that ends behind its last word
                    if not self._is_told_whole():
                        raise
            elif self._receive(spare):
                return False
        return True

    def _is_told_whole(self) -> bool:
        """Has the server said its last word, and that all is well?"""
        return self._retr.reply is not None and self._retr.reply.is_success

    def _receive(self, buffer: memoryview, *, fill: bool = False) -> int:
        try:
            count = self._data.readinto(buffer, lambda silent: self._link.has_ended(self._retr, silent), fill=fill)
        except EtlError as error:
            self._cut(error)
            raise
        if count == 0:
            if self.facts.size_bytes is None:
                self._require_end()
            self._at_end = True
            # Before the final reply is waited for: vsftpd lingers on its side until ours is closed (FTP.md section 4).
            self._data.close()
        return count

    def _require_end(self) -> None:
        """Raise for the end of a file of unknown size that anybody may have made."""
        if self._data.is_cut_off:
            where, server = f"{self._link.name}:{self.path}", self._link.name
            error = ConnectionLost(
                f"{where}: cut off, as far as is known: TLS was not ended, no size told", server=server
            )
            self._cut(error)
            raise error

    def _cut(self, error: EtlError) -> None:
        self._is_closed = True
        self._data.reset()
        self._link.abandon(error)
