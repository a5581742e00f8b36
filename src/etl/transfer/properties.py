"""What protocols need to parse the settings of a server that are theirs alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from etl.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from etl.models.server import ServerConfig

_SWITCHES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Properties:
    """One pass over the settings that collects what is wrong, by property."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.problems: dict[str, str] = {}

    def require_right(self, server: ServerConfig) -> None:
        """Raise SettingsError for the first that is wrong."""
        for name, what in self.problems.items():
            raise SettingsError(f"{server.hostname}_{name}: {what}", server=server.hostname)

    def _text(self, name: str) -> str:
        return self._values.get(name, "").strip()

    def _path(self, name: str) -> str:
        return self._text(name)

    def _file(self, name: str) -> str:
        path = self._path(name)
        try:
            if path:
                Path(path).open("rb").close()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "not a valid file name"
            self.problems.setdefault(name, f"the file cannot be read: {why}")
        return path

    def _switch(self, name: str, *, default: bool) -> bool:
        text = self._text(name).lower()
        if text and text not in _SWITCHES:
            self.problems.setdefault(name, "is neither true nor false")
        return _SWITCHES.get(text, default)

    def _number(self, name: str, low: int, high: int, default: int | None) -> int | None:
        text = self._text(name)
        if not text:
            return default
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            self.problems.setdefault(name, f"is not a whole number from {low} to {high}")
            return default
        return int(text)
