"""Everything that hostile producers, servers, neighbours and local users can do, at once, beside honest jobs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

import stack
from chaos.conftest import LONG
from chaos.judging import end_in_good_order
from chaos.processes import Consumer
from chaos.topics import Topics
from chaos.work import Place, Work, ftp_place, local_place
from servers.fake import FakeFTP, FakeSession

SECONDS = int(os.environ.get("HOSTILE_SECONDS", "600" if LONG else "12"))
JOBS = int(os.environ.get("HOSTILE_JOBS", "10000" if LONG else "300"))
PATIENCE = 300  # seconds more, until the last job must be done

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(SECONDS + PATIENCE + 120)]

MEMORY_BYTES = 512 << 20  # of a consumer: the limit in k8s/statefulset.yaml
FILE_BYTES = 8 << 20
DISK_BYTES = 1 << 30  # of the broker's data, at most
BOMB_BYTES = 64 << 20
SETTINGS = {
    "ETL_RETRY_BACKOFF_SECONDS": "0.2",
    "ETL_RETRY_MAX_ATTEMPTS": "3",
    "ETL_STALL_TIMEOUT_SECONDS": "5",
    "ETL_REPLY_TIMEOUT_SECONDS": "10",
    "ETL_MAX_FILE_BYTES": str(FILE_BYTES),
    "ETL_GROUP_SECRET": "known-to-consumers-alone",
    "EVIL_ENCODING": "cp1251",
    "CLOSED_TYPE": "local",
    "CLOSED_ACCESS": "read",
}


def endless(its: FakeSession, _: str) -> None:
    """Send a file that has no end and no size."""
    its.reply("150 Take this.")
    with contextlib.suppress(OSError), its.data() as sock:
        while True:
            sock.sendall(bytes(1 << 16))


def bomb(its: FakeSession, _: str) -> str:
    """List nothing but partial files, each of another job."""
    its.reply("150 \x1b[2JListing.")
    with contextlib.suppress(OSError), its.data() as sock:
        for start in range(0, 700_000, 10_000):
            names = [f".etl-{number:016x}-0011223344556677.part\r\n" for number in range(start, start + 10_000)]
            sock.sendall("".join(names).encode())
    return "226 Done."


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[Place]:
    """An FTP server that stores nothing, sends without end and lists without end."""
    answers: dict[str, Any] = {
        "SIZE": "502 \x9b31m",
        "MDTM": "502 No.",
        "RETR": endless,
        "NLST": bomb,
        "STOR": "451 \u202eNo\x07.",
    }
    with FakeFTP(answers=answers, features=("EPSV", "UTF8")) as server:
        server.root = tmp_path / "evil"  # type: ignore[attr-defined]  # as the places of a test have one
        yield ftp_place("EVIL", server, MAX_CONNECTIONS="4")


class Hostile:
    """All that is sent, again and again, while honest jobs run."""

    def __init__(self, topics: Topics, broker: stack.Broker, folder: Path) -> None:
        self._topics, self._broker, self._folder = topics, broker, folder
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.rounds, self.swaps = 0, 0
        self.failure: BaseException | None = None
        self.precious = folder / "closed" / "precious"
        self.outside = folder / "outside"
        self.base = folder / "swapped"
        for made in (self.outside, self.base / "d", self.precious.parent):
            made.mkdir(parents=True)
        self.precious.write_bytes(b"precious")
        (self.base / "d" / "f").write_bytes(b"inside")
        (self.outside / "f").write_bytes(b"outside")
        (self.base / "link").symlink_to(self.outside)

    def __enter__(self) -> Hostile:
        for act in (self._produce, self._swap):
            self._threads.append(threading.Thread(target=self._noting(act), name=f"hostile{act.__name__}"))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if self.failure is not None:
            raise self.failure

    def _noting(self, act: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                act()
            except BaseException as error:
                self.failure = error

        return run

    def _swap(self) -> None:
        """As a local user: swap a folder and a link to elsewhere."""
        libc = ctypes.CDLL(None, use_errno=True)
        one, other = bytes(self.base / "d"), bytes(self.base / "link")
        while not self._stop.wait(0.002):
            assert libc.renameat2(-100, one, -100, other, 2) == 0
            self.swaps += 1

    def _produce(self) -> None:
        common = {"bootstrap_servers": self._topics.bootstrap_servers, "max_request_size": 1 << 30}
        with (
            KafkaProducer(**common, compression_type="zstd", batch_size=1 << 30) as packed,
            KafkaProducer(**common) as plain,
        ):
            while True:
                self._send_packed(packed)
                self._send_jobs(plain)
                self._forge(plain)
                plain.flush(60)
                packed.flush(60)
                self._press_the_broker()
                self.rounds += 1
                if self._stop.wait(2):
                    return

    def _send_packed(self, producer: KafkaProducer) -> None:
        topic = self._topics.name
        producer.send(topic, b" " * BOMB_BYTES).get(60)
        typos = {f"e{number:06d}sourc": 0 for number in range(100_000)}
        producer.send(topic, json.dumps(typos).encode())
        crowd = json.dumps(self._job("EVIL:/a", "EVIL:/b", metadata={"x": [{}] * 49_000})).encode()
        producer.send(topic, crowd)
        producer.send(topic, b"[" * 1_000_000)
        producer.send(topic, b"{}", headers=[("", b"")] * 100_000)

    def _send_jobs(self, producer: KafkaProducer) -> None:
        topic = self._topics.name
        for value in (b"", b"\xff\xfe\0", b'{"a":1e400}', b'{"a":' + b"9" * 5000 + b"}"):
            producer.send(topic, value, headers=[("etl-job-id", b"k" * 200_000), ("\u202e", b"x")])
        for number in range(3):
            producer.send(topic, json.dumps(self._job("EVIL:/endless", f"HERE2:/{number}")).encode())
            producer.send(topic, json.dumps(self._job("HERE2:/kept", f"EVIL:/stored/{number}")).encode())
        for source, destination, options in (
            ("EVIL:/.\u044f\u0442./secret", "HERE2:/x", {}),
            ("EVIL:/a/..\\..\\secret", "HERE2:/x", {}),
            ("SWAPPED:/d/f", "SWAPPED:/d/copy", {}),
            ("HERE2:/kept", "SWAPPED:/d/new", {}),
            ("SWAPPED:/link/f", "HERE2:/stolen", {}),
            ("CLOSED:/precious", "HERE2:/p", {"source_action": "delete"}),
            ("HERE2:/kept", "CLOSED:/q", {}),
            ("HERE2:/kept", "HERE2:/z", {"not_before": "9999-12-31T23:59:59Z"}),
            ("NOBODY" * 40 + ":/a", "HERE2:/n", {}),
        ):
            producer.send(topic, json.dumps(self._job(source, destination, options=options)).encode())

    def _forge(self, producer: KafkaProducer) -> None:
        """As a client of the broker: write to T-retry what only consumers write."""
        job = self._job("CLOSED:/precious", "HERE2:/nowhere", options={"source_action": "delete"})
        other = self._job("HERE2:/kept", "HERE2:/forged")
        group = ("etl-group", self._topics.group.encode())
        for value, headers in (
            (job, [("etl-published", b'{"mtime":1' + b"0" * 400 + b"}")]),
            (job, [("etl-published", b"{}")]),
            (other, [("etl-origin", f"{self._topics.name}-0-{self.rounds}".encode()), ("etl-orphans", b"1")]),
            (other, [("etl-attempts", b"[" * 200_000)]),
        ):
            producer.send(
                f"{self._topics.name}-retry", json.dumps(value).encode(), headers=[group, *headers], partition=0
            )

    def _press_the_broker(self) -> None:
        """As a neighbour: announce requests of 100 MB, and speak no Kafka."""
        held = [socket.create_connection(("127.0.0.1", self._broker.port), 10) for _ in range(20)]
        for number, sock in enumerate(held):
            sock.sendall(b"\x06\x40\x00\x00" if number % 2 else b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(0.2)
        for sock in held:
            sock.close()

    def _job(self, source: str, destination: str, **more: Any) -> dict[str, Any]:
        ends = {}
        for role, text in (("source", source), ("destination", destination)):
            name, _, path = text.partition(":")
            ends[role] = {"hostname": name, "path": path}
        return {"job_id": f"hostile-{self.rounds}", **ends, **more}


class Guarded:
    """A consumer that is started again when it ends, as supervisord does; knows its peak of memory."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.lives, self.peak_bytes = 0, 0

    def look(self) -> None:
        """Start it if it does not run; note its memory."""
        if not self.consumer.running:
            self.lives += 1
            self.consumer.start()
        with contextlib.suppress(OSError, StopIteration):
            status = Path(f"/proc/{self.consumer.pid}/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            self.peak_bytes = max(self.peak_bytes, int(line.split()[1]) * 1024)


def test_all_that_is_hostile_at_once_beside_honest_jobs(
    work: Work,
    evil: Place,
    topics: Topics,
    broker: stack.Broker,
    consumers: Callable[..., Consumer],
    tmp_path: Path,
) -> None:
    """Each honest job is done once; no process ends more than once, or takes more memory and disk than it may."""
    hostile = Hostile(topics, broker, tmp_path)
    extra = [evil, local_place("HERE2", tmp_path / "here2"), local_place("SWAPPED", hostile.base)]
    (tmp_path / "here2" / "kept").write_bytes(b"kept")
    settings = {key: value for place in extra for key, value in place.settings.items()} | work.settings | SETTINGS
    settings["CLOSED_BASE_PATH"] = str(hostile.precious.parent)
    guarded = [
        Guarded(consumers(name, settings, measured=False, ETL_SLOT=str(slot), ETL_INSTANCE_ID="hostile"))
        for slot, name in enumerate(("a", "b"))
    ]
    started, sent = time.monotonic(), 0
    for one in guarded:
        one.look()
    topics.send(work.add(10, "replace", "keep"))
    topics.wait_for(10, 60)  # by now the other topics are there
    with hostile:
        while (passed := time.monotonic() - started) < SECONDS:
            wanted = min(JOBS, int(JOBS * (passed + 1) / SECONDS))
            if wanted > sent:
                topics.send(work.add(wanted - sent, "replace", "keep"))
                sent = wanted
            topics.poll(0.5)
            for one in guarded:
                one.look()
    topics.send(work.add(JOBS - sent, "replace", "keep"))
    honest = {job.id for job in work.jobs}
    deadline = time.monotonic() + PATIENCE
    while missing := honest - topics.done:  # those of the hostile server may wait for it
        assert time.monotonic() < deadline, f"{len(missing)} jobs without a result"
        topics.poll(0.5)
        for one in guarded:
            one.look()
    disk_bytes = sum(path.stat().st_blocks * 512 for path in broker.folder.rglob("*") if path.is_file())
    topics.poll(1.0)
    told = {
        "rounds": hostile.rounds,
        "swaps": hostile.swaps,
        "lives": [one.lives for one in guarded],
        "peak MB": [one.peak_bytes >> 20 for one in guarded],
        "broker MB": disk_bytes >> 20,
        "results": len(topics.outcomes),
        "seconds": round(time.monotonic() - started),
    }
    print(told)
    topics.outcomes = [outcome for outcome in topics.outcomes if outcome.job_id in honest]
    problems = topics.problems(work.jobs) + work.problems()
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:30])
    assert all(one.lives <= 2 for one in guarded), told
    assert all(one.peak_bytes < MEMORY_BYTES for one in guarded), told
    assert disk_bytes < DISK_BYTES, told
    assert hostile.precious.read_bytes() == b"precious"
    assert {path.name for path in hostile.outside.iterdir()} == {"f"}
    shown = [path for path in (tmp_path / "here2").rglob("*") if path.is_file() and path.suffix != ".part"]
    copied = {path.read_bytes() for path in shown}  # an endless file may be on its way once more
    assert copied <= {b"kept", b"inside"}, "precious, outside, secret or endless"
    end_in_good_order(*(one.consumer for one in guarded), limit=40)
