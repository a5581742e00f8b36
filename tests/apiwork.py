"""What tests of the API work with: the process itself, asked over HTTP as a program or a page would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import httpx2 as httpx

import stack
from etl.broker import TransactionalProducer, Writer
from etl.models import DLQMessage, TransferResult, header
from etl.models.task import Record
from etl.models.wire import Message
from workbench import INHERITED, SOURCES

JOB = {"source": {"hostname": "SRC", "path": "/in/a.tif"}, "destination": {"hostname": "DST", "path": "/out/a.tif"}}
V1 = "/api/v1"
TOKENS = {role: f"token-of-the-{role}-0123456789" for role in ("viewer", "operator", "admin")}


class Api(stack.Server):
    """`etl api` as a process of its own, on a free port; `folder` keeps its log, its cache and its tokens."""

    def __init__(
        self,
        folder: Path,
        bootstrap_servers: str,
        topic: str,
        program: Sequence[str] = (sys.executable, "-P", "-m", "etl.main"),
        **settings: str,
    ) -> None:
        super().__init__()
        self._program = program
        self.folder = folder
        self.log = folder / "api.log"
        self.log.touch()
        self.port = stack.free_port()
        tokens = folder / "tokens"
        tokens.write_text("".join(f"{role}-1:{role}:{token}\n" for role, token in TOKENS.items()))
        self.settings = {
            "ETL_BOOTSTRAP_SERVERS": bootstrap_servers,
            "ETL_TOPIC": topic,
            "ETL_API_PORT": str(self.port),
            "ETL_API_DATA_DIR": str(folder / "data"),
            "ETL_API_TOKENS_FILE": str(tokens),
            **settings,
        }
        self.settings = {name: value for name, value in self.settings.items() if value}
        self.clients: dict[str, httpx.Client] = {}

    def start(self) -> Self:
        """Start it, again after a kill, too; return when it answers."""
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        environment |= {"PYTHONPATH": str(SOURCES), **self.settings}
        command = [*self._program, "api"]

        def listens(process: subprocess.Popen[bytes]) -> bool:
            return stack.listens(process, self.port)

        self._launch(command, environment, listens)
        return self

    def wait_ready(self, limit: float = 30.0) -> Self:
        """Wait until its views are built."""
        stack.wait_until(lambda: self.get("/ready", role=None).status_code == 200, limit, "the API ready")
        return self

    def client(self, role: str | None = "admin") -> httpx.Client:
        """Return a client with the token of a role; None: without any."""
        key = role or ""
        if key not in self.clients:
            headers = {"Authorization": f"Bearer {TOKENS[role]}"} if role else {}
            self.clients[key] = httpx.Client(base_url=self.url, headers=headers, timeout=30)
        return self.clients[key]

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, role: str | None = "viewer", **more: Any) -> httpx.Response:
        """Ask."""
        return self.client(role).get(path, **more)

    def post(self, path: str, json: Any = None, role: str | None = "operator", **more: Any) -> httpx.Response:
        """Act."""
        return self.client(role).post(path, json=json, **more)

    def close(self) -> None:
        """Close the clients, and stop the process in good order."""
        for client in self.clients.values():
            client.close()
        if self.running:
            self.stop()

    def link(self) -> str:
        """Return the token of the login link in its log."""
        found = re.search(r"/login\?token=([\w-]+)", self.log.read_text())
        assert found, self.log.read_text()
        return found[1]


def bury(broker: stack.Broker, topic: str, count: int, first: int = 0, **job: Any) -> None:
    """Write dead letters as a consumer does: in transactions, so that there are gaps in the offsets."""
    producer = TransactionalProducer(broker.bootstrap_servers, f"test-{topic}-{first}")
    batch = []
    for number in range(first, first + count):
        original = json.dumps({**JOB, **job, "job_id": f"j{number}"}).encode()
        record = Record(topic, 0, number, None, original)
        letter = DLQMessage.from_record(record, FileNotFoundError(f"no such file {number}"), f"j{number}")
        batch.append(Message(f"{topic}-dlq", b"k%d" % number, letter.to_json().encode()))
        if len(batch) == 1000:
            producer.transact(batch)
            batch = []
    producer.transact(batch)
    producer.close()


def speak(broker: stack.Broker, instance: str, **told: Any) -> None:
    """Write a process's word to etl-status."""
    value = {
        "v": 1,
        "kind": "consumer",
        "id": f"{instance}/1",
        "incarnation": "a",
        "seq": 1,
        "at": "2026-03-02T07:00:00Z",
        "started_at": "2026-03-02T06:00:00Z",
        "interval_seconds": 2,
        "state": "running",
        **told,
    }
    with Writer(broker.bootstrap_servers) as writer:
        writer.send("etl-status", f"consumer///{instance}/1".encode(), json.dumps(value).encode())


def transfer(place: str, **told: Any) -> dict[str, Any]:
    """Return a running transfer as a process tells it."""
    ends = {"source": "SRC:/in/a.tif", "destination": "DST:/out/a.tif", "began_at": "2026-03-02T07:00:00Z"}
    return {"place": place, "phase": "streaming", "size": 10, **ends, **told}


def submit(broker: stack.Broker, topic: str, **job: Any) -> tuple[int, int]:
    with Writer(broker.bootstrap_servers) as writer:
        return writer.send(topic, b"key", json.dumps({**JOB, **job}).encode()).result()


def finish(broker: stack.Broker, topic: str, place: tuple[int, int], job_id: str, **result: Any) -> None:
    told = TransferResult(job_id=job_id, **{"status": "SUCCESS", "bytes": 1000, **result})
    headers = [(header.ORIGIN, f"{topic}-{place[0]}-{place[1]}".encode())]
    with Writer(broker.bootstrap_servers) as writer:
        writer.send(f"{topic}-results", job_id.encode(), told.to_json().encode(), headers)


def eventually(ask: Callable[[], Any], wanted: Callable[[Any], object], limit: float = 20.0) -> Any:
    found: list[Any] = []

    def happened() -> bool:
        found[:] = [ask()]
        return bool(wanted(found[0]))

    stack.wait_until(happened, limit, "the view that was waited for")
    return found[0]
