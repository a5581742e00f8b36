"""Listing a folder: the commands, from the most telling one on, and the names in what they bring."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from etl.errors import EtlError, IOFailure
from etl.transfer.ftp.longlist import Entry, entry_in
from etl.transfer.ftp.names import facts_in
from etl.transfer.ftp.refusals import NO_CONNECTION, UNKNOWN_COMMAND, plain_error
from etl.transfer.ftp.replies import Reply
from etl.transfer.paths import basename, parent

if TYPE_CHECKING:
    from etl.transfer.ftp.link import Link

LIMIT_BYTES = 1 << 30  # read of one listing
KEPT_BYTES = 64 << 20  # of its names
LINE_BYTES = 16 * 1024  # of one of its lines
NAME_BYTES = 60  # memory of a name beside its bytes
_BUFFER_BYTES = 64 * 1024
_ALL = b"-a"
_PLAIN = re.compile(r"[\w.][\w.+=-]*")  # a name that no server takes for a pattern or an option
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
    ways += [("NLST", _ALL), ("NLST", _ALL + b" ."), ("NLST", None), ("NLST", b"*"), ("LIST", _ALL), ("LIST", None)]
    refusal: Reply | None = None
    found: Listing | Reply | None = None
    for verb, argument in ways:
        if argument == _ALL + b" ." and not (isinstance(found, Listing) and found.count):
            continue
        found = _list_by(link, whole_path, prefix, verb, argument)
        if isinstance(found, Listing):
            # To some servers -a is a file's name: if there is one, it is all that they list. Or they have none so.
            if not (argument == _ALL and found.has_only(_ALL)) and (found.count or argument is None or verb == "MLSD"):
                return _names(link, found)
        elif found.code not in UNKNOWN_COMMAND:
            refusal = found
    if refusal is None or _SAYS_EMPTY.search(refusal.text):
        return None
    link.command("TYPE", b"A")  # some servers list in no other
    found = _list_by(link, whole_path, prefix, "NLST", None)
    link.command("TYPE", b"I").result()
    if isinstance(found, Reply):
        raise IOFailure(f"{link.name}:{whole_path}: the list is refused: {refusal.text}", server=link.name)
    return _names(link, found)


def shows(link: Link, whole_path: str) -> bool | None:
    """Does a folder show this name? None: it shows nothing at all, or cannot be listed.

    Asked by the name first: a long list costs much, and some servers cut it off. Raises IOFailure for a refused list.
    """
    folder, name = parent(whole_path) or "/", basename(whole_path)
    if _PLAIN.fullmatch(name) and link.ask("CWD", folder).result().is_success:
        found = _list_by(link, whole_path, "", "NLST", link.wire(name))
        if isinstance(found, Listing) and _names(link, found) == [name]:
            return True
    listed = names_in(link, folder, name)
    return None if listed is None else name in listed


def entry_of(link: Link, whole_path: str) -> Entry | None:
    """Return what the long list of its folder says that something is; None: it does not say."""
    if not link.ask("CWD", parent(whole_path) or "/").result().is_success:
        return None
    name = basename(whole_path)
    for argument in (_ALL, None):
        found = _list_by(link, whole_path, name, "LIST", argument)
        if isinstance(found, Listing):
            entries = found.entries.get(link.names.wire(name), set())
            if entries:
                return entries.pop() if len(entries) == 1 else None
    return None


def _names(link: Link, listing: Listing) -> list[str] | None:
    return [link.names.read(name) for name in listing.names] if listing.count else None


def _list_by(link: Link, whole_path: str, prefix: str, verb: str, argument: bytes | None) -> Listing | Reply:
    """List in one way; return what was listed, or the refusal."""
    listing = Listing(with_facts=verb == "MLSD", is_long=verb == "LIST", prefix=link.names.wire(prefix))
    reply = _list(link, verb, argument, listing)
    if reply.code in NO_CONNECTION:  # it says nothing of the folder
        raise plain_error(link.name, whole_path, reply)
    return listing if reply.is_success else reply


def _list(link: Link, verb: str, argument: bytes | None, listing: Listing) -> Reply:
    """Read a listing; return the final reply, or the refusal."""
    running = link.starting.begin(verb, argument)
    if isinstance(running, Reply):
        return running
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    try:
        while count := running.data.readinto(buffer, lambda silent: link.has_ended(running.command, silent)):
            listing.feed(bytes(buffer[:count]))
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
    """Takes a listing (NLST, MLSD `with_facts`, or LIST: `is_long`) in pieces, cut anywhere.

    Keeps the names that begin with `prefix`, and what LIST says of them (`entries`).
    Bare names they are, without the folder itself and its parent. A folder may hold millions: nothing else is kept.
    """

    def __init__(self, *, with_facts: bool, is_long: bool = False, prefix: bytes = b"") -> None:
        self.names: list[bytes] = []
        self.entries: dict[bytes, set[Entry]] = {}
        self.count = 0  # of all names
        self._last = b""
        self._with_facts = with_facts
        self._is_long = is_long
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

    def has_only(self, name: bytes) -> bool:
        """Is this the one name?"""
        return self.count == 1 and self._last == name

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
        entry = None
        if self._is_long:
            if (found := entry_in(line)) is None:
                return
            entry, line = found
        name = line.rpartition(b"\\" if line[1:3] == b":\\" else b"/")[2]  # `C:\x\name` it is on some
        if name in {b"", b".", b".."}:
            return
        self.count += 1
        self._last = name
        if name.startswith(self._prefix):
            self.names.append(name)
            if entry is not None:
                self.entries.setdefault(name, set()).add(entry)
            self._kept_bytes += len(name) + NAME_BYTES
