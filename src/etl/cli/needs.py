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
    from etl.control.operator import Operator
    from etl.status.summary import Need

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
    with operating(settings) as operator:
        if take_back:
            _take_back(operator, kind, name, there, reason)
            return
        _require_one([need.subject for need in there], f"nothing of the kind {kind} needs anybody now")
        (need,) = there
        until = None if length is None else datetime.now(UTC) + length
        order = new(
            Acknowledge, operator, reason, need=kind, name=need.name, jobs=need.jobs, since=need.since, until=until
        )
        operator.give(order, "acknowledge")
    print(terminal.visible(f"{operator.actor} sees to {f'{kind} {need.subject}'.strip()}"))


def _take_back(operator: Operator, kind: str, name: str | None, there: list[Need], reason: str) -> None:
    """Take back what somebody sees to, also if it needs nobody any more: else it would count once it begins anew."""
    names = {need.name.upper() for need in there} | ({name.upper()} if name is not None else set())
    orders = [one for one in operator.orders().orders(datetime.now(UTC)) if isinstance(one, Acknowledge)]
    orders = [one for one in orders if one.need == kind and (name is None or one.name.upper() in names)]
    _require_one([one.name for one in orders], f"nobody sees to anything of the kind {kind}")
    (order,) = orders
    operator.take_back(order.key, "unacknowledge", reason or None)
    print(terminal.visible(f"nobody sees to {kind} {order.name} any more"))


def _require_one(names: list[str], nothing: str) -> None:
    """End with a message unless there is one name."""
    if not names:
        click.echo(nothing, err=True)
        sys.exit(EXIT_NOT_FOUND)
    if len(names) > 1:
        raise click.UsageError(f"name one of {', '.join(map(terminal.visible, names))}")
