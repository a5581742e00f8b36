"""What jobs may do: at each server, and between which two. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from etl.errors import Forbidden
from etl.models.server import RIGHTS, ServerConfig

if TYPE_CHECKING:
    from etl.models.message import TransferOptions

ANY = "*"


class Rights:
    """The rights of jobs. `pairs`: names of source and destination in upper case; none: every pair is allowed."""

    def __init__(self, pairs: Iterable[tuple[str, str]], servers: Mapping[str, ServerConfig]) -> None:
        self._pairs = frozenset(pairs)
        self._servers = servers
        self.are_limited = bool(self._pairs) or any(server.access != set(RIGHTS) for server in servers.values())

    def unknown(self) -> list[str]:
        """Return the names in the pairs that are no servers."""
        return sorted({name for pair in self._pairs for name in pair} - {*self._servers, ANY})

    def require(self, source: ServerConfig, destination: ServerConfig, options: TransferOptions) -> None:
        """Raise Forbidden unless a job may do this."""
        one, other = source.hostname, destination.hostname
        if self._pairs and self._pairs.isdisjoint({(one, other), (one, ANY), (ANY, other), (ANY, ANY)}):
            raise Forbidden(f"jobs from {one} to {other} are not allowed (ETL_ALLOWED_PAIRS)", server=one)
        action = "move" if options.move_to is not None else str(options.source_action)
        for server, right in ((source, "read"), (destination, "write"), (source, action)):
            if right != "keep" and right not in server.access:
                name = server.hostname
                raise Forbidden(f"jobs may not {right} files of {name} ({name}_ACCESS)", server=name)
