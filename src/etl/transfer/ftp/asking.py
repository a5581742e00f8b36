"""Finding out what is behind a refusal, by asking: a server's 550 means anything, and its English is its own."""

from __future__ import annotations

import re
import secrets
from enum import Enum
from typing import TYPE_CHECKING

from etl.errors import EtlError, FileMissing, IOFailure, NotAFile, PermissionRefused
from etl.models.task import Facts
from etl.transfer.ftp.listing import entry_of, shows
from etl.transfer.ftp.longlist import Entry
from etl.transfer.ftp.names import facts_in, folders_above, size_in, time_in
from etl.transfer.ftp.refusals import (
    REFUSED,
    SAY_ENOUGH,
    UNKNOWN_COMMAND,
    plain_error,
    says_denied,
    says_full,
    vanished,
)
from etl.transfer.paths import basename, parent

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.transfer.ftp.link import Link
    from etl.transfer.ftp.replies import Reply


_CODE = re.compile(rb"^250[- ]")
_NOT_THERE = 550
_PAUSES = (0.1, 0.4, 1.0, 2.0)  # seconds, until a file that was just stored is looked at again
_TELLS = 213


class Kind(Enum):
    """What a path turns out to be."""

    FILE = "a file"
    FOLDER = "a folder"
    MISSING = "missing"
    CLOSED = "behind a folder that may not be entered"


def ask_facts(link: Link, path: str) -> Callable[[], Facts]:
    """Queue the questions for size and time; the answer reads the replies."""
    if lists_facts(link, path):
        listed = link.ask("MLST", path)
        return lambda: listed_facts(listed.result()) or Facts(None, None)
    size, mdtm = link.ask("SIZE", path), link.ask("MDTM", path)
    return lambda: facts_of(link, size.result(), mdtm.result())


def ask_stored_size(link: Link, whole: str, sent_bytes: int) -> Callable[[], int | None]:
    """Queue the question for the size of a file just stored; the answer reads the replies.

    Some servers have not done with a file when they say 226: one that is not there yet, or shorter than what was sent,
    is looked at again for some seconds.
    """
    if lists_facts(link, whole):
        listed = ask_facts(link, whole)
        return lambda: listed().size_bytes
    size = link.ask("SIZE", whole)

    def answer() -> int | None:
        reply = size.result()
        for tried, pause in enumerate(_PAUSES[: 1 if link.quirks.stays_short else None]):
            if not _is_unfinished(link, whole, reply, sent_bytes):
                link.quirks.stays_short = link.quirks.stays_short and not tried
                break
            link.rest(pause)
            reply = link.ask("SIZE", whole).result()
        else:
            link.quirks.stays_short = True
            if not reply.is_success and _is_unfinished(link, whole, reply, sent_bytes):
                raise vanished(link, whole)
        return size_in(reply.line) if reply.is_success else None  # not told: 226 was said all the same

    return answer


def _is_unfinished(link: Link, whole: str, reply: Reply, sent_bytes: int) -> bool:
    """Is a file that was just stored too short, or shown neither by SIZE nor by its folder?"""
    if reply.is_success:
        size_bytes = size_in(reply.line)
        return size_bytes is not None and size_bytes < sent_bytes
    if reply.code in UNKNOWN_COMMAND or link.server.publish == "direct":  # there it may have been taken away
        return False
    try:
        is_shown = shows(link, whole)
    except IOFailure:  # what only confirms fails nothing
        return False
    return not (is_shown or (is_shown is None and link.quirks.stays_short))


def ask_unchanged(link: Link, path: str, facts: Facts) -> Callable[[], bool]:
    """Queue the question whether a file is still what it was when its reading began; the answer reads the replies.

    One that is gone by now is not changed. Some servers remove a file once it was downloaded: all its bytes came, and
    the 226.
    """
    if link.quirks.lists_facts and facts.size_bytes is not None:
        listed = link.ask("MLST", path)
        return lambda: listed.result().code == _NOT_THERE or listed_facts(listed.result()) == facts
    size, mdtm = link.ask("SIZE", path), link.ask("MDTM", path)

    def answer() -> bool:
        is_gone = facts.size_bytes is not None and size.result().code == mdtm.result().code == _NOT_THERE
        return is_gone or facts_of(link, size.result(), mdtm.result()) == facts

    return answer


