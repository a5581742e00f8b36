"""The others: rclone, lftp, curl and a C program, each doing the same work as a process of its own.

Every one of them logs in anew for each round, inside the measured time; the C program says how long it took without.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ours import Run
from world import REPOSITORY, End, Files, Pair, World, compiled

FETCHED = REPOSITORY / "build" / "peers" / "root" / "usr" / "bin"


def fetch() -> None:
    """Fetch those that this machine lacks; what cannot be had is said on standard error."""
    subprocess.run([str(Path(__file__).with_name("fetch-peers.sh"))], check=True, timeout=300)


def found(name: str) -> str | None:
    """Return where a program is."""
    return shutil.which(name) or shutil.which(name, path=str(FETCHED))


def url(end: End) -> str:
    """Return a server's address with its account; the server lives for this run alone."""
    return f"ftp://{end.username}:{end.password}@{end.host}:{end.port}"


class Peer:
    """A program that moves files from one server to the other."""

    name: str
    settings = ""  # what of its settings a reader must know

    def __init__(self, world: World) -> None:
        self._world = world

    def move(self, pair: Pair, files: Files) -> Run:
        """Copy a folder; compared afterwards, outside the measured time."""
        out = self._world.new_out()
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        self._run(pair, files, out)
        seconds = time.monotonic() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self._world.check(files, out)
        return Run(len(files.names), len(files.names) * files.size_bytes, seconds, {"client": cpu})

    def _run(self, pair: Pair, files: Files, out: str) -> None:
        raise NotImplementedError

    def _do(self, command: Sequence[str], environment: Mapping[str, str] | None = None, given: str = "") -> str:
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "HOME": str(self._world.folder), **(environment or {})},
                input=given,
                capture_output=True,
                text=True,
                timeout=self._world.left(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            self._world.left()  # says so: the limit is over
            raise
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout


class Rclone(Peer):
    """`rclone copy` from one remote to the other."""

    name = "rclone"
    arguments = ("--transfers=8", "--checkers=8", "--no-check-dest", "--no-update-modtime")
    settings = "rclone copy " + " ".join(arguments)

    def __init__(self, world: World) -> None:
        super().__init__(world)
        # Here and not in a round: each takes a process, which would be counted as rclone's time and processor time.
        self._hidden = {end.password: obscured(end.password) for end in world.ends()}

    def _run(self, pair: Pair, files: Files, out: str) -> None:
        program = found(self.name) or self.name
        environment = {"RCLONE_CONFIG": "/dev/null"}
        for name, end in (("SOURCE", pair.source), ("TARGET", pair.target)):
            values = {"TYPE": "ftp", "HOST": end.host, "PORT": str(end.port), "USER": end.username}
            values["PASS"] = self._hidden[end.password]
            environment |= {f"RCLONE_CONFIG_{name}_{key}": value for key, value in values.items()}
        self._do([program, "copy", f"SOURCE:/{files.folder}", f"TARGET:/{out}", *self.arguments], environment)


def obscured(password: str) -> str:
    """Return a password as rclone wants to have it."""
    command = [found(Rclone.name) or Rclone.name, "obscure", "-"]
    return subprocess.run(
        command, input=password, capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()


class Lftp(Peer):
    """lftp's `mirror` from one URL to the other: its own relay."""

    name = "lftp"
    # FXP, where no byte passes the client, works here only because both servers have the same address: it is refused
    # between strangers.
    variables = ("ftp:use-fxp no", "ftp:sync-mode off", "ftp:use-mdtm no", "ftp:use-size no")
    arguments = "-P 8 --no-perms --no-umask"
    settings = f"lftp: mirror {arguments} URL URL; set " + ", ".join(variables)

    def _run(self, pair: Pair, files: Files, out: str) -> None:
        lines = [f"set {variable}" for variable in ("net:max-retries 2", "cmd:fail-exit yes", *self.variables)]
        lines.append(f"mirror {self.arguments} {url(pair.source)}/{files.folder} {url(pair.target)}/{out}")
        self._do([found(self.name) or self.name, "--norc"], given="\n".join(lines) + "\n")


class Curl(Peer):
    """`curl | curl`, one file after the other."""

    name = "curl"
    settings = "curl -sS ftp://.../file | curl -sS --ftp-create-dirs -T - ftp://.../file"

    def _run(self, pair: Pair, files: Files, out: str) -> None:
        program = found(self.name) or self.name
        for name in files.names:
            script = '"$0" -sS "$1" | "$0" -sS --ftp-create-dirs -T - "$2"'
            ends = [f"{url(pair.source)}/{files.folder}/{name}", f"{url(pair.target)}/{out}/{name}"]
            self._do(["bash", "-o", "pipefail", "-c", script, program, *ends])


class Ceiling(Peer):
    """`ceiling.c`: pure protocol work, in C."""

    name = "C"

    def __init__(self, world: World, threads: int) -> None:
        super().__init__(world)
        self.settings = f"C: ceiling.c, {threads} threads, timed without logging in"
        self._threads = threads
        self._program = compiled("ceiling.c", world.folder)
        self._seconds = 0.0

    def move(self, pair: Pair, files: Files) -> Run:
        """Copy a folder; the time is what the program says."""
        run = super().move(pair, files)
        return Run(run.files, run.size_bytes, self._seconds, run.cpu)

    def _run(self, pair: Pair, files: Files, out: str) -> None:
        environment = {
            name: f"{end.host} {end.port} {end.username} {end.password}"
            for name, end in (("SOURCE", pair.source), ("TARGET", pair.target))
        }
        names = "".join(f"{name}\n" for name in files.names)
        command = [str(self._program), f"/{files.folder}", f"/{out}", str(self._threads)]
        self._seconds = float(self._do(command, environment, names))
