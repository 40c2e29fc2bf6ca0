"""LoraDpoJobs on the test cluster: the operator, small jobs, and what a user sees of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from ldj import install
from ldj.kubectl import Kubectl as Cli
from lora_dpo_api.job import LoraDpoJob
from lora_dpo_api.status import Condition, ConditionType, JobPhase, LoraDpoJobStatus
from lora_dpo_localcluster.provider import Cluster, Image

from .conftest import Bucket, Kubectl, wait_for

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "data" / "parity" / "llama-r8"
JOB_LABEL = "training.loradpo.dev/job"
PHASE_LABEL = "training.loradpo.dev/phase"
POOL_LABEL = "cloud.google.com/gke-nodepool"
ORDINARY_NODES = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": POOL_LABEL, "operator": "DoesNotExist"}]}]
        }
    }
}
"""Not on hosts of a slice, where the operator runs on GKE neither."""
EAGER = {
    "LORADPO_PROGRESS_SECONDS": "1",
    "LORADPO_RECHECK_SECONDS": "1",
    "LORADPO_RESYNC_SECONDS": "10",
    "LORADPO_SERVING_SECONDS": "40",
    "LORADPO_STALLED_SECONDS": "20",
    "LORADPO_SIMULATE_TPU": "true",
    "LORADPO_LOG_FORMAT": "text",
}
"""The operator in a hurry, on nodes that pose as TPU hosts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operator:
    """The operator as a Deployment of the test cluster."""

    kubectl: Kubectl

    def pods(self) -> list[dict[str, Any]]:
        """Its pods."""
        found: list[dict[str, Any]] = self.kubectl.json("-n", install.NAMESPACE, "get", "pods")["items"]
        return found

    def metrics(self) -> str:
        """What it serves to Prometheus."""
        service = f"/api/v1/namespaces/{install.NAMESPACE}/services/{install.DEPLOYMENT}:http/proxy/metrics"
        return self.kubectl.text("get", "--raw", service)

    def kill(self) -> None:
        """End it with SIGKILL, and keep it away until `start`."""
        self.kubectl.text("-n", install.NAMESPACE, "scale", f"deployment/{install.DEPLOYMENT}", "--replicas=0")
        self.kubectl.text("-n", install.NAMESPACE, "delete", "pods", "--all", "--grace-period=0", "--force")
        wait_for(lambda: not self.pods(), "the end of the operator")

    def start(self) -> None:
        """Let it run again."""
        self.kubectl.text("-n", install.NAMESPACE, "scale", f"deployment/{install.DEPLOYMENT}", "--replicas=1")
        self.kubectl.text(
            *("-n", install.NAMESPACE, "rollout", "status", f"deployment/{install.DEPLOYMENT}", "--timeout=100s")
        )


