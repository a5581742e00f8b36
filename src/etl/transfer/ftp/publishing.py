"""Putting a file under its final name: time stamp, rename, and what to do where a rename refuses to replace."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from etl.errors import IOFailure, NotAFile, PermissionRefused
from etl.transfer.base import ASIDE, Published
from etl.transfer.ftp import asking, naming
from etl.transfer.ftp.folders import make_folders
from etl.transfer.ftp.names import size_in, stamp, time_in
from etl.transfer.ftp.refusals import UNKNOWN_COMMAND, plain_error, vanished
from etl.transfer.paths import basename, parent

if TYPE_CHECKING:
    from etl.transfer.ftp.link import Link
    from etl.transfer.ftp.pending import Pending
    from etl.transfer.ftp.replies import Reply

_TRIES = 3  # of a swap, each after something that stood in its way was put right
_PAUSES = (0.0, 0.2, 0.5, 1.0, 2.0)  # seconds before a refused rename is tried again: somebody may look at the file


class Stamping:
    """Sets a file's time: MFMT where it is offered, else the two-argument MDTM that vsftpd knows."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def stamp(self, path: str, mtime: float | None) -> Callable[[], bool]:
        """Queue the command; the answer says whether the time was set. Best effort: nothing is raised."""
        text = stamp(mtime, self._link.zone) if mtime is not None and not self._link.refuses_times else None
        if text is None:
            return lambda: False
        by_mfmt = self._link.offers("MFMT")
        pending = self._link.command("MFMT" if by_mfmt else "MDTM", text + b" " + self._link.locate(path))
        return lambda: self._was_set(pending.result(), by_mfmt=by_mfmt)

    def _was_set(self, reply: Reply, *, by_mfmt: bool) -> bool:
        if reply.code in UNKNOWN_COMMAND or (not by_mfmt and not reply.is_success):
            self._link.refuses_times = True
        # A server without the two-argument form may find a file of that odd name, and tell its time.
        return reply.is_success and (by_mfmt or time_in(reply.line) is None)


