"""Faults that are found before a slice is held: at the door, by the operator, or by the preparation's pod.

All of them are made at once, so that they wait side by side; each test then looks at one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from lora_dpo_api.status import ConditionType, JobPhase

from .conftest import Kubectl, wait_for
from .loradpojobs import JOB_LABEL, PHASE_LABEL, Job, Operator, manifest
from .slice_time import SliceTime, measured

V5P = {"machineType": "ct5p-hightpu-4t", "topology": "2x2x2"}
EIGHT = {"numTrainSteps": 6, "trainBatchSize": 8}


def on(tpu: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"cpu": None, "tpu": tpu, "trainer": EIGHT, **more}


def mounted(volume: dict[str, Any]) -> dict[str, Any]:
    pod = {"volumes": [{"name": "x"} | volume], "volumeMounts": [{"name": "x", "mountPath": "/x"}]}
    return {"podTemplate": pod}


AT_THE_DOOR = {
    "an ambiguous topology": (on({"topology": "2x4"}), "topology needs machineType"),
    "spot with a reservation": (
        on(V5P | {"capacity": {"type": "spot", "reservation": "r"}}),
        "needs the name of a reservation, and no other type takes one",
    ),
    "a learning rate for fine-tuning": ({"optimizer": {"learningRate": 1e-3}}, "must be at most 5e-5"),
}

NOT_ACCEPTED = {
    "topology": (on(V5P | {"topology": "3x3x3"}), "spec.tpu.topology: 3x3x3 is not a topology of ct5p-hightpu-4t"),
    "slices": (on({"acceleratorType": "v6e-8", "slices": 2}), "spec.tpu.slices: 2"),
    "batch": (on(V5P, trainer={"trainBatchSize": 9}), "9 cannot be split evenly over the 8 devices of v5p 2x2x2"),
}

WAITING = {
    "secret": ({"huggingFace": {"secretRef": "absent"}}, "MissingReference", 'secret "absent" not found'),
    "volume-secret": (
        mounted({"secret": {"secretName": "absent"}}),
        "MissingReference",
        "Hint: create the Secret absent in the job's namespace",
    ),
    "configmap": (
        {"podTemplate": {"envFrom": [{"configMapRef": {"name": "absent"}}]}},
        "MissingReference",
        "Hint: create the ConfigMap absent in the job's namespace",
    ),
    "account": (
        {"podTemplate": {"serviceAccountName": "absent"}},
        "MissingReference",
        "Hint: create the ServiceAccount absent",
    ),
    "claim": (
        mounted({"persistentVolumeClaim": {"claimName": "absent"}}),
        "MissingReference",
        "Hint: create the PersistentVolumeClaim absent",
    ),
    "image": (
        {"podTemplate": {"image": "localhost/absent:1"}},
        "ImagePullFailed",
        "Hint: correct name and tag in spec.podTemplate.image",
    ),
    "pull-secret": (
        {"podTemplate": {"image": "localhost/absent:1", "imagePullSecrets": [{"name": "absent"}]}},
        "MissingReference",
        "Hint: create the pull secret absent",
    ),
    "node": ({"prepare": {"nodeSelector": {"no": "such"}}}, "Unschedulable", "node affinity/selector"),
}

TOO_LATE = {"huggingFace": {"secretRef": "absent"}, "prepare": {"timeout": "15s"}}


@pytest.fixture(scope="module")
def faults(operator: Operator, kubectl: Kubectl) -> Iterator[tuple[str, SliceTime]]:
    """A namespace with every faulty job in it."""
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    kubectl.text("create", "namespace", namespace)
    wait_for(lambda: kubectl("-n", namespace, "get", "serviceaccount", "default").returncode == 0, "its account")
    with measured(kubectl, namespace) as slices:
        specs = {name: spec for name, (spec, *_) in (NOT_ACCEPTED | WAITING).items()} | {"too-late": TOO_LATE}
        for name, spec in specs.items():
            Job(kubectl, namespace, name).apply(manifest(name, "gs://b", **spec))
        yield namespace, slices
    kubectl.text("delete", "namespace", namespace, "--wait=false")


def test_pods_of_a_slice_would_be_seen(kubectl: Kubectl, faults: tuple[str, SliceTime]) -> None:
    namespace, slices = faults
    labels = {JOB_LABEL: "control", PHASE_LABEL: "train"}
    spec = {"nodeSelector": {"no": "such"}, "containers": [{"name": "x", "image": "localhost/absent:1"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "control", "labels": labels}, "spec": spec}
    kubectl.text("-n", namespace, "create", "-f", "-", stdin=pod)
    wait_for(lambda: slices.seconds("control") > 0, "the watch to see a pod")
    kubectl.text("-n", namespace, "delete", "pod", "control", "--grace-period=0", "--force")
    # Two readings agree once it counts no longer.
    wait_for(lambda: slices.seconds("control") == slices.seconds("control"), "the watch to see it go")


@pytest.mark.parametrize(("spec", "words"), AT_THE_DOOR.values(), ids=AT_THE_DOOR)
def test_what_can_never_work_is_refused_at_the_door(
    kubectl: Kubectl, faults: tuple[str, SliceTime], spec: dict[str, Any], words: str
) -> None:
    refused = kubectl("-n", faults[0], "apply", "-f", "-", stdin=manifest("tiny", "gs://b", **spec))
    assert refused.returncode != 0
    assert words in refused.stderr


def test_a_name_that_would_break_host_names_is_refused_at_the_door(
    kubectl: Kubectl, faults: tuple[str, SliceTime]
) -> None:
    refused = kubectl("-n", faults[0], "apply", "-f", "-", stdin=manifest("a" * 46, "gs://b"))
    assert "must have at most 45" in refused.stderr


@pytest.mark.parametrize("name", NOT_ACCEPTED)
def test_a_shape_that_does_not_exist_is_not_accepted_and_has_no_pod(
    kubectl: Kubectl, faults: tuple[str, SliceTime], name: str
) -> None:
    namespace, slices = faults
    job = Job(kubectl, namespace, name)
    assert NOT_ACCEPTED[name][1] in job.says(ConditionType.ACCEPTED, "False", "InvalidSpec").message
    assert job.status.phase is JobPhase.PENDING
    assert job.objects() == []
    assert slices.seconds(name) == 0


@pytest.mark.parametrize("name", WAITING)
def test_a_reference_that_is_missing_is_named_with_a_hint_and_holds_no_slice(
    kubectl: Kubectl, faults: tuple[str, SliceTime], name: str
) -> None:
    namespace, slices = faults
    _, reason, words = WAITING[name]
    job = Job(kubectl, namespace, name)
    assert words in job.says(ConditionType.PREPARED, "False", reason).message
    status = job.status
    assert status.phase is JobPhase.PREPARING
    assert words in str(status.message)
    assert job.objects("jobsets") == []
    assert slices.seconds(name) == 0


def test_a_preparation_that_waited_too_long_has_failed_of_what_it_waited_for(
    kubectl: Kubectl, faults: tuple[str, SliceTime]
) -> None:
    namespace, slices = faults
    failure = Job(kubectl, namespace, "too-late").reaches(JobPhase.FAILED, timeout=120).failure
    assert failure is not None
    assert (failure.class_, failure.reason, failure.phase) == ("Deadline", "MissingReference", "prepare")
    assert 'secret "absent" not found' in failure.message
    assert slices.seconds("too-late") == 0
