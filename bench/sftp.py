"""SFTP over each link: files of 100 KB against rclone and lftp, and one large file against OpenSSH's own `sftp`."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ours import Consumers, Run, job_of, require_success
from peers import Lftp, Peer, Rclone, found
from rate import WARM_FILES, alternated, middles, rates
from table import Goal, Row, ratio
from world import EVERYWHERE, KB, MB, MIB, Files, OutOfTimeError, Pair, World

import stack

LANES = 8
FILES = 400
RCLONE, LFTP = (5.0, 10.0), (4.0, 8.0)  # must, aim
OWN_SFTP = 1.0
CIPHER = "aes128-gcm@openssh.com"
SOURCE, TARGET, FOLDER = "SFTPSRC", "SFTPDST", "FOLDER"


@dataclass(frozen=True)
class Servers:
    """Two sshds for the folders of the world, as they are reached, and the key that both accept."""

    source: stack.Sshd
    target: stack.Sshd
    host: str

    def ends(self) -> tuple[stack.Sshd, stack.Sshd]:
        """Return both."""
        return self.source, self.target


@contextmanager
def serve(world: World, rtt_ms: int) -> Iterator[Servers]:
    """Start them at the end of a link."""
    with ExitStack() as ending:
        if rtt_ms:
            ending.enter_context(world.at_far_end())
        made = []
        for name, root in (("source", world.source_root), ("target", world.target_root)):
            server = stack.Sshd(world.folder / f"sshd-{rtt_ms}-{name}", {"ListenAddress": EVERYWHERE})
            server.root = root
            made.append(server)
        made[1].key = made[0].key
        made[1].authorized_keys.write_text(made[0].key.with_suffix(".pub").read_text())
        for server in made:
            server.start()
        ending.close()  # back at the near end
        try:
            yield Servers(*made, world.pairs[rtt_ms].source.host)
        finally:
            for server in made:
                server.kill()


def server_lines(servers: Servers, local: str) -> list[str]:
    """Return the settings of both, and of a folder of this machine."""
    lines = [f"{FOLDER}_TYPE=local", f"{FOLDER}_BASE_PATH={local}"]
    for name, server in zip((SOURCE, TARGET), servers.ends(), strict=True):
        settings = {
            "TYPE": "sftp",
            "HOST": servers.host,
            "PORT": server.port,
            "USER": server.username,
            "KEY_FILE": server.key,
            "HOST_KEY": server.fingerprint,
            "BASE_PATH": server.root,
        }
        lines += [f"{name}_{key}={value}" for key, value in settings.items()]
    return lines


class ConsumersBetween(Consumers):
    """Consumers whose jobs are between servers of given names, SOURCE and TARGET, with settings of their own."""

    def __init__(self, world: World, name: str, lanes: int, lines: Sequence[str]) -> None:
        super().__init__(world, name, lanes, more=lines)

    def move(self, pair: Pair, files: Files, count: int | None = None) -> Run:  # noqa: ARG002 - as all contenders
        """Have files copied from one to the other; they are compared afterwards, outside the measured time."""
        out, names = self.world.new_out(), files.names[:count]
        run = self.run([((SOURCE, f"{files.folder}/{name}"), (TARGET, f"{out}/{name}")) for name in names], files)
        self.world.check(files, out, len(names))
        return run

    def run(self, moves: Sequence[tuple[tuple[str, str], tuple[str, str]]], files: Files) -> Run:
        """Have files copied: (server, path) to (server, path)."""
        jobs = [job_of(*source, *target) for source, target in moves]
        with self.results() as results:
            cpu, started = self.cpu(), time.monotonic()
            self.submit(jobs)
            for _ in jobs:
                require_success(next(results))
            seconds = time.monotonic() - started
            used = {who: value - cpu[who] for who, value in self.cpu().items()}
        return Run(len(jobs), len(jobs) * files.size_bytes, seconds, used)


class SftpConsumers(ConsumersBetween):
    """Consumers with two servers of SFTP and a folder."""

    def __init__(self, world: World, name: str, lanes: int, servers: Servers) -> None:
        self.local = world.folder / f"{name}-local"
        self.local.mkdir()
        super().__init__(world, name, lanes, server_lines(servers, str(self.local)))


class SftpRclone(Rclone):
    """`rclone copy` from one remote to the other."""

    arguments = ("--transfers=8", "--checkers=8", "--no-check-dest", "--no-update-modtime", "--sftp-set-modtime=false")
    settings = "rclone copy " + " ".join(arguments) + f"; ciphers {CIPHER}, disable_hashcheck, shell_type none"

    def __init__(self, world: World, servers: Servers) -> None:
        super().__init__(world)
        self._servers = servers

    def _run(self, pair: Pair, files: Files, out: str) -> None:  # noqa: ARG002 - as all contenders
        environment = {"RCLONE_CONFIG": "/dev/null"}
        for name, server in zip(("SOURCE", "TARGET"), self._servers.ends(), strict=True):
            values = {
                "TYPE": "sftp",
                "HOST": self._servers.host,
                "PORT": str(server.port),
                "USER": server.username,
                "KEY_FILE": str(server.key),
                "CIPHERS": CIPHER,
                "DISABLE_HASHCHECK": "true",
                "SHELL_TYPE": "none",
            }
            environment |= {f"RCLONE_CONFIG_{name}_{key}": value for key, value in values.items()}
        source, target = (str(server.root) for server in self._servers.ends())
        places = [f"SOURCE:{source}/{files.folder}", f"TARGET:{target}/{out}"]
        self._do([found(self.name) or self.name, "copy", *places, *self.arguments], environment)


class SftpLftp(Lftp):
    """lftp's `mirror` from one URL to the other."""

    settings = f"lftp: mirror {Lftp.arguments} URL URL; ssh with {CIPHER}"

    def __init__(self, world: World, servers: Servers) -> None:
        super().__init__(world)
        self._servers = servers

    def _run(self, pair: Pair, files: Files, out: str) -> None:  # noqa: ARG002 - as all contenders
        source, target = self._servers.ends()
        program = f"ssh -a -x -F none {' '.join(ssh_options(source))}"
        lines = ["set net:max-retries 2", "set cmd:fail-exit yes", f'set sftp:connect-program "{program}"']
        places = [
            f"sftp://{server.username}:@{self._servers.host}:{server.port}{server.root}/{folder}"
            for server, folder in ((source, files.folder), (target, out))
        ]
        lines.append(f"mirror {self.arguments} {' '.join(places)}")
        self._do([found(self.name) or self.name, "--norc"], given="\n".join(lines) + "\n")


