from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import JobPhase
from lora_dpo_operator import plan
from lora_dpo_operator.objects import EventView
from lora_dpo_operator.observed import Observed

from .builders import (
    SETTINGS,
    a_batch_job,
    a_job,
    a_jobset,
    a_pod,
    a_workload,
    condition,
    config_map_name,
    observe,
    prepare_report,
    prepared_status,
)

PREPARE = a_batch_job(Phase.PREPARE, 1)
DONE = a_batch_job(Phase.PREPARE, 1, condition("Complete", 20))
PREPARE_POD = a_pod(Phase.PREPARE, 1, ended=(19, 0), message=prepare_report())
SUSPENDED = a_job({"runPolicy": {"suspend": True}})
COMPLETED = a_jobset(21, condition("Completed", 59))
QUEUED = a_job({"queueName": "q"})
QUEUED_SUSPENDED = a_job({"queueName": "q", "runPolicy": {"suspend": True}})
HELD = a_jobset(21, suspend=True)
IN_QUEUE = a_jobset(21, queue="q")
TAKEN_OUT = a_workload(IN_QUEUE, active=False, annotations={"training.loradpo.dev/suspended": "true"})


def told(action: plan.Action) -> str:
    match action:
        case plan.Create(resource, manifest):
            return f"{type(action).__name__} {resource.kind} {manifest['metadata']['name'].split('-config-')[0]}"
        case plan.SetSuspend(resource, name, suspend):
            return f"{'Suspend' if suspend else 'Resume'} {resource.kind} {name}"
        case plan.SetActive(name, active):
            return f"{'Activate' if active else 'Deactivate'} {name}"
        case plan.Delete(resource, name):
            return f"Delete {resource.kind} {name}"


CASES: dict[str, tuple[Observed, list[str]]] = {
    "a new job is prepared first": (observe(), ["Create ConfigMap tiny", "Create Job tiny-prepare"]),
    "a refused one gets nothing": (observe(a_job({"cpu": None, "tpu": {"acceleratorType": "v9-1"}})), []),
    "one that is prepared just now waits": (observe(prepare=PREPARE), []),
    "a failed preparation is the end": (observe(prepare=a_batch_job(Phase.PREPARE, 1, condition("Failed", 5))), []),
    "the slice follows the preparation": (
        observe(prepare=DONE, pods=(PREPARE_POD,)),
        ["Create ConfigMap tiny", "Create JobSet tiny"],
    ),
    "also where the prepare Job was deleted since": (
        observe(status=prepared_status()),
        ["Create ConfigMap tiny", "Create JobSet tiny"],
    ),
    "a report that was lost is made again": (observe(prepare=DONE), ["Delete Job tiny-prepare"]),
    "a preparation without a report is not made again": (
        observe(prepare=DONE, pods=(a_pod(Phase.PREPARE, 1, ended=(19, 0), message="hello"),)),
        [],
    ),
    "a slice that trains is left alone": (observe(status=prepared_status(), jobset=a_jobset(21)), []),
    "a slice that was deleted by hand is made again": (
        observe(status=prepared_status(phase=JobPhase.RUNNING), prepare=DONE),
        ["Create ConfigMap tiny", "Create JobSet tiny"],
    ),
    "a slice that has failed is the end": (
        observe(status=prepared_status(), jobset=a_jobset(21, condition("Failed", 50))),
        [],
    ),
    "export follows training": (
        observe(status=prepared_status(), jobset=COMPLETED),
        ["Create ConfigMap tiny", "Create Job tiny-export"],
    ),
    "one export is enough": (
        observe(status=prepared_status(), jobset=COMPLETED, export=a_batch_job(Phase.EXPORT, 60)),
        [],
    ),
    "a finished job gets nothing, whatever was deleted": (
        observe(status=prepared_status(phase=JobPhase.SUCCEEDED)),
        [],
    ),
    "suspending holds the slice": (
        observe(SUSPENDED, status=prepared_status(), jobset=a_jobset(21)),
        ["Suspend JobSet tiny"],
    ),
    "and the preparation": (observe(SUSPENDED, prepare=PREPARE), ["Suspend Job tiny-prepare"]),
    "resuming lets it go on": (
        observe(status=prepared_status(), jobset=a_jobset(21, suspend=True)),
        ["Create ConfigMap tiny", "Resume JobSet tiny"],
    ),
    "with a queue, suspending is Kueue's": (
        observe(QUEUED, status=prepared_status(), jobset=a_jobset(21, suspend=True, queue="q")),
        [],
    ),
    "and so it is while Kueue lets it run": (
        observe(QUEUED, status=prepared_status(), jobset=IN_QUEUE, workload=a_workload(IN_QUEUE)),
        [],
    ),
    "also where Kueue has put it into the namespace's default queue": (
        observe(status=prepared_status(), jobset=a_jobset(21, suspend=True, queue="default")),
        [],
    ),
    "or manages what has no queue": (
        observe(status=prepared_status(), jobset=HELD, workload=a_workload(HELD)),
        [],
    ),
    "the preparation is treated alike": (
        observe(prepare=a_batch_job(Phase.PREPARE, 1, suspend=True, queue="default")),
        [],
    ),
    "suspending a job in a queue takes its workload out": (
        observe(QUEUED_SUSPENDED, status=prepared_status(), jobset=IN_QUEUE, workload=a_workload(IN_QUEUE)),
        ["Deactivate jobset-tiny-12345"],
    ),
    "once is enough": (
        observe(
            QUEUED_SUSPENDED, status=prepared_status(), jobset=IN_QUEUE, workload=a_workload(IN_QUEUE, active=False)
        ),
        [],
    ),
    "resuming puts it back": (
        observe(QUEUED, status=prepared_status(), jobset=IN_QUEUE, workload=TAKEN_OUT),
        ["Activate jobset-tiny-12345"],
    ),
    "but not what somebody else took out": (
        observe(QUEUED, status=prepared_status(), jobset=IN_QUEUE, workload=a_workload(IN_QUEUE, active=False)),
        [],
    ),
    "a queue gets no slice of a suspended job, since it would start it": (
        observe(QUEUED_SUSPENDED, status=prepared_status()),
        [],
    ),
    "a job of another controller gets nothing": (observe(a_job({"managedBy": "kueue.x-k8s.io/multikueue"})), []),
}


