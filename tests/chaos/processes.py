"""Consumers as processes of their own, started by the real command: to kill, freeze, stop and start again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

# What a process of a test inherits; settings of whoever runs the tests stay out.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")

SHORT_LIMITS = (str(Path(__file__).parents[1] / "short_limits.py"),)  # the program whose sessions end after 6 s


class Consumer:
    """One consumer; may be started again and again, and keeps one log over all its lives."""

    def __init__(
        self,
        name: str,
        folder: Path,
        settings: Mapping[str, str],
        *,
        measured: bool = True,
        program: Sequence[str] = ("-m", "etl.main"),
    ) -> None:
        self.name = name
        self._program = program
        self.log = folder / f"consumer-{name}.log"
        self.log.touch()
        self._temporary = folder / f"tmp-{name}"
        self._temporary.mkdir(exist_ok=True)
        self._environment = {key: os.environ[key] for key in INHERITED if key in os.environ}
        if not measured:  # a killed process leaves no coverage data: it need not be slowed down for it
            self._environment = {k: v for k, v in self._environment.items() if not k.startswith("COVERAGE")}
        self._environment |= {
            "TMPDIR": str(self._temporary),
            "ETL_LOG_FORMAT": "json",
            "ETL_LOG_LEVEL": "INFO",
            "PYTHONUNBUFFERED": "1",
            **settings,
        }
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.kills = 0

    def start(self, **settings: str) -> Consumer:
        """Start it, with `settings` of this life only."""
        assert not self.running, f"consumer {self.name} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._program],
                cwd=self._folder,
                env=self._environment | settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    @property
    def running(self) -> bool:
        """Does it live (frozen counts)?"""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id, in its last life."""
        assert self._process is not None, f"consumer {self.name} was never started"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its last exit code; None while it runs."""
        return None if self._process is None else self._process.poll()

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        assert self._process is not None, f"consumer {self.name} was never started"
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once; does nothing when it is over."""
        if self._process is not None and self._process.poll() is None:
            self.kills += 1
            self._process.kill()
            self._process.wait(10)

    def terminate(self) -> None:
        """Ask it to end."""
        self.signal(signal.SIGTERM)

    def wait(self, limit: float) -> int:
        """Return its exit code once it has ended; raises subprocess.TimeoutExpired."""
        assert self._process is not None, f"consumer {self.name} was never started"
        return self._process.wait(limit)

    def freeze(self) -> None:
        """Stop it where it stands."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    def connections(self, port: int) -> int:
        """Return how many connections it has to a port of this machine."""
        assert self._process is not None, f"consumer {self.name} was never started"
        found = psutil.Process(self._process.pid).net_connections("tcp")
        return sum(bool(one.raddr) and one.raddr.port == port for one in found)

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return the lines of its log, over all its lives; only those of one `event` if given."""
        lines = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and event in {None, found.get("event")}:
                    lines.append(found)
        return lines

    def temporary_files(self) -> list[Path]:
        """Return what it left in its folder for temporary files, but for the locks of slots."""
        return [path for path in self._temporary.rglob("*") if path.is_file() and "etl-slots-" not in str(path)]