class OwnSftp(Peer):
    """OpenSSH's `sftp`, one way."""

    name = "sftp"
    settings = f"sftp -b - -c {CIPHER}"

    def __init__(self, world: World, servers: Servers) -> None:
        super().__init__(world)
        self._servers = servers

    def copy(self, command: str, server: stack.Sshd, size_bytes: int) -> Run:
        """Run one command."""
        place = ["-P", str(server.port), f"{server.username}@{self._servers.host}"]
        started = time.monotonic()
        self._do(["sftp", "-q", "-b", "-", "-F", "none", *ssh_options(server), *place], given=command + "\n")
        return Run(1, size_bytes, time.monotonic() - started)


def ssh_options(server: stack.Sshd) -> list[str]:
    """Return what the peers' ssh needs: the keys of these servers are nobody's secret."""
    trusting = ["-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR"]
    return ["-c", CIPHER, "-i", str(server.key), *trusting]


def compare(world: World, rtt_ms: int, rounds: int, large_mib: int, say: Callable[[str], None]) -> list[Row]:
    """Measure one link; return the rows."""
    pair = world.pairs[rtt_ms]
    files = world.files(f"sftp-{rtt_ms}", FILES, 100 * KB)
    with ExitStack() as ending:
        servers = ending.enter_context(serve(world, rtt_ms))
        consumers = SftpConsumers(world, f"sftp-{rtt_ms}", LANES, servers)
        ending.callback(consumers.stop)
        consumers.start()
        peers: list[Peer] = [kind(world, servers) for kind in (SftpRclone, SftpLftp) if found(kind.name)]
        consumers.move(pair, files, WARM_FILES)  # opens the sessions
        runs = alternated(world, [consumers, *peers], pair, files, rounds)
        values, cpu = middles(consumers, peers, runs, say)
        by_name = {peer.name: rates(done) for peer, done in zip(peers, runs[1:], strict=True)}
        goals = [
            Goal(f" /{name}", must, ratio(rates(runs[0]), by_name.get(name, [])), aim)
            if rtt_ms
            else Goal(f" /{name}", 1.0, ratio(rates(runs[0]), by_name.get(name, [])))
            for name, (must, aim) in (("rclone", RCLONE), ("lftp", LFTP))
        ]
        note = f"SFTP, RTT {rtt_ms} ms: {FILES} files a round, {len(runs[0])} rounds, {LANES} lanes; sshd to sshd."
        what = f"SFTP, 100 KB, RTT {rtt_ms} ms: files/s"
        rows = [
            Row(what, values, goals, [*(peer.settings for peer in peers), note]),
            Row("  client's CPU, with ssh: ms/file", cpu),
        ]
        return rows + _large(world, rtt_ms, servers, consumers, rounds, large_mib, say)


