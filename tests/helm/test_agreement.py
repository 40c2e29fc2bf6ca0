"""The chart against the code that it installs: rights, settings, ports, labels."""

from __future__ import annotations

import base64
import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import policy, protocol, wire, yaml12
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.protocol import Phase
from lora_dpo_api.resolve import resolve
from lora_dpo_operator import names, settings, webhook
from lora_dpo_operator.settings import LogFormat, Settings

from .conftest import CHART, Helm, installed, only
from .scenarios import EVERYTHING, MONITORED, WITHOUT_DEFINITION

VERSION = yaml12.loads((CHART / "Chart.yaml").read_text())["appVersion"]


def environment(helm: Helm, values: dict[str, Any]) -> dict[str, str]:
    (deployment,) = helm.render(values, show="templates/deployment.yaml")
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return {variable["name"]: variable["value"] for variable in variables}


def test_a_namespaced_operator_has_the_same_rights_in_each_namespace(helm: Helm) -> None:
    everywhere = only(helm.render(show="templates/rbac.yaml"), "ClusterRole")["rules"]
    found = helm.render({"watch": {"namespaces": ["a", "b"]}}, show="templates/rbac.yaml")
    roles = {manifest["metadata"]["namespace"]: manifest["rules"] for manifest in found if manifest["kind"] == "Role"}
    assert set(roles) == {"a", "b"}
    assert all(rules == everywhere for rules in roles.values())
    subjects = [manifest["subjects"] for manifest in found if manifest["kind"] == "RoleBinding"]
    assert all(subject[0]["namespace"] == "lora-dpo-system" for subject in subjects)


def test_the_defaults_are_the_operators_own(helm: Helm) -> None:
    found = settings.parse([], environment(helm, {}))
    assert found == Settings(trainer_image=f"lora-dpo-trainer:{VERSION}")


def test_every_setting_arrives_as_it_was_meant(helm: Helm) -> None:
    found = settings.parse([], environment(helm, EVERYTHING))
    assert found == Settings(
        namespaces=("team-a", "team-b"),
        trainer_image="registry.example.com:5000/trainer:v2",
        trainer_env=(("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", ".local,10.0.0.0/8")),
        simulate_tpu=True,
        progress_peers=(
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "lora-dpo-system"}},
                "podSelector": {
                    "matchLabels": {
                        "app.kubernetes.io/name": "lora-dpo-operator",
                        "app.kubernetes.io/instance": "lora-dpo-operator",
                        "app.kubernetes.io/component": "operator",
                    }
                },
            },
            {"namespaceSelector": {"matchLabels": {"team": "sre"}}},
        ),
        port=9000,
        lease="lora-dpo-system/dpo",
        webhook_certificate="/certificate",
        webhook_port=8443,
        ui=True,
        resync_seconds=60.0,
        progress_seconds=5.0,
        progress_budget=50.0,
        recheck_seconds=2.5,
        serving_seconds=300.0,
        stalled_seconds=1800.0,
        log_format=LogFormat.TEXT,
        log_level="DEBUG",
    )


def test_the_chart_knows_every_setting_and_no_other(helm: Helm) -> None:
    known = {settings.ENV_PREFIX + field.name.upper() for field in dataclasses.fields(Settings)}
    given = {name for name in environment(helm, EVERYTHING) if name.startswith(settings.ENV_PREFIX)}
    assert given == known


