"""A consumer's own metrics over HTTP."""

from __future__ import annotations

import urllib.error
import urllib.request
from datetime import UTC, datetime

import pytest

from etl.errors import SettingsError
from etl.models.status import Snapshot
from etl.status.port import MetricsPort

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def build() -> Snapshot:
    given = {"kind": "consumer", "incarnation": "a", "seq": 1, "interval_seconds": 2.0, "state": "running"}
    return Snapshot(id="h/0", at=NOW, started_at=NOW, **given)  # type: ignore[arg-type]  # checked by the model


def test_metrics_are_answered_and_nothing_else_is() -> None:
    """Any other path is not found."""
    port = MetricsPort(0, build)
    port.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port.number}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert b'etl_process_state{process="h/0",kind="consumer",state="running"} 1' in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port.number}/etc/passwd", timeout=10)
        with pytest.raises(SettingsError, match="ETL_METRICS_PORT"):
            MetricsPort(port.number, build)
    finally:
        port.stop()
