"""The alert rules and the dashboard ask only for metrics that there are, by labels that these have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from etl.status.metrics import METRICS

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).resolve().parents[2]
MONITORING = REPOSITORY / "docs" / "monitoring"
RULES = [rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
BOARD = json.loads((MONITORING / "dashboard.json").read_text())
SUFFIXES = ("_bucket", "_sum", "_count")
LABELS = re.compile(r"\bby \(([^)]*)\)|\bon \(([^)]*)\)|\{([^}]*)\}")


def expressions() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def metric_of(name: str) -> Any:
    for suffix in SUFFIXES:
        if (
            name.endswith(suffix)
            and METRICS.get(base := name.removesuffix(suffix))
            and METRICS[base].kind == "histogram"
        ):
            return METRICS[base]
    return METRICS.get(name)


@pytest.mark.parametrize(("title", "expression"), list(expressions()))
def test_every_metric_asked_for_is_declared(title: str, expression: str) -> None:
    """A renamed metric would leave an alarm that never rings."""
    names = re.findall(r"\betl_[a-z_]+", expression)
    assert names or expression == "vector(1)", title
    metrics = {name: metric_of(name) for name in names}
    assert all(metrics.values()), metrics
    known = {label for metric in metrics.values() for label in metric.labels} | {"le"}
    asked = {
        word
        for groups in LABELS.findall(expression)
        for part in groups
        for word in re.findall(r"([a-z]+)(?=\s*(?:[=!]|,|$))", re.sub(r'"[^"]*"', "", part))
    }
    assert asked <= known, (title, asked - known)


def test_every_alarm_says_how_bad_it_is_and_what_is_wrong() -> None:
    """Each has tests of its own only where its expression is not plain: docs/monitoring/alerts_test.yml."""
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names) >= 18
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "warn", "ticket", "none"}
        assert rule["annotations"]["summary"]
    tested = set(re.findall(r"alertname: (\w+)", (MONITORING / "alerts_test.yml").read_text()))
    assert tested <= set(names)


def test_panels_do_not_overlap() -> None:
    """Each has its place in the 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_alarm_says_where_to_look_and_what_to_do() -> None:
    """Claim: the first ten minutes of an alarm, in docs/operations.md, know each of them by its name."""
    operations = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    chapter = operations.split("## The first ten minutes of an alarm\n")[1].split("\n## ")[0]
    named = re.findall(r"`(Etl\w+)`", "".join(re.findall(r"^\| [^|]*", chapter, re.MULTILINE)))
    assert sorted(named) == sorted(rule["alert"] for rule in RULES)


def test_the_service_monitor_asks_the_api_with_a_token_that_it_knows() -> None:
    """Claim: label, port, namespace and secret are those of k8s/."""
    monitor = yaml.safe_load((MONITORING / "servicemonitor.yaml").read_text())
    k8s = {
        name: yaml.safe_load((REPOSITORY / "k8s" / f"{name}.yaml").read_text())
        for name in ("api-service", "api-secret")
    }
    (endpoint,) = monitor["spec"]["endpoints"]
    service = k8s["api-service"]
    assert service["metadata"]["labels"].items() >= monitor["spec"]["selector"]["matchLabels"].items()
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    wanted = endpoint["authorization"]["credentials"]
    assert wanted["name"] == k8s["api-secret"]["metadata"]["name"]
    assert wanted["key"] in k8s["api-secret"]["stringData"]
    kustomization = yaml.safe_load((REPOSITORY / "k8s" / "kustomization.yaml").read_text())
    assert monitor["metadata"]["namespace"] == kustomization["namespace"]
