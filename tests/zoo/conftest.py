"""Fixtures of the zoo: a server of each kind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.zoo import KINDS, QUICK, Kind


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `kind` once for each; only the quick ones with every change."""
    if "kind" in metafunc.fixturenames:
        marks = {name: () if name in QUICK else (pytest.mark.long,) for name in KINDS}
        kinds = [pytest.param(KINDS[name], marks=marks[name], id=name) for name in KINDS]
        metafunc.parametrize("kind", kinds)


@pytest.fixture
def resident(kind: Kind) -> Iterator[object]:
    """A server of this kind, in a folder that other users can enter."""
    folder = Path(tempfile.mkdtemp(prefix="etl-zoo-"))
    folder.chmod(0o755)
    server = None
    try:
        server = kind.make(folder)
        yield server.start()
    finally:
        if server is not None:
            server.kill()
        shutil.rmtree(folder)
