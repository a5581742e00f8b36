"""FTPS over each link: files of 100 KB against our own plain FTP, and against lftp and rclone with TLS."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from ours import Consumers, server_lines
from peers import Lftp, Peer, Rclone, found, obscured
from rate import WARM_FILES, alternated, cpu_ms, rates
from sftp import SOURCE, TARGET, ConsumersBetween
from table import Goal, Row, ratio
from world import EVERYWHERE, KB, End, Pair, World

import stack
from servers.certificates import Authority

LANES = 8
FILES = 400
PLAIN, LFTP = 0.7, 2.0
FINGERPRINT = "TLS_FINGERPRINT"


class FtpsRclone(Rclone):
    """`rclone copy` from one remote to the other, with TLS 1.2: with 1.3 vsftpd refuses its data connections."""

    settings = f"{Rclone.settings}; explicit_tls, no_check_certificate, disable_tls13"

    def __init__(self, world: World, pair: Pair) -> None:
        super().__init__(world)
        self._hidden |= {end.password: obscured(end.password) for end in (pair.source, pair.target)}

    def _do(self, command: Sequence[str], environment: Mapping[str, str] | None = None, given: str = "") -> str:
        secure = {
            f"RCLONE_CONFIG_{name}_{key}": "true"
            for name in ("SOURCE", "TARGET")
            for key in ("EXPLICIT_TLS", "NO_CHECK_CERTIFICATE", "DISABLE_TLS13")
        }
        return super()._do(command, {**(environment or {}), **secure}, given)


class FtpsLftp(Lftp):
    """lftp's `mirror` from one URL to the other, all of it encrypted, with TLS 1.2: with 1.3 it loses connections."""

    variables = (
        *Lftp.variables,
        "net:max-retries 20",
        "net:reconnect-interval-base 1",
        "ftp:ssl-force yes",
        "ftp:ssl-protect-data yes",
        "ssl:verify-certificate no",
        "ssl:priority NORMAL:-VERS-TLS1.3",
    )
    settings = f"lftp: mirror {Lftp.arguments} URL URL; set " + ", ".join(variables)


@contextmanager
def serve(world: World, rtt_ms: int) -> Iterator[tuple[Pair, str]]:
    """Start two vsftpds that demand TLS at the end of a link; give them, and the fingerprint of their certificate."""
    certificate = Authority(world.folder / f"authority-{rtt_ms}").sign("vsftpd")
    settings = {"pasv_address": "", "listen_address": EVERYWHERE, "rsa_cert_file": str(certificate.pem)}
    made = []
    with ExitStack() as ending:
        if rtt_ms:
            ending.enter_context(world.at_far_end())
        for name, root in (("source", world.source_root), ("target", world.target_root)):
            server = stack.Vsftpd(world.folder / f"ftps-{rtt_ms}-{name}", stack.STRICT_TLS | settings)
            server.root = root
            made.append(server.start())
    plain = world.pairs[rtt_ms]
    ends = [
        End(like.host, server.port, server.username, server.password)
        for server, like in zip(made, (plain.source, plain.target), strict=True)
    ]
    world.servers += made
    try:
        yield replace(plain, source=ends[0], target=ends[1]), certificate.fingerprint
    finally:
        for server in made:
            world.servers.remove(server)
            server.kill()


def compare(world: World, rtt_ms: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure one link; return the rows."""
    files = world.files(f"ftps-{rtt_ms}", FILES, 100 * KB)
    with ExitStack() as ending:
        pair, fingerprint = ending.enter_context(serve(world, rtt_ms))
        ours: list[Consumers] = [Consumers(world, f"plain-{rtt_ms}", LANES)]
        for newest in ("1.2", "1.3"):
            lines = []
            for name, end in ((SOURCE, pair.source), (TARGET, pair.target)):
                lines += [line for line in server_lines(name, end) if not line.startswith(f"{name}_TYPE")]
                lines += [f"{name}_TYPE=ftps", f"{name}_{FINGERPRINT}={fingerprint}", f"{name}_TLS_MAX={newest}"]
            ours.append(ConsumersBetween(world, f"tls{newest}-{rtt_ms}", LANES, lines))
        peers: list[Peer] = [FtpsLftp(world)] if found("lftp") else []
        peers += [FtpsRclone(world, pair)] if found("rclone") else []
        for one in ours:
            ending.callback(one.stop)
            one.start()
            one.move(pair, files, WARM_FILES)  # opens the sessions
        runs = alternated(world, [*ours, *peers], pair, files, rounds)
    values: dict[str, float | str] = {}
    cpu: dict[str, float | str] = {}
    columns = [None, "ours", None, *(peer.name for peer in peers)]
    for who, column, done in zip((*ours, *peers), columns, runs, strict=True):
        say(f"  {who.name}: {', '.join(f'{rate:.0f}' for rate in sorted(rates(done)))} files/s")
        if done:
            say(f"    CPU {cpu_ms(done, 'client'):.2f} ms/file")
        if done and column:
            values[column], cpu[column] = statistics.median(rates(done)), cpu_ms(done, "client")
    by_name = {peer.name: rates(done) for peer, done in zip(peers, runs[len(ours) :], strict=True)}
    plain, older, newer = (rates(done) for done in runs[: len(ours)])
    goals = [
        Goal(" /plain", PLAIN, ratio(older, plain)),
        Goal(" /lftp", LFTP if rtt_ms else 1.0, ratio(older, by_name.get("lftp", []))),
    ]
    told = ", ".join(
        f"{name} {statistics.median(found_rates):.0f}"
        for name, found_rates in (("plain FTP", plain), ("TLS 1.2", older), ("TLS 1.3", newer))
        if found_rates
    )
    note = f"FTPS, RTT {rtt_ms} ms: {FILES} files a round, {len(plain)} rounds, {LANES} lanes; strict vsftpds. {told}."
    return [
        Row(f"FTPS, 100 KB, RTT {rtt_ms} ms: files/s", values, goals, [*(peer.settings for peer in peers), note]),
        Row("  client's CPU: ms/file", cpu),
    ]
