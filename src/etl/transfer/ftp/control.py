"""The control connection: a queue of commands whose replies come in their order (RFC 959 section 5.4).

A command waits (corked) until somebody asks for a reply; then all that wait leave in one write, or one by one where
the server wants that (`pipelining`). While a transfer runs nothing is written at all: three of four servers answer such
commands out of order or cut the transfer. The fourth reads none before its last word on the transfer: there the next
commands may leave once the data has ended (`overtake`). Knows replies and limits; knows no file.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from typing import TYPE_CHECKING

from etl.errors import (
    ConnectionLost,
    EtlError,
    ServerBusy,
    ServerUnavailable,
    SessionFault,
    TransferTimeout,
)
from etl.transfer.ftp.expected import HASHES, can_answer, is_of_the_session
from etl.transfer.ftp.manners import Manners
from etl.transfer.ftp.pending import Pending, State
from etl.transfer.ftp.replies import GarbledReplyError, Reply, ReplyParser
from etl.transfer.ftp.sockets import is_readable
from etl.transfer.ftp.twins import TWIN_SECONDS, Twins
from etl.transfer.ftp.wire import Wire, line_of
from etl.transfer.watch import PROGRESS_TICK

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.transfer.ftp.pending import Upstream
    from etl.transfer.ftp.pipelining import Pipelining
    from etl.transfer.ftp.sockets import Sockets

_NOT_UNDERSTOOD = 500
_FAREWELL = 421
_GREETINGS = {220, 230}  # which some give twice
_OPEN_SECONDS = 3.0  # of silence that end a reply of many lines without an end
_PRELIMINARY_LIMIT = 100  # replies 1xx to one command; one is usual


class Control:
    """Writes commands and reads replies on a connected socket. One thread; after any error it is of no use."""

    def __init__(
        self, sock: socket.socket, sockets: Sockets, server: str, pipelining: Pipelining, *, login: float, reply: float
    ) -> None:
        self.use(sock)
        self.server = server
        self.pipelining, self._twins = pipelining, Twins(pipelining.quirks)
        self._manners = Manners(pipelining.quirks)
        self._sockets = sockets
        self._login_limit, self._reply_limit = login, reply
        self._login_deadline: float | None = time.monotonic() + login  # None: logged in
        self._parser = ReplyParser()
        self._corked: list[tuple[Pending, bytes]] = []
        self._due: deque[Pending] = deque()  # sent or corked, not answered yet
        self._has_paired = False  # a command that transfers left in one write with others
        self._transfer: Pending | None = None
        self._overtaken: Pending | None = None  # a transfer whose last reply is due, while commands sent behind it are
        self.broken: EtlError | None = None
        self._has_rested = False  # nothing was answered since nothing was due: if it is dead now it was dead before

    def use(self, sock: socket.socket) -> None:
        """Write and read on this socket from now on; nothing may be due."""
        self.sock, self.wire = sock, Wire(sock)

    @property
    def state(self) -> State:
        """Where the session stands."""
        if self.broken is not None:
            return State.BROKEN
        if self._login_deadline is not None:
            return State.LOGGING_IN
        return State.READY if self._transfer is None else State.TRANSFERRING

    def expect_welcome(self) -> Pending:
        """Return the reply that a server gives unasked."""
        welcome = Pending(self, "the connection", begins=True)
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
        if self.broken is not None:
            raise self.broken
        if self._transfer is not None:
            raise RuntimeError(f"{verb} must wait for the end of {self._transfer.command}")
        line = line_of(verb, argument, self.server)
        pending = Pending(self, verb, begins=transfers)
        pending.reply = self._manners.withheld(verb)
        if pending.reply is not None:
            return pending
        self._corked.append((pending, line))
        self._due.append(pending)
        if transfers:
            self._transfer = pending
        return pending

    def overtake(self) -> None:
        """Let commands leave before the last reply of the transfer, whose data has ended (`may_overtake`)."""
        self._overtaken, self._transfer = self._transfer, None

    def settle(
        self,
        pending: Pending,
        *,
        preliminary: bool = False,
        upstream: Upstream | None = None,
        limit: float | None = None,
    ) -> None:
        """Send what is corked and read replies in order, up to that of `pending`."""
        limit, deadline = limit or (self._login_limit if self._login_deadline else self._reply_limit), 0.0
        while pending.reply is None and not (preliminary and pending.preliminary):
            if pending.error is not None:
                raise pending.error
            if self._corked:
                self._write_corked()
            if (reply := self._take()) is not None:
                self._give(reply)
            else:
                deadline = self._feed(deadline or self._deadline(limit), limit, upstream)

    def push(self) -> None:
        """Send what is corked, or of it the first command where the server wants one at a time; read nothing."""
        if self.broken is not None:
            raise self.broken
        if self._corked:
            self._write_corked()

    def peek(self) -> None:
        """Read the replies that have come; wait for none, nor for the rest of one."""
        while self.broken is None:
            if (reply := self._take()) is not None:
                self._give(reply)
            elif (data := self._received()) is None:
                return
            elif data:
                self._parser.feed(data)
            else:
                raise self._ended()

    def flush(self) -> None:
        """Send what is corked and read every reply that is due.

        Raises RuntimeError while a transfer runs, and the session's first error once it is broken.
        """
        if self.broken is not None:
            raise self.broken
        if self._transfer is not None:
            raise RuntimeError(f"flush must wait for the end of {self._transfer.command}")
        while self._due:
            self.settle(self._due[-1])

    def require_silence(self) -> None:
        """Raise when something came though nothing is due: the end of the session, a farewell, or a stray reply."""
        if self._twins.is_due:
            self._await_twin()
        self._has_rested = self._login_deadline is None
        if self._parser.is_empty and self.wire.is_silent():
            return
        while (data := self._received()) is not None or not self._parser.is_empty:
            if data == b"":
                raise self._ended()
            self._parser.feed(data or b"")
            if (reply := self._take()) is None:
                raise self.out_of_step("the server spoke unasked: half a reply")
            if reply.code not in _GREETINGS or not self._login_deadline:
                self._give(reply)  # nobody's: raises

    def _await_twin(self) -> None:
        """Read the second reply of a server that gives two, before anything is written that it could answer."""
        deadline = time.monotonic() + TWIN_SECONDS
        self.peek()
        while self._twins.is_due:
            if not is_readable(self.sock, max(0.0, deadline - time.monotonic())):
                self._twins.unlearn()
                raise self._fault("the server did not answer twice, as it did before")
            self.peek()

    def abandon(self, error: EtlError) -> None:
        """Make this connection unusable; what is due will never be read."""
        if self.broken is None:
            self.broken = error
        for pending in self._due:
            pending.error = error
        self._due.clear()
        self._corked.clear()
        self._transfer = None

    def say_goodbye(self) -> None:
        """Send QUIT, if that is possible at once and nothing is under way; its reply is not waited for."""
        if self.broken is None and not self._due:
            self.sock.send(b"QUIT\r\n", socket.MSG_DONTWAIT)

    def _deadline(self, limit: float) -> float:
        usual = time.monotonic() + limit
        return min(self._login_deadline, usual) if self._login_deadline else usual

    @property
    def _is_all_corked(self) -> bool:  # nothing was sent of what is due
        return bool(self._corked) and self._corked[0][0] is self._due[0]

    def _write_corked(self) -> None:
        batch, is_first = self._corked, self._is_all_corked
        if is_first:
            self.require_silence()
        if self.pipelining.is_one_by_one:
            if not is_first:
                return  # the one before it is not answered yet
            batch, self._corked = batch[:1], batch[1:]
        else:
            self._corked = []
        data = batch[0][1]
        if len(batch) > 1:
            data = b"".join([line for _, line in batch])
            for place, (pending, _) in enumerate(batch, 1):
                pending.place = place
                self._has_paired = self._has_paired or pending.begins
        limit = max(0.001, self._login_deadline - time.monotonic()) if self._login_deadline else self._reply_limit
        try:
            self.wire.send(data, limit)
        except (BlockingIOError, TimeoutError) as error:  # TimeoutError: TCP_USER_TIMEOUT, which may be as long
            raise self._timed_out(limit) from error
        except OSError as error:
            self._read_farewell()
            raise self._failed(f"sending {batch[-1][0].command} failed: {error}") from error

    def _read_farewell(self) -> None:
        """Read a 421 that came before the connection broke; raises what it says."""
        try:
            self._parser.feed(self.wire.receive_at_once() or b"")
            reply = self._parser.take()
        except (OSError, GarbledReplyError):
            return
        if reply is not None and reply.code == _FAREWELL:
            raise self._said_421(reply)

    def _received(self) -> bytes | None:
        try:
            return self.wire.receive_at_once()
        except OSError as error:
            raise self._failed(f"{error}{self._while()}") from error

    def _take(self) -> Reply | None:
        try:
            return self._parser.take()
        except GarbledReplyError as error:
            raise self._failed(f"the server sent {error}{self._while()}") from error

    def _give(self, reply: Reply) -> None:
        """Give a reply to the command it belongs to."""
        code = reply.code
        if code == _FAREWELL:
            raise self._said_421(reply)
        if self._twins.is_due and self._twins.take(code):
            return
        if not self._due or (self._corked and self._is_all_corked):
            self._twins.learn(code)
            raise self.out_of_step(f"the server spoke unasked: {reply.text}")
        head = self._due[0]
        if not can_answer(head.command, code) and not self._manners.takes(head.command, code, self._silence()):
            if self._login_deadline and code in _GREETINGS:
                return
            self._twins.explain(reply)
            raise self.out_of_step(f"the server answered {head.command} with {reply.text}")
        if code >= 400 and not self._login_deadline and is_of_the_session(head.command, code):
            raise self._fault(f"the session is over: {head.command} was answered with {reply.text}")
        self._has_rested = False
        if code >= 200:
            head.reply = reply
            self._manners.answered(head.command)
            self._twins.note(head.command, reply)
            self._due.popleft()
            if head is self._transfer:
                self._transfer = None
            elif self._overtaken is not None and head is not self._overtaken:
                self._overtaken = None  # a command behind it was answered
                self.pipelining.overtook()
        elif head.begins and head.preliminaries < _PRELIMINARY_LIMIT:
            head.preliminary = reply
            head.preliminaries += 1
        else:
            raise self.out_of_step(f"the server answered {head.command} with {reply.text}")
        if head.place > 1 and (head.is_begun if head.begins else code != _NOT_UNDERSTOOD):
            self.pipelining.worked(transfers=head.begins)

    def _silence(self) -> Callable[[], bool] | None:
        """Return what tells whether nothing follows a reply; None: another one is due, or may be."""
        is_alone = len(self._due) - len(self._corked) == 1 and self.pipelining.is_one_by_one
        if not is_alone or self.pipelining.quirks.doubles:
            return None
        return lambda: self._parser.is_empty and not is_readable(self.sock, TWIN_SECONDS)

    def _feed(self, deadline: float, limit: float, upstream: Upstream | None) -> float:
        """Receive once; return the deadline, which moves while bytes leave `upstream`."""
        called = began = time.monotonic()
        while True:
            wait = min(deadline - began, PROGRESS_TICK)
            if wait <= 0:
                raise self._timed_out(limit)
            try:
                data = self.wire.receive(wait)
            except BlockingIOError:
                if self._has_drained(upstream, time.monotonic() - began):
                    deadline = time.monotonic() + limit
                is_open = self._parser.is_open and self._due[0].command not in HASHES
                if is_open and time.monotonic() - called >= _OPEN_SECONDS:
                    self._give(self._parser.end_open())
                    return deadline
                began = time.monotonic()
                continue
            except OSError as error:
                raise self._failed(f"{error}{self._while()}") from error
            if data:
                self._parser.feed(data)
                return deadline
            raise self._ended()

    def _has_drained(self, upstream: Upstream | None, seconds: float) -> bool:
        try:
            return upstream is not None and upstream.drained(seconds)
        except EtlError as error:
            self.abandon(error)
            raise

    def _while(self) -> str:
        return f" before its reply to {self._due[0].command}" if self._due else ""

    def _ended(self) -> EtlError:
        if self._due and self._due[0].command == "CWD" and not self._is_all_corked:
            self.pipelining.hung_up_on_cwd()
        return self._failed(f"the server closed the connection{self._while()}")

    def _failed(self, what: str) -> EtlError:
        self._doubt()
        if self._sockets.is_cut:
            what = "the session was aborted"
        lost = SessionFault if self._has_rested or not self._due else ConnectionLost
        kind = ServerUnavailable if self._login_deadline else lost
        return self._ends(kind, what)

    def out_of_step(self, what: str) -> EtlError:
        """Return the error for a reply that cannot be its command's: none that follows can be trusted.

        Its server gets one command at a time at once: replies that change places can do harm.
        """
        self.pipelining.out_of_step()
        return self._fault(what)

    def _fault(self, what: str) -> EtlError:
        if self._sockets.is_cut:
            return self._failed(what)
        self._doubt()
        return self._ends(SessionFault, what)

    def _timed_out(self, limit: float) -> EtlError:
        self._doubt(is_silent=True)
        command = self._due[0].command if self._due else "nothing"
        kind: type[EtlError] = TransferTimeout
        what = f"no reply to {command} within {limit:g} s (ETL_REPLY_TIMEOUT_SECONDS)"
        if self._login_deadline:
            kind, limit = ServerUnavailable, self._login_limit
            what = f"no welcome and login within {limit:g} s (ETL_LOGIN_TIMEOUT_SECONDS; no reply to {command})"
        return self._ends(kind, what)

    def _doubt(self, *, is_silent: bool = False) -> None:
        """Suspect the unanswered command; if it was pipelined or sent early, that this confused the server."""
        if self._sockets.is_cut or not self._due:
            return
        if not self._is_all_corked:
            self._manners.blame(self._due[0], is_silent=is_silent)
        if self._overtaken is not None:
            self.pipelining.failed_to_overtake()
        if self._due[0].place:
            self.pipelining.failed(transfers=self._has_paired)

    def _said_421(self, reply: Reply) -> EtlError:
        is_idle = self._transfer is None or not self._transfer.is_begun  # it is no word on a file, then
        kind = ServerBusy if self._login_deadline else SessionFault if is_idle else ConnectionLost
        return self._ends(kind, f"the server ends the connection: {reply.text}")

    def _ends(self, kind: type[EtlError], what: str) -> EtlError:
        """Make the connection unusable; return the error."""
        error = kind(f"{self.server}: {what}", server=self.server)
        self.abandon(error)
        return error
