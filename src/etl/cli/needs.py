"""`etl acknowledge`: tells all others that somebody sees to what `etl status` says needs somebody."""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from etl.cli import terminal
from etl.cli.hands import EXIT_NOT_FOUND, new, operating, reason_option
from etl.cli.options import Age, with_config
from etl.cli.status import summaries
from etl.models.control import Acknowledge
from etl.status.summary import KINDS

if TYPE_CHECKING:
    from datetime import timedelta

    from etl.config import ConfigLoader

KIND = click.Choice([kind for kind in KINDS if kind != "on-hold"])  # a hold needs nobody


@click.command()
@click.argument("kind", type=KIND)
@click.argument("name", required=False)
@reason_option
@click.option("--for", "length", type=Age(), help="Ends after 30m, 2h, 3d ... (default and at most: 30 days).")
@click.option("--take-back", is_flag=True, help="It needs somebody again.")
@with_config
def acknowledge(
    config: ConfigLoader, kind: str, name: str | None, reason: str, length: timedelta | None, take_back: bool
) -> None:
    """Say that you see to something that needs somebody; NAME is needed if there are several of this kind.

    It is shown as known, with your name and the reason, until the time is over, it begins anew, or it grows.
    """
    settings = config.settings
    if not (reason.strip() or take_back):
        raise click.UsageError("say why: --reason")
    with contextlib.closing(summaries(settings, watch=False, with_letters=True)) as found:
        there = [need for need in next(found).needs if need.kind == kind]
    if name is not None:
        there = [need for need in there if name.upper() in (need.name.upper(), need.subject.upper())]
    if not there:
        click.echo(f"nothing of the kind {kind} needs anybody now", err=True)
        sys.exit(EXIT_NOT_FOUND)
    if len(there) > 1:
        raise click.UsageError(f"name one of {', '.join(terminal.visible(need.subject) for need in there)}")
    (need,) = there
    with operating(settings) as operator:
        until = None if length is None else datetime.now(UTC) + length
        order = new(
            Acknowledge, operator, reason, need=kind, name=need.name, jobs=need.jobs, since=need.since, until=until
        )
        if take_back:
            operator.take_back(order.key, "unacknowledge", reason or None)
        else:
            operator.give(order, "acknowledge")
    subject = terminal.visible(f"{kind} {need.subject}".strip())
    print(f"{subject} needs somebody again" if take_back else f"{operator.actor} sees to {subject}")
