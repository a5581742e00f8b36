"""One row of the tables of settings, and how a field of a dataclass becomes one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from etl.config.kinds import Kind


@dataclass(frozen=True)
class Setting:
    """One row of `SETTINGS` or `SERVER_PROPERTIES`."""

    name: str
    default: str  # as a user would write it; empty if there is none
    kind: Kind
    help: str  # one line; names the unit
    field: str = ""  # the field of `Settings` that holds the value


def setting(name: str, default: Any, kind: Kind, help_: str, *, secret: bool = False) -> Any:
    """Create a field of a settings class that is also a row of `SETTINGS`."""
    if isinstance(default, bool):
        shown = str(default).lower()
    elif isinstance(default, float):
        shown = f"{default:g}"
    else:
        shown = "" if default in {None, ()} else str(default)
    return field(default=default, repr=not secret, metadata={"row": Setting(name, shown, kind, help_)})
