"""`etl submit`: sends jobs to the topic, and waits for their results."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import click

from etl import broker
from etl.cli import terminal
from etl.cli.options import with_config
from etl.cli.waiting import Expected, Sent, Waiting, print_interrupted, print_missing, print_summary
from etl.config import ConfigLoader
from etl.errors import BrokerUnavailable, InvalidMessage, UnknownServer
from etl.models import FileTransferJob, bundle
from etl.topics.names import Topics

BAD_LINES_SHOWN = 20
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Draft:
    """A message to send. The key keeps jobs of one destination in order; `job_id` is None if it cannot be read."""

    key: bytes | None
    value: bytes
    job_id: str | None
    servers: tuple[str, ...] = ()


@click.command()
@click.argument("source", metavar="SRC:/PATH", required=False)
@click.argument("destination", metavar="DST:/PATH", required=False)
@click.option("-f", "--file", "path", help="File of jobs, one JSON object per line; - is standard input.")
@click.option("--no-check", is_flag=True, help="Send the lines as they are, valid or not.")
@click.option("--job-id", help="Id of a single job (default: a new one).")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), help="Priority of a single job.")
@click.option(
    "--overwrite",
    type=click.Choice(["replace", "skip", "fail", "newer"]),
    help="What to do if the destination of a single job exists.",
)
@click.option(
    "--source-action", metavar="keep|delete|move:PATH", help="What to do with the source of a single job afterwards."
)
@click.option("--wait", is_flag=True, help="Wait for the result of each job; exit with code 1 if any failed.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds to wait at most (default: no limit)."
)
@click.option("--json", "as_json", is_flag=True, help="Print results (without --wait: what was sent) as JSON lines.")
@with_config
def submit(
    config: ConfigLoader,
    source: str | None,
    destination: str | None,
    path: str | None,
    no_check: bool,
    job_id: str | None,
    priority: str | None,
    overwrite: str | None,
    source_action: str | None,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Send one job (etl submit SRC:/path DST:/path), or a file of jobs (--file FILE, or - for standard input).

    All lines are checked before anything is sent.
    """
    if source == "-" and destination is None and path is None:
        source, path = None, "-"
    one_job_options = (job_id, priority, overwrite, source_action)
    if path is not None:
        if source is not None or any(option is not None for option in one_job_options):
            raise click.UsageError("--file cannot be combined with SRC, DST or options of a single job")
        drafts = _read(path, check=not no_check)
    elif source is None or destination is None:
        raise click.UsageError("give SRC:/PATH and DST:/PATH, or --file FILE")
    elif no_check:
        raise click.UsageError("--no-check needs --file")
    else:
        drafts = [_one(source, destination, job_id, priority, overwrite, source_action)]
    _warn_of_strangers(config, drafts)
    settings = config.settings
    topics = Topics.of(settings.topic, settings)
    if not wait:
        sent = _send(settings.bootstrap_servers, topics.source, drafts)
        for job in sent:
            if as_json:
                print(terminal.json_line(job.to_dict()))
        if not as_json:
            only = f": {sent[0].job_id}" if len(sent) == 1 else ""
            print(f"{terminal.plural(len(sent), 'job')} sent to {topics.source}{only}")
        return
    with Waiting(settings.bootstrap_servers, topics) as waiting:
        started = time.monotonic()
        sent = _send(settings.bootstrap_servers, topics.source, drafts)
        expected = Expected(sent)
        try:
            results = waiting.results(expected, timeout, as_json=as_json)
        except KeyboardInterrupt:
            print_interrupted(len(sent), len(expected))
            sys.exit(EXIT_INTERRUPTED)
    print_summary(results, len(sent), time.monotonic() - started, as_json=as_json)
    missing = expected.missing()
    if missing and timeout is not None:
        print_missing(missing, timeout, settings)
    if missing or not all(result.succeeded for result in results):
        sys.exit(1)


