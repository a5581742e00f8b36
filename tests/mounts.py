"""Small file systems of a test's own: really full, really read-only. Mounting takes root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a file system of this size."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    folder.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0777", "etl-test", str(folder)], check=True, timeout=20
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)  # lazily: a server may still be inside


def make_read_only(folder: Path) -> None:
    """Let nobody write there any more, root included."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True, timeout=20)
