"""Kueue, for clusters whose user wants queues: its own manifests, with a program built from its module.

It comes on top of a running cluster and can be taken away again, so that it burdens nobody else: its webhooks stand
between every Job and the API server. Left out is what only its visibility API and its other job kinds need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lora_dpo_localcluster import controllers, tools, waiting
from lora_dpo_localcluster.controllers import Manifest, kubectl
from lora_dpo_localcluster.provider import Cluster
from lora_dpo_localcluster.tools import KUEUE, Report

NAMESPACE = "kueue-system"
VERSION = "0.14.0"
_DEPLOYMENT = "kueue-controller-manager"
_CERTIFICATE = "kueue-webhook-server-cert"
_FRAMEWORKS = ("batch/job", "jobset.x-k8s.io/jobset")
_HOOKED = tuple(
    f"{letter}{kind}.kb.io"
    for kind in ("job", "jobset", "clusterqueue", "cohort", "resourceflavor", "workload")
    for letter in "mv"
)
_LEFT_OUT = ("APIService", "FlowSchema", "PriorityLevelConfiguration")
_IN_USE = ("workloads", "localqueues", "clusterqueues", "resourceflavors", "workloadpriorityclasses")
"""What carries Kueue's finalizers, in an order in which nothing waits for what comes later."""
_PROBE: Mapping[str, Any] = {
    "apiVersion": "kueue.x-k8s.io/v1beta1",
    "kind": "ResourceFlavor",
    "metadata": {"name": "webhook-probe"},
}


def install(cluster: Cluster, report: Report) -> None:
    """Install Kueue in a running cluster, and wait until it takes jobs.

    Raises:
        BuildError: its program doesn't build.
        CommandError: the API server refuses a part of it.
        NotReadyError: it doesn't start.
    """
    folder = tools.ensure(report, (KUEUE,)).folder(KUEUE)
    image = controllers.image(folder, "kueue")
    cluster.load(image, report)
    source = kubectl(cluster, "kustomize", str(folder / "kueue-config" / "default"))
    items = manifests(source, image.name, controllers.certificate(f"kueue-webhook-service.{NAMESPACE}.svc"))
    kubectl(cluster, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=controllers.listed(items))
    kubectl(cluster, "-n", NAMESPACE, "rollout", "status", f"deployment/{_DEPLOYMENT}", "--timeout=120s")
    waiting.until(lambda: _answers(cluster), "Kueue's webhooks", timeout=60)
    report(f"{cluster.name} has Kueue {VERSION}")


def uninstall(cluster: Cluster) -> None:
    """Remove Kueue and every queue; jobs that were admitted go on.

    Raises:
        CommandError: something of it doesn't go.
    """
    for kind in _IN_USE:
        scope = ("-A",) if kind in ("workloads", "localqueues") else ()
        kubectl(cluster, "delete", f"{kind}.kueue.x-k8s.io", *scope, "--all", "--timeout=60s")
    folder = tools.built_folder(KUEUE)
    source = kubectl(cluster, "kustomize", str(folder / "kueue-config" / "default"))
    documents = [item for item in controllers.documents(source) if item["kind"] not in _LEFT_OUT]
    # The namespace goes last and takes its time; nobody has to wait for it.
    kubectl(cluster, "delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=controllers.listed(documents))


def manifests(source: str, image: str, certificate: Mapping[str, str]) -> list[Manifest]:
    """Kueue's own manifests, for this image, with this certificate and a configuration of ours.

    Args:
        source: its `config/default`, rendered.
        image: the name of the controller's image.
        certificate: the data of the webhook server's Secret.
    """
    found = controllers.documents(source)
    return [_adapted(item, image, certificate) for item in found if item["kind"] not in _LEFT_OUT]


def _adapted(item: Manifest, image: str, certificate: Mapping[str, str]) -> Manifest:
    match item["kind"], item["metadata"]["name"]:
        case "Deployment", _:
            return _deployment(item, image)
        case "ConfigMap", "kueue-manager-config":
            return {**item, "data": {"controller_manager_config.yaml": json.dumps(_configuration())}}
        case "Secret", name if name == _CERTIFICATE:
            return {**item, "data": dict(certificate)}
        case (("MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration"), _):
            return controllers.trusting(item, certificate["ca.crt"], NAMESPACE, _HOOKED)
        case _:
            return item


def _configuration() -> dict[str, Any]:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta1",
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": ":8081"},
        "metrics": {"bindAddress": ":8443"},
        "webhook": {"port": 9443},
        "leaderElection": {"leaderElect": False},
        # The controller's own rotation waits for the kubelet to bring a Secret, which takes a minute.
        "internalCertManagement": {"enable": False},
        "clientConnection": {"qps": 300, "burst": 500},
        "integrations": {"frameworks": list(_FRAMEWORKS)},
        "featureGates": {"VisibilityOnDemand": False, "MultiKueue": False},
    }


def _deployment(item: Manifest, image: str) -> Manifest:
    pod = item["spec"]["template"]["spec"]
    metrics = {"name": "cert", "mountPath": "/etc/kueue/metrics/certs", "readOnly": True}
    containers = [
        {
            **container,
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "volumeMounts": [*container["volumeMounts"], metrics],
            # A small machine's processor belongs to the pods.
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
            "readinessProbe": {**container["readinessProbe"], "initialDelaySeconds": 1, "periodSeconds": 1},
        }
        for container in pod["containers"]
    ]
    user = {**pod["securityContext"], "runAsUser": 65532}
    template = {**item["spec"]["template"], "spec": {**pod, "containers": containers, "securityContext": user}}
    return {**item, "spec": {**item["spec"], "template": template}}


def _answers(cluster: Cluster) -> bool:
    command = [str(cluster.kubectl), "create", "--dry-run=server", "-f", "-"]
    return cluster.run(command, input=json.dumps(_PROBE), timeout=60).returncode == 0
