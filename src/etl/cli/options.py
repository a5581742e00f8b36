"""The options of every command: file of settings, topic, broker, and how much to log."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click

from etl import broker, logs
from etl.config import ConfigLoader
from etl.topics import letters


class Age(click.ParamType[timedelta]):
    """A length of time: 30m, 2h, 3d."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read a length of time."""
        if isinstance(value, timedelta):
            return value
        try:
            return letters.parse_age(value)
        except (ValueError, OverflowError) as error:
            self.fail(str(error), param, ctx)


def with_config(command: Callable[..., None], *, needs_servers: bool = False) -> Callable[..., None]:
    """Add `--topic --bootstrap-servers --env-file -v` to a command, and pass it the validated settings as `config`.

    Logs go to standard error, because a program may read the output. With `needs_servers`, settings without any server
    are an error.
    """

    @click.option("--topic", help="Topic of the jobs (ETL_TOPIC).")
    @click.option("--bootstrap-servers", help="Kafka brokers, HOST:PORT[,HOST:PORT…] (ETL_BOOTSTRAP_SERVERS).")
    @click.option("--env-file", type=click.Path(), help="File of settings (default: .env, if it exists).")
    @click.option("-v", "--verbose", is_flag=True, help="Log more.")
    @functools.wraps(command)
    def wrapped(
        *, topic: str | None, bootstrap_servers: str | None, env_file: str | None, verbose: bool, **rest: Any
    ) -> None:
        overrides = {"ETL_TOPIC": topic, "ETL_BOOTSTRAP_SERVERS": bootstrap_servers}
        config = ConfigLoader(
            env_file=env_file,
            overrides={name: value for name, value in overrides.items() if value is not None},
        )
        if needs_servers:
            config.require_servers()
        level = "DEBUG" if verbose else "WARNING"
        # The Kafka client logs every attempt to reach a broker that is down. A command reports it once, at the end.
        library_level = "WARNING" if verbose else "CRITICAL"
        logs.configure(config.settings.log_format, level, config.secrets, sys.stderr, library_level=library_level)
        broker.secure(config.settings)
        for warning in config.warnings:
            click.echo(f"warning: {warning}", err=True)
        command(config=config, **rest)

    return wrapped


with_servers = functools.partial(with_config, needs_servers=True)
