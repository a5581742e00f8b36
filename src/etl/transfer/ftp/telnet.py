"""Byte 0xFF in names: a server that follows Telnet (RFC 854) takes two for one, others take two for two.

Sent wrongly, `yy.txt` would be written over `y.txt`, whatever `y` is in the server's encoding.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from etl.errors import InvalidPath, TransferTimeout

if TYPE_CHECKING:
    from etl.transfer.ftp.control import Control
    from etl.transfer.ftp.known import ServerQuirks

IAC = b"\xff"
_NOP = b"\xff\xf1"  # the command of Telnet that does nothing
_ACCIDENTS = 1  # silences; the next one is the server's answer


def written(control: Control, quirks: ServerQuirks, path: bytes) -> bytes:
    """Return a path with 0xFF in it as the server wants it, which is found out once. Raises InvalidPath if not.

    A folder is made whose name has two of them, and entered by the name with one, or with a command of Telnet in it.
    Where none may be made the file tells, if it is there: by its name with two it is found only by a
    server that takes them for one.
    """
    doubled, name = path.replace(IAC, IAC + IAC), control.server
    if quirks.silences_at_ff > _ACCIDENTS:
        raise InvalidPath(f"{name}:{path!r}: the server gives no answer to a name with byte 0xFF", server=name)
    if quirks.follows_telnet is None:
        try:
            quirks.follows_telnet = _found_out(control, path, doubled)
        except TransferTimeout:
            quirks.silences_at_ff += 1
            raise
    if quirks.follows_telnet is None:
        raise InvalidPath(f"{name}:{path!r}: how byte 0xFF is to be written could not be found out", server=name)
    return doubled if quirks.follows_telnet else path


def _found_out(control: Control, path: bytes, doubled: bytes) -> bool | None:
    follows = _by_folder(control, path.rpartition(b"/")[0])
    if follows is None:
        plain, twice = control.send("SIZE", path), control.send("SIZE", doubled)
        if twice.result().is_success or plain.result().is_success:
            follows = twice.result().is_success
    return follows


def _by_folder(control: Control, folder: bytes) -> bool | None:
    """Find out with a folder, which is removed; None where none could be made."""
    name = folder + b"/.etl-" + secrets.token_hex(8).encode("ascii")
    if not control.send("MKD", name + IAC + IAC + b"x").result().is_success:
        return None
    # One alone means itself to a lenient server; a strict one takes it for a command, and drops it with the next byte.
    ways = name + IAC + b"x", name + _NOP + IAC + IAC + b"x"
    follows = any(control.send("CWD", way).result().is_success for way in ways)
    control.send("CWD", b"/").result()
    control.send("RMD", name + IAC + IAC + b"x").result()
    return follows
