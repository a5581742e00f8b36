"""The topics of a test, read with the Kafka client itself, not with the product's code: jobs in, outcomes out.

Only `made` is the product's: a client that finds no broker leaves no socket behind.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from chaos.work import Job
from etl.broker.connection import create_client

REQUEST_MS = 20_000


@dataclass(frozen=True)
class Outcome:
    """One record of the results topic."""

    job_id: str
    status: str
    said: Mapping[str, Any]


class Topics:
    """The source topic `name` and those beside it, for a test: use as a context manager."""

    def __init__(self, bootstrap_servers: str, name: str, group: str) -> None:
        self.bootstrap_servers, self.name, self.group = bootstrap_servers, name, group
        self.outcomes: list[Outcome] = []
        self._results: KafkaConsumer | None = None
        self._positions: dict[TopicPartition, int] = {}
        self._producer: KafkaProducer | None = None

    def create(self, partitions: int = 4) -> Topics:
        """Make the source topic and the results topic; the consumers make the others."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers, request_timeout_ms=REQUEST_MS)
        try:
            admin.create_topics({n: {"num_partitions": partitions} for n in (self.name, f"{self.name}-results")})
            admin.wait_for_topics([self.name, f"{self.name}-results"], timeout_ms=REQUEST_MS)
        finally:
            admin.close()
        return self

    def __enter__(self) -> Topics:
        self._connect()
        return self

    def _connect(self) -> None:
        self._producer = create_client(KafkaProducer, bootstrap_servers=self.bootstrap_servers, linger_ms=5)
        try:
            self._results = self._reader(f"{self.name}-results")
        except BaseException:
            self._producer.close(timeout=5)
            raise
        for tp, offset in self._positions.items():
            self._results.seek(tp, offset)

    def __exit__(self, *_: object) -> None:
        assert self._producer is not None
        assert self._results is not None
        self._positions = {tp: self._results.position(tp) for tp in self._results.assignment()}
        self._producer.close(timeout=5)
        self._results.close()

    @contextlib.contextmanager
    def disconnected(self) -> Iterator[None]:
        """Have no connection to the broker for a while: a client that meets a dead one leaves sockets open."""
        self.poll()
        self.__exit__()
        yield
        deadline = time.monotonic() + 30
        while True:  # a broker that just came back knows its topics a moment later
            try:
                self._connect()
            except KafkaError:
                assert time.monotonic() < deadline, "the broker does not come back"
                time.sleep(0.2)
            else:
                return

    def send(self, jobs: Iterable[Job], key: Callable[[Job], str] = lambda job: job.id) -> None:
        """Send jobs and wait until the broker has them; those of one key share a partition."""
        assert self._producer is not None
        futures = [self._producer.send(self.name, value=job.message(), key=key(job).encode()) for job in jobs]
        self._producer.flush(timeout=30)
        for future in futures:
            future.get(timeout=30)

    def poll(self, timeout: float = 0.1) -> int:
        """Read what has come to the results topic; return how many there are in all."""
        assert self._results is not None
        for records in self._results.poll(timeout_ms=int(timeout * 1000)).values():
            for record in records:
                said = json.loads(record.value)
                self.outcomes.append(Outcome(said["job_id"], said["status"], said))
        return len(self.outcomes)

    @property
    def done(self) -> set[str]:
        """The ids of the jobs that have a result."""
        return {outcome.job_id for outcome in self.outcomes}

    def wait_for(self, jobs: Iterable[Job] | int, limit: float) -> None:
        """Wait until these jobs, or so many, have results; raise TimeoutError after `limit` seconds."""
        wanted = jobs if isinstance(jobs, int) else {job.id for job in jobs}
        deadline = time.monotonic() + limit

        def missing() -> int:
            return wanted - len(self.done) if isinstance(wanted, int) else len(wanted - self.done)

        while missing() > 0:
            if time.monotonic() > deadline:
                names = [] if isinstance(wanted, int) else sorted(wanted - self.done)[:10]
                raise TimeoutError(f"{missing()} results missing after {limit:g} s: {names}")
            self.poll()

    def wait_until(self, happened: Callable[[], object], limit: float, what: str) -> None:
        """Wait for anything, reading results meanwhile."""
        deadline = time.monotonic() + limit
        while not happened():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {limit:g} s")
            self.poll()

    def dead_letters(self) -> list[str]:
        """Return the dead letters: why each went no further."""
        return [str(json.loads(value).get("error")) for value in self.values(f"{self.name}-dlq")]

    def values(self, topic: str) -> list[bytes]:
        """Return all committed records of a topic."""
        reader = self._reader(topic)
        try:
            tps = list(reader.assignment())
            ends = reader.end_offsets(tps)
            found: list[bytes] = []
            deadline = time.monotonic() + 20
            while any(reader.position(tp) < ends[tp] for tp in tps):
                assert time.monotonic() < deadline, f"{topic} cannot be read to its end"
                found += [r.value for records in reader.poll(timeout_ms=200).values() for r in records]
            return found
        finally:
            reader.close()

    def lag(self) -> int:
        """Return by how much the group's offsets are behind in the source topic."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers, request_timeout_ms=REQUEST_MS)
        reader = self._reader(self.name)
        try:
            tps = list(reader.assignment())
            told = admin.list_group_offsets({self.group: tps})[self.group]
            ends = reader.end_offsets(tps)
            return sum(ends[tp] - max(0, told[tp].offset if tp in told else 0) for tp in tps)
        finally:
            reader.close()
            admin.close()

    def problems(self, jobs: Iterable[Job]) -> list[str]:
        """Say what the results have wrong: missing, doubled, failed, untrue; empty when all is well."""
        by_id = {job.id: job for job in jobs}
        counts = Counter(outcome.job_id for outcome in self.outcomes)
        said = [f"no result: {job_id}" for job_id in sorted(by_id.keys() - counts.keys())]
        said += [f"{count} results: {job_id}" for job_id, count in sorted(counts.items()) if count > 1]
        for outcome in self.outcomes:
            job = by_id.get(outcome.job_id)
            if job is None:
                said.append(f"a result for nobody: {outcome.said}")
                continue
            if outcome.status != "SUCCESS":
                said.append(f"failed: {outcome.job_id}: {outcome.said.get('error_code')} {outcome.said.get('error')}")
                continue
            size = len(job.before) if job.skipped and job.before is not None else job.size_bytes
            if bool(outcome.said["skipped"]) != job.skipped or outcome.said["bytes"] != size:
                said.append(
                    f"untrue: {outcome.job_id}: skipped {outcome.said['skipped']} bytes {outcome.said['bytes']}"
                )
        return said

    def _reader(self, topic: str) -> KafkaConsumer:
        reader = create_client(
            KafkaConsumer,
            bootstrap_servers=self.bootstrap_servers,
            group_id=None,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
        )
        try:
            tps = [TopicPartition(topic, number) for number in sorted(reader.partitions_for_topic(topic) or ())]
            reader.assign(tps)
            if tps:
                reader.seek_to_beginning()
        except BaseException:
            reader.close()
            raise
        return reader
