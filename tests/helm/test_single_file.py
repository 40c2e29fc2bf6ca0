"""The other way in: one file for `kubectl apply`, which is the chart's default rendering.

`pytest tests/helm --write-rendered` writes it anew.
"""

from __future__ import annotations

from typing import Any

from lora_dpo_api import yaml12

from .conftest import CHART, NAMESPACE, RELEASE, Helm

FILE = CHART.parents[1] / "operator" / "manifests" / "install.yaml"
HEAD = """\
# The operator in one file, cluster-wide: the chart's default rendering.
#
#   kubectl apply --filename operator/manifests/install.yaml
#
# Put your registry before the two images, lora-dpo-operator and lora-dpo-trainer. JobSet 0.10 or newer has to be in
# the cluster. Settings are the environment variables LORADPO_… of the Deployment.
"""
NAMESPACE_OBJECT = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
}


def without_helm(value: Any) -> Any:
    """The same object without what only Helm reads."""
    if isinstance(value, list):
        return [without_helm(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: without_helm(item) for key, item in value.items() if not key.startswith(("helm.sh/", "meta.helm.sh/"))}
    if kept.get("app.kubernetes.io/managed-by") == "Helm":
        del kept["app.kubernetes.io/managed-by"]
    return {key: item for key, item in kept.items() if item != {} or value[key] == {}}


def rendered(helm: Helm) -> str:
    answer = helm.run("template", RELEASE, "--skip-tests")
    assert answer.returncode == 0, answer.stderr
    objects = [found for found in yaml12.loads_all(answer.stdout) if found]
    return HEAD + "---\n".join(yaml12.dumps(without_helm(found)) for found in [NAMESPACE_OBJECT, *objects])


def test_the_single_file_is_the_charts_default_rendering(helm: Helm, write_rendered: bool) -> None:
    text = rendered(helm)
    if write_rendered:
        FILE.write_text(text)
    assert FILE.read_text() == text


def test_the_single_file_brings_everything_and_speaks_of_helm_nowhere() -> None:
    objects = yaml12.loads_all(FILE.read_text())
    kinds = {found["kind"] for found in objects}
    assert {"Namespace", "CustomResourceDefinition", "ValidatingAdmissionPolicy", "ClusterRole", "Deployment"} <= kinds
    assert {"Service", "ServiceAccount", "ClusterRoleBinding"} <= kinds
    assert objects[0]["kind"] == "Namespace"
    assert "helm" not in FILE.read_text().lower()
    named = [found["metadata"].get("namespace", NAMESPACE) for found in objects]
    assert set(named) == {NAMESPACE}
