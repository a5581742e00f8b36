"""An FTP server whose downloads are slow, so that a page can be watched while one runs.

python slow_ftpd.py ROOT PORT USER PASSWORD BYTES_PER_SECOND
"""

from __future__ import annotations

import sys
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # pyftpdlib stands on asyncore
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler, ThrottledDTPHandler
    from pyftpdlib.servers import FTPServer

root, port, user, password, rate = sys.argv[1:]
authorizer = DummyAuthorizer()
authorizer.add_user(user, password, root, perm="elradfmwMT")
ThrottledDTPHandler.read_limit = int(rate)  # of what is sent: what pyftpdlib reads from its disk
ThrottledDTPHandler.write_limit = int(rate)
FTPHandler.authorizer = authorizer
FTPHandler.dtp_handler = ThrottledDTPHandler
FTPServer(("127.0.0.1", int(port)), FTPHandler).serve_forever()