def lists_facts(link: Link, path: str) -> bool:
    """Does the server tell sizes and times by MLST alone, as SIZE and MDTM are unknown to it? Asked once.

    Not asked, and never true, where FEAT has one of these.
    """
    quirks = link.quirks
    if quirks.lists_facts is None and (link.offers("SIZE") or link.offers("MDTM") or not link.may_offer("MLST")):
        quirks.lists_facts = False
    if quirks.lists_facts is None:
        asked = link.ask("SIZE", path), link.ask("MDTM", path)
        if any(pending.result().code not in UNKNOWN_COMMAND for pending in asked):
            quirks.lists_facts = False
        elif (listed := link.ask("MLST", path).result()).is_success or listed.code in UNKNOWN_COMMAND:
            quirks.lists_facts = listed.is_success
    return bool(quirks.lists_facts)


def listed_facts(reply: Reply) -> Facts | None:
    """Return what MLST tells of a file (RFC 3659 section 7.5; its times are UTC); None: it is none, or not told."""
    if _listed_kind(reply) is not Kind.FILE:
        return None
    facts = _told(reply)
    return Facts(size_in(facts.get("size", b"")), time_in(facts.get("modify", b"")))


def facts_of(link: Link, size: Reply, mdtm: Reply) -> Facts:
    """Return what replies to SIZE and MDTM tell; what was refused is not known.

    Raises SessionFault for a success without a time, or the code for one: it was another command's reply.
    """
    mtime = time_in(mdtm.line, link.zone) if mdtm.is_success else None
    if mtime is None and mdtm.is_success and mdtm.code != _TELLS:
        raise link.control.out_of_step(f"the server answered MDTM with {mdtm.text}")
    return Facts(size_in(size.line) if size.is_success else None, mtime)


def ask_entry(link: Link, path: str) -> Callable[[], bool]:
    """Queue the question whether `path` is a folder that may be entered; the answer reads the reply.

    Not asked, and never true, where CWD says yes to everything or a failed one ends the session.
    """
    if link.quirks.cwd_tells is False:
        return lambda: False
    entered = link.ask("CWD", path)
    return lambda: entered.result().is_success and _cwd_tells(link)


def _cwd_tells(link: Link) -> bool:
    """Does CWD refuse anything at all? Asked once, when one was accepted."""
    if link.quirks.cwd_tells is None:
        link.control.flush()  # what was asked beside it: some keep the order of what shares a write, and no other
        link.quirks.cwd_tells = not link.ask("CWD", f"/.etl-{secrets.token_hex(8)}/none").result().is_success
    return link.quirks.cwd_tells


def ask_kind(link: Link, path: str) -> Callable[[], Kind]:
    """Queue the questions what `path` is; the answer reads the replies.

    A folder that may be entered, or that MLST calls one, is a FOLDER. One that may not be entered may pass for a file
    on a server that tells the size of folders: whoever moves it must be able to undo that.
    """
    entry, size = ask_entry(link, path), link.ask("SIZE", path)
    listed = link.ask("MLST", path) if link.may_offer("MLST") else None

    def answer() -> Kind:
        if entry():
            return Kind.FOLDER
        if listed is not None and (kind := _listed_kind(listed.result())) is not None:
            return kind
        return Kind.FILE if size.result().is_success else Kind.MISSING

    return answer


def _listed_kind(reply: Reply) -> Kind | None:
    """Return what MLST says a path is; None: it does not say."""
    if not reply.is_success:
        return None
    kind = _told(reply).get("type", b"").lower()
    if kind in {b"dir", b"cdir", b"pdir"}:
        return Kind.FOLDER
    return Kind.FILE if kind == b"file" else None


def _told(reply: Reply) -> dict[str, bytes]:
    """Return the facts of MLST: on a line of their own, or behind the code."""
    lines = (_CODE.sub(b"", line).lstrip() for line in reply.lines)
    return {name: value for line in lines for name, value in facts_in(line)[0].items()}


def kind_of(link: Link, path: str, *, by_listing: bool = True) -> tuple[Kind, str]:
    """Return what `path` is, and the path that decided it (itself, or a folder above).

    Args:
        link: the session.
        path: a whole path.
        by_listing: look into the folder before calling a file missing, as some servers hide from SIZE what we may not
            read. Without it one write of commands is all, however many files the folder has.
    """
    size, entry, above = link.ask("SIZE", path), ask_entry(link, path), ask_entry(link, parent(path) or "/")
    listed = link.ask("MLST", path) if link.may_offer("MLST") else None
    if entry():
        return Kind.FOLDER, path
    if listed is not None and (found := listed.result()).is_success:
        # CLOSED: a folder that CWD does not enter
        return (Kind.CLOSED if _listed_kind(found) is Kind.FOLDER else Kind.FILE), path
    if size.result().is_success:
        return Kind.FILE, path
    is_refused = size.result().code >= REFUSED and size.result().code not in UNKNOWN_COMMAND
    if is_refused and (link.quirks.cwd_tells is False or (not by_listing and above())):
        return Kind.MISSING, path
    return _kind_by_parents(link, path)


