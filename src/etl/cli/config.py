"""`etl config`: shows the settings without connecting to anything."""

from __future__ import annotations

from collections.abc import Mapping

import click

from etl.cli import terminal
from etl.cli.options import with_servers
from etl.config import ConfigLoader
from etl.models.server import RIGHTS, ServerConfig
from etl.sessions.pools import Pools


@click.group()
def config() -> None:
    """Check and show the settings."""


@config.command()
@with_servers
def check(config: ConfigLoader) -> None:
    """Validate all settings and print the servers.

    If something is wrong, print one message with all errors and exit with code 2.
    """
    settings = config.settings
    console = terminal.console()
    console.print(f"topic {settings.topic}, group {settings.group_id}, broker {settings.bootstrap_servers}")
    processes = terminal.plural(settings.consumer_count, "process")
    console.print(f"{processes} of {terminal.plural(settings.workers, 'lane')}")
    console.print()
    console.print(_servers(config.servers, settings.consumer_count))
    console.print()
    total = sum(limit for _, limit in _limits(config.servers).values()) * settings.consumer_count
    console.print(f"at most {terminal.plural(total, 'session')} with all servers together")


def _servers(servers: Mapping[str, ServerConfig], processes: int) -> object:
    limits = _limits(servers)
    rows: list[tuple[str, ...]] = []
    has_limits = any(server.bandwidth for server in servers.values())
    for name, server in servers.items():
        first, limit = limits[Pools.key(server)]
        rows.append(
            (
                name,
                server.type,
                f"{server.host}:{server.port}" if server.port else server.host,
                server.username,
                server.base_path,
                ",".join(right for right in RIGHTS if right in server.access),
                f"{limit} x {processes} = {limit * processes}" if first == name else f"shared with {first}",
                *([str(server.bandwidth or "")] if has_limits else []),
            )
        )
    columns = ["server", "type", "address", "user", "base", "jobs may", "sessions"]
    return terminal.table([*columns, "bytes/s"] if has_limits else columns, rows)


def _limits(servers: Mapping[str, ServerConfig]) -> dict[tuple[object, ...], tuple[str, int]]:
    """Return the first name and the session limit of each pool: names of the same login share one."""
    limits: dict[tuple[object, ...], tuple[str, int]] = {}
    for name, server in servers.items():
        first, limit = limits.get(Pools.key(server), (name, server.max_connections))
        limits[Pools.key(server)] = (first, min(limit, server.max_connections))
    return limits
