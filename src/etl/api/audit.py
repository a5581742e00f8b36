"""Writes the audit: a record of each act and of each refused one, in order, from a thread of its own.

A record is in the vault before the act is answered, and leaves it once Kafka has it: while the broker is away none is
lost, nor when the process dies. Then one may be written twice, with the same `request_id`.
"""

from __future__ import annotations

import hashlib
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from etl.broker import Writer
from etl.errors import BrokerUnavailable
from etl.logs import redact
from etl.models.control import AuditRecord

if TYPE_CHECKING:
    from etl.api.access.vault import Vault

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 2.0
STOP_SECONDS = 10.0
AT_ONCE = 100


class Audit:
    """The writer of one process: `name` is what its chain of records is known by."""

    def __init__(self, bootstrap_servers: str, topic: str, name: str, vault: Vault) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._name = name
        self._vault = vault
        self._lock = threading.Lock()  # guards the chain: a record and its successor
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def write(self, told: dict[str, Any]) -> None:
        """Keep a record, to be written; log it. `told`: fields of `AuditRecord`."""
        told = {name: redact(value) if isinstance(value, str) else value for name, value in told.items()}
        log.info("act", **{name: value for name, value in told.items() if value not in (None, "", False)})
        with self._lock:
            record = AuditRecord(
                at=datetime.now(UTC), writer=self._name, previous=self._vault.last_act(), **told
            ).to_json()
            self._vault.keep_act(record, hashlib.sha256(record).hexdigest())
        self._wake.set()

    def stop(self) -> None:
        """Write what waits, if the broker answers, and end the thread."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with Writer(self._bootstrap_servers) as writer:
                    while True:
                        self._wake.clear()
                        self._send(writer)
                        if self._stopping.is_set():
                            return
                        self._wake.wait()
            except BrokerUnavailable as error:
                log.info("audit waits for the broker", error=str(error))
            self._stopping.wait(AGAIN_SECONDS)

    def _send(self, writer: Writer) -> None:
        """Write all records that wait."""
        while acts := self._vault.acts(AT_ONCE):
            deliveries = [writer.send(self._topic, self._name.encode(), line) for _, line in acts]
            for delivery in deliveries:
                delivery.result()
            self._vault.drop_acts(acts[-1][0])
