"""A small FTP server with files in memory whose every answer a test can bend, and which writes down what it was sent.

    server = FakeFTP(files={"/a": b"..."}, answers={"EPSV": "500 no", "SIZE": lambda session, argument: None})

An answer is a text, sent as it is; a callable, whose text is sent (None: nothing is sent, it has seen to all itself);
or SILENCE. Commands without one behave as a plain server would.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

SILENCE = object()
HOST = "127.0.0.1"
_ABOUT_PATHS = {
    "SIZE",
    "RETR",
    "STOR",
    "APPE",
    "DELE",
    "RNFR",
    "RNTO",
    "CWD",
    "MKD",
    "RMD",
}


class FakeFTP:
    """The server. `writes` holds, per write of a client, the verbs in it; `commands` all lines."""

    host = HOST
    username = "ftp-user"
    password = "pw-fake"
    session_type: type[FakeSession]

    def __init__(
        self,
        files: Mapping[str, bytes] | None = None,
        answers: Mapping[str, Any] | None = None,
        features: tuple[str, ...] = ("EPSV", "MDTM", "SIZE", "UTF8"),
        welcome: str | object = "220 Fake.",
        lingers: float = 0.0,
    ) -> None:
        self.files = dict(files or {})
        self.folders = {"/"} | {path[:cut] for path in self.files for cut in range(1, len(path)) if path[cut] == "/"}
        self.answers = dict(answers or {})
        self.features = features
        self.welcome = welcome
        self.lingers = lingers  # seconds before the last word on a transfer, at most: a command ends the wait
        self.overtaken = 0  # how often one came
        self.times: dict[str, str] = {}
        self.commands: list[str] = []
        self.writes: list[list[str]] = []
        self.sessions = 0
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._spawn(self._accept)

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name=f"fake-ftp-{self.port}")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.sessions += 1
            self.keep(sock)
            self._spawn(self.session_type(self, sock).run)

    def keep(self, sock: socket.socket) -> socket.socket:
        """Note a socket that `close` must close."""
        sock.settimeout(20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets.add(sock)
        return sock

    def controls(self) -> list[socket.socket]:
        """Return the control connections that are open."""
        peers = [sock for sock in self._sockets if sock.fileno() >= 0]
        return [sock for sock in peers if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)]

    def say(self, words: bytes) -> None:
        """Say something unasked, in every session."""
        for sock in self.controls():
            sock.sendall(words)

    def hang_up(self) -> None:
        """End every session, as a restart does."""
        for sock in self.controls():
            sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close every socket, wait for every thread."""
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)
        for sock in self._sockets:
            sock.close()

    def __enter__(self) -> FakeFTP:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FakeSession:
    """One control connection."""

    def __init__(self, server: FakeFTP, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.waiting: socket.socket | None = None  # listening, for a passive data connection
        self.active: tuple[str, int] | None = None
        self.folder = "/"
        self.from_ = ""
        self.write: list[str] = []  # the verbs that came together with the one that is served

    def reply(self, text: str) -> None:
        """Send a reply, of one or more lines."""
        self.sock.sendall(text.encode("utf-8", "surrogateescape") + b"\r\n")

    def run(self) -> None:
        """Serve until the client leaves."""
        with contextlib.suppress(OSError):
            if self.server.welcome is not SILENCE:
                self.reply(str(self.server.welcome))
            rest = b""
            while chunk := self.sock.recv(65536):
                lines = (rest + chunk).split(b"\r\n")
                rest = lines.pop()
                texts = [line.decode("utf-8", "surrogateescape") for line in lines]
                self.write = [text.partition(" ")[0] for text in texts]
                self.server.writes.append(self.write)
                for text in texts:
                    self.server.commands.append(text)
                    self.serve(*text.partition(" ")[::2])
        self.drop()

    def drop(self) -> None:
        """End the session."""
        for sock in (self.sock, self.waiting):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def serve(self, verb: str, argument: str) -> None:
        """Answer one command; a name without a folder is one of the folder that was entered."""
        if verb in _ABOUT_PATHS and argument and not argument.startswith("/"):
            argument = f"{self.folder.rstrip('/')}/{argument}"
        if verb == "CWD" and argument in self.server.folders:
            self.folder = argument
        answer = self.server.answers.get(verb, getattr(self, verb.lower(), "500 Unknown command."))
        if answer is SILENCE:
            return
        if callable(answer):
            answer = answer(self, argument) if verb in self.server.answers else answer(argument)
        if answer is not None:
            if verb in {"RETR", "STOR"} and self.server.lingers:
                self.server.overtaken += bool(select.select([self.sock], [], [], self.server.lingers)[0])
            self.reply(answer)

    # --- the plain server -----------------------------------------------------------------------------------

    def user(self, _: str) -> str:
        return "331 Password?"

    def pass_(self, argument: str) -> str:
        return "230 In." if argument == self.server.password else "530 Login incorrect."

    def feat(self, _: str) -> str:
        return "211-Features:\r\n" + "".join(f" {name}\r\n" for name in self.server.features) + "211 End"

    def opts(self, _: str) -> str:
        return "200 Ok."

    def type(self, _: str) -> str:
        return "200 Ok."

    def pwd(self, _: str) -> str:
        return '257 "/" is here.'

    def noop(self, _: str) -> str:
        return "200 Ok."

    def quit(self, _: str) -> str:
        return "221 Bye."

    def cwd(self, argument: str) -> str:
        return "250 Ok." if argument in self.server.folders else "550 No."

    def mkd(self, argument: str) -> str:
        above = argument.rpartition("/")[0] or "/"
        if argument in self.server.folders or argument in self.server.files or above not in self.server.folders:
            return "550 No."
        self.server.folders.add(argument)
        return "257 Made."

    def rmd(self, argument: str) -> str:
        """Remove a folder."""
        if argument not in self.server.folders:
            return "550 No."
        self.server.folders.remove(argument)
        return "250 Gone."

    def size(self, argument: str) -> str:
        """Tell a file's size."""
        content = self.server.files.get(argument)
        return "550 No." if content is None else f"213 {len(content)}"

    def mdtm(self, argument: str) -> str:
        stamp, _, name = argument.partition(" ")
        if "MDTM-SET" in self.server.features and stamp.isdigit() and name in self.server.files:
            self.server.times[name] = stamp
            return "213 File modification time set."
        if argument not in self.server.files:
            return "550 No."
        return f"213 {self.server.times.get(argument, '20260102030405')}"

    def mfmt(self, argument: str) -> str:
        stamp, _, name = argument.partition(" ")
        if "MFMT" not in self.server.features:
            return "500 Unknown command."
        if name not in self.server.files:
            return "550 No."
        self.server.times[name] = stamp
        return f"213 Modify={stamp}; {name}"

    def dele(self, argument: str) -> str:
        return "550 No." if self.server.files.pop(argument, None) is None else "250 Gone."

    def rnfr(self, argument: str) -> str:
        self.from_ = argument if argument in self.server.files or argument in self.server.folders else ""
        return "350 Go on." if self.from_ else "550 No."

    def rnto(self, argument: str) -> str:
        name, self.from_ = self.from_, ""
        if not name:
            return "503 RNFR first."
        if (argument.rpartition("/")[0] or "/") not in self.server.folders or argument in self.server.folders:
            return "550 No."
        files, folders = self.server.files, self.server.folders
        for path in [path for path in files if path == name or path.startswith(f"{name}/")]:
            files[argument + path[len(name) :]] = files.pop(path)
        for path in [path for path in folders if path == name or path.startswith(f"{name}/")]:
            folders.remove(path)
            folders.add(argument + path[len(name) :])
        if name in self.server.times:
            self.server.times[argument] = self.server.times.pop(name)
        return "250 Renamed."

    def listen(self) -> int:
        """Open a port for a data connection."""
        if self.waiting is not None:
            self.waiting.close()
        self.waiting = self.server.keep(socket.create_server((HOST, 0)))
        return int(self.waiting.getsockname()[1])

    def epsv(self, _: str) -> str:
        return f"229 Entering Extended Passive Mode (|||{self.listen()}|)"

    def pasv(self, _: str) -> str:
        port = self.listen()
        return f"227 Entering Passive Mode (127,0,0,1,{port >> 8},{port & 255})."

    def port(self, argument: str) -> str:
        fields = argument.split(",")
        self.active = (".".join(fields[:4]), int(fields[4]) * 256 + int(fields[5]))
        return "200 Ok."

    def data(self) -> socket.socket:
        """Return the agreed data connection."""
        if self.active is not None:
            sock = socket.create_connection(self.active, 10)
            self.active = None
        else:
            assert self.waiting is not None
            sock, _ = self.waiting.accept()
            self.waiting.close()
        return self.server.keep(sock)

    def send_data(self, content: bytes) -> None:
        """Send a file's bytes and the end of file."""
        with self.data() as sock:
            sock.sendall(content)

    def receive_data(self) -> bytes:
        """Receive up to the end of file."""
        received = b""
        with self.data() as sock:
            while piece := sock.recv(65536):
                received += piece
        return received

    def retr(self, argument: str) -> str:
        content = self.server.files.get(argument)
        if content is None:
            return "550 No."
        self.reply("150 Here it comes.")
        self.send_data(content)
        return "226 Done."

    def stor(self, argument: str) -> str:
        if (argument.rpartition("/")[0] or "/") not in self.server.folders or argument in self.server.folders:
            return "553 No."
        self.reply("150 Go on.")
        try:
            self.server.files[argument] = self.receive_data()
        except OSError:
            self.server.files[argument] = b"?"
            return "426 Broken off."
        return "226 Done."

    def nlst(self, argument: str) -> str:
        folder = next((line[4:] for line in reversed(self.server.commands) if line.startswith("CWD ")), "/")
        start = folder.rstrip("/") + "/"
        names = {path[len(start) :].partition("/")[0] for path in self.server.files if path.startswith(start)}
        names |= {path[len(start) :].partition("/")[0] for path in self.server.folders if path.startswith(start)}
        names.discard("")
        if argument != "-a":
            names = {name for name in names if not name.startswith(".")}
        self.reply("150 Listing.")
        self.send_data("".join(f"{name}\r\n" for name in sorted(names)).encode("utf-8", "surrogateescape"))
        return "226 Done."


FakeFTP.session_type = FakeSession
setattr(FakeSession, "pass", FakeSession.pass_)  # a method cannot be written under a word of Python


def wait_for(happened: Callable[[], object], limit: float = 5.0) -> None:
    """Wait until something is so; fail when it takes longer than `limit` seconds."""
    deadline = time.monotonic() + limit
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
