"""A thousand jobs that train, posed by KWOK and by one process that answers for all of their hosts."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from benchmarks.operator import burst, usage
from benchmarks.operator.api import Api, Object, each
from lora_dpo_api import yaml12
from lora_dpo_localcluster import controllers
from lora_dpo_localcluster.source_provider import SourceCluster

ROOT = Path(__file__).resolve().parents[2]
NODES = 10
PODS = "10.201.0.0/16"
"""Addresses of the posed pods: all of them local to the cluster's network, where the stub listens."""
POSED = {"type": "kwok"}
MEASURED_SECONDS = 120
TIMEOUT = 900.0


@dataclasses.dataclass(frozen=True)
class Running:
    """An operator that watches over running jobs.

    Attributes:
        cpu_percent: of one core.
        pulls_per_second: readings of progress that succeeded.
        rss_mb: memory of its process.
        until_running: seconds from the first job until all were Running.
    """

    cpu_percent: float
    pulls_per_second: float
    rss_mb: float
    until_running: float


def pose(cluster: SourceCluster) -> None:
    """Make nodes whose pods run at once, and let somebody answer for them."""
    config = cluster.paths.root / "kwok.yaml"
    config.write_text("---\n".join(yaml12.dumps(stage) for stage in _STAGES))
    subprocess.run(cluster.command(["ip", "route", "replace", "local", PODS, "dev", "lo"]), check=True)
    cluster.processes.start(
        "kwok",
        [
            *(cluster.kubectl.with_name("kwok"), f"--kubeconfig={cluster.kubeconfig}", f"--config={config}"),
            *("--manage-all-nodes=false", "--manage-nodes-with-label-selector=type=kwok"),
            f"--cidr={PODS.replace('.0/', '.1/')}",
        ],
    )
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "crds", "operator"))
    stub = [sys.executable, "-m", "benchmarks.operator.stub", str(cluster.kubeconfig)]
    cluster.processes.start("stub", stub, env={"PYTHONPATH": paths})
    nodes = [_node(number) for number in range(NODES)]
    controllers.kubectl(cluster, "apply", "-f", "-", stdin=controllers.listed(nodes))


async def measure(api: Api, count: int) -> Running:
    """Let so many jobs train, and look at the operator for a while."""
    run = uuid.uuid4().hex[:6]
    began = time.monotonic()

    async def one(name: str) -> None:
        await burst.prepare(api, _job(name))
        await burst.hand_over(api, name)

    await each((f"b{run}-{number:05d}" for number in range(count)), one)
    while (await usage.operator(api)).get('jobs{phase="Running"}', 0) < count:
        if time.monotonic() - began > TIMEOUT:
            raise RuntimeError(f"of {count} jobs not all run: {await usage.operator(api)}")
        await asyncio.sleep(2)
    took = time.monotonic() - began
    # The first reading of each job follows at once; the rhythm of the budget comes after that.
    await asyncio.sleep(60)
    before, at = await usage.operator(api), time.monotonic()
    await asyncio.sleep(MEASURED_SECONDS)
    after, lasted = await usage.operator(api), time.monotonic() - at
    pulls = 'progress_pulls_total{result="read"}'
    return Running(
        cpu_percent=100 * (after[usage.CPU] - before[usage.CPU]) / lasted,
        pulls_per_second=(after[pulls] - before[pulls]) / lasted,
        rss_mb=after["process_resident_memory_bytes"] / 1e6,
        until_running=took,
    )


def _job(name: str) -> Object:
    made = burst.job(name)
    toleration = {"key": "kwok", "operator": "Exists"}
    changes: dict[str, Any] = {
        "cpu": {},
        "trainer": {"numTrainSteps": 1_000_000, "trainBatchSize": 8},
        "podTemplate": {"nodeSelector": POSED, "tolerations": [toleration]},
        "runPolicy": {},
    }
    spec = {key: value for key, value in (made["spec"] | changes).items() if key != "tpu"}
    return made | {"spec": spec}


def _node(number: int) -> Object:
    room = {"cpu": "1000", "memory": "1Ti", "pods": "10000"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"posed-{number}", "labels": POSED},
        # Nothing else may come here: it would never really run.
        "spec": {"taints": [{"key": "kwok", "effect": "NoSchedule"}]},
        "status": {"allocatable": room, "capacity": room},
    }


def _stage(name: str, kind: str, when: list[dict[str, Any]], status: str) -> Object:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": when},
            "next": {"statusTemplate": status},
        },
    }


_STAGES = (
    _stage(
        "node-ready",
        "Node",
        [
            {
                "key": '.status.conditions.[] | select( .type == "Ready" ) | .status',
                "operator": "NotIn",
                "values": ["True"],
            }
        ],
        'conditions:\n- {type: Ready, status: "True", reason: Posed, message: posed, '
        "lastHeartbeatTime: {{ Now | Quote }}, lastTransitionTime: {{ Now | Quote }}}\n",
    ),
    _stage(
        "pod-running",
        "Pod",
        [
            {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"},
            {"key": ".status.phase", "operator": "In", "values": ["Pending"]},
        ],
        """\
{{ $now := Now }}
phase: Running
startTime: {{ $now | Quote }}
conditions:
- {type: Ready, status: "True", lastTransitionTime: {{ $now | Quote }}}
- {type: ContainersReady, status: "True", lastTransitionTime: {{ $now | Quote }}}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: true
  restartCount: 0
  state: {running: {startedAt: {{ $now | Quote }}}}
{{ end }}
{{ $addresses := PodIPsWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace }}
podIP: {{ index $addresses 0 | Quote }}
podIPs:
- ip: {{ index $addresses 0 | Quote }}
""",
    ),
    {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": "pod-gone"},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
            "selector": {"matchExpressions": [{"key": ".metadata.deletionTimestamp", "operator": "Exists"}]},
            "next": {"finalizers": {"empty": True}, "delete": True},
        },
    },
)
