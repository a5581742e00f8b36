"""The zoo: FTP servers that other people wrote, in the settings that their users have.

`KINDS` holds one entry for each server and setting; `Kind.make(folder)` gives a server to start. Where each comes from
is told by tests/fetch-zoo.sh, which brings them into build/zoo. Each listens on loopback alone, works in a folder of
its own, and ends with its test.
"""

from servers.zoo.kinds import KINDS, QUICK, Kind, Server
from servers.zoo.known import reason, unfit
from servers.zoo.server import place

__all__ = ["KINDS", "QUICK", "Kind", "Server", "place", "reason", "unfit"]
