"""Faults of a slice that runs, or should: each is told with its cause, and none keeps a slice that does nothing.

All jobs are made at once, so that they wait side by side; each test then looks at one, and does to it what does not
happen by itself. The trainers are real, and `sabotage` makes them fail at a known step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import signal
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api.status import ConditionType, Failure, JobPhase, LoraDpoJobStatus
from lora_dpo_localcluster import namespace as namespaces
from lora_dpo_localcluster.image import Image

from . import outside
from .conftest import Bucket, Kubectl, wait_for
from .loradpojobs import POOL_LABEL, Job, Operator, manifest, upload_model
from .outside import Outside
from .slice_time import SliceTime, measured

SABOTAGE = Path(__file__).with_name("sabotage.py")
ENDLESS, PAUSED = 100_000, {"SABOTAGE_PAUSE": "0.5"}


def pairs(*more: str) -> bytes:
    """Pairs of one length, so that every step has one shape and is compiled once for all jobs."""
    questions = [f"which of {number:02d}" for number in range(40 - len(more))]
    rows = [
        {
            side: [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            for side, answer in (("chosen", "this one"), ("rejected", "that one"))
        }
        for question in (*questions, *more)
    ]
    return "\n".join(map(json.dumps, rows)).encode()


def poisoned(model: bytes, token: int) -> bytes:
    """A safetensors file in which a token's embedding is not a number."""
    (size,) = struct.unpack("<Q", model[:8])
    entry = json.loads(model[8 : 8 + size])["model.embed_tokens.weight"]
    begin, end = (8 + size + offset for offset in entry["data_offsets"])
    row = (end - begin) // entry["shape"][0]
    at = begin + token * row
    return model[:at] + b"\xff" * row + model[at + row :]


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """Where the jobs live.

    Attributes:
        away: a bucket that will not answer for a while, and later take nothing any more.
        hosts: the nodes that pose as hosts of a slice, and that some jobs lose; the others are on `outside.node`.
    """

    kubectl: Kubectl
    namespace: str
    bucket: Bucket
    outside: Outside
    away: str
    hosts: tuple[str, str]

    def job(self, name: str) -> Job:
        """One of the jobs."""
        return Job(self.kubectl, self.namespace, name)

    def apply(self, name: str, spec: dict[str, Any]) -> Job:
        """Make a job; all share their prepared rows and compiled programs."""
        job = self.job(name)
        if "tpu" not in spec:
            spec["podTemplate"].setdefault("nodeSelector", {"kubernetes.io/hostname": self.outside.node})
        job.apply(manifest(name, self.bucket.url, **spec, cache={"path": f"{self.bucket.url}/cache"}))
        return job


