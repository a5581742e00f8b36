"""What must stay free on a local server's disk (`MIN_FREE`). Belongs to one session."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from etl.errors import StorageFull

if TYPE_CHECKING:
    from etl.models.server import ServerConfig

# Where so much more is free than must be, what was seen counts for smaller files for a moment: no disk fills so fast.
_PLENTY_BYTES, _SMALL_BYTES, _MOMENT_SECONDS = 4 << 30, 1 << 20, 0.1


class Room:
    """Looks how much is free."""

    def __init__(self) -> None:
        self._roomy, self._until = ("", ""), 0.0  # server and folder where plenty was free, and how long that counts

    def require(self, server: ServerConfig, descriptor: int, more_bytes: int, folder: str = "") -> None:
        """Raise StorageFull unless as much stays free as it must once `more_bytes` are written to an open file.

        `folder` is where the file is, if a look of a moment ago may serve.
        """
        least_bytes = int(server.options.get("MIN_FREE", 0))
        if not least_bytes:
            return
        name, now = server.hostname, time.monotonic()
        if now < self._until and self._roomy == (name, folder) and more_bytes <= _SMALL_BYTES:
            return
        disk = os.fstatvfs(descriptor)
        spare_bytes = disk.f_bavail * disk.f_frsize - more_bytes - least_bytes
        if spare_bytes < 0:
            raise StorageFull(f"{name}: less than {least_bytes} bytes stay free ({name}_MIN_FREE)", server=name)
        if folder and spare_bytes >= _PLENTY_BYTES:
            self._roomy, self._until = (name, folder), now + _MOMENT_SECONDS
