"""asyncssh's SFTP server in a thread of this process, on a free port: a real file tree, and quirks on demand.

Also `Mute`, which ends each connection before its banner.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh import sftp
from asyncssh.packet import String, UInt32

SWAP_SECONDS = 0.005  # for which an answer waits for the next one, to go after it


@dataclass
class Quirks:
    """What this server does otherwise."""

    short_reads: int = 0  # bytes at most that a READ gives; 0: all
    swaps_answers: bool = False  # each second answer overtakes the one before
    hides: tuple[bytes, ...] = ()  # extensions, or all that begin so: neither announced nor known
    refusal: int = 4  # the code of a RENAME onto a file
    overwrites: bool = False  # RENAME replaces files
    takes_away: bool = False  # files that were written vanish as they are closed
    one_at_a_time: bool = False  # refuses an OPEN while another file is open
    # of "stat", "fstat", "setstat", "write", "close", "remove", and "rename NAME"
    refuses: set[str] = field(default_factory=set)
    lowest_handles: bool = False  # a handle is the lowest number that is free, as OpenSSH's are
    write_only: bool = False
    failing_writes: int = 0  # so many are refused, then no more
    write_seconds: float = 0.0  # that each WRITE takes
    asked: list[str] = field(default_factory=list)  # the requests that came, by name


class CodeError(asyncssh.SFTPError):
    """A status code that version 3 does not have, sent all the same."""

    def encode(self, version: int) -> bytes:
        return UInt32(self.code) + String(self.reason) + String("")


class Handler(sftp.SFTPServerHandler):
    """Speaks for a `Tree`, with its quirks."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.quirks: Quirks = self._server.quirks
        hidden = self.quirks.hides
        self._extensions = [entry for entry in self._extensions if not entry[0].startswith(hidden or (b"\0",))]
        self._packet_handlers = {
            name: handler
            for name, handler in self._packet_handlers.items()
            if not (isinstance(name, bytes) and name.startswith(hidden or (b"\0",)))
        }
        self._kept: list[tuple[Any, ...]] = []

    def _get_next_handle(self) -> bytes:
        if self.quirks.lowest_handles:
            self._next_handle = 0
        return super()._get_next_handle()

    async def _process_packet(self, kind: int, number: int, packet: Any) -> None:
        name = self._packet_handlers.get(kind)
        self.quirks.asked.append(name.__name__.removeprefix("_process_") if name else "extended")
        await super()._process_packet(kind, number, packet)

    def send_packet(self, *packet: Any) -> None:
        if not self.quirks.swaps_answers:
            super().send_packet(*packet)
        elif self._kept:
            super().send_packet(*packet)
            self._send_kept()
        else:
            self._kept.append(packet)
            asyncio.get_running_loop().call_later(SWAP_SECONDS, self._send_kept)

    def _send_kept(self) -> None:
        kept, self._kept = self._kept, []
        for packet in kept:
            if self._writer:
                super().send_packet(*packet)


sftp.SFTPServerHandler = Handler  # the one that the library makes for each session


class Tree(asyncssh.SFTPServer):
    """A folder as `/`."""

    def __init__(self, channel: Any, root: Path, quirks: Quirks) -> None:
        self.quirks = quirks
        self._open: dict[Any, bytes] = {}
        super().__init__(channel, chroot=str(root).encode())

    def close_all(self) -> None:
        """Close the files that a session left open which ended in the middle of something."""
        for file in self._open:
            file.close()

    def _refuse(self, what: str) -> None:
        if what in self.quirks.refuses:
            raise asyncssh.SFTPPermissionDenied(f"no {what} here")

    def open(self, path: bytes, flags: int, attributes: Any) -> Any:
        if self.quirks.one_at_a_time and self._open:
            raise asyncssh.SFTPPermissionDenied("there is a file transfer in progress")
        if self.quirks.write_only and not flags & asyncssh.FXF_WRITE:
            raise asyncssh.SFTPPermissionDenied("write only")
        file = super().open(path, flags, attributes)
        self._open[file] = path if flags & asyncssh.FXF_WRITE else b""
        return file

    def close(self, file: Any) -> Any:
        path = self._open.pop(file)
        result = super().close(file)
        if path and self.quirks.takes_away:
            self.remove(path)
        if path:
            self._refuse("close")
        return result

    def read(self, file: Any, offset: int, size: int) -> Any:
        return super().read(file, offset, min(size, self.quirks.short_reads or size))

    async def write(self, file: Any, offset: int, data: bytes) -> Any:
        self._refuse("write")
        if self.quirks.failing_writes:
            self.quirks.failing_writes -= 1
            raise asyncssh.SFTPFailure("not now")
        await asyncio.sleep(self.quirks.write_seconds)
        return super().write(file, offset, data)

    def stat(self, path: bytes) -> Any:
        self._refuse("stat")
        return super().stat(path)

    def lstat(self, path: bytes) -> Any:
        self._refuse("stat")
        return super().lstat(path)

    def fstat(self, file: Any) -> Any:
        self._refuse("fstat")
        return super().fstat(file)

    def setstat(self, path: bytes, attributes: Any) -> Any:
        self._refuse("setstat")
        return super().setstat(path, attributes)

    def remove(self, path: bytes) -> Any:
        self._refuse("remove")
        return super().remove(path)

    def rename(self, old: bytes, new: bytes) -> Any:
        self._refuse(f"rename {old.rpartition(b'/')[2].decode()}")
        if self.quirks.overwrites:
            return self.posix_rename(old, new)
        if Path(self.map_path(new).decode()).exists():
            raise CodeError(self.quirks.refusal, "it exists")
        return super().rename(old, new)


class _Login(asyncssh.SSHServer):
    def __init__(self, server: SFTPServer) -> None:
        self._server = server

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        self._server.passwords.append(password)
        return (username, password) == (self._server.username, self._server.password)


class SFTPServer:
    """A server that listens: `host`, `port`, `username`, `password`, `fingerprint`."""

    host = "127.0.0.1"

    def __init__(self, root: Path, **quirks: Any) -> None:
        self.quirks = Quirks(**quirks)
        self.username, self.password = "user", "Tree-7Secret"
        self.passwords: list[str] = []  # that were tried
        self._trees: list[Tree] = []
        key = asyncssh.generate_private_key("ssh-ed25519")
        self.fingerprint = key.get_fingerprint()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asyncssh-server", daemon=True)
        self._thread.start()
        self._acceptor: Any = self._run(self._listen(root, key))
        self.port: int = self._acceptor.get_port()

    async def _listen(self, root: Path, key: Any) -> Any:
        return await asyncssh.listen(
            self.host,
            0,
            server_factory=lambda: _Login(self),
            server_host_keys=[key],
            sftp_factory=lambda channel: self._new_tree(channel, root),
            kex_algs=["curve25519-sha256"],
            encryption_algs=["aes128-gcm@openssh.com"],
        )

    def _new_tree(self, channel: Any, root: Path) -> Tree:
        self._trees.append(Tree(channel, root, self.quirks))
        return self._trees[-1]

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _end(self) -> None:
        self._acceptor.close()
        await self._acceptor.wait_closed()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """End it, its sessions too."""
        with contextlib.suppress(TimeoutError):
            self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        for tree in self._trees:
            tree.close_all()


class Mute:
    """Accepts connections, sends `text`, and ends them."""

    host = "127.0.0.1"

    def __init__(self, text: bytes = b"") -> None:
        self._listener = socket.create_server((self.host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._text = text
        self._thread = threading.Thread(target=self._serve, name="mute-server", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                sock.sendall(self._text)

    def close(self) -> None:
        """Stop."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
