"""Which servers take many commands in one write, and which want them one by one; remembered per address.

Four common servers take hundreds (FTP.md section 5.1); one that reads a line and throws away the rest, or begins a
command before the last one is done, is found by its first misstep and treated gently from then on.

One of the four, vsftpd, waits at the end of a transfer until the client's end has acknowledged its own, and reads no
command meanwhile: those that follow may be on their way by then, which saves a round trip for each file and side.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from etl.transfer.ftp import known

if TYPE_CHECKING:
    from etl.models.server import ServerConfig

NO_PIPELINING_SECONDS = 600.0  # then such a server is tried again: it may only have been away at the wrong moment
ACCIDENTS = 2  # after which it is no accident any more
LONG_SECONDS = 86_400.0
FAR_SECONDS = 0.001  # a round trip from here on is worth more than looking at two sockets for it

log = structlog.get_logger(__name__)


class Pipelining:
    """How one session writes its commands; what it learns holds for all sessions of its server."""

    def __init__(self, server: ServerConfig) -> None:
        self._name = server.hostname
        self.quirks = known.of(server.address)
        self._is_slowed = False  # once a session writes one by one it keeps to it
        self._is_patient = False  # it takes commands before its last word, and a round trip is worth it

    def meet(self, welcome: bytes, round_trip_seconds: float | None) -> None:
        """Take note of a server's first words, and of how far away it is."""
        self._is_patient = b"vsFTPd" in welcome and (round_trip_seconds or 0.0) >= FAR_SECONDS

    @property
    def is_one_by_one(self) -> bool:
        """Does each command leave alone, once the one before it is answered?"""
        quirks = self.quirks
        if not self._is_slowed and (quirks.no_pipelining_until or quirks.doubles):
            self._is_slowed = quirks.no_pipelining_until > time.monotonic() or any(quirks.doubles.values())
        return self._is_slowed

    @property
    def is_order_known(self) -> bool:
        """Is it known whether the server answers in the order of the commands?"""
        return self.quirks.keeps_order or self.is_one_by_one

    @property
    def keeps_order(self) -> bool:
        """Has the server proven that it answers commands of one write in their order? Else a rename is two writes."""
        return self.quirks.keeps_order and not self.is_one_by_one

    def kept_order(self) -> None:
        """Note that replies which cannot be mistaken came in their order, one of them from a slow command."""
        self.quirks.keeps_order = True

    def out_of_step(self) -> None:
        """Note a reply that cannot be its command's."""
        self.quirks.keeps_order = False
        if not self.is_one_by_one:
            self.quirks.answered.clear()  # of two commands that get one code the first may have had the second's
        self.slow_down()

    @property
    def may_overtake(self) -> bool:
        """May commands be sent before the last reply to a transfer whose data has ended?"""
        return self._is_patient and not self.is_one_by_one and self.quirks.no_early_until <= time.monotonic()

    def overtook(self) -> None:
        """Note that such a command was answered."""
        self.quirks.answers_early = True

    def failed_to_overtake(self) -> None:
        """Note that a session ended before such a command was answered."""
        if not self.quirks.answers_early:
            self.quirks.no_early_until = time.monotonic() + NO_PIPELINING_SECONDS

    def hung_up_on_cwd(self) -> None:
        """Note that the session was ended in place of a reply to CWD."""
        if not self.quirks.cwd_tells:
            self.quirks.cwd_tells = False

    def worked(self, *, transfers: bool) -> None:
        """Note that a command (that `transfers`) was answered that did not have a write of its own."""
        self.quirks.takes_many = True
        if transfers:
            self.quirks.is_proven = self.quirks.keeps_order = True

    def failed(self, *, transfers: bool) -> None:
        """Note that commands of one write were not answered as they are one by one, or not at all.

        Any server may fall silent: only one that never managed is taken to be confused by it. Not `transfers`: in that
        session no command that transfers ever shared a write, so it is enough that it managed questions.
        """
        if not (self.quirks.is_proven or (self.quirks.takes_many and not transfers)):
            self.slow_down()

    def slow_down(self) -> None:
        """Write one command at a time from now on, to this server."""
        self._is_slowed = True
        with known.lock:
            now = time.monotonic()
            is_news = self.quirks.no_pipelining_until <= now
            self.quirks.confusions += is_news
            seconds = NO_PIPELINING_SECONDS if self.quirks.confusions <= ACCIDENTS else LONG_SECONDS
            self.quirks.no_pipelining_until = now + seconds
        if is_news:
            log.info("pipelining disabled", server=self._name, seconds=seconds)
