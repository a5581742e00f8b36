"""One lane between two servers, as a process has it, but for Kafka: what jobs in a row are tried with."""

from __future__ import annotations

import threading
from typing import Any

from etl.config import ConfigLoader, ServerConfig
from etl.dispatch.dispatcher import Dispatcher
from etl.lanes.lanes import Lanes
from etl.lanes.run import Store
from etl.lanes.runner import Runner
from etl.models.message import FileTransferJob
from etl.models.task import SCAN_ANEW, Origin, Record, Task
from etl.outcomes.reporter import Reporter
from etl.sessions.pools import Pools
from etl.transfer.receipts import Receipt
from servers.fake import wait_for

ONE_MIB = 1 << 20


class Told(Reporter):
    """Writes down how jobs ended; a failed one runs again as often as `again` says."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        none: Any = None
        super().__init__("w", dispatcher, none, none, none, lambda: False)
        self.receipts: dict[int, Receipt] = {}
        self.errors: dict[int, list[BaseException]] = {}
        self.again = 0
        self.lock = threading.Lock()

    def succeeded(self, task: Task, receipt: Receipt, started: float) -> None:
        with self.lock:
            assert task.origin.offset not in self.receipts
            self.receipts[task.origin.offset] = receipt

    def failed(self, task: Task, error: BaseException, started: float, breaker_wait: float = 0.0) -> float | None:
        self.errors.setdefault(task.origin.offset, []).append(error)
        if len(self.errors[task.origin.offset]) <= self.again:
            task.orphan_scan_since = SCAN_ANEW
            return 0.0
        return None


class Row:
    """A source A and a destination B, with lanes between them."""

    def __init__(self, source: ServerConfig, destination: ServerConfig, store_bytes: int, lanes: int) -> None:
        self.store_bytes = store_bytes
        servers = {"A": source, "B": destination}
        settings = {"ETL_WORKERS": str(lanes), "ETL_RETRY_MAX_ATTEMPTS": "1"}  # nothing here runs a failed job again
        self.settings = ConfigLoader(environ=settings).settings
        self.pools = Pools(servers.__getitem__, self.settings)
        self.dispatcher = Dispatcher(self.pools, self.settings)
        self.store = Store(store_bytes)
        self.told = Told(self.dispatcher)
        self.runner = Runner(self.settings, "tok", self.pools, self.dispatcher, self.told, self.store)
        self.lanes = Lanes(
            self.dispatcher, self.runner.execute, lanes, buffer_bytes=ONE_MIB, on_bug=self._bug, stages=self.runner
        )
        self.bugs: list[BaseException] = []

    def _bug(self, _task: Task, error: BaseException) -> None:
        self.bugs.append(error)

    def offer(self, *numbers: int, orphan_scan_since: float | None = None, **options: Any) -> None:
        for number in numbers:
            job = {
                "job_id": str(number),
                "source": {"hostname": "A", "path": f"/{number}"},
                "destination": {"hostname": "B", "path": f"/out/{number}"},
                "options": options,
            }
            record = Record("jobs", 0, number, None, b"{}")
            task = Task(
                record, Origin("jobs", 0, number), FileTransferJob.from_dict(job), orphan_scan_since=orphan_scan_since
            )
            self.dispatcher.offer(task)

    def run(self, bugs: int = 0) -> None:
        """Start, and wait until nothing is unfinished."""
        self.lanes.start()
        self.wait(bugs)

    def wait(self, bugs: int = 0) -> None:
        wait_for(lambda: self.dispatcher.unfinished == (0, 0), 20)
        wait_for(lambda: not self.lanes.runs())
        assert len(self.bugs) == bugs

    def close(self) -> None:
        self.dispatcher.stop()
        assert self.lanes.stop(5)
        assert self.pools.close()
        assert self.store.take(ONE_MIB) == (self.store_bytes >= ONE_MIB), "room was not given back"
