"""Checks of servers: each is tried from here, in a thread. What was found is lost with a restart."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from etl.models import document
from etl.sessions.trial import Trial

if TYPE_CHECKING:
    from etl.config import ConfigLoader
    from etl.models.server import ServerConfig

AT_ONCE = 4
KEPT = 200


@dataclass
class Check:
    """One check of a server."""

    id: str
    server: str
    by: str
    at: str
    result: dict[str, Any] | None = None  # None: it is under way


class Checks:
    """The checks of this process. Any thread may use it."""

    def __init__(self, config: ConfigLoader) -> None:
        self._limits = config.settings.transfer
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="check")
        self._lock = threading.Lock()  # guards the checks
        self._checks: OrderedDict[str, Check] = OrderedDict()

    def begin(self, server: ServerConfig, by: str) -> Check:
        """Begin to check a server; return the check under way, if there is one: no account shall be locked by us."""
        with self._lock:
            for check in self._checks.values():
                if check.server == server.hostname and check.result is None:
                    return check
            check = Check(uuid.uuid4().hex[:16], server.hostname, by, document.iso(datetime.now(UTC)))
            self._checks[check.id] = check
            while len(self._checks) > KEPT:
                self._checks.popitem(last=False)
        self._threads.submit(self._try, check, server)
        return check

    def get(self, id_: str) -> Check | None:
        """Return a check."""
        with self._lock:
            return self._checks.get(id_)

    def _try(self, check: Check, server: ServerConfig) -> None:
        trial = Trial(server)
        trial.run(self._limits)
        check.result = trial.to_dict()

    def close(self) -> None:
        """Begin no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
