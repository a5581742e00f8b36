"""An FTP server with real files that goes wrong on purpose, in every way a plan tells it to.

    server = FaultyFTP(root, Plan({"RETR": ("truncate", "reset")}, chance=0.1, seed=7))
    server.happened     what went wrong, in order: (path or "", fault)
    server.strangers    connections to an address that only a followed PASV reply could lead to: must stay 0

Between two faults it is a plain server: it stores what it gets, as it comes, and renames over what is there.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servers.fake import HOST, FakeFTP, FakeSession

OTHER_HOST = "127.0.0.2"  # where a bounced data connection would go
GROWTH = b"growth!"
PIECE_BYTES = 4096
_RESET = struct.pack("ii", 1, 0)

# Of any command: what a broken server does instead of answering.
ANYWHERE = ("hang", "drop", "goodbye", "garbage", "endless", "dribbled")
FAULTS: dict[str, tuple[str, ...]] = {
    "welcome": ("hang", "slow", "busy", "garbage", "drop"),
    "PASS": ("refused", "busy", "hang"),
    "SIZE": (*ANYWHERE, "wrong_size"),
    "MDTM": ANYWHERE,
    "EPSV": ("hang", "drop", "closed_port", "nonsense", "unknown", "no_port"),
    "PASV": ("hang", "closed_port", "bounce"),
    "RETR": (*ANYWHERE, "truncate", "reset", "stall", "trickle", "more", "grow", "no_data", "denied", "vanish"),
    "STOR": (*ANYWHERE, "half", "reset", "stall", "full", "full_after", "no_data", "early", "failed"),
    "RNFR": ("drop", "denied"),
    "RNTO": ("drop", "denied", "done_and_gone"),
}


class Plan:
    """Which command goes wrong, and how: by a seeded chance, each fault at most `times` times."""

    def __init__(
        self, faults: Mapping[str, tuple[str, ...]], *, chance: float = 1.0, times: int | None = None, seed: int = 0
    ) -> None:
        self._faults = dict(faults)
        self._chance, self._left = chance, times
        self._random = random.Random(seed)
        self._lock = threading.Lock()  # guards all of the above: sessions ask side by side
        self.is_over = False

    @property
    def has_faults(self) -> bool:
        """Does it make anything go wrong?"""
        return bool(self._faults)

    @property
    def is_of_login(self) -> bool:
        """Is it the login that goes wrong?"""
        return not self._faults.keys().isdisjoint({"welcome", "USER", "PASS"})

    def fault(self, verb: str) -> str | None:
        """Return what goes wrong now, if anything does."""
        with self._lock:
            faults = self._faults.get(verb)
            if self.is_over or not faults or self._left == 0 or self._random.random() >= self._chance:
                return None
            if self._left is not None:
                self._left -= 1
            return self._random.choice(faults)


class FaultyFTP(FakeFTP):
    """The server: `root` is its `/`."""

    def __init__(self, root: Path, plan: Plan, **more: Any) -> None:
        self.root, self.plan = root, plan
        self.happened: list[tuple[str, str]] = []
        self.strangers = 0
        root.mkdir(parents=True, exist_ok=True)
        super().__init__(features=("EPSV", "MDTM", "MFMT", "SIZE", "UTF8"), **more)

    def on_disk(self, path: str) -> Path:
        """Return where a path lies."""
        return self.root / path.lstrip("/")

    def faults_of(self, *paths: str) -> set[str]:
        """Return what went wrong with these files, or with no file in particular."""
        return {fault for path, fault in list(self.happened) if path in {"", *paths}}


class FaultySession(FakeSession):
    """One control connection."""

    server: FaultyFTP

    def run(self) -> None:
        """Serve, if the welcome does not go wrong."""
        fault = self.server.plan.fault("welcome")
        with contextlib.suppress(OSError):
            if fault is not None:
                self._go_wrong(fault, "", "welcome")
            super().run()
            return
        self.drop()

    def serve(self, verb: str, argument: str) -> None:
        """Answer one command, or go wrong."""
        fault = self.server.plan.fault(verb)
        if fault is None:
            super().serve(verb, argument)
        else:
            self._go_wrong(fault, argument, verb)

    def _go_wrong(self, fault: str, argument: str, verb: str) -> None:
        self.server.happened.append((argument if argument.startswith("/") else "", f"{verb} {fault}"))
        answer = getattr(self, f"fault_{fault}")(argument)
        if answer is not None:
            self.reply(answer)

    # --- the plain server, on a disk ------------------------------------------------------------------------

    def _place(self, path: str) -> Path:
        return self.server.on_disk(path)

    def cwd(self, argument: str) -> str:
        self.folder = argument
        return "250 Ok." if self._place(argument).is_dir() else "550 No."

    def mkd(self, argument: str) -> str:
        try:
            self._place(argument).mkdir()
        except OSError:
            return "550 No."
        return "257 Made."

    def size(self, argument: str) -> str:
        place = self._place(argument)
        return f"213 {place.stat().st_size}" if place.is_file() else "550 No."

    def mdtm(self, argument: str) -> str:
        place = self._place(argument)
        if not place.is_file():
            return "550 No."
        return time.strftime("213 %Y%m%d%H%M%S", time.gmtime(place.stat().st_mtime))

    def mfmt(self, argument: str) -> str:
        stamp, _, name = argument.partition(" ")
        seconds = time.mktime(time.strptime(stamp, "%Y%m%d%H%M%S")) - time.timezone
        try:
            os.utime(self._place(name), (seconds, seconds))
        except OSError:
            return "550 No."
        return f"213 Modify={stamp}; {name}"

    def dele(self, argument: str) -> str:
        try:
            self._place(argument).unlink()
        except OSError:
            return "550 No."
        return "250 Gone."

    def rnfr(self, argument: str) -> str:
        self.from_ = argument if self._place(argument).is_file() else ""
        return "350 Go on." if self.from_ else "550 No."

    def rnto(self, argument: str) -> str:
        name, self.from_ = self.from_, ""
        if not name:
            return "503 RNFR first."
        try:
            self._place(name).replace(self._place(argument))
        except OSError:
            return "550 No."
        return "250 Renamed."

    def retr(self, argument: str) -> str:
        if not self._place(argument).is_file():
            return "550 No."
        self.reply("150 Here it comes.")
        self.send_data(self._place(argument).read_bytes())
        return "226 Done."

    def stor(self, argument: str) -> str:
        return self._store(argument)

    def _store(self, argument: str, limit: int = -1) -> str:
        """Store up to `limit` bytes as they come; what comes after them is thrown away."""
        try:
            file = self._place(argument).open("wb", buffering=0)
        except OSError:
            return "553 No."
        with file:
            self.reply("150 Go on.")
            try:
                with self.data() as sock:
                    while piece := sock.recv(PIECE_BYTES):
                        file.write(piece if limit < 0 else piece[: max(0, limit - file.tell())])
            except OSError:
                return "426 Broken off."
        return "226 Done."

    def nlst(self, argument: str) -> str:
        names = [path.name for path in self._place(getattr(self, "folder", "/")).iterdir()]
        self.reply("150 Listing.")
        self.send_data("".join(f"{name}\r\n" for name in sorted(names) if argument or name[0] != ".").encode())
        return "226 Done."

    # --- what goes wrong, in place of any answer -------------------------------------------------------------

    def fault_hang(self, _: str) -> None:
        """Say nothing more."""
        while self.sock.recv(65536):
            pass
        raise ConnectionAbortedError

    def fault_slow(self, _: str) -> None:
        time.sleep(0.3)

    def fault_drop(self, _: str) -> None:
        self.drop()
        raise ConnectionAbortedError

    def fault_goodbye(self, _: str) -> None:
        self.reply("421 Going down.")
        self.fault_drop(_)

    def fault_busy(self, _: str) -> None:
        self.reply("421 Too many users.")
        self.fault_drop(_)

    def fault_garbage(self, _: str) -> None:
        self.sock.sendall(b"\0\xff\xfe no reply\r\n" * 3)
        self.fault_hang(_)

    def fault_endless(self, _: str) -> None:
        for _number in range(2000):
            self.sock.sendall(b"226-and then\r\n" * 10)
        self.fault_hang(_)

    def fault_dribbled(self, _: str) -> None:
        for _number in range(200):
            self.sock.sendall(b"2")
            time.sleep(0.05)
            self.sock.sendall(b"26-\r\n")
        self.fault_hang(_)

    def fault_refused(self, _: str) -> str:
        return "530 Login incorrect."

    def fault_denied(self, _: str) -> str:
        self.from_ = ""
        return "550 No."

    # --- questions -------------------------------------------------------------------------------------------

    def fault_wrong_size(self, argument: str) -> str:
        answer = self.size(argument)
        return f"213 {int(answer[4:]) // 2 + 1}" if answer.startswith("213") else answer

    # --- data connections ------------------------------------------------------------------------------------

    def fault_closed_port(self, _: str) -> str:
        with socket.create_server((HOST, 0)) as taken:
            port = taken.getsockname()[1]
        return f"229 Come here (|||{port}|)"

    def fault_nonsense(self, _: str) -> str:
        return "229 Come here (|||here|)"

    def fault_unknown(self, _: str) -> str:
        return "500 What?"

    def fault_no_port(self, _: str) -> str:
        return "425 No port is free."

    def fault_bounce(self, _: str) -> str:
        """Send the client to another host, where somebody listens at the same port."""
        port = self.listen()
        trap = self.server.keep(socket.create_server((OTHER_HOST, port)))
        self.server._spawn(self._watch, trap)
        return f"227 Entering Passive Mode (127,0,0,2,{port >> 8},{port & 255})."

    def _watch(self, trap: socket.socket) -> None:
        trap.settimeout(2)
        with contextlib.suppress(OSError), trap:
            trap.accept()[0].close()
            self.server.strangers += 1

    def fault_no_data(self, _: str) -> str:
        if self.waiting is not None:
            self.waiting.close()
        return "425 Can't open data connection."

    # --- downloads -------------------------------------------------------------------------------------------

    def _start(self, argument: str) -> tuple[socket.socket, bytes] | None:
        if not self._place(argument).is_file():
            self.reply("550 No.")
            return None
        self.reply("150 Here it comes.")
        return self.data(), self._place(argument).read_bytes()

    def fault_truncate(self, argument: str) -> str | None:
        if (begun := self._start(argument)) is None:
            return None
        sock, content = begun
        with sock:
            sock.sendall(content[: len(content) // 2])
        return "226 Done."

    def fault_reset(self, argument: str) -> str | None:
        """Of either direction: the data connection is reset after some bytes."""
        if self.server.on_disk(argument).name.startswith("."):
            if not self._begin(argument):
                return None
            sock, content = self.data(), b""
        elif (begun := self._start(argument)) is not None:
            sock, content = begun
        else:
            return None
        sock.sendall(content[: len(content) // 2])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.close()
        return "426 Broken off."

    def fault_stall(self, argument: str) -> None:
        """Of either direction: nothing more moves."""
        if self.server.on_disk(argument).name.startswith("."):
            if self._begin(argument):
                with self.data():
                    self.fault_hang(argument)
        elif (begun := self._start(argument)) is not None:
            with begun[0] as sock:
                sock.sendall(begun[1][: len(begun[1]) // 2])
                self.fault_hang(argument)

    def fault_trickle(self, argument: str) -> None:
        if (begun := self._start(argument)) is not None:
            with begun[0] as sock:
                for number in range(100):
                    sock.sendall(begun[1][number : number + 1] or b"x")
                    time.sleep(0.05)
                self.fault_hang(argument)

    def fault_more(self, argument: str) -> str | None:
        if (begun := self._start(argument)) is None:
            return None
        with begun[0] as sock:
            sock.sendall(begun[1] + b"more than there is")
        return "226 Done."

    def fault_grow(self, argument: str) -> str:
        """Let the file grow, once, and send what was there."""
        place = self._place(argument)
        if place.is_file() and not (content := place.read_bytes()).endswith(GROWTH):
            self.reply("150 Here it comes.")
            with self.data() as sock:
                sock.sendall(content[: len(content) // 2])
                place.write_bytes(content + GROWTH)
                sock.sendall(content[len(content) // 2 :] + GROWTH)
            return "226 Done."
        return self.retr(argument)

    def fault_vanish(self, argument: str) -> None:
        """End everything after the last byte, without a word."""
        if (begun := self._start(argument)) is not None:
            with begun[0] as sock:
                sock.sendall(begun[1])
        self.fault_drop(argument)

    # --- uploads ---------------------------------------------------------------------------------------------

    def fault_half(self, argument: str) -> str:
        return self._store(argument, limit=100)

    def _begin(self, argument: str) -> bool:
        """Begin an upload with bytes that nobody sent; False when its folder is missing.

        As many as hardly any file has: who lies about the bytes and about their number alike is not found out by sizes.
        """
        if not self._place(argument).parent.is_dir():
            self.reply("553 No.")
            return False
        self._place(argument).write_bytes(b"x" * 7)
        self.reply("150 Go on.")
        return True

    def fault_full(self, argument: str) -> str | None:
        """Take some bytes, then no more."""
        if not self._begin(argument):
            return None
        with self.data() as sock:
            sock.recv(100)
        return "552 Disk full."

    def fault_full_after(self, argument: str) -> str:
        stored = self._store(argument)
        return "452 Disk full." if stored.startswith("226") else stored

    def fault_failed(self, argument: str) -> str:
        stored = self._store(argument)
        return "451 Local error." if stored.startswith("226") else stored

    def fault_early(self, argument: str) -> None:
        """Say that all is well before it is, and go."""
        if self._begin(argument):
            self.reply("226 Done.")
            self.data().close()
            self.fault_drop(argument)

    def fault_done_and_gone(self, argument: str) -> None:
        """Rename, and never say so."""
        self.rnto(argument)
        self.fault_drop(argument)


FaultyFTP.session_type = FaultySession