def _kind_by_parents(link: Link, path: str) -> tuple[Kind, str]:
    """Walk up to the nearest folder that may be entered, and look there for what stands in the way."""
    blocked = path
    for folder in folders_above(path):
        if ask_entry(link, folder)():
            break
        blocked = folder
    if blocked != path and link.may_offer("MLST"):
        is_known = link.ask("MLST", blocked).result().is_success
    else:
        # Whoever may enter a folder may ask for what is in it: nothing there, also where listing is forbidden.
        is_known = bool(shows(link, blocked))
    if not is_known:
        return Kind.MISSING, blocked
    return (Kind.FILE if blocked == path else Kind.CLOSED), blocked


def is_there(link: Link, path: str, *, by_listing: bool = False) -> bool:
    """Does anything have this name?"""
    kind, decided_by = kind_of(link, path, by_listing=by_listing)
    return kind is not Kind.MISSING and decided_by == path


def tells_files_by_size(link: Link) -> bool:
    """Is what answers to SIZE a file? Some servers tell the size of folders, too: the root shows it, asked once."""
    if link.quirks.sizes_folders is None:
        link.quirks.sizes_folders = link.ask("SIZE", "/").result().is_success
    return not link.quirks.sizes_folders


def is_surely_file(link: Link, path: str) -> bool:
    """Is something a file, that may as well be a folder which we may not enter?

    Some servers tell the size of folders, too.
    """
    size = link.ask("SIZE", path)
    if link.may_offer("MLST") and (kind := _listed_kind(link.ask("MLST", path).result())) is not None:
        return kind is Kind.FILE
    if not size.result().is_success or size_in(size.result().line) is None:
        return False
    return tells_files_by_size(link) or entry_of(link, path) is Entry.FILE


def why_not_read(link: Link, path: str, refusal: Reply) -> EtlError:
    """Return the error for a file that the server does not give us."""
    if (plain := _plain(link, path, refusal)) is not None:
        return plain
    try:
        kind, decided_by = kind_of(link, path)
    except IOFailure:  # nothing else tells
        if says_denied(refusal):
            return plain_error(link.name, path, refusal)
        raise
    if kind is Kind.FILE and refusal.is_transient:
        return plain_error(link.name, path, refusal)
    return _described(link, path, kind, decided_by, refusal)


def why_not_written(link: Link, path: str, refusal: Reply) -> EtlError:
    """Return the error for a name that the server lets nobody write, its folder being there."""
    if (plain := _plain(link, path, refusal)) is not None:
        return plain
    if ask_entry(link, path)():
        return _described(link, path, Kind.FOLDER, path, refusal)
    folder = parent(path) or "/"
    if ask_entry(link, folder)() or link.quirks.cwd_tells is False:
        if refusal.is_transient:
            return plain_error(link.name, path, refusal)
        hint = f"; {link.name}_PARTIAL_PATTERN may name a file without a dot" if basename(path)[:1] == "." else ""
        return PermissionRefused(
            f"{link.name}:{path}: writing here is not permitted ({refusal.text}){hint}", server=link.name
        )
    kind, decided_by = kind_of(link, folder)
    return _described(link, folder, kind, decided_by, refusal)


def why_no_base(link: Link, base: str, refusal: Reply) -> EtlError:
    """Return the error for a base path that the server does not let us enter."""
    if (plain := _plain(link, base, refusal)) is not None:
        return plain
    kind, decided_by = kind_of(link, base)
    if kind is Kind.MISSING:
        why = "" if decided_by == base else f": {decided_by} is not there"
        return FileMissing(f"{link.name}: the base path {base} is no folder{why}", server=link.name)
    return _described(link, base, Kind.CLOSED, decided_by, refusal)


def _plain(link: Link, path: str, reply: Reply) -> EtlError | None:
    """Return the error of a reply whose code says enough; None for the codes that mean anything."""
    return plain_error(link.name, path, reply) if reply.code in SAY_ENOUGH or says_full(reply) else None


def _described(link: Link, path: str, kind: Kind, decided_by: str, refusal: Reply) -> EtlError:
    where = f"{link.name}:{path}"
    if kind is Kind.MISSING:
        what = "no such file" if decided_by == path else f"no such folder: {decided_by}"
        return FileMissing(f"{where}: {what}", server=link.name)
    if kind is Kind.FOLDER:
        return NotAFile(f"{where} is a folder", server=link.name)
    if kind is Kind.CLOSED:
        if is_surely_file(link, decided_by):
            return NotAFile(f"{where}: {decided_by} is a file, not a folder", server=link.name)
        return PermissionRefused(f"{where}: {decided_by} may not be entered", server=link.name)
    return PermissionRefused(f"{where}: not permitted ({refusal.text})", server=link.name)
