"""One file on its way into an FTP server: STOR, its bytes, and what is left when something goes wrong.

The bytes follow the command at once: its 1xx is not waited for, a refusal is noticed while they are sent. Until the 1xx
has come all that was sent is still in the buffer, so that a refused STOR can be sent again once its folders are made.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from etl.errors import ConnectionLost, EtlError, StorageFull
from etl.transfer.ftp import asking
from etl.transfer.ftp.folders import make_folders
from etl.transfer.ftp.refusals import plain_error
from etl.transfer.ftp.starting import Running

if TYPE_CHECKING:
    from etl.transfer.base import Parcel
    from etl.transfer.ftp.link import Link
    from etl.transfer.ftp.pending import Pending
    from etl.transfer.ftp.replies import Reply

_LAST_WORD_SECONDS = 5.0  # a server's reply to a transfer that we broke off; Pure-FTPd gives none
_END_SECONDS = 1.0  # for a server's end of a data connection, before its last word alone is waited for
_TRIES = 3  # of a STOR whose folder somebody deletes again and again
_MAY_MEAN_FULL = {426, 450, 451}  # final replies to an upload that the server ended
_BLOCK_BYTES = 64 * 1024
_SAY_ENOUGH = {421, 425, 426, 452, 530, 532, 552}  # refusals that no missing folder explains


class Upload:
    """Streams one parcel into a new file through a buffer."""

    def __init__(self, link: Link, whole: str, parcel: Parcel, buffer: memoryview) -> None:
        self._link = link
        self._whole = whole
        self._parcel = parcel
        self._buffer = buffer
        self._held_bytes = 0  # of the buffer: what a second STOR would begin with
        self._is_whole = False  # that is the whole file
        self._sent_bytes = 0
        self._unjudged: Pending | None = None  # the STOR, while its final reply was not looked at
        self._is_ahead = False  # the data connection was opened before the STOR

    def run(self) -> int:
        """Stream; return the number of bytes. When the STOR is refused make the folders on its way and try again.

        What the server says at the end may be left to `judge`.

        No list of known folders is kept: a STOR into a folder that is there costs no question, and a folder that
        somebody deleted is found out by the refusal. On failure nothing is left of the file, if that can be.
        """
        if self._parcel.held is not None:
            self._buffer, self._is_whole = self._parcel.held, True
            self._held_bytes = len(self._buffer)
        else:
            self._held_bytes = self._parcel.readinto(self._buffer)
        tries = _TRIES
        while (refused := self._try()) is not None:
            tries -= 1
            if self._link.starting.was_confused(refused) or self._was_stale(refused):
                continue
            # Once more even when nothing had to be made: another job may have made the folder just now.
            if refused.result().code in _SAY_ENOUGH or tries == 0:
                break
            if not make_folders(self._link, self._whole) and tries < _TRIES - 1:
                break
        if refused is not None:
            if self._sent_bytes:
                self._remove_quietly()
            raise asking.why_not_written(self._link, self._whole, refused.result())
        return self._sent_bytes

    def _was_stale(self, refused: Pending) -> bool:
        """Was the data connection opened ahead, and given up by the server meanwhile? The next one is new."""
        was_ahead, self._is_ahead = self._is_ahead, False
        return was_ahead and refused.result().code == 425

    def _try(self) -> Pending | None:
        """Send the file; return the STOR when it was refused before anything was stored."""
        starting = self._link.starting
        self._is_ahead = starting.is_prepared
        running = starting.start("STOR", self._link.wire(self._whole))
        if not isinstance(running, Running):
            return running
        piece, self._sent_bytes = self._buffer[: self._held_bytes], 0
        while True:
            sent_bytes = self._sent_bytes + len(piece)
            is_last = self._is_whole or not piece or sent_bytes == self._parcel.facts.size_bytes
            if not self._send(running, piece, is_last=is_last):
                running.data.close()
                return running.command
            if is_last:
                return self._end(running)
            piece = self._next(running)

    def _send(self, running: Running, piece: memoryview, *, is_last: bool) -> bool:
        """Send a piece, and the end of the file after the last one; False when the STOR is refused."""
        data, stor, control = running.data, running.command, self._link.control
        try:
            while piece and stor.reply is None:
                count = data.send(piece, is_last=is_last)
                self._sent_bytes += count
                piece = piece[count:]
                if not count and not data.wait_to_send(control.sock):
                    control.peek()
            if piece and not stor.is_refused:
                raise self._ended_early()
            if is_last:
                if not stor.is_refused:
                    data.finish_writing()
            elif self._held_bytes == len(self._buffer) and not stor.is_begun:
                stor.started()  # no room to keep more for a second try
        except EtlError as error:
            if not self._was_refused(running, error):
                raise self._broken(running, error) from error
        return not stor.is_refused

    def _ended_early(self) -> EtlError:
        """Return the error for a server that ended the transfer before it had the file."""
        name = self._link.name
        return ConnectionLost(f"{name}:{self._whole}: the server ended the transfer before the file", server=name)

    def _next(self, running: Running) -> memoryview:
        """Read the next piece of the parcel."""
        begun = running.command.is_begun
        room = self._buffer if begun else self._buffer[self._held_bytes :]
        try:
            count = self._parcel.readinto(room)
        except Exception:  # the source broke, not we: this session can tidy up
            running.data.reset()
            self._remove_rest(running.command)
            raise
        if not begun:
            self._held_bytes += count
        return room[:count]

    def _end(self, running: Running) -> Pending | None:
        """Read the final reply, or leave it for `judge`."""
        data, stor = running.data, running.command
        try:
            if self._has_last_word_only(running):
                self._link.control.overtake()
                self._unjudged = stor
                return None
            stor.result(data)
        finally:
            data.close()
        if stor.is_refused:
            return stor
        self._require_success(stor)
        return None

    def _has_last_word_only(self, running: Running) -> bool:
        """Is the final reply all that is to come, and may the next commands be sent before it?"""
        data, stor, control = running.data, running.command, self._link.control
        if not control.pipelining.may_overtake:
            return False
        deadline = time.monotonic() + _END_SECONDS
        while stor.reply is None and (left := deadline - time.monotonic()) > 0:
            has_ended = data.wait_for_end(control.sock, left)
            if has_ended is None:
                break
            control.peek()
            if has_ended:
                return stor.reply is None and stor.is_begun
        return False

    @property
    def is_unjudged(self) -> bool:
        """Is the server's last word still to be read?"""
        return self._unjudged is not None

    def judge(self) -> None:
        """Read it; raises what it says."""
        assert self._unjudged is not None  # noqa: S101 - see `is_unjudged`
        self._require_success(self._unjudged)

    def _require_success(self, stor: Pending) -> None:
        reply = stor.result()
        if not reply.is_success:
            error = self._reason(reply)
            self._remove_quietly()
            raise error

    def _was_refused(self, running: Running, error: EtlError) -> bool:
        """Did the data connection break because the STOR was refused?"""
        if isinstance(error, ConnectionLost) and not running.command.is_begun:
            with contextlib.suppress(EtlError):
                running.command.result(limit=_LAST_WORD_SECONDS)
        return running.command.is_refused

    def _broken(self, running: Running, error: EtlError) -> EtlError:
        """End the session after a broken data connection; return what the server says to it, or else the error."""
        running.data.reset()
        if isinstance(error, ConnectionLost):
            with contextlib.suppress(EtlError):
                reply = running.command.result(limit=_LAST_WORD_SECONDS)
                error = self._reason(reply) if reply.code >= 400 else error
                self._remove_quietly()
        self._link.abandon(error)
        return error

    def _reason(self, reply: Reply) -> EtlError:
        """Return the error for an upload that the server ended, before what it kept is deleted."""
        error = plain_error(self._link.name, self._whole, reply)
        if reply.code in _MAY_MEAN_FULL and not isinstance(error, StorageFull) and self._takes_no_more():
            return StorageFull(f"{error}; the file takes not one block more", server=error.server)
        return error

    def _takes_no_more(self) -> bool:
        """Is a further block refused as the file was? pyftpdlib says "426 None" to a full disk."""
        running = self._link.starting.start("APPE", self._link.wire(self._whole))
        if not isinstance(running, Running):
            return False
        try:
            running.data.send(memoryview(bytes(_BLOCK_BYTES)), is_last=True)
            running.data.finish_writing()
        except EtlError:  # its reply tells
            running.data.reset()
        try:
            return running.command.result(limit=_LAST_WORD_SECONDS).code in _MAY_MEAN_FULL
        except EtlError:
            return False
        finally:
            running.data.close()

    def _remove_rest(self, stor: Pending) -> None:
        """After a STOR that we broke off: read the server's last word on it, and delete what it kept."""
        with contextlib.suppress(EtlError):
            stor.result(limit=_LAST_WORD_SECONDS)
            self._remove_quietly()

    def _remove_quietly(self) -> None:
        with contextlib.suppress(EtlError):
            self._link.ask("DELE", self._whole).result()
