"""What cannot work never holds a slice: refused at the door, by the operator, or in prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_dpo_api import yaml12
from lora_dpo_api.status import ConditionType, JobPhase

from .conftest import Bucket, Kubectl, wait_for
from .loradpojobs import Job, Operator, manifest, upload_model

GOLDEN = sorted((Path(__file__).parents[1] / "operator" / "golden").glob("*.yaml"))


@pytest.fixture
def job(operator: Operator, kubectl: Kubectl, namespace: str) -> Job:
    return Job(kubectl, namespace, "tiny")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"trainSeqLen": 4}, "spec.trainSeqLen"),
        ({"output": {"path": "memory://x"}}, "spec.output.path"),
        ({"optimizer": {"learningRate": 1e-3}}, "spec.optimizer.learningRate"),
        ({"lora": {"rank": 8}}, "spec.lora.rank"),
    ],
    ids=["out of range", "no lasting place", "a rate for SFT", "an unknown field"],
)
def test_an_impossible_field_never_enters(job: Job, spec: dict[str, Any], words: str) -> None:
    refused = job.kubectl("-n", job.namespace, "apply", "-f", "-", stdin=manifest("tiny", "gs://b", **spec))
    assert refused.returncode != 0
    assert words in refused.stderr
    assert job.kubectl("-n", job.namespace, "get", "ldj", "tiny").returncode != 0


def test_a_topology_that_does_not_exist_is_refused_without_any_pod(job: Job) -> None:
    tpu = {"machineType": "ct5p-hightpu-4t", "topology": "3x3x3"}
    job.apply(manifest("tiny", "gs://b", cpu=None, tpu=tpu, trainer={"numTrainSteps": 6, "trainBatchSize": 8}))
    accepted = job.says(ConditionType.ACCEPTED, "False", "InvalidSpec")
    assert "spec.tpu.topology: 3x3x3 is not a topology of ct5p-hightpu-4t" in accepted.message
    assert job.objects() == []
    events = wait_for(job.events, "an event")
    assert [(event["type"], event["reason"]) for event in events] == [("Warning", "InvalidSpec")]

    # A corrected spec is taken.
    tpu["topology"] = "2x2x2"
    job.apply(manifest("tiny", "gs://b", cpu=None, tpu=tpu, trainer={"numTrainSteps": 6, "trainBatchSize": 8}))
    job.says(ConditionType.ACCEPTED, "True", "Accepted")
    job.delete()


def test_a_missing_secret_is_named_and_no_slice_is_held(job: Job) -> None:
    job.apply(manifest("tiny", "gs://b", huggingFace={"secretRef": "hf-token"}))
    prepared = job.says(ConditionType.PREPARED, "False", "MissingReference")
    assert 'secret "hf-token" not found' in prepared.message
    assert job.status.phase is JobPhase.PREPARING
    assert [item for item in job.objects() if item["kind"] == "JobSet"] == []
    assert job.slice_pods() == []
    job.delete()


def test_a_volume_of_a_missing_secret_is_named_too(job: Job) -> None:
    volumes = {
        "volumes": [{"name": "certs", "secret": {"secretName": "company-ca"}}],
        "volumeMounts": [{"name": "certs", "mountPath": "/certs"}],
    }
    job.apply(manifest("tiny", "gs://b", podTemplate=volumes))
    prepared = job.says(ConditionType.PREPARED, "False", "MissingReference")
    assert 'secret "company-ca" not found' in prepared.message
    assert job.slice_pods() == []
    job.delete()


def test_data_that_is_not_there_is_named_and_no_slice_is_held(job: Job, bucket: Bucket) -> None:
    upload_model(bucket)
    missing = {"prefs": {"source": {"type": "url", "trainUrls": [f"{bucket.url}/data/nothing-*.jsonl"]}}}
    job.apply(manifest("tiny", bucket.url, data={"components": missing}))
    status = job.reaches(JobPhase.FAILED)
    prepared = status.condition(ConditionType.PREPARED)
    assert prepared is not None
    assert prepared.status == "False"
    assert "nothing-*.jsonl" in prepared.message
    assert status.failure is not None
    assert (status.failure.class_, status.failure.phase) == ("Data", "prepare")
    assert [item for item in job.objects() if item["kind"] == "JobSet"] == []
    assert job.slice_pods() == []


def test_a_name_that_belongs_to_someone_else_is_said_and_left_alone(job: Job) -> None:
    container = {"name": "x", "image": "nobody"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    theirs = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "tiny-prepare"},
        "spec": {"suspend": True, "template": template},
    }
    job.kubectl.text("-n", job.namespace, "create", "-f", "-", stdin=theirs)
    job.apply(manifest("tiny", "gs://b"))
    accepted = job.says(ConditionType.ACCEPTED, "False", "NameTaken")
    assert "Job tiny-prepare exists already and belongs to nobody" in accepted.message
    assert job.kubectl.json("-n", job.namespace, "get", "job", "tiny-prepare")["spec"]["suspend"] is True
    assert job.slice_pods() == []


@pytest.mark.parametrize("golden", GOLDEN, ids=[file.stem for file in GOLDEN])
def test_the_api_server_takes_every_golden_manifest(kubectl: Kubectl, namespace: str, golden: Path) -> None:
    wanted = yaml12.loads(golden.read_text())
    wanted["metadata"]["namespace"] = namespace
    answer = kubectl.json("create", "--dry-run=server", "-f", "-", stdin=wanted)
    if wanted["kind"] == "JobSet":
        # Nothing is left for the webhook to default: Kueue and later versions of JobSet see what was meant.
        given, taken = wanted["spec"], answer["spec"]
        assert {key: taken[key] for key in given} == taken | {"replicatedJobs": taken["replicatedJobs"]}
        assert set(taken["replicatedJobs"][0]) == set(given["replicatedJobs"][0])
