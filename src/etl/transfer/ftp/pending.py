"""The reply of one command, that may not have come yet. Knows no socket."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from etl.errors import EtlError
    from etl.transfer.ftp.replies import Reply


class State(Enum):
    """Where a session stands."""

    NEW = "new"
    LOGGING_IN = "logging in"
    READY = "ready"
    TRANSFERRING = "transferring"  # nothing may be written
    BROKEN = "broken"


class Upstream(Protocol):
    """The bytes of a transfer that the kernel is still sending."""

    def drained(self, seconds: float) -> bool:
        """Did some leave in the `seconds` that were just waited? Raises when they are too few."""
        ...


class Settler(Protocol):
    """Whoever reads the replies."""

    def settle(
        self,
        pending: Pending,
        *,
        preliminary: bool = False,
        upstream: Upstream | None = None,
        limit: float | None = None,
    ) -> None:
        """Read replies up to that of `pending`, or its 1xx if that is enough; see `Control`."""
        ...


class Pending:
    """The reply of one command: a `Promise[Reply]`. A refusal is a reply too, and is returned."""

    __slots__ = ("_control", "begins", "command", "error", "place", "preliminaries", "preliminary", "reply")

    def __init__(self, control: Settler, command: str, *, begins: bool) -> None:
        self.command = command  # the verb only: arguments may be secret
        self.begins = begins  # a 1xx may come before its reply
        self.preliminary: Reply | None = None
        self.preliminaries = 0
        self.reply: Reply | None = None
        self.error: EtlError | None = None
        self.place = 0  # among the commands of one write, from 1; 0: it left alone
        self._control = control

    @property
    def follows(self) -> bool:
        """Did it leave in one write with others, and not as the first of them?"""
        return self.place > 1

    @property
    def is_begun(self) -> bool:
        """Has the server accepted a transfer, as far as replies were read?"""
        return self.preliminary is not None or (self.reply is not None and self.reply.is_success)

    @property
    def is_refused(self) -> bool:
        """Was it refused, before anything began?"""
        return self.reply is not None and not self.is_begun

    @property
    def has_failed(self) -> bool:
        """Was its last word a refusal, whether or not something began before?"""
        return self.reply is not None and not self.reply.is_success

    def result(self, upstream: Upstream | None = None, limit: float | None = None) -> Reply:
        """Return the final reply.

        `upstream`: as long as its bytes leave, the time limit starts anew. `limit`: seconds, if not the usual.
        """
        if self.reply is None:
            self._control.settle(self, upstream=upstream, limit=limit)
        assert self.reply is not None  # noqa: S101 - settle() returns only then
        return self.reply

    def started(self, limit: float | None = None) -> Reply:
        """Return the first reply of a transfer: any 1xx, or the final one when the transfer was refused."""
        self._control.settle(self, preliminary=True, limit=limit)
        reply = self.reply or self.preliminary
        assert reply is not None  # noqa: S101 - settle() returns only then
        return reply
