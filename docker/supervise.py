"""supervisord as the appliance runs it.

Everything goes to the one standard output, whatever that is; its own lines carry its name, and say nothing that is the
same at each start. It ends with the code that `watch.py` noted, or when no program can be started at all.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from supervisor import events, loggers, supervisord
from supervisor.states import ProcessStates, SupervisorStates
from supervisor.supervisord import Supervisor

EXIT_CODE_FILE = Path(os.environ["APPLIANCE_RUN_DIR"]) / "exit-code"
EXIT_NOT_STARTED = 1  # of a program that has no exit code of its own: it could not be started
STANDARD_OUTPUT = 1
OUTPUT_NAME = "/dev/fd/1"  # in supervisord.conf
LINE_SECONDS = 1.0  # that the rest of a line may take
LONGEST_REST_BYTES = 1 << 20
# Of every start: the socket is in a folder that nobody else may enter, and "spawned" has been said.
NO_NEWS = (
    "Server 'unix_http_server' running without any HTTP authentication checking",
    "RPC interface 'supervisor' initialized",
    "supervisord started with pid",
    "Set uid to user 0 succeeded",
    "success: ",
)


class Output:
    """The standard output that this process was started with: a pipe, a file, a socket, a terminal.

    There is one of these for each writer. supervisord would open it by its name for each: impossible for a socket, and
    in a file they would write over each other. Lines stay whole: what has no line end waits for it, a second at most.
    """

    unfinished: ClassVar[set[Output]] = set()

    def __init__(self) -> None:
        self._rest = b""
        self.since = 0.0  # when the rest came, monotonic
        self.rounds = 0  # in which nothing followed

    def write(self, data: bytes) -> None:
        """Write the lines that are whole; keep the rest."""
        data = self._rest + data
        end = len(data) if len(data) > LONGEST_REST_BYTES else data.rfind(b"\n") + 1
        self._rest, self.since, self.rounds = data[end:], time.monotonic(), 0
        (self.unfinished.add if self._rest else self.unfinished.discard)(self)
        write_all(data[:end])

    @classmethod
    def finish(cls, *, at_once: bool = False) -> None:
        """End the lines whose rest is due, or all: who wrote them may be gone. Called after each round of reading.

        Time alone proves nothing: this process may just have waited for a slow reader, with the rest in its pipe.
        """
        for output in list(cls.unfinished):
            output.rounds += 1
            if at_once or (output.rounds > 1 and time.monotonic() - output.since >= LINE_SECONDS):
                output.write(b"\n")

    def flush(self) -> None:
        """Do nothing: what is whole is written."""

    def close(self) -> None:
        """Stay open: the others write to it, too."""


def write_all(data: bytes) -> None:
    """Write to standard output, also where the other end is slow; what cannot be written is dropped."""
    while data:
        try:
            data = data[os.write(STANDARD_OUTPUT, data) :]
        except BlockingIOError:  # another process of this terminal or pipe made it non-blocking
            select.select([], [STANDARD_OUTPUT], [])
        except OSError:  # nobody reads any more, or the disk is full: the next line is tried again
            return


class News(loggers.StreamHandler):  # type: ignore[misc]  # supervisor ships no types
    """Passes on what is news."""

    def emit(self, record: Any) -> None:
        """Write a line, unless it is one of every start."""
        if not str(record.msg).startswith(NO_NEWS):
            super().emit(record)


class Prompt(Supervisor):  # type: ignore[misc]  # supervisor ships no types
    """Starts its programs at once (the original waits a second first), stops those of one priority side by side.

    It ends when none of them can be started.
    """

    def runforever(self) -> None:
        """Run."""
        _end_waits_with_signals(self.options.poller)
        events.subscribe(events.ProcessStateFatalEvent, self.end_if_all_are_fatal)
        for group in sorted(self.process_groups.values()):
            group.transition()
        super().runforever()

    def tick(self, now: float | None = None) -> None:
        """Do what is done each second."""
        super().tick(now)
        Output.finish()

    def ordered_stop_groups_phase_1(self) -> None:
        """Tell all that stop next to stop, at once: groups of one priority do not wait for each other."""
        for group in self.stop_groups:
            if group.config.priority == self.stop_groups[-1].config.priority:
                group.stop_all()

    def end_if_all_are_fatal(self, event: Any) -> None:
        """End with the exit code of the program that was given up last, if nothing else is left to run."""
        programs = [
            process
            for group in self.process_groups.values()
            for process in group.processes.values()
            if process.config.autostart and group.config.name != "watch"
        ]
        if all(process.get_state() == ProcessStates.FATAL for process in programs):
            code = event.process.exitstatus or 0  # -1: a signal
            EXIT_CODE_FILE.write_text(str(code if code > 0 else EXIT_NOT_STARTED))
            self.options.logger.critical("no program can be started; stopping")
            self.options.mood = SupervisorStates.SHUTDOWN


def _end_waits_with_signals(poller: Any) -> None:
    """Have a wait end as soon as a signal comes: a second at each step of a stop would be too much of Docker's ten."""
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    poller.register_readable(reader)
    wait = poller.poll

    def poll(timeout: float) -> tuple[list[int], list[int]]:
        readable, writable = wait(timeout)
        if reader in readable:
            os.read(reader, 4096)
            readable.remove(reader)
        return readable, writable

    poller.poll = poll


def _add(handler: Any, logger: Any, fmt: str) -> None:
    handler.setFormat(fmt)
    handler.setLevel(logger.level)
    logger.addHandler(handler)


def _handle_stdout(logger: Any, fmt: str) -> None:
    _add(News(Output()), logger, fmt.replace("%(message)s", "supervisord %(message)s"))


def _handle_file(logger: Any, filename: str, fmt: str, **rest: Any) -> None:
    if filename == OUTPUT_NAME:
        _add(loggers.StreamHandler(Output()), logger, fmt)
    else:
        _plain_file(logger, filename, fmt, **rest)


_plain_file = loggers.handle_file


def main() -> int:
    """Run until told to stop; return 0, or the exit code of the program that ended it all."""
    if stat.S_ISREG(os.fstat(STANDARD_OUTPUT).st_mode):
        # Whoever else writes to the file, or cuts it as logrotate does: nothing is written over, and no hole left.
        flags = fcntl.fcntl(STANDARD_OUTPUT, fcntl.F_GETFL)
        fcntl.fcntl(STANDARD_OUTPUT, fcntl.F_SETFL, flags | os.O_APPEND)
    loggers.handle_stdout, loggers.handle_file = _handle_stdout, _handle_file
    supervisord.Supervisor = Prompt
    EXIT_CODE_FILE.unlink(missing_ok=True)
    supervisord.main()
    Output.finish(at_once=True)
    return int(EXIT_CODE_FILE.read_text()) if EXIT_CODE_FILE.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
