"""What tests of whole consumers work with: topics of their own, jobs in and outcomes out, and a consumer to run.

Topics are read and written with the Kafka client itself, not with the product's code.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

import stack
from etl.config import ConfigLoader
from etl.consumer import FileTransferConsumer
from etl.models.letter import DLQMessage

# What a command of a test inherits; settings of whoever runs the tests stay out.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
SOURCES = stack.REPOSITORY / "src"
SHORT_LIMITS = (sys.executable, str(stack.REPOSITORY / "tests" / "short_limits.py"))
# Quick ones: a test waits for seconds, not for minutes.
SETTINGS = {
    "ETL_RETRY_BACKOFF_SECONDS": "0.1",
    "ETL_RETRY_BACKOFF_MAX_SECONDS": "0.2",
    "ETL_RETRY_MAX_ATTEMPTS": "3",
    "ETL_WORKERS": "4",
    "ETL_SHUTDOWN_GRACE_SECONDS": "2",
    "ETL_LOGIN_BACKOFF_SECONDS": "1",
}


def login(name: str, server: Any, **properties: str) -> dict[str, str]:
    """Return the settings of an FTP server of a test: `stack.Vsftpd`, `stack.Ftpd`, a fake."""
    values = {"TYPE": "ftp", "HOST": server.host, "PORT": server.port, "USER": server.username, "PASS": server.password}
    return {f"{name}_{key}": str(value) for key, value in (values | properties).items()}


def folder(name: str, path: Path, **properties: str) -> dict[str, str]:
    """Return the settings of a local folder as a server."""
    path.mkdir(parents=True, exist_ok=True)
    return {f"{name}_{key}": str(value) for key, value in {"TYPE": "local", "BASE_PATH": path, **properties}.items()}


def job(source: str, destination: str, job_id: str | None = None, **options: Any) -> dict[str, Any]:
    """Return a job's message: `job("A:/in/a", "B:/out/a", overwrite="skip")`; without an id it gets a fresh one."""
    ends = [dict(zip(("hostname", "path"), end.split(":", 1), strict=True)) for end in (source, destination)]
    message = {"job_id": job_id or uuid.uuid4().hex[:12], "source": ends[0], "destination": ends[1]}
    return {**message, "options": options} if options else message


