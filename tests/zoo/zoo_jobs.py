"""The jobs of a server of the zoo: 169 of every kind, to it, from it, and within it; and what must come of each.

    Plan(server_root, files_root).jobs          makes the files, too
    Job.wrong(result, letters) -> [str]         judged by what is told, and by what lies on the disk
    Plan.left_over(), Plan.harmed()             what no job explains

The names are what counts here: each file is right under its exact name, or the job is one truthful dead letter.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEWEST = 1_750_000_000  # seconds since the epoch: the time of a plan's first file; each later one is older
OLD = NEWEST - 5_000_000  # that of files that are there before
SERVER, FILES = "ZOO", "FILES"  # the two names of the settings
NAMES = {
    "plain": "plain.bin",
    "space": "with some space.txt",
    "blanks": " lead and trail ",
    "korean": "한글 파일 이름.txt",
    "composed": "Übergrößenträger é.txt",
    "decomposed": "Cafe\u0301 u\u0308.txt",
    "emoji": "smile😀.txt",
    "hash": "hash#tag#.txt",
    "percent": "per%25cent%20.txt",
    "brackets": "br[ack]et{s}(1).txt",
    "glob": "star*que?.txt",
    "quotes": "quo'te\"d`.txt",
    "backslash": "back\\slash.txt",
    "signs": "semi;colon&dollar$x,=!~.txt",
    "dash": "-dash.txt",
    "options": "-R -la",
    "dot": ".hidden",
    "upper": "UPPER.TXT",
    "long": "n" * 206 + ".txt",
    "long-korean": "가" * 69 + ".txt",
}
REFUSED = frozenset({"IO_ERROR", "FILE_NOT_FOUND", "PERMISSION_DENIED", "INVALID_MESSAGE"})
SUCCESS = frozenset({"SUCCESS"})


@dataclass(frozen=True)
class Place:
    """A path on one of the two sides, and where that lies on this disk."""

    name: str
    root: Path
    path: str

    @property
    def file(self) -> Path:
        """Return the file."""
        return self.root / self.path

    @property
    def is_there(self) -> bool:
        """Is there anything of exactly this name, byte for byte?"""
        parent = os.fsencode(self.file.parent)
        return os.path.isdir(parent) and os.fsencode(self.file.name) in os.listdir(parent)  # noqa: PTH112, PTH208 - bytes

    def to_dict(self) -> dict[str, str]:
        """Return it as jobs do."""
        return {"hostname": self.name, "path": f"/{self.path}"}


@dataclass
class Job:
    """One job and what is expected of it."""

    key: str
    source: Place
    destination: Place
    content: bytes | None  # None: there is no source
    mtime: float
    options: Mapping[str, Any] = field(default_factory=dict)
    expected: frozenset[str] = SUCCESS  # or codes
    before: bytes | None = None  # at the destination
    stays: bool = False  # what was there before is there after a success, too
    skipped: bool = False
    source_gone: bool = False
    moved: Place | None = None

    @property
    def message(self) -> dict[str, Any]:
        """Return it as it is sent."""
        ends = {"source": self.source.to_dict(), "destination": self.destination.to_dict()}
        return {"job_id": self.key, **ends, "options": dict(self.options)}

    @property
    def files(self) -> set[Path]:
        """Return the files that may be there because of this job."""
        return {place.file for place in (self.source, self.destination, self.moved) if place is not None}

    def code(self, result: Mapping[str, Any] | None) -> str:
        """Return how it ended, in a word."""
        if result is None:
            return "NO RESULT"
        return "SUCCESS" if result["status"] == "SUCCESS" else str(result.get("error_code"))

    def wrong(self, result: Mapping[str, Any] | None, letters: Sequence[Any]) -> list[str]:
        """Return what did not end as it should, by what is told and by what lies on the disk; [] if all is well."""
        if result is None:
            return ["no result"]
        code = self.code(result)
        faults = []
        if code not in self.expected:
            faults.append(f"{code} (expected {' or '.join(sorted(self.expected))}): {result.get('error')}")
        if len(letters) != (code != "SUCCESS"):
            faults.append(f"{len(letters)} dead letters with {code}")
        if code == "SUCCESS":
            faults += self._wrong_success(result)
        else:
            faults += self._wrong_failure()
        return faults

    def _wrong_success(self, result: Mapping[str, Any]) -> list[str]:
        faults = []
        if result["attempts"] != 1:
            faults.append(f"{result['attempts']} attempts")
        if bool(result.get("skipped")) != self.skipped:
            faults.append(f"skipped: {result.get('skipped')}")
        wanted = self.before if self.stays else self.content
        if not self.destination.is_there:
            faults.append(f"SUCCESS, and no file of this name: {_neighbours(self.destination)}")
        elif not self.destination.file.is_file() or self.destination.file.read_bytes() != wanted:
            faults.append("SUCCESS with another content")
        elif not self.stays:
            faults += self._wrong_time(result)
        is_gone = not self.source.is_there
        if self.source_gone and not self.skipped and not is_gone and result.get("source_action_done") is not False:
            faults.append("the source is still there, and the result does not say so")
        if is_gone and (not self.source_gone or self.skipped):
            faults.append("THE SOURCE IS GONE")
        if self.moved and is_gone and not (self.moved.is_there and self.moved.file.read_bytes() == self.content):
            faults.append("the source is not where it was to be moved")
        return faults

    def _wrong_time(self, result: Mapping[str, Any]) -> list[str]:
        seen = self.destination.file.stat().st_mtime
        is_kept = int(seen) == int(self.mtime)
        if self.options.get("preserve_mtime") is False:
            return ["time kept, and should not be"] if is_kept else []
        if is_kept:
            return ["the result says that the time was not kept"] if result.get("mtime_kept") is False else []
        if abs(seen - time.time()) > 300:
            return [f"time off by {seen - self.mtime:+.0f} s"]
        return [] if result.get("mtime_kept") is False else ["time not kept, and the result does not say so"]

    def _wrong_failure(self) -> list[str]:
        faults = []
        if self.content is not None and not self.source.is_there:
            faults.append("FAILED, AND THE SOURCE IS GONE")
        if self.before is not None:
            if not self.destination.file.is_file() or self.destination.file.read_bytes() != self.before:
                faults.append("failed, and what was at the destination is not there any more")
        elif self.destination.file.is_file() and self.destination.file.read_bytes() != self.content:
            faults.append("failed, and half a file is at the destination")
        return faults


def _neighbours(place: Place) -> str:
    parent = place.file.parent
    if not parent.is_dir():
        return "no folder"
    names = sorted(os.listdir(parent))  # noqa: PTH208 - names are wanted
    return repr(names) if len(names) < 6 else f"{len(names)} others"


def put(path: Path, content: bytes, mtime: float = OLD) -> None:
    """Make a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (mtime, mtime))


