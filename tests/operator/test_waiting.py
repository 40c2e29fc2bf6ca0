"""What a job waits for, in Kubernetes' own sentences, and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import ConditionType, JobPhase
from lora_dpo_operator import causes, derive, waiting
from lora_dpo_operator.causes import Cause
from lora_dpo_operator.nodes import Node
from lora_dpo_operator.objects import EventView, Job
from lora_dpo_operator.observed import Trouble
from lora_dpo_operator.reasons import FailureClass

from .builders import a_batch_job, a_job, a_jobset, a_pod, at, condition, observe, prepared_status

OTHERWISE = Cause("Otherwise", FailureClass.INTERNAL)
PREPARE = a_batch_job(Phase.PREPARE, 1)
DONE = a_batch_job(Phase.PREPARE, 1, condition("Complete", 20))
WAITS_FOR_VOLUMES = a_pod(Phase.PREPARE, 1, waiting=("ContainerCreating", ""))

SENTENCES = {
    'persistentvolumeclaim "data" not found': ("MissingReference", "Config", "PersistentVolumeClaim data"),
    "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.": ("UnboundVolume", "Storage", "pvc"),
    'MountVolume.SetUp failed for volume "ca" : secret "company-ca" not found': (
        "MissingReference",
        "Credentials",
        "Secret company-ca",
    ),
    "couldn't find key HF_TOKEN in Secret team-a/hf": ("MissingReference", "Config", "key HF_TOKEN"),
    'configmap "settings" not found': ("MissingReference", "Config", "ConfigMap settings"),
    'Error creating: pods "t-" is forbidden: error looking up service account a/tpu: serviceaccount "tpu" not found': (
        "MissingReference",
        "Config",
        "ServiceAccount tpu",
    ),
    "Unable to retrieve some image pull secrets (regcred); attempting to pull the image may not succeed.": (
        "MissingReference",
        "Credentials",
        "pull secret regcred",
    ),
    'pods "t" is forbidden: exceeded quota: small, requested: pods=1, used: pods=2, limited: pods=2': (
        "QuotaExceeded",
        "Infrastructure",
        "quota small",
    ),
    'pods "t" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes': (
        "RefusedByCluster",
        "Config",
        "Pod Security",
    ),
    'Internal error occurred: failed calling webhook "vjobset.kb.io": no endpoints available': (
        "WebhookDown",
        "Infrastructure",
        "vjobset.kb.io",
    ),
    'admission webhook "images.corp" denied the request: not our registry': (
        "RefusedByCluster",
        "Config",
        "images.corp",
    ),
    "jobsets.jobset.x-k8s.io \"t\" is forbidden: ValidatingAdmissionPolicy 'cost' with binding 'all' denied request": (
        "RefusedByCluster",
        "Config",
        "policy cost",
    ),
    'failed to pull and unpack image "r/x:1": failed to authorize: 401 Unauthorized': (
        "ImagePullFailed",
        "Credentials",
        "imagePullSecrets",
    ),
    'failed to pull and unpack image "r/x:1": failed to resolve reference "r/x:1": r/x:1: not found': (
        "ImagePullFailed",
        "Config",
        "spec.podTemplate.image",
    ),
    "0/403 nodes are available: 403 Insufficient google.com/tpu.": ("Otherwise", "Internal", ""),
    "something new": ("Otherwise", "Internal", ""),
}


@pytest.mark.parametrize(("text", "expected"), SENTENCES.items(), ids=SENTENCES)
def test_a_sentence_of_kubernetes_has_a_cause_and_a_hint(text: str, expected: tuple[str, str, str]) -> None:
    found = causes.of(text, OTHERWISE)
    assert (found.reason, found.class_) == expected[:2]
    assert expected[2] in found.hint


def warning(reason: str, message: str) -> EventView:
    return EventView(type="Warning", reason=reason, message=message)


PREPARE_WAITS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no pod, for want of a service account": (
        {"warnings": (warning("FailedCreate", 'Error creating: serviceaccount "tpu" not found'),)},
        "MissingReference",
        "Hint: create the ServiceAccount tpu",
    ),
    "no pod, for want of quota": (
        {"warnings": (warning("FailedCreate", "exceeded quota: small, requested: pods=1"),)},
        "QuotaExceeded",
        "kubectl describe quota small",
    ),
    "a claim that is not there": (
        {"pods": (a_pod(Phase.PREPARE, 1, unschedulable='persistentvolumeclaim "data" not found'),)},
        "MissingReference",
        "Hint: create the PersistentVolumeClaim data",
    ),
    "a pull secret that is not there": (
        {
            "pods": (a_pod(Phase.PREPARE, 1, waiting=("ErrImagePull", "401 Unauthorized")),),
            "warnings": (
                warning("FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets (regcred)"),
            ),
        },
        "MissingReference",
        "create the pull secret regcred",
    ),
    "a volume whose secret is not there": (
        {
            "pods": (WAITS_FOR_VOLUMES,),
            "warnings": (warning("FailedMount", 'secret "company-ca" not found'),),
        },
        "MissingReference",
        "create the Secret company-ca",
    ),
}


@pytest.mark.parametrize(("fields", "reason", "words"), PREPARE_WAITS.values(), ids=PREPARE_WAITS)
def test_what_prepare_waits_for_reaches_the_status_with_a_hint(fields: dict[str, Any], reason: str, words: str) -> None:
    waits = observe(prepare=PREPARE, **fields)
    status = derive.status(waits, at(100))
    prepared = status.condition(ConditionType.PREPARED)
    assert prepared is not None
    assert (status.phase, prepared.reason) == (JobPhase.PREPARING, reason)
    assert words in prepared.message
    assert words in str(status.message)

    # And after prepare.timeout, when its pod is gone.
    failed = a_batch_job(Phase.PREPARE, 1, condition("Failed", 110, reason="DeadlineExceeded"))
    ended = derive.status(observe(prepare=failed, status=status), at(120))
    assert ended.failure is not None
    assert (ended.phase, ended.failure.class_, ended.failure.reason) == (JobPhase.FAILED, "Deadline", reason)
    assert words in f"{ended.failure.message}. Hint: {ended.failure.hint}"
    assert str(ended.message).count("Hint: ") == 1


def test_the_wait_of_an_exclusive_slices_other_hosts_for_the_first_is_no_problem() -> None:
    leads = warning("FailedCreate", "admission webhook denied the request: leader pod not yet scheduled")
    slice_job = Job.model_validate({"metadata": {"name": "tiny-slice-0", "uid": "s"}})
    waits = observe(status=prepared_status(), jobset=a_jobset(21), slice_jobs=(slice_job,), warnings=(leads,))
    assert waiting.start_problem(waits) is None
    assert derive.status(waits, at(100)).message == "The slice's hosts are starting"


def test_a_jobset_that_nobody_takes_up_is_said() -> None:
    alone = observe(status=prepared_status(), jobset=a_jobset(21))
    assert derive.status(alone, at(40)).message == "The slice's hosts are starting"
    said = str(derive.status(alone, at(60)).message)
    assert "its Jobs have not been made" in said
    assert "JobSet controller" in said


WATCHED = {
    "a Job without a pod": ({"prepare": PREPARE}, "tiny-prepare"),
    "a suspended one needs none": ({"prepare": a_batch_job(Phase.PREPARE, 1, suspend=True)}, None),
    "a pod that waits for its volumes": ({"prepare": PREPARE, "pods": (WAITS_FOR_VOLUMES,)}, "tiny-prepare-abcde"),
    "a pod that says itself what is missing": (
        {"prepare": PREPARE, "pods": (a_pod(Phase.PREPARE, 1, waiting=("CreateContainerConfigError", "x")),)},
        None,
    ),
    "a pod that runs": ({"prepare": PREPARE, "pods": (a_pod(Phase.PREPARE, 1, running=3),)}, None),
    "a JobSet without Jobs": ({"status": prepared_status(), "prepare": DONE, "jobset": a_jobset(21)}, "tiny"),
    "an export Job without a pod": (
        {"status": prepared_status(), "export": a_batch_job(Phase.EXPORT, 60)},
        "tiny-export",
    ),
}


@pytest.mark.parametrize(("fields", "expected"), WATCHED.values(), ids=WATCHED)
def test_events_are_read_of_what_does_not_start(fields: dict[str, Any], expected: str | None) -> None:
    found = waiting.watched(observe(**fields))
    assert (found and found.name) == expected


def test_a_slice_without_nodes_says_what_it_asks_for_and_the_nearest_that_exists() -> None:
    def host(name: str, machine: str, accelerator: str, topology: str) -> Node:
        labels = {
            "node.kubernetes.io/instance-type": machine,
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": topology,
        }
        return Node.model_validate({"metadata": {"name": name, "labels": labels}})

    waits = a_pod(
        Phase.TRAIN,
        21,
        unschedulable="0/5 nodes are available: 5 node(s) didn't match Pod's node affinity/selector.",
        selector={
            "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
            "cloud.google.com/gke-tpu-topology": "2x4x4",
        },
        requests={"google.com/tpu": "4"},
    )
    nodes = (
        host("a", "ct6e-standard-8t", "tpu-v6e-slice", "2x4"),
        *(host(name, "ct5p-hightpu-4t", "tpu-v5p-slice", "2x2x2") for name in ("b", "c")),
    )
    queued = observe(status=prepared_status(), jobset=a_jobset(21), pods=(waits,), nodes=nodes)
    status = derive.status(queued, at(100))
    said = status.condition(ConditionType.QUEUED)
    assert said is not None
    assert status.phase is JobPhase.QUEUED
    assert said.message == (
        "1 of 1 hosts have no node: 0/5 nodes are available: 5 node(s) didn't match Pod's node affinity/selector. "
        "Each host asks for 4 google.com/tpu on a node with cloud.google.com/gke-tpu-accelerator=tpu-v5p-slice, "
        "cloud.google.com/gke-tpu-topology=2x4x4; the nearest that exist: 2 of ct5p-hightpu-4t 2x2x2, "
        "1 of ct6e-standard-8t 2x4"
    )
    taken = host("d", "ct5p-hightpu-4t", "tpu-v5p-slice", "2x4x4")
    queued = observe(status=prepared_status(), jobset=a_jobset(21), pods=(waits,), nodes=(*nodes, taken))
    assert "the nodes that match are taken or too few: 1 of ct5p-hightpu-4t 2x4x4" in str(
        derive.status(queued, at(100)).message
    )


def test_what_the_cluster_refuses_for_now_is_told_and_no_failure() -> None:
    trouble = Trouble(reason="WebhookDown", message="no endpoints", final=False, hint="see whether its pods run")
    status = derive.status(observe(a_job(), status=prepared_status(), prepare=DONE, trouble=trouble), at(100))
    assert status.phase is JobPhase.PREPARING
    assert status.failure is None
    assert status.message == "no endpoints. Hint: see whether its pods run"
