"""What a command imports before it does anything: the libraries cost more than most commands take."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from etl.cli import COMMANDS, SUMMARIES

pytestmark = pytest.mark.unit

CONSUMER = {"etl.consumer", "etl.process", "etl.lanes", "etl.dispatch", "etl.intake", "etl.transfer"}
CLIENT = {"kafka", "lz4", "zstandard", "snappy", "cramjam"}
API = {"fastapi", "starlette", "uvicorn", "sqlite3"}
OURS = {"etl.config", "etl.models", "etl.logs"}
FILES = {"yaml", "etl.config.obscured"}  # of other programs
LIBRARIES = {"pydantic", "structlog", "rich", "asyncio", "ssl"}


@pytest.mark.parametrize("module", ["etl.cli", "etl.main"])
@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        ("--version", CONSUMER | CLIENT | API | OURS | LIBRARIES),
        ("submit --help", CONSUMER | CLIENT | API | FILES),
        ("jobs --help", CONSUMER | API),
        ("--help", CONSUMER | CLIENT | API),
    ],
)
def test_a_command_that_only_tells_waits_for_no_library(module: str, arguments: str, heavy: set[str]) -> None:
    """Nor does it for the parts of a consumer; by whichever name it is called."""
    tell = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    script = f"{tell}; from {module} import main; main({arguments.split()!r})"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # it loads sqlite3, too
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=plain)
    assert told.stdout
    assert not heavy & set(told.stderr.split())


def test_each_command_is_in_the_help() -> None:
    assert list(SUMMARIES) == list(COMMANDS)
