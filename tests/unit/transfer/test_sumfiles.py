"""Checksum files: every usual form is read, and only for the file it speaks of."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl.models.checksum import WRITABLE, Checksum
from etl.models.task import Facts
from etl.transfer import sumfiles
from etl.transfer.base import Session
from etl.transfer.streaming import MemoryParcel

pytestmark = pytest.mark.unit

SHA256, MD5 = "ab" * 32, "cd" * 16


@pytest.mark.parametrize(
    ("text", "is_own", "expected"),
    [
        (f"{SHA256}  a b.tif\n", True, SHA256),
        (f"{SHA256} *a b.tif\r\n", True, SHA256),
        (f"{SHA256.upper()}\n", True, SHA256),
        (f"{SHA256}  /somewhere/else/a b.tif\n", True, SHA256),
        (f"SHA256 (a b.tif) = {SHA256}\n", True, SHA256),
        (f"# made by us\n\n{'00' * 32}  other\n{SHA256}  ./a b.tif\n", False, SHA256),
        (f"{SHA256}  other\n", True, None),
        (f"{SHA256}\n", False, None),
        (f"{SHA256}  folder/a b.tif\n", False, None),
        (f"{SHA256[:-1]}  a b.tif\n", True, None),
        ("<html>not found</html>\n", True, None),
        ("", True, None),
    ],
)
def test_what_a_checksum_file_says(text: str, is_own: bool, expected: str | None) -> None:
    """Of coreutils and BSD, alone or among others; what is about another file, or is no checksum, says nothing."""
    found = sumfiles.read(text, "a b.tif", "sha256", is_own=is_own)
    assert found == (None if expected is None else Checksum("sha256", expected))


def test_a_line_names_its_own_algorithm() -> None:
    """Whatever the file is called."""
    assert sumfiles.read(f"MD5 (a) = {MD5}", "a", "sha256", is_own=True) == Checksum("md5", MD5)


@example("*0")
@example("a\u2028b\u3000")
@given(st.text(min_size=1).filter(lambda name: name.strip(" \t") == name and not set(name) & set("\r\n/")))
def test_what_is_written_is_read(name: str) -> None:
    """For every name."""
    text = sumfiles.line_of(Checksum("sha256", SHA256), name).decode("utf-8", "surrogateescape")
    assert sumfiles.read(text, name, "sha256", is_own=False) == Checksum("sha256", SHA256)


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    """Strangers write these files."""
    sumfiles.read(text, "a", "sha256", is_own=True)


def test_a_long_list_is_read_to_its_end() -> None:
    """A transfer that is broken off would end the session, which the file itself is read by; more is not kept."""
    line = f"{SHA256}  a\n".encode()
    parcel = _Listed(line + b"#" * (5 << 20))
    source = cast("Session", SimpleNamespace(look=lambda _: Facts(None, None), read=lambda _: parcel))
    assert sumfiles.find(source, "/in/a", memoryview(bytearray(1 << 20))) == Checksum("sha256", SHA256)
    assert parcel.closed == [True]


class _Listed(MemoryParcel):
    """A checksum file that notes how it is closed first."""

    def __init__(self, content: bytes) -> None:
        super().__init__("SHA256SUMS", Facts(len(content), None), io.BytesIO(content))
        self.closed: list[bool] = []

    def close(self, *, complete: bool) -> None:
        if not self.closed:
            self.closed.append(complete)


@pytest.mark.parametrize("algorithm", WRITABLE)
def test_coreutils_check_what_is_written(tmp_path: Path, algorithm: str) -> None:
    """Names with blanks and backslashes, too."""
    tool = shutil.which(f"{algorithm}sum")
    assert tool is not None
    for name in ("a b.tif", "back\\slash"):
        (tmp_path / name).write_bytes(b"content")
        checksum = Checksum(algorithm, hashlib.new(algorithm, b"content").hexdigest())
        (tmp_path / "sums").write_bytes(sumfiles.line_of(checksum, name))
        subprocess.run([tool, "-c", "sums"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
