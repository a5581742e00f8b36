"""Putting a file under its final name: time stamp, rename, and what to do where a rename refuses to replace."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etl.errors import IOFailure, PermissionRefused
from etl.transfer.base import ASIDE, Published
from etl.transfer.ftp import asking, known
from etl.transfer.ftp.names import size_in, stamp, time_in
from etl.transfer.paths import basename, parent

if TYPE_CHECKING:
    from etl.transfer.ftp.control import Pending
    from etl.transfer.ftp.replies import Reply
    from etl.transfer.ftp.session import FTPTransfer

_TRIES = 3  # of a rename, each after something that stood in its way was put right


class Stamping:
    """Sets a file's time: MFMT where it is offered, else the two-argument MDTM that vsftpd knows."""

    def __init__(self, session: FTPTransfer) -> None:
        self._session = session
        self._is_refused = False  # by this server, as far as this session has seen

    def stamp(self, path: str, mtime: float | None) -> Callable[[], bool]:
        """Queue the command; the answer says whether the time was set. Best effort: nothing is raised."""
        text = stamp(mtime) if mtime is not None and not self._is_refused else None
        if text is None:
            return lambda: False
        by_mfmt = self._session.offers("MFMT")
        pending = self._session.command("MFMT" if by_mfmt else "MDTM", text + b" " + self._session.wire(path))
        return lambda: self._was_set(pending.result(), by_mfmt=by_mfmt)

    def _was_set(self, reply: Reply, *, by_mfmt: bool) -> bool:
        if reply.code in asking.UNKNOWN_COMMAND or (not by_mfmt and not reply.is_success):
            self._is_refused = True
        # A server without the two-argument form may find a file of that odd name, and tell its time.
        return reply.is_success and (by_mfmt or time_in(reply.line) is None)


@dataclass(frozen=True)
class _Swap:
    """Four commands of one write: the old file aside, ours in its place."""

    aside_from: Pending
    aside_to: Pending
    from_: Pending
    to: Pending


