"""What is known of each server: what one session found out, all sessions of its address hold to."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

Address = tuple[str, str, int, str]  # ServerConfig.address

lock = threading.Lock()  # guards `_quirks`, and who is the first to tell of a change (Pipelining.slow_down)
_quirks: dict[Address, ServerQuirks] = {}


@dataclass(slots=True, eq=False)
class ServerQuirks:
    """The record of one address. Sessions of many threads set its fields, each in one step.

    Times are of the monotonic clock; one that has passed means nothing any more.
    """

    takes_many: bool = False  # answered a command that shared a write with others
    is_proven: bool = False  # began a transfer whose command shared a write with its data connection's
    answers_early: bool = False  # answered a command that was sent before its last word on a transfer
    keeps_order: bool = False  # answered a slow command and a quick one of one write in their order
    lists_facts: bool | None = None  # tells size and time by MLST, knowing neither SIZE nor MDTM; None: not asked yet
    sizes_folders: bool | None = None  # SIZE tells the size of folders, too; None: not asked yet
    cwd_tells: bool | None = (
        None  # CWD tells folders from others; False: it says yes to all, or is answered by a hang-up
    )
    follows_telnet: bool | None = None  # takes two bytes 0xFF for one; None: not needed yet
    silences_at_ff: int = 0  # how often there was no answer when that was to be found out
    working_address: tuple[Any, ...] | None = None  # of the host's, the one that answered last
    keeps_names: bool = False  # shows a name beyond ASCII as it was sent
    keeps_ff: bool = False  # and one with byte 0xFF
    keeps_escapes: bool = False  # and one with a percent sign and two hexadecimal digits
    kept_bytes: int = 0  # the longest name that was shown as it was sent
    bare_names: bool | None = None  # takes names without a folder only, that one being entered; None: not known
    answers_feat: bool = True
    ended_at_feat: int = 0  # sessions in a row
    ended_at_epsv: int = 0
    forgets_type: bool = False  # goes back to text by itself: TYPE I before each transfer
    takes_epsv: bool | None = None  # answers it with a port that can be reached; None: not asked yet
    takes_any_session: bool = False  # of TLS, in a data connection: also another one than the control connection's
    encrypts_late: bool = False  # answered a handshake in clear, though it had agreed to TLS
    refused_sessions: int = 0  # of TLS, in a row
    crashes: int = 0  # behind a download under TLS, in a row
    refuses_offsets: bool = False  # does not know REST, or not at all
    goes_on: bool | None = None  # a STOR behind a REST does what it should; None: not tried yet
    refuses_to_replace: bool = False  # does not rename over a file
    refuses_renames: bool = False  # refused the last one for longer than we wait
    confusions: int = 0  # how often that was found out
    doubles: dict[tuple[str, int], bool] = field(default_factory=dict)  # (command, code): that reply comes twice
    own_codes: set[tuple[str, int]] = field(default_factory=set)  # (command, code): a success that only it gives so
    answered: set[str] = field(default_factory=set)  # of the commands that are optional
    ended_at: dict[str, float] = field(default_factory=dict)  # such a command: when a session first ended at it
    withheld_until: dict[str, float] = field(default_factory=dict)  # and until when it is not sent any more
    refuses_late: bool = False  # says that a folder is missing when more of a file was sent than can be sent again
    unmade: set[str] = field(default_factory=set)  # folders whose making the end of a session prevented
    hash_ends: dict[str, int] = field(default_factory=dict)  # way to a checksum: sessions in a row that ended at it
    quotes_hashed: dict[str, bool] = field(default_factory=dict)  # way to a checksum: takes names with blanks in quotes
    left_open: int = 0  # data connections of uploads, in a row, that it did not end itself
    stays_short: bool = False  # the last file that was shorter than what was sent, or not there, stayed so
    vanished: int = 0  # uploads in a row that were gone once they were stored
    no_pipelining_until: float = 0.0  # its new sessions send one command at a time
    no_early_until: float = 0.0  # it gets no command before its last word


def of(address: Address) -> ServerQuirks:
    """Return the record of an address, which is the same for all who ask."""
    with lock:
        return _quirks.setdefault(address, ServerQuirks())


def forget() -> None:
    """Begin anew: every server is tried again, by sessions that are made from now on."""
    with lock:
        _quirks.clear()
