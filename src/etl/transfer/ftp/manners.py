"""What one server does in its own way: commands at which its sessions end, and codes that nobody else gives.

Pure; knows no socket. Learnt by all sessions of an address together.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from etl.transfer.ftp.replies import Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.transfer.ftp.known import ServerQuirks
    from etl.transfer.ftp.pending import Pending

# Nothing depends on these: without them a size is not compared, a time not kept, a folder told by CWD alone and listed
# by NLST, a file sent from its start, and the folder after login not known.
_OPTIONAL = {"SIZE", "MDTM", "MFMT", "MLST", "MLSD", "OPTS", "PWD", "REST"}
# A wrong success of these is found out by the next command, or by what it lacks.
_HARMLESS = {"SIZE", "RNFR", "REST", "MKD", "EPSV", "PASV"}
_SECONDS = 600.0  # then such a command is tried again
_SECONDS_OF_SILENCE = 30.0  # the same after one silence
_SUCCESS = range(200, 300)


class Manners:
    """What a session has found out of its server's manners, and what was known before."""

    def __init__(self, quirks: ServerQuirks) -> None:
        self._quirks = quirks
        self._born = time.monotonic()

    def withheld(self, command: str) -> Reply | None:
        """Return the answer to a command that is not sent, as sessions end at it; None: it may be sent."""
        until = self._quirks.withheld_until
        if not until or until.get(command, 0.0) <= time.monotonic():
            return None
        return Reply(502, (b"502 not sent: sessions end at " + command.encode("ascii"),))

    def answered(self, command: str) -> None:
        """Note an answer: whatever happens there later is an accident."""
        if command in _OPTIONAL:
            self._quirks.answered.add(command)

    def blame(self, head: Pending, *, is_silent: bool) -> None:
        """Note the command that a session ended at, the first one without an answer.

        One of which nobody ever saw an answer is withheld once a session that began after such an end has ended there,
        too: a restart ends many sessions at once. Silence after it was sent alone tells less, as it may be an outage.
        """
        command, quirks, now = head.command, self._quirks, time.monotonic()
        if command not in _OPTIONAL or command in quirks.answered:
            return
        if quirks.ended_at.setdefault(command, now) < self._born:
            quirks.withheld_until[command] = now + _SECONDS
        elif is_silent and head.place <= 1:
            quirks.withheld_until[command] = now + _SECONDS_OF_SILENCE

    def takes(self, command: str, code: int, is_silent: Callable[[], bool] | None) -> bool:
        """Is a code that is no usual one for this command the server's own way to say yes?

        Learnt where the command was alone under way (else `is_silent` is None), and nothing follows for a while.
        """
        own = (command, code)
        if own in self._quirks.own_codes:
            return True
        if command not in _HARMLESS or code not in _SUCCESS or is_silent is None or not is_silent():
            return False
        self._quirks.own_codes.add(own)
        return True
