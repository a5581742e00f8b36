"""The alert rules and the metrics, as Prometheus' own tool reads them."""

from __future__ import annotations

import subprocess

import pytest

import stack
from etl.models.status import Parked, PartitionStatus, ServerStatus, ServerTotals, TotalsStatus, TransferStatus
from etl.status import metrics
from etl.status.metrics import DeadLetters, Requests
from unit.status.test_metrics import NOW, process

pytestmark = pytest.mark.integration

MONITORING = stack.REPOSITORY / "docs" / "monitoring"


def promtool(*arguments: str, given: str | None = None) -> None:
    """Run it; what it objects to fails the test."""
    binary = stack.BUILD / "promtool" / "root" / "usr" / "bin" / "promtool"
    if not binary.exists():
        raise stack.MissingInfrastructureError(f"no {binary}; run: make test-servers")
    done = subprocess.run(
        [str(binary), *arguments], input=given, cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_ring_when_they_should_and_not_before() -> None:
    """Claim: each rule can be read, and those that are not plain keep to docs/monitoring/alerts_test.yml."""
    promtool("check", "rules", "alerts.yml")
    promtool("test", "rules", "alerts_test.yml")


def test_the_metrics_keep_to_the_conventions() -> None:
    """Claim: promtool finds no fault with names, types, units or help of what the API answers."""
    totals = TotalsStatus(
        jobs={"done": 5}, failures={"X": 1}, retries={"busy": 2}, servers={"A": ServerTotals(bytes_in=7, connects=2)}
    )
    told = process(
        totals=totals,
        servers=(ServerStatus(name="A", breaker="open", since=NOW, round_trip_seconds=0.1),),
        partitions=(PartitionStatus(topic="t", partition=1, end=5, oldest_at=NOW),),
        transfers=(TransferStatus(place="t-1-1", source="A:/a", destination="B:/b", phase="streaming", began_at=NOW),),
        parked=Parked(jobs=3, busy=1),
        version="1",
    )
    requests = Requests({("/api/v1/jobs", "GET", "2xx"): 3}, {("/api/v1/jobs", "GET"): totals.duration_seconds})
    text = metrics.render([told], NOW, {"t-dlq": DeadLetters({"X": 1}, NOW, {"replayed": 2})}, requests)
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} == set(metrics.METRICS)
    promtool("check", "metrics", given=text)
