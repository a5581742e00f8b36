"""What earlier attempts left at a server that lets nobody delete."""

from __future__ import annotations

import pytest
from contract_parts import a_task, moved
from structlog.testing import capture_logs

from etl.transfer.partials import partial_path

pytestmark = pytest.mark.contract


def test_an_orphan_that_may_not_be_deleted_fails_no_job(fake, session, buffer) -> None:
    """The file comes, the orphans stay, and one warning tells."""
    source, destination = fake(files={"/a": b"12345"}), fake(files={"/out/x": b""})
    task, ours = a_task(), (session(source), session(destination))
    orphans = {partial_path(task, ours[1].server, token): b"12" for token in ("one", "two")}
    destination.files.update(orphans)
    destination.answers["DELE"] = "550 Permission denied."
    task.orphan_scan_since = 0.0
    with capture_logs() as told:
        moved(task, *ours, buffer)
    assert destination.files == {"/out/x": b"", "/out/b": b"12345", **orphans}
    assert [line["log_level"] for line in told if "partial" in line["event"]] == ["warning"]
