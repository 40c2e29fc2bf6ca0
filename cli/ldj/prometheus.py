"""A Prometheus that scrapes the operator and the trainers of a local cluster: Debian's, started beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldj.errors import PrometheusError
from lora_dpo_api import yaml12
from lora_dpo_api.protocol import PROGRESS_PORT
from lora_dpo_localcluster import namespace, waiting
from lora_dpo_localcluster.provider import Cluster

SCRAPE_INTERVAL = "2s"
OPERATOR_PORT = 8080


@dataclasses.dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus.

    Attributes:
        cluster: what it scrapes.
        address: host and port in the cluster's network.
    """

    cluster: Cluster
    address: str

    def query(self, expression: str) -> tuple[tuple[Mapping[str, str], float], ...]:
        """Ask for the present value of an expression.

        Returns:
            The labels and the value of each series.

        Raises:
            PrometheusError: it refuses the expression, or doesn't answer.
        """
        command = ["promtool", "query", "instant", "--format", "json", f"http://{self.address}", expression]
        answer = self.cluster.run(command, timeout=30)
        if answer.returncode != 0:
            raise PrometheusError(f"`{expression}`: {answer.stderr.strip()[-500:]}")
        found: list[dict[str, Any]] = json.loads(answer.stdout)
        return tuple((entry["metric"], float(entry["value"][1])) for entry in found)

    def ready(self) -> bool:
        """Whether it takes queries."""
        try:
            return bool(self.query("vector(1)"))
        except PrometheusError:
            return False


def configuration(kubeconfig: Path, operator_namespace: str, job_namespace: str) -> dict[str, Any]:
    """The configuration file: the operator's pods and rank 0 of every slice, found through the API server."""
    return {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "scrape_timeout": "2s"},
        "scrape_configs": [
            _pods(
                "operator",
                kubeconfig,
                operator_namespace,
                OPERATOR_PORT,
                [_keep("__meta_kubernetes_pod_label_app_kubernetes_io_name", "lora-dpo-operator")],
            ),
            _pods(
                "trainer",
                kubeconfig,
                job_namespace,
                PROGRESS_PORT,
                [
                    _keep("__meta_kubernetes_pod_label_training_loradpo_dev_phase", "train"),
                    _keep("__meta_kubernetes_pod_label_jobset_sigs_k8s_io_job_index", "0"),
                    _keep("__meta_kubernetes_pod_annotation_batch_kubernetes_io_job_completion_index", "0"),
                ],
            ),
        ],
    }


@contextlib.contextmanager
def running(cluster: Cluster, folder: Path, config: Mapping[str, Any]) -> Iterator[Prometheus]:
    """Run Prometheus in the cluster's network, until the context ends.

    Args:
        cluster: what it scrapes.
        folder: for its configuration, data and log.
        config: the content of its configuration file.

    Raises:
        NotReadyError: it didn't start; the error has the end of its log.
    """
    prometheus = Prometheus(cluster, f"127.0.0.1:{namespace.free_ports(1)[0]}")
    file, log = folder / "prometheus.yml", folder / "prometheus.log"
    file.write_text(yaml12.dumps(dict(config)))
    program: Sequence[str] = (
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={prometheus.address}",
        "--log.level=warn",
    )
    with log.open("wb") as sink:
        process = subprocess.Popen(cluster.command(program), stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)
    try:
        waiting.until(
            prometheus.ready,
            "Prometheus",
            timeout=30,
            interval=0.3,
            log=log,
            alive=lambda: process.poll() is None,
        )
        yield prometheus
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pods(job: str, kubeconfig: Path, kube_namespace: str, port: int, relabel: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "job_name": job,
        "kubernetes_sd_configs": [
            {"role": "pod", "kubeconfig_file": str(kubeconfig), "namespaces": {"names": [kube_namespace]}}
        ],
        "relabel_configs": [
            *relabel,
            _keep("__meta_kubernetes_pod_phase", "Running"),
            # One target for each container and port would scrape a pod twice.
            _keep("__meta_kubernetes_pod_container_name", "trainer" if job == "trainer" else "operator"),
            {
                "source_labels": ["__meta_kubernetes_pod_ip"],
                "regex": "(.+)",
                "replacement": f"$1:{port}",
                "target_label": "__address__",
            },
            {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
        ],
    }


def _keep(label: str, value: str) -> dict[str, Any]:
    return {"source_labels": [label], "regex": value, "action": "keep"}