def start_operator(cluster: Cluster, kubectl: Kubectl, operator: Image, trainer: Image) -> Operator:
    """Install the operator of this checkout, and wait until it is ready."""
    install.install(
        Cli(cluster, install.NAMESPACE),
        ROOT,
        operator=operator.name,
        trainer=trainer.name,
        trainer_env=cluster.bucket.pod_env,
    )
    patch = {"spec": {"template": {"spec": {"affinity": ORDINARY_NODES}}}}
    kubectl.text("-n", install.NAMESPACE, "patch", f"deployment/{install.DEPLOYMENT}", "-p", json.dumps(patch))
    settings = [f"{name}={value}" for name, value in EAGER.items()]
    kubectl.text("-n", install.NAMESPACE, "set", "env", f"deployment/{install.DEPLOYMENT}", *settings)
    running = Operator(kubectl)
    running.start()
    return running


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One LoraDpoJob on the cluster."""

    kubectl: Kubectl
    namespace: str
    name: str

    def apply(self, manifest: dict[str, Any]) -> str:
        """Apply it, as a user does; what kubectl says."""
        return self.kubectl.text("-n", self.namespace, "apply", "-f", "-", stdin=manifest)

    def delete(self) -> None:
        """Delete it, without waiting."""
        self.kubectl.text("-n", self.namespace, "delete", "ldj", self.name, "--wait=false")

    def suspend(self, wanted: bool) -> None:
        """Suspend it, or let it go on, as a user does."""
        patch = json.dumps({"spec": {"runPolicy": {"suspend": wanted}}})
        self.kubectl.text("-n", self.namespace, "patch", "ldj", self.name, "--type=merge", "-p", patch)

    @property
    def status(self) -> LoraDpoJobStatus:
        """Its status."""
        return LoraDpoJob.from_body(self.kubectl.json("-n", self.namespace, "get", "ldj", self.name)).status

    def condition(self, kind: ConditionType) -> Condition | None:
        """One of its conditions."""
        return self.status.condition(kind)

    def objects(self, kinds: str = "jobs,jobsets,pods,configmaps") -> list[dict[str, Any]]:
        """What the operator made for it."""
        selector = f"{JOB_LABEL}={self.name}"
        found: list[dict[str, Any]] = self.kubectl.json("-n", self.namespace, "get", kinds, "-l", selector)["items"]
        return found

    def slice_pods(self) -> list[dict[str, Any]]:
        """Pods of its slice."""
        return [pod for pod in self.objects("pods") if pod["metadata"]["labels"][PHASE_LABEL] == "train"]

    def reaches(self, *phases: JobPhase, timeout: float = 240) -> LoraDpoJobStatus:
        """Wait until it is in one of the phases; at once an error when it has failed."""

        def there() -> LoraDpoJobStatus | None:
            status = self.status
            failed = status.phase is JobPhase.FAILED and JobPhase.FAILED not in phases
            assert not failed, status.message
            return status if status.phase in phases else None

        found = wait_for(there, f"{self.name} to be {' or '.join(phases)}", timeout=timeout)
        assert isinstance(found, LoraDpoJobStatus)
        return found

    def says(self, kind: ConditionType, status: str, reason: str, timeout: float = 120) -> Condition:
        """Wait until a condition has this status and reason."""

        def said() -> Condition | None:
            found = self.condition(kind)
            return found if found is not None and (found.status, found.reason) == (status, reason) else None

        found = wait_for(said, f"{kind}={status} {reason}", timeout=timeout)
        assert isinstance(found, Condition)
        return found

    def events(self) -> list[dict[str, Any]]:
        """Its events, in the order in which kubectl tells them."""
        fields = f"involvedObject.kind=LoraDpoJob,involvedObject.name={self.name}"
        found = self.kubectl.json("-n", self.namespace, "get", "events", "--field-selector", fields)["items"]
        return sorted(found, key=lambda event: (event["lastTimestamp"], event["metadata"]["name"]))


def upload_model(bucket: Bucket) -> None:
    """Put a tiny model and its preference pairs into the bucket."""
    for file in sorted((MODEL / "base").iterdir()):
        bucket.write(f"model/{file.name}", file.read_bytes())
    bucket.write("data/train.jsonl", (MODEL / "prefs.jsonl").read_bytes())


def manifest(name: str, bucket: str, **spec: Any) -> dict[str, Any]:
    """A small job on one CPU host, with changes to its spec; None takes a field away."""
    base = {
        "initializeFromHf": f"{bucket}/model",
        "data": {"components": {"prefs": {"source": {"type": "url", "trainUrls": [f"{bucket}/data/train.jsonl"]}}}},
        "trainSeqLen": 128,
        "validationSplitFraction": 0.1,
        "trainer": {"numTrainSteps": 6, "trainBatchSize": 4},
        "lora": {"r": 8},
        "output": {"path": f"{bucket}/runs/{name}"},
        "cpu": {},
    }
    return {
        "apiVersion": "training.loradpo.dev/v1alpha1",
        "kind": "LoraDpoJob",
        "metadata": {"name": name},
        "spec": {key: value for key, value in (base | spec).items() if value is not None},
    }
