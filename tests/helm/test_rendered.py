"""The chart's objects, whole, as files: `pytest tests/helm --write-rendered` writes them anew."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from lora_dpo_api import crd, policy, yaml12

from .conftest import CHART, Helm, Manifest, only
from .scenarios import EVERYTHING, SCENARIOS, WITHOUT_DEFINITION

RENDERED = Path(__file__).parent / "rendered"
CLUSTER_SCOPED = {
    "ClusterPodMonitoring",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "Namespace",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
}


def brief(manifest: Manifest) -> Manifest:
    """Without what files hold: the model of `helm test`."""
    if "binaryData" not in manifest:
        return manifest
    return manifest | {"binaryData": dict.fromkeys(manifest["binaryData"], "")}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_objects_are_as_committed(name: str, helm: Helm, write_rendered: bool) -> None:
    manifests = [brief(manifest) for manifest in helm.render(SCENARIOS[name])]
    file = RENDERED / f"{name}.yaml"
    if write_rendered:
        file.write_text("---\n".join(map(yaml12.dumps, manifests)))
    assert tuple(manifests) == yaml12.loads_all(file.read_text())


def test_the_trial_has_its_model_and_its_pairs(helm: Helm) -> None:
    files = {file.name: file.read_bytes() for file in (CHART / "files" / "trial").iterdir()}
    found = only(helm.render(show="templates/tests/trial.yaml"), "ConfigMap")["binaryData"]
    assert {name: base64.b64decode(content) for name, content in found.items()} == files


def test_no_rendering_is_left_over() -> None:
    assert {file.stem for file in RENDERED.iterdir()} == set(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_chart_passes_the_strict_linter(name: str, helm: Helm) -> None:
    answer = helm.run("lint", "--strict", values=SCENARIOS[name])
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_definition_is_the_generated_one_and_is_kept(helm: Helm) -> None:
    (found,) = helm.render(show="templates/crd.yaml")
    assert found["metadata"]["name"] == crd.definition()["metadata"]["name"]
    assert found["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert found["spec"] == crd.definition()["spec"]


def test_the_definition_goes_with_the_chart_where_that_is_wanted(helm: Helm) -> None:
    (found,) = helm.render({"crds": {"keep": False}}, show="templates/crd.yaml")
    assert "annotations" not in found["metadata"]


def test_the_admission_policies_are_the_generated_ones(helm: Helm) -> None:
    found = helm.render(show="templates/admission-policies.yaml")
    for manifest in found:
        del manifest["metadata"]["labels"]
    assert sorted(found, key=_identity) == sorted(policy.policies(), key=_identity)


def test_a_namespaced_installation_needs_nothing_of_the_whole_cluster(helm: Helm) -> None:
    values = EVERYTHING | WITHOUT_DEFINITION | {"rbac": {"aggregate": False}, "webhook": {"enabled": False}}
    assert not {manifest["kind"] for manifest in helm.render(values)} & CLUSTER_SCOPED


def test_the_roles_of_people_can_do_all_and_see_all_but_write_no_status(helm: Helm) -> None:
    view, edit = helm.render(show="templates/aggregated-roles.yaml")
    assert view["rules"][0]["verbs"] == ["get", "list", "watch"]
    assert edit["rules"][0]["resources"] == ["loradpojobs"]
    assert "rbac.authorization.k8s.io/aggregate-to-view" not in edit["metadata"]["labels"]


def test_a_digest_wins_over_a_tag(helm: Helm) -> None:
    digest = f"sha256:{'0' * 64}"
    values = {"image": {"repository": "r/o", "tag": "v9", "digest": digest}}
    (found,) = helm.render(values, show="templates/deployment.yaml")
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == f"r/o@{digest}"


def test_images_follow_the_charts_version(helm: Helm) -> None:
    version = yaml12.loads((CHART / "Chart.yaml").read_text())["appVersion"]
    (found,) = helm.render(show="templates/deployment.yaml")
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == f"lora-dpo-operator:{version}"


def test_the_notes_say_what_to_do_next_and_warn_of_deletion(helm: Helm) -> None:
    answer = helm.run("install", "x", "--dry-run=client", values={"crds": {"keep": False}})
    notes = answer.stdout.partition("NOTES:")[2]
    assert "kubectl apply --filename job.yaml" in notes
    assert "deletes every LoraDpoJob" in notes


def test_the_operator_is_one_pod_that_no_other_stands_beside(helm: Helm) -> None:
    deployment = only(helm.render(WITHOUT_DEFINITION), "Deployment")
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert deployment["spec"]["replicas"] == 1


def _identity(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]
