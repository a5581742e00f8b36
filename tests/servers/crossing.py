"""A TCP proxy before all ports of a server: it counts what passes, and cuts everything when told.

A server gives a data connection's port alone (EPSV), so that it works for encrypted sessions, too: our end is another
address of this machine, with the same ports.

    with Crossing([server.port, *server.data_ports]) as way:
        way.cut_at = [10_000_000, 20_000_000]
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
from collections.abc import Callable, Iterable

from stack import PORTS

FAR = "127.0.0.2"  # our end

_PIECE_BYTES = 1 << 18


class Crossing:
    """Listens on `ports` of `host`, and passes everything on to the same ports of `target`.

    Each number in `cut_at` is a count of bytes, of both directions together, at which all connections are ended: what
    was counted arrives, as it does when a process is killed. With `on_cut` that is called instead. Those of
    `spared` ports go on, as when something on the way ends the data connections alone.
    """

    def __init__(self, ports: Iterable[int], host: str = FAR, target: str = "127.0.0.1") -> None:
        self.host, self.ports = host, list(ports)
        self.up_bytes = self.down_bytes = self.cuts = 0  # to the server, from it; under `_lock`
        self.cut_at: list[int] = []
        self.spared: set[int] = set()
        self.on_cut: Callable[[], object] | None = None
        self._target = target
        self._lock = threading.Lock()
        self._open: dict[socket.socket, int] = {}  # with the server's port; under `_lock`
        self._threads: list[threading.Thread] = []
        self._listeners = [socket.create_server((host, port)) for port in self.ports]
        for listener in self._listeners:
            self._spawn(self._accept, listener)

    @property
    def moved_bytes(self) -> int:
        """In both directions."""
        return self.up_bytes + self.down_bytes

    def _spawn(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, name="crossing", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        port = listener.getsockname()[1]
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((self._target, port), 5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._open |= {client: port, server: port}
            self._spawn(self._pass, client, server, True)
            self._spawn(self._pass, server, client, False)

    def _pass(self, origin: socket.socket, end: socket.socket, is_up: bool) -> None:
        try:
            while piece := origin.recv(_PIECE_BYTES):
                end.sendall(piece)
                self._count(len(piece), is_up=is_up)
            end.shutdown(socket.SHUT_WR)
        except OSError:
            for sock in (origin, end):
                _end(sock)

    def _count(self, count: int, *, is_up: bool) -> None:
        with self._lock:
            if is_up:
                self.up_bytes += count
            else:
                self.down_bytes += count
            if not self.cut_at or self.moved_bytes < self.cut_at[0]:
                return
            self.cut_at.pop(0)
            self.cuts += 1
        (self.on_cut or self.cut)()

    def cut(self) -> None:
        """End all connections but those of `spared` ports."""
        with self._lock:
            opened = [sock for sock, port in self._open.items() if port not in self.spared]
            for sock in opened:
                del self._open[sock]
        for sock in opened:
            _end(sock)

    def __enter__(self) -> Crossing:
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            opened, self._open = [*self._open], {}
        for sock in opened:
            _end(sock)
        for thread in self._threads:
            thread.join(5)


def block_of_ports(count: int = 12) -> list[int]:
    """Find ports in a row that nobody listens on, beyond those of `stack.free_port`."""
    while True:
        first = random.randrange(PORTS[-1].stop, 32768 - count)  # from there on come outgoing connections
        ports = list(range(first, first + count))
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for host, port in itertools.product(("127.0.0.1", FAR), ports):
                probes.enter_context(socket.create_server((host, port)))
            return ports


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # wakes whoever reads it
    sock.close()