@pytest.mark.parametrize(("observed", "expected"), CASES.values(), ids=CASES.keys())
def test_what_is_done_next(observed: Observed, expected: list[str]) -> None:
    assert [told(action) for action in plan.actions(observed, SETTINGS)] == expected


def created(observed: Observed, **settings: Any) -> dict[str, Any]:
    actions = plan.actions(observed, dataclasses.replace(SETTINGS, **settings))
    return [action.manifest for action in actions if isinstance(action, plan.Create)][-1]


def test_a_network_policy_is_there_before_the_pods_of_a_phase_where_it_is_wanted() -> None:
    guarded = dataclasses.replace(SETTINGS, progress_peers=({"podSelector": {}},))
    assert [told(action) for action in plan.actions(observe(), guarded)] == [
        "Create NetworkPolicy tiny",
        "Create ConfigMap tiny",
        "Create Job tiny-prepare",
    ]


def test_an_upgrade_of_the_operator_leaves_a_started_jobs_image_alone() -> None:
    started = observe(prepare=DONE, pods=(PREPARE_POD,))
    template = created(started, trainer_image="trainer:2")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == "trainer:0"


def test_a_started_job_keeps_its_configuration() -> None:
    started = observe(a_job({"beta": 0.2}), prepare=DONE, pods=(PREPARE_POD,))
    assert created(started)["metadata"]["annotations"]["training.loradpo.dev/config-map"] == config_map_name()
    assert [told(action) for action in plan.actions(started, SETTINGS)] == ["Create JobSet tiny"]


def test_everything_is_owned_by_the_job() -> None:
    for observed in (observe(), observe(status=prepared_status()), observe(status=prepared_status(), jobset=COMPLETED)):
        for action in plan.actions(observed, SETTINGS):
            assert isinstance(action, plan.Create)
            owner = action.manifest["metadata"]["ownerReferences"][0]
            assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (
                observed.metadata.uid,
                True,
                True,
            )


def test_the_spec_hash_ignores_what_the_pods_do_not_depend_on() -> None:
    plain = created(observe())["metadata"]["annotations"]
    assert created(observe(SUSPENDED))["metadata"]["annotations"] == plain
    other = created(observe(a_job({"beta": 0.2})))["metadata"]["annotations"]
    assert other["training.loradpo.dev/spec-hash"] != plain["training.loradpo.dev/spec-hash"]


DIGEST = "@sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("image", "ran", "expected"),
    [
        ("registry.example.com:5000/a/trainer:v2", "registry.example.com:5000/a/trainer", True),
        ("trainer:v2", "docker.io/library/trainer", True),
        ("trainer:v2", "docker.io/library/other-trainer", False),
        ("trainer:v2", "", False),
    ],
    ids=["its own repository", "a short name", "another repository", "an image that was never pulled"],
)
def test_the_slice_runs_the_digest_that_prepare_ran(image: str, ran: str, expected: bool) -> None:
    digest = f"{ran}{DIGEST}" if ran else "sha256:" + "0" * 64
    status = prepared_status(image=image, image_digest=digest)
    template = created(observe(status=status))["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == (digest if expected else image)


def test_a_configmap_that_was_deleted_under_a_pod_is_made_again() -> None:
    lost = EventView(type="Warning", reason="FailedMount", message=f'configmap "{config_map_name()}" not found')
    waits = a_pod(Phase.TRAIN, 21, waiting=("ContainerCreating", ""))
    observed = observe(status=prepared_status(), jobset=a_jobset(21), pods=(waits,), warnings=(lost,))
    assert [told(action) for action in plan.actions(observed, SETTINGS)] == ["Create ConfigMap tiny"]


def test_the_configuration_of_a_started_job_is_not_written_anew_at_each_look() -> None:
    started = observe(status=prepared_status(config_map="tiny-config-0"), prepare=DONE, jobset=a_jobset(21))
    plan.actions(started, SETTINGS)
    assert "config" not in vars(started.verdict)
