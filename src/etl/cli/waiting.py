"""Waits for the results of jobs that were just sent, with a progress bar."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import click

from etl import broker
from etl.cli import terminal
from etl.config import Settings
from etl.errors import InvalidMessage
from etl.models import TransferResult, header
from etl.models.task import Record
from etl.topics.names import Topics

JOBS_SHOWN = 20  # at most, of failed jobs and of jobs without a result
TURN_RECORDS = 500  # read from one topic before it is the other one's turn


@dataclass(frozen=True)
class Sent:
    """A job that Kafka has acknowledged."""

    topic: str
    partition: int
    offset: int
    given_id: str | None

    @property
    def derived_id(self) -> str:
        """The id that the consumer gives to a job without one."""
        return f"{self.topic}-{self.partition}-{self.offset}"

    @property
    def job_id(self) -> str:
        """The id that the result is expected to have."""
        return self.given_id or self.derived_id

    def to_dict(self) -> dict[str, object]:
        """Return id and place as a JSON object."""
        return {"job_id": self.job_id, "topic": self.topic, "partition": self.partition, "offset": self.offset}


class Expected:
    """The results still to come. Several jobs may have the same id."""

    def __init__(self, sent: Sequence[Sent]) -> None:
        self._by_place = {job.derived_id: job for job in sent}
        self._by_id: dict[str, list[Sent]] = defaultdict(list)
        for job in reversed(sent):
            self._by_id[job.job_id].append(job)

    def __len__(self) -> int:
        return len(self._by_place)

    def missing(self) -> list[Sent]:
        """Return the jobs without a result, in the order they were sent."""
        return list(self._by_place.values())

    def take(self, record: Record, result: TransferResult) -> bool:
        """Note a result: is it the first one for a job of ours? Compares the place if it is known, else the id."""
        place = (record.header(header.ORIGIN) or b"").decode("utf-8", "replace")
        if place:
            return self._by_place.pop(place, None) is not None
        if self._by_place.pop(result.job_id, None) is not None:
            return True
        waiting = self._by_id.get(result.job_id, [])
        while waiting:
            if self._by_place.pop(waiting.pop().derived_id, None) is not None:
                return True
        return False


class Waiting:
    """Follows the topics for results from their ends at its creation: create it before sending the jobs."""

    def __init__(self, bootstrap_servers: str, topics: Topics) -> None:
        self._readers: list[broker.Reader] = []
        self._starts: list[Mapping[int, int]] = []
        try:
            for topic in dict.fromkeys((topics.results, topics.failed)):
                self._readers.append(broker.Reader(bootstrap_servers, topic))
                self._starts.append(self._readers[-1].ends())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect."""
        for reader in self._readers:
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def results(self, expected: Expected, timeout: float | None, *, as_json: bool) -> list[TransferResult]:
        """Return the expected results that come within `timeout` seconds (None: no limit); print them if `as_json`."""
        # Imported while the jobs are done.
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        found: list[TransferResult] = []
        deadline = None if timeout is None else time.monotonic() + timeout
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[failed]}"),
        )
        with Progress(*columns, console=terminal.console(error=True)) as progress:
            bar = progress.add_task("jobs", total=len(expected), failed="")
            failed = 0
            for record in self._records():
                result = _read(record)
                if record is not None and result is not None and expected.take(record, result):
                    found.append(result)
                    failed += not result.succeeded
                    progress.update(bar, advance=1, failed=f"{failed} failed" if failed else "")
                    if as_json:
                        print(terminal.json_line(result.to_dict()), flush=True)
                if not expected or (deadline is not None and time.monotonic() >= deadline):
                    break
        return found

    def _records(self) -> Iterator[Record | None]:
        streams = [reader.follow(dict(start)) for reader, start in zip(self._readers, self._starts, strict=True)]
        while True:
            for stream in streams:
                for count, record in enumerate(stream, start=1):
                    yield record
                    if record is None or (count >= TURN_RECORDS and len(streams) > 1):
                        break


def _read(record: Record | None) -> TransferResult | None:
    if record is None:
        return None
    try:
        return TransferResult.from_json(record.value)
    except InvalidMessage:
        return None  # another program's record


def print_summary(results: Sequence[TransferResult], jobs: int, seconds: float, *, as_json: bool) -> None:
    """Print how many files and bytes moved, how fast, and what failed; on standard error if results are JSON lines."""
    failures = [result for result in results if not result.succeeded]
    for result in failures[:JOBS_SHOWN]:
        click.echo(terminal.visible(f"failed: {result.job_id}: {result.error_code}: {result.error}"), err=True)
    if len(failures) > JOBS_SHOWN:
        click.echo(f"and {len(failures) - JOBS_SHOWN} more failed", err=True)
    done = len(results) - len(failures)
    moved = sum(result.bytes or 0 for result in results if result.succeeded)
    seconds = max(seconds, 0.001)
    click.echo(
        f"{terminal.plural(jobs, 'job')}: {done} done, {len(failures)} failed; {terminal.size(moved)}"
        f" in {seconds:.1f} s ({done / seconds:.1f} files/s, {terminal.size(moved / seconds)}/s)",
        err=as_json,
    )


def print_interrupted(sent: int, missing: int) -> None:
    """Print that Ctrl-C has ended only the waiting."""
    click.echo(
        f"\nno longer waiting: {terminal.plural(sent, 'job')} sent, {missing} without a result yet;"
        " the jobs stay on the topic and will be done",
        err=True,
    )


def print_missing(missing: Sequence[Sent], timeout: float, settings: Settings) -> None:
    """Print which jobs had no result in time, and where to look for them."""
    click.echo(f"no result within {timeout:g} s: {terminal.plural(len(missing), 'job')}", err=True)
    for job in missing[:JOBS_SHOWN]:
        click.echo(terminal.visible(f"no result: {job.job_id}"), err=True)
    if len(missing) > JOBS_SHOWN:
        click.echo(f"and {len(missing) - JOBS_SHOWN} more without a result", err=True)
    name = "kafka-consumer-groups.sh"
    tool = name if shutil.which(name) else f"kafka/bin/{name}"  # on PATH in the image, but not in a clone
    of_group = f"--bootstrap-server {settings.bootstrap_servers} --describe --group {settings.group_id}"
    click.echo(
        "the jobs stay on the topic and may still be done; where to look:\n"
        f"  is a consumer of {settings.topic} running, and how many jobs are ahead (LAG)?"
        f" {tool} {of_group}\n"
        '  is the job waiting for a server? "job waits" or "job deferred" in the consumers\' logs; etl servers check\n'
        f"  has the job failed meanwhile? etl dlq list --topic {settings.topic}",
        err=True,
    )
