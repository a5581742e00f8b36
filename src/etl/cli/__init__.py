"""The command `etl`: `etl COMMAND …`. Without the name of a command it runs `etl consume`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

import click

from etl.cli import api, config, consume, dlq, hands, jobs, servers, status, submit
from etl.errors import BrokerUnavailable, SettingsError

# Words that people try on an unknown tool. Taken for a topic, they would start a consumer and create topics.
NO_COMMANDS = {"help", "info", "list", "replay", "retry", "run", "show", "start", "stop", "topics", "version"}
EXIT_FAILED = 1
EXIT_WRONG_SETTINGS = 2


class DefaultGroup(click.Group):
    """A group with the default command `consume`, which gets a first word that does not name a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `consume` unless the first word names a command or asks for help."""
        if args and (instead := refusal(args[0], self.commands)):
            raise click.UsageError(instead, ctx)
        if not args or (args[0] not in self.commands and args[0] not in {"--help", "--version"}):
            args = ["consume", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; for wrong settings or a broker that is away, print a message instead of a traceback."""
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            click.echo(str(error), err=True)
            sys.exit(EXIT_WRONG_SETTINGS)
        except BrokerUnavailable as error:
            click.echo(str(error), err=True)
            sys.exit(EXIT_FAILED)


def refusal(word: str, commands: Iterable[str]) -> str | None:
    """Return why a first word that names no command is probably not a topic either; None if it may be one."""
    names = list(commands)
    if word in names:
        return None
    near = difflib.get_close_matches(word, [name for name in names if abs(len(name) - len(word)) <= 1], 1, 0.65)
    if not near and word not in NO_COMMANDS:
        return None
    meant = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(names)}"
    return f"no command {word!r}: {meant} (for a topic with that name, use --topic)"


@click.group(cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="etl-file-sync")
def main() -> None:
    """Copy files between servers, driven by jobs on a Kafka topic.

    Without a command, consume jobs: `etl --topic T --group-id G`, or `etl T G HOST:PORT`.
    """


main.add_command(consume.consume)
main.add_command(submit.submit)
main.add_command(jobs.jobs)
main.add_command(dlq.dlq)
main.add_command(servers.servers)
main.add_command(status.status)
for command in (hands.hold, hands.release, hands.cancel, hands.drain, hands.try_now):
    main.add_command(command)
main.add_command(config.config)
main.add_command(api.api)
