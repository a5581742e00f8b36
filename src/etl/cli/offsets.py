"""`etl offsets`: shows where the group stands, and accepts offsets that another program has committed."""

from __future__ import annotations

import sys

import click

from etl import broker
from etl.broker import Admin
from etl.cli import terminal
from etl.cli.options import with_config
from etl.config import ConfigLoader
from etl.control.operator import Operator, user_at_host
from etl.models.control import REASON_CHARACTERS
from etl.models.wire import Commit, Partition
from etl.outcomes import offsets as tracked
from etl.topics.companions import SystemTopics
from etl.topics.names import Topics


@click.group()
def offsets() -> None:
    """See where the consumer group stands in the topic of the jobs, and in its retry topic."""


@offsets.command("list")
@with_config
@click.option("--group-id", help="Consumer group (ETL_GROUP_ID).")
def list_(config: ConfigLoader, group_id: str | None) -> None:
    """Print the committed offset of each partition, and whether a consumer of ours wrote it."""
    names, group = Topics.of(config.settings.topic, config.settings), group_id or config.settings.group_id
    admin = Admin(config.settings.bootstrap_servers)
    stands = admin.stands(group, [names.source, names.retry])
    rows = []
    for partition, stand in sorted(stands.items()):
        written_by = "nobody" if stand.commit is None else "us" if tracked.is_ours(stand.commit) else "another program"
        at = "" if stand.commit is None else stand.commit.offset
        behind = stand.end - (stand.first if stand.commit is None else stand.commit.offset)
        rows.append((partition.topic, partition.partition, stand.first, at, stand.end, behind, written_by))
    columns = ["topic", "partition", "first", "committed", "end", "behind", "written by"]
    terminal.console().print(terminal.table(columns, rows, numbers=columns[1:-1], whole=["topic"]))


@offsets.command()
@with_config
@click.option("--group-id", help="Consumer group (ETL_GROUP_ID).")
@click.option(
    "--missing",
    type=click.Choice(["oldest", "newest"]),
    help="Also set partitions without an offset: to their oldest record, or to their end.",
)
def accept(config: ConfigLoader, group_id: str | None, missing: str | None) -> None:
    """Accept offsets that another program has committed: jobs before them count as done, all others as not done.

    Stop the consumers first. Partitions whose offset was written by a consumer stay as they are.
    """
    settings = config.settings
    names, group = Topics.of(settings.topic, settings), group_id or settings.group_id
    admin = Admin(settings.bootstrap_servers)
    accepted: dict[Partition, Commit] = {}
    for partition, stand in sorted(admin.stands(group, [names.source, names.retry]).items()):
        if stand.commit is not None and not tracked.is_ours(stand.commit):
            accepted[partition] = tracked.accept(stand.commit.offset)
        elif stand.commit is None and missing is not None:
            # What waits in the retry topic is never left out.
            at = stand.end if missing == "newest" and partition.topic == names.source else stand.first
            accepted[partition] = tracked.accept(at)
    if not accepted:
        click.echo("nothing to accept: every offset was written by a consumer, or there is none")
        return
    told = {
        "target": f"group/{group}",
        "filter": {f"{place.topic}-{place.partition}": commit.offset for place, commit in accepted.items()},
        "count": len(accepted),
    }
    with Operator(settings.bootstrap_servers, SystemTopics.of(settings), user_at_host()) as operator:
        try:
            admin.commit(group, accepted)
        except broker.NotAllowed as error:
            operator.record("accept-offsets", result="refused", reason=str(error)[:REASON_CHARACTERS], **told)
            click.echo(
                f"{error}\nstop the consumers of group {group}, and every other program that uses it, first", err=True
            )
            sys.exit(1)
        operator.record("accept-offsets", **told)
    for partition, commit in accepted.items():
        click.echo(f"{partition.topic} {partition.partition}: goes on at {commit.offset}")
