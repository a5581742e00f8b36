"""`etl verify`: what it finds of files that were copied, and its exit codes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from etl.cli import main
from etl.transfer.bandwidth import BURST_SECONDS, Bucket

pytestmark = pytest.mark.unit

CONTENT = b"the content of a file"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the one server that there is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("DST_TYPE", "local")
    monkeypatch.setenv("DST_BASE_PATH", str(tmp_path / "there"))
    return tmp_path / "there"


def a_result(path: str = "/a", **changed: Any) -> dict[str, Any]:
    checksum = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    return {
        "job_id": f"job of {path}",
        "status": "SUCCESS",
        "source": {"hostname": "SRC", "path": path},
        "destination": {"hostname": "DST", "path": path},
        "bytes": len(CONTENT),
        "verified_by": "size",
        "checksum": checksum,
    } | changed


def verify(*results: object, arguments: tuple[str, ...] = ()) -> Result:
    """Run the command with results on its standard input."""
    text = "".join(f"{result if isinstance(result, str) else json.dumps(result)}\n" for result in results)
    return CliRunner().invoke(main, ["verify", "--file", "-", *arguments], input=text, catch_exceptions=False)


def test_files_as_they_were_sent(here: Path) -> None:
    """By their content; by size, where a result has no checksum, as older ones have none."""
    for name in ("a", "b", "c"):
        (here / name).write_bytes(CONTENT)
    old = a_result("/b")
    del old["checksum"]
    done = verify(a_result("/a"), old, a_result("/c", checksum="new-one:00"), "")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "3 files: 1 content, 2 size\n"


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"?" * len(CONTENT), "its sha256 is"), (b"short", "has 5 bytes, not 21"), (None, "is not there")],
)
def test_a_file_that_differs_is_one_line(here: Path, content: bytes | None, why: str) -> None:
    """With its name and the reason; the exit code is 1, whatever else could not be checked."""
    if content is not None:
        (here / "a").write_bytes(content)
    done = verify(a_result(), "nonsense")
    assert done.exit_code == 1
    (line,) = done.stdout.splitlines()
    assert line.startswith("different: DST:/a (job job of /a)")
    assert why in line


def test_what_cannot_be_checked_is_told_apart(here: Path) -> None:
    """A server that is not in the settings, and a line that is no result."""
    (here / "a").write_bytes(CONTENT)
    elsewhere = a_result("/b", destination={"hostname": "GONE", "path": "/b"})
    done = verify(a_result(), elsewhere)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "unchecked: GONE:/b" in done.stderr
    done = verify(a_result(), *["nonsense"] * 30)
    assert done.exit_code == 2
    assert done.stderr.endswith("1 file: 1 content; 30 lines without a result\n")


def test_a_file_of_which_nothing_is_known_is_not_as_it_was_sent(here: Path) -> None:
    """It is there; that is all."""
    (here / "a").write_bytes(CONTENT)
    done = verify(a_result(bytes=None, checksum=None))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "unchecked: DST:/a (job job of /a): neither its size nor a checksum can be compared" in done.stderr


def test_only_the_last_copy_counts(here: Path) -> None:
    """Earlier files of the name are gone; failures, and files that were left alone, say nothing."""
    (here / "a").write_bytes(CONTENT)
    earlier = a_result(bytes=5, checksum="md5:" + "0" * 32)
    done = verify(earlier, a_result(), a_result("/x", status="FAILED"), a_result("/y", skipped=True))
    assert (done.exit_code, done.stderr) == (0, "1 file: 1 content\n")


def test_a_file_too_large_to_be_read_back_is_compared_by_size(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the line says so."""
    monkeypatch.setenv("ETL_VERIFY_READ_BACK_LIMIT_BYTES", "5")
    (here / "a").write_bytes(CONTENT)
    done = verify(a_result(), arguments=("--json",))
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "job_id": "job of /a",
        "destination": {"hostname": "DST", "path": "/a"},
        "found": "size",
        "why": None,
    }


def test_a_file_of_results_that_is_not_there(here: Path) -> None:
    """It is named."""
    done = CliRunner().invoke(main, ["verify", "--file", "none.jsonl"])
    assert done.exit_code == 2
    assert "none.jsonl" in done.stderr


def test_what_is_read_back_keeps_to_the_bandwidth_limit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest of all names of the place, as in a consumer; two names pay into one bucket."""
    for name, limit in (("DST", "1M"), ("OTHER", "2M")):
        monkeypatch.setenv(f"{name}_TYPE", "local")
        monkeypatch.setenv(f"{name}_BASE_PATH", str(here))
        monkeypatch.setenv(f"{name}_BANDWIDTH_LIMIT", limit)
    taken: list[tuple[int, float | None]] = []
    take = Bucket.take

    def paid(bucket: Bucket, count: int) -> float:
        taken.append((id(bucket), bucket.burst_bytes))
        return take(bucket, count)

    monkeypatch.setattr(Bucket, "take", paid)
    (here / "a").write_bytes(CONTENT)
    done = verify(a_result("/a"), a_result("/a", destination={"hostname": "OTHER", "path": "/a"}))
    assert done.stderr == "2 files: 2 content\n"
    assert len({bucket for bucket, _ in taken}) == 1
    assert {burst for _, burst in taken} == {1e6 * BURST_SECONDS}