class Renaming:
    """Renames files, replacing what has the new name."""

    def __init__(self, session: FTPTransfer) -> None:
        self._session = session
        self._quirks = known.of(session.server.address)

    def publishing(
        self, partial: str, final: str, size_bytes: int, stamped: Callable[[], bool]
    ) -> Callable[[], Published]:
        """Queue the rename of a partial file to its final name; the answer completes it."""
        finish = self._replacing(partial, final, aside=partial + ASIDE)
        # Pure-FTPd quietly stores ` a ` as `_a_`: such a name is asked for once more.
        check = self._session.ask("SIZE", final) if _is_trimmable(final) else None

        def complete() -> Published:
            was_stamped = stamped()
            swapped = finish()
            if swapped is None:
                raise IOFailure(f"{self._session.name}:{partial} is gone", server=self._session.name)
            if check is not None:
                self._require_name(final, size_bytes, check.result())
            return Published(swapped=swapped, stamped=was_stamped)

        return complete

    def moving(self, path: str, target: str) -> Callable[[], None]:
        """Queue the move of a file that may be gone already; the answer completes it."""
        mark = hashlib.blake2b(target.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
        hidden = self._session.server.partial_pattern.replace("{id}", mark) + ASIDE
        finish = self._replacing(path, target, aside=f"{parent(target).rstrip('/')}/{hidden}")

        def complete() -> None:
            finish()

        return complete

    def _replacing(self, source: str, target: str, aside: str) -> Callable[[], bool | None]:
        """Queue a rename. The answer: was the old file swapped out; None: the source is gone."""
        if source == target:
            return lambda: False
        if self._quirks.refuses_to_replace:
            swap = self._send_swap(source, target, aside)
            return lambda: self._complete_swap(swap, source, target, aside)
        first, second = self._send(source, target)

        def complete() -> bool | None:
            if second.result().is_success:
                return False
            return self._second_try(source, target, aside, first.result(), second.result())

        return complete

    def _send(self, source: str, target: str) -> tuple[Pending, Pending]:
        return self._session.ask("RNFR", source), self._session.ask("RNTO", target)

    def _send_swap(self, source: str, target: str, aside: str) -> _Swap:
        return _Swap(*self._send(target, aside), *self._send(source, target))

    def _second_try(self, source: str, target: str, aside: str, first: Reply, refusal: Reply) -> bool | None:
        """Find out why a rename was refused; put right what can be put right."""
        for tried in range(_TRIES):
            if first.code >= 400:  # the rename was refused for its source
                self._require_gone(source, first)
                return None
            if self._session.make_folders(target):
                pass
            elif tried and self._session.ask("SIZE", target).result().is_success:
                swapped = self._complete_swap(self._send_swap(source, target, aside), source, target, aside)
                if swapped:
                    self._quirks.refuses_to_replace = True
                return swapped
            elif tried:
                raise asking.why_not_written(self._session, target, refusal)
            # else: another session may have made the folder since we were refused, or the server had another reason
            # that is gone. That it does not replace files is believed when it has said so twice.
            from_ = self._session.ask("RNFR", source)
            from_.result()  # before the RNTO is sent: a server may have lost what shared a write
            to = self._session.ask("RNTO", target)
            if to.result().is_success:
                return False
            first, refusal = from_.result(), to.result()
        raise asking.plain_error(self._session.name, target, refusal)

    def _require_gone(self, source: str, refusal: Reply) -> None:
        """Raise for a source that is there, and may not be renamed."""
        if not asking.is_there(self._session, source, by_listing=True):
            return
        if refusal.is_transient:
            raise asking.plain_error(self._session.name, source, refusal)
        raise PermissionRefused(
            f"{self._session.name}:{source}: renaming is not permitted ({refusal.text})", server=self._session.name
        )

    def _complete_swap(self, swap: _Swap, source: str, target: str, aside: str) -> bool | None:
        """Read what the four commands came to; tidy up, or put the old file back."""
        for tried in range(_TRIES):
            moved_aside = swap.aside_to.result().is_success
            if swap.to.result().is_success:
                # Always: of a source's move the hidden name is its target's, and an earlier try may have left it there.
                self._session.ask("DELE", aside).result()
                return moved_aside
            first, refusal = swap.from_.result(), swap.to.result()
            if moved_aside:
                self._put_back(aside, target)
            if first.code >= 400:
                self._require_gone(source, first)
                return None
            if moved_aside:
                raise asking.plain_error(self._session.name, target, refusal)
            if not self._session.make_folders(target) and not self._clear(aside, target) and tried:
                raise asking.why_not_written(self._session, target, refusal)
            swap = self._send_swap(source, target, aside)
        raise asking.plain_error(self._session.name, target, swap.to.result())

    def _clear(self, aside: str, target: str) -> bool:
        """Delete what an earlier try left under the hidden name, as long as the final name has a file."""
        there, left = self._session.ask("SIZE", target), self._session.ask("SIZE", aside)
        return (
            there.result().is_success
            and left.result().is_success
            and self._session.ask("DELE", aside).result().is_success
        )

    def _put_back(self, aside: str, target: str) -> None:
        _, back = self._send(aside, target)
        if not back.result().is_success:
            name = self._session.name
            raise IOFailure(
                f"{name}:{target}: the file that was there is {basename(aside)} beside it now; putting it back "
                f"was refused: {back.result().text}",
                server=name,
            )

    def _require_name(self, final: str, size_bytes: int, reply: Reply) -> None:
        if not reply.is_success or size_in(reply.line) != size_bytes:
            name = self._session.name
            raise IOFailure(f"{name}:{final}: the server keeps it under another name", server=name)


def _is_trimmable(path: str) -> bool:
    return any(part != part.strip() for part in path.split("/"))
