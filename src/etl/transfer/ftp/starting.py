"""How a transfer starts: a data connection, opened ahead or not, and the command; again where that confused the server.

Knows what may share a write; knows no file.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etl.errors import ConnectionLost, EtlError, SessionFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.transfer.ftp.control import Control
    from etl.transfer.ftp.data import DataConnection
    from etl.transfer.ftp.opening import DataConnections, Opening
    from etl.transfer.ftp.pending import Pending
    from etl.transfer.ftp.replies import Reply

_PREPARED_SECONDS = 20.0  # how long a data connection opened ahead is good: servers have limits of their own
_BROKEN_OFF = 426
_REFUSED = 400
_BINARY = {"RETR", "STOR", "APPE"}
_SAYS_TEXT = re.compile(rb"\bascii mode\b", re.IGNORECASE)
_MAY_BE_CONFUSED = {425, 500, 501, 502, 503, 504}  # to a transfer command, from one that lost the command before


@dataclass(slots=True)
class Running:
    """A transfer on its way: the command was sent, the data connection stands; its 1xx may not have been read."""

    command: Pending
    data: DataConnection


class Starting:
    """Starts the transfers of one session that is logged in."""

    def __init__(self, control: Control, ways: DataConnections, settle_answered: Callable[[], None]) -> None:
        self._settle_answered = settle_answered  # promises that the replies read in passing answer
        self._control = control
        self._ways = ways
        self._prepared: Opening | None = None  # a data connection for the next transfer

    @property
    def is_prepared(self) -> bool:
        """Has the next transfer a data connection already?"""
        return self._prepared is not None

    def prepare(self) -> None:
        """Queue the opening of a data connection; not where commands go one by one: that would save nothing.

        And some servers read no command behind it before somebody has connected: none may be waited for then.
        """
        pipelining = self._control.pipelining
        is_safe = pipelining.keeps_order if self._ways.is_passive else not pipelining.is_one_by_one
        if self._prepared is None and is_safe:
            self._prepared = self._ways.open()

    def connect_prepared(self) -> None:
        """Begin to connect, if the reply to the opening command was asked for; what fails here is tried again."""
        if self._prepared is not None:
            try:
                self._prepared.agree()
            except EtlError:
                self._prepared.cancel()
                self._prepared = None

    def require_fresh(self) -> None:
        """Raise for a data connection opened ahead that waited too long: closing it might be answered, unasked."""
        if self._prepared is not None and time.monotonic() - self._prepared.born > _PREPARED_SECONDS:
            name = self._control.server
            error = ConnectionLost(f"{name}: its data connection, opened ahead, had no use in time", server=name)
            self._control.abandon(error)
            raise error

    def begin(self, verb: str, argument: bytes | None, offset: int = 0) -> Running | Reply:
        """Start a transfer and wait until the server has accepted it; returns the reply when it is refused."""
        while True:
            started = self.start(verb, argument, offset)
            if isinstance(started, Running):
                started.command.started()
                if not started.command.is_refused:
                    self.require_binary(started.command)
                    return started
                started.data.close()
                started = started.command
            if not self.was_confused(started):
                return started.result()

    def start(self, verb: str, argument: bytes | None, offset: int = 0) -> Running | Pending:
        """Start a transfer: command and data connection. Returns the command when it is refused meanwhile.

        `offset`: where in the file it begins. Without the server's word on that, which is waited for, nothing starts.

        Once passive mode is proven in this session, its opening command and the transfer's leave in one write. Not so
        in active mode: pyftpdlib answers PORT when its connection stands, and loses what came before that.
        """
        ways, control, data, opening = self._ways, self._control, None, self._opening()
        try:
            if ways.quirks.forgets_type and verb in _BINARY:
                control.send("TYPE", b"I")
            if not (ways.is_passive and ways.is_proven) or control.pipelining.is_one_by_one:
                opening.agree()
                data = opening.connection() if ways.is_passive else None
            if offset and (refused := self._refuses(offset)) is not None:
                opening.cancel()
                return refused
            command = control.send(verb, argument, transfers=True)
            control.push()
            opening.agree()
            self._settle_answered()
            data = data or opening.connection(command)
            if data is None or not ways.secure(data, command):
                opening.cancel()
                return command
        except BaseException as error:
            opening.cancel()
            if isinstance(error, EtlError):
                control.abandon(error)
            raise
        ways.is_proven = True
        return Running(command, data)

    def _refuses(self, offset: int) -> Pending | None:
        """Tell the server where the next transfer begins; return the command if it was refused."""
        restart = self._control.send("REST", str(offset).encode("ascii"))
        if restart.result().code < _REFUSED:
            return None
        self._ways.quirks.refuses_offsets = True
        return restart

    def require_binary(self, command: Pending) -> None:
        """Raise for a file that the server sends or takes as text, as it has forgotten TYPE I: its bytes change."""
        said = command.preliminary
        if command.command in _BINARY and said is not None and _SAYS_TEXT.search(b" ".join(said.lines)):
            name = self._control.server
            self._ways.quirks.forgets_type = True
            error = SessionFault(f"{name}: the server has forgotten TYPE I: {said.text}", server=name)
            self._control.abandon(error)
            raise error

    def was_confused(self, command: Pending) -> bool:
        """Was a transfer refused only because its command shared a write? It may be tried again, by itself, then."""
        pipelining = self._control.pipelining
        if not command.follows or pipelining.is_one_by_one or not command.is_refused:
            return False
        if command.result().code == _BROKEN_OFF:  # before it began: Twisted says so though it may have stored the file
            pipelining.slow_down()
        elif command.result().code not in _MAY_BE_CONFUSED:
            return False
        pipelining.failed(transfers=True)
        return pipelining.is_one_by_one

    def _opening(self) -> Opening:
        """Return the way to the next data connection: the one opened ahead, while it is good."""
        stale, self._prepared = self._prepared, None
        if stale is None or time.monotonic() - stale.born <= _PREPARED_SECONDS:
            return stale or self._ways.open()
        # Asked for while the old one stands: the server closes that by itself then (FTP.md section 5.1), and has no
        # reason to say a word about it.
        fresh = self._ways.open()
        try:
            fresh.agree()
        except BaseException:
            fresh.cancel()
            raise
        finally:
            stale.cancel()
        return fresh
