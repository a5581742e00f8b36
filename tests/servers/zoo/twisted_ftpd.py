"""Twisted's FTP server with one account: `twisted_ftpd.py PORT ROOT USER PASSWORD`. Its own command has no such."""

from __future__ import annotations

import sys

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.internet import reactor
from twisted.protocols.ftp import FTPFactory, FTPRealm
from twisted.python.filepath import FilePath

PORT, ROOT, USER, PASSWORD = sys.argv[1:]


class Realm(FTPRealm):
    """One home for everybody."""

    def getHomeDirectory(self, avatarId: str) -> FilePath[str]:  # noqa: N802, N803 - Twisted's names
        """Return it."""
        return FilePath(ROOT)


accounts = InMemoryUsernamePasswordDatabaseDontUse()
accounts.addUser(USER, PASSWORD)
reactor.listenTCP(int(PORT), FTPFactory(Portal(Realm(ROOT), [accounts])), interface="127.0.0.1")
reactor.run()
