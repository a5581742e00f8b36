"""`etl servers`: tests whether each server can be reached, logged in to, listed and written to."""

from __future__ import annotations

import io
import secrets
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import click

from etl.cli import terminal
from etl.cli.options import with_servers
from etl.cli.probing import Survey, probe
from etl.config import ConfigLoader
from etl.errors import EtlError, SizeMismatch
from etl.models.server import ServerConfig, TransferSettings
from etl.models.task import Facts
from etl.sessions.pools import create_session
from etl.sessions.trial import Trial as PlainTrial
from etl.transfer.base import Session
from etl.transfer.streaming import MemoryParcel

T = TypeVar("T")

AT_ONCE = 8  # servers that are tested at the same time
PROBE = b"etl servers check: this file may be deleted\n"
PROBE_SECONDS = 5.0  # for a reply: what a server never answers is found out, too
_MARKS = {True: "ok", False: "!!", None: "--"}  # what is good, bad, or a fact
STEPS = ("reach", "login", "list", "write")


@dataclass
class Trial(PlainTrial):
    """The trial of one server, with --write: whether it can be written to, and what it can do."""

    left: list[str] = field(default_factory=list)  # names of files that could not be removed again
    survey: Survey | None = None

    def shown(self, step: str) -> str:
        """Return the text for a step in the table."""
        if self.failed == step:
            return "failed"
        if step == "reach":  # a part of the login, and not timed separately
            return "ok" if "login" in self.ms or self.failed == "login" else "-"
        return f"{self.ms[step]:.0f}" if step in self.ms else "-"

    @property
    def result(self) -> str:
        """The text in the last column of the table."""
        if self.failed:
            return f"{self.error_code}: {self.error}"
        found = "connect() succeeded" if self.names is None else f"{terminal.plural(self.names, 'name')} in its folder"
        missing = ", ".join(f"{step} ({why})" for step, why in self.unchecked.items())
        limit = f"; at most {self.server.bandwidth} bytes/s" if self.server.bandwidth else ""
        return f"ok, {found}{limit}" + (f"; not checked: {missing}" if missing else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as a JSON object."""
        return super().to_dict() | ({} if self.survey is None else self.survey.to_dict())


@click.group()
def servers() -> None:
    """Test the servers of the settings."""


@servers.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--write", is_flag=True, help="Also write and remove small files, and tell what the server can do.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@with_servers
def check(config: ConfigLoader, names: tuple[str, ...], write: bool, as_json: bool) -> None:
    """Reach, log in to and list each server (default: all). Times are in milliseconds.

    If any server fails, exit with code 1.
    """
    chosen = {server.hostname: server for server in _chosen(config, names)}
    limits = config.settings.transfer
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="check") as threads:
        trials = list(threads.map(lambda server: _try(server, limits, write=write), chosen.values()))
    if as_json:
        for trial in trials:
            print(terminal.json_line(trial.to_dict()))
    else:
        _print(trials, STEPS if write else STEPS[:-1])
        for trial in trials:
            if trial.survey is not None:
                _print_survey(trial.server.hostname, trial.survey)
    if any(trial.failed for trial in trials):
        sys.exit(1)


def _chosen(config: ConfigLoader, names: Sequence[str]) -> list[ServerConfig]:
    try:
        return [config.get_server_config(name) for name in names] if names else list(config.servers.values())
    except EtlError as error:
        raise click.UsageError(terminal.visible(error)) from None


def _try(server: ServerConfig, limits: TransferSettings, *, write: bool) -> Trial:
    tried = Trial(server)

    def further(session: Session) -> None:
        if "write" not in server.access:
            tried.unchecked["write"] = f"{server.hostname}_ACCESS"
        elif "remove" in session.lacks():  # the file could not be removed again
            tried.unchecked["write"] = "no remove()"
        else:
            _write(tried, session, limits)

    tried.run(limits, *([further] if write else []))
    write = write and "write" in server.access
    is_refused = tried.failed == "write" and tried.error_code != EtlError.code  # what can be done about it?
    if write and tried.lacks is not None and (tried.failed is None or is_refused) and not tried.lacks:
        quick = replace(limits, reply_timeout=min(PROBE_SECONDS, limits.reply_timeout))
        tried.survey = probe(server, lambda config: _connected(config, quick))
        tried.survey.left += tried.left
    return tried


def _connected(server: ServerConfig, limits: TransferSettings) -> Session:
    session = create_session(server, limits)
    session.connect()
    return session


def _write(tried: Trial, session: Session, limits: TransferSettings) -> None:
    token = secrets.token_hex(8)
    partial = tried.server.partial_pattern.replace("{id}", f"check-{token}")
    final = f"etl-check-{token}"
    try:
        tried.step("write", lambda: _round(tried, session, partial, final))
    except BaseException:
        tried.left = _tidy(tried.server, limits, (partial, final))
        raise


def _round(tried: Trial, session: Session, partial: str, final: str) -> None:
    """Write a file, rename it, compare its size, and remove it."""
    probe = MemoryParcel("probe", Facts(len(PROBE), None), io.BytesIO(PROBE))
    stored = session.write(partial, probe, memoryview(bytearray(64 * 1024)))
    session.publish(stored, final, None).result()
    if "size" in session.lacks():
        tried.unchecked["size"] = "no size()"
    else:
        facts = session.look(final)
        found = facts.size_bytes if facts is not None else 0
        if found not in (None, len(PROBE)):
            raise SizeMismatch(f"wrote {len(PROBE)} bytes, but the server has {found}")
    session.remove(final)


def _tidy(server: ServerConfig, limits: TransferSettings, names: Sequence[str]) -> list[str]:
    """Remove what a failed test may have left, through a new session: the old one is in an unknown state.

    Returns the names of files that may still be there.
    """
    left = list(names)
    with suppress(EtlError, OSError):
        session = _connected(server, limits)
        try:
            for name in names:
                session.remove(name)
                left.remove(name)
        finally:
            session.disconnect()
    return left


def _print(trials: Sequence[Trial], steps: Sequence[str]) -> None:
    rows = []
    for trial in trials:
        server = trial.server
        place = f"{server.host}:{server.port}" if server.port else server.host or server.base_path
        rows.append((server.hostname, server.type, place, *(trial.shown(step) for step in steps), trial.result))
    columns = ["server", "type", "address", *(f"{step} ms" if step != "reach" else step for step in steps), "result"]
    terminal.console().print(terminal.table(columns, rows, numbers=[f"{step} ms" for step in steps]))


def _print_survey(name: str, survey: Survey) -> None:
    fit = {"both": "source and destination", "neither": "neither source nor destination"}.get(survey.fit, survey.fit)
    rows = [(_MARKS[finding.good], finding.topic, finding.found) for finding in survey.findings]
    rows += [("!!", "left behind", path) for path in survey.left]
    rows += [("->", "set", f"{name}_{key}={value}") for key, value in survey.settings.items()]
    console = terminal.console()
    console.print()
    console.print(terminal.table([name, "fit as", fit], rows))
