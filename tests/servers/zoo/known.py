"""What some servers of the zoo cannot do by their own nature, and how a job ends there.

Strict: a job, or a test, that is named here ends so and not otherwise. Nothing stands here that the product could do
better.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple


class Own(NamedTuple):
    """Jobs (a pattern of their keys), how they end, and why that is the server's own doing."""

    jobs: str
    codes: frozenset[str]
    reason: str


def _own(jobs: str, codes: str, reason: str) -> Own:
    return Own(jobs, frozenset(codes.split("|")), reason)


# By a pattern of the kinds' names.
KNOWN: dict[str, list[Own]] = {}

# Tests of the suite of all protocols that fail, and why; none of them is run, as some are the end of their server.
CONTRACT: dict[str, list[tuple[str, str]]] = {
    "proftpd*": [("test_odd_names_*{x}.bin]", "Debian's `DenyFilter` lets no `*` stand before a slash")],
    "pyftpdlib": [
        ("test_a_base_path_that_is_no_folder*", "its process works in the folder that is gone, and serves nobody then")
    ],
}


def reason(kind: str, job: str) -> Own | None:
    """Return why a job cannot succeed on a server, and how it ends; None: as everywhere."""
    for kinds, known in KNOWN.items():
        for own in known if fnmatchcase(kind, kinds) else ():
            if fnmatchcase(job, own.jobs):
                return own
    return None


def unfit(kind: str, test: str) -> str | None:
    """Return why a test of the suite of all protocols fails on a server; None: it does not."""
    for kinds, known in CONTRACT.items():
        for tests, why in known if fnmatchcase(kind, kinds) else ():
            if fnmatchcase(test, tests):
                return why
    return None
