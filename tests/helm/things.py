"""Kubernetes objects as the API server gives them, as far as Prometheus looks at them."""

from __future__ import annotations

from .conftest import CHART, Manifest

MONITORS = CHART.parents[1] / "operator" / "manifests" / "monitors.yaml"
OPERATOR = {"app.kubernetes.io/name": "lora-dpo-operator", "app.kubernetes.io/component": "operator"}
RANK_0 = {
    "app.kubernetes.io/managed-by": "lora-dpo-operator",
    "training.loradpo.dev/job": "llama",
    "training.loradpo.dev/phase": "train",
    "jobset.sigs.k8s.io/job-index": "0",
    "batch.kubernetes.io/job-completion-index": "0",
}
SYSTEM = "lora-dpo-system"


def pod(
    name: str, labels: dict[str, str], address: str, port: int, *, phase: str = "Running", where: str = "a"
) -> Manifest:
    """A pod of one container, which has another port too."""
    named = "http" if labels is OPERATOR else "metrics"
    ports = [{"name": named, "containerPort": port}, {"name": "other", "containerPort": 1}]
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": where, "labels": labels},
        "spec": {"containers": [{"name": "main", "ports": ports}]},
        "status": {"phase": phase, "podIP": address},
    }


def installed(address: str, port: int) -> list[Manifest]:
    """The operator with its Service, beside a Service of somebody else."""
    return [
        _service("lora-dpo-operator", OPERATOR),
        _service("database", {}),
        _slice("lora-dpo-operator", {"addresses": [address], "targetRef": {"kind": "Pod", "name": "operator"}}, port),
        _slice("database", {"addresses": ["127.0.1.2"]}, port),
        pod("operator", OPERATOR, address, port, where=SYSTEM),
    ]


def _service(name: str, labels: dict[str, str]) -> Manifest:
    return {"kind": "Service", "metadata": {"name": name, "namespace": SYSTEM, "labels": labels}}


def _slice(service: str, endpoint: Manifest, port: int) -> Manifest:
    labels = {"kubernetes.io/service-name": service}
    return {
        "kind": "EndpointSlice",
        "metadata": {"name": f"{service}-x", "namespace": SYSTEM, "labels": labels},
        "endpoints": [endpoint],
        "ports": [{"name": "http", "port": port}, {"name": "webhook", "port": 9443}],
    }
