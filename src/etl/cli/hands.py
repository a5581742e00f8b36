"""`etl hold`, `release`, `cancel`, `drain`, `try-now`: orders to running consumers, each a record of the audit."""

from __future__ import annotations

import difflib
import re
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from etl.broker import Admin
from etl.cli import terminal
from etl.cli.options import Age, with_config
from etl.control.operator import Operator, user_at_host
from etl.errors import InvalidMessage
from etl.models.control import AnyOrder, Cancel, Drain, Hold, TryNow, new_order
from etl.status.reader import StatusReader
from etl.topics.companions import SystemTopics

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    from etl.config import ConfigLoader, Settings
    from etl.status.fleet import Process

EXIT_NOT_FOUND = 1
TARGETS = click.Choice(["server", "topic", "group"])
PLACE = re.compile(r"(.+)-(\d{1,9})-(\d{1,19})")

reason_option = click.option("--reason", default="", help="Why; everybody can see it.")


@click.command()
@click.argument("what", type=TARGETS)
@click.argument("name")
@reason_option
@click.option("--for", "length", type=Age(), help="End by itself after 30m, 2h, 3d ...")
@with_config
def hold(config: ConfigLoader, what: str, name: str, reason: str, length: timedelta | None) -> None:
    """Have the jobs of a server, a topic or a group wait, until etl release or the end of --for.

    Running transfers finish. Jobs that wait spend no attempts, and do not delay others.
    """
    name = _known(config, what, name)
    with operating(config.settings) as operator:
        until = None if length is None else datetime.now(UTC) + length
        order = new(Hold, operator, reason, what=what, name=name, until=until)
        operator.give(order, "hold")
    print(
        f"{what} {terminal.visible(name)} is on hold" + ("" if until is None else f" until {until:%Y-%m-%d %H:%M} UTC")
    )


@click.command()
@click.argument("what", type=TARGETS)
@click.argument("name")
@reason_option
@with_config
def release(config: ConfigLoader, what: str, name: str, reason: str) -> None:
    """End a hold."""
    name = name.upper() if what == "server" else name
    with operating(config.settings) as operator:
        if name not in operator.orders().holds(what, datetime.now(UTC)):  # type: ignore[arg-type]  # click checked it
            operator.record("release", target=f"{what}/{name}", reason=reason or None, result="not found")
            click.echo(f"{what} {terminal.visible(name)} is not on hold", err=True)
            sys.exit(EXIT_NOT_FOUND)
        operator.take_back(f"hold/{what}/{name}", "release", reason or None)
    print(f"{what} {terminal.visible(name)} is released")


@click.command()
@click.argument("place", metavar="TOPIC-PARTITION-OFFSET")
@reason_option
@with_config
def cancel(config: ConfigLoader, place: str, reason: str) -> None:
    """Cancel a job that waits or runs: it becomes a dead letter with the code CANCELLED.

    Name it by where it was first sent, as etl submit and etl jobs find tell. A job that waits for its time, or for a
    server, is cancelled when it would run next. A job that is done stays done.
    """
    found = PLACE.fullmatch(place)
    if found is None:
        raise click.UsageError("name the job by its place: TOPIC-PARTITION-OFFSET, as etl jobs find tells")
    with operating(config.settings) as operator:
        operator.give(new(Cancel, operator, reason, place=place), "cancel")
    print(f"job {terminal.visible(place)} is to be cancelled; see etl jobs show {terminal.visible(place)}")


@click.command()
@click.argument("name", metavar="INSTANCE/SLOT")
@reason_option
@with_config
def drain(config: ConfigLoader, name: str, reason: str) -> None:
    """Have a process finish what it runs, take nothing more, and leave its group, without a time limit.

    Whatever supervises the process may start it again, in a new version.
    """
    settings = config.settings
    found = [one for one in _processes(settings) if name in (one.snapshot.id, one.key) and one.state != "stopped"]
    if not found:
        click.echo(f"no process {terminal.visible(name)} runs", err=True)
        sys.exit(EXIT_NOT_FOUND)
    if len(found) > 1:
        keys = ", ".join(terminal.visible(one.key) for one in found)
        raise click.UsageError(f"several processes have this name: {keys}")
    with operating(settings) as operator:
        process = found[0]
        order = new(Drain, operator, reason, process=process.key, incarnation=process.snapshot.incarnation)
        operator.give(order, "drain")
    print(f"{terminal.visible(name)} is draining; see etl status")


@click.command("try-now")
@click.argument("server")
@with_config
def try_now(config: ConfigLoader, server: str) -> None:
    """Have a server that is down tried at once, also if it refused the last login."""
    server = _known(config, "server", server)
    with operating(config.settings) as operator:
        operator.give(new(TryNow, operator, "", server=server), "try-now")
    print(f"{terminal.visible(server)} is tried now; see etl status")


def operating(settings: Settings) -> Operator:
    """Return whoever uses this shell as an operator."""
    return Operator(settings.bootstrap_servers, SystemTopics.of(settings), user_at_host())


def new(kind: type[AnyOrder], operator: Operator, reason: str, **fields: object) -> AnyOrder:
    """Return an order of an operator. Raises UsageError for what no order may say."""
    try:
        return new_order(kind, operator.actor, reason, **fields)
    except InvalidMessage as error:
        raise click.UsageError(terminal.visible(error)) from None


def _processes(settings: Settings) -> list[Process]:
    topic = SystemTopics.of(settings).status
    if not Admin(settings.bootstrap_servers).describe([topic]):
        return []
    with StatusReader(settings.bootstrap_servers, topic) as reader:
        reader.catch_up()
        return reader.fleet.processes(time.monotonic())


def _known(config: ConfigLoader, what: str, name: str) -> str:
    """Return a name as consumers write it. Raises UsageError: a misspelled one would quietly hold nothing."""
    snapshots = [one.snapshot for one in _processes(config.settings)]
    known: set[str] = {name for one in snapshots for name in ((one.topic,) if what == "topic" else (one.group,))}
    if what == "server":
        name = name.upper()
        known = set(config.servers) | {row.name for one in snapshots for row in one.servers}
    if name in known:
        return name
    raise click.UsageError(f"no {what} has the name {terminal.visible(name)}{_near(name, known)}")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {terminal.visible(near[0])}?)" if near else ""