def give(root: Path, owner: int) -> None:
    """Make a whole tree an account's."""
    for path in [root, *root.rglob("*")]:
        os.chown(path, owner, -1, follow_symlinks=False)


class _Way:
    """The jobs from one side to another."""

    def __init__(self, way: str, source: tuple[str, Path], destination: tuple[str, Path]) -> None:
        self.way, self.a, self.b = way, source, destination
        self.jobs: list[Job] = []
        self.kept: dict[Path, bytes] = {}  # what nobody may touch

    def keep(self, place: Place) -> None:
        """Make a file that nobody may touch."""
        put(place.file, b"keep")
        self.kept[place.file] = b"keep"

    def here(self, name: str) -> Place:
        """Return a place in the sources' folder."""
        return Place(*self.a, f"{self.way}-from/{name}")

    def there(self, name: str) -> Place:
        """Return a place in the destinations' folder."""
        return Place(*self.b, f"{self.way}-to/{name}")

    def add(
        self,
        key: str,
        name: str,
        content: bytes | None = b"",
        *,
        to: str | None = None,
        mtime: float | None = None,
        before_mtime: float = OLD,
        moved: str | None = None,
        **expected: Any,
    ) -> None:
        """Add a job, and make its files; `content` b"": some of its own, None: no source."""
        key = f"{self.way}-{key}"
        content = random.Random(key).randbytes(3000) if content == b"" else content
        mtime = NEWEST - 1000.0 * len(self.jobs) if mtime is None else mtime
        source, destination = self.here(name), self.there(to or name)
        place = None if moved is None else Place(*self.a, f"{self.way}-done/{moved}")
        if place is not None:
            expected["options"] = {"source_action": {"move": f"/{place.path}"}}
        job = Job(key, source, destination, content, mtime, moved=place, **expected)
        if content is not None:
            put(source.file, content, mtime)
        if job.before is not None:
            put(destination.file, job.before, before_mtime)
        self.jobs.append(job)


def _names_and_sizes(way: _Way) -> None:
    for key, name in NAMES.items():
        way.add(f"name-{key}", name)
    for size in (0, 1, 100_000, 5_000_000):
        content = random.Random(size).randbytes(size)
        way.add(f"size-{size}", f"size-{size}.bin")
        job = way.jobs[-1]
        job.content = content
        put(job.source.file, content, job.mtime)
    way.add("new-folders", "a/b/c/d/e/f/g/deep.bin")
    way.add("odd-folders", "neu/ordner ü/한글 폴더/#x/[y]/deep.txt")


def _overwriting(way: _Way) -> None:
    other = b"other"
    way.add("replace", "replace.bin", before=bytes(9000))
    skip, fail, newer = ({"overwrite": what} for what in ("skip", "fail", "newer"))
    way.add("skip-there", "skip-there.bin", options=skip, before=other, stays=True, skipped=True)
    way.add("skip-absent", "skip-absent.bin", options=skip)
    exists = frozenset({"ALREADY_EXISTS"})
    way.add("fail-there", "fail-there.bin", options=fail, before=other, expected=exists)
    way.add("fail-same", "fail-same.bin", b"same" * 100, options=fail, before=b"same" * 100, stays=True)
    way.add("fail-absent", "fail-absent.bin", options=fail)
    way.add("newer-older", "newer-older.bin", options=newer, before=other, before_mtime=OLD)
    way.add(
        "newer-newer", "newer-newer.bin", options=newer, before=other, before_mtime=NEWEST, stays=True, skipped=True,
        mtime=OLD,
    )  # fmt: skip
    way.add("newer-absent", "newer-absent.bin", options=newer)


