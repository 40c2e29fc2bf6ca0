"""A Prometheus that scrapes the operator and the trainers of a local cluster: Debian's, started beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import tempfile
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
        targets: the file with what it scrapes.
    """

    cluster: Cluster
    address: str
    targets: Path

    def scrape(self, pods: Sequence[Mapping[str, Any]]) -> None:
        """Scrape these pods from now on, as far as `targets` takes them."""
        part = self.targets.with_suffix(".part")
        part.write_text(json.dumps(targets(pods)))
        part.replace(self.targets)

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


def configuration(targets: Path) -> dict[str, Any]:
    """The configuration file; what to scrape stands in a file of its own that may change (`targets`).

    Debian's Prometheus is built without the discovery of Kubernetes pods.
    """
    return {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "scrape_timeout": SCRAPE_INTERVAL},
        "scrape_configs": [
            {
                "job_name": "lora-dpo",
                # The metrics' own namespace is the job's.
                "honor_labels": True,
                "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "5s"}],
            }
        ],
    }


def targets(pods: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What to scrape of these pods: operators, and rank 0 of every slice.

    Args:
        pods: as the API server gives them; those without an address or not running are left out.
    """
    found = []
    for pod in pods:
        labels, status = pod["metadata"].get("labels", {}), pod.get("status", {})
        if status.get("phase") != "Running" or "podIP" not in status:
            continue
        rank_0 = (labels.get("jobset.sigs.k8s.io/job-index"), labels.get("batch.kubernetes.io/job-completion-index"))
        if labels.get("app.kubernetes.io/name") == "lora-dpo-operator":
            source, port = "operator", OPERATOR_PORT
        elif labels.get("training.loradpo.dev/phase") == "train" and rank_0 == ("0", "0"):
            source, port = "trainer", PROGRESS_PORT
        else:
            continue
        address = f"{status['podIP']}:{port}"
        found.append({"targets": [address], "labels": {"source": source, "pod": pod["metadata"]["name"]}})
    return found


@contextlib.contextmanager
def running(cluster: Cluster, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus in the cluster's network, until the context ends.

    Args:
        cluster: what it scrapes.
        folder: for its configuration, targets, data and log.

    Raises:
        NotReadyError: it didn't start; the error has the end of its log.
    """
    prometheus = Prometheus(cluster, f"127.0.0.1:{namespace.free_ports(1)[0]}", folder / "targets.json")
    file, log = folder / "prometheus.yml", folder / "prometheus.log"
    prometheus.scrape(())
    file.write_text(yaml12.dumps(configuration(prometheus.targets)))
    with contextlib.ExitStack() as left:
        data = left.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="tsdb-"))
        # It ends with this process however that ends: one left behind would go on asking and writing for ever.
        program: Sequence[str] = (
            *("setpriv", "--pdeathsig", "KILL", "--"),
            "prometheus",
            f"--config.file={file}",
            f"--storage.tsdb.path={data}",
            f"--web.listen-address={prometheus.address}",
            "--log.level=warn",
        )
        with log.open("wb") as sink:
            process = subprocess.Popen(cluster.command(program), stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)
        left.callback(_end, process)
        waiting.until(
            prometheus.ready,
            "Prometheus",
            timeout=30,
            interval=0.3,
            log=log,
            alive=lambda: process.poll() is None,
        )
        yield prometheus


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
