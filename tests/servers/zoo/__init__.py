"""The zoo: FTP servers that other people wrote, in the settings that their users have.

`KINDS` holds one entry for each server and setting; `Kind.make(folder)` gives a server to start. Where each comes from
is told by tests/fetch-zoo.sh, which brings them into build/zoo. Each listens on loopback alone, works in a folder of
its own, and ends with its test.
"""

from servers.zoo.kinds import KINDS, QUICK, Kind
from servers.zoo.server import Guest, Resident

__all__ = ["KINDS", "QUICK", "Guest", "Kind", "Resident"]
