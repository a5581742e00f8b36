"""What the API says of itself on `etl-status`, as every process does: it is there, since when, and what it takes."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from etl.models import document
from etl.models.status import Snapshot, State
from etl.status.snapshot import resources

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_SECONDS = 5.0


@dataclass
class Presence:
    """The snapshots of this process. `is_ready`: are its views built?"""

    instance_id: str
    topic: str
    is_ready: Callable[[], bool]
    is_stopping: bool = False
    _incarnation: str = field(default_factory=lambda: secrets.token_hex(4))
    _seq: int = 0
    _started_at: float = field(default_factory=time.time)

    @property
    def key(self) -> str:
        """The key of the records."""
        return f"api//{self.topic}/{self.instance_id}/api"

    def news(self) -> object:
        """Return what is told at once when it changes."""
        return self._state()

    def build(self) -> Snapshot:
        """Return the snapshot of this moment. One thread."""
        self._seq += 1
        return Snapshot(
            kind="api",
            id=f"{self.instance_id}/api",
            topic=self.topic,
            incarnation=self._incarnation,
            seq=self._seq,
            at=document.moment(round(time.time(), 3)),
            started_at=document.moment(round(self._started_at, 3)),
            interval_seconds=INTERVAL_SECONDS,
            state=self._state(),
            version=metadata.version("etl-file-sync"),
            host=os.uname().nodename,
            pid=os.getpid(),
            resources=resources(),
        )

    def _state(self) -> State:
        if self.is_stopping:
            return "stopped"
        return "running" if self.is_ready() else "starting"
