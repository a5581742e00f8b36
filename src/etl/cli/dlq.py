"""`etl dlq`: reads the dead letters of a topic, and replays or discards chosen ones, each at most once."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import click

from etl import broker
from etl.cli import terminal
from etl.cli.options import Age, with_config
from etl.config import ConfigLoader, Settings
from etl.control.operator import Operator, user_at_host
from etl.errors import BrokerUnavailable, CommitUnknown, Fenced, known_codes
from etl.logs import redact
from etl.models import document
from etl.models.wire import Message, Partition
from etl.topics import letters
from etl.topics.companions import SystemTopics
from etl.topics.letters import Filters, Letter
from etl.topics.names import Topics

NAMES_RECORDED = 100  # of dead letters that were named, in the audit
ERROR_SHOWN = 120  # characters of an error in a table


def _with_filters(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose dead letters to a command, and pass them to it as `filters`."""

    @click.option("--code", multiple=True, help="Only those with this error code; repeatable.")
    @click.option("--server", multiple=True, help="Only those from or to this server; repeatable.")
    @click.option("--path", help="Only those whose source or destination path matches a pattern, such as '/in/*.tif'.")
    @click.option("--older-than", type=Age(), help="Only those older than 30m, 2h, 3d ...")
    @click.option("--newer-than", type=Age(), help="Only those newer than 30m, 2h, 3d ...")
    @click.option("--job-id", multiple=True, help="Only those of the job with this id; repeatable.")
    @functools.wraps(command)
    def wrapped(
        *,
        code: tuple[str, ...],
        server: tuple[str, ...],
        path: str | None,
        older_than: timedelta | None,
        newer_than: timedelta | None,
        job_id: tuple[str, ...],
        **rest: Any,
    ) -> None:
        filters = Filters(
            codes=frozenset(word.upper() for word in code),
            servers=frozenset(name.upper() for name in server),
            path=path,
            job_ids=frozenset(job_id),
            older_than=older_than,
            newer_than=newer_than,
        )
        command(filters=filters, **rest)

    return wrapped


@click.group()
def dlq() -> None:
    """Read, replay, discard and delete dead letters."""