class Renaming:
    """Renames files, replacing what has the new name."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def publishing(
        self, partial: str, final: str, size_bytes: int, stamped: Callable[[], bool], shown: set[str] | None = None
    ) -> Callable[[], Published]:
        """Queue the rename of a partial file to its final name; the answer completes it.

        `shown`: the names in the folder before, where the file was written under its final name.
        """
        is_at_risk = naming.is_at_risk(self._link, final)
        finish = None if is_at_risk else self._replacing(partial, final, aside=partial + ASIDE)

        def complete() -> Published:
            was_stamped = stamped()
            before = naming.shown_beside(self._link, final) if is_at_risk and shown is None else shown
            swapped = (finish or self._replacing(partial, final, aside=partial + ASIDE))()
            if swapped is None and not self._has_arrived(final, size_bytes):
                raise vanished(self._link, partial)
            self._link.quirks.vanished = 0
            if before is not None:
                naming.require_kept(self._link, final, before)
            return Published(swapped=bool(swapped), stamped=was_stamped)

        return complete

    def _has_arrived(self, final: str, size_bytes: int) -> bool:
        """Was a rename carried out though it was refused, or before? Its file is gone, and there under the new name."""
        size = self._link.ask("SIZE", final).result()
        return size.is_success and size_in(size.line) == size_bytes

    def moving(self, path: str, target: str) -> Callable[[], None]:
        """Queue the move of a file that may be gone already; the answer completes it."""
        mark = hashlib.blake2b(target.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
        hidden = self._link.server.partial_pattern.replace("{id}", mark) + ASIDE
        aside = f"{parent(target).rstrip('/')}/{hidden}"
        is_at_risk = naming.is_at_risk(self._link, target)
        finish = None if is_at_risk else self._replacing(path, target, aside)

        def complete() -> None:
            before = naming.shown_beside(self._link, target) if is_at_risk else None
            moved = (finish or self._replacing(path, target, aside))()
            if before is not None and moved is not None:
                naming.require_kept(self._link, target, before, path)

        return complete

    def _replacing(self, source: str, target: str, aside: str) -> Callable[[], bool | None]:
        """Queue a rename. The answer: was the old file swapped out; None: the source is gone."""
        if source == target:
            return lambda: False
        if self._link.quirks.refuses_to_replace:
            ask = asking.ask_kind(self._link, target)
            return lambda: self._rename_or_swap(source, target, aside, ask())
        first, second = self._send(source, target)

        def complete() -> bool | None:
            if second.result().is_success:
                return False
            return self._second_try(source, target, aside, first.result(), second.result())

        return complete

    def _send(self, source: str, target: str) -> tuple[Pending, Pending]:
        """Queue a rename; in one write only where its replies, and so its commands, are known to keep their order."""
        self._link.wire(target)  # how byte 0xFF is written may have to be found out, and nothing may come between both
        from_ = self._ask("RNFR", source, target)
        if not self._link.control.pipelining.keeps_order:
            from_.result()
        return from_, self._ask("RNTO", target, source)

    def _ask(self, verb: str, path: str, other: str) -> Pending:
        """Queue one half of a rename; between two folders by whole names only, as no folder may be entered between."""
        if parent(path) == parent(other):
            return self._link.ask(verb, path)
        return self._link.command(verb, self._link.wire(path))

    def _rename_or_swap(self, source: str, target: str, aside: str, kind: asking.Kind) -> bool | None:
        """Rename on a server that refuses to replace: what is in the way steps aside, if it is a file and nothing else.

        Whatever is no file stays untouched: the plain rename finds out what the server says to it.
        """
        if kind is asking.Kind.FILE:
            return self._swap(source, target, aside)
        first, second = self._send(source, target)
        if not second.result().is_success:
            return self._second_try(source, target, aside, first.result(), second.result())
        self._link.ask("DELE", aside).result()  # what an earlier try, that ended in the middle of a swap, left there
        return False

    def _second_try(self, source: str, target: str, aside: str, first: Reply, refusal: Reply) -> bool | None:
        """Find out why a rename was refused; put right what can be put right, and give what may pass some seconds.

        What is renamed was sent and proven: to send it again is the dearest way to wait.
        """
        link = self._link
        pauses = _PAUSES[:2] if link.quirks.refuses_renames else _PAUSES
        for tried, pause in enumerate(pauses):
            if first.code >= 400:  # the rename was refused for its source
                if not asking.is_there(link, source, by_listing=True):
                    return None
            elif make_folders(link, target):
                pass
            elif tried and (kind := self._kind_in_the_way(target)) is not asking.Kind.MISSING:
                if kind is asking.Kind.FOLDER:
                    raise NotAFile(f"{link.name}:{target} is a folder", server=link.name)
                swapped = self._swap(source, target, aside)
                if swapped:
                    link.quirks.refuses_to_replace = True
                return swapped
            # else: another session may have made the folder since we were refused, or the server had another reason
            # that is gone. That it does not replace files is believed when it has said so twice.
            link.rest(pause)
            from_ = self._ask("RNFR", source, target)
            from_.result()  # before the RNTO is sent: a server may have lost what shared a write
            to = self._ask("RNTO", target, source)
            if to.result().is_success:
                link.quirks.refuses_renames = False
                return False
            first, refusal = from_.result(), to.result()
        link.quirks.refuses_renames = True
        if first.code >= 400:
            self._require_gone(source, first)
            return None
        if not asking.is_there(link, source, by_listing=True):  # some say so at the RNTO only
            return None
        raise asking.why_not_written(link, target, refusal)

    def _kind_in_the_way(self, target: str) -> asking.Kind:
        """Find out what has the target's name; some servers tell it in a list only."""
        kind = asking.ask_kind(self._link, target)()
        if kind is not asking.Kind.MISSING:
            return kind
        try:
            is_shown = asking.is_there(self._link, target, by_listing=True)
        except IOFailure:  # no list is to be had
            return kind
        return asking.Kind.FILE if is_shown else kind

    def _require_gone(self, source: str, refusal: Reply) -> None:
        """Raise for a source that is there, and may not be renamed."""
        if not asking.is_there(self._link, source, by_listing=True):
            return
        if refusal.is_transient:
            raise plain_error(self._link.name, source, refusal)
        raise PermissionRefused(
            f"{self._link.name}:{source}: renaming is not permitted ({refusal.text}); "
            f"{self._link.name}_PUBLISH=direct does without",
            server=self._link.name,
        )

    def _swap(self, source: str, target: str, aside: str) -> bool | None:
        """Move the file in the way aside, rename, delete it; or put it back. `target` was seen to be a file."""
        for tried in range(_TRIES):
            aside_to = self._send(target, aside)[1]
            first, second = self._send(source, target)
            moved_aside = aside_to.result().is_success
            if second.result().is_success:
                # Always: of a source's move the hidden name is its target's, and an earlier try may have left it there.
                self._delete_aside(source, target, aside, self._link.ask("DELE", aside).result(), swapped=moved_aside)
                return moved_aside
            refusal = second.result()
            if moved_aside:
                self._put_back(aside, target)
            if first.result().code >= 400:
                self._require_gone(source, first.result())
                return None
            if moved_aside:
                if not asking.is_there(self._link, source, by_listing=True):  # some say so at the RNTO only
                    return None
                raise plain_error(self._link.name, target, refusal)
            if not make_folders(self._link, target) and not self._clear(aside, target) and tried:
                raise asking.why_not_written(self._link, target, refusal)
        raise plain_error(self._link.name, target, refusal)

    def _delete_aside(self, source: str, target: str, aside: str, reply: Reply, *, swapped: bool) -> None:
        """Undo a swap whose old file cannot be deleted: nothing may stay hidden, least of all what was no file."""
        if reply.is_success or not swapped or not asking.is_there(self._link, aside, by_listing=True):
            return
        error = asking.why_not_written(self._link, aside, reply)
        if self._send(target, source)[1].result().is_success:
            self._put_back(aside, target)
            raise error
        name = self._link.name
        raise IOFailure(
            f"{name}:{target}: replaced; what was there before is {basename(aside)} beside it now, and may not be "
            f"deleted: {reply.text}",
            server=name,
        )

    def _clear(self, aside: str, target: str) -> bool:
        """Delete what an earlier try left under the hidden name, as long as the final name has a file."""
        there, left = asking.ask_kind(self._link, target), asking.ask_kind(self._link, aside)
        return (
            there() is asking.Kind.FILE
            and left() is asking.Kind.FILE
            and self._link.ask("DELE", aside).result().is_success
        )

    def _put_back(self, aside: str, target: str) -> None:
        _, back = self._send(aside, target)
        if not back.result().is_success:
            name = self._link.name
            raise IOFailure(
                f"{name}:{target}: what was there is {basename(aside)} beside it now; putting it back "
                f"was refused: {back.result().text}",
                server=name,
            )