def endless(steps: int = ENDLESS, env: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A job's spec: the trainer under sabotage, slow, and without end."""
    pod = more.pop("podTemplate", {})
    variables = [{"name": name, "value": value} for name, value in (PAUSED | (env or {})).items()]
    return {
        "validationSplitFraction": 0,
        "trainer": {"numTrainSteps": steps, "trainBatchSize": 4},
        "podTemplate": pod
        | {
            "env": [{"name": "PYTHONPATH", "value": "/sabotage:/app"}, *variables, *pod.get("env", [])],
            "volumes": [{"name": "sabotage", "configMap": {"name": "sabotage"}}],
            "volumeMounts": [{"name": "sabotage", "mountPath": "/sabotage"}],
        },
        **more,
    }


def does(kind: str, steps: int = ENDLESS, attempts: str = "", **more: Any) -> dict[str, Any]:
    """The same, and something happens behind the third step."""
    return endless(steps, {"SABOTAGE": kind, "SABOTAGE_ATTEMPTS": attempts}, **more)


def on_host(node: str) -> dict[str, Any]:
    """On one node only, and soon gone from it when it does not answer.

    Not at once: of a node that is back, the taint that keeps pods from it may go before the one that ends them.
    """
    gone = [
        {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 20}
        for key in ("unreachable", "not-ready")
    ]
    return endless(podTemplate={"nodeSelector": {"kubernetes.io/hostname": node}, "tolerations": gone})


def specs(world: World) -> dict[str, dict[str, Any]]:
    """Every job's spec."""
    v5p, often = "ct5p-hightpu-4t", {"every": "2s"}
    poisoned_rows = {"source": {"type": "url", "trainUrls": [f"{world.bucket.url}/data/poisoned.jsonl"]}}
    return {
        "liar": does("lie", output={"path": f"{world.bucket.url}/runs/liar", "checkpoint": often}),
        "crash-loop": does("segfault"),
        "memory": does("memory", cpu={"resources": {"limits": {"memory": "1500Mi"}}}, runPolicy={"maxRestarts": 0}),
        "not-a-number": endless(
            # So few steps do not see all pairs, and the reference is computed with each step.
            steps=9,
            initializeFromHf=f"{world.bucket.url}/poisoned",
            data={"components": {"prefs": poisoned_rows}},
        ),
        "half-a-gang": endless(
            cpu={"hosts": 2, "resources": {"requests": {"cpu": "1100m"}}}, runPolicy={"startupTimeout": "20s"}
        ),
        "no-node": endless(
            cpu=None,
            tpu={"machineType": v5p, "topology": "2x2x4"},
            trainer={"numTrainSteps": 6, "trainBatchSize": 16},
            runPolicy={"queueTimeout": "60s"},
        ),
        "evicted": endless(cpu={"hosts": 4}),
        "away": endless(
            podTemplate={"env": world.outside.bucket_env}, output={"path": f"{world.away}/run", "checkpoint": often}
        ),
        "kubelet": on_host(world.hosts[0]),
        "lost-node": on_host(world.hosts[1]),
    }


@pytest.fixture(scope="module")
def world(operator: Operator, kubectl: Kubectl, trainer_image: Image) -> Iterator[World]:
    """A namespace with what the jobs need, and servers outside of the cluster."""
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    kubectl.text("create", "namespace", namespace)
    wait_for(lambda: kubectl("-n", namespace, "get", "serviceaccount", "default").returncode == 0, "its account")
    storage = kubectl.cluster.bucket
    ours, away = (storage.create(f"test-{kind}-{uuid.uuid4().hex[:12]}") for kind in ("ours", "away"))
    bucket = Bucket(ours, storage)
    fill(bucket)
    script = {"sitecustomize.py": SABOTAGE.read_text()}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sabotage"}, "data": script}
    kubectl.text("-n", namespace, "create", "-f", "-", stdin=config)
    servers = outside.start(kubectl, namespace, trainer_image)
    first, second = (node["metadata"]["name"] for node in kubectl.json("get", "nodes", "-l", POOL_LABEL)["items"])
    yield World(kubectl, namespace, bucket, servers, away, (first, second))
    kubectl.text("delete", "namespace", namespace, "--wait=false")


def fill(bucket: Bucket) -> None:
    """Put models and pairs into the bucket."""
    upload_model(bucket)
    bucket.write("data/train.jsonl", pairs())
    bucket.write("data/poisoned.jsonl", pairs("which of ~~"))
    for file in bucket.objects("model/"):
        bucket.write(f"poisoned/{file.rsplit('/', 1)[1]}", bucket.server.read(file))
    token = json.loads(bucket.read("model/tokenizer.json"))["model"]["vocab"]["~"]
    bucket.write("poisoned/model.safetensors", poisoned(bucket.read("model/model.safetensors"), token))


@pytest.fixture(scope="module")
def faults(world: World, kubectl: Kubectl) -> Iterator[SliceTime]:
    """Every job, and how long its slice is held."""
    with measured(kubectl, world.namespace) as slices:
        # The first one compiles for all.
        trains(world.apply("patient", does("hang", attempts="0")))
        wait_for(lambda: compiled(world.bucket), "the compiled programs", timeout=240)
        for name, spec in specs(world).items():
            world.apply(name, spec)
        yield slices


def compiled(bucket: Bucket) -> bool:
    """Whether the programs of a job that trains were copied to the bucket, and no more follow."""
    found = bucket.objects("cache/compile/")
    time.sleep(11 if found else 0)  # the trainer looks for new ones every 10 s
    return bool(found) and bucket.objects("cache/compile/") == found


def trains(job: Job, attempt: int | None = 0, beyond: int = 2) -> LoraDpoJobStatus:
    """Wait until an attempt (any, for None) trains, and has got further than a step."""

    def status() -> LoraDpoJobStatus | None:
        found = job.status
        assert found.phase is not JobPhase.FAILED, found.message
        there = (
            found.phase is JobPhase.RUNNING and attempt in (None, found.reported_attempt) and (found.step or 0) > beyond
        )
        return found if there else None

    found = wait_for(status, f"{job.name} to train", timeout=600)
    assert found is not None
    return found


def fails(job: Job, timeout: float = 600) -> Failure:
    """Wait until a job has failed, and why."""
    failure = job.reaches(JobPhase.FAILED, timeout=timeout).failure
    assert failure is not None
    return failure


def gives_back(job: Job, slices: SliceTime) -> float:
    """Wait until no pod of the slice holds a host, and say for how long any did."""
    # Two readings agree once it counts no longer.
    wait_for(lambda: slices.seconds(job.name) == slices.seconds(job.name), f"the slice of {job.name} to be given back")
    return slices.seconds(job.name)


def leader(job: Job) -> dict[str, Any]:
    """The pod of the only host."""
    (pod,) = [pod for pod in job.slice_pods() if "deletionTimestamp" not in pod["metadata"]]
    return pod


def kill(pod: dict[str, Any]) -> None:
    """End a pod's trainer with SIGKILL, from outside of its container."""
    name = f"HOSTNAME={pod['spec']['hostname']}".encode()
    for pid in namespaces.processes_with(["-m", "lora_dpo_trainer"]):
        with contextlib.suppress(OSError):
            if name in (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                return
    pytest.fail(f"no process of the pod {pod['metadata']['name']}")


def delete(job: Job, kind: str, name: str) -> None:
    job.kubectl.text("-n", job.namespace, "delete", kind, name, "--wait=false")


def events(job: Job) -> list[str]:
    return [event["reason"] for event in job.events()]


def saved(job: Job, after: datetime.datetime | None = None) -> LoraDpoJobStatus:
    """Wait for a checkpoint, made after a time."""

    def status() -> LoraDpoJobStatus | None:
        found = job.status
        assert found.phase is not JobPhase.FAILED, found.message
        last = found.last_checkpoint
        return found if last is not None and (after is None or last.time > after) else None

    found = wait_for(status, f"a checkpoint of {job.name}", timeout=600)
    assert found is not None
    return found


def says(job: Job, words: str) -> str:
    message = str(job.status.message)
    return message if words in message else ""


def queued(job: Job) -> str:
    found = job.status
    return str(found.message) if found.phase is JobPhase.QUEUED else ""


@dataclasses.dataclass(slots=True)
class Hosts:
    """Two hosts that come and go.

    Attributes:
        nodes: as they were.
    """

    kubectl: Kubectl
    nodes: list[dict[str, Any]]
    gone: bool = False

    def go(self, pod: dict[str, Any]) -> None:
        """Stop both kubelets, and end the machine of the second, where this pod runs."""
        self.gone = True
        for node in self.nodes:
            self.kubectl.cluster.pause_kubelet(node["metadata"]["name"])
        kill(pod)
        self.kubectl.text("delete", "node", self.nodes[1]["metadata"]["name"])

    def come_back(self) -> None:
        """Make the second node anew, as it was, and let the kubelets go on."""
        if not self.gone:
            return
        metadata = {key: self.nodes[1]["metadata"][key] for key in ("name", "labels")}
        made = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        self.kubectl.text("create", "-f", "-", stdin=made)
        patch = json.dumps({"status": {"capacity": self.nodes[1]["status"]["capacity"]}})
        self.kubectl.text("patch", "node", metadata["name"], "--subresource=status", "--type=merge", "-p", patch)
        for node in self.nodes:
            self.kubectl.cluster.resume_kubelet(node["metadata"]["name"])
        self.gone = False


@contextlib.contextmanager
def no_controller(kubectl: Kubectl) -> Iterator[Callable[[], None]]:
    """The JobSet controller does nothing; what it gives lets the API server do without its webhooks."""
    kinds = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
    found = [entry for kind in kinds for entry in kubectl.json("get", kind)["items"] if "jobset" in str(entry)]

    def change(**changes: Any) -> None:
        for entry in found:
            replace(kubectl, entry, **changes)

    change(timeoutSeconds=2)
    kubectl.cluster.pause_jobset()
    try:
        yield lambda: change(timeoutSeconds=1, failurePolicy="Ignore")
    finally:
        kubectl.cluster.resume_jobset()
        change()


def replace(kubectl: Kubectl, configuration: dict[str, Any], **changes: Any) -> None:
    """Write a webhook configuration with changes to each of its webhooks."""
    webhooks = [hook | changes for hook in configuration["webhooks"]]
    patch = json.dumps({"webhooks": webhooks})
    name = configuration["metadata"]["name"]
    kubectl.text("patch", configuration["kind"].lower(), name, "--type=merge", "-p", patch)


def unreachable(job: Job, words: str) -> str:
    found = job.condition(ConditionType.PROGRESS_REACHABLE)
    return found.message if found is not None and words in found.message else ""


def test_what_a_lying_trainer_says_is_not_believed(world: World, faults: SliceTime, operator: Operator) -> None:
    job = world.job("liar")
    pods = [pod["metadata"]["uid"] for pod in operator.pods()]
    lies = ("longer than 65536 bytes", "its report is not valid", "of the run 'somebody/else'", "HTTP 302")
    wait_for(lambda: any(unreachable(job, lie) for lie in lies), "a lie to be told", timeout=600)
    status = job.status
    assert status.phase is JobPhase.RUNNING
    assert 3 <= (status.step or 0) < 1_000
    assert status.metrics is not None
    assert status.metrics.loss is not None
    # A hundred megabytes do it no harm.
    assert [pod["metadata"]["uid"] for pod in operator.pods()] == pods
    assert all(state["restartCount"] == 0 for pod in operator.pods() for state in pod["status"]["containerStatuses"])


def test_a_crash_at_the_same_step_again_and_again_ends_the_job_with_that_said(world: World, faults: SliceTime) -> None:
    job = world.job("crash-loop")
    failure = fails(job)
    assert (failure.class_, failure.reason, failure.exit_code) == ("Internal", "CrashLoop", 139)
    assert (
        "crashed 3 times in a row and was seen to get no further than step 3 (no checkpoint was made)"
        in failure.message
    )
    assert failure.pod
    assert failure.node
    assert failure.hint == f"kubectl logs {failure.pod}"
    assert [(crash.attempt, crash.exit_code) for crash in job.status.crashes] == [(0, 139), (1, 139), (2, 139)]
    assert job.status.restarts == 2
    gives_back(job, faults)


def test_a_host_without_memory_is_told_which_limit_to_raise(world: World, faults: SliceTime) -> None:
    job = world.job("memory")
    failure = fails(job)
    assert (failure.class_, failure.reason, failure.exit_code) == ("Infrastructure", "OutOfMemory", 137)
    assert failure.node
    assert f"{failure.pod} used more memory than its limit" in failure.message
    assert "raise spec.podTemplate.resources.limits.memory" in str(failure.hint)
    assert job.status.restarts == 0
    gives_back(job, faults)


@pytest.fixture(scope="module")
def hosts(world: World, faults: SliceTime) -> Iterator[Hosts]:
    """Hosts that are gone from now on: the kubelet of one does nothing, the other's machine is no more."""
    for name in ("kubelet", "lost-node"):
        trains(world.job(name))
    found = Hosts(world.kubectl, [world.kubectl.json("get", "node", host) for host in world.hosts])
    found.go(leader(world.job("lost-node")))
    yield found
    found.come_back()


@pytest.mark.usefixtures("hosts")
def test_what_is_not_a_number_fails_at_once(world: World, faults: SliceTime) -> None:
    job = world.job("not-a-number")
    failure = fails(job)
    assert (failure.class_, failure.reason, failure.exit_code) == ("Training", "NonFinite", 76)
    assert "dpo_loss and grad_norm not finite at step" in failure.message
    assert "Lower optimizer.learning_rate" in str(failure.hint)
    assert (job.status.restarts, job.status.preemptions) == (0, 0)
    gives_back(job, faults)


def test_a_gang_of_which_a_part_has_no_node_is_given_up(world: World, faults: SliceTime) -> None:
    job = world.job("half-a-gang")
    failure = fails(job)
    assert (failure.class_, failure.reason) == ("Deadline", "StartupTimeout")
    assert "Only 1 of 2 hosts got a node within spec.runPolicy.startupTimeout (20s)" in failure.message
    assert "1 of 2 hosts have no node: " in failure.message
    assert "Insufficient cpu" in failure.message
    assert "fewer slices" in str(failure.hint)
    # Twenty seconds, and what it takes to see and to end it.
    assert 20 <= gives_back(job, faults) < 80


def test_a_slice_that_no_node_fits_is_told_the_nearest_and_is_given_up_in_time(world: World, faults: SliceTime) -> None:
    job = world.job("no-node")
    failure = fails(job)
    assert (failure.class_, failure.reason) == ("Deadline", "QueueTimeout")
    assert "4 of 4 hosts have no node" in failure.message
    assert "the nearest that exist: 2 of ct5p-hightpu-4t 2x2x2" in failure.message
    assert "Queued" in events(job)
    gives_back(job, faults)


@pytest.fixture(scope="module")
def back(world: World, faults: SliceTime) -> datetime.datetime:
    """When the bucket answers again that goes away now, for two minutes."""
    saved(world.job("away"))
    world.outside.rule(world.away, "away", 120)
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=120)


def test_a_bucket_that_does_not_answer_is_waited_for(world: World, back: datetime.datetime) -> None:
    # What comes of it is looked at below, while the other tests wait for theirs.
    assert datetime.datetime.now(datetime.UTC) < back
    assert world.job("away").status.phase is JobPhase.RUNNING


def test_a_host_that_is_evicted_costs_the_gang_no_restart(world: World, faults: SliceTime) -> None:
    job = world.job("evicted")
    before = trains(job)
    pod = next(pod for pod in job.slice_pods() if "slice-0-2" in pod["metadata"]["name"])
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": job.namespace}}
    path = f"/api/v1/namespaces/{job.namespace}/pods/{name}/eviction"
    job.kubectl.text("create", "--raw", path, "-f", "-", stdin=eviction)
    status = trains(job, attempt=1, beyond=before.step or 0)
    assert (status.restarts, status.preemptions, status.steps_lost, status.failure) == (0, 1, 0, None)
    assert status.disruption is not None
    assert (status.disruption.reason, status.disruption.pod) == ("EvictionByEvictionAPI", name)
    assert status.disruption.node == pod["spec"]["nodeName"]
    # What was saved as the gang left, after which nothing was saved yet.
    assert status.last_checkpoint is not None
    assert status.last_checkpoint.step >= (before.step or 0)
    assert [entry.phase for entry in status.timeline].count(JobPhase.RESTARTING) == 1
    assert [entry.phase for entry in status.timeline].count(JobPhase.PREPARING) == 1
    job.delete()


def test_a_hanging_slice_is_not_healthy_and_goes_on_once_its_pod_is_deleted(world: World, faults: SliceTime) -> None:
    job = world.job("patient")
    told = job.says(ConditionType.HEALTHY, "False", "Stalled", timeout=600).message
    assert "(step 3, Training)" in told
    pod = leader(job)["metadata"]["name"]
    assert f"kubectl logs {pod}; deleting the pod starts the slice again" in told
    assert job.status.phase is JobPhase.RUNNING
    assert "Stalled" in events(job)
    delete(job, "pod", pod)
    status = trains(job, attempt=1, beyond=4)
    assert (status.restarts, status.preemptions, status.failure) == (0, 1, None)
    job.says(ConditionType.HEALTHY, "True", "Finite")


def test_the_first_failure_outlives_the_pod_that_failed(world: World, faults: SliceTime) -> None:
    job = world.job("patient")
    trains(job, attempt=1)
    pod = leader(job)
    kill(pod)
    status = trains(job, attempt=2)
    assert (status.restarts, status.preemptions) == (1, 1)
    failure = status.failure
    assert failure is not None
    assert (failure.class_, failure.reason, failure.exit_code) == ("Infrastructure", "Killed", 137)
    assert (failure.pod, failure.node) == (pod["metadata"]["name"], pod["spec"]["nodeName"])
    assert "kubectl describe node" in str(failure.hint)
    assert leader(job)["metadata"]["name"] != failure.pod
    assert status.steps_lost > 0
    assert events(job).count("Restarting") == 2


def test_suspending_gives_the_slice_back_and_resuming_goes_on_where_it_was(world: World, faults: SliceTime) -> None:
    job = world.job("patient")
    before = trains(job, attempt=2)
    job.suspend(True)
    job.reaches(JobPhase.SUSPENDED)
    gives_back(job, faults)
    job.suspend(False)
    # A resume right behind the suspension finds a pod that a SIGTERM ended, and costs one more free restart.
    status = trains(job, attempt=None, beyond=before.step or 0)
    assert (status.restarts, status.steps_lost) == (1, before.steps_lost)
    suspended = status.condition(ConditionType.SUSPENDED)
    assert suspended is not None
    assert suspended.status == "False"


def test_what_is_deleted_by_hand_is_made_again_and_training_goes_on(world: World, faults: SliceTime) -> None:
    job = world.job("patient")
    status = trains(job, attempt=None)
    restarts = status.restarts, status.preemptions
    # A pod that starts needs the ConfigMap, and waits until it is there again.
    delete(job, "configmap", str(status.config_map))
    delete(job, "job", "patient-slice-0")
    job.reaches(JobPhase.INITIALIZING)
    status = trains(job, attempt=None, beyond=status.step or 0)
    assert (status.restarts, status.preemptions) == restarts

    delete(job, "jobset", "patient")
    job.reaches(JobPhase.RESTARTING)
    status = trains(job, beyond=status.step or 0)
    assert (status.restarts, status.preemptions) == restarts
    assert [entry.phase for entry in status.timeline].count(JobPhase.PREPARING) == 1
    job.delete()


def test_a_kubelet_that_stopped_and_a_node_that_is_lost_cost_no_restart(world: World, hosts: Hosts) -> None:
    stopped, lost = world.job("kubelet"), world.job("lost-node")
    wait_for(
        lambda: says(stopped, "taken away (DeletionByTaintManager)"), "the stopped kubelet to be told", timeout=150
    )
    assert f"{world.hosts[0]} is being taken away" in str(stopped.status.message)
    waits = wait_for(lambda: queued(lost), "the lost node to be told", timeout=200)
    assert "1 of 1 hosts have no node" in waits
    hosts.come_back()
    for job, reason in ((stopped, "DeletionByTaintManager"), (lost, "DeletionByPodGC")):
        status = trains(job, attempt=1, beyond=0)
        assert (status.restarts, status.preemptions, status.failure) == (0, 1, None)
        assert status.disruption is not None
        assert status.disruption.reason == reason
        assert status.disruption.node == leader(job)["spec"]["nodeName"]
        job.delete()


def test_a_slice_whose_progress_cannot_be_read_trains_on(world: World, faults: SliceTime) -> None:
    job = world.job("liar")
    told = wait_for(lambda: unreachable(job, "no connection to"), "the closed port to be told")
    assert "does not answer on port 9100" in told
    assert "check that a NetworkPolicy lets the operator in" in told
    before = world.bucket.objects("runs/liar/checkpoints/")
    wait_for(lambda: world.bucket.objects("runs/liar/checkpoints/") != before, "another checkpoint")
    assert (job.status.phase, job.status.restarts, job.status.failure) == (JobPhase.RUNNING, 0, None)
    job.delete()


def test_the_bucket_came_back_and_nothing_was_lost(world: World, back: datetime.datetime) -> None:
    status = saved(world.job("away"), after=back)
    assert (status.restarts, status.preemptions, status.steps_lost, status.failure) == (0, 0, 0, None)


def test_a_bucket_that_takes_nothing_any_more_fails_at_once_and_a_retry_goes_on(
    world: World, faults: SliceTime
) -> None:
    job = world.job("away")
    world.outside.rule(world.away, "read-only")
    failure = fails(job)
    assert (failure.class_, failure.reason, failure.exit_code) == ("Credentials", "MissingCredentials", 77)
    assert f"Cannot write {world.away}/run/" in failure.message
    assert "permission to read and write" in str(failure.hint)
    last = job.status.last_checkpoint
    assert last is not None
    assert job.status.restarts == 0
    gives_back(job, faults)
    world.outside.rule(world.away, "open")
    job.kubectl.text("-n", job.namespace, "annotate", "ldj", job.name, "training.loradpo.dev/retry=1")
    wait_for(lambda: job.status.phase is not JobPhase.FAILED, "the retry to begin")
    assert trains(job, beyond=last.step).failure is None
    job.delete()


def test_quota_is_told_and_the_slice_follows_once_there_is_some(world: World, faults: SliceTime) -> None:
    job, quota = world.job("no-quota"), {"hard": {"count/jobsets.jobset.x-k8s.io": "0"}}
    job.kubectl.text(
        *("-n", job.namespace, "create", "-f", "-"),
        stdin={"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "no-slices"}, "spec": quota},
    )
    world.apply(job.name, endless())
    told = wait_for(lambda: says(job, "exceeded quota: no-slices"), "the quota to be told")
    assert "Hint: kubectl describe quota no-slices; it goes on by itself once there is room" in told
    assert job.objects("jobsets") == []
    assert faults.seconds(job.name) == 0
    job.kubectl.text("-n", job.namespace, "delete", "resourcequota", "no-slices")
    assert trains(job).failure is None
    job.delete()


def test_a_jobset_controller_that_is_down_is_told_and_holds_nothing(world: World, faults: SliceTime) -> None:
    job = world.job("no-controller")
    with no_controller(world.kubectl) as webhooks_off:
        world.apply(job.name, endless())
        told = wait_for(lambda: says(job, "failed calling webhook"), "the webhook to be told", timeout=120)
        assert "does not answer; see whether its pods run. It goes on by itself once it does" in told
        assert job.objects("jobsets") == []
        webhooks_off()
        told = wait_for(lambda: says(job, "its Jobs have not been made"), "the controller to be told", timeout=120)
        assert "kubectl get pods -n jobset-system" in told
        assert faults.seconds(job.name) == 0
    assert trains(job).failure is None
    job.delete()
