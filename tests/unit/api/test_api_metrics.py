"""The metrics of the API, read by Prometheus' own library; and the requests that it counts itself."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from apiworld import World
from etl.models.status import ServerStatus
from etl.status import metrics
from unit.status.test_metrics import NOW, process

pytestmark = pytest.mark.unit


def read(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples of each name, by the values of their labels."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            key = tuple(sample.labels.values())
            assert key not in series, (sample.name, key)
            series[key] = sample.value
    return found


def test_prometheus_reads_what_was_declared() -> None:
    """Types, labels and help come through as they were declared, whatever names of strangers hold."""
    evil = 'x"} 1\nevil{a="\\'
    text = metrics.render([process(evil, servers=(ServerStatus(name=evil),), version=evil)], NOW)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert not [name for name in families if not name.startswith("etl_")]
    for name, family in families.items():
        declared = metrics.METRICS.get(name) or metrics.METRICS[f"{name}_total"]
        assert (family.type, family.documentation) == (declared.kind, declared.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(declared.labels), sample
    assert families["etl_lanes"].samples[0].labels["process"] == evil


def test_the_metrics_of_the_api_can_be_read(filled: World) -> None:
    """Claim: /metrics has processes, dead letters and requests, in a form that Prometheus takes."""
    with filled.services.store.writing() as connection:
        connection.execute("UPDATE letters SET settled = 'discarded' WHERE offset = 11")
    with filled.client() as client:
        client.get("/api/v1/jobs")
        client.get("/api/v1/jobs/t/0/1")
        answer = client.get("/metrics")
    found = read(answer.text)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert sum(found["etl_dead_letters"].values()) == 6
    assert found["etl_dead_letters_settled"] == {(f"{filled.topic}-dlq", "discarded"): 1}
    assert found["etl_http_requests_total"]["/api/v1/jobs", "GET", "2xx"] == 1
    assert found["etl_http_requests_total"]["/api/v1/jobs/{topic}/{partition}/{offset}", "GET", "4xx"] == 1
    assert found["etl_http_request_duration_seconds_count"]["/api/v1/jobs", "GET"] == 1
    buckets = [
        value for key, value in found["etl_http_request_duration_seconds_bucket"].items() if "/api/v1/jobs" in key
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 1


def test_no_address_becomes_a_label(filled: World) -> None:
    """Claim: what is asked for is counted by its template; unknown addresses, odd methods and files as one."""
    with filled.client() as client, filled.client(None) as stranger:
        for n in range(20):
            client.get(f"/no/such/{n}")
            client.request(f"ODD{n}", "/api/v1/jobs")
            client.get(f"/ui/no-such-{n}.js")
            stranger.get(f"/api/v1/jobs/{n}/0/1")
        found = read(client.get("/metrics").text)["etl_http_requests_total"]
    assert {route for route, _, _ in found} <= {"other", "/ui/", "/api/v1/jobs"}
    assert {method for _, method, _ in found} <= {"GET", "other"}
    assert sum(found.values()) == 80
