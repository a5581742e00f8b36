"""A small FTP server in a process of its own, for the demonstration and the tests; not for production.

It prints one line with its port once it listens and ends on SIGTERM or SIGINT. Its accounts come in the
environment (`FTP_SERVER_ACCOUNTS`, a JSON object of user name to password), so that no password is in the
process list.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

EVERY_RIGHT = "elradfmwMT"  # pyftpdlib's letters: list, read, write, append, delete, rename, make folders, set times

LAST_PORT = 65535


class Server(FTPServer):
    """Counts sessions against the limit; the library's own count includes listening and data sockets."""

    def _accept_new_cons(self) -> bool:
        sessions = [one for one in self.ioloop.socket_map.values() if isinstance(one, FTPHandler)]
        return len(sessions) <= self.max_cons  # the one that asks is counted already


def accounts_of(text: str) -> dict[str, str]:
    """Return the accounts, user name to password; none where the text is not that."""
    try:
        read = json.loads(text)
    except ValueError:
        return {}
    fits = isinstance(read, dict) and all(name and isinstance(password, str) for name, password in read.items())
    return read if fits else {}


def main() -> int:
    """Serve one folder until told to stop."""
    parser = argparse.ArgumentParser(description="A small FTP server on the loopback address.")
    parser.add_argument("--root", required=True, type=Path, help="folder that every account sees as /")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--max-connections", type=int, default=512)
    options = parser.parse_args()
    if not options.root.is_dir():
        parser.error(f"--root {options.root}: no such folder")
    if not 0 <= options.port <= LAST_PORT:
        parser.error(f"--port {options.port}: not from 0 to {LAST_PORT}")
    if options.max_connections < 1:
        parser.error(f"--max-connections {options.max_connections}: not 1 or more")
    accounts = accounts_of(os.environ.get("FTP_SERVER_ACCOUNTS", ""))
    if not accounts:
        parser.error("""FTP_SERVER_ACCOUNTS in the environment must be accounts as JSON: '{"user": "password"}'""")
    authorizer = DummyAuthorizer()
    for name, password in accounts.items():
        authorizer.add_user(name, password, str(options.root), perm=EVERY_RIGHT)

    class Handler(FTPHandler):
        """This server's own settings; the library keeps them on the class."""

    Handler.authorizer = authorizer
    Handler.banner = "ready"
    Handler.auth_failed_timeout = 0.2
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)

    try:
        server = Server(("127.0.0.1", options.port), Handler)
    except OSError as error:
        print(f"ftp_server: port {options.port}: {error}", file=sys.stderr)
        return 1
    server.max_cons = options.max_connections

    def stop(_number: int, _frame: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(server.socket.getsockname()[1], flush=True)
    try:
        server.serve_forever(handle_exit=False)
    finally:
        server.close_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
