"""A TCP proxy before a broker that knows Kafka's frames: it loses a commit request, or only its reply.

Frames: KIP-4's protocol guide: four bytes of length, then of a request api key, api version (two bytes each) and
correlation id (four); of a reply the correlation id.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

END_TXN = 26
FIRST_FLEXIBLE_END_TXN = 3  # from this version on a tag section (one byte, zero) ends the request


class Cut(Enum):
    """What becomes of a commit request."""

    LOST = "the request never arrives, the connection is closed"
    ANSWER_LOST = "the broker commits and answers, the connection is closed before the answer is through"
    SILENT = "the request never arrives, the connection stays open and dumb"
    SILENT_AFTER = "the broker commits and answers, the connection stays open and dumb"
    AWAY = "the request never arrives, and for ten seconds nobody can connect"
    AWAY_AFTER = "the broker commits and answers, and for ten seconds nobody can connect"


DELIVERED = {Cut.ANSWER_LOST, Cut.SILENT_AFTER, Cut.AWAY_AFTER}
AWAY_SECONDS = 10.0


@dataclass
class _Link:
    client: socket.socket
    broker: socket.socket
    dumb: bool = False
    await_reply: int | None = None  # correlation id of a commit that is cut once it is answered
    cut: Cut | None = None

    def close(self) -> None:
        for sock in (self.client, self.broker):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class Proxy:
    """Listens on `port` and passes everything to `target`; cuts at every `every`-th commit, as `plan` says."""

    def __init__(self, port: int, target: int) -> None:
        self.plan: deque[Cut] = deque()
        self.every = 3
        self.done: list[Cut] = []
        self._commits = 0
        self._target = target
        self._lock = threading.Lock()  # guards plan, done, _commits, _links, _away_until
        self._links: list[_Link] = []
        self._away_until = 0.0
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        self._listener = socket.create_server(("127.0.0.1", port))
        self._spawn(self._accept, "proxy")

    def cut(self, cuts: Iterable[Cut]) -> None:
        """Plan what becomes of the next commits."""
        with self._lock:
            self.plan.extend(cuts)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._close_links()
        for thread in self._threads:
            thread.join(5)

    def _spawn(self, run: object, name: str, *arguments: object) -> None:
        thread = threading.Thread(target=run, name=name, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                away = time.monotonic() < self._away_until
            try:
                broker = None if away else socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                broker = None
            if broker is None:
                client.close()
                continue
            broker.settimeout(None)
            for sock in (client, broker):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, broker)
            with self._lock:
                self._links.append(link)
            self._spawn(self._pump, "proxy-requests", link, client, broker, self._request)
            self._spawn(self._pump, "proxy-replies", link, broker, client, self._reply)

    def _pump(self, link: _Link, origin: socket.socket, target: socket.socket, pass_on: object) -> None:
        try:
            while (frame := _frame(origin)) is not None:
                if not link.dumb and pass_on(link, frame):  # type: ignore[operator]
                    target.sendall(struct.pack(">i", len(frame)) + frame)
        except OSError:
            pass
        finally:
            link.close()

    def _request(self, link: _Link, frame: bytes) -> bool:
        key, version, correlation = struct.unpack(">hhi", frame[:8])
        if key != END_TXN or not frame[-1 if version < FIRST_FLEXIBLE_END_TXN else -2]:
            return True
        with self._lock:
            self._commits += 1
            if not self.plan or self._commits % self.every:
                return True
            cut = self.plan.popleft()
        if cut in DELIVERED:
            link.await_reply, link.cut = correlation, cut
            return True
        self._carry_out(link, cut)
        return False

    def _reply(self, link: _Link, frame: bytes) -> bool:
        if link.await_reply is None or struct.unpack(">i", frame[:4])[0] != link.await_reply:
            return True
        assert link.cut is not None
        self._carry_out(link, link.cut)
        return False

    def _carry_out(self, link: _Link, cut: Cut) -> None:
        with self._lock:
            self.done.append(cut)
        if cut in {Cut.SILENT, Cut.SILENT_AFTER}:
            link.dumb = True
        elif cut in {Cut.AWAY, Cut.AWAY_AFTER}:
            with self._lock:
                self._away_until = time.monotonic() + AWAY_SECONDS
            self._close_links()
        else:
            link.close()

    def _close_links(self) -> None:
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.close()


def _frame(sock: socket.socket) -> bytes | None:
    head = _exactly(sock, 4)
    return None if head is None else _exactly(sock, struct.unpack(">i", head)[0])


def _exactly(sock: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        data = sock.recv(min(count - len(parts), 1 << 20))
        if not data:
            return None
        parts += data
    return bytes(parts)