def _source_actions(way: _Way) -> None:
    delete = {"source_action": "delete"}
    way.add("delete-renamed", "delete-1.bin", to="deleted.bin", options=delete, source_gone=True)
    way.add("delete", "delete-2.bin", options=delete, source_gone=True)
    way.add("delete-odd", "지움 é.bin", options=delete, source_gone=True)
    way.add("move", "move-1.bin", moved="neu é/move-1.bin", source_gone=True)
    put(Place(*way.a, f"{way.way}-done/move-2.bin").file, b"was there")
    way.add("move-over", "move-2.bin", moved="move-2.bin", source_gone=True)
    way.add(
        "delete-skipped", "delete-3.bin", options={"overwrite": "skip", **delete}, before=b"other", stays=True,
        skipped=True,
    )  # fmt: skip


def _what_is_not_there(way: _Way) -> None:
    missing = frozenset({"FILE_NOT_FOUND"})
    way.add("missing", "nobody.bin", None, expected=missing)
    way.add("missing-folder", "no/such/folder/x.bin", None, expected=missing)
    way.add("missing-delete", "nobody-2.bin", None, options={"source_action": "delete"}, expected=missing)
    way.add("missing-newer", "nobody-3.bin", None, options={"overwrite": "newer"}, before=b"x", expected=missing)


def _what_is_no_file(way: _Way) -> None:
    no_file = frozenset({"IO_ERROR"})
    way.keep(way.here("folder/keep"))
    way.add("source-folder", "folder", None, expected=no_file)
    way.keep(way.here("file"))
    way.add("source-below-file", "file/x.bin", None, expected=no_file | {"FILE_NOT_FOUND"})
    way.keep(way.there("folder.bin/keep"))
    way.add("destination-folder", "folder.bin", expected=no_file)
    way.keep(way.there("file"))
    way.add("destination-below-file", "below.bin", to="file/below.bin", expected=no_file)


def _what_is_forbidden(way: _Way) -> None:
    denied = frozenset({"PERMISSION_DENIED"})
    if way.a[0] == SERVER:
        way.add("unreadable", "unreadable.bin", expected=denied)
        way.here("unreadable.bin").file.chmod(0)
        way.add("closed-folder", "closed/x.bin", expected=denied)
        way.here("closed").file.chmod(0)
        way.add(
            "undeletable",
            "fixed/x.bin",
            to="undeletable.bin",
            options={"source_action": "delete"},
            expected=denied | SUCCESS,
        )
        way.jobs[-1].source_gone = True
        way.here("fixed").file.chmod(0o555)
    if way.b[0] == SERVER:
        way.there("fixed").file.mkdir(parents=True)
        way.there("fixed").file.chmod(0o555)
        way.add("unwritable", "fixed-1.bin", to="fixed/x.bin", expected=denied)
        way.add("unmakeable", "fixed-2.bin", to="fixed/new/x.bin", expected=denied)


def _times(way: _Way) -> None:
    way.add("time-2001", "time-2001.bin", mtime=1_000_000_000)
    way.add("time-2040", "time-2040.bin", mtime=2_210_000_000)
    way.add("time-fraction", "time-fraction.bin", mtime=1_600_000_000.75)
    way.add("time-not-kept", "time-not-kept.bin", mtime=1_100_000_000, options={"preserve_mtime": False})


class Plan:
    """The jobs of one server, whose files are made: to it, from it, and from it to itself."""

    def __init__(self, server_root: Path, files_root: Path) -> None:
        self.roots = (server_root, files_root)
        self.jobs: list[Job] = []
        self._kept: dict[Path, bytes] = {}
        server, files = (SERVER, server_root), (FILES, files_root)
        for way in (_Way("up", files, server), _Way("down", server, files), _Way("within", server, server)):
            for make in (
                _names_and_sizes,
                _overwriting,
                _source_actions,
                _what_is_not_there,
                _what_is_no_file,
                _what_is_forbidden,
                _times,
            ):
                make(way)
            self.jobs += way.jobs
            self._kept |= way.kept

    def left_over(self) -> list[Path]:
        """Return the files that no job explains."""
        explained: set[Path] = set().union(*(job.files for job in self.jobs))
        found = {path for root in self.roots for path in root.rglob("*") if not path.is_dir()}
        return sorted(found - explained - self._kept.keys())

    def harmed(self) -> list[Path]:
        """Return the files that nobody should have touched and somebody has."""
        return [path for path, content in self._kept.items() if not path.is_file() or path.read_bytes() != content]
