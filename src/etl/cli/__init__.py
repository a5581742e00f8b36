"""The command `etl`: `etl COMMAND …`, or, without the name of a command, `etl consume`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

import click

from etl.cli import config, consume, dlq, servers, submit
from etl.errors import BrokerUnavailable, SettingsError

EXIT_FAILED = 1
EXIT_WRONG_SETTINGS = 2


class DefaultGroup(click.Group):
    """A group whose default command is `consume`: a first word that names no command is its first argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `consume` in front unless the first word names a command or asks for help."""
        if args and (near := meant(args[0], self.commands)):
            raise click.UsageError(f"no command {args[0]!r}: did you mean {near}? (a topic of that name: --topic)", ctx)
        if not args or (args[0] not in self.commands and args[0] not in {"--help", "--version"}):
            args = ["consume", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; wrong settings and a broker that is away are one message, never a traceback."""
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            click.echo(str(error), err=True)
            sys.exit(EXIT_WRONG_SETTINGS)
        except BrokerUnavailable as error:
            click.echo(str(error), err=True)
            sys.exit(EXIT_FAILED)


def meant(word: str, commands: Iterable[str]) -> str | None:
    """Return the command that a word misspells: taken for a topic it would start a consumer and make topics."""
    near = difflib.get_close_matches(word, [name for name in commands if abs(len(name) - len(word)) <= 1], 1, 0.65)
    return near[0] if near and near[0] != word else None


@click.group(cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="etl-file-sync")
def main() -> None:
    """Copy files between servers, driven by jobs on a Kafka topic.

    Without a command: consume jobs (`etl --topic T --group-id G`, or `etl T G HOST:PORT`).
    """


main.add_command(consume.consume)
main.add_command(submit.submit)
main.add_command(dlq.dlq)
main.add_command(servers.servers)
main.add_command(config.config)
