"""The control connection: a queue of commands whose replies come in their order (RFC 959 section 5.4).

A command waits (corked) until somebody asks for a reply; then all that wait leave in one write, or one by one where
the server wants that (`pace`). While a transfer runs nothing is written at all: three of four servers answer such
commands out of order or cut the transfer. Knows replies and limits; knows no file.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from etl.errors import ConnectionLost, EtlError, InvalidPath, ServerBusy, ServerUnavailable, TransferTimeout
from etl.transfer.ftp.replies import GarbledReplyError, Reply, ReplyParser

if TYPE_CHECKING:
    import socket

    from etl.transfer.ftp.pace import Pace
    from etl.transfer.ftp.sockets import Sockets

_CHUNK_BYTES = 64 * 1024
_PROGRESS_TICK = 1.0  # seconds between two looks at bytes that the kernel is still sending


class Pending:
    """The reply of one command: a `Promise[Reply]`. A refusal is a reply too, and is returned."""

    def __init__(self, control: Control, command: str) -> None:
        self.command = command  # the verb only: arguments may be secret
        self.preliminary: Reply | None = None
        self.reply: Reply | None = None
        self.error: EtlError | None = None
        self.follows = False  # it left in one write with a command before it
        self._control = control

    @property
    def is_begun(self) -> bool:
        """Has the server accepted a transfer, as far as replies were read?"""
        return self.preliminary is not None or (self.reply is not None and self.reply.is_success)

    @property
    def is_refused(self) -> bool:
        """Was it refused, before anything began?"""
        return self.reply is not None and not self.is_begun

    def result(self, unsent_bytes: Callable[[], int] | None = None, limit: float | None = None) -> Reply:
        """Return the final reply.

        `unsent_bytes`: as long as this number falls, the time limit starts anew. `limit`: seconds, if not the usual.
        """
        self._control.settle(self, unsent_bytes=unsent_bytes, limit=limit)
        assert self.reply is not None  # noqa: S101 - settle() returns only then
        return self.reply

    def started(self) -> Reply:
        """Return the first reply of a transfer: any 1xx, or the final one when the transfer was refused."""
        self._control.settle(self, preliminary=True)
        reply = self.reply or self.preliminary
        assert reply is not None  # noqa: S101 - settle() returns only then
        return reply


class Control:
    """Writes commands and reads replies on a connected socket. One thread; after any error it is of no use."""

    def __init__(
        self, sock: socket.socket, sockets: Sockets, server: str, pace: Pace, *, login: float, reply: float
    ) -> None:
        self.sock = sock
        self.server = server
        self.pace = pace
        self._sockets = sockets
        self._login_limit, self._reply_limit = login, reply
        self._login_deadline: float | None = time.monotonic() + login  # None: logged in
        self._parser = ReplyParser()
        self._corked: deque[tuple[Pending, bytes]] = deque()
        self._due: deque[Pending] = deque()  # sent or corked, not answered yet
        self._transfer: Pending | None = None
        self._broken: EtlError | None = None

    def expect_welcome(self) -> Pending:
        """Return the reply that a server gives unasked."""
        welcome = Pending(self, "the connection")
        self._due.append(welcome)
        return welcome

    def logged_in(self) -> None:
        """Count every reply's limit by itself from now on; failures are those of a session, not of a server."""
        self._login_deadline = None

    def send(self, verb: str, argument: bytes | None = None, *, transfers: bool = False) -> Pending:
        """Queue a command. `transfers`: until its final reply nothing may be written.

        Raises InvalidPath when the argument holds a line break or NUL, RuntimeError while a transfer runs (a bug of
        the caller), and the session's first error once it is broken.
        """
        if self._broken is not None:
            raise self._broken
        self._refuse_during_transfer(verb)
        line = verb.encode("ascii") + (b"" if argument is None else b" " + argument)
        if b"\r" in line or b"\n" in line or b"\0" in line:
            raise InvalidPath(f"the argument of {verb} holds a line break or NUL", server=self.server)
        pending = Pending(self, verb)
        self._corked.append((pending, line + b"\r\n"))
        self._due.append(pending)
        if transfers:
            self._transfer = pending
        return pending

    def settle(
        self,
        pending: Pending,
        *,
        preliminary: bool = False,
        unsent_bytes: Callable[[], int] | None = None,
        limit: float | None = None,
    ) -> None:
        """Send what is corked and read replies in order, up to that of `pending`."""
        deadline = self._login_deadline or time.monotonic() + (limit or self._reply_limit)
        while pending.reply is None and not (preliminary and pending.preliminary):
            if pending.error is not None:
                raise pending.error
            if self._broken is not None:
                raise self._broken
            self._write_corked()
            self._read_one(deadline, unsent_bytes)

    def push(self) -> None:
        """Send what is corked, or of it the first command where the server wants one at a time; read nothing."""
        if self._broken is not None:
            raise self._broken
        self._write_corked()

    def peek(self) -> None:
        """Read the replies that have come; wait for none."""
        while self._broken is None and self._due and (self._parser.has_reply or _is_readable(self.sock)):
            self._read_one(time.monotonic() + self._reply_limit, None)

    def flush(self) -> None:
        """Send what is corked and read every reply that is due. Raises RuntimeError while a transfer runs."""
        self._refuse_during_transfer("flush")
        while self._due:
            self.settle(self._due[-1])

    def require_quiet(self) -> None:
        """Raise ConnectionLost when the server has sent something that nobody asked for (mostly: its farewell)."""
        self.flush()
        if _is_readable(self.sock) or not self._parser.is_empty:
            # A 421 tells more than "spoke unasked": read it.
            self._read_one(time.monotonic() + self._reply_limit, None)

    def abandon(self, error: EtlError) -> None:
        """Make this connection unusable; what is due will never be read."""
        if self._broken is None:
            self._broken = error
        for pending in self._due:
            pending.error = error
        self._due.clear()
        self._corked.clear()

    def say_goodbye(self) -> None:
        """Send QUIT, if that is possible at once and nothing is under way; its reply is not waited for."""
        if self._broken is None and not self._due:
            self.sock.setblocking(False)
            self.sock.send(b"QUIT\r\n")

    def _refuse_during_transfer(self, what: str) -> None:
        if self._transfer is not None and self._transfer in self._due:
            raise RuntimeError(f"{what} must wait for the end of {self._transfer.command}")

    def _write_corked(self) -> None:
        if not self._corked:
            return
        if self.pace.is_one_by_one:
            if self._corked[0][0] is not self._due[0]:
                return  # the one before it is not answered yet
            batch = [self._corked.popleft()]
        else:
            batch = list(self._corked)
            self._corked.clear()
        for pending, _ in batch[1:]:
            pending.follows = True
        try:
            self.sock.settimeout(self._login_limit if self._login_deadline else self._reply_limit)
            self.sock.sendall(b"".join(line for _, line in batch))
        except OSError as error:
            # The reason may be readable still: a 421 sent before the server closed.
            self._read_farewell()
            raise self._failed(f"sending {batch[-1][0].command} failed: {error}") from error

    def _read_farewell(self) -> None:
        """Read a 421 that came before the connection broke; raises what it says."""
        try:
            self.sock.settimeout(0)
            self._parser.feed(self.sock.recv(_CHUNK_BYTES))
            reply = self._parser.take()
        except (OSError, GarbledReplyError):
            return
        if reply is not None and reply.code == 421:
            raise self._said_421(reply)

    def _read_one(self, deadline: float, unsent_bytes: Callable[[], int] | None) -> None:
        """Read one reply and give it to the command it belongs to."""
        try:
            reply = self._parser.take()
            while reply is None:
                data, deadline = self._receive(deadline, unsent_bytes)
                if not data:
                    raise self._failed(f"the server closed the connection{self._while()}")
                self._parser.feed(data)
                reply = self._parser.take()
        except GarbledReplyError as error:
            raise self._failed(f"the server sent {error}{self._while()}") from error
        if reply.code == 421:
            raise self._said_421(reply)
        if not self._due:
            raise self._failed(f"the server spoke unasked: {reply.text}")
        head = self._due[0]
        if reply.is_preliminary:
            head.preliminary = reply
            self._note_pace(head)
            return
        self._due.popleft()
        head.reply = reply
        self._note_pace(head)

    def _receive(self, deadline: float, unsent_bytes: Callable[[], int] | None) -> tuple[bytes, float]:
        """Return what came, and the deadline, which moves while the kernel gets rid of bytes."""
        unsent = unsent_bytes() if unsent_bytes else 0
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._timed_out()
            try:
                self.sock.settimeout(min(left, _PROGRESS_TICK) if unsent else left)
                return self.sock.recv(_CHUNK_BYTES), deadline
            except TimeoutError as error:
                if error.errno is not None:  # ETIMEDOUT: the peer acknowledges nothing
                    raise self._failed(f"{error}{self._while()}") from error
                before, unsent = unsent, unsent_bytes() if unsent_bytes else 0
                if unsent < before:
                    deadline = time.monotonic() + self._reply_limit
            except OSError as error:
                raise self._failed(f"{error}{self._while()}") from error

    def _while(self) -> str:
        return f" before its reply to {self._due[0].command}" if self._due else ""

    def _failed(self, what: str) -> EtlError:
        self._doubt_pace()
        if self._sockets.is_cut:
            what = "the session was aborted"
        kind = ServerUnavailable if self._login_deadline else ConnectionLost
        error = kind(f"{self.server}: {what}", server=self.server)
        self.abandon(error)
        return error

    def _timed_out(self) -> EtlError:
        self._doubt_pace()
        error: EtlError
        command = self._due[0].command if self._due else "nothing"
        if self._login_deadline:
            error = ServerUnavailable(
                f"{self.server}: no welcome and login within {self._login_limit:g} s "
                f"(ETL_LOGIN_TIMEOUT_SECONDS; waiting for the reply to {command})",
                server=self.server,
            )
        else:
            error = TransferTimeout(
                f"{self.server}: no reply to {command} within {self._reply_limit:g} s (ETL_REPLY_TIMEOUT_SECONDS)",
                server=self.server,
            )
        self.abandon(error)
        return error

    def _note_pace(self, answered: Pending) -> None:
        if answered.follows and answered is self._transfer and answered.is_begun:
            self.pace.worked()

    def _doubt_pace(self) -> None:
        """A server that never answered a second command of one write may have lost it."""
        if self._due and self._due[0].follows and not self._sockets.is_cut:
            self.pace.failed()

    def _said_421(self, reply: Reply) -> EtlError:
        kind = ServerBusy if self._login_deadline else ConnectionLost
        error = kind(f"{self.server}: the server ends the connection: {reply.text}", server=self.server)
        self.abandon(error)
        return error


def _is_readable(sock: socket.socket) -> bool:
    """Has something come, or the end?"""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))
