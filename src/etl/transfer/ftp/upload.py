"""One file on its way into an FTP server: STOR, its bytes, and what is left when something goes wrong.

The bytes follow the command at once: its 1xx is not waited for, a refusal is noticed while they are sent. Until the 1xx
has come all that was sent is still in the buffer, so that a refused STOR can be sent again once its folders are made.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from etl.errors import ConnectionLost, EtlError, IOFailure, PartHeld, SessionFault, StorageFull, TransferTimeout
from etl.transfer.ftp import asking
from etl.transfer.ftp.folders import make_folders
from etl.transfer.ftp.names import size_in
from etl.transfer.ftp.refusals import REFUSED, SAY_ENOUGH, plain_error
from etl.transfer.ftp.starting import Running
from etl.transfer.paths import parent

if TYPE_CHECKING:
    from etl.transfer.base import Parcel
    from etl.transfer.ftp.data import DataConnection
    from etl.transfer.ftp.link import Link
    from etl.transfer.ftp.pending import Pending
    from etl.transfer.ftp.replies import Reply

_LAST_WORD_SECONDS = 5.0  # a server's reply to a transfer that we broke off; Pure-FTPd gives none
_HELD_SECONDS = 10.0  # for the word that a file is gone on with
_END_SECONDS = 1.0  # for a server's end of a data connection, before its last word alone is waited for
_CLOSING_SECONDS = 0.25  # between a server's last word and its end of the data connection
_LEFT_OPEN = 2  # data connections in a row that it left open
_TRIES = 3  # of a STOR whose folder somebody deletes again and again
_MAY_MEAN_FULL = {426, 450, 451}  # final replies to an upload that the server ended
_BLOCK_BYTES = 64 * 1024
_UNMADE_LIMIT = 1000  # folders remembered
_SAY_ENOUGH = {425, 452, 552}  # refusals that no missing folder explains


class Upload:
    """Streams one parcel into a file through a buffer: a new one, or one that is gone on with at `offset`.

    Where there is an offset, even 0, what is stored stays when something goes wrong.
    """

    def __init__(self, link: Link, whole: str, parcel: Parcel, buffer: memoryview, offset: int | None = None) -> None:
        self._link = link
        self._whole = whole
        self._parcel = parcel
        self._buffer = buffer
        self._offset, self._keeps = offset or 0, offset is not None
        self._held_bytes = 0  # of the buffer: what a second STOR would begin with
        self._is_whole = False  # that is the whole file
        self._can_resend = True  # what was read of the parcel is still in the buffer
        self._tries_left = _TRIES
        self._sent_bytes = 0
        self._unjudged: Pending | None = None  # the STOR, while its final reply was not looked at
        self._is_ahead = False  # the data connection was opened before the STOR

    def run(self) -> int:
        """Stream; return the number of bytes, with those before the offset.

        When the STOR fails make the folders on its way and try again. What the server says at the end may be left to
        `judge`.

        No list of known folders is kept: a STOR into a folder that is there costs no question, and a folder that
        somebody deleted is found out by the refusal. When that comes means nothing: some servers say 150 first. On
        failure nothing is left of the file, if that can be.
        """
        if self._parcel.held is not None:
            self._buffer, self._is_whole = self._parcel.held, True
            self._held_bytes = len(self._buffer)
        else:
            self._held_bytes = self._parcel.readinto(self._buffer)
        unmade, folder = self._link.quirks.unmade, parent(self._whole)
        if folder in unmade or (self._link.quirks.refuses_late and self._is_large):
            make_folders(self._link, self._whole)
            unmade.discard(folder)
        try:
            while (failed := self._try()) is not None:
                if self._offset:
                    raise self._does_not_go_on(failed)
                if not self._is_put_right(failed):
                    raise self._reason(failed.result())
            self._link.takes_bare(self._link.tries_bare)
        finally:
            self._link.tries_bare = False
        return self._sent_bytes

    @property
    def _is_large(self) -> bool:
        """Has the file more bytes than the buffer, as far as is known? Then it may be too late to send them again."""
        return not self._is_whole and self._held_bytes != self._parcel.facts.size_bytes

    def _is_put_right(self, failed: Pending) -> bool:
        """Put right what can be; where a session ends at a refusal the next one makes the folder before all else."""
        try:
            return self._may_try_again(failed)
        except ConnectionLost:
            if len(self._link.quirks.unmade) < _UNMADE_LIMIT:
                self._link.quirks.unmade.add(parent(self._whole))
            raise

    def _may_try_again(self, stor: Pending) -> bool:
        """Put right what may have stood in the way of a STOR, and say whether to send the file once more."""
        self._tries_left -= 1
        if self._link.starting.was_confused(stor) or self._was_stale(stor):
            return True
        if stor.result().code in _SAY_ENOUGH or not self._tries_left:
            return False
        if make_folders(self._link, self._whole):
            if not self._can_resend:
                self._link.quirks.refuses_late = True
                raise IOFailure(
                    f"{self._link.name}:{self._whole}: its folder was not there, and is made now",
                    server=self._link.name,
                )
            return True
        # Once more even when nothing had to be made: another job may have made the folder just now.
        is_path_refused = stor.is_refused or (self._can_resend and stor.result().code >= REFUSED)
        if is_path_refused and self._tries_left == _TRIES - 1:
            return True
        if (
            stor.result().code < REFUSED
            or not self._can_resend
            or self._link.quirks.bare_names is not None
            or self._link.tries_bare
        ):
            return False
        self._link.tries_bare = True
        return True

    def _was_stale(self, refused: Pending) -> bool:
        """Was the data connection opened ahead, and given up by the server meanwhile? The next one is new."""
        was_ahead, self._is_ahead = self._is_ahead, False
        return was_ahead and refused.result().code == 425

    def _try(self) -> Pending | None:
        """Send the file; return the STOR when it was refused, or failed."""
        starting = self._link.starting
        self._is_ahead = starting.is_prepared
        running = starting.start("STOR", self._link.locate(self._whole), self._offset)
        if not isinstance(running, Running):
            return running
        if self._offset:
            self._require_begun(running)
        piece, self._sent_bytes = self._buffer[: self._held_bytes], self._offset
        while True:
            sent_bytes = self._sent_bytes + len(piece)
            is_last = self._is_whole or not piece or sent_bytes == self._parcel.facts.size_bytes
            if not self._send(running, piece, is_last=is_last):
                running.data.close()
                return running.command
            if is_last:
                return self._end(running)
            piece = self._next(running)

    def _require_begun(self, running: Running) -> None:
        """Raise PartHeld when the server does not begin: the upload that was cut may have locked the file for long."""
        try:
            running.command.started(limit=_HELD_SECONDS)
        except TransferTimeout as error:
            running.data.reset()
            name = self._link.name
            raise PartHeld(f"{name}:{self._whole}: the upload that was cut still holds it", server=name) from error

    def _send(self, running: Running, piece: memoryview, *, is_last: bool) -> bool:
        """Send a piece, and the end of the file after the last one; False when the STOR has failed."""
        data, stor, control = running.data, running.command, self._link.control
        try:
            while (piece or data.holds) and stor.reply is None:
                count = data.send(piece, is_last=is_last)
                self._sent_bytes += count
                piece = piece[count:]
                if not count and not data.wait_to_send(control.sock):
                    control.peek()
            if piece and not stor.has_failed:
                raise self._ended_early()
            if is_last:
                if data.ends_last and not self._sent_bytes:
                    stor.started()
                if not stor.has_failed:
                    data.finish_writing()
            elif self._held_bytes == len(self._buffer) and not stor.is_begun:
                stor.started()  # no room to keep more for a second try
        except EtlError as error:
            if not self._has_failed(running, error):
                running.data.reset()
                if stor.reply is not None:
                    self._remove_quietly()
                if isinstance(control.broken, SessionFault):  # the connection for the data went with the session
                    raise control.broken from error
                self._link.abandon(error)
                raise
        return not stor.has_failed

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
            if self._keeps:
                self._leave(running)
            else:
                running.data.reset()
                self._remove_rest(running.command)
            raise
        if begun:
            self._can_resend = False
        else:
            self._held_bytes += count
        return room[:count]

    def _leave(self, running: Running) -> None:
        """End the file here, so that the server stores all that was sent."""
        with contextlib.suppress(EtlError):
            running.data.finish_writing()
            running.command.result(running.data, limit=_LAST_WORD_SECONDS)
        running.data.close()

    def _does_not_go_on(self, failed: Pending) -> EtlError:
        """Return the error for a file that is not gone on with; learn whether this server never does that."""
        reply = failed.result()
        if failed.is_refused and reply.code not in SAY_ENOUGH - {451}:  # which ProFTPD says to all such
            self._link.quirks.goes_on = False
        return plain_error(self._link.name, self._whole, reply)

    def _end(self, running: Running) -> Pending | None:
        """Read the final reply, or leave it for `judge`."""
        data, stor = running.data, running.command
        try:
            if self._has_last_word_only(running):
                self._link.control.overtake()
                self._unjudged = stor
                return None
            stor.result(data)
            if not stor.has_failed and not self._was_taken(data) and not self._is_known_to_be_there():
                self._remove_quietly()
                raise self._ended_early()
        finally:
            data.close()
        self._link.starting.require_binary(stor)
        return stor if stor.has_failed else None

    def _was_taken(self, data: DataConnection) -> bool:
        """Did the server take all bytes before it said so? One that leaves its end open is not waited for each time."""
        quirks = self._link.quirks
        is_patient = quirks.left_open < _LEFT_OPEN
        was_taken = data.was_taken(_CLOSING_SECONDS if is_patient else 0.0)
        if was_taken is not None:
            quirks.left_open = 0
        elif is_patient:
            quirks.left_open += 1
        return was_taken is not False

    def _is_known_to_be_there(self) -> bool:
        """Is a file that nobody else has written as long as what was sent? Some reset each connection that they close.

        Under a final name it may be another one.
        """
        if self._link.server.publish == "direct":
            return False
        size = self._link.ask("SIZE", self._whole).result()
        return size.is_success and size_in(size.line) == self._sent_bytes

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
        if not (reply := self._unjudged.result()).is_success:
            raise self._reason(reply)

    def _has_failed(self, running: Running, error: EtlError) -> bool:
        """Did the data connection break because the STOR failed? Then the session goes on: it is in step."""
        if isinstance(error, ConnectionLost):
            with contextlib.suppress(EtlError):
                running.command.result(limit=_LAST_WORD_SECONDS)
        return running.command.has_failed

    def _reason(self, reply: Reply) -> EtlError:
        """Return the error for an upload that the server ended, and delete what it kept."""
        link = self._link
        try:
            error = asking.why_not_written(link, self._whole, reply)
            if reply.code in _MAY_MEAN_FULL and not isinstance(error, StorageFull) and self._takes_no_more():
                error = StorageFull(f"{error}; the file takes not one block more", server=error.server)
        finally:
            self._remove_quietly()
        return error

    def _takes_no_more(self) -> bool:
        """Is a further block of what is there refused as the file was? pyftpdlib says "426 None" to a full disk."""
        size = self._link.ask("SIZE", self._whole).result()
        if not size.is_success:
            return False  # nothing is there, as far as is known: it is not the room that was missing
        running = self._link.starting.start("APPE", self._link.locate(self._whole))
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
        """Delete what is there of the file; under a final name it may be another file still, and the next try's."""
        if self._keeps or self._link.server.publish == "direct":
            return
        with contextlib.suppress(EtlError):
            self._link.ask("DELE", self._whole).result()
