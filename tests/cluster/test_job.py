"""A LoraDpoJob from apply to adapter, with the project's own images and a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_api.status import ConditionType, JobPhase
from lora_dpo_api.wire import RETRY_ANNOTATION

from .conftest import Bucket, Kubectl, wait_for
from .loradpojobs import Job, Operator, manifest, upload_model

IN_ORDER = ["Pending", "Preparing", "Initializing", "Running", "Exporting", "Succeeded"]
LONG = {"trainer": {"numTrainSteps": 100_000, "trainBatchSize": 8}}


@pytest.fixture
def job(operator: Operator, kubectl: Kubectl, namespace: str, bucket: Bucket) -> Job:
    upload_model(bucket)
    return Job(kubectl, namespace, "tiny")


def phases(job: Job) -> list[str]:
    return [entry.phase.value for entry in job.status.timeline]


def test_a_job_goes_through_every_phase_and_leaves_an_adapter(job: Job, bucket: Bucket, operator: Operator) -> None:
    job.apply(manifest("tiny", bucket.url, lora={"r": 8, "zeroInitB": False}))
    status = job.reaches(JobPhase.SUCCEEDED)

    assert phases(job) == IN_ORDER
    starts = [entry.started for entry in status.timeline]
    assert starts == sorted(starts)
    assert (status.step, status.total_steps, status.progress) == (6, 6, "6/6")
    assert status.metrics is not None
    assert status.metrics.loss is not None
    assert status.metrics.accuracy is not None
    assert status.prepared is not None
    assert status.prepared.train_pairs > 0
    adapter = next(artifact for artifact in status.artifacts if artifact.kind == "peft")
    assert f"{adapter.path}/adapter_model.safetensors" in bucket.objects("runs/tiny/")
    assert status.failure is None
    job.kubectl.text("-n", job.namespace, "wait", "--for=condition=Complete", "ldj/tiny", "--timeout=1s")

    # zeroInitB: false ran with true, and it is said three times.
    assert "ZeroInitBForced" in [advice.code for advice in status.advice]
    config_map = job.kubectl.json("-n", job.namespace, "get", "configmap", str(status.config_map))
    assert yaml12.loads(config_map["data"]["config.yaml"])["lora"]["zero_init_b"] is True
    reasons = [event["reason"] for event in job.events()]
    told = ["Accepted", "ZeroInitBForced", "Preparing", "Initializing", "Running", "Exporting", "Succeeded"]
    assert [reason for reason in reasons if reason in told] == told

    table = job.kubectl.text("-n", job.namespace, "get", "ldj").splitlines()
    assert table[0].split() == ["NAME", "PHASE", "STEP", "LOSS", "MARGIN", "ACC", "ETA", "AGE"]
    assert table[1].split()[:3] == ["tiny", "Succeeded", "6/6"]
    story = job.kubectl.text("-n", job.namespace, "describe", "ldj", "tiny").split("Events:")[1]
    positions = [story.index(f" {reason} ") for reason in told]
    assert positions == sorted(positions)

    # Prometheus sees it for as long as it exists.
    series = f'loradpo_operator_job_accuracy{{name="tiny",namespace="{job.namespace}"}}'
    assert series in operator.metrics()
    job.delete()
    wait_for(lambda: series not in operator.metrics(), "the job's series to be gone")


def test_an_operator_that_was_away_loses_nothing_and_makes_nothing_twice(
    job: Job, bucket: Bucket, operator: Operator
) -> None:
    job.apply(manifest("tiny", bucket.url, trainer={"numTrainSteps": 40, "trainBatchSize": 4}))
    job.reaches(JobPhase.INITIALIZING, JobPhase.RUNNING)
    made = {item["metadata"]["uid"] for item in job.objects("jobs,jobsets,configmaps")}
    operator.kill()
    trained = ("-n", job.namespace, "get", "jobset", "tiny", "-o", "jsonpath={.status.terminalState}")
    try:
        wait_for(lambda: job.kubectl.text(*trained) == "Completed", "the slice to be done by itself", timeout=300)
        assert job.status.phase in (JobPhase.INITIALIZING, JobPhase.RUNNING)
    finally:
        operator.start()
    status = job.reaches(JobPhase.SUCCEEDED)

    assert phases(job) == IN_ORDER
    assert status.step == 40
    assert status.metrics is not None
    assert status.metrics.loss is not None
    objects = job.objects("jobs,jobsets,configmaps")
    assert made < {item["metadata"]["uid"] for item in objects}
    assert sorted((item["kind"], item["metadata"]["name"]) for item in objects if item["kind"] != "ConfigMap") == [
        ("Job", "tiny-export"),
        ("Job", "tiny-prepare"),
        ("Job", "tiny-slice-0"),
        ("JobSet", "tiny"),
    ]
    reasons = [event["reason"] for event in job.events()]
    assert len(reasons) == len(set(reasons)), reasons


def test_a_failed_job_is_tried_again_once_its_data_is_there_and_later_removes_itself(job: Job, bucket: Bucket) -> None:
    late = {"prefs": {"source": {"type": "url", "trainUrls": [f"{bucket.url}/data/late.jsonl"]}}}
    job.apply(manifest("tiny", bucket.url, data={"components": late}))
    job.reaches(JobPhase.FAILED)
    bucket.write("data/late.jsonl", bucket.read("data/train.jsonl"))
    job.kubectl.text("-n", job.namespace, "annotate", "ldj", "tiny", f"{RETRY_ANNOTATION}=1")
    wait_for(lambda: job.status.phase is not JobPhase.FAILED, "another try")
    job.reaches(JobPhase.SUCCEEDED)

    soon = {"spec": {"runPolicy": {"ttlAfterFinished": "1s"}}}
    job.kubectl.text("-n", job.namespace, "patch", "ldj", "tiny", "--type=merge", "-p", json.dumps(soon))
    job.kubectl.text("-n", job.namespace, "wait", "ldj/tiny", "--for=delete", "--timeout=60s")
    wait_for(lambda: not job.objects(), "what belonged to the job to be gone")


@pytest.fixture
def slice_job(job: Job, bucket: Bucket) -> Iterator[Job]:
    """A long job on two hosts that pose as a TPU slice."""
    tpu: dict[str, Any] = {"machineType": "ct5p-hightpu-4t", "topology": "2x2x2"}
    job.apply(manifest("tiny", bucket.url, cpu=None, tpu=tpu, **LONG))
    yield job
    job.kubectl("-n", job.namespace, "delete", "ldj", job.name, "--ignore-not-found", "--wait=false")


def test_deleting_a_job_that_trains_removes_everything(slice_job: Job) -> None:
    status = slice_job.reaches(JobPhase.RUNNING)
    simulated = status.condition(ConditionType.SIMULATED)
    assert simulated is not None
    assert simulated.status == "True"
    assert {pod["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] for pod in slice_job.slice_pods()} == {
        "2x2x2"
    }
    assert len(slice_job.slice_pods()) == 2
    wait_for(lambda: slice_job.status.step, "a step in the status")
    slice_job.delete()
    wait_for(lambda: not slice_job.objects(), "everything of the job to be gone", timeout=120)
