"""Looks at final names all the while: there is the old file or the complete new one, at every instant."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from background import Background
from chaos.work import Job


class Watcher(Background):
    """A thread that lists the folders of destinations again and again."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        super().__init__("watcher")
        self._lock = threading.Lock()  # guards the two below
        self._sizes: dict[str, set[int]] = {}  # final name -> sizes it may have
        self._lasting: set[str] = set()  # names that may never be absent
        self._folders: set[str] = set()
        self.looks = 0
        self.wrong: set[str] = set()
        self.watch(jobs)

    def watch(self, jobs: Iterable[Job]) -> None:
        """Watch the destinations of further jobs."""
        with self._lock:
            for job in jobs:
                path = str(job.destination.on_disk(job.destination_path))
                self._sizes[path] = {job.size_bytes}
                if job.before is not None:
                    self._sizes[path].add(len(job.before))
                    self._lasting.add(path)
                self._folders.add(str(Path(path).parent))

    def allow(self, sizes: Mapping[str, int]) -> None:
        """Let files have another size, too."""
        with self._lock:
            for path, size in sizes.items():
                self._sizes[path].add(size)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                folders, lasting = sorted(self._folders), sorted(self._lasting)
            for folder in folders:
                self._look(folder)
                self._stop.wait(0.005)
            for path in lasting:
                if not Path(path).exists():
                    self.wrong.add(f"absent for a moment: {path}")
            self.looks += 1
            self._stop.wait(0.02)

    def _look(self, folder: str) -> None:
        try:
            with os.scandir(folder) as entries:
                found = [(entry.path, entry.name, entry.stat().st_size) for entry in entries if not _is_gone(entry)]
        except FileNotFoundError:  # the folder, or a partial file that was renamed meanwhile
            return
        for path, name, size in found:
            if name.startswith(".etl-"):
                continue
            with self._lock:
                sizes = self._sizes.get(path)
            if sizes is None:
                self.wrong.add(f"nobody's file: {path}")
            elif size not in sizes:
                self.wrong.add(f"{size} bytes instead of {sorted(sizes)}: {path}")


def _is_gone(entry: os.DirEntry[str]) -> bool:
    try:
        entry.stat()
    except FileNotFoundError:
        return True
    return False
