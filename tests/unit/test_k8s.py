"""The manifests of `k8s/`: valid by Kubernetes' own schemas, of one piece, and with settings that the product takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import pytest
import yaml

from etl.api.access import keys
from etl.config import ConfigLoader

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).resolve().parents[2] / "k8s"
VERSIONS = ("1.29", "1.34")
COMMIT_SECONDS = 15  # after the grace time: reset, last commit, leaving the group, Python's own end
# What KEDA's scaler "metrics-api" knows (keda.sh); its schema is not among those of Kubernetes.
METRICS_TRIGGER = {
    "url", "valueLocation", "targetValue", "activationTargetValue", "authMode", "format", "unsafeSsl", "method",
    "keyParamName",
}  # fmt: skip
KEDA = ("scaledobject.yaml", "triggerauthentication.yaml")
SCALED_OBJECT = {
    "scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod", "idleReplicaCount",
    "minReplicaCount", "maxReplicaCount", "fallback", "advanced", "triggers",
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    (document,) = yaml.safe_load_all((FOLDER / name).read_text())
    assert isinstance(document, dict)
    return document


def container() -> dict[str, Any]:
    (found,) = load("statefulset.yaml")["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


MANIFESTS = sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [name for name in MANIFESTS if name not in KEDA])
def test_a_manifest_is_valid_by_the_schema_of_kubernetes(name: str, version: str) -> None:
    """Strictly: no field that the schema does not have."""
    kubernetes_validate.validate(load(name), version, strict=True)


def test_the_kustomization_lists_every_manifest() -> None:
    """None is forgotten, none is missing."""
    assert sorted(load("kustomization.yaml")["resources"]) == MANIFESTS


def test_the_settings_are_ones_the_product_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ConfigMap and the mounted secrets, read as a pod reads them."""
    monkeypatch.chdir(tmp_path)  # a clone may have an .env of its own
    secrets = load("secret.yaml")["stringData"]
    (tmp_path / "etl").mkdir()
    for name, value in secrets.items():
        (tmp_path / "etl" / name).write_text(value)
    data = load("configmap.yaml")["data"]
    assert all(isinstance(value, str) for value in data.values())
    environ = {name: value.replace("/run/secrets/etl", str(tmp_path / "etl")) for name, value in data.items()}
    config = ConfigLoader(environ=environ | {"ETL_INSTANCE_ID": "etl-consumer-0"})
    assert config.warnings == []
    assert config.settings.instance_id_is_set
    assert config.settings.leave_on_stop
    assert set(config.secrets) == set(secrets.values())


def test_a_pod_has_the_time_that_a_stop_takes() -> None:
    """TerminationGracePeriodSeconds fits ETL_SHUTDOWN_GRACE_SECONDS."""
    grace = float(load("configmap.yaml")["data"]["ETL_SHUTDOWN_GRACE_SECONDS"])
    assert (
        load("statefulset.yaml")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= grace + COMMIT_SECONDS
    )


def test_a_pod_is_a_static_member_under_its_own_name_and_locked_down() -> None:
    """Non-root, read-only, no capability, no token; what must be written is mounted."""
    pod = load("statefulset.yaml")["spec"]["template"]["spec"]
    found = container()
    instance = next(entry for entry in found["env"] if entry["name"] == "ETL_INSTANCE_ID")
    assert instance["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert found["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in found["volumeMounts"]} == {"/tmp", "/data", "/run/secrets/etl"}
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(found)


def test_all_selectors_mean_the_pods_of_the_stateful_set() -> None:
    """Service, PodDisruptionBudget and NetworkPolicy choose by the label that the pods have."""
    labels = load("statefulset.yaml")["spec"]["template"]["metadata"]["labels"]
    assert load("statefulset.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert load("service.yaml")["spec"]["selector"] == labels
    assert load("poddisruptionbudget.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert load("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"] == labels


def test_the_scaled_object_scales_the_consumers_by_what_the_api_counts() -> None:
    """Same target, group and API as the other manifests; no more pods than partitions; its token is let in."""
    scaled, settings = load("scaledobject.yaml"), load("configmap.yaml")["data"]
    spec = scaled["spec"]
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    assert set(spec) <= SCALED_OBJECT
    target = load("statefulset.yaml")
    assert spec["scaleTargetRef"] == {
        "apiVersion": target["apiVersion"], "kind": target["kind"], "name": target["metadata"]["name"],
    }  # fmt: skip
    assert "replicas" not in target["spec"], "KEDA and the manifest would take turns"
    assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"] == int(settings["ETL_NUM_PARTITIONS"])
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "metrics-api"
    known = trigger["metadata"]
    assert set(known) <= METRICS_TRIGGER
    assert all(isinstance(value, str) for value in known.values())
    assert int(known["targetValue"]) > 0
    url, service = urlsplit(known["url"]), load("api-service.yaml")
    assert url.hostname == f"{service['metadata']['name']}.{load('kustomization.yaml')['namespace']}.svc"
    assert (url.port or 80) == service["spec"]["ports"][0]["port"]
    given = load("api-deployment.yaml")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert url.hostname in next(entry["value"] for entry in given if entry["name"] == "ETL_API_ALLOWED_HOSTS").split(
        ","
    )
    assert parse_qs(url.query) == {"group": [settings["ETL_GROUP_ID"]]}
    described = json.loads((FOLDER.parent / "docs" / "openapi.json").read_text())
    answer = described["paths"][url.path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    shape = described["components"]["schemas"][answer.rpartition("/")[2]]
    assert shape["properties"][known["valueLocation"]]["type"] == "integer"
    (secret,) = load("triggerauthentication.yaml")["spec"]["secretTargetRef"]
    assert (secret["parameter"], known["authMode"]) == ("token", "bearer")
    assert trigger["authenticationRef"]["name"] == load("triggerauthentication.yaml")["metadata"]["name"]
    secrets = load("api-secret.yaml")
    assert secret["name"] == secrets["metadata"]["name"]
    token = secrets["stringData"][secret["key"]]
    roles = [line.split(":")[1] for line in secrets["stringData"]["tokens"].split() if line.endswith(f":{token}")]
    assert roles == ["viewer"]


def test_the_api_is_one_locked_down_pod_that_is_asked_by_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its selectors mean its pods, its probes are its own paths, and its tokens are in a secret of its own."""
    monkeypatch.chdir(tmp_path)
    pod = load("api-deployment.yaml")["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert load("api-deployment.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert load("api-service.yaml")["spec"]["selector"] == labels
    assert load("api-networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"] == labels
    (found,) = pod["spec"]["containers"]
    assert found["args"] == ["api"]
    assert [found[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")] == [
        "/live", "/ready", "/live",
    ]  # fmt: skip
    assert found["securityContext"] == container()["securityContext"]
    assert pod["spec"]["securityContext"] == load("statefulset.yaml")["spec"]["template"]["spec"]["securityContext"]
    given = {entry["name"]: entry["value"] for entry in found["env"]}
    secrets = load("api-secret.yaml")
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert volumes["tokens"]["secret"]["secretName"] == secrets["metadata"]["name"] == "etl-api"
    assert len(keys.read_tokens(secrets["stringData"]["tokens"])) == 3
    loaded = ConfigLoader(environ=given)
    assert loaded.settings.api_tokens_file == "/run/secrets/etl-api/tokens"
