"""Putting a file under its final name, or moving it: time stamp, rename, and what to do where that does not replace."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from etl.errors import IOFailure
from etl.transfer.base import ASIDE, Published
from etl.transfer.paths import basename, parent
from etl.transfer.sftp.link import POSIX_RENAME
from etl.transfer.sftp.packets import REMOVE, RENAME, SETSTAT, times
from etl.transfer.sftp.refusals import attributes_of, is_missing, make_folders, no_file, plain_error, why_not_written

if TYPE_CHECKING:
    from etl.transfer.sftp.link import Link
    from etl.transfer.sftp.packets import Answer
    from etl.transfer.sftp.wire import Pending

_TRIES = 3  # of a rename, each after something that stood in its way was put right


class Renaming:
    """Renames files, replacing what has the new name, or keeping it."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def publishing(self, partial: str, final: str, mtime: float | None, *, replace: bool) -> Callable[[], Published]:
        """Queue time stamp and rename of a partial file; the answer completes them.

        The time goes by name: whether it is to be kept is said only now, when the file is closed.
        """
        attributes = None if mtime is None else times(mtime)
        stamped = None if attributes is None else self._link.ask(SETSTAT, partial, attributes)
        finish = self._replacing(partial, final, partial + ASIDE) if replace else self._keeping(partial, final)

        def complete() -> Published:
            swapped = finish()
            if swapped is None:
                name = self._link.name
                hint = f"if the server takes files away as they are closed, set {name}_PUBLISH=direct"
                raise IOFailure(f"{name}:{partial} is gone; {hint}", server=name)
            was_stamped = stamped is not None and stamped.result().is_success
            if stamped is not None and attributes is not None and is_missing(stamped.result()):
                # A server that works on several requests at once may have renamed it before.
                was_stamped = self._link.ask(SETSTAT, final, attributes).result().is_success
            return Published(swapped=swapped, stamped=was_stamped)

        return complete

    def moving(self, path: str, target: str) -> Callable[[], None]:
        """Queue the move of a file that may be gone already; the answer completes it."""
        mark = hashlib.blake2b(target.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
        hidden = self._link.server.partial_pattern.replace("{id}", mark) + ASIDE
        finish = self._replacing(path, target, aside=f"{parent(target).rstrip('/')}/{hidden}")

        def complete() -> None:
            finish()

        return complete

    # --- replacing --------------------------------------------------------------------------------------------

    def _replacing(self, source: str, target: str, aside: str) -> Callable[[], bool | None]:
        """Queue a rename. The answer: was the old file swapped out; None: the source is gone."""
        if source == target:  # Windows servers delete a file that is renamed to itself
            return lambda: False
        asked = self._rename(source, target)

        def complete() -> bool | None:
            answer = asked.result()
            return False if answer.is_success else self._second_try(source, target, aside, answer)

        return complete

    def _rename(self, source: str, target: str) -> Pending:
        link = self._link
        if link.offers(POSIX_RENAME):
            return link.extended(POSIX_RENAME, link.wire_name(source) + link.wire_name(target))
        return link.ask(RENAME, source, link.wire_name(target))

    def _second_try(self, source: str, target: str, aside: str, refusal: Answer) -> bool | None:
        """Find out why a rename was refused; put right what can be put right."""
        link = self._link
        for _ in range(_TRIES):
            if attributes_of(link, source) is None:
                return None
            there = attributes_of(link, target)
            if there is not None and not there.is_file:
                raise no_file(link, target, there)
            if there is not None and not link.offers(POSIX_RENAME):
                return self._swap(source, target, aside)
            unmade = make_folders(link, target) if there is None else refusal
            if unmade is not None:
                raise why_not_written(link, target, unmade)
            refusal = self._rename(source, target).result()
            if refusal.is_success:
                return False
        raise plain_error(link, target, refusal)

    def _swap(self, source: str, target: str, aside: str) -> bool | None:
        """Move the file in the way aside, rename, delete it; or put it back. `target` was seen to be a file."""
        link = self._link
        left = attributes_of(link, aside)
        if left is not None and left.is_file:  # of an earlier try; the final name has a file
            link.ask(REMOVE, aside).result()
        moved = link.ask(RENAME, target, link.wire_name(aside))
        renamed = link.ask(RENAME, source, link.wire_name(target)).result()
        if renamed.is_success:
            self._delete_aside(source, target, aside)
            return moved.result().is_success
        if moved.result().is_success:
            self._put_back(aside, target)
        if attributes_of(link, source) is None:
            return None
        raise why_not_written(link, target, renamed)

    def _delete_aside(self, source: str, target: str, aside: str) -> None:
        """Delete the old file, or undo the swap: nothing may stay hidden."""
        link = self._link
        answer = link.ask(REMOVE, aside).result()
        if answer.is_success or attributes_of(link, aside) is None:
            return
        error = why_not_written(link, aside, answer)
        if link.ask(RENAME, target, link.wire_name(source)).result().is_success:
            self._put_back(aside, target)
            raise error
        raise IOFailure(
            f"{link.name}:{target}: replaced; what was there before is {basename(aside)} beside it now, and may not be "
            f"deleted: {answer.text}",
            server=link.name,
        )

    def _put_back(self, aside: str, target: str) -> None:
        link = self._link
        back = link.ask(RENAME, aside, link.wire_name(target)).result()
        if not back.is_success:
            raise IOFailure(
                f"{link.name}:{target}: what was there is {basename(aside)} beside it now; putting it back was "
                f"refused: {back.text}",
                server=link.name,
            )

    # --- keeping ----------------------------------------------------------------------------------------------

    def _keeping(self, source: str, target: str) -> Callable[[], bool | None]:
        """Queue a rename that a server refuses where there is a file: v3 says so, and OpenSSH makes it one step."""
        if source == target:
            return lambda: False
        asked = self._link.ask(RENAME, source, self._link.wire_name(target))

        def complete() -> bool | None:
            link, answer = self._link, asked.result()
            for _ in range(_TRIES):
                if answer.is_success:
                    return False
                if attributes_of(link, source) is None:
                    return None
                if attributes_of(link, target) is not None:
                    raise IOFailure(f"{link.name}:{target} appeared while the file was on its way", server=link.name)
                if (unmade := make_folders(link, target)) is not None:
                    raise why_not_written(link, target, unmade)
                answer = link.ask(RENAME, source, link.wire_name(target)).result()
            raise why_not_written(link, target, answer)

        return complete
