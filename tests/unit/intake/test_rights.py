"""What the settings allow jobs to do, as admission sees it."""

from __future__ import annotations

from typing import Any

import pytest

from scene import JOB, Scene, result_in

pytestmark = pytest.mark.unit

MOVE = {"move": "/done/a"}


def job(source: str, destination: str, action: object = "keep") -> dict[str, Any]:
    return {
        **JOB,
        "source": {"hostname": source, "path": "/in/a"},
        "destination": {"hostname": destination, "path": "/out/a"},
        "options": {"source_action": action},
    }


REFUSED: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "source may only be written": ({"A_ACCESS": "write,move,delete"}, job("A", "B"), "A_ACCESS"),
    "destination may only be read": ({"B_ACCESS": "read"}, job("A", "B"), "B_ACCESS"),
    "not deleted": ({"A_ACCESS": "read,write,move"}, job("A", "B", "delete"), "A_ACCESS"),
    "not moved": ({"A_ACCESS": "read,delete"}, job("A", "B", MOVE), "A_ACCESS"),
    "in another case": ({"A_ACCESS": "READ"}, job("b", "a"), "A_ACCESS"),
    "not this pair": ({"ETL_ALLOWED_PAIRS": "A:B"}, job("B", "A"), "ETL_ALLOWED_PAIRS"),
    "no pair at all": ({"ETL_ALLOWED_PAIRS": "b:*"}, job("A", "B"), "ETL_ALLOWED_PAIRS"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_allowed_is_a_dead_letter_before_any_server_is_asked(name: str) -> None:
    """The result names the setting."""
    environ, asked, setting = REFUSED[name]
    scene = Scene(environ)
    scene.accept(asked)
    messages = scene.messages()
    assert set(messages) == {"jobs-dlq", "jobs-results"}
    result = result_in(messages["jobs-results"])
    assert result.error_code == "PERMISSION_DENIED"
    assert setting in (result.error or "")
    assert scene.dispatcher.unfinished == (0, 0)


def test_a_job_that_must_wait_is_refused_at_once_too() -> None:
    """It is not deferred first."""
    scene = Scene({"B_ACCESS": "read"})
    scene.accept({**job("A", "B"), "options": {"not_before": "2026-12-01T00:00:00Z"}})
    assert set(scene.messages()) == {"jobs-dlq", "jobs-results"}


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({"A_ACCESS": "read", "B_ACCESS": "write"}, job("A", "B")),
        ({"A_ACCESS": "read, delete"}, job("a", "B", "delete")),
        ({"A_ACCESS": "read,move"}, job("A", "B", MOVE)),
        ({"ETL_ALLOWED_PAIRS": "a:b"}, job("A", "b", "delete")),
        ({"ETL_ALLOWED_PAIRS": "B:A,A:*"}, job("A", "B")),
        ({"ETL_ALLOWED_PAIRS": "*:B"}, job("A", "B")),
    ],
)
def test_what_is_allowed_runs(environ: dict[str, str], asked: dict[str, Any]) -> None:
    """No more rights are needed than the job uses."""
    scene = Scene(environ)
    scene.accept(asked)
    assert scene.dispatcher.unfinished[0] == 1
