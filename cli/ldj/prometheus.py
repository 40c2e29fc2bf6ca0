"""A Prometheus that scrapes the operator and the trainers of a local cluster: Debian's, started beside it.

What it scrapes, and under which labels, is said by the project's own monitors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldj import monitors
from ldj.errors import PrometheusError
from lora_dpo_api import yaml12
from lora_dpo_localcluster import namespace, waiting
from lora_dpo_localcluster.provider import Cluster

SCRAPE_INTERVAL = "2s"
KINDS = "pods,services,endpointslices"
"""What discovery reads, as kubectl names it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus.

    Attributes:
        cluster: what it scrapes.
        address: host and port in the cluster's network.
        chosen: the monitors that say what it scrapes.
        folder: the files with what it scrapes.
    """

    cluster: Cluster
    address: str
    chosen: tuple[monitors.Manifest, ...]
    folder: Path

    def scrape(self, objects: Sequence[monitors.Manifest]) -> None:
        """Scrape what the monitors select of these objects (`KINDS`) from now on."""
        for name, found in monitors.target_files(self.chosen, objects).items():
            part = self.folder / f"{name}.part"
            part.write_text(json.dumps(found))
            part.replace(self.folder / name)

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


def read_monitors(file: Path) -> tuple[monitors.Manifest, ...]:
    """The monitors of a manifest."""
    return tuple(found for found in yaml12.loads_all(file.read_text()) if found)


@contextlib.contextmanager
def running(cluster: Cluster, folder: Path, chosen: tuple[monitors.Manifest, ...]) -> Iterator[Prometheus]:
    """Run Prometheus in the cluster's network, until the context ends.

    Args:
        cluster: what it scrapes.
        folder: for its configuration, targets, data and log.
        chosen: the monitors that say what it scrapes.

    Raises:
        NotReadyError: it didn't start; the error has the end of its log.
    """
    prometheus = Prometheus(cluster, f"127.0.0.1:{namespace.free_ports(1)[0]}", chosen, folder)
    file, log = folder / "prometheus.yml", folder / "prometheus.log"
    prometheus.scrape(())
    file.write_text(yaml12.dumps({"scrape_configs": monitors.scrape_configs(chosen, folder, interval=SCRAPE_INTERVAL)}))
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
