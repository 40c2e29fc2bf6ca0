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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api.status import ConditionType, Failure, JobPhase, LoraDpoJobStatus
from lora_dpo_localcluster import namespace as namespaces
from lora_dpo_localcluster.image import Image

from . import outside
from .conftest import Bucket, Kubectl, wait_for
from .loradpojobs import Job, Operator, manifest, upload_model
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
        away: a bucket that will not answer for a while.
    """

    kubectl: Kubectl
    namespace: str
    bucket: Bucket
    outside: Outside
    away: str

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


def specs(world: World) -> dict[str, dict[str, Any]]:
    """Every job's spec."""
    v5p, often = "ct5p-hightpu-4t", {"every": "2s"}
    poisoned_rows = {"source": {"type": "url", "trainUrls": [f"{world.bucket.url}/data/poisoned.jsonl"]}}
    return {
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
    yield World(kubectl, namespace, bucket, servers, away)
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


def trains(job: Job, attempt: int = 0, beyond: int = 2) -> LoraDpoJobStatus:
    """Wait until an attempt trains, and has got further than a step."""

    def status() -> LoraDpoJobStatus | None:
        found = job.status
        assert found.phase is not JobPhase.FAILED, found.message
        there = found.phase is JobPhase.RUNNING and found.reported_attempt == attempt and (found.step or 0) > beyond
        return found if there else None

    found = wait_for(status, f"{job.name} to train", timeout=300)
    assert found is not None
    return found


def fails(job: Job, timeout: float = 300) -> Failure:
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

    found = wait_for(status, f"a checkpoint of {job.name}", timeout=300)
    assert found is not None
    return found


def test_a_crash_at_the_same_step_again_and_again_ends_the_job_with_that_said(world: World, faults: SliceTime) -> None:
    job = world.job("crash-loop")
    failure = fails(job)
    assert (failure.class_, failure.reason, failure.exit_code) == ("Internal", "CrashLoop", 139)
    assert "crashed 3 times in a row and got no further than step 3 (no checkpoint was made)" in failure.message
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
    told = job.says(ConditionType.HEALTHY, "False", "Stalled", timeout=300).message
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
    job.delete()


def test_the_bucket_came_back_and_nothing_was_lost(world: World, back: datetime.datetime) -> None:
    status = saved(world.job("away"), after=back)
    assert (status.restarts, status.preemptions, status.steps_lost, status.failure) == (0, 0, 0, None)
