"""What all comparisons run in: a broker, two FTP servers, and links with latency to the same two folders.

The process moves into a network namespace of its own; `link.c` makes a second one, the far end, and the links between
them. On both ends stand vsftpds for the same two folders: the near ones without latency, on loopback, the far ones
behind every link. Everything vanishes with the process. Knows no contender.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "src")]

import stack  # noqa: E402 - the servers of the tests, which are no package

KB, MB, MIB = 1000, 1_000_000, 1 << 20
CLONE_NEWNET, PR_SET_PDEATHSIG = 0x40000000, 1
START_SECONDS = 60.0
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")  # of the namespace of who opens it
LOSS_BASED = ("cubic", "reno")  # what the servers of the field have; the same as long as nothing is lost
EVERYWHERE = "0.0.0.0"
_LIBC = ctypes.CDLL(None, use_errno=True)


class OutOfTimeError(Exception):
    """Raised when the time limit of the whole run is over."""


@dataclass(frozen=True)
class End:
    """A server as a client reaches it."""

    host: str
    port: int
    username: str
    password: str


@dataclass(frozen=True)
class Pair:
    """Both servers as reached over one link."""

    rtt_ms: int
    source: End
    target: End


@dataclass(frozen=True)
class Files:
    """Files of the source, in a folder with nothing else in it; or in folders of that, which are in their names."""

    folder: str
    names: tuple[str, ...]
    size_bytes: int  # of each


class World:
    """Folders, servers, broker, links, and when to give up."""

    def __init__(self, folder: Path, deadline: float) -> None:
        self.folder = folder
        self.deadline = deadline
        self.source_root, self.target_root = (folder / name / "root" for name in ("source", "target"))
        self.broker = stack.Broker(folder / "broker")
        self.pairs: dict[int, Pair] = {}
        self.servers: list[stack.Vsftpd] = []
        self.was_cut_short = False  # somebody was told that no time is left
        self._far: int | None = None  # process that holds the far namespace
        self._random = random.Random(1)
        self._outs = 0

    def left(self) -> float:
        """Return the seconds that are left. Raises OutOfTimeError when there are none."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            self.was_cut_short = True
            raise OutOfTimeError
        return seconds

    def ends(self) -> list[End]:
        """Return every server over every link."""
        return [end for pair in self.pairs.values() for end in (pair.source, pair.target)]

    @contextlib.contextmanager
    def at_far_end(self) -> Iterator[None]:
        """Be in the far namespace for a while, in this thread: what is started or bound now is there."""
        with Path("/proc/self/ns/net").open() as home, Path(f"/proc/{self._far}/ns/net").open() as far:
            _enter(far.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    @contextlib.contextmanager
    def other_pair(self, rtt_ms: int) -> Iterator[Pair]:
        """Have two more servers at the far end, for the same two folders: to a client they are servers of their own."""
        pair = self.pairs[rtt_ms]
        with contextlib.ExitStack() as ending:
            with self.at_far_end():
                servers = [_serve(self, name, EVERYWHERE, ending, "other") for name in ("source", "target")]
            ends = [_end(server, like.host) for server, like in zip(servers, (pair.source, pair.target), strict=True)]
            yield Pair(rtt_ms, *ends)

    def files(self, folder: str, count: int, size_bytes: int, *, folders: int = 0, sparse: bool = False) -> Files:
        """Write files for the source; with `folders`, in so many folders of that one."""
        place = self.source_root / folder
        place.mkdir(parents=True)
        block = self._random.randbytes(min(size_bytes, MIB))
        names = tuple(
            f"{number * folders // count:02d}/{number:06d}.bin" if folders else f"{number:06d}.bin"
            for number in range(count)
        )
        for name in names:
            (place / name).parent.mkdir(exist_ok=True)
            with (place / name).open("wb") as file:
                if sparse:
                    file.truncate(size_bytes)
                elif size_bytes <= len(block):  # each its own content
                    file.write(name.encode()[-size_bytes:] + block[: size_bytes - len(name)])
                else:
                    for _ in range(size_bytes // len(block)):
                        file.write(block)
        return Files(folder, names, size_bytes)

    def new_out(self) -> str:
        """Return a name for a folder of the destination that was not there yet."""
        self._outs += 1
        return f"out-{self._outs:04d}"

    def check(self, files: Files, out: str, count: int | None = None) -> None:
        """Compare what arrived byte for byte with its source, and remove it. Raises RuntimeError."""
        arrived = self.target_root / out
        names = files.names[:count]
        found = sorted(str(path.relative_to(arrived)) for path in arrived.rglob("*") if not path.is_dir())
        if found != sorted(names):
            raise RuntimeError(f"{len(names)} files were sent, the destination holds {len(found)}")
        for name in names:
            if not _is_same(self.source_root / files.folder / name, arrived / name):
                raise RuntimeError(f"not the same as its source: {out}/{name}")
        shutil.rmtree(arrived)

    def check_copies(self, out: str, source: Callable[[Path], str], least: int) -> None:
        """Compare all that arrived below a folder with its source (of its path), and remove it.

        Raises RuntimeError, also when fewer than `least` files arrived.
        """
        arrived = self.target_root / out
        found = [path for path in arrived.rglob("*") if not path.is_dir()]
        if len(found) < least:
            raise RuntimeError(f"{least} files were moved, the destination holds {len(found)}")
        for path in found:
            if not _is_same(self.source_root / source(path), path):
                raise RuntimeError(f"not the same as its source: {path.relative_to(self.target_root)}")
        shutil.rmtree(arrived)

    def server_cpu(self) -> float:
        """Return the processor time of all FTP servers with their sessions, so far."""
        return sum(cpu_seconds(server.pid) for server in self.servers)


@contextlib.contextmanager
def world(rtts_ms: Sequence[int], deadline: float, folder: Path | None = None) -> Iterator[World]:
    """Bring everything up; remove it at the end. An RTT of 0 is loopback; others need root and a C compiler."""
    with contextlib.ExitStack() as ending:
        memory = Path("/dev/shm")
        place = Path(tempfile.mkdtemp(prefix="etl-bench-", dir=folder or (memory if memory.is_dir() else None)))
        ending.callback(shutil.rmtree, place, ignore_errors=True)
        stack.sweep_pam_services()
        made = World(place, deadline)
        delays = [rtt for rtt in rtts_ms if rtt]
        if delays and os.geteuid() != 0:
            print("bench: links with latency need root; they are left out", file=sys.stderr)
            delays = []
        if os.geteuid() == 0:  # a namespace of our own: no firewall, no other traffic
            if _LIBC.unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "no network namespace of our own")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
            _avoid_bbr()
        near = [_serve(made, name, "127.0.0.1", ending) for name in ("source", "target")]
        made.pairs[0] = Pair(0, *(_end(server, "127.0.0.1") for server in near))
        if delays:
            made._far = _link(place, delays, ending)  # noqa: SLF001 - made in steps
            with made.at_far_end():
                _avoid_bbr()
                far = [_serve(made, name, EVERYWHERE, ending) for name in ("source", "target")]
            for number, rtt in enumerate(delays):
                made.pairs[rtt] = Pair(rtt, *(_end(server, f"10.99.{number}.2") for server in far))
        ending.callback(made.broker.stop, limit=10)
        made.broker.start()
        yield made


def _avoid_bbr() -> None:
    """Choose the congestion control of this namespace.

    BBR spreads the first bursts of a connection, which costs every 100 KB file one more round trip, whoever sends it.
    """
    for name in LOSS_BASED:
        with contextlib.suppress(OSError):  # not every one is loaded, or allowed
            CONGESTION_CONTROL.write_text(name)
            break


def _serve(made: World, name: str, host: str, ending: contextlib.ExitStack, which: str = "far") -> stack.Vsftpd:
    folder = made.folder / (name if host != EVERYWHERE else f"{name}-{which}")
    # Without an address of its own in the settings it answers PASV with the one that the client came to.
    server = stack.Vsftpd(folder, {"pasv_address": "", "listen_address": host})
    server.root = made.folder / name / "root"
    ending.callback(server.kill)
    server.start()
    made.servers.append(server)
    ending.callback(made.servers.remove, server)
    return server


def _end(server: stack.Vsftpd, host: str) -> End:
    return End(host, server.port, server.username, server.password)


def _link(place: Path, delays: Sequence[int], ending: contextlib.ExitStack) -> int:
    program = compiled("link.c", place)
    one_way = [str(rtt * 500) for rtt in delays]
    process = subprocess.Popen([str(program), *one_way], stdout=subprocess.PIPE, text=True)
    ending.callback(process.wait, 5)
    ending.callback(process.kill)
    assert process.stdout is not None
    ending.callback(process.stdout.close)
    if process.stdout.readline() != "up\n":
        raise RuntimeError("the links do not come up")
    return process.pid


def compiled(name: str, place: Path) -> Path:
    """Compile one of the C programs beside this file; return the program."""
    program = place / name.removesuffix(".c")
    source = Path(__file__).with_name(name)
    subprocess.run(["gcc", "-O2", "-Wall", "-pthread", "-o", str(program), str(source)], check=True, timeout=60)
    return program


def die_with_parent() -> None:
    """In a child just forked: end when the benchmark does, however that ends."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _enter(namespace: int) -> None:
    if _LIBC.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _is_same(one: Path, other: Path) -> bool:
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(MIB), right.read(MIB)
            if a != b:
                return False
            if not a:
                return True


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and of all that it started: vsftpd has one for each session."""
    total = 0.0
    process = psutil.Process(pid)
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
