"""`etl api`: runs the API with its page until told to stop."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option("--topic", help="Topic of the jobs (ETL_TOPIC).")
@click.option("--bootstrap-servers", help="Kafka brokers, HOST:PORT[,HOST:PORT…] (ETL_BOOTSTRAP_SERVERS).")
@click.option("--host", help="Address to listen on (ETL_API_HOST).")
@click.option("--port", help="Port to listen on (ETL_API_PORT).")
@click.option("--env-file", type=click.Path(), help="File of settings (default: .env, if it exists).")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def api(
    topic: str | None,
    bootstrap_servers: str | None,
    host: str | None,
    port: str | None,
    env_file: str | None,
    verbose: bool,
) -> None:
    """Serve the page, REST and metrics until SIGTERM or Ctrl-C."""
    from etl.api.server import run  # noqa: PLC0415 - slow to import, and no other command needs it

    overrides = {
        "ETL_TOPIC": topic,
        "ETL_BOOTSTRAP_SERVERS": bootstrap_servers,
        "ETL_API_HOST": host,
        "ETL_API_PORT": port,
        "ETL_LOG_LEVEL": "DEBUG" if verbose else None,
    }
    sys.exit(run({name: value for name, value in overrides.items() if value is not None}, env_file))
