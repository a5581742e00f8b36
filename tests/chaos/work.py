"""Jobs with files that are known to the byte: made before, judged after.

Every server's files lie on this disk, so a test sees them without asking a server. Knows no Kafka.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OVERWRITES = ("replace", "skip", "fail", "newer")
ACTIONS = ("keep", "delete", "move")
COMBINATIONS = tuple(itertools.product(OVERWRITES, ACTIONS))

OLD_TIME, NEW_TIME = 1_700_000_000, 1_760_000_000  # whole seconds: all that FTP carries
SMALL_LIMIT = 48 * 1024
LARGE_BYTES = (2 * 1024 * 1024, 4 * 1024 * 1024)


@functools.lru_cache(maxsize=1)
def _noise() -> bytes:
    return random.Random(3).randbytes(8 * 1024 * 1024)


def content(seed: int, size_bytes: int) -> bytes:
    """Return bytes that no other seed gives."""
    start = (seed * 7919) % (len(_noise()) - size_bytes)
    return (b"%08d" % seed + _noise()[start : start + size_bytes])[:size_bytes]


@dataclass(frozen=True)
class Place:
    """A server as jobs call it, its settings, and the folder of this disk that is its `/`."""

    name: str
    root: Path
    settings: dict[str, str]

    def on_disk(self, path: str) -> Path:
        """Return where a path of this server lies."""
        return self.root / path.lstrip("/")


def ftp_place(name: str, server: Any, folder: str = "", **settings: str) -> Place:
    """Describe an FTP server of the fixtures; `folder`: the part of its files that is this test's."""
    values = {
        "TYPE": "ftp",
        "HOST": server.host,
        "PORT": str(server.port),
        "USER": server.username,
        "PASS": server.password,
        **settings,
    }
    if folder:
        values["BASE_PATH"] = f"/{folder}"
    root = server.root / folder if folder else server.root
    root.mkdir(parents=True, exist_ok=True)
    return Place(name, root, {f"{name}_{key}": value for key, value in values.items()})


def local_place(name: str, root: Path) -> Place:
    """Describe a folder of this machine."""
    root.mkdir(parents=True, exist_ok=True)
    return Place(name, root, {f"{name}_TYPE": "local", f"{name}_BASE_PATH": str(root)})


@dataclass(frozen=True)
class Job:
    """One job, and what must have become of it."""

    number: int
    source: Place
    destination: Place
    overwrite: str = "replace"
    action: str = "keep"
    size_bytes: int = 1000
    before: bytes | None = None  # at the destination; with the time `before_time`
    before_time: int = OLD_TIME
    skipped: bool = False  # what is at the destination is left alone, and so is the source

    @property
    def id(self) -> str:
        """Its job_id."""
        return f"{self.overwrite}-{self.action}-{self.number:05d}"

    @property
    def source_path(self) -> str:
        """Where its file comes from."""
        return f"/in/{self.number % 3}/{self.id}.dat"

    @property
    def destination_path(self) -> str:
        """Where its file goes."""
        return f"/out/{self.number % 5}/{self.id}.dat"

    @property
    def moved_path(self) -> str:
        """Where its source is moved."""
        return f"/moved/{self.number % 2}/{self.id}.dat"

    @property
    def content(self) -> bytes:
        """The source file."""
        return content(self.number, self.size_bytes)

    def message(self) -> bytes:
        """Return the job as it is sent."""
        action: object = {"move": self.moved_path} if self.action == "move" else self.action
        return json.dumps(
            {
                "job_id": self.id,
                "source": {"hostname": self.source.name, "path": self.source_path},
                "destination": {"hostname": self.destination.name, "path": self.destination_path},
                "options": {"overwrite": self.overwrite, "source_action": action},
            }
        ).encode()

    def prepare(self) -> None:
        """Make its files."""
        _put(self.source.on_disk(self.source_path), self.content, NEW_TIME)
        if self.before is not None:
            _put(self.destination.on_disk(self.destination_path), self.before, self.before_time)

    def expected(self) -> dict[Path, bytes]:
        """Return the files that must be there in the end; no others."""
        final = self.destination.on_disk(self.destination_path)
        files = {final: self.before if self.skipped and self.before is not None else self.content}
        if self.action == "keep" or self.skipped:
            files[self.source.on_disk(self.source_path)] = self.content
        elif self.action == "move":
            files[self.source.on_disk(self.moved_path)] = self.content
        return files


def _put(path: Path, data: bytes, mtime: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (mtime, mtime))


@dataclass
class Work:
    """The jobs of a test and the places they go between."""

    places: list[Place]
    jobs: list[Job] = field(default_factory=list)
    pairs: list[tuple[Place, Place]] | None = None  # source and destination; None: all there are

    @property
    def settings(self) -> dict[str, str]:
        """The settings of all places."""
        return {key: value for place in self.places for key, value in place.settings.items()}

    def add(self, count: int, overwrite: str, action: str, *, large_every: int = 40) -> list[Job]:
        """Make jobs of one combination, between all pairs of places, with files there before where that is clear."""
        pairs = self.pairs or list(itertools.permutations(self.places, 2))
        added = []
        for _ in range(count):
            number = len(self.jobs)
            chance = random.Random(number)
            source, destination = pairs[number % len(pairs)]
            size_bytes = chance.choice((0, 1, 100)) if number % 17 == 0 else chance.randrange(1, SMALL_LIMIT)
            if number % large_every == large_every - 1:
                size_bytes = chance.randrange(*LARGE_BYTES)
            job = Job(number, source, destination, overwrite, action, size_bytes, **_before(overwrite, number))
            job.prepare()
            self.jobs.append(job)
            added.append(job)
        return added

    def add_mixed(self, each: int, **options: int) -> list[Job]:
        """Make `each` jobs of every combination, mixed."""
        return [
            job for _ in range(each) for combination in COMBINATIONS for job in self.add(1, *combination, **options)
        ]

    def problems(self) -> list[str]:
        """Say what is not as it must be: files missing, wrong or left over; empty when all is well."""
        wanted = {path: data for job in self.jobs for path, data in job.expected().items()}
        found = {path for place in self.places for path in place.root.rglob("*") if path.is_file()}
        said = [f"missing: {path}" for path in sorted(wanted.keys() - found)]
        said += [f"left over: {path}" for path in sorted(found - wanted.keys())]
        for path in sorted(found & wanted.keys()):
            if path.read_bytes() != wanted[path]:
                said.append(f"wrong content ({path.stat().st_size} bytes, not {len(wanted[path])}): {path}")
        return said

    def add_one(self, size_bytes: int, overwrite: str = "replace", action: str = "keep") -> Job:
        """Make one job between the first pair, of this size."""
        source, destination = (self.pairs or list(itertools.permutations(self.places, 2)))[0]
        job = Job(len(self.jobs), source, destination, overwrite, action, size_bytes)
        job.prepare()
        self.jobs.append(job)
        return job

    def partials(self) -> list[Path]:
        """Return the partial files that lie about now."""
        return [path for place in self.places for path in place.root.rglob(".etl-*")]


def _before(overwrite: str, number: int) -> dict[str, Any]:
    """Put another file at the destination of every fourth job, where it is clear what becomes of it."""
    other = content(1_000_000 + number, 50_000 + number % 100)  # larger than any small file
    if number // 12 % 4 != 1:
        return {}
    if overwrite == "replace":
        return {"before": other}
    if overwrite == "skip":
        return {"before": other, "skipped": True}
    if overwrite == "newer" and number % 2:
        return {"before": other, "before_time": NEW_TIME + 1000, "skipped": True}
    return {"before": other} if overwrite == "newer" else {}