def _large(
    world: World,
    rtt_ms: int,
    servers: Servers,
    consumers: SftpConsumers,
    rounds: int,
    size_mib: int,
    say: Callable[[str], None],
) -> list[Row]:
    """Move one large file each way, between a folder of this machine and a server."""
    files = world.files(f"sftp-large-{rtt_ms}", 1, size_mib * MIB)
    there = world.source_root / files.folder / files.names[0]
    here = consumers.local / "large"
    shutil.copyfile(there, here)
    own = OwnSftp(world, servers)
    rows = []
    for way in ("up", "down"):
        ours: list[float] = []
        theirs: list[float] = []
        for number in range(rounds):
            turns = [0, 1] if number % 2 == 0 else [1, 0]
            for turn in turns:
                try:
                    world.left()
                except OutOfTimeError:
                    break
                (ours, theirs)[turn].append(_one_way(world, servers, consumers, own, files, way, is_ours=not turn))
        say(f"  {way}: {', '.join(f'{rate:.0f}' for rate in ours)}; sftp {', '.join(f'{r:.0f}' for r in theirs)} MB/s")
        count = min(len(ours), len(theirs))
        if not count:
            continue
        note = f"{way}: OpenSSH's own had {statistics.median(theirs):.0f} MB/s ({OwnSftp.settings})."
        goal = Goal(" /sftp", OWN_SFTP, ratio(ours[:count], theirs[:count]))
        what = f"SFTP, {size_mib} MiB {way}, RTT {rtt_ms} ms: MB/s"
        rows.append(Row(what, {"ours": statistics.median(ours)}, [goal], [note]))
    here.unlink()
    shutil.rmtree(there.parent)
    return rows


def _one_way(
    world: World,
    servers: Servers,
    consumers: SftpConsumers,
    own: OwnSftp,
    files: Files,
    way: str,
    *,
    is_ours: bool,
) -> float:
    """Move the file once; return MB/s."""
    out, name = world.new_out(), files.names[0]
    if way == "up":
        target = world.target_root / out
        target.mkdir()
        if is_ours:
            run = consumers.run([((FOLDER, "large"), (TARGET, f"{out}/{name}"))], files)
        else:
            run = own.copy(f"put {consumers.local}/large {target}/{name}", servers.target, files.size_bytes)
        world.check(files, out)
    else:
        copy = consumers.local / out
        if is_ours:
            run = consumers.run([((SOURCE, f"{files.folder}/{name}"), (FOLDER, out))], files)
        else:
            source = world.source_root / files.folder / name
            run = own.copy(f"get {source} {copy}", servers.source, files.size_bytes)
        if copy.stat().st_size != files.size_bytes:
            raise RuntimeError(f"{copy} is not whole")
        copy.unlink()
    return run.size_bytes / run.seconds / MB
