"""The local cluster itself: what it gives to the other tests, and that it takes everything along when it goes."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_localcluster import cgroups, namespace, state
from lora_dpo_localcluster.image import Image
from lora_dpo_localcluster.provider import Cluster, Shape
from lora_dpo_localcluster.source_provider import SourceCluster

from .conftest import Bucket, Kubectl, wait_for

LOCKED_DOWN = {
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod(name: str, image: str, script: str, **container: Any) -> dict[str, Any]:
    """A pod that runs a Python script once, as restricted as a pod can be."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "containers": [
                {
                    "name": "script",
                    "image": image,
                    "imagePullPolicy": "Never",
                    "command": ["python", "-c", script],
                    "securityContext": LOCKED_DOWN,
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                    **container,
                }
            ],
        },
    }


def output(kubectl: Kubectl, where: str, manifest: dict[str, Any]) -> str:
    """Run a pod to its end and return what it printed; the test fails when the pod does."""
    name = manifest["metadata"]["name"]
    kubectl.text("-n", where, "apply", "-f", "-", stdin=manifest)

    def ended() -> str | None:
        phase = str(kubectl.json("-n", where, "get", "pod", name)["status"].get("phase"))
        return phase if phase in ("Succeeded", "Failed") else None

    phase = wait_for(ended, f"the end of pod {name}", timeout=120)
    text = kubectl.text("-n", where, "logs", name)
    assert phase == "Succeeded", text
    return text


def test_a_jobset_gets_its_defaults_from_the_webhook_and_runs(
    kubectl: Kubectl, namespace: str, operator_image: Image
) -> None:
    resolve = "import socket, time\nwhile True:\n try: print(socket.gethostbyname('gang-slice-0-1.gang')); break\n"
    template = pod("x", operator_image.name, resolve + " except OSError: time.sleep(0.1)\ntime.sleep(2)")["spec"]
    job = {"parallelism": 2, "completions": 2, "template": {"spec": template}}
    kubectl.text(
        *("-n", namespace, "apply", "-f", "-"),
        stdin={
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {"name": "gang"},
            "spec": {"replicatedJobs": [{"name": "slice", "template": {"spec": job}}]},
        },
    )
    made = kubectl.json("-n", namespace, "get", "jobset", "gang")
    assert made["spec"]["replicatedJobs"][0]["template"]["spec"]["completionMode"] == "Indexed"

    def completed() -> bool:
        status = kubectl.json("-n", namespace, "get", "jobset", "gang").get("status", {})
        return bool(status.get("terminalState") == "Completed")

    wait_for(completed, "the JobSet's end", timeout=120)


def test_a_refused_jobset_is_refused_by_the_webhook(kubectl: Kubectl, namespace: str) -> None:
    job = {"name": "Not A Name", "template": {"spec": {"template": {"spec": {"containers": []}}}}}
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": "wrong"},
        "spec": {"replicatedJobs": [job]},
    }
    answer = kubectl("-n", namespace, "create", "-f", "-", stdin=manifest)
    assert "DNS-1035" in answer.stderr, "the definition's own schema doesn't know this rule, the webhook does"


def test_the_operator_image_runs_without_rights_on_a_read_only_root(
    kubectl: Kubectl, namespace: str, operator_image: Image
) -> None:
    script = "import os, getpass, kopf, lora_dpo_operator; print(os.getuid(), getpass.getuser())"
    assert output(kubectl, namespace, pod("operator", operator_image.name, script)) == "65532 nonroot\n"


def test_the_trainer_image_has_jax_and_no_kubernetes(kubectl: Kubectl, namespace: str, trainer_image: Image) -> None:
    script = (
        "import importlib.util as u, jax; import lora_dpo_trainer;"
        "print(jax.numpy.arange(3).sum(), u.find_spec('kubernetes'), u.find_spec('kopf'))"
    )
    env = [{"name": "JAX_PLATFORMS", "value": "cpu"}]
    assert output(kubectl, namespace, pod("trainer", trainer_image.name, script, env=env)) == "3 None None\n"


def test_a_pod_and_this_machine_see_the_same_bucket(
    kubectl: Kubectl, namespace: str, trainer_image: Image, bucket: Bucket
) -> None:
    source = bucket.write("in/here.txt", b"from this machine")
    script = (
        f"import fsspec; print(fsspec.open('{source}', 'rt').open().read());"
        f"f = fsspec.open('{bucket.url}/out/there.txt', 'wb').open(); f.write(b'x' * 6_000_000); f.close();"
        f"print(fsspec.filesystem('gs').ls('{bucket.url}/out'))"
    )
    env = [{"name": key, "value": value} for key, value in bucket.server.pod_env.items()]
    printed = output(kubectl, namespace, pod("writer", trainer_image.name, script, env=env))
    assert "from this machine" in printed
    assert bucket.objects("out/") == (f"{bucket.url}/out/there.txt",)
    assert len(bucket.read("out/there.txt")) == 6_000_000


