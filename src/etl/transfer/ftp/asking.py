"""Finding out what is behind a refusal, by asking: a server's 550 means anything, and its English is its own."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol

from etl.errors import ConnectionLost, EtlError, FileMissing, IOFailure, NotAFile, PermissionRefused, StorageFull
from etl.transfer.ftp.names import facts_in, folders_above, size_in
from etl.transfer.paths import basename, parent

if TYPE_CHECKING:
    from etl.transfer.ftp.control import Pending
    from etl.transfer.ftp.replies import Reply


# Of pyftpdlib (the system's own words, with 426), vsftpd (for whatever a write fails with, 451), and others.
_SAY_FULL = ("no space", "disk full", "quota", "not enough space", "failure writing to local file")

UNKNOWN_COMMAND = {500, 501, 502, 504}  # codes of a server that cannot do it at all
NO_CONNECTION = {421, 425, 426}  # whatever the command was about


class Asker(Protocol):
    """What is needed of a session. Paths are whole paths."""

    name: str  # of the server

    def ask(self, verb: str, whole_path: str) -> Pending:
        """Queue a command about a path."""
        ...

    def names_in(self, whole_path: str, prefix: str) -> list[str] | None:
        """Return the bare names in a folder that begin with `prefix`; None when it shows no names at all."""
        ...

    def offers(self, feature: str) -> bool:
        """Is a feature in the server's FEAT?"""
        ...


class Kind(Enum):
    """What a path turns out to be."""

    FILE = "a file"
    FOLDER = "a folder"
    MISSING = "missing"
    CLOSED = "behind a folder that may not be entered"


def kind_of(asker: Asker, path: str, *, by_listing: bool = True) -> tuple[Kind, str]:
    """Return what `path` is, and the path that decided it (itself, or a folder above).

    Args:
        asker: the session.
        path: a whole path.
        by_listing: look into the folder before calling a file missing, as some servers hide from SIZE what we may not
            read. Without it one write of commands is all, however many files the folder has.
    """
    size, cwd, above = asker.ask("SIZE", path), asker.ask("CWD", path), asker.ask("CWD", parent(path) or "/")
    listed = asker.ask("MLST", path) if asker.offers("MLST") else None
    if cwd.result().is_success:
        return Kind.FOLDER, path
    if size.result().is_success:
        return Kind.FILE, path
    if listed is not None and (found := listed.result()).is_success:
        is_folder = any(facts_in(line.lstrip())[0].get("type", b"").lower() == b"dir" for line in found.lines[1:])
        return (Kind.CLOSED if is_folder else Kind.FILE), path  # CLOSED: a folder that CWD does not enter
    if not by_listing and above.result().is_success and size.result().code not in UNKNOWN_COMMAND:
        return Kind.MISSING, path
    return _kind_by_parents(asker, path)


def _kind_by_parents(asker: Asker, path: str) -> tuple[Kind, str]:
    """Walk up to the nearest folder that may be entered, and look there for what stands in the way."""
    blocked = path
    for folder in folders_above(path):
        if asker.ask("CWD", folder).result().is_success:
            break
        blocked = folder
    if blocked != path and asker.offers("MLST"):
        is_known = asker.ask("MLST", blocked).result().is_success
    else:
        # Whoever may enter a folder may ask for what is in it: nothing there, also where listing is forbidden.
        is_known = basename(blocked) in (asker.names_in(parent(blocked) or "/", basename(blocked)) or ())
    if not is_known:
        return Kind.MISSING, blocked
    return (Kind.FILE if blocked == path else Kind.CLOSED), blocked


def is_there(asker: Asker, path: str, *, by_listing: bool = False) -> bool:
    """Does anything have this name?"""
    kind, decided_by = kind_of(asker, path, by_listing=by_listing)
    return kind is not Kind.MISSING and decided_by == path


def why_not_read(asker: Asker, path: str, refusal: Reply) -> EtlError:
    """Return the error for a file that the server does not give us."""
    if (plain := _plain(asker, path, refusal)) is not None:
        return plain
    kind, decided_by = kind_of(asker, path)
    if kind is Kind.FILE and refusal.is_transient:
        return IOFailure(f"{asker.name}:{path}: {refusal.text}", server=asker.name)
    return _described(asker, path, kind, decided_by, refusal)


def why_not_written(asker: Asker, path: str, refusal: Reply) -> EtlError:
    """Return the error for a name that the server lets nobody write, its folder being there."""
    if (plain := _plain(asker, path, refusal)) is not None:
        return plain
    if asker.ask("CWD", path).result().is_success:
        return _described(asker, path, Kind.FOLDER, path, refusal)
    folder = parent(path) or "/"
    if asker.ask("CWD", folder).result().is_success:
        if refusal.is_transient:
            return IOFailure(f"{asker.name}:{path}: {refusal.text}", server=asker.name)
        return PermissionRefused(
            f"{asker.name}:{path}: writing here is not permitted ({refusal.text})", server=asker.name
        )
    kind, decided_by = kind_of(asker, folder)
    return _described(asker, folder, kind, decided_by, refusal)


def why_no_base(asker: Asker, base: str, refusal: Reply) -> EtlError:
    """Return the error for a base path that the server does not let us enter."""
    if (plain := _plain(asker, base, refusal)) is not None:
        return plain
    kind, decided_by = kind_of(asker, base)
    if kind is Kind.MISSING:
        why = "" if decided_by == base else f": {decided_by} is not there"
        return FileMissing(f"{asker.name}: the base path {base} is no folder{why}", server=asker.name)
    return _described(asker, base, Kind.CLOSED, decided_by, refusal)


def plain_error(name: str, path: str, reply: Reply) -> EtlError:
    """Return the error that a reply's code alone gives (RFC 959 section 4.2.1)."""
    message = f"{name}:{path}: {reply.text}"
    if reply.code in {452, 552} or _says_full(reply):
        return StorageFull(message, server=name)
    if reply.code in NO_CONNECTION:
        return ConnectionLost(message, server=name)
    if reply.code in {530, 532}:
        return PermissionRefused(message, server=name)
    return IOFailure(message, server=name)


def _says_full(reply: Reply) -> bool:
    """Does a failed transfer speak of a full disk? English it is, but 426 and 451 leave it open."""
    return reply.code in {426, 450, 451} and any(words in reply.text.lower() for words in _SAY_FULL)


def _plain(asker: Asker, path: str, reply: Reply) -> EtlError | None:
    """Return the error of a reply whose code says enough; None for the codes that mean anything."""
    if reply.code in {421, 425, 426, 451, 452, 530, 532, 552}:
        return plain_error(asker.name, path, reply)
    return None


def _described(asker: Asker, path: str, kind: Kind, decided_by: str, refusal: Reply) -> EtlError:
    where = f"{asker.name}:{path}"
    if kind is Kind.MISSING:
        what = "no such file" if decided_by == path else f"no such folder: {decided_by}"
        return FileMissing(f"{where}: {what}", server=asker.name)
    if kind is Kind.FOLDER:
        return NotAFile(f"{where} is a folder", server=asker.name)
    if kind is Kind.CLOSED:
        reply = asker.ask("SIZE", decided_by).result()
        if reply.is_success and size_in(reply.line) is not None:
            return NotAFile(f"{where}: {decided_by} is a file, no folder", server=asker.name)
        return PermissionRefused(f"{where}: {decided_by} may not be entered", server=asker.name)
    return PermissionRefused(f"{where}: not permitted ({refusal.text})", server=asker.name)
