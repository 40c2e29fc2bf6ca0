"""Kubeflow Trainer, the peer, on the same cluster: its controller with its webhooks, and a burst of TrainJobs.

Its settings are its own manifests' but for what a cluster without a registry needs: the image, the certificate.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid

from benchmarks.operator import burst
from benchmarks.operator.api import Api, Object, each
from benchmarks.operator.burst import Burst
from lora_dpo_localcluster import controllers, errors, tools
from lora_dpo_localcluster.controllers import Manifest, kubectl
from lora_dpo_localcluster.provider import Cluster
from lora_dpo_localcluster.tools import KUBEFLOW_TRAINER

NAMESPACE = "kubeflow-system"
RUNTIME = "jax-distributed"
JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{burst.NAMESPACE}/trainjobs"
_NAME = "kubeflow-trainer-controller-manager"
_BASES = ("crds", "rbac", "manager", "webhook")
_ANYWHERE = ("CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding")


def install(cluster: Cluster) -> None:
    """Install it, and wait until it takes TrainJobs."""
    folder = tools.ensure(print, (KUBEFLOW_TRAINER,)).folder(KUBEFLOW_TRAINER)
    image = controllers.image(folder, "trainer-controller-manager")
    cluster.load(image, print)
    certificate = controllers.certificate(f"{_NAME}.{NAMESPACE}.svc")
    base = folder / "trainer-manifests" / "base"
    items: list[Manifest] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        _placed(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "kubeflow-trainer-webhook-cert"},
                "data": certificate,
            }
        ),
    ]
    for name in _BASES:
        for item in controllers.documents(kubectl(cluster, "kustomize", str(base / name))):
            items.append(_adapted(item, image.name, certificate["ca.crt"]))
    kubectl(cluster, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=controllers.listed(items))
    kubectl(cluster, "-n", NAMESPACE, "rollout", "status", f"deployment/{_NAME}", "--timeout=180s")
    runtime = controllers.documents((base / "runtimes" / "jax_distributed.yaml").read_text())
    deadline = time.monotonic() + 60
    while True:
        try:
            kubectl(cluster, "apply", "--server-side", "-f", "-", stdin=controllers.listed(runtime))
            return
        except errors.CommandError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


async def at_once(api: Api, count: int) -> Burst:
    """Send so many suspended TrainJobs, and wait until a watch has seen the JobSet of each."""
    run = uuid.uuid4().hex[:6]
    wanted = {f"b{run}-{number:05d}" for number in range(count)}
    sent: dict[str, float] = {}
    seen: dict[str, float] = {}

    def see(found: Object, now: float) -> None:
        if found["metadata"]["name"] in wanted:
            seen.setdefault(found["metadata"]["name"], now)

    async def one(name: str) -> None:
        sent[name] = time.perf_counter()
        await api.send("POST", JOBS, _job(name))

    watch = asyncio.create_task(api.watch(burst.JOBSETS, see))
    await asyncio.sleep(1)
    try:
        await each(sorted(wanted), one)
        deadline = time.monotonic() + burst.TIMEOUT
        while len(seen) < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{count - len(seen)} JobSets of TrainJobs were not made in time")
            await asyncio.sleep(0.05)
    finally:
        watch.cancel()
    took = max(seen.values()) - min(sent.values())
    latencies = tuple(sorted(seen[name] - sent[name] for name in wanted))
    return Burst(per_second=count / took, latencies=latencies)


async def clear(api: Api) -> None:
    """Delete every TrainJob, and wait until nothing of them is left."""
    await burst.clear(api, (JOBS, burst.JOBSETS))


def _job(name: str) -> Object:
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {"suspend": True, "runtimeRef": {"name": RUNTIME}},
    }


def _adapted(item: Manifest, image: str, bundle: str) -> Manifest:
    match item["kind"]:
        case "Deployment":
            pod = item["spec"]["template"]["spec"]
            made = [{**one, "image": image, "imagePullPolicy": "IfNotPresent"} for one in pod["containers"]]
            user = {"securityContext": {"runAsUser": 65532}}
            template = {**item["spec"]["template"], "spec": {**pod, **user, "containers": made}}
            return _placed({**item, "spec": {**item["spec"], "template": template}})
        case "ConfigMap" if "controller_manager_config.yaml" in item["data"]:
            (config,) = controllers.documents(item["data"]["controller_manager_config.yaml"])
            # Its own rotation waits for the kubelet to bring a Secret, which takes a minute; nothing of it is measured.
            config["certManagement"] = {**config["certManagement"], "enable": False}
            return _placed({**item, "data": {"controller_manager_config.yaml": json.dumps(config)}})
        case "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration":
            return controllers.trusting(item, bundle, NAMESPACE)
        case "ClusterRoleBinding" | "RoleBinding":
            subjects = [
                {**one, "namespace": NAMESPACE} if one["kind"] == "ServiceAccount" else one for one in item["subjects"]
            ]
            return _placed({**item, "subjects": subjects})
        case _:
            return _placed(item)


def _placed(item: Manifest) -> Manifest:
    if item["kind"] in _ANYWHERE:
        return item
    return {**item, "metadata": {**item["metadata"], "namespace": NAMESPACE}}
