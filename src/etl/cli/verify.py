"""`etl verify`: proves again, from the results of jobs, that their files are at the destinations as they were sent."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import click

from etl.cli import terminal
from etl.cli.options import with_servers
from etl.config import ConfigLoader
from etl.errors import EtlError, FileMissing, InvalidMessage, NotAFile
from etl.models import TransferResult
from etl.models.checksum import Checksum
from etl.models.message import Endpoint
from etl.sessions.pools import Pools, create_session
from etl.transfer.bandwidth import Bandwidth, Sharing
from etl.transfer.base import Session
from etl.transfer.receipts import NOTHING, SIZE, digest_at

AT_ONCE = 8  # servers that are asked at the same time, each in one session
BUFFER_BYTES = 1 << 20
BAD_LINES_SHOWN = 20
EXIT_DIFFERENT, EXIT_UNCHECKED = 1, 2
_DIFFERENT, _UNCHECKED = "different", "unchecked"


@dataclass(frozen=True)
class Verdict:
    """What was found of one file: a rung as in results, or `different`, or `unchecked` with the reason."""

    result: TransferResult
    found: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.found}: {self.result.destination} (job {self.result.job_id}): {self.why}"

    def to_dict(self) -> dict[str, object]:
        """Return it as a JSON object."""
        destination = self.result.destination
        return {
            "job_id": self.result.job_id,
            "destination": destination.to_dict() if destination else None,
            "found": self.found,
            "why": self.why or None,
        }


@click.command()
@click.option("-f", "--file", "path", required=True, help="File of results, one per line; - is standard input.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line for each file.")
@with_servers
def verify(config: ConfigLoader, path: str, as_json: bool) -> None:
    """Compare the files of results with their destinations: size, and checksum by the server or by reading them back.

    Of several results for one destination the last one counts. Prints a line for each file that differs. Exit code: 0
    if all files are as they were sent, 1 if any differs or is gone, else 2 if any could not be checked.
    """
    results, bad = _read(path)
    servers = sorted({_place(result)[0] for result in results})
    limited = _limits(config, servers)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="verify") as threads:
        parts = [[result for result in results if _place(result)[0] == name] for name in servers]
        found = [
            verdict
            for part in threads.map(lambda part: _of_one_server(config, limited, part), parts)
            for verdict in part
        ]
    for verdict in found:
        if as_json:
            print(terminal.json_line(verdict.to_dict()))
        elif verdict.found in {_DIFFERENT, _UNCHECKED}:
            click.echo(terminal.visible(verdict), err=verdict.found == _UNCHECKED)
    counts = Counter(verdict.found for verdict in found)
    told = ", ".join(f"{counts[rung]} {rung}" for rung in sorted(counts)) or "nothing to verify"
    no_results = f"; {terminal.plural(bad, 'line')} without a result" if bad else ""
    click.echo(f"{terminal.plural(len(found), 'file')}: {told}{no_results}", err=True)
    if counts[_DIFFERENT]:
        sys.exit(EXIT_DIFFERENT)
    if counts[_UNCHECKED] or bad:
        sys.exit(EXIT_UNCHECKED)


def _read(path: str) -> tuple[list[TransferResult], int]:
    """Return the last result for each destination, of jobs that copied a file, and how many lines were none."""
    last: dict[tuple[str, str], TransferResult] = {}
    bad = 0
    try:
        with click.open_file(path, encoding="utf-8", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    result = TransferResult.from_json(line) if line.strip() else None
                except InvalidMessage as error:
                    bad += 1
                    if bad <= BAD_LINES_SHOWN:
                        click.echo(terminal.visible(f"line {number}: {error}"), err=True)
                    continue
                if result is not None and result.succeeded and not result.skipped and result.destination is not None:
                    last[_place(result)] = result
    except OSError as error:
        raise click.UsageError(terminal.visible(f"{path}: {error.strerror or error}")) from None
    return list(last.values()), bad


def _place(result: TransferResult) -> tuple[str, str]:
    assert result.destination is not None  # noqa: S101 - see `_read`
    return result.destination.hostname.upper(), result.destination.path


def _limits(config: ConfigLoader, names: Iterable[str]) -> dict[str, Bandwidth]:
    """Return the bandwidth limits of servers by name: names of one address share theirs, as in a consumer."""
    by_key: dict[tuple[object, ...], Bandwidth] = {}
    limited: dict[str, Bandwidth] = {}
    for name in names:
        with contextlib.suppress(EtlError):  # a server that is not known is told of each of its files
            server = config.get_server_config(name)
            limited[name] = by_key.setdefault(Pools.key(server), Bandwidth(Sharing()))
            limited[name].register(server.bandwidth)
    return limited


def _of_one_server(
    config: ConfigLoader, limited: Mapping[str, Bandwidth], results: Iterable[TransferResult]
) -> list[Verdict]:
    """Look at the files of one server in one session; after an error in a new one."""
    session: Session | None = None
    verdicts: list[Verdict] = []
    buffer = memoryview(bytearray(BUFFER_BYTES))
    for result in results:
        try:
            session = session or _connected(config, limited, _place(result)[0])
            verdicts.append(_of_one_file(session, result, buffer))
        except Exception as error:  # noqa: BLE001 - a user's own protocol may raise anything
            why = str(error) if isinstance(error, EtlError) else f"{type(error).__name__}: {error}"
            verdicts.append(Verdict(result, _UNCHECKED, why))
            if session is not None:
                session.disconnect()
                session = None
    if session is not None:
        session.disconnect()
    return verdicts


def _connected(config: ConfigLoader, limited: Mapping[str, Bandwidth], name: str) -> Session:
    session = create_session(config.get_server_config(name), config.settings.transfer)
    session = limited[name].limited(session)
    try:
        session.connect()
    except BaseException:
        session.disconnect()
        raise
    return session


def _of_one_file(session: Session, result: TransferResult, buffer: memoryview) -> Verdict:
    """Compare size, then checksum."""
    destination, expected = result.destination, _checksum(result)
    assert isinstance(destination, Endpoint)  # noqa: S101 - see `_read`
    rung, size_bytes = NOTHING, result.bytes
    try:
        if "size" not in session.lacks():
            facts = session.look(destination.path)
            if facts is None:
                return Verdict(result, _DIFFERENT, "is not there")
            if facts.size_bytes is not None and result.bytes is not None:
                if facts.size_bytes != result.bytes:
                    return Verdict(result, _DIFFERENT, f"has {facts.size_bytes} bytes, not {result.bytes}")
                rung = SIZE
            size_bytes = facts.size_bytes if facts.size_bytes is not None else result.bytes
        is_too_large = (size_bytes or 0) > session.settings.read_back_limit_bytes
        if expected is None or (is_too_large and expected.algorithm not in session.hashes()):
            if rung == NOTHING:
                return Verdict(result, _UNCHECKED, "neither its size nor a checksum can be compared")
            return Verdict(result, rung)
        came, rung = digest_at(session, destination.path, expected.algorithm, size_bytes or 0, buffer)
    except (FileMissing, NotAFile) as error:
        return Verdict(result, _DIFFERENT, str(error))
    if came != expected.value:
        return Verdict(result, _DIFFERENT, f"its {expected.algorithm} is {came}, not {expected.value}")
    return Verdict(result, rung)


def _checksum(result: TransferResult) -> Checksum | None:
    """Return what the result says its file came to; None: nothing, or by an algorithm of another version of ours."""
    try:
        return Checksum.parse(result.checksum) if result.checksum else None
    except ValueError:
        return None
