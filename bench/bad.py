"""FTP servers that are of no use, in one thread: silent, full at the door, full at the login; and a dead one's port.

Knows no product.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import stack

FULL = b"421 There are too many connected users, please try later.\r\n"
ANSWERS = {
    b"USER": b"331 Password required\r\n",
    b"PASS": b"530 Sorry, the maximum number of clients for this user are already connected.\r\n",
}
POLL_SECONDS = 0.2


class BadServers:
    """Listens where the calling thread is (its network namespace); `ports` by name."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.ports = {"DEAD": stack.free_port()}
        for name, greet in (("SILENT", self._stay_silent), ("FULL421", self._turn_away), ("FULL530", self._greet)):
            listener = socket.create_server(("0.0.0.0", 0), backlog=128)
            listener.setblocking(False)
            self.ports[name] = listener.getsockname()[1]
            self._selector.register(listener, selectors.EVENT_READ, greet)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="bad-servers", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close everything."""
        self._ending.set()
        self._thread.join(5)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]  # all are sockets
        self._selector.close()

    def _loop(self) -> None:
        while not self._ending.is_set():
            for key, _ in self._selector.select(POLL_SECONDS):
                handle: Callable[[socket.socket], None] = key.data
                with suppress(OSError):
                    handle(key.fileobj)  # type: ignore[arg-type]  # all are sockets

    def _stay_silent(self, listener: socket.socket) -> None:
        self._selector.register(listener.accept()[0], selectors.EVENT_READ, self._ignore)

    def _turn_away(self, listener: socket.socket) -> None:
        with listener.accept()[0] as client:
            client.sendall(FULL)

    def _greet(self, listener: socket.socket) -> None:
        client = listener.accept()[0]
        client.sendall(b"220 Ready\r\n")
        self._selector.register(client, selectors.EVENT_READ, self._answer)

    def _answer(self, client: socket.socket) -> None:
        line = self._read(client)
        if line:
            client.sendall(ANSWERS.get(line[:4].upper(), b"530 Please login.\r\n"))

    def _ignore(self, client: socket.socket) -> None:
        self._read(client)

    def _read(self, client: socket.socket) -> bytes:
        try:
            found = client.recv(4096)
        except OSError:
            found = b""
        if not found:
            self._selector.unregister(client)
            client.close()
        return found
