"""Objects by which a store is tried out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from etl.models.message import FileTransferJob
from etl.models.server import ServerConfig
from etl.transfer import partials
from etl.transfer.s3 import conditions

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("version", ["", "5f3-"])
def test_what_a_crash_leaves_of_a_trial_is_an_orphan_of_its_job(version: str) -> None:
    """And nobody's while the run lives. It is not taken for a part of that version."""
    ends = {"source": {"hostname": "A", "path": "/a"}, "destination": {"hostname": "B", "path": "/out/b.tif"}}
    job = FileTransferJob.from_dict(ends)
    task: Any = SimpleNamespace(job=job, origin="T-0-1")
    server = ServerConfig("B", "s3")
    partial = partials.partial_path(task, server, f"{version}run7")
    link: Any = SimpleNamespace(server=server)
    folder, _, name = conditions._trial_key(link, partial.lstrip("/")).rpartition("/")
    assert folder == "out"
    assert partials.is_of_the_job(task, server, name)
    assert name != partial.rpartition("/")[2]
    assert name.removesuffix(".part").rpartition("-")[2] == "run7"
    assert not version or f"-{version}" not in name


@pytest.mark.parametrize("beside", ["etl-check", "in/a-b.tif", "in/.etl-old.part"])
def test_a_trial_beside_anything_else_has_a_name_of_its_own(beside: str) -> None:
    """In the same folder."""
    link: Any = SimpleNamespace(server=ServerConfig("B", "s3"))
    one, other = (conditions._trial_key(link, beside) for _ in range(2))
    assert one != other != beside
    assert one.rpartition("/")[0] == beside.rpartition("/")[0]
