"""Protocols of other installed packages: the entry points of the group `etl.transfers`."""

from __future__ import annotations

from importlib.metadata import entry_points

from etl.errors import SettingsError
from etl.transfer.base import TransferFactory

GROUP = "etl.transfers"


def register_installed() -> None:
    """Register every installed entry point under its name. Raises SettingsError, naming the one that is broken."""
    for entry in entry_points(group=GROUP):
        try:
            TransferFactory.register(entry.name, entry.load())
        except Exception as error:
            raise SettingsError(f"entry point {entry.name} of {GROUP} ({entry.value}): {error!r}") from error
