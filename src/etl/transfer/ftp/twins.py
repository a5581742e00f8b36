"""Final replies that a server gives twice: found out by the second, which comes unasked, and expected from then on.

Such a pair is known by command and code. Pure; knows no socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etl.transfer.ftp.known import ServerQuirks
    from etl.transfer.ftp.replies import Reply

_FACTS = 213  # three commands get it, and its text tells one from another
TWIN_SECONDS = 2.0  # a second reply that takes longer may come at any time: then the session is of no use


class Twins:
    """The final reply that a session got last, and whether the same is to come once more."""

    def __init__(self, quirks: ServerQuirks) -> None:
        self._quirks = quirks
        self._last = ("", 0)  # command and code
        self._lines: tuple[bytes, ...] = ()
        self._alike: tuple[str, int] | None = None  # whose reply, word for word, is the last command's, too
        self._suspect: tuple[str, int] | None = None  # whose reply, word for word, was the next command's, too
        self.is_due = False

    def note(self, command: str, reply: Reply) -> None:
        """Note a final reply."""
        is_alike = reply.lines == self._lines and command != self._last[0]
        self._alike = self._last if is_alike else None
        if is_alike and reply.code == _FACTS:
            self._suspect = self._last
        self._last, self._lines = (command, reply.code), reply.lines
        self.is_due = bool(self._quirks.doubles) and self._quirks.doubles.get(self._last, False)

    def take(self, code: int) -> bool:
        """Note the reply that came where a second one was due; False: it is another."""
        self.is_due = False
        return code == self._last[1]

    def learn(self, code: int) -> None:
        """Note a reply that came unasked: it may be the last one again. A pair that proved wrong is not believed.

        Or it is the last command's own, and what that got was the one before again, which came late: of two that
        may be, the wrong one is found out by the next session.
        """
        if code == self._last[1]:
            self._quirks.doubles.setdefault(self._last, True)
        if self._alike is not None:
            self._quirks.doubles.setdefault(self._alike, True)

    def explain(self, reply: Reply) -> None:
        """Note a reply that cannot be its command's: the last one may have come again, or one before it."""
        pair = self._last if reply.lines == self._lines else self._suspect
        if pair is not None:
            self._quirks.doubles.setdefault(pair, True)

    def unlearn(self) -> None:
        """Note that a second reply, which was due, did not come."""
        self.is_due = False
        self._quirks.doubles[self._last] = False
