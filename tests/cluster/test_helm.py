"""The chart on a cluster of its own, by real Helm: install, upgrade, uninstall, install again."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_api.status import ConditionType, JobPhase
from lora_dpo_localcluster import clusters, tools
from lora_dpo_localcluster.provider import Cluster, Shape

from .conftest import ROOT, Bucket, Kubectl, wait_for
from .loradpojobs import Job, manifest, upload_model

CHART = ROOT / "helm" / "lora-dpo-operator"
RELEASE = "dpo"
NAMESPACE = "dpo-system"
DEFINITION = "crd/loradpojobs.training.loradpo.dev"
LONG = {"trainer": {"numTrainSteps": 100_000, "trainBatchSize": 8}}


@dataclasses.dataclass(frozen=True, slots=True)
class Release:
    """The chart's release on the cluster.

    Attributes:
        values: what every installation of the tests needs: the images of this checkout, and where the bucket is.
    """

    program: Path
    cluster: Cluster
    folder: Path
    values: dict[str, Any]

    def run(self, *argv: str) -> str:
        """What Helm prints; the test fails when Helm does."""
        answer = subprocess.run(
            [str(self.program), *argv, f"--namespace={NAMESPACE}"],
            capture_output=True,
            text=True,
            env={"HOME": str(self.folder), "KUBECONFIG": str(self.cluster.kubeconfig)},
            timeout=300,
        )
        if answer.returncode != 0:
            pytest.fail(f"helm {' '.join(argv)}: {answer.stderr.strip()}")
        return answer.stdout

    def install(self, **values: Any) -> str:
        """Install or upgrade, and wait until the operator is ready."""
        file = self.folder / "values.yaml"
        file.write_text(yaml12.dumps(self.values | values))
        wait = ("--create-namespace", "--wait", "--timeout=180s")
        return self.run("upgrade", "--install", RELEASE, str(CHART), f"--values={file}", *wait)

    def uninstall(self) -> None:
        """Uninstall, and wait until the operator is gone."""
        self.run("uninstall", RELEASE, "--wait", "--timeout=120s")


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A cluster that nobody has installed an operator into: Helm would not take over another's objects."""
    made = clusters.open_cluster("test-helm")
    made.up(Shape(nodes=1), print)
    yield made
    made.down(print)


@pytest.fixture(scope="module")
def own_kubectl(own_cluster: Cluster) -> Kubectl:
    return Kubectl(own_cluster)


@pytest.fixture(scope="module")
def release(own_cluster: Cluster, own_kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Helm with the images of this checkout; the namespace of the operator takes restricted pods only."""
    images = {}
    for target in ("operator", "trainer"):
        image = own_cluster.build(target, ROOT, print)
        own_cluster.load(image, print)
        images[target] = dict(zip(("repository", "tag"), image.name.rsplit(":", 1), strict=True))
    own_kubectl.text("create", "namespace", NAMESPACE)
    own_kubectl.text("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    program = tools.ensure(print, (tools.HELM,)).program(tools.HELM, "helm")
    values = {
        "image": images["operator"],
        "trainer": {"image": images["trainer"], "env": dict(own_cluster.bucket.pod_env)},
        "operator": {"progressSeconds": 1, "recheckSeconds": 1, "resyncSeconds": 10},
    }
    return Release(program, own_cluster, tmp_path_factory.mktemp("helm"), values)


@pytest.fixture
def job(own_cluster: Cluster, own_kubectl: Kubectl) -> Iterator[Job]:
    """A job's name in a fresh namespace, with model and data in a bucket."""
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    own_kubectl.text("create", "namespace", namespace)
    wait_for(lambda: own_kubectl("-n", namespace, "get", "serviceaccount", "default").returncode == 0, "its account")
    yield Job(own_kubectl, namespace, "tiny")
    own_kubectl.text("delete", "namespace", namespace, "--timeout=100s")


@pytest.fixture
def bucket(own_cluster: Cluster) -> Bucket:
    """A bucket with model and data."""
    made = Bucket(own_cluster.bucket.create(f"test-{uuid.uuid4().hex[:12]}"), own_cluster.bucket)
    upload_model(made)
    return made


def slice_uids(job: Job) -> set[str]:
    return {pod["metadata"]["uid"] for pod in job.slice_pods()}


def test_a_namespaced_installation_runs_a_job_with_its_roles_alone(release: Release, job: Job, bucket: Bucket) -> None:
    release.install(watch={"namespaces": [job.namespace]}, rbac={"aggregate": False})
    assert job.kubectl("get", "clusterrole", f"{RELEASE}-lora-dpo-operator").returncode != 0
    job.apply(manifest("tiny", bucket.url))
    job.reaches(JobPhase.SUCCEEDED)
    release.uninstall()


def test_a_running_job_outlives_upgrade_uninstall_and_another_install(
    release: Release, job: Job, bucket: Bucket
) -> None:
    notes = release.install()
    assert "kubectl apply --filename job.yaml" in notes
    release.run("test", RELEASE)

    job.apply(manifest("tiny", bucket.url, **LONG))
    job.reaches(JobPhase.RUNNING)
    pods = slice_uids(job)

    release.install(trainer={**release.values["trainer"], "image": {"repository": "another", "tag": "image"}})
    step = job.status.step or 0
    wait_for(lambda: (job.status.step or 0) > step, "steps told by the upgraded operator", timeout=60)
    assert slice_uids(job) == pods

    release.uninstall()
    job.kubectl.text("get", DEFINITION)
    assert slice_uids(job) == pods

    release.install()
    step = job.status.step or 0
    wait_for(lambda: (job.status.step or 0) > step, "steps told by the new operator", timeout=60)
    assert slice_uids(job) == pods
    assert (job.status.restarts, job.status.preemptions) == (0, 0)
    release.uninstall()


@pytest.fixture(scope="module")
def monitoring(own_kubectl: Kubectl) -> None:
    """The definitions of prometheus-operator and of Google's Managed Service for Prometheus, and nothing else."""
    folder = tools.ensure(print, (tools.MONITORING,)).folder(tools.MONITORING)
    for found in ("servicemonitors", "podmonitors", "prometheusrules"):
        own_kubectl.text("create", "-f", str(folder / "coreos" / f"monitoring.coreos.com_{found}.yaml"))
    for found in ("podmonitorings", "clusterpodmonitorings"):
        own_kubectl.text("create", "-f", str(folder / "google" / f"monitoring.googleapis.com_{found}.yaml"))
    own_kubectl.text("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")


@pytest.mark.usefixtures("monitoring")
def test_the_api_server_takes_every_object_of_the_chart(release: Release, own_kubectl: Kubectl) -> None:
    rendered = ROOT / "tests" / "helm" / "rendered"
    for name in ("team-a", "team-b", "lora-dpo-system"):
        own_kubectl.text("create", "namespace", name)
    for file in sorted(rendered.glob("*.yaml")):
        for found in yaml12.loads_all(file.read_text()):
            own_kubectl.text("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(found))


@pytest.mark.usefixtures("monitoring")
def test_a_monitor_with_a_field_that_does_not_exist_is_refused(release: Release, own_kubectl: Kubectl) -> None:
    found = yaml12.loads_all((ROOT / "operator" / "manifests" / "monitors.yaml").read_text())[0]
    found["metadata"]["namespace"] = "default"
    found["spec"]["endpoints"][0]["honourLabels"] = True
    answer = own_kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(found))
    assert "honourLabels" in answer.stderr


def leader(kubectl: Kubectl) -> str:
    """The pod that holds the lease."""
    lease = kubectl.json("-n", NAMESPACE, "get", "lease", f"{RELEASE}-lora-dpo-operator")
    return str(lease["spec"]["holderIdentity"]).partition("_")[0]


def leading(kubectl: Kubectl) -> dict[str, bool]:
    """Of each replica, whether it says that it leads."""
    found = {}
    for pod in kubectl.json("-n", NAMESPACE, "get", "pods")["items"]:
        name = pod["metadata"]["name"]
        answer = kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}:8080/proxy/metrics")
        found[name] = "\nloradpo_operator_leader 1.0\n" in answer.stdout
    return found


