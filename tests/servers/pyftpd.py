"""pyftpdlib in a thread of this process, on a free port: a real file tree, and quirks on demand."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    # pyftpdlib stands on asyncore, which Python 3.11 deprecates at import (3.12: the package pyasyncore)
    warnings.simplefilter("ignore", DeprecationWarning)
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.filesystems import AbstractedFS
    from pyftpdlib.handlers import FTPHandler, TLS_DTPHandler, TLS_FTPHandler
    from pyftpdlib.ioloop import IOLoop
    from pyftpdlib.servers import ThreadedFTPServer

from servers.certificates import Certificate

ALL_RIGHTS = "elradfmwMT"


class StayingFS(AbstractedFS):
    """Enters folders without taking this whole process there; knows the files it opened."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.opened: list[Any] = []

    def open(self, filename: str, mode: str) -> Any:
        self.opened = [file for file in self.opened if not file.closed]
        self.opened.append(self.really_open(filename, mode))
        return self.opened[-1]

    def really_open(self, filename: str, mode: str) -> Any:
        return super().open(filename, mode)

    def chdir(self, path: str) -> None:
        with os.scandir(path):  # raises what os.chdir would
            self.cwd = self.fs2ftp(path)


class UnbufferedFS(StayingFS):
    """Writes what it gets at once: 2.2.0 gives a full disk no reply at all when it shows only as the file is closed."""

    def really_open(self, filename: str, mode: str) -> Any:
        return Path(filename).open(mode, buffering=0)


class Server(ThreadedFTPServer):
    """One loop per session: in a shared one of 2.2.0 a PORT may stay unanswered when descriptors are reused."""

    poll_timeout = 0.02

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._exit, self._lock = threading.Event(), threading.Lock()  # the class's own are shared by all servers
        super().__init__(*arguments, **named)


class DeafHandler(FTPHandler):
    """Once closed, hears no more of the commands that came in one write, and leaves no file open.

    2.2.0 forgets the file of a transfer whose 1xx reply finds the client gone.
    """

    def found_terminator(self) -> None:
        if not self._closed:
            super().found_terminator()

    def close(self) -> None:
        opened = self.fs.opened if self.fs is not None else ()
        super().close()
        for file in opened:
            file.close()


class TLSData(TLS_DTPHandler):
    """Waits for its command.

    2.2.0 takes a data connection for lost that is readable before it has heard of the transfer: after the handshake it
    is, and a proxy may be slow to pass the command on.
    """

    def readable(self) -> bool:
        return self._ssl_accepting or self._ssl_want_read or self.receive


class TLSHandler(DeafHandler, TLS_FTPHandler):
    """The same, encrypted."""

    dtp_handler = TLSData


def under_tls(certificate: Certificate) -> dict[str, Any]:
    """Return what makes a server one that insists on TLS."""
    return {
        "handler": TLSHandler,
        "certfile": str(certificate.pem),
        "tls_control_required": True,
        "tls_data_required": True,
    }


class NoReplaceHandler(DeafHandler):
    """Refuses RNTO onto a file that exists, as some Windows servers do."""

    def ftp_RNTO(self, path: str) -> Any:  # noqa: N802 - pyftpdlib's name
        if Path(path).exists():
            self._rnfr = None
            return self.respond("550 File exists already.")
        return super().ftp_RNTO(path)


class PyFTPD:
    """One server: `host`, `port`, `root`, `username`, `password`."""

    host = "127.0.0.1"
    username = "ftp-user"
    password = "pw-%한글"

    def __init__(
        self,
        root: Path,
        handler: type[FTPHandler] = DeafHandler,
        rights: str = ALL_RIGHTS,
        encoding: str = "utf-8",
        **attributes: Any,
    ) -> None:
        logger = logging.getLogger("pyftpdlib")
        logger.handlers = [logging.NullHandler()]  # its own set-up would print every session to stderr
        logger.propagate = False
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        authorizer = DummyAuthorizer()
        authorizer.add_user(self.username, self.password, str(root), perm=rights)
        self._loop = IOLoop()
        quirks = {"authorizer": authorizer, "encoding": encoding, "use_sendfile": False, "abstracted_fs": StayingFS}
        self._server = Server((self.host, 0), type("Handler", (handler,), quirks | attributes), ioloop=self._loop)
        self.port: int = self._server.address[1]
        self.authorizer = authorizer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pyftpd-{self.port}")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._loop.loop(timeout=0.01, blocking=False)
        self._server.close_all()

    def close(self) -> None:
        """Stop and close every socket."""
        self._stop.set()
        self._thread.join()
