"""What some servers of the zoo cannot do by their own nature, and how a job ends there.

Strict: a job named here ends so and not otherwise. Nothing stands here that the product could do better.
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


KNOWN: dict[str, list[Own]] = {}


def expected(kind: str, job: str) -> frozenset[str] | None:
    """Return how a job ends on a server that cannot do it; None: as everywhere."""
    for own in KNOWN.get(kind, ()):
        if fnmatchcase(job, own.jobs):
            return own.codes
    return None
