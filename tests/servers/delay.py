"""A TCP relay on loopback that delays what passes: a server behind it is far away, with its control connections.

Data connections go straight to the server, which names a port of its own. One thread, whatever the connections.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import socket
import threading
import time
from typing import Self

CHUNK_BYTES = 65536
LOOK_SECONDS = 0.1


class Far:
    """Listens on `port` of loopback and passes all to `target`, `rtt` seconds away; counts what it accepted."""

    host = "127.0.0.1"

    def __init__(self, target: int, rtt: float, username: str, password: str) -> None:
        self.username, self.password = username, password
        self.accepted = 0
        self._target, self._delay = target, rtt / 2
        self._listener = socket.create_server((self.host, 0))
        self.port = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._due: list[tuple[float, int, socket.socket, bytes]] = []  # to be sent; no bytes: the end
        self._numbers = itertools.count()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="far", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(5)
        for sock in [self._listener, *self._peers]:
            sock.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            left = self._due[0][0] - time.monotonic() if self._due else LOOK_SECONDS
            for key, _ in self._selector.select(max(0.0, min(left, LOOK_SECONDS))):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.fileobj)  # type: ignore[arg-type]
            while self._due and self._due[0][0] <= time.monotonic():
                _, _, sock, data = heapq.heappop(self._due)
                with contextlib.suppress(OSError):
                    sock.sendall(data) if data else sock.shutdown(socket.SHUT_WR)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        self.accepted += 1
        try:
            server = socket.create_connection((self.host, self._target), 5)
        except OSError:
            near.close()
            return
        for sock, peer in ((near, server), (server, near)):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[sock] = peer
            self._selector.register(sock, selectors.EVENT_READ)

    def _read(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(CHUNK_BYTES)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(sock)
        heapq.heappush(self._due, (time.monotonic() + self._delay, next(self._numbers), self._peers[sock], data))
