"""Listing a folder: the commands, from the most telling one on, and the names in what they bring."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from etl.errors import EtlError, IOFailure
from etl.transfer.ftp.names import facts_in
from etl.transfer.ftp.refusals import NO_CONNECTION, UNKNOWN_COMMAND, plain_error
from etl.transfer.ftp.replies import Reply

if TYPE_CHECKING:
    from etl.transfer.ftp.link import Link

LIMIT_BYTES = 1 << 30  # read of one listing
KEPT_BYTES = 64 << 20  # of its names
LINE_BYTES = 16 * 1024  # of one of its lines
NAME_BYTES = 60  # memory of a name beside its bytes
_BUFFER_BYTES = 64 * 1024
_SAYS_EMPTY = re.compile("no (such )?(file|entr)|not found|empty", re.IGNORECASE)  # of a refused list


def names_in(link: Link, whole_path: str, prefix: str) -> list[str] | None:
    """Return the bare names in a folder that begin with `prefix`, hidden ones included.

    None when it cannot be entered, has none, or the server has no such command. The folder is entered first and listed
    without its name, which can be no option and no pattern then. Raises IOFailure for a list that is refused: that
    is no empty folder.
    """
    if not link.ask("CWD", whole_path).result().is_success:
        return None
    knows_mlsd = link.may_offer("MLST")
    ways: list[tuple[str, bytes | None]] = [("MLSD", None)] if knows_mlsd else []
    # Without -a vsftpd hides names with a leading dot; Twisted refuses a list of nothing named.
    ways += [("NLST", b"-a"), ("NLST", None), ("NLST", b"*")]
    refusal: Reply | None = None
    for verb, argument in ways:
        found = _names_by(link, whole_path, prefix, verb, argument)
        if not isinstance(found, Reply):
            # To some servers -a is a file's name: if there is one, it is all that they list.
            if argument != b"-a" or (found is not None and found != ["-a"]):
                return found
        elif found.code not in UNKNOWN_COMMAND:
            refusal = found
    if refusal is None or _SAYS_EMPTY.search(refusal.text):
        return None
    link.command("TYPE", b"A")  # some servers list in no other
    found = _names_by(link, whole_path, prefix, "NLST", None)
    link.command("TYPE", b"I").result()
    if isinstance(found, Reply):
        raise IOFailure(f"{link.name}:{whole_path}: the list is refused: {refusal.text}", server=link.name)
    return found


def _names_by(link: Link, whole_path: str, prefix: str, verb: str, argument: bytes | None) -> list[str] | Reply | None:
    """List in one way; return the names, None: there are none at all, or the refusal."""
    listing = Listing(with_facts=verb == "MLSD", prefix=link.names.wire(prefix))
    reply = _list(link, verb, argument, listing)
    if reply.code in NO_CONNECTION:  # it says nothing of the folder
        raise plain_error(link.name, whole_path, reply)
    if not reply.is_success:
        return reply
    return [link.names.read(name) for name in listing.names] if listing.count else None


def _list(link: Link, verb: str, argument: bytes | None, listing: Listing) -> Reply:
    """Read a listing; return the final reply, or the refusal."""
    running = link.starting.begin(verb, argument)
    if isinstance(running, Reply):
        return running
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    try:
        while count := running.data.readinto(buffer):
            listing.feed(bytes(buffer[:count]))
        if running.data.is_cut_off:
            raise GarbledListingError("a listing that was cut off: TLS was not ended")
    except (EtlError, GarbledListingError) as error:
        running.data.reset()
        broken = error if isinstance(error, EtlError) else IOFailure(f"{link.name}: {error}", server=link.name)
        link.abandon(broken)
        raise broken from error
    listing.end()
    running.data.close()
    return running.command.result()


class GarbledListingError(ValueError):
    """Raised when a listing is none, or has no end."""


class Listing:
    """Takes a listing (NLST, or MLSD `with_facts`) in pieces, cut anywhere; keeps the names that begin with `prefix`.

    Bare names they are, without the folder itself and its parent. A folder may hold millions: nothing else is kept.
    """

    def __init__(self, *, with_facts: bool, prefix: bytes = b"") -> None:
        self.names: list[bytes] = []
        self.count = 0  # of all names
        self._with_facts = with_facts
        self._prefix = prefix
        self._rest = b""  # a line whose end has not come
        self._taken_bytes, self._kept_bytes = 0, 0

    def feed(self, piece: bytes) -> None:
        """Take a piece. Raises GarbledListingError for one that is too large altogether."""
        self._taken_bytes += len(piece)
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._add(line)
        if len(self._rest) > LINE_BYTES:
            raise GarbledListingError(f"a listing with a line of more than {LINE_BYTES} bytes")
        if self._taken_bytes > LIMIT_BYTES or self._kept_bytes > KEPT_BYTES:
            raise GarbledListingError(f"a listing of more than {self._taken_bytes - len(piece)} bytes")

    def end(self) -> None:
        """Take the last line, if it has no end."""
        self._add(self._rest)
        self._rest = b""

    def _add(self, line: bytes) -> None:
        line = line.rstrip(b"\r")
        if self._with_facts:
            facts, line = facts_in(line)
            if facts.get("type", b"").lower() in {b"cdir", b"pdir"}:
                return
        name = line.rpartition(b"/")[2]
        if name in {b"", b".", b".."}:
            return
        self.count += 1
        if name.startswith(self._prefix):
            self.names.append(name)
            self._kept_bytes += len(name) + NAME_BYTES
