"""What the code of a refusal says by itself, before anybody asks the server what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl.errors import ConnectionLost, EtlError, IOFailure, NotAFile, PermissionRefused, StorageFull

if TYPE_CHECKING:
    from etl.transfer.ftp.link import Link
    from etl.transfer.ftp.replies import Reply

# Of pyftpdlib (the system's own words, with 426), vsftpd (for whatever a write fails with, 451), and others.
_SAY_FULL = ("no space", "disk full", "quota", "not enough space", "failure writing to local file")
# Of Node (EACCES), Apache ("No permission to delete", with 450), and others that pass their system's words on.
_SAY_DENIED = ("eacces", "eperm", "permission denied", "no permission", "access denied", "access is denied")

_FAILED = 400
_ACCIDENTS = 1  # uploads that vanish
REFUSED = 500  # from here on for good, as far as a server knows
UNKNOWN_COMMAND = {500, 501, 502, 504}  # codes of a server that cannot do it at all
NO_CONNECTION = {425, 426}  # whatever the command was about
SAY_ENOUGH = {425, 426, 451, 452, 552}  # codes that do not depend on what is behind the path


def plain_error(name: str, path: str, reply: Reply) -> EtlError:
    """Return the error that a reply's code alone gives (RFC 959 section 4.2.1)."""
    message = f"{name}:{path}: {reply.text}"
    if reply.code in {452, 552} or says_full(reply):
        return StorageFull(message, server=name)
    if reply.code in NO_CONNECTION:
        return ConnectionLost(message, server=name)
    return (PermissionRefused if says_denied(reply) else IOFailure)(message, server=name)


def says_denied(reply: Reply) -> bool:
    """Does a refusal speak of a lack of rights? Counts only where nothing else tells."""
    return reply.code >= _FAILED and any(words in reply.text.lower() for words in _SAY_DENIED)


def vanished(link: Link, path: str) -> EtlError:
    """Return the error for an upload that is gone once it was stored: something at the server may take each away.

    Once it may be an accident, and is tried again; twice in a row would bring copy after copy to whoever takes them.
    """
    link.quirks.vanished += 1
    kind = IOFailure if link.quirks.vanished <= _ACCIDENTS else NotAFile
    return kind(
        f"{link.name}:{path}: is gone, though it was stored; if it is taken away at the server "
        f"{link.name}_PUBLISH=direct does without one",
        server=link.name,
    )


def says_full(reply: Reply) -> bool:
    """Does a refusal speak of a full disk or a quota? English it is, but most codes leave it open, 550 and 553, too."""
    return reply.code >= _FAILED and any(words in reply.text.lower() for words in _SAY_FULL)
