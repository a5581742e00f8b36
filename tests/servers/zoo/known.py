"""What some servers of the zoo cannot do by their own nature, and how a job ends there.

Strict: a job, or a test, that is named here ends so and not otherwise. Nothing stands here that the product could do
better.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple


class Own(NamedTuple):
    """Jobs (their keys), how they end, and why that is the server's own doing."""

    jobs: list[str]
    codes: frozenset[str]
    reason: str


def _own(jobs: list[str], codes: str, reason: str) -> Own:
    return Own(jobs, frozenset(codes.split("|")), reason)


def _names(*jobs: str) -> list[str]:
    return [f"{way}-{job}" for job in jobs for way in ("up", "down", "within")]


_NOT_ASCII = _names(
    "name-korean",
    "name-composed",
    "name-decomposed",
    "name-emoji",
    "name-long-korean",
    "odd-folders",
    "delete-odd",
)
_DELETES = [f"{way}-{job}" for job in ("delete", "delete-renamed", "delete-odd") for way in ("down", "within")]
_MOVES = [f"{way}-{job}" for job in ("move", "move-over") for way in ("down", "within")]
_CLOSED = ["down-closed-folder", "within-closed-folder"]
_BACKSLASH = _names("name-backslash")
_BLANKS = ["up-name-blanks", "within-name-blanks"]
_UNDELETABLE = ["down-undeletable", "within-undeletable"]
_BENT, _CANNOT_READ = "IO_ERROR", "PERMISSION_DENIED|FILE_NOT_FOUND|IO_ERROR"

# By a pattern of the kinds' names.
KNOWN: dict[str, list[Own]] = {
    "proftpd-dotless": [_own(_names("name-dot"), "PERMISSION_DENIED|FILE_NOT_FOUND", "its settings forbid dot files")],
    "pure-ftpd*": [
        _own(_BACKSLASH, "PERMISSION_DENIED", "takes no backslash in a name"),
        _own(_BLANKS, _BENT, "turns a blank at the end of a name into `_`"),
    ],
    "pure-ftpd-dotless": [_own(["up-name-dot", "within-name-dot"], "PERMISSION_DENIED", "`-x` forbids dot files")],
    "pure-ftpd-keeping": [_own(_DELETES, "PERMISSION_DENIED", "`-K` forbids deleting: sources stay")],
    "pure-ftpd-nameless": [_own(_MOVES, "PERMISSION_DENIED", "`-G` forbids renaming: sources cannot be moved")],
    "aioftp": [
        _own([*_CLOSED, "up-unmakeable", "within-unmakeable"], "IO_ERROR", "has one code (451) for all that fails"),
        _own(["up-unwritable", "within-unwritable"], "IO_ERROR", "has one code (451) for all that fails"),
        _own(["down-unreadable", "within-unreadable"], "IO_ERROR", "has one code (451) for all that fails"),
        _own(_UNDELETABLE, "IO_ERROR", "has one code (451) for all that fails"),
        _own(["up-name-blanks"], _BENT, "drops blanks around a name"),
        _own(["down-name-blanks", "within-name-blanks"], _CANNOT_READ, "does not find names with blanks around them"),
    ],
    "twisted": [
        _own(_NOT_ASCII, _CANNOT_READ, "takes UTF-8 for Latin-1: other than ASCII names are bent, and not found"),
        _own(["down-move", "within-move"], _BENT, "bends names other than ASCII: a source cannot be moved to one"),
    ],
    "apache*": [
        _own(["up-name-blanks"], _BENT, "drops a blank at the end of a name"),
        _own(["down-name-blanks", "within-name-blanks"], _CANNOT_READ, "does not find names with a blank at the end"),
        _own(_BACKSLASH, _CANNOT_READ, "takes a backslash for a slash"),
        _own(_CLOSED, "FILE_NOT_FOUND", "tells of what may not be looked into as missing"),
    ],
    "ftp-srv": [
        _own(["up-name-quotes"], _BENT, 'drops `"` from a name'),
        _own(["down-name-quotes", "within-name-quotes"], _CANNOT_READ, 'does not find names with `"`'),
        _own(_BACKSLASH, _CANNOT_READ, "takes a backslash for a slash"),
    ],
}

_LATE = "says only after its 150 that a folder is missing: a file that is not in memory is sent by the next run"

# Tests of the suite of all protocols that fail, and why; none of them is run, as some are the end of their server.
CONTRACT: dict[str, list[tuple[str, str]]] = {
    "proftpd*": [("test_odd_names_*{x}.bin]", "Debian's `DenyFilter` lets no `*` stand before a slash")],
    "pure-ftpd": [("test_odd_names_*trailing ]", "turns a blank at the end of a name into `_`")],
    "pyftpdlib": [
        ("test_a_base_path_that_is_no_folder*", "its process works in the folder that is gone, and serves nobody then")
    ],
    "aioftp": [
        ("test_odd_names_*trailing ]", "drops blanks around a name"),
        ("test_a_source_that_breaks_*", "ends the session of a transfer that is cut off: another one tidies up"),
    ],
    "twisted": [("test_odd_names_*ud55c*", "takes UTF-8 for Latin-1: other than ASCII names are bent")],
    "apache": [
        ("test_names_are_bare_and_hidden_ones*", "lists no dot files"),
        ("test_odd_names_*.hidden]", "lists no dot files"),
        ("test_odd_names_*trailing ]", "drops a blank at the end of a name"),
        ("test_a_file_comes_back_*-3145735]", _LATE),
        ("test_a_copy_is_proven_*", _LATE),
        ("test_what_is_trusted_*", _LATE),
    ],
    "store-s3proxy": [("test_names_are_bare_*", "lists no folder that has files which did not come by itself")],
    "ftp-srv": [
        ("test_a_file_comes_back_*-0]", "tells no size of an empty file"),
        ("test_loading_*-empty-*]", "tells no size of an empty file"),
        ("test_a_file_comes_back_*-3145735]", _LATE),
        ("test_a_copy_is_proven_*", _LATE),
        ("test_what_is_trusted_*", _LATE),
        ("test_*_checksum_file_*", "changes the order of answers, which costs the session that finds it out"),
        ("test_odd_names_*quote*", 'drops `"` from a name'),
        ("test_odd_names_*--a]", "takes ` -a` in a name for an option"),
    ],
}


def _like(kind: str) -> str:
    """Return the kind whose ways one that encrypts shares."""
    return kind.removeprefix("tls-")


def reason(kind: str, job: str) -> Own | None:
    """Return why a job cannot succeed on a server, and how it ends; None: as everywhere."""
    for kinds, known in KNOWN.items():
        for own in known if fnmatchcase(_like(kind), kinds) else ():
            if job in own.jobs:
                return own
    return None


def unfit(kind: str, test: str) -> str | None:
    """Return why a test of the suite of all protocols fails on a server; None: it does not."""
    for kinds, known in CONTRACT.items():
        for tests, why in known if fnmatchcase(_like(kind), kinds) else ():
            if fnmatchcase(test, tests):
                return why
    return None
