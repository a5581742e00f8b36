"""`etl consume`: runs jobs until told to stop. `etl` without a command and `python -m etl.main` do the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click


@click.command()
@click.argument("topic_", metavar="[TOPIC]", required=False)
@click.argument("group_", metavar="[GROUP_ID]", required=False)
@click.argument("servers_", metavar="[BOOTSTRAP_SERVERS]", required=False)
@click.option("--topic", help="Topic to read jobs from.")
@click.option("--group-id", help="Consumer group; processes of one group share the jobs.")
@click.option("--bootstrap-servers", help="Kafka brokers, HOST:PORT[,HOST:PORT…].")
@click.option("--env-file", type=click.Path(), help="File of settings (default: .env, if it exists).")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def consume(
    topic_: str | None,
    group_: str | None,
    servers_: str | None,
    topic: str | None,
    group_id: str | None,
    bootstrap_servers: str | None,
    env_file: str | None,
    verbose: bool,
) -> None:
    """Consume jobs and transfer their files until SIGTERM or Ctrl-C."""
    with _without("rich", "greenlet"):  # structlog would load them where they are: 5 MB, for colours that no log has
        from etl.process import run  # noqa: PLC0415 - slow to import, and no other command needs it

    overrides = {
        "ETL_TOPIC": topic or topic_,
        "ETL_GROUP_ID": group_id or group_,
        "ETL_BOOTSTRAP_SERVERS": bootstrap_servers or servers_,
        "ETL_LOG_LEVEL": "DEBUG" if verbose else None,
    }
    sys.exit(run({name: value for name, value in overrides.items() if value is not None}, env_file))


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Have imports find none of these libraries, unless they are loaded already."""
    left_out = {name: None for name in names if name not in sys.modules}  # None: to an import there is none
    sys.modules.update(left_out)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in left_out:
            del sys.modules[name]