def kill(pod: str) -> None:
    """End the operator in a pod by SIGKILL, which nothing of it sees coming."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if f"HOSTNAME={pod}".encode() in environment.split(b"\0") and b"lora_dpo_operator" in command:
            os.kill(int(folder.name), signal.SIGKILL)
            return
    pytest.fail(f"no process of {pod}")


def restarts(kubectl: Kubectl, pod: str) -> int:
    """How often the operator's container in a pod was started again."""
    found = kubectl.json("-n", NAMESPACE, "get", "pod", pod)
    return int(found["status"]["containerStatuses"][0]["restartCount"])


def followed(job: Job, bucket: Bucket, name: str) -> float:
    """Seconds until a new job is taken up."""
    began = time.monotonic()
    fresh = Job(job.kubectl, job.namespace, name)
    fresh.apply(manifest(name, bucket.url, runPolicy={"suspend": True}))
    fresh.says(ConditionType.ACCEPTED, "True", "Accepted", timeout=60)
    return time.monotonic() - began


def test_the_second_replica_takes_over_whatever_happens_to_the_first(
    release: Release, own_kubectl: Kubectl, job: Job, bucket: Bucket
) -> None:
    release.install(replicaCount=2)
    followed(job, bucket, "before")
    first = leader(own_kubectl)
    assert leading(own_kubectl)[first]
    assert sorted(leading(own_kubectl).values()) == [False, True]

    kill(first)
    crash = followed(job, bucket, "after-a-crash")
    second = leader(own_kubectl)
    assert second != first
    own_kubectl.text("-n", NAMESPACE, "delete", "pod", second, "--wait=false")
    farewell = followed(job, bucket, "after-a-farewell")
    print(f"followed a killed leader in {crash:.1f} s, one that ended in {farewell:.1f} s")
    assert crash <= 20
    assert farewell <= 20

    third = leader(own_kubectl)
    before = restarts(own_kubectl, third)
    lease = ("-n", NAMESPACE, "patch", "lease", f"{RELEASE}-lora-dpo-operator", "--type=merge")
    own_kubectl.text(*lease, "-p", '{"spec": {"holderIdentity": "thief"}}')
    wait_for(lambda: restarts(own_kubectl, third) > before, "the end of a leader whose lease was taken", timeout=20)
    wait_for(lambda: leader(own_kubectl) != "thief", "another leader", timeout=20)

    # Nobody told anything twice.
    for name in ("before", "after-a-crash", "after-a-farewell"):
        told = [event["reason"] for event in Job(own_kubectl, job.namespace, name).events()]
        assert len(told) == len(set(told)), told
    release.uninstall()
