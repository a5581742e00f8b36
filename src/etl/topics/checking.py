"""Looks at the topics while the consumer runs: makes again what was deleted, and tells what was set wrongly."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

from etl.errors import BrokerUnavailable
from etl.topics import companions

if TYPE_CHECKING:
    from etl.broker import Admin
    from etl.config import Settings
    from etl.topics.names import Topics
    from etl.topics.settings import Problem

log = structlog.get_logger(__name__)

LOOK_SECONDS = 600.0  # between two looks
HURRIED_SECONDS = 5.0  # between two looks that somebody asked for


class Checker:
    """Looks every ten minutes, and when asked to, in the thread `checker`."""

    def __init__(self, topics: Topics, settings: Settings, admin: Admin) -> None:
        self._topics = topics
        self._settings = settings
        self._admin = admin
        self._told: set[Problem] | None = None  # None before the first look: the start has told its problems already
        self.problem = ""  # why jobs are certain to be lost; empty if they are not
        self._last_error = ""
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def hurry(self) -> None:
        """Look soon: a topic refuses what is written to it. Any thread."""
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """End the thread; leave it behind, harmlessly, if it still waits for the broker after `timeout` seconds."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def look(self) -> None:
        """Create missing topics; log what has become doubtful since the last look. Raises BrokerUnavailable."""
        for name, partitions in companions.create_missing(self._topics, self._settings, self._admin).items():
            log.error("topic was gone: created again, what it held is lost", topic=name, partitions=partitions)
        found = companions.look(self._topics, self._settings, self._admin)
        if self._told is not None:
            companions.tell([problem for problem in found if problem not in self._told])
        self._told = set(found)
        self.problem = next((str(problem) for problem in found if problem.is_fatal), "")

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            try:
                self.look()
                self._last_error = ""
            except BrokerUnavailable as error:
                self._log_obstacle(str(error))
            except Exception as error:  # noqa: BLE001 - a bug of the client; the next look may succeed
                self._log_obstacle(f"{type(error).__name__}: {error}")
            pause = HURRIED_SECONDS
            self._wake.wait(LOOK_SECONDS - HURRIED_SECONDS)
            self._wake.clear()

    def _log_obstacle(self, error: str) -> None:
        """Log why nobody looks, unless the last line said the same."""
        if error != self._last_error:
            self._last_error = error
            log.info("topics not looked at", error=error)
