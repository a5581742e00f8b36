"""What the parts of an SFTP session share: the conversation, how paths are written there, what the server offers.

One thread at a time. Whole paths are as the server takes them: those of jobs below the base path.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from etl.errors import InvalidPath
from etl.transfer.bandwidth import BLOCK_SECONDS
from etl.transfer.paths import below, refuse_misread
from etl.transfer.promises import Unsettled
from etl.transfer.sftp.handles import Handles
from etl.transfer.sftp.options import LARGEST_BLOCK
from etl.transfer.sftp.packets import EXTENDED, EXTENDED_ANSWER, REALPATH, string
from etl.transfer.watch import Watch

if TYPE_CHECKING:
    from etl.models.server import ServerConfig, TransferSettings
    from etl.transfer.sftp.options import Options
    from etl.transfer.sftp.wire import Pending, Wire

POSIX_RENAME, FSYNC = b"posix-rename@openssh.com", b"fsync@openssh.com"
STATVFS, LIMITS = b"statvfs@openssh.com", b"limits@openssh.com"
WANTED = (POSIX_RENAME, FSYNC, STATVFS, LIMITS)

WINDOW_BYTES = 2 << 20  # on their way at once, of one file: more than that the channel of ssh does not take
AT_ONCE_BYTES = 1 << 20  # of a file that goes in one write with its OPEN

_SAFE_BLOCK_BYTES = 32_768  # every server takes it (draft, section 3)


class Link:
    """One login at a server."""

    def __init__(
        self,
        server: ServerConfig,
        settings: TransferSettings,
        wire: Wire,
        options: Options,
        extensions: dict[bytes, bytes],
    ) -> None:
        self.server = server
        self.settings = settings
        self.wire = wire
        self.extensions = extensions
        self.handles = Handles(wire, options.pipeline)
        self.read_block = self.write_block = options.block_bytes or _SAFE_BLOCK_BYTES
        self.window_bytes = WINDOW_BYTES  # asked for ahead, of one file that is read
        if server.bandwidth is not None:
            self.window_bytes = min(WINDOW_BYTES, int(server.bandwidth.least * BLOCK_SECONDS))
        self.round_trip: float | None = None
        self.refuses_to_replace = False  # RENAME does not replace a file, and there is nothing else
        self.expected_bytes = 0  # of the next file that is read: as many as the last one had
        self.reads_at_once = True  # until the server gives less than is asked for, or does not tell sizes
        self.checks_files: bool | None = None  # makes checksums by `check-file`; None: not asked yet
        self.promises = Unsettled()
        self._ask_limits(options)

    @property
    def name(self) -> str:
        """The server's name, for errors."""
        return self.server.hostname

    def adopt(self, server: ServerConfig) -> None:
        """Go on under another name of the same address."""
        self.server, self.wire.server = server, server.hostname

    def watch(self) -> Watch:
        """Return a watch over the bytes of one file that is read."""
        return Watch(self.settings.stall_timeout, self.settings.min_bytes_per_second)

    # --- paths ----------------------------------------------------------------------------------------------

    def whole(self, path: str) -> str:
        """Return a job's path as the server takes it."""
        return below(self.server.base_path, path)

    @property
    def top(self) -> str:
        """The base path, or else the folder of the login."""
        return self.server.base_path or "."

    def wire_name(self, whole: str) -> bytes:
        """Return a path as the wire has it. Raises InvalidPath for what the server's encoding does not have."""
        encoding = self.server.encoding or "utf-8"
        try:
            name = whole.encode(encoding, "surrogateescape")
        except UnicodeError as error:
            raise InvalidPath(f"{self.name}:{whole!r} cannot be written in {encoding}", server=self.name) from error
        refuse_misread(whole, name)
        return string(name)

    def read_name(self, name: bytes) -> str:
        """Return a name that the server sent."""
        return name.decode(self.server.encoding or "utf-8", "surrogateescape")

    # --- requests -------------------------------------------------------------------------------------------

    def ask(self, kind: int, whole: str, more: bytes = b"") -> Pending:
        """Queue a request about a path."""
        return self.wire.ask(kind, self.wire_name(whole) + more)

    def ask_handle(self, kind: int, handle: bytes) -> Pending:
        """Queue a request about an open file."""
        return self.wire.ask(kind, string(handle))

    def extended(self, extension: bytes, body: bytes) -> Pending:
        """Queue a request of an extension."""
        return self.wire.ask(EXTENDED, string(extension) + body)

    def offers(self, extension: bytes) -> bool:
        """Did the server announce an extension?"""
        return extension in self.extensions

    def ping(self) -> None:
        """Wait for any answer, and note how long that took."""
        self.wire.flush()
        pending = self.ask(REALPATH, ".")
        started = time.monotonic()
        pending.result()
        took = time.monotonic() - started
        self.round_trip = took if self.round_trip is None else min(took, self.round_trip)

    def _ask_limits(self, options: Options) -> None:
        limits = self.extended(LIMITS, b"") if self.offers(LIMITS) else None
        self.ping()
        if limits is None or options.block_bytes is not None or not limits.result().is_success:
            return
        body = limits.result().expect(EXTENDED_ANSWER)
        body.u64()
        self.read_block = min(body.u64() or _SAFE_BLOCK_BYTES, LARGEST_BLOCK)
        self.write_block = min(body.u64() or _SAFE_BLOCK_BYTES, LARGEST_BLOCK)

    def flush(self) -> None:
        """Send what is corked, read every answer that is due, settle every promise."""
        self.promises.settle()
        self.wire.flush()