def test_a_pod_that_asks_for_chips_lands_on_a_host_that_poses(
    kubectl: Kubectl, namespace: str, operator_image: Image
) -> None:
    manifest = pod("chips", operator_image.name, "print('ran')", resources={"limits": {"google.com/tpu": "4"}})
    manifest["spec"]["nodeSelector"] = {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x2x2",
    }
    assert output(kubectl, namespace, manifest) == "ran\n"
    assert kubectl.json("-n", namespace, "get", "pod", "chips")["spec"]["nodeName"] in ("node2", "node3")


def test_one_kubeconfig_works_on_this_machine_and_in_the_clusters_network(cluster: Cluster, kubectl: Kubectl) -> None:
    inside = cluster.run([str(cluster.kubectl), "get", "nodes", "-o", "name"])
    assert inside.stdout == kubectl.text("get", "nodes", "-o", "name")
    assert inside.stdout.split() == ["node/node1", "node/node2", "node/node3"]


def test_a_pods_address_is_reached_from_the_clusters_network(
    cluster: Cluster, kubectl: Kubectl, namespace: str, operator_image: Image
) -> None:
    server = pod(
        "server", operator_image.name, "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8080)"
    )
    kubectl.text("-n", namespace, "apply", "-f", "-", stdin=server)
    address = wait_for(
        lambda: kubectl.json("-n", namespace, "get", "pod", "server")["status"].get("podIP"), "the pod's address"
    )
    fetch = f"import urllib.request as u; print(u.urlopen('http://{address}:8080/').status)"
    wait_for(lambda: cluster.run([sys.executable, "-c", fetch]).stdout == "200\n", "the pod's answer")


# What follows is about the provider that makes the cluster of this machine's own processes.


@dataclasses.dataclass(frozen=True, slots=True)
class Traces:
    """What a cluster could leave on this machine."""

    processes: tuple[str, ...]
    mounts: tuple[str, ...]
    groups: tuple[str, ...]
    folders: tuple[str, ...]


def traces(paths: state.ClusterPaths) -> Traces:
    """Everything on this machine that carries a cluster's name or folder."""
    root = str(paths.root)
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"{root}/" in command or f"{root} " in command:
                processes.append(command)
    groups = (hierarchy / paths.cgroup.strip("/") for hierarchy in cgroups.hierarchies())
    return Traces(
        processes=tuple(processes),
        mounts=tuple(line for line in Path("/proc/mounts").read_text().splitlines() if f"{root}/" in line),
        groups=tuple(str(group) for group in groups if group.exists()),
        folders=(root,) if paths.root.exists() else (),
    )


def network() -> tuple[str, str]:
    """This machine's own links and firewall rules."""
    return tuple(  # type: ignore[return-value]
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for command in (["ip", "-brief", "link"], ["nft", "--stateless", "list", "ruleset"])
    )


@pytest.fixture
def spare() -> Iterator[SourceCluster]:
    """A cluster of the test's own, beside the session's; not up yet."""
    made = SourceCluster(state.cluster_paths(f"{os.environ.get('LDJ_TEST_CLUSTER') or 'test'}-spare"))
    made.down(print)
    yield made
    made.down(print)


def start_in_background(cluster: SourceCluster) -> subprocess.Popen[bytes]:
    """`ldj cluster up` as a process that can be killed."""
    command = [sys.executable, "-c", "from ldj.main import main; main()", "cluster", "up", "--name", cluster.name]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_two_clusters_live_side_by_side_and_go_without_a_trace(
    cluster: Cluster, kubectl: Kubectl, namespace: str, spare: SourceCluster
) -> None:
    before = network()
    spare.up(Shape(), print)
    assert spare.run([str(spare.kubectl), "get", "nodes", "-o", "name"]).stdout == "node/node1\n"
    assert spare.run([str(spare.kubectl), "get", "namespace", namespace]).returncode != 0
    spare.down(print)
    assert traces(spare.paths) == Traces((), (), (), ())
    assert network() == before
    assert kubectl("get", "namespace", namespace).returncode == 0


@pytest.mark.parametrize("started", [0, 3, 9, 10])
def test_a_start_that_is_killed_leaves_nothing_after_down(cluster: Cluster, spare: SourceCluster, started: int) -> None:
    before = network()
    starting = start_in_background(spare)

    def far_enough() -> bool:
        if started == 0:
            return namespace.find(spare.paths) is not None
        return len(list(spare.paths.pids.glob("*"))) >= started

    wait_for(far_enough, f"{started} processes", interval=0.01)
    starting.send_signal(signal.SIGKILL)
    starting.wait()
    spare.down(print)
    assert traces(spare.paths) == Traces((), (), (), ())
    assert network() == before


def test_a_cluster_whose_first_process_was_killed_starts_again(cluster: Cluster, spare: SourceCluster) -> None:
    spare.up(Shape(), print)
    found = namespace.find(spare.paths)
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    wait_for(lambda: not spare.status().running, "the cluster to be down")
    spare.up(Shape(), print)
    assert spare.status().running


def test_a_killed_program_shows_in_the_status(spare: SourceCluster) -> None:
    spare.up(Shape(), print)
    spare.processes.kill("kube-scheduler")
    wait_for(lambda: ("kube-scheduler", False) in spare.status().processes, "the dead scheduler in the status")
    spare.down(print)
    assert traces(spare.paths) == Traces((), (), (), ())
