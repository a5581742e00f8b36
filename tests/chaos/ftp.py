"""An FTP server in the test's own process that remembers what it was asked, and holds transfers back on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servers.pyftpd import DeafHandler, PyFTPD, StayingFS

FIRST_BYTES = 32 * 1024  # what comes of a held file before the gate


@dataclass(frozen=True)
class Command:
    """One command that the server got: `at` (monotonic), `path` on its disk, `origin` of a rename."""

    at: float
    verb: str
    path: str
    origin: str = ""


@dataclass
class Gate:
    """Downloads of `held` files stop after their first bytes until the gate is opened."""

    held: set[str] = field(default_factory=set)
    opened: threading.Event = field(default_factory=threading.Event)
    waiting: int = 0  # approximate: how many downloads have met the closed gate

    def hold(self, paths: Iterable[Path]) -> None:
        """Hold downloads of these files from now on."""
        self.held = {str(path) for path in paths}
        self.opened.clear()

    def open(self) -> None:
        """Let everything pass."""
        self.opened.set()


class _Held:
    """A file whose rest comes when the gate opens."""

    def __init__(self, file: Any, gate: Gate) -> None:
        self._file, self._gate = file, gate
        self._is_first = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        if self._is_first:
            self._is_first = False
            data: bytes = self._file.read(FIRST_BYTES)
            return data
        if not self._gate.opened.is_set():
            self._gate.waiting += 1
            self._gate.opened.wait(120)
        return bytes(self._file.read(size))


class _GatedFS(StayingFS):
    def open(self, filename: str, mode: str) -> Any:
        file = super().open(filename, mode)
        gate: Gate = self.cmd_channel.gate
        return _Held(file, gate) if "r" in mode and filename in gate.held else file


class _Recording(DeafHandler):
    commands: list[Command]
    gate: Gate

    def _note(self, verb: str, path: str, origin: str = "") -> None:
        self.commands.append(Command(time.monotonic(), verb, path, origin))

    def ftp_RETR(self, file: str) -> Any:  # noqa: N802 - pyftpdlib's name
        self._note("RETR", file)
        return super().ftp_RETR(file)

    def ftp_STOR(self, file: str, mode: str = "w") -> Any:  # noqa: N802 - pyftpdlib's name
        self._note("STOR", file)
        return super().ftp_STOR(file, mode)

    def ftp_RNTO(self, path: str) -> Any:  # noqa: N802 - pyftpdlib's name
        self._note("RNTO", path, self._rnfr or "")
        return super().ftp_RNTO(path)


class Server(PyFTPD):
    """`commands`: what it was asked, in order; `gate`: what it holds back."""

    def __init__(self, root: Path) -> None:
        self.commands: list[Command] = []
        self.gate = Gate()
        super().__init__(root, _Recording, commands=self.commands, gate=self.gate, abstracted_fs=_GatedFS)

    def asked(self, verb: str, since: float = 0.0) -> list[str]:
        """Return the paths it was asked for with a verb, since a moment (monotonic)."""
        return [command.path for command in list(self.commands) if command.verb == verb and command.at >= since]

    def close(self) -> None:
        """Let everything pass, then stop."""
        self.gate.open()
        super().close()