@dlq.command("list")
@_with_filters
@click.option("--replayed", "all_", is_flag=True, help="Include those that were already replayed or discarded.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
@with_config
def list_(config: ConfigLoader, filters: Filters, all_: bool, as_json: bool) -> None:
    """Print the dead letters of a topic, oldest first."""
    _require_known(filters.codes)
    topics = Topics.of(config.settings.topic, config.settings)
    found, strangers = letters.read(config.settings.bootstrap_servers, topics.dlq)
    filters = dataclasses.replace(filters, replayed=True)
    matching = [letter for letter in found if filters.match(letter)]

    def shown(some: list[Letter]) -> list[Letter]:
        return some if all_ else [letter for letter in some if not letter.settled]

    chosen = shown(matching)
    _report_strangers(strangers)
    if as_json:
        for letter in chosen:
            print(terminal.json_line(letter.to_dict()))
        return
    if chosen:
        terminal.console().print(_table(chosen))
    hidden = len(matching) - len(chosen)
    states = " or ".join(sorted({letter.state for letter in matching if letter.settled}, reverse=True))
    note = f" ({hidden} already {states}: see --replayed)" if hidden else ""
    part = f"{len(chosen)} of " if filters.are_given else ""
    print(f"{part}{terminal.plural(len(shown(found)), 'dead letter')} in {topics.dlq}{note}")


@dlq.command()
@click.argument("name", metavar="ID|PARTITION:OFFSET")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_config
def show(config: ConfigLoader, name: str, as_json: bool) -> None:
    """Print a dead letter in full. Name it by its job's id or by its place."""
    topics = Topics.of(config.settings.topic, config.settings)
    places, names = letters.parse_names([name])
    found, _ = letters.read(config.settings.bootstrap_servers, topics.dlq)
    chosen = [letter for letter in found if letter.place in places or letter.job_id in names]
    if not chosen:
        raise click.ClickException(f"{topics.dlq} holds no dead letter {terminal.visible(name)}")
    for index, letter in enumerate(chosen):
        if as_json:
            print(terminal.json_line(letter.to_dict()))
            continue
        if index:
            print()
        _print_whole(letter)


@dlq.command()
@click.argument("names", metavar="[ID|PARTITION:OFFSET]...", nargs=-1)
@_with_filters
@click.option("--all", "all_", is_flag=True, help="Replay all that were not replayed yet.")
@click.option("--dry-run", is_flag=True, help="Only print what would be replayed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@with_config
def replay(
    config: ConfigLoader, names: tuple[str, ...], filters: Filters, all_: bool, dry_run: bool, yes: bool
) -> None:
    """Send dead letters back to their topic: those named, those chosen by filters, or --all.

    Each is replayed at most once, even if this command runs repeatedly or several times at once.
    """
    is_chosen = bool(names) or filters.are_given
    if all_ and is_chosen:
        raise click.UsageError("--all cannot be combined with names or filters")
    if not (all_ or is_chosen or dry_run):  # perhaps a script whose list of ids is empty: do not replay all
        raise click.UsageError("name dead letters, choose them by a filter, or use --all")
    _require_known(filters.codes)
    settings = config.settings
    topics = Topics.of(settings.topic, settings)
    if dry_run:
        _choose(settings.bootstrap_servers, topics, filters, names)
        return
    # Open the producer before reading. That ends the transaction of a concurrent replay, and a replay that starts later
    # fences us. So a dead letter that we read as not replayed stays so until our own transaction.
    producer = broker.TransactionalProducer(settings.bootstrap_servers, letters.transactional_id(topics.dlq))
    try:
        producer.open()
        chosen = _choose(settings.bootstrap_servers, topics, filters, names)
        if chosen and not yes and _asks():
            click.confirm(f"replay {terminal.plural(len(chosen), 'dead letter')} to {topics.source}?", abort=True)
        sent = _settle(producer, chosen, lambda letter: letters.replay(letter, topics.source), "replayed")
    finally:
        producer.close()
    _record(settings, "replay", topics, filters, names, None, sent)
    print(f"{terminal.plural(sent, 'dead letter')} replayed to {topics.source}")
    if names and not sent:
        sys.exit(1)


@dlq.command()
@click.argument("names", metavar="[ID|PARTITION:OFFSET]...", nargs=-1)
@_with_filters
@click.option("--reason", required=True, help="Why they are given up; kept beside each of them.")
@click.option("--dry-run", is_flag=True, help="Only print what would be discarded.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@with_config
def discard(
    config: ConfigLoader, names: tuple[str, ...], filters: Filters, reason: str, dry_run: bool, yes: bool
) -> None:
    """Settle dead letters without a replay: those named, or chosen by filters. They can still be read."""
    if not (names or filters.are_given):
        raise click.UsageError("name dead letters, or choose them by a filter")
    if not (dry_run or yes or _asks()):
        raise click.UsageError("nobody can be asked here: add --yes, or look with --dry-run")
    _require_known(filters.codes)
    settings = config.settings
    topics = Topics.of(settings.topic, settings)
    if dry_run:
        _choose(settings.bootstrap_servers, topics, filters, names, "discard")
        return
    producer = broker.TransactionalProducer(settings.bootstrap_servers, letters.transactional_id(topics.dlq))
    try:
        producer.open()  # before reading, as for a replay
        chosen = _choose(settings.bootstrap_servers, topics, filters, names, "discard")
        if chosen and not yes:
            click.confirm(f"discard {terminal.plural(len(chosen), 'dead letter')} of {topics.dlq}?", abort=True)
        reason = redact(reason)
        settled = _settle(producer, chosen, lambda letter: (letters.discard(letter, reason),), "discarded")
    finally:
        producer.close()
    _record(settings, "discard", topics, filters, names, reason, settled)
    print(f"{terminal.plural(settled, 'dead letter')} of {topics.dlq} discarded")
    if names and not settled:
        sys.exit(1)


@dlq.command()
@click.option("--older-than", type=Age(), help="Delete those older than 30m, 2h, 3d ...")
@click.option("--keep", type=click.IntRange(min=0), metavar="COUNT", help="Keep the newest ones, so many.")
@click.option("--dry-run", is_flag=True, help="Only print what would be deleted.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@with_config
def purge(config: ConfigLoader, older_than: timedelta | None, keep: int | None, dry_run: bool, yes: bool) -> None:
    """Delete old dead letters for good, by age or by count; with both options, those that both let go.

    Kafka deletes from the start of a partition, so a dead letter behind one that is kept stays, too.
    """
    if older_than is None and keep is None:
        raise click.UsageError("say which: --older-than, --keep or both")
    if not (dry_run or yes or _asks()):
        raise click.UsageError("nobody can be asked here: add --yes, or look with --dry-run")
    settings = config.settings
    topics = Topics.of(settings.topic, settings)
    found, _ = letters.read(settings.bootstrap_servers, topics.dlq)
    cuts = letters.choose_cuts(found, older_than, keep)
    chosen = [letter for letter in found if letter.place[1] < cuts.get(letter.place[0], 0)]
    if chosen:
        terminal.console().print(_table(chosen))
    waiting = sum(not letter.settled for letter in chosen)
    what = f"{terminal.plural(len(chosen), 'dead letter')} of {len(found)}, {waiting} of them not replayed,"
    if dry_run or not chosen:
        print(f"{what} would be deleted from {topics.dlq}")
        return
    if not yes:
        click.confirm(f"delete {what} from {topics.dlq} for good?", abort=True)
    broker.Admin(settings.bootstrap_servers).delete_before(
        {Partition(topics.dlq, partition): cut for partition, cut in cuts.items()}
    )
    audit = Filters(older_than=older_than)
    _record(settings, "purge", topics, audit, () if keep is None else (f"keep {keep}",), None, len(chosen))
    print(f"{what} deleted from {topics.dlq}")


def _require_known(codes: Iterable[str]) -> None:
    """Raise BadParameter for a code that does not exist: a misspelled one would quietly match nothing."""
    known = known_codes()
    if unknown := sorted(set(codes).difference(known)):
        names = terminal.visible(", ".join(unknown))
        raise click.BadParameter(f"no error has the code {names} (known: {', '.join(known)})", param_hint="--code")


def _record(
    settings: Settings,
    action: str,
    topics: Topics,
    filters: Filters,
    names: Sequence[str],
    reason: str | None,
    count: int,
) -> None:
    """Write an act into the audit."""
    told = {name: _plain(value) for name, value in vars(filters).items() if value and name not in {"now", "replayed"}}
    if names:
        told["named"] = list(names[:NAMES_RECORDED])
    with Operator(settings.bootstrap_servers, SystemTopics.of(settings), user_at_host()) as operator:
        operator.record(action, target=topics.dlq, filter=told or None, reason=reason, count=count)


def _plain(value: object) -> object:
    """Return the value of a filter as JSON has it."""
    if isinstance(value, frozenset):
        return sorted(str(item) for item in value)
    return value.total_seconds() if isinstance(value, timedelta) else value


def _asks() -> bool:
    """Is there a user who can answer?"""
    return sys.stdin.isatty()


def _choose(
    bootstrap_servers: str, topics: Topics, filters: Filters, texts: Sequence[str], act: str = "replay"
) -> list[Letter]:
    """Print and return the dead letters to replay or discard; report those that were named but cannot be."""
    places, names = letters.parse_names(texts)
    filters = dataclasses.replace(filters, places=places, names=names)
    found, strangers = letters.read(bootstrap_servers, topics.dlq)
    chosen = [letter for letter in found if filters.match(letter)]
    _report_strangers(strangers)
    for letter in found:
        if letter.settled and (letter.place in places or letter.job_id in names):
            click.echo(f"{letter.name} was already {letter.state}", err=True)
    known = {letter.place for letter in found}, {letter.job_id for letter in found}
    for missing in sorted([f"{p}:{o}" for p, o in places - known[0]] + [n for n in names if n not in known[1]]):
        click.echo(f"{topics.dlq} holds no dead letter {terminal.visible(missing)}", err=True)
    for letter in chosen if act == "replay" else ():
        if letter.message.truncated:
            kept = "it was not read" if letter.message.original_bytes_count is None else "only its start was kept"
            click.echo(f"{letter.name} skipped: the message was too large, and {kept}", err=True)
    chosen = [letter for letter in chosen if act != "replay" or not letter.message.truncated]
    if chosen:
        terminal.console().print(_table(chosen))
    else:
        print(f"nothing to {act} in {topics.dlq}")
    return chosen


def _settle(
    producer: broker.TransactionalProducer,
    chosen: Sequence[Letter],
    messages: Callable[[Letter], Sequence[Message]],
    done: str,
) -> int:
    """Send what settles dead letters, each batch in one transaction; return how many are `done`."""
    sent, other = 0, "" if done == "replayed" else " or discard"
    try:
        for batch in letters.batches(chosen):
            producer.transact([message for letter in batch for message in messages(letter)])
            sent += len(batch)
    except Fenced:
        raise click.ClickException(f"another replay{other} started and took over; this one {done} {sent}") from None
    except CommitUnknown as error:
        raise BrokerUnavailable(
            f"{error}: {sent} {done}, and the next ones perhaps; run the command again, none is {done} twice"
        ) from error
    except BrokerUnavailable as error:
        raise BrokerUnavailable(f"{error}: {sent} of {len(chosen)} {done}") from error
    return sent


def _report_strangers(strangers: Sequence[str]) -> None:
    if strangers:
        shown = ", ".join(strangers[:10]) + (" ..." if len(strangers) > 10 else "")
        click.echo(
            f"{terminal.plural(len(strangers), 'record')} skipped, not readable as a dead letter: {shown}", err=True
        )


def _table(chosen: Sequence[Letter]) -> object:
    rows = []
    for letter in chosen:
        error = letter.message.error
        rows.append(
            (
                letter.name,
                f"{letter.message.timestamp:%Y-%m-%d %H:%M:%S}",
                letter.message.error_code,
                letter.job_id or "",
                letter.shown("source"),
                letter.shown("destination"),
                (f"{letter.state}; " if letter.settled else "")
                + (error if len(error) <= ERROR_SHOWN else error[:ERROR_SHOWN] + "…"),
            )
        )
    columns = ["place", "when (UTC)", "code", "job", "from", "to", "error"]
    return terminal.table(columns, rows, whole=["place", "code", "job"])


def _print_whole(letter: Letter) -> None:
    message = letter.message
    place = f"{message.original_topic} {message.original_partition}:{message.original_offset}"
    facts = {
        "place": letter.name,
        "replayed": "yes" if letter.replayed else "no",
        "discarded": "yes" if letter.discarded else None,
        "when": document.iso(message.timestamp),
        "job": letter.job_id,
        "from": letter.shown("source") or None,
        "to": letter.shown("destination") or None,
        "code": message.error_code,
        "error": message.error,
        "retries": message.retry_count,
        "replays": letter.replays,
        "was at": place if message.original_topic is not None else None,
        "sha256": message.original_sha256,
    }
    for name, value in facts.items():
        if value is not None:
            print(f"{name + ':':11}{terminal.visible(value)}")
    for number, attempt in enumerate(message.attempts, start=1):
        print(terminal.visible(f"attempt {number}: {attempt.at} {attempt.where}: {attempt.what}"))
    if message.truncated and message.original_bytes_count is None:
        print("message:   not read")
        return
    if message.truncated:
        print(f"message:   too large, {message.original_bytes_count} bytes; its start in base64:")
    else:
        print("message:")
    print(terminal.json_line(message.original_message))