def _one(
    source: str,
    destination: str,
    job_id: str | None,
    priority: str | None,
    overwrite: str | None,
    source_action: str | None,
) -> Draft:
    action: object = source_action
    if source_action is not None and source_action.startswith("move:"):
        action = {"move": source_action.removeprefix("move:")}
    elif source_action not in {None, "keep", "delete"}:
        raise click.UsageError("--source-action must be keep, delete or move:PATH")
    options = {"overwrite": overwrite, "source_action": action}
    try:
        job = FileTransferJob.from_dict(
            {
                "job_id": job_id or uuid.uuid4().hex,
                "source": _endpoint("SRC", source),
                "destination": _endpoint("DST", destination),
                "priority": priority,
                "options": {name: value for name, value in options.items() if value is not None},
            }
        )
    except InvalidMessage as error:
        raise click.UsageError(terminal.visible(error)) from None
    return _draft(job)


def _endpoint(role: str, text: str) -> dict[str, str]:
    name, colon, path = text.partition(":")
    if not colon or not name or not path:
        raise click.UsageError(f"{role} must be SERVER:PATH, not {terminal.visible(text)}")
    return {"hostname": name, "path": path}


def _read(path: str, *, check: bool) -> list[Draft]:
    try:
        with click.open_file(path, "rb") as file:  # - is standard input
            return _drafts(file, check=check)
    except OSError as error:
        raise click.UsageError(f"{terminal.visible(path)} cannot be read: {error.strerror}") from None


def _drafts(lines: Iterable[bytes], *, check: bool) -> list[Draft]:
    """Return a draft for each line that is not blank. Raises UsageError, which lists the invalid lines."""
    drafts: list[Draft] = []
    bad: list[str] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip(b"\r\n")
        if not line.strip():
            continue
        try:
            job = bundle.read(line, uuid.uuid4().hex)
        except InvalidMessage as error:
            if check:
                bad.append(f"line {number}: {terminal.visible(error)}")
            drafts.append(Draft(None, line, None))
            continue
        if isinstance(job, tuple):
            drafts += [_draft(part) for part in job]
        elif check:
            drafts.append(_draft(job, line))
        else:
            drafts.append(Draft(job.ordering_key, line, job.job_id, _servers(job)))
    if bad:
        rest = len(bad) - BAD_LINES_SHOWN
        shown = [*bad[:BAD_LINES_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]
        raise click.UsageError("nothing was sent:\n  " + "\n  ".join(shown))
    if not drafts:
        raise click.UsageError("there are no jobs to send")
    return drafts


def _draft(job: FileTransferJob, line: bytes | None = None) -> Draft:
    """Return the job as it is sent: its own line; or rewritten with a new id, if it has none to be recognised by."""
    if job.job_id is None:
        job, line = job.with_id(uuid.uuid4().hex), None
    return Draft(job.ordering_key, line or job.to_json().encode("utf-8"), job.job_id, _servers(job))


def _servers(job: FileTransferJob) -> tuple[str, ...]:
    return (job.source.hostname, job.destination.hostname)


def _warn_of_strangers(config: ConfigLoader, drafts: Iterable[Draft]) -> None:
    """Warn about servers that these settings lack, if they have any. The consumers' settings may differ."""
    if not config.servers:
        return
    for name in dict.fromkeys(name for draft in drafts for name in draft.servers):
        try:
            config.get_server_config(name)
        except UnknownServer as error:
            click.echo(f"warning: {terminal.visible(error)} in the settings here", err=True)


def _send(bootstrap_servers: str, topic: str, drafts: Sequence[Draft]) -> list[Sent]:
    """Send all drafts; return them with their places. Raises BrokerUnavailable, which says how many were sent."""
    with broker.Reader(bootstrap_servers, topic) as reader:
        reader.ends()  # fails at once if the topic does not exist; the producer would only time out
    with broker.Writer(bootstrap_servers) as writer:
        acknowledged: list[Sent] = []
        try:
            deliveries = [writer.send(topic, draft.key, draft.value) for draft in drafts]
            writer.flush()
            for draft, delivery in zip(drafts, deliveries, strict=True):
                partition, offset = delivery.result()
                acknowledged.append(Sent(topic, partition, offset, draft.job_id))
        except BrokerUnavailable as error:
            raise BrokerUnavailable(
                f"{error} (at least {len(acknowledged)} of {len(drafts)} jobs were sent)"
            ) from error
    return acknowledged
