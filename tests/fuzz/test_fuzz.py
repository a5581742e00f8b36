"""Everything that reads what strangers write meets bytes that nobody thought of."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuzz import targets

SECONDS = int(os.environ.get("FUZZ_SECONDS", "20"))  # of each target
TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.unit
@pytest.mark.parametrize("name", targets.TARGETS)
def test_nothing_but_its_own_errors_comes_out_of_it(name: str) -> None:
    """For a moment, beginning with what it is likely to get."""
    target = targets.TARGETS[name]
    texts = st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))

    @given(st.binary(max_size=60) | texts)
    def check(data: bytes) -> None:
        target(data)

    for known in targets.examples(name):
        check = example(known)(check)
    check()


@pytest.mark.long
@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.version_info >= (3, 14), reason="atheris has no wheel here: hypothesis only"
)
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("name", targets.TARGETS)
def test_libfuzzer_finds_nothing(name: str, tmp_path: Path) -> None:
    """It follows the branches of the code, for minutes in all; each input is quick and takes little memory."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.libfuzzer", name, str(SECONDS), str(tmp_path)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=SECONDS + 60,
        check=False,
    )
    found = {path.name: path.read_bytes() for path in tmp_path.glob("found-*")}
    assert done.returncode == 0, f"{found}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    runs = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line]
    assert runs, done.stderr[-3000:]
    print(name, *runs)
