"""The trial of a server: can it be reached, logged in to and listed? For commands and the API."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from etl.errors import EtlError, ServerUnavailable, code_of
from etl.logs import redact
from etl.models.server import ServerConfig, TransferSettings
from etl.sessions.pools import create_session
from etl.transfer.base import Session

T = TypeVar("T")


@dataclass
class Trial:
    """The trial of one server: how long each step took, and which one failed and why."""

    server: ServerConfig
    ms: dict[str, float] = field(default_factory=dict)  # milliseconds of each step that succeeded
    names: int | None = None  # number of names in the base folder; None if it was not listed
    unchecked: dict[str, str] = field(default_factory=dict)  # step: why; often the method that a class lacks
    failed: str | None = None  # the step that failed
    error: str | None = None
    error_code: str | None = None
    lacks: frozenset[str] | None = None  # methods of the session; None: there was none

    def step(self, step: str, action: Callable[[], T]) -> T:
        """Run one step and record its time. If it raises, `failed` keeps its name."""
        self.failed = step
        started = time.perf_counter()
        result = action()
        self.ms[step] = (time.perf_counter() - started) * 1000
        self.failed = None
        return result

    def run(self, limits: TransferSettings, further: Callable[[Session], None] = lambda _session: None) -> None:
        """Reach, log in and list; then do what is `further` to be done with the session. Never raises."""
        session: Session | None = None
        try:
            session = create_session(self.server, limits)
            self.step("login", session.connect)
            self.lacks = frozenset(session.lacks())
            if "names" in self.lacks:
                self.unchecked["list"] = "no names()"
            else:
                self.names = self.step("list", lambda: _count(session))
            further(session)
        except Exception as error:  # noqa: BLE001 - a user's own protocol may raise anything; report it for this server
            self.failed = self.failed or "reach"
            if isinstance(error, ServerUnavailable) and self.failed == "login":
                self.failed = "reach"
            self.error = redact(str(error) if isinstance(error, EtlError) else f"{type(error).__name__}: {error}")
            self.error_code = code_of(error)
        finally:
            if session is not None:
                session.disconnect()

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as a JSON object."""
        return {
            "server": self.server.hostname,
            "type": self.server.type,
            "ok": self.failed is None,
            "ms": {step: round(ms, 1) for step, ms in self.ms.items()},
            "names": self.names,
            "unchecked": list(self.unchecked),
            "failed": self.failed,
            "error": self.error,
            "error_code": self.error_code,
            "bandwidth_limit": str(self.server.bandwidth) if self.server.bandwidth else None,
        }


def _count(session: Session) -> int:
    """Return the number of names in the base folder, which must exist: `names` treats a missing folder as empty."""
    session.require_base()
    return len(session.names(""))
