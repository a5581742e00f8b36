"""Partial files: the hidden names that files have until they are whole, and what earlier runs left under such names.

No threads of its own, no protocol; called by many lanes.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import structlog

from etl.errors import EtlError, PermissionRefused
from etl.transfer.base import ASIDE
from etl.transfer.paths import basename, beside, parent

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.server import ServerConfig
    from etl.models.task import Origin, Task
    from etl.transfer.base import Session

log = structlog.get_logger(__name__)

FOLDERS_KEPT = 1000
ORPHANS_KEPT = 10_000  # in all folders, some 2 MB; a folder with more is listed by each job that asks
ORPHANS_REMOVED = 10_000  # of one job

APART_SECONDS = 600.0  # for which two folders that were seen to be different count as such

_JOB_HASH_BYTES = 8


def partial_path(task: Task, server: ServerConfig, token: str) -> str:
    """Return the hidden name beside the job's final one, of one run alone.

    What an earlier run left, or still writes, is never taken for it. `token` names the run. Where nothing may be
    renamed it is the final name itself.
    """
    if server.publish == "direct":
        return task.job.destination.path
    name = server.partial_pattern.replace("{id}", f"{_job_hash(task.origin)}-{token}")
    return beside(task.job.destination.path, name)


class TellingTheName:
    """Has an error tell the name of the destination, and not that of its partial file, which nobody knows.

    A generator would do, at the price of ten calls more; each file needs two.
    """

    def __init__(self, task: Task, partial: str) -> None:
        self._task, self._partial = task, partial

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, EtlError):
            where, sign, what = str(error).partition(": ")
            if where.endswith(f"/{basename(self._partial)}"):
                final = basename(self._task.job.destination.path)
                error.args = (beside(where, final) + sign + what, *error.args[1:])


def is_of_the_job(task: Task, server: ServerConfig, name: str) -> bool:
    """Is a name that of a partial file of the job?"""
    before, after = server.partial_pattern.split("{id}")
    return name.startswith(f"{before}{_job_hash(task.origin)}-") and name.endswith(after) and "/" not in name


def _job_hash(origin: Origin) -> str:
    return hashlib.blake2b(str(origin).encode(), digest_size=_JOB_HASH_BYTES).hexdigest()


def remove_if_allowed(destination: Session, path: str) -> None:
    """Remove what is left under a partial name, if it may be deleted: the job itself needs no such right."""
    with contextlib.suppress(PermissionRefused):
        destination.remove(path)


class _Listed(NamedTuple):
    asked_at: float  # on the clock of `Task.orphan_scan_since`
    names: dict[str, list[str]]  # by hash of their jobs

    @property
    def size(self) -> int:
        """How many names there are."""
        return sum(map(len, self.names.values()))


class FoldersApart:
    """Which pairs of folders were seen to be two: a file that is copied between them is not its own copy.

    Names do not tell (links, base paths, two names of one host). Believed for a while: somebody may make one a link to
    the other.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the one below
        self._seen_at: OrderedDict[tuple[str, ...], float] = OrderedDict()

    def knows(self, task: Task) -> bool:
        """Are the folders of the job's source and destination known to be different?"""
        with self._lock:
            seen_at = self._seen_at.get(_both_folders(task))
        return seen_at is not None and self._clock() - seen_at < APART_SECONDS

    def note(self, task: Task) -> None:
        """Note that they were seen to be."""
        with self._lock:
            self._seen_at[_both_folders(task)] = self._clock()
            self._seen_at.move_to_end(_both_folders(task))
            while len(self._seen_at) > FOLDERS_KEPT:
                self._seen_at.popitem(last=False)


class OrphanIndex:
    """What partial files of earlier runs lie in which folder: one listing answers for all jobs that may trust it.

    After a kill, a thousand jobs of every partition look for what their predecessors left, and a folder may hold tens
    of thousands of files.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the two below
        self._folders: OrderedDict[tuple[str, str], _Listed] = OrderedDict()  # used last last
        self._kept = 0  # names in all of them
        self.apart = FoldersApart(clock)
        self.live: set[str] = set()  # tokens of the runs of this process: what they write is no orphan

    def known(self, task: Task) -> list[str] | None:
        """Return the names that the job's earlier runs left, as far as a listing is known that tells; None: ask."""
        folder = _folder(task)
        with self._lock:
            listed = self._folders.get(folder)
            if listed is None or task.orphan_scan_since is None or listed.asked_at < task.orphan_scan_since:
                return None
            self._folders.move_to_end(folder)
        return listed.names.get(_job_hash(task.origin), [])

    def of(self, task: Task, destination: Session) -> list[str]:
        """Return the names that the job's earlier runs left beside its file; lists their folder if need be."""
        if (names := self.known(task)) is not None:
            return names
        before, after = destination.server.partial_pattern.split("{id}")
        begins = re.compile(re.escape(before) + "([0-9a-f]{%d})-" % (2 * _JOB_HASH_BYTES))  # noqa: UP031 - braces
        found: dict[str, list[str]] = {}
        asked_at, count, own = self._clock(), 0, _job_hash(task.origin)
        try:
            names = destination.names(parent(task.job.destination.path), before)
        except PermissionRefused as error:  # the job itself needs no such right
            log.warning("partial files cannot be looked for", destination=str(task.job.destination), error=str(error))
            names = []
        for name in names:
            if (match := begins.match(name)) and name.endswith((after, after + ASIDE)):
                count += 1
                if count <= ORPHANS_KEPT or (match[1] == own and len(found.get(own, ())) < ORPHANS_REMOVED):
                    found.setdefault(match[1], []).append(name)
        if count <= ORPHANS_KEPT:
            self._keep(_folder(task), _Listed(asked_at, found))
        return found.get(own, [])

    def _keep(self, folder: tuple[str, str], listed: _Listed) -> None:
        with self._lock:
            if (former := self._folders.pop(folder, None)) is not None:
                self._kept -= former.size
            self._folders[folder] = listed
            self._kept += listed.size
            while len(self._folders) > FOLDERS_KEPT or self._kept > ORPHANS_KEPT:
                self._kept -= self._folders.popitem(last=False)[1].size


def _folder(task: Task) -> tuple[str, str]:
    destination = task.job.destination
    return destination.hostname.upper(), parent(destination.path)


def _both_folders(task: Task) -> tuple[str, ...]:
    source = task.job.source
    return source.hostname.upper(), parent(source.path), *_folder(task)


def remove_orphans(task: Task, destination: Session, orphans: OrphanIndex, but: str | None = None) -> None:
    """Remove the partial files that earlier attempts at this job left, and put back what they had moved aside.

    `but`: the path of one that the job goes on with. What may not be listed or deleted stays: the job itself needs no
    such right.
    """
    final = task.job.destination.path
    destination.remove_leftovers(final, but)
    refusal: PermissionRefused | None = None
    _, after = destination.server.partial_pattern.split("{id}")
    for name in orphans.of(task, destination):
        if name.removesuffix(ASIDE).removesuffix(after).rpartition("-")[2] in orphans.live:
            continue  # another record says that it is the same job
        path = beside(final, name)
        if path == but:
            continue
        if name.endswith(after + ASIDE) and destination.look(final) is None:
            destination.dispose(path, final).result()
            continue
        try:
            destination.remove(path)
        except PermissionRefused as error:
            refusal = error
    if refusal is not None:
        log.warning("a partial file stays", destination=str(task.job.destination), error=str(refusal))
