"""The ssh of one session: started, heard and spoken to over a socket pair, cut by any thread, and reaped.

Knows no SFTP and no setting: it is given a command and an environment.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
import time

_HEARD_BYTES = 64 * 1024  # of what ssh says; the rest is dropped
_LAST_WORDS_SECONDS = 2.0  # after the end of its output, for its reasons
_PARTS_AT_ONCE = 512  # of one sendmsg: below IOV_MAX


class Child:
    """A running ssh. One thread at a time, but `cut` from any."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._lock = threading.Lock()  # guards the end of the process: its id may be another's afterwards
        self.is_cut = False  # some thread ended it
        self._said = bytearray()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                    command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.PIPE,
                    env=environment,
                    bufsize=0,
                    start_new_session=True,  # no terminal: no question can wait for somebody to answer it
                )
        except BaseException:
            ours.close()
            raise
        assert self._process.stderr is not None  # noqa: S101 - asked for above
        self._errors = self._process.stderr
        os.set_blocking(self._errors.fileno(), False)
        self._sock = ours
        self._sock.setblocking(False)

    # --- the channel ----------------------------------------------------------------------------------------

    def send(self, parts: list[bytes | memoryview], limit: float) -> None:
        """Send all of it; a byte must leave within `limit` seconds. Raises TimeoutError, OSError."""
        views = [memoryview(part) for part in parts]
        while views:
            try:
                count = self._sock.sendmsg(views[:_PARTS_AT_ONCE])
            except BlockingIOError:
                self._wait(select.POLLOUT, limit)
                continue
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if count:
                views[0] = views[0][count:]

    def receive(self, place: memoryview, limit: float) -> int:
        """Receive at least one byte within `limit` seconds; 0 at the end. Raises TimeoutError, OSError."""
        while True:
            try:
                return self._sock.recv_into(place)
            except BlockingIOError:
                self._wait(select.POLLIN, limit)

    def has_input(self) -> bool:
        """Is there something to receive, or the end?"""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    def why_ended(self) -> str:
        """Return what ssh said at its end, waiting a moment for it."""
        if self.is_cut:
            return "the session was aborted"
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        while self.hear(deadline - time.monotonic()):
            pass
        return last_line(self.said) or "ssh ended without a word"

    def _wait(self, event: int, limit: float) -> None:
        """Wait for the socket; ssh is heard meanwhile: else it might wait for somebody to read."""
        poll = select.poll()
        poll.register(self._sock, event)
        deadline = time.monotonic() + limit
        if not self._errors.closed:
            poll.register(self._errors, select.POLLIN)
        while True:
            ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if not ready:
                raise TimeoutError
            if self._sock.fileno() in ready:
                return
            if not self.hear(0.0):
                poll.unregister(self._errors)

    # --- what it says ---------------------------------------------------------------------------------------

    @property
    def said(self) -> str:
        """All that ssh said so far, as far as it was heard."""
        return self._said.decode("utf-8", "replace")

    def hear(self, limit: float) -> bool:
        """Take what ssh says within `limit` seconds; False at the end of it, or when nothing came."""
        if self._errors.closed:
            return False
        poll = select.poll()
        poll.register(self._errors, select.POLLIN)
        if not poll.poll(max(0.0, limit) * 1000):
            return False
        piece = self._errors.read(_HEARD_BYTES)
        if piece and len(self._said) < _HEARD_BYTES:
            self._said += piece
        return bool(piece)

    # --- the end --------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Make what blocks in this session fail at once; any thread. Never raises."""
        self.is_cut = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._kill()

    def close(self) -> None:
        """End the process, if it runs, and close everything. A second call does nothing."""
        self._kill()
        # One that cannot die is left to the system.
        with self._lock, contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_SECONDS)
        self._errors.close()
        self._sock.close()

    def _kill(self) -> None:
        with self._lock:
            if self._process.returncode is None:
                # Its group: a jump host has an ssh of its own.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)


def last_line(said: str) -> str:
    """Return the last line that is meant for people."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("debug")]
    return lines[-1][:300] if lines else ""
