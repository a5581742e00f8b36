"""A static member (ETL_INSTANCE_ID) that stops: it keeps its place in the group, unless it is to leave it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from workbench import Desk, folder, job

pytestmark = pytest.mark.integration

STATIC = {"ETL_INSTANCE_ID": "pod-0"}


def _members(desk: Desk) -> int:
    with desk._admin() as admin:
        described = admin.describe_groups([desk.settings()["ETL_GROUP_ID"]])
    groups = described.values() if isinstance(described, dict) else described
    return sum(len(group["members"]) for group in groups)


@pytest.mark.parametrize(("leave", "left"), [("true", 0), ("false", 1)])
def test_a_static_member_leaves_when_it_stops_only_if_it_is_to(
    desk: Desk, tmp_path: Path, leave: str, left: int
) -> None:
    """Scaled in, its partitions go to others at once; restarted, nobody else gets them."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")
    with desk.consuming(STATIC, {"ETL_LEAVE_ON_STOP": leave}, folder("HERE", tmp_path / "a")):
        desk.do(job("HERE:/x", "HERE:/y"))
        assert _members(desk) == 1
    deadline = time.monotonic() + 5
    while _members(desk) != left and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _members(desk) == left
