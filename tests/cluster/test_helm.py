"""The chart on a cluster of its own, by real Helm: install, upgrade, uninstall, install again."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldj import prometheus
from lora_dpo_api import yaml12
from lora_dpo_api.status import ConditionType, JobPhase
from lora_dpo_localcluster import clusters, debian, tools
from lora_dpo_localcluster.provider import Cluster, Shape
from scripts.dashboards import board
from tests.certificates import write_pair

from .conftest import ROOT, Bucket, Kubectl, cluster_name, wait_for
from .loradpojobs import Job, manifest, upload_model

CHART = ROOT / "helm" / "lora-dpo-operator"
FIRST = ROOT / "tests" / "data" / "releases" / "first.tgz"
"""Chart, operator and trainer of an early state of this project: other values and rights, another definition."""
RELEASE = "dpo"
NAMESPACE = "dpo-system"
NEWCOMERS = "lora-dpo-system"
"""Where the README's commands install."""
DEFINITION = "crd/loradpojobs.training.loradpo.dev"
LONG = {"trainer": {"numTrainSteps": 100_000, "trainBatchSize": 8}}


@dataclasses.dataclass(frozen=True, slots=True)
class Release:
    """The chart's release on the cluster.

    Attributes:
        values: what every installation of the tests needs: the images of this checkout, and where the bucket is.
        name: of the release.
        namespace: of the release.
    """

    program: Path
    cluster: Cluster
    folder: Path
    values: dict[str, Any]
    name: str = RELEASE
    namespace: str = NAMESPACE

    def __call__(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run Helm, whatever comes of it."""
        return subprocess.run(
            [str(self.program), *argv, f"--namespace={self.namespace}"],
            capture_output=True,
            text=True,
            env={"HOME": str(self.folder), "KUBECONFIG": str(self.cluster.kubeconfig)},
            timeout=660,
        )

    def run(self, *argv: str) -> str:
        """What Helm prints; the test fails when Helm does."""
        answer = self(*argv)
        if answer.returncode != 0:
            pytest.fail(f"helm {' '.join(argv)}: {answer.stderr.strip()}")
        return answer.stdout

    def install(self, *flags: str, chart: Path = CHART, **values: Any) -> str:
        """Install or upgrade, and wait until the operator is ready."""
        file = self.folder / "values.yaml"
        file.write_text(yaml12.dumps(self.values | values))
        wait = ("--create-namespace", "--wait", "--timeout=180s")
        return self.run("upgrade", "--install", self.name, str(chart), f"--values={file}", *wait, *flags)

    def trial(self, namespace: str) -> None:
        """Run `helm test`, whose job runs there; the test fails with what that job's pod told."""
        answer = self("test", self.name, "--timeout=600s")
        if answer.returncode != 0:
            told = Kubectl(self.cluster)("-n", namespace, "logs", f"{self.name}-lora-dpo-operator-trial")
            pytest.fail(f"{answer.stderr}\n{told.stdout}{told.stderr}")

    def uninstall(self) -> None:
        """Uninstall what is there of it, and wait until the operator is gone."""
        self.run("uninstall", self.name, "--ignore-not-found", "--wait", "--timeout=120s")


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A cluster that nobody has installed an operator into: Helm would not take over another's objects."""
    made = clusters.open_cluster(f"{cluster_name()}-helm")
    made.up(Shape(nodes=1), print)
    yield made
    made.down(print)


@pytest.fixture(scope="module")
def own_kubectl(own_cluster: Cluster) -> Kubectl:
    return Kubectl(own_cluster)


def images(cluster: Cluster, checkout: Path) -> dict[str, Any]:
    """Values that name the images of a checkout, which every node then has."""
    found = {}
    for target in ("operator", "trainer"):
        image = cluster.build(target, checkout, print)
        cluster.load(image, print)
        found[target] = dict(zip(("repository", "tag"), image.name.rsplit(":", 1), strict=True))
    return {"image": found["operator"], "trainer": {"image": found["trainer"], "env": dict(cluster.bucket.pod_env)}}


@pytest.fixture(scope="module")
def helm(own_cluster: Cluster, own_kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Helm with the images of this checkout; the namespace of the operator takes restricted pods only."""
    own_kubectl.text("create", "namespace", NAMESPACE)
    own_kubectl.text("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    program = tools.ensure(print, (tools.HELM,)).program(tools.HELM, "helm")
    values = images(own_cluster, ROOT) | {
        "operator": {"progressSeconds": 1, "recheckSeconds": 1, "resyncSeconds": 10},
    }
    return Release(program, own_cluster, tmp_path_factory.mktemp("helm"), values)


@pytest.fixture
def release(helm: Release) -> Iterator[Release]:
    """A release that is not installed yet, and is not any more after the test, however that ends."""
    yield helm
    helm.uninstall()


@pytest.fixture
def job(own_cluster: Cluster, own_kubectl: Kubectl) -> Iterator[Job]:
    """A job's name in a fresh namespace, with model and data in a bucket."""
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    own_kubectl.text("create", "namespace", namespace)
    wait_for(lambda: own_kubectl("-n", namespace, "get", "serviceaccount", "default").returncode == 0, "its account")
    yield Job(own_kubectl, namespace, "tiny")
    own_kubectl.text("delete", "namespace", namespace, "--timeout=100s", "--ignore-not-found")


@pytest.fixture
def bucket(own_cluster: Cluster) -> Bucket:
    """A bucket with model and data."""
    made = Bucket(own_cluster.bucket.create(f"test-{uuid.uuid4().hex[:12]}"), own_cluster.bucket)
    upload_model(made)
    return made


def slice_uids(job: Job) -> set[str]:
    return {pod["metadata"]["uid"] for pod in job.slice_pods()}


@pytest.fixture
def volume(own_kubectl: Kubectl, helm: Release, tmp_path: Path) -> Iterator[None]:
    """A volume for whoever claims one, as a cluster with a default StorageClass would make it."""
    volume = {"name": "output", "hostPath": {"path": str(tmp_path / "volume"), "type": "DirectoryOrCreate"}}
    image = helm.values["image"]
    container = {
        "name": "chmod",
        "image": f"{image['repository']}:{image['tag']}",
        "command": ["chmod", "777", "/volume"],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "output", "mountPath": "/volume"}],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "opens-the-volume", "namespace": "default"},
        "spec": {"restartPolicy": "Never", "containers": [container], "volumes": [volume]},
    }
    made = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "trial"},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": volume["hostPath"]},
    }
    own_kubectl.text("create", "-f", "-", stdin=pod)
    opened = ("wait", "pod/opens-the-volume", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=100s")
    own_kubectl.text("-n", "default", *opened)
    own_kubectl.text("create", "-f", "-", stdin=made)
    yield
    own_kubectl.text("delete", "pv", "trial", "--wait=false")
    own_kubectl.text("-n", "default", "delete", "pod", "opens-the-volume", "--wait=false")


def left_of_the_trial(kubectl: Kubectl, namespace: str) -> str:
    kinds = "loradpojobs,jobs,jobsets,pods,configmaps,persistentvolumeclaims,serviceaccounts,roles,rolebindings"
    found = kubectl.text("-n", namespace, "get", kinds, "-o", "name").splitlines()
    return " ".join(name for name in found if "trial" in name)


@pytest.mark.usefixtures("volume")
def test_a_namespaced_installation_runs_its_trial_on_a_volume_and_a_job_with_its_roles_alone(
    release: Release, job: Job, bucket: Bucket
) -> None:
    trainer = release.values["trainer"] | {"networkPolicy": {"enabled": True}}
    release.install(watch={"namespaces": [job.namespace]}, rbac={"aggregate": False}, trainer=trainer)
    assert job.kubectl("get", "clusterrole", f"{RELEASE}-lora-dpo-operator").returncode != 0
    job.apply(manifest("tiny", bucket.url))
    release.trial(job.namespace)
    assert left_of_the_trial(job.kubectl, job.namespace) == ""
    job.reaches(JobPhase.SUCCEEDED)
    (policy,) = job.objects("networkpolicies")
    assert policy["spec"]["ingress"][1]["from"][0]["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": NAMESPACE
    }


def test_a_trial_tells_what_is_wrong_and_succeeds_once_it_is_right(
    release: Release, own_kubectl: Kubectl, bucket: Bucket
) -> None:
    release.install(test={"path": "gs://no-such-bucket/trial"})
    assert release("test", RELEASE, "--timeout=600s").returncode != 0
    told = own_kubectl.text("-n", NAMESPACE, "logs", f"{RELEASE}-lora-dpo-operator-trial")
    assert "The job failed, Config/" in told
    assert "there is no bucket gs://no-such-bucket" in told
    assert f"kubectl --namespace {NAMESPACE} describe ldj lora-dpo-trial" in told

    release.install(test={"path": f"{bucket.url}/trial"})
    release.trial(NAMESPACE)
    assert f"{bucket.url}/trial/adapter/adapter_model.safetensors" in bucket.objects("trial/adapter/")
    assert left_of_the_trial(own_kubectl, NAMESPACE) == ""


@pytest.fixture
def first(own_cluster: Cluster, tmp_path: Path) -> Path:
    """That state, as a checkout; its images are built with the packages of the present one."""
    with tarfile.open(FIRST) as packed:
        packed.extractall(tmp_path, filter="data")
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def test_a_running_job_outlives_upgrade_uninstall_and_another_install_and_its_namespaces_end(
    release: Release, first: Path, job: Job, bucket: Bucket
) -> None:
    release.install(chart=first / "helm" / "lora-dpo-operator", **images(release.cluster, first))
    job.apply(manifest("tiny", bucket.url, **LONG))
    job.reaches(JobPhase.RUNNING)
    pods, stored = slice_uids(job), as_stored(job)
    newer = manifest("newer", bucket.url, output={"path": f"{bucket.url}/runs/newer", "peft": {"dtype": "bfloat16"}})
    dry_run = ("-n", job.namespace, "apply", "--dry-run=server", "-f", "-")
    assert 'unknown field "spec.output.peft.dtype"' in job.kubectl(*dry_run, stdin=newer).stderr

    release.install(crds={"enabled": False})
    log = ("-n", NAMESPACE, "logs", f"deployment/{RELEASE}-lora-dpo-operator")
    older = "definition of LoraDpoJob is older than this operator"
    wait_for(lambda: older in job.kubectl.text(*log), "what an operator without its definition says")
    notes = release.install()
    assert "kubectl apply --filename job.yaml" in notes
    step = job.status.step or 0
    wait_for(lambda: (job.status.step or 0) > step, "steps told by the upgraded operator", timeout=60)
    assert slice_uids(job) == pods
    assert as_stored(job) == stored
    assert "created" in job.kubectl.text(*dry_run, stdin=newer)

    release.uninstall()
    job.kubectl.text("get", DEFINITION)
    assert slice_uids(job) == pods
    assert as_stored(job) == stored

    release.install()
    step = job.status.step or 0
    wait_for(lambda: (job.status.step or 0) > step, "steps told by the new operator", timeout=60)
    assert slice_uids(job) == pods
    assert (job.status.restarts, job.status.preemptions) == (0, 0)
    job.kubectl.text("delete", "namespace", job.namespace, "--timeout=100s")


@pytest.fixture
def second(release: Release) -> Iterator[Release]:
    """Another release, in a namespace of its own."""
    made = dataclasses.replace(release, name="second", namespace="second-system")
    yield made
    made.uninstall()


def test_a_second_release_serves_other_namespaces_and_takes_over_what_the_first_leaves(
    release: Release, second: Release, job: Job, bucket: Bucket
) -> None:
    its_own: dict[str, Any] = {"watch": {"namespaces": [job.namespace]}}
    release.install(watch={"namespaces": [NAMESPACE]})
    second.install(crds={"enabled": False}, admissionPolicies={"enabled": False}, **its_own)
    followed(job, bucket, "beside")

    release.uninstall()
    second.install("--take-ownership", **its_own)
    owner = job.kubectl.json("get", DEFINITION)["metadata"]["annotations"]["meta.helm.sh/release-name"]
    assert owner == "second"
    followed(job, bucket, "alone")


def as_stored(job: Job) -> tuple[Any, ...]:
    found = job.kubectl.json("-n", job.namespace, "get", "ldj", job.name)
    return found["metadata"]["uid"], found["metadata"]["generation"], found["spec"]


@pytest.fixture(scope="module")
def monitoring(own_kubectl: Kubectl) -> None:
    """The definitions of prometheus-operator, Google's Managed Service for Prometheus and cert-manager; no more."""
    folder = tools.ensure(print, (tools.MONITORING,)).folder(tools.MONITORING)
    for found in ("servicemonitors", "podmonitors", "prometheusrules"):
        own_kubectl.text("create", "-f", str(folder / "coreos" / f"monitoring.coreos.com_{found}.yaml"))
    for found in ("podmonitorings", "clusterpodmonitorings"):
        own_kubectl.text("create", "-f", str(folder / "google" / f"monitoring.googleapis.com_{found}.yaml"))
    folder = tools.ensure(print, (tools.CERT_MANAGER,)).folder(tools.CERT_MANAGER)
    for found in ("certificates", "issuers"):
        definition = yaml12.loads((folder / "definitions" / f"crd-{found}.yaml").read_text())
        del definition["metadata"]["labels"]  # which its chart would fill
        own_kubectl.text("create", "-f", "-", stdin=json.dumps(definition))
    own_kubectl.text("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")


def blocks(language: str) -> list[str]:
    """What the README's section Install has in blocks of this language."""
    section = (ROOT / "README.md").read_text().split("\n## Install\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def newcomers(release: Release, own_kubectl: Kubectl) -> Iterator[Release]:
    """The release that the README's commands make, in a cluster without a definition that belongs to another."""
    own_kubectl.text("delete", DEFINITION, "--ignore-not-found")
    made = dataclasses.replace(release, name="lora-dpo-operator", namespace=NEWCOMERS)
    yield made
    own_kubectl.text("delete", DEFINITION, "--ignore-not-found")
    made.uninstall()


@pytest.mark.usefixtures("monitoring")
def test_the_readmes_commands_install_run_a_job_and_fill_the_dashboards(
    newcomers: Release, own_kubectl: Kubectl, bucket: Bucket, tmp_path: Path
) -> None:
    typed = [line for block in blocks("sh") for line in re.split(r"\n(?! )", block.strip())]
    assert len(typed) <= 10
    (shown,) = map(yaml12.loads, blocks("yaml"))
    settings = newcomers.values | {"test": {"path": f"{bucket.url}/trial"}}
    assert set(shown) < set(settings)
    assert not [line for line in typed if "registry.example.com" in line]
    (tmp_path / "helm").symlink_to(ROOT / "helm")
    (tmp_path / "settings.yaml").write_text(yaml12.dumps(settings))
    (tmp_path / "job.yaml").write_text(yaml12.dumps(manifest("llama3-ultrafeedback", bucket.url, **LONG)))
    environment = {
        "HOME": str(tmp_path),
        "KUBECONFIG": str(newcomers.cluster.kubeconfig),
        "PATH": f"{newcomers.program.parent}:{newcomers.cluster.kubectl.parent}:/usr/bin:/bin",
    }
    told = ""
    for command in typed:
        answer = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert answer.returncode == 0, f"{command}\n{answer.stdout}{answer.stderr}"
        told += answer.stdout
    assert re.search(r"llama3-ultrafeedback +Running", told)

    debian.ensure_for_prometheus(print)
    chosen = own_kubectl.json("get", "servicemonitors,podmonitors", "--all-namespaces")["items"]
    boards = own_kubectl.json("-n", NEWCOMERS, "get", "configmaps", "-l", "grafana_dashboard=1")["items"]
    panels = [panel for found in boards for text in found["data"].values() for panel in json.loads(text)["panels"]]
    asked = {panel["title"]: panel["targets"][0]["expr"] for panel in panels if panel.get("targets")}
    with prometheus.running(newcomers.cluster, tmp_path, tuple(chosen)) as running:

        def answered() -> bool:
            running.scrape(own_kubectl.json("get", prometheus.KINDS, "--all-namespaces")["items"])
            return all(running.query(board.filled(asked[title])) for title in ("Loss", "Jobs by phase", "Jobs known"))

        wait_for(answered, "data on each dashboard", timeout=120, interval=1)


@pytest.mark.usefixtures("monitoring")
def test_the_api_server_takes_every_object_of_the_chart(release: Release, own_kubectl: Kubectl) -> None:
    rendered = ROOT / "tests" / "helm" / "rendered"
    for name in ("team-a", "team-b", NEWCOMERS):
        own_kubectl("create", "namespace", name)
    for file in sorted(rendered.glob("*.yaml")):
        manifests = yaml12.loads_all(file.read_text())
        # A pod is taken only where its account exists.
        accounts = [found for found in manifests if found["kind"] == "ServiceAccount"]
        for found in accounts:
            own_kubectl.text("apply", "-f", "-", stdin=json.dumps(found))
        for found in manifests:
            own_kubectl.text("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(found))
        for found in accounts:
            own_kubectl.text("delete", "-f", "-", stdin=json.dumps(found))


def given_certificate(kubectl: Kubectl, folder: Path) -> str:
    """Put a certificate for the webhook into a Secret, as an administrator would who has an authority of their own.

    Returns:
        Helm's flag that names the authority's certificate.
    """
    write_pair(folder, f"{RELEASE}-lora-dpo-operator.{NAMESPACE}.svc")
    pair = (f"--cert={folder / 'tls.crt'}", f"--key={folder / 'tls.key'}")
    kubectl.text("-n", NAMESPACE, "create", "secret", "tls", "given", *pair)
    return f"--set-file=webhook.caBundle={folder / 'tls.crt'}"


def stop_the_operator(kubectl: Kubectl) -> None:
    """Leave no replica of it."""
    kubectl.text("-n", NAMESPACE, "scale", f"deployment/{RELEASE}-lora-dpo-operator", "--replicas=0")
    kubectl.text("-n", NAMESPACE, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=operator")


def test_the_webhook_tells_whoever_applies_a_job_what_the_schema_cannot_say(
    release: Release, job: Job, bucket: Bucket, tmp_path: Path
) -> None:
    authority = given_certificate(job.kubectl, tmp_path)
    strict = {"enabled": True, "secretName": "given", "failurePolicy": "Fail"}
    release.install(authority, webhook=strict)

    def applied(name: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        suspended = {"runPolicy": {"suspend": True}} | changes
        return job.kubectl("-n", job.namespace, "apply", "-f", "-", stdin=manifest(name, bucket.url, **suspended))

    nowhere = {"cpu": None, "tpu": {"machineType": "ct5p-hightpu-4t", "topology": "3x3x3"}}
    refused = applied("checked", **nowhere)
    assert refused.returncode != 0
    assert 'admission webhook "validate.loradpojobs.training.loradpo.dev" denied the request' in refused.stderr
    assert "spec.tpu.topology: 3x3x3" in refused.stderr
    taken = applied("checked", lora={"r": 8, "zeroInitB": False})
    assert taken.returncode == 0, taken.stderr
    assert taken.stderr.count("Warning: spec.lora.zeroInitB: false is forced to true") == 1

    stop_the_operator(job.kubectl)
    assert "failed calling webhook" in applied("unanswered").stderr
    release.install(authority, webhook=strict | {"failurePolicy": "Ignore"})
    stop_the_operator(job.kubectl)
    unchecked = applied("unchecked", **nowhere)
    assert unchecked.returncode == 0, unchecked.stderr


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
    for pod in kubectl.json("-n", NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/component=operator")["items"]:
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
