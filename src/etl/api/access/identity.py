"""Who asks: a name, a role, and by what it was proven."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """What somebody may do; each role includes those before it."""

    VIEWER = 1  # look
    OPERATOR = 2  # act on jobs, dead letters, servers and processes
    ADMIN = 3  # make and revoke tokens

    @property
    def word(self) -> str:
        """The role as it is written."""
        return self.name.lower()


ROLES = {role.word: role for role in Role}


@dataclass(frozen=True)
class Identity:
    """Somebody who proved who they are. `via`: token, jwt, cert or session."""

    name: str
    role: Role
    via: str
    session: str | None = None  # the id of the session, if it is one
    origin: str = ""  # by what the session was opened


NOBODY = Identity("nobody", Role.VIEWER, "none")
