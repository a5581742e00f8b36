"""A file on its way to an SFTP server, under its partial name: WRITEs without waiting, then what became of them."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

from etl.errors import EtlError
from etl.transfer.sftp.link import AT_ONCE_BYTES, WINDOW_BYTES
from etl.transfer.sftp.packets import CREATE, FOR_WRITING, FSTAT, LSTAT, REMOVE, TRUNCATE
from etl.transfer.sftp.refusals import is_missing, make_folders, why_not_written
from etl.transfer.watch import Watch

if TYPE_CHECKING:
    from etl.transfer.base import Parcel
    from etl.transfer.sftp.link import Link
    from etl.transfer.sftp.packets import Answer
    from etl.transfer.sftp.wire import Pending

_FLAGS = FOR_WRITING | CREATE | TRUNCATE
_TRIES = 3  # of an OPEN, with folders made in between: somebody may delete them at the same time


class Upload:
    """One file. `whole`: the partial file's whole path. `offset`: where in it the parcel begins.

    Where there is an offset, even 0, what is stored stays when something goes wrong.
    """

    def __init__(self, link: Link, whole: str, parcel: Parcel, buffer: memoryview, offset: int | None = None) -> None:
        self._link = link
        self.whole = whole
        self._parcel = parcel
        self._buffer = buffer
        self._offset, self._keeps = offset or 0, offset is not None
        self.is_refused = False  # the server opens no file for writing that it does not make empty
        self._sent_bytes = self._offset  # with those before the offset
        self._begun: tuple[bytes, Pending, tuple[Pending, Pending]] | None = None  # its handle as foreseen; OPEN; end
        self._writes: deque[tuple[Pending, int]] = deque()  # not judged yet, with their bytes
        self._under_way_bytes = 0  # of these
        # Answers to WRITEs are small, and each stands for a block: that they come is all that can be asked of them.
        self._watch = Watch(link.settings.stall_timeout, 0.0)

    def run(self) -> tuple[int, int | None]:
        """Send all of the parcel; return how many bytes that was, and the size that the server tells.

        A file that fails is removed, unless the session failed with it.
        """
        if (self._begun or self.begin()) and (ended := self._met()) is not None:
            try:
                return self._sent_bytes, self._judge(*ended)
            except EtlError:
                if self._link.wire.lost is not None:
                    raise
                # It may be that this server did not take them in their order; else the reason shows once more.
                self._link.handles.misjudged()
        ended = self._send_opened()
        return self._sent_bytes, self._judge(*ended)

    def begin(self) -> bool:
        """Send all of a small file in one go with its OPEN; False when that cannot be."""
        held, handle = self._parcel.held, None
        if held is not None and len(held) <= AT_ONCE_BYTES and not self._keeps:
            handle = self._link.handles.foreseen()
        if held is None or handle is None:
            return False
        opened = self._link.handles.open(self._link.wire_name(self.whole), _FLAGS)
        self._send(handle, held)
        self._begun = handle, opened, self._end(handle)
        return True

    def _met(self) -> tuple[Pending, Pending] | None:
        """Return what ends a file that was begun; None when it was refused, or got another handle."""
        assert self._begun is not None  # noqa: S101 - whoever asks has begun it
        handle, opened, ended = self._begun
        return ended if self._link.handles.opened(opened.result(), but_closed=handle) == handle else None

    def _send_opened(self) -> tuple[Pending, Pending]:
        """Open the file, making its folders, and send all."""
        self._writes.clear()
        self._sent_bytes, self._under_way_bytes = self._offset, 0
        handle = self._open()
        try:
            held = self._parcel.held
            if held is not None:
                self._send(handle, held)
            else:
                while count := self._parcel.readinto(self._buffer):
                    self._send(handle, self._buffer[:count])
                    self._link.wire.push()
                    self._link.wire.absorb()
        except BaseException:
            if self._link.wire.lost is None:
                ended = self._end(handle)
                with contextlib.suppress(EtlError):
                    if self._keeps:
                        self._judge(*ended)  # what is on its way arrives
                self._remove_quietly()
            raise
        return self._end(handle)

    def _open(self) -> bytes:
        link = self._link
        name = link.wire_name(self.whole)
        answer = link.handles.open(name, FOR_WRITING if self._offset else _FLAGS).result()
        if self._offset and answer.handle is None:
            self.is_refused = True
            raise why_not_written(link, self.whole, answer)
        for _ in range(_TRIES):
            if not is_missing(answer):
                break
            if (refusal := make_folders(link, self.whole)) is not None:
                raise why_not_written(link, self.whole, refusal)
            answer = link.handles.open(name, _FLAGS).result()
        handle = link.handles.opened(answer)
        if handle is None:
            raise why_not_written(link, self.whole, answer)
        return handle

    def _send(self, handle: bytes, content: memoryview) -> None:
        """Send some bytes; waits only while too many are on their way."""
        wire, block = self._link.wire, self._link.write_block
        for start in range(0, len(content), block):
            piece = content[start : start + block]
            while self._under_way_bytes and self._under_way_bytes + len(piece) > WINDOW_BYTES:
                self._judge_one()
            self._writes.append((wire.ask_to_write(handle, self._sent_bytes, piece), len(piece)))
            self._under_way_bytes += len(piece)
            self._sent_bytes += len(piece)

    def _end(self, handle: bytes) -> tuple[Pending, Pending]:
        """Ask the size and close, in one write."""
        ended = self._link.ask_handle(FSTAT, handle), self._link.handles.close(handle)
        self._link.wire.push()
        return ended

    def _judge_one(self) -> None:
        pending, count = self._writes.popleft()
        answer = pending.result(self._watch)
        self._under_way_bytes -= count
        if not answer.is_success:
            raise self._refused(answer)

    def _judge(self, size: Pending, closed: Pending) -> int | None:
        """Read every answer; return the size that the server tells, None if it does not."""
        try:
            while self._writes:
                self._judge_one()
            if not closed.result().is_success:
                raise self._refused(closed.result())
        except BaseException:
            self._remove_quietly()
            raise
        found = size.result().attributes
        if found is None or found.size_bytes != self._sent_bytes:
            # Some refuse to tell it of open files, some answer before they have written.
            found = self._link.ask(LSTAT, self.whole).result().attributes
        return None if found is None else found.size_bytes

    def _refused(self, answer: Answer) -> EtlError:
        return why_not_written(self._link, self.whole, answer, self._sent_bytes)

    def _remove_quietly(self) -> None:
        """Delete what is there of the file; under a final name it may be another file still, and the next try's."""
        if self._keeps or self._link.server.publish == "direct":
            return
        with contextlib.suppress(EtlError):
            self._link.ask(REMOVE, self.whole).result()