def test_only_an_operator_that_makes_network_policies_may_make_them(helm: Helm) -> None:
    def rights(values: dict[str, Any]) -> list[dict[str, Any]]:
        rules: list[dict[str, Any]] = only(helm.render(values, show="templates/rbac.yaml"), "ClusterRole")["rules"]
        return rules

    added = [rule for rule in rights({"trainer": {"networkPolicy": {"enabled": True}}}) if rule not in rights({})]
    assert added == [{"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["get", "create"]}]


def test_the_network_policy_lets_the_operator_read_progress(helm: Helm) -> None:
    (policy,) = helm.render({"networkPolicy": {"enabled": True}}, show="templates/networkpolicy.yaml")
    progress = policy["spec"]["egress"][-1]
    assert progress["ports"] == [{"port": protocol.PROGRESS_PORT}]
    selected = progress["to"][0]["podSelector"]["matchLabels"].items()
    assert selected <= names.labels("x", "uid", Phase.TRAIN).items()


@pytest.mark.parametrize("kind", ["PodMonitor", "ClusterPodMonitoring"])
def test_the_trainers_monitor_selects_rank_0_by_labels_that_its_pod_has(kind: str, helm: Helm) -> None:
    monitor = only(helm.render(MONITORED | WITHOUT_DEFINITION), kind)
    rank_0 = {names.JOB_INDEX: "0", names.COMPLETION_INDEX: "0"}
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= (names.labels("x", "uid", Phase.TRAIN) | rank_0).items()
    )
    jobset = yaml12.loads((Path(__file__).parents[1] / "operator" / "golden" / "jobset-cpu-one-host.yaml").read_text())
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    endpoints = monitor["spec"].get("podMetricsEndpoints") or monitor["spec"]["endpoints"]
    assert ports[endpoints[0]["port"]] == protocol.PROGRESS_PORT


def test_the_operators_monitors_select_its_own_pods_and_service(helm: Helm) -> None:
    found = helm.render(MONITORED | WITHOUT_DEFINITION)
    pod = only(found, "Deployment")["spec"]["template"]
    service = only(found, "Service")
    assert only(found, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items() <= (
        service["metadata"]["labels"].items()
    )
    assert only(found, "PodMonitoring")["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in only(found, "ServiceMonitor")["spec"]["endpoints"]} <= ports


def test_the_charts_example_is_a_job_that_is_accepted() -> None:
    annotations = yaml12.loads((CHART / "Chart.yaml").read_text())["annotations"]
    (example,) = yaml12.loads(annotations["artifacthub.io/crdsExamples"])
    assert resolve(LoraDpoJob.from_body(example)).warnings == ()
    (listed,) = yaml12.loads(annotations["artifacthub.io/crds"])
    assert (listed["name"], listed["kind"], listed["version"]) == (
        f"{wire.PLURAL}.{wire.GROUP}",
        wire.KIND,
        wire.VERSION,
    )


@pytest.mark.parametrize("path", ["", "gs://bucket/trial"])
def test_the_trials_job_is_accepted_and_fits_its_pods(path: str, helm: Helm) -> None:
    values = {"test": {"path": path}, "watch": {"namespaces": ["team-a", "team-b"]}}
    found = helm.render(values, show="templates/tests/trial.yaml")
    assert {manifest["metadata"]["namespace"] for manifest in found} == {"team-a"}
    job = LoraDpoJob.from_body(yaml12.loads(only(found, "ConfigMap")["data"]["job.yaml"]))
    assert job.metadata.namespace == "team-a"
    assert resolve(job).warnings == ()
    assert job.spec.output.path == (path or "/output")
    claims = [manifest["metadata"]["name"] for manifest in found if manifest["kind"] == "PersistentVolumeClaim"]
    volumes = {volume["name"]: volume for volume in job.spec.pod_template.volumes}
    assert volumes["trial"]["configMap"]["name"] == only(found, "ConfigMap")["metadata"]["name"]
    assert [volumes["output"]["persistentVolumeClaim"]["claimName"]] == claims if not path else not claims


def test_the_readmes_settings_are_values_of_the_chart(helm: Helm) -> None:
    section = (CHART.parents[1] / "README.md").read_text().split("\n## Install\n")[1]
    settings = yaml12.loads(section.split("```yaml\n")[1].split("```")[0])
    found = helm.render(settings | WITHOUT_DEFINITION)
    (container,) = only(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"registry.example.com/lora-dpo-operator:{VERSION}"
    trainer = {"name": "LORADPO_TRAINER_IMAGE", "value": f"registry.example.com/lora-dpo-trainer:{VERSION}"}
    assert trainer in container["env"]
    job = yaml12.loads(next(one for one in found if "job.yaml" in one.get("data", {}))["data"]["job.yaml"])
    assert job["spec"]["output"]["path"] == "gs://my-bucket/trial"


def test_the_charts_version_is_the_projects() -> None:
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]
    chart = yaml12.loads((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_several_replicas_share_a_lease_that_they_may_write_and_a_drain_leaves_one(helm: Helm) -> None:
    found = installed(helm.render({"replicaCount": 2} | WITHOUT_DEFINITION))
    variables = only(found, "Deployment")["spec"]["template"]["spec"]["containers"][0]["env"]
    lease = next(variable["value"] for variable in variables if variable["name"] == "LORADPO_LEASE")
    role, binding = only(found, "Role"), only(found, "RoleBinding")
    assert f"{role['metadata']['namespace']}/{role['rules'][1]['resourceNames'][0]}" == lease
    assert [rule["verbs"] for rule in role["rules"]] == [["create"], ["get", "update"]]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert only(found, "PodDisruptionBudget")["spec"]["minAvailable"] == 1
    assert only(found, "Deployment")["spec"]["strategy"]["type"] == "RollingUpdate"


def test_a_single_replica_needs_no_lease(helm: Helm) -> None:
    found = installed(helm.render(WITHOUT_DEFINITION))
    assert "LORADPO_LEASE" not in environment(helm, {})
    assert not [manifest for manifest in found if manifest["kind"] in ("Role", "PodDisruptionBudget")]
    assert only(found, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize(
    "certificate",
    [{"certManager": {"enabled": True}}, {"secretName": "given", "caBundle": "PEM"}],
    ids=["cert-manager", "given"],
)
def test_the_webhooks_path_from_api_server_to_operator_is_whole(certificate: dict[str, Any], helm: Helm) -> None:
    values = {"webhook": {"enabled": True} | certificate, "networkPolicy": {"enabled": True}}
    found = helm.render(values | {"crds": {"enabled": False}})
    (hook,) = only(found, "ValidatingWebhookConfiguration")["webhooks"]
    (rule,) = hook["rules"]
    assert (rule["apiGroups"], rule["apiVersions"], rule["resources"]) == ([wire.GROUP], [wire.VERSION], [wire.PLURAL])
    client, service = hook["clientConfig"]["service"], only(found, "Service")
    assert (client["name"], client["namespace"]) == (service["metadata"]["name"], service["metadata"]["namespace"])
    assert client["path"] == webhook.PATH
    (port,) = (port for port in service["spec"]["ports"] if port["port"] == client["port"])
    pod = only(found, "Deployment")["spec"]["template"]["spec"]
    ports = {one["name"]: one["containerPort"] for one in pod["containers"][0]["ports"]}
    chosen = settings.parse([], environment(helm, values))
    assert ports[port["targetPort"]] == chosen.webhook_port == 10250
    assert {"ports": [{"port": "webhook"}]} in only(found, "NetworkPolicy")["spec"]["ingress"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volume = mounts[chosen.webhook_certificate]
    (secret,) = (one["secret"]["secretName"] for one in pod["volumes"] if one["name"] == volume)
    if "secretName" in certificate:
        assert secret == "given"
        assert base64.b64decode(hook["clientConfig"]["caBundle"]) == b"PEM"
        assert not [one for one in found if one["apiVersion"].startswith("cert-manager.io/")]
    else:
        made = only(found, "Certificate")
        assert made["spec"]["secretName"] == secret
        assert made["spec"]["dnsNames"] == [f"{client['name']}.{client['namespace']}.svc"]
        assert made["spec"]["issuerRef"]["name"] == only(found, "Issuer")["metadata"]["name"]
        injected = only(found, "ValidatingWebhookConfiguration")["metadata"]["annotations"]
        where = f"{made['metadata']['namespace']}/{made['metadata']['name']}"
        assert injected == {"cert-manager.io/inject-ca-from": where}


def test_a_webhook_advises_in_place_of_the_policy(helm: Helm) -> None:
    def policies(values: dict[str, Any]) -> set[str]:
        found = helm.render(values, show="templates/admission-policies.yaml")
        return {one["metadata"]["name"] for one in found}

    given = {"webhook": {"enabled": True, "certManager": {"enabled": True}}}
    assert policies({}) - policies(given) == {policy.GUIDANCE}


@pytest.mark.parametrize(
    ("values", "words"),
    [({}, "set webhook.certManager.enabled, or"), ({"secretName": "given"}, "--set-file webhook.caBundle=ca.crt")],
)
def test_a_webhook_without_a_certificate_is_refused(values: dict[str, Any], words: str, helm: Helm) -> None:
    assert words in helm.refusal({"webhook": {"enabled": True} | values})
