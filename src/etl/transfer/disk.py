"""What must stay free on a local disk. Looks as rarely as that is safe; one for each session, and for one thread."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from etl.errors import StorageFull

if TYPE_CHECKING:
    from etl.models.server import ServerConfig

# Between two looks: bytes that are written; the share of what is to spare, as other sessions write as well; and
# seconds, as others fill the disk, too.
_UNSEEN_BYTES, _UNSEEN_SHARE, _UNSEEN_SECONDS = 64 << 20, 1 / 64, 1.0


class Reserve:
    """The `{NAME}_MIN_FREE` of a server."""

    def __init__(self, server: ServerConfig) -> None:
        self._name = server.hostname
        self._min_free_bytes = int(server.options.get("MIN_FREE", 0))
        self._looked_at = -_UNSEEN_SECONDS  # monotonic clock
        self._device: int | None = None  # that was looked at: other disks may be mounted below a base path
        self._unseen_bytes = 0.0  # that may be written before the next look

    def begin(self, descriptor: int, device: int, more_bytes: int) -> None:
        """Raise StorageFull unless there is room for `more_bytes` in a file; 0: nobody knows how many will come.

        `device` is the disk that the file is on, as `fstat` tells it.
        """
        if not self._min_free_bytes:
            return
        is_known = device == self._device and time.monotonic() - self._looked_at < _UNSEEN_SECONDS
        if not (is_known and 0 < more_bytes <= self._unseen_bytes):
            self._device = device
            self._look(descriptor, more_bytes)

    def wrote(self, descriptor: int, count_bytes: int) -> None:
        """Count what was written. Raises StorageFull once less stays free than must."""
        self._unseen_bytes -= count_bytes
        if self._min_free_bytes and self._unseen_bytes < 0:
            self._look(descriptor, 0)

    def _look(self, descriptor: int, more_bytes: int) -> None:
        disk = os.fstatvfs(descriptor)
        spare_bytes = disk.f_bavail * disk.f_frsize - self._min_free_bytes
        self._looked_at = time.monotonic()
        self._unseen_bytes = min(_UNSEEN_BYTES, spare_bytes * _UNSEEN_SHARE)
        if spare_bytes < more_bytes:
            raise StorageFull(
                f"{self._name}: less than {self._min_free_bytes} bytes stay free ({self._name}_MIN_FREE)",
                server=self._name,
            )
