"""Large files through a consumer: its memory stays flat, whatever goes through it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil
import pytest

import stack
from background import Background
from workbench import Command, Desk, folder, job, login

pytestmark = pytest.mark.e2e

MIB = 1 << 20
GIB = 1 << 30


class Gauge(Background):
    """Samples a process's resident memory in a thread of its own: `peak`, in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__("gauge")
        self._process = psutil.Process(pid)
        self.peak = 0

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __enter__(self) -> Self:
        self.peak = self._process.memory_info().rss
        return super().__enter__()


def sparse(path: Path, size_bytes: int) -> Path:
    """Make a file of zeros that takes no room, with a mark at its start, its middle and its end."""
    with path.open("wb") as file:
        for offset in (0, size_bytes // 2, size_bytes - 4):
            file.seek(offset)
            file.write(b"mark")
    return path


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


@pytest.mark.parametrize(
    "size_bytes",
    [pytest.param(GIB, id="1-GiB"), pytest.param(8 * GIB, id="8-GiB", marks=pytest.mark.long)],
)
@pytest.mark.timeout(900)
def test_memory_stays_flat(
    size_bytes: int,
    desk: Desk,
    run: Callable[..., Command],
    vsftpd: stack.Vsftpd,
    make_ftpd: Callable[..., stack.Ftpd],
    tmp_path: Path,
) -> None:
    """From one FTP server to another, past our disk: less than 32 MiB more than before."""
    if shutil.disk_usage(tmp_path).free < 2 * size_bytes:
        pytest.fail(f"{tmp_path} has no room for a file of {size_bytes} bytes")
    base = vsftpd.root / desk.topic
    base.mkdir()
    large, target = sparse(base / "large", size_bytes), make_ftpd()
    (base / "small").write_bytes(b"x" * 100_000)
    settings = desk.settings(
        login("SRC", vsftpd, BASE_PATH=f"/{desk.topic}"),
        login("DST", target),
        folder("HERE", tmp_path / "here"),
        {"TMPDIR": str(tmp_path)},
    )
    command = run(environment=settings)
    try:
        desk.do(*(job("SRC:/small", f"DST:/small{number}") for number in range(50)), limit=60)
        before = psutil.Process(command.process.pid).memory_info().rss
        with Gauge(command.process.pid) as gauge:
            (result,) = desk.do(job("SRC:/large", "DST:/large"), limit=600)
        assert (result["status"], result["bytes"]) == ("SUCCESS", size_bytes)
        assert gauge.peak - before < 32 * MIB, f"{(gauge.peak - before) / MIB:.0f} MiB more"
        assert digest(target.root / "large") == digest(large)
        assert command.stop() == 0
        assert not list((tmp_path / "here").iterdir())
    finally:
        command.kill()
        large.unlink()
        (target.root / "large").unlink(missing_ok=True)
