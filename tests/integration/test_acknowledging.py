"""`etl acknowledge`: what somebody sees to, from one shell to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.test_operators import Shell, audit
from workbench import Desk, job

pytestmark = pytest.mark.integration


def test_what_is_acknowledged_is_known_until_it_is_taken_back_or_grows(
    desk: Desk, places: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Claim: with a reason, and in the audit; a further dead letter needs somebody again."""
    etl = Shell(desk, monkeypatch, tmp_path)

    def letters() -> dict[str, Any]:
        return next(one for one in etl.status()["needs"] if one["kind"] == "dead-letters")

    with desk.consuming(places.settings):
        desk.do(job("SRC:/none", "DST:/none"))
        assert letters()["urgent"]
        assert etl("acknowledge", "dead-letters").exit_code == 2, "without a reason"
        assert etl("acknowledge", "dead-letters", "--reason", "lot 7 is late", "--for", "1h").exit_code == 0
        known = letters()
        assert (known["urgent"], known["known"]["reason"]) == (False, "lot 7 is late")
        assert "sees to it until" in known["text"]
        assert etl("acknowledge", "dead-letters", "--take-back").exit_code == 0
        assert letters()["urgent"]
        assert etl("acknowledge", "dead-letters", "all", "--reason", "again").exit_code == 0
        assert not letters()["urgent"]
        desk.do(job("SRC:/none", "DST:/none"))
        assert letters()["urgent"], "one more has come"
        assert etl("acknowledge", "dead-letters", "--reason", "mine").exit_code == 0
        assert etl("dlq", "discard", "--code", "FILE_NOT_FOUND", "--yes", "--reason", "too late").exit_code == 0
        assert not [one for one in etl.status()["needs"] if one["kind"] == "dead-letters"]
        assert etl("acknowledge", "dead-letters", "--take-back").exit_code == 0, "although it needs nobody any more"
        assert etl("acknowledge", "dead-letters", "--take-back").exit_code == 1, "nobody sees to it"
        nobody = etl("acknowledge", "server-down", "NOBODY", "--reason", "x")
        assert (nobody.exit_code, nobody.stdout) == (1, "")
    acts = [(act.action, act.reason) for act in audit(desk, "dead-letters/all")]
    assert acts[-5:] == [
        ("acknowledge", "lot 7 is late"),
        ("unacknowledge", None),
        ("acknowledge", "again"),
        ("acknowledge", "mine"),
        ("unacknowledge", None),
    ]