class Desk:
    """The topics of one test: made at once, small; jobs go in, outcomes are collected as they come."""

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        partitions: int = 2,
        configs: Mapping[str, Mapping[str, str]] | None = None,
        more_topics: Sequence[str] = (),
    ) -> None:
        self.bootstrap_servers, self.topic, self.group = bootstrap_servers, topic, f"group-{topic}"
        self.system_prefix = "etl-"  # of the topics that all processes share
        self.results_topic, self.dlq, self.retry = (f"{topic}-{what}" for what in ("results", "dlq", "retry"))
        counts = {topic: partitions, self.results_topic: 1, self.dlq: 1, self.retry: 8} | dict.fromkeys(more_topics, 1)
        with self._admin() as admin:
            admin.create_topics(
                {
                    name: {"num_partitions": count, "configs": dict((configs or {}).get(name, {}))}
                    for name, count in counts.items()
                }
            )
            admin.wait_for_topics(list(counts), timeout_ms=20_000)
        self._producer: Any = KafkaProducer(bootstrap_servers=bootstrap_servers, max_request_size=32 << 20)
        self._reader: Any = KafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            group_id=None,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
        )
        outcomes = [(name, number) for name, count in counts.items() if name != topic for number in range(count)]
        self._reader.assign([TopicPartition(*tp) for tp in outcomes])
        self.records: dict[str, list[Any]] = {name: [] for name in counts}

    def close(self) -> None:
        """Disconnect."""
        self._producer.close(timeout=5)
        self._reader.close()
        with warnings.catch_warnings():  # a connect under way while it closes is left to the collector by the client
            warnings.simplefilter("ignore", ResourceWarning)
            self._producer, self._reader = None, None
            gc.collect()

    def send(
        self,
        *messages: Mapping[str, Any] | bytes | None,
        partition: int | None = 0,
        headers: Sequence[tuple[str, bytes]] = (),
        topic: str | None = None,
    ) -> list[tuple[int, int]]:
        """Send messages, in order; return (partition, offset) of each."""
        values = [json.dumps(message).encode() if isinstance(message, Mapping) else message for message in messages]
        futures = [
            self._producer.send(
                topic or self.topic, value=value, key=b"key", partition=partition, headers=list(headers)
            )
            for value in values
        ]
        return [(told.partition, told.offset) for told in (future.get(timeout=20) for future in futures)]

    def keep_apart(self) -> None:
        """Have consumers and commands share their system topics with no other test: they read all that is there."""
        self.system_prefix = f"{self.topic}-"

    def pump(self) -> None:
        """Collect what has come, for up to a tenth of a second."""
        for found in self._reader.poll(timeout_ms=100).values():
            for record in found:
                self.records[record.topic].append(record)

    def wait(self, happened: Callable[[], object], limit: float = 20.0, what: str = "") -> None:
        """Collect until something is so."""
        deadline = time.monotonic() + limit
        while not happened():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what or 'it'}: not within {limit:g} s; results: {self.results()}")
            self.pump()

    def results(self, topic: str | None = None) -> list[dict[str, Any]]:
        """Return the results collected so far."""
        return [json.loads(record.value) for record in self.records[topic or self.results_topic]]

    def letters(self) -> list[DLQMessage]:
        """Return the dead letters collected so far."""
        return [DLQMessage.from_json(record.value) for record in self.records[self.dlq]]

    def letter(self, job_id: str) -> DLQMessage:
        """Return the one dead letter of a job."""
        (found,) = [letter for letter in self.letters() if letter.job_id == job_id]
        return found

    def deferred(self) -> list[Any]:
        """Return the records of T-retry collected so far."""
        return self.records[self.retry]

    def outcome(self, job_id: str, limit: float = 20.0) -> dict[str, Any]:
        """Wait for a job's result; there is one."""
        self.wait(lambda: any(_id(result) == job_id for result in self.results()), limit, f"result of {job_id}")
        (found,) = [result for result in self.results() if _id(result) == job_id]
        return found

    def do(self, *jobs: Mapping[str, Any], limit: float = 20.0) -> list[dict[str, Any]]:
        """Send jobs, wait for their results, return these in the jobs' order."""
        self.send(*jobs)
        return [self.outcome(_id(one), limit) for one in jobs]

    def committed(self) -> dict[tuple[str, int], int]:
        """Return the group's offsets."""
        names = {self.topic: None, self.retry: None}
        with self._admin() as admin:
            tps = [TopicPartition(n, p) for n in names for p in sorted(self._reader.partitions_for_topic(n) or ())]
            told = admin.list_group_offsets({self.group: tps})[self.group]
            return {(tp.topic, tp.partition): found.offset for tp, found in told.items()}

    def lag(self) -> int:
        """Return by how much the group is behind the ends of the jobs' topic and T-retry, as Kafka's own tools tell."""
        committed = self.committed()
        ends = self._reader.end_offsets([TopicPartition(*tp) for tp in committed])
        return sum(max(0, ends[tp] - max(0, committed[tuple(tp)])) for tp in ends)

    def settings(self, *more: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a consumer of these topics."""
        own = {
            "ETL_TOPIC": self.topic,
            "ETL_GROUP_ID": self.group,
            "ETL_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "ETL_SYSTEM_TOPIC_PREFIX": self.system_prefix,
        }
        environment = SETTINGS | own
        for some in more:
            environment |= some
        return environment

    @contextlib.contextmanager
    def consuming(self, *more: Mapping[str, str]) -> Iterator[FileTransferConsumer]:
        """Run a consumer in a thread of this process; raises what its `start` raised."""
        with consuming(self.settings(*more)) as consumer:
            yield consumer

    @contextlib.contextmanager
    def _admin(self) -> Iterator[Any]:
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers, request_timeout_ms=20_000)
        try:
            yield admin
        finally:
            admin.close()


def _id(message: Mapping[str, Any]) -> str:
    return str(message.get("job_id") or message.get("task_id"))


@contextlib.contextmanager
def consuming(settings: Mapping[str, str]) -> Iterator[FileTransferConsumer]:
    """Run a consumer in a thread of this process; raises what its `start` raised."""
    config = ConfigLoader(environ=settings)
    asked = config.settings
    consumer = FileTransferConsumer(asked.topic, asked.group_id, asked.bootstrap_servers, config)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            consumer.start()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="consumer")
    thread.start()
    try:
        yield consumer
    finally:
        consumer.stop()
        thread.join(30)
        assert not thread.is_alive(), "the consumer did not stop"
    if failures:
        raise failures[0]


class Writing:
    """Sends messages to topics that a test did not make itself."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._producer = KafkaProducer(bootstrap_servers=bootstrap_servers)

    def send(self, topic: str, message: Mapping[str, Any]) -> None:
        """Send one and wait until it is there."""
        self._producer.send(topic, json.dumps(message).encode()).get(timeout=20)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.close(timeout=5)


class Command:
    """The real command as a process of its own: `python -m etl.main ARGUMENTS`. Its output goes to `log`."""

    def __init__(
        self,
        cwd: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m", "etl.main"),
    ) -> None:
        self.log = cwd / f"command-{uuid.uuid4().hex[:6]}.log"
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        path = os.pathsep.join([str(SOURCES), *filter(None, [(environment or {}).get("PYTHONPATH")])])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*program, *arguments],
                cwd=cwd,
                env={**inherited, "PYTHONUNBUFFERED": "1", **(environment or {}), "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the lines of a log in JSON."""
        lines = [json.loads(line) for line in self.output.splitlines()]
        return [line for line in lines if name is None or line["event"] == name]

    def wait(self, limit: float = 30.0) -> int:
        """Wait for its end; return its exit code."""
        return self.process.wait(limit)

    def stop(self, limit: float = 30.0) -> int:
        """Ask it to end (SIGTERM), wait; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(limit)

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop(15)
        self.kill()
        if kind is not None:
            sys.stdout.write(self.output)  # for whoever reads of the failure


def original(letter: DLQMessage) -> bytes | None:
    """Return the start of a short form's original, the whole of any other."""
    if letter.truncated:
        return base64.b64decode(letter.original_message["raw_base64"])
    return letter.original_bytes()
