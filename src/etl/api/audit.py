"""Writes the audit: a record of each act and of each refused one, in order, from a thread of its own.

While the broker is away, records wait, as many as QUEUED; each is in the log as well.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from datetime import UTC, datetime
from typing import Any

import structlog

from etl.broker import Writer
from etl.errors import BrokerUnavailable
from etl.logs import redact
from etl.models import document

log = structlog.get_logger(__name__)

QUEUED = 10_000
AGAIN_SECONDS = 2.0
STOP_SECONDS = 10.0


class Audit:
    """The writer of one process."""

    def __init__(self, bootstrap_servers: str, topic: str, writer: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._writer = writer
        self._previous = ""
        self._waiting: queue.Queue[bytes | None] = queue.Queue(QUEUED)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._lock = threading.Lock()  # guards the chain: its order is that of the queue

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def write(self, record: dict[str, Any]) -> None:
        """Queue a record; log it. Never waits."""
        with self._lock:
            whole = {
                "at": document.iso(datetime.now(UTC)),
                "writer": self._writer,
                **record,
                "previous": self._previous,
            }
            line = redact(document.write(whole)).encode("utf-8", "backslashreplace")
            self._previous = hashlib.sha256(line).hexdigest()
            log.info("act", **{name: value for name, value in record.items() if value not in (None, "")})
            try:
                self._waiting.put_nowait(line)
            except queue.Full:
                log.warning("audit record lost: too many wait for the broker")

    def stop(self) -> None:
        """Write what waits, if the broker answers, and end the thread."""
        self._stopping.set()
        self._waiting.put(None)
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        line: bytes | None = b""
        while line is not None:
            try:
                with Writer(self._bootstrap_servers) as writer:
                    while line is not None:
                        line = line or self._waiting.get()
                        if line:
                            writer.send(self._topic, self._writer.encode(), line).result()
                            line = b""
            except BrokerUnavailable as error:
                log.info("audit waits for the broker", error=str(error))
                if self._stopping.wait(AGAIN_SECONDS):
                    return
