"""A TCP proxy before any server: it cuts or stalls a connection once so many bytes have passed.

with Passing(server.port) as way:
    way.after = 10_000; way.fault = "cut"
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading


class Passing:
    """Listens on `port` and passes everything on to a port of this machine.

    `fault`: what happens to a connection after `after` bytes in both directions: "cut" (both ends are reset), "end"
    (both are told the end), "stall" (nothing passes any more); empty: nothing. Set between connections.
    """

    host = "127.0.0.1"

    def __init__(self, target: int) -> None:
        self.fault, self.after = "", 0
        self.happened = 0
        self._target = target
        self._is_closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((self.host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._spawn(self._accept)

    def _spawn(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, name=f"passing-{self.port}")  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._spawn(self._pass, client)

    def _pass(self, client: socket.socket) -> None:
        with client, socket.create_connection((self.host, self._target)) as server, selectors.DefaultSelector() as both:
            both.register(client, selectors.EVENT_READ, server)
            both.register(server, selectors.EVENT_READ, client)
            fault, left = self.fault, self.after
            while both.get_map() and not self._is_closed.is_set():
                for key, _ in both.select(0.05):
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    limit = min(65536, left) if fault else 65536
                    try:
                        piece = source.recv(limit) if limit else b""
                        key.data.sendall(piece)
                    except OSError:
                        return
                    left -= len(piece)
                    if fault and left <= 0:
                        self.happened += 1
                        self._go_wrong(fault, client, server)
                        return
                    if not piece:
                        both.unregister(source)
                        with contextlib.suppress(OSError):
                            key.data.shutdown(socket.SHUT_WR)

    def _go_wrong(self, fault: str, *ends: socket.socket) -> None:
        if fault == "stall":
            self._is_closed.wait()
        elif fault == "cut":
            for end in ends:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def __enter__(self) -> Passing:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)
