"""The command `etl`: `etl COMMAND …`. Without the name of a command it runs `etl consume`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from typing import cast

import click

from etl.errors import BrokerUnavailable, SettingsError

# The module of this package that has the command, imported when it is called: all of them take longer to import than
# `etl submit` takes to send a job.
COMMANDS = {name: name for name in ("consume", "submit", "status", "jobs", "dlq", "offsets", "servers", "config")}
COMMANDS |= dict.fromkeys(("hold", "release", "cancel", "drain", "try-now"), "hands")
COMMANDS |= {"acknowledge": "needs", "verify": "verify", "api": "api"}
# What `etl --help` says of each, without importing it.
SUMMARIES = {
    "consume": "Consume jobs and transfer their files until SIGTERM or Ctrl-C.",
    "submit": "Send one job (etl submit SRC:/path DST:/path), or a file of jobs.",
    "status": "Print what needs somebody, and how servers, backlog and processes are.",
    "jobs": "Find jobs, and see what became of them.",
    "dlq": "Read, replay, discard and delete dead letters.",
    "offsets": "See where the consumer group stands.",
    "servers": "Test the servers of the settings.",
    "config": "Check and show the settings.",
    "hold": "Have the jobs of a server, a topic or a group wait.",
    "release": "End a hold.",
    "cancel": "Cancel a job that waits or runs: it becomes a dead letter.",
    "drain": "Have a process finish what it runs, and leave its group.",
    "try-now": "Have a server that is down tried at once.",
    "acknowledge": "Say that you see to what needs somebody.",
    "verify": "Compare the files of results with their destinations.",
    "api": "Serve the page, REST and metrics until SIGTERM or Ctrl-C.",
}
# Words that people try on an unknown tool. Taken for a topic, they would start a consumer and create topics.
NO_COMMANDS = {"help", "info", "list", "replay", "retry", "run", "show", "start", "stop", "topics", "version"}
EXIT_FAILED = 1
EXIT_WRONG_SETTINGS = 2


class DefaultGroup(click.Group):
    """A group with the default command `consume`, which gets a first word that does not name a command."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"etl.cli.{COMMANDS[cmd_name]}")
        return cast("click.Command", getattr(module, cmd_name.replace("-", "_")))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        """List the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of the default command too: `etl --topic T` needs no command."""
        super().format_options(ctx, formatter)
        consume = cast("click.Command", self.get_command(ctx, "consume"))
        records = [option.get_help_record(ctx) for option in consume.params if isinstance(option, click.Option)]
        with formatter.section("Options without a command"):
            formatter.write_dl([record for record in records if record])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `consume` unless the first word names a command or asks for help."""
        if args and (instead := refusal(args[0], COMMANDS)):
            raise click.UsageError(instead, ctx)
        if not args and ctx.resilient_parsing:  # a shell completes the first word
            return super().parse_args(ctx, args)
        if not args or (args[0] not in COMMANDS and args[0] not in {"--help", "--version"}):
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
