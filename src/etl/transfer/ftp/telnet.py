"""Byte 0xFF in names: a server that follows Telnet (RFC 854) takes two for one, others take two for two.

Sent wrongly, `yy.txt` would be written over `y.txt`, whatever `y` is in the server's encoding.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from typing import TYPE_CHECKING

from etl.errors import InvalidPath, TransferTimeout
from etl.transfer.paths import DROPPED_BYTES, SEPARATOR_BYTES

if TYPE_CHECKING:
    from etl.transfer.ftp.control import Control
    from etl.transfer.ftp.known import ServerQuirks

IAC = b"\xff"
_NOP = b"\xff\xf1"  # the command of Telnet that does nothing
_BEGIN, _END = b"\xff\xfa", b"\xff\xf0"  # of a command of any length
_ENOUGH_DOTS = 2
_ACCIDENTS = 1  # silences; the next one is the server's answer


def written(control: Control, quirks: ServerQuirks, path: bytes, *, may_make: bool = True) -> bytes:
    """Return a path with 0xFF in it as the server wants it, which is found out once. Raises InvalidPath if not.

    A folder is made whose name has two of them, and entered by the name with one, or with a command of Telnet in it.
    Where none may be made (`may_make`: are we allowed to?) the file tells, if it is there: by its name with two it is
    found only by a server that takes them for one.
    """
    doubled, name = path.replace(IAC, IAC + IAC), control.server
    if _may_climb(path):
        raise InvalidPath(f"{name}:{path!r} may be read as a path that climbs above its start", server=name)
    if quirks.silences_at_ff > _ACCIDENTS:
        raise InvalidPath(f"{name}:{path!r}: the server gives no answer to a name with byte 0xFF", server=name)
    if quirks.follows_telnet is None:
        try:
            quirks.follows_telnet = _found_out(control, path, doubled, may_make=may_make)
        except TransferTimeout:
            quirks.silences_at_ff += 1
            raise
    if quirks.follows_telnet is None:
        raise InvalidPath(f"{name}:{path!r}: how byte 0xFF is to be written could not be found out", server=name)
    return doubled if quirks.follows_telnet else path


def _found_out(control: Control, path: bytes, doubled: bytes, *, may_make: bool) -> bool | None:
    follows = _by_folder(control, path.rpartition(b"/")[0]) if may_make else None
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


def _may_climb(path: bytes) -> bool:
    """Can a part of a path become `..` by any way of dropping Telnet's commands, of one byte to many?"""
    dots: dict[int, set[int]] = defaultdict(set, {0: {0}})  # by place: of a part that has nothing but dots so far
    for place, byte in enumerate(path):
        if byte == IAC[0]:
            ends = {place + 1, place + 2, place + 3}
            if path.startswith(_BEGIN, place) and (end := path.find(_END, place)) >= 0:
                ends.add(end + len(_END))
            for end in ends:
                dots[min(end, len(path))] |= dots[place]
        if byte in SEPARATOR_BYTES:
            if _ENOUGH_DOTS in dots[place]:
                return True
            dots[place + 1].add(0)
        elif byte == ord("."):
            dots[place + 1] |= {min(count + 1, _ENOUGH_DOTS) for count in dots[place]}
        elif byte in DROPPED_BYTES:
            dots[place + 1] |= dots[place]
    return _ENOUGH_DOTS in dots[len(path)]
