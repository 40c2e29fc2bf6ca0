"""Jobs in a queue: what Kueue says of them, in its own words, from the first wait to the last admission."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import Condition, ConditionType, JobPhase, LoraDpoJobStatus, PhaseTime
from lora_dpo_operator import derive, events, jobset
from lora_dpo_operator.objects import JobSet
from lora_dpo_operator.observed import Observed

from .builders import (
    a_batch_job,
    a_job,
    a_jobset,
    a_pod,
    a_workload,
    at,
    condition,
    observe,
    prepared_status,
    progress,
)
from .cases import blueprint

QUEUED_JOB = a_job({"queueName": "tpus"})
WAITS = a_jobset(21, condition("Suspended", 21), suspend=True, queue="tpus")
RUNS = a_jobset(21, condition("Suspended", 40, "False", "ResumeJobs"), queue="tpus")
NO_QUOTA = condition(
    "QuotaReserved",
    22,
    "False",
    "Pending",
    "couldn't assign flavors to pod set slice: insufficient unused quota for cpu",
)
ADMITTED = condition("Admitted", 40, reason="Admitted", message="The workload is admitted")
RESERVED = condition("QuotaReserved", 40, reason="QuotaReserved", message="Quota reserved in ClusterQueue pool")
PREEMPTED = condition("Evicted", 60, reason="Preempted", message="Preempted to accommodate a workload (UID: x)")
READMITTED = condition("Evicted", 90, "False", "QuotaReserved", "Previously: Preempted to accommodate a workload")
TRAINS = (a_pod(Phase.TRAIN, 41, running=42),)


def held(jobset: JobSet, *conditions: dict[str, Any], raw: Any = QUEUED_JOB, **fields: Any) -> Observed:
    """A prepared job with its JobSet and Kueue's workload."""
    workload = {
        name: fields.pop(name) for name in ("active", "cluster_queue", "annotations", "checks") if name in fields
    }
    found = {"status": prepared_status(), "jobset": jobset, "workload": a_workload(jobset, *conditions, **workload)}
    return observe(raw, **(found | fields))


def derived(observed: Observed, seconds: int = 100) -> LoraDpoJobStatus:
    return derive.status(observed, at(seconds))


def of(status: LoraDpoJobStatus, kind: ConditionType) -> Condition:
    found = status.condition(kind)
    assert found is not None, kind
    return found


def test_a_job_that_waits_for_quota_says_so_in_kueues_words() -> None:
    status = derived(held(WAITS, NO_QUOTA))
    assert status.phase is JobPhase.QUEUED
    assert status.message is not None
    assert status.message.startswith("Waiting in the queue tpus: couldn't assign flavors")
    assert "it goes on by itself once they are done" in status.message
    queued, admitted = of(status, ConditionType.QUEUED), of(status, ConditionType.ADMITTED)
    assert (queued.status, queued.reason, queued.message) == ("True", "WaitingForQueue", status.message)
    assert (admitted.status, admitted.reason) == ("False", "Pending")
    assert admitted.message == NO_QUOTA["message"]
    assert admitted.last_transition_time == at(22)
    assert [(entry.phase, entry.reason) for entry in status.timeline][-1] == (JobPhase.QUEUED, "WaitingForQueue")
    assert status.timeline[-1].started == at(21)


def test_admission_is_one_thing_and_nodes_are_another() -> None:
    waits = derived(held(WAITS, NO_QUOTA))
    no_node = (a_pod(Phase.TRAIN, 41, unschedulable="0/3 nodes are available"),)
    status = derived(held(RUNS, RESERVED, ADMITTED, cluster_queue="pool", status=waits, pods=no_node))
    assert status.phase is JobPhase.QUEUED
    admitted, queued = of(status, ConditionType.ADMITTED), of(status, ConditionType.QUEUED)
    assert (admitted.status, admitted.reason) == ("True", "Admitted")
    assert admitted.message == "The workload is admitted (ClusterQueue pool)"
    assert (queued.status, queued.reason) == ("True", "WaitingForCapacity")

    status = derived(held(RUNS, RESERVED, ADMITTED, cluster_queue="pool", status=status, pods=TRAINS))
    queued = of(status, ConditionType.QUEUED)
    assert (queued.status, queued.reason, queued.message) == ("False", "Scheduled", "All hosts have a node")


def test_the_slice_starts_when_kueue_lets_it() -> None:
    waits = derived(held(WAITS, NO_QUOTA), 30)
    status = derived(held(RUNS, RESERVED, ADMITTED, status=waits))
    assert [(entry.phase.value, entry.started) for entry in status.timeline][-2:] == [
        ("Queued", at(21)),
        ("Initializing", at(40)),
    ]


@pytest.fixture
def running() -> LoraDpoJobStatus:
    """The status of a job that was admitted and trains."""
    waits = derived(held(WAITS, NO_QUOTA), 30)
    trains = held(RUNS, RESERVED, ADMITTED, status=waits, pods=TRAINS, report=progress(since=50, updated=55))
    return derived(dataclasses.replace(trains), 56)


def evicted(status: LoraDpoJobStatus) -> Observed:
    jobset = a_jobset(21, condition("Suspended", 61), suspend=True, queue="tpus")
    lost = condition("QuotaReserved", 62, "False", "Pending", PREEMPTED["message"])
    return held(jobset, lost, PREEMPTED, status=status)


def test_an_eviction_is_said_with_kueues_reason_and_time(running: LoraDpoJobStatus) -> None:
    status = derived(evicted(running), 70)
    assert status.phase is JobPhase.QUEUED
    found = of(status, ConditionType.EVICTED)
    assert (found.status, found.reason, found.message) == ("True", "Preempted", PREEMPTED["message"])
    assert found.last_transition_time == at(60)
    assert of(status, ConditionType.ADMITTED).status == "False"
    last, before = status.timeline[-1], status.timeline[-2]
    assert (before.phase, before.started, before.ended) == (JobPhase.RUNNING, at(50), at(60))
    assert (last.phase, last.started, last.reason) == (JobPhase.QUEUED, at(60), "Preempted")
    assert (status.step, status.restarts) == (running.step, 0)


def test_the_events_tell_of_the_eviction(running: LoraDpoJobStatus) -> None:
    observed = evicted(running)
    told = events.between(running, derived(observed, 70), observed.verdict)
    assert [(event.type, event.reason) for event in told] == [("Warning", "Evicted"), ("Normal", "Queued")]
    assert told[0].message == f"Preempted: {PREEMPTED['message']}"


def test_the_suspension_that_a_user_wants_is_no_eviction_to_tell_of(running: LoraDpoJobStatus) -> None:
    raw = a_job({"queueName": "tpus", "runPolicy": {"suspend": True}})
    jobset = a_jobset(21, condition("Suspended", 61), suspend=True, queue="tpus")
    out = condition("Evicted", 60, reason="Deactivated", message="The workload is deactivated")
    observed = held(jobset, out, raw=raw, status=running, active=False)
    told = events.between(running, derived(observed, 70), observed.verdict)
    assert [(event.type, event.reason) for event in told] == [("Normal", "Suspended")]


def test_a_job_that_is_admitted_again_goes_on_from_its_checkpoint(running: LoraDpoJobStatus) -> None:
    waits = derived(evicted(running), 70)
    jobset = a_jobset(21, condition("Suspended", 91, "False", "ResumeJobs"), queue="tpus")
    again = condition("Admitted", 90, reason="Admitted", message="The workload is admitted")
    observed = held(jobset, RESERVED, again, READMITTED, status=waits)
    status = derived(observed, 95)
    found = of(status, ConditionType.EVICTED)
    assert (found.status, found.reason) == ("False", "QuotaReserved")
    assert [entry.phase.value for entry in status.timeline][-4:] == [
        "Initializing",
        "Running",
        "Queued",
        "Initializing",
    ]
    assert status.timeline[-1].started == at(90)
    (told,) = events.between(waits, status, observed.verdict)
    assert told.message == "The slice starts again from its last checkpoint"


REFUSALS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "a queue that does not exist": (
        {"conditions": [condition("QuotaReserved", 22, "False", "Inadmissible", "LocalQueue tpus doesn't exist")]},
        "LocalQueueNotFound",
        "Inadmissible",
        "create the LocalQueue tpus",
    ),
    "a queue whose quota comes from nowhere": (
        {"conditions": [condition("QuotaReserved", 22, "False", "Inadmissible", "ClusterQueue pool doesn't exist")]},
        "WaitingForQueue",
        "Inadmissible",
        "the ClusterQueue pool has to be repaired",
    ),
    "more than the queue has": (
        {
            "conditions": [
                condition(
                    *("QuotaReserved", 22, "False", "Pending"),
                    "insufficient quota for google.com/tpu in flavor v5p, request > maximum capacity (16 > 8)",
                )
            ]
        },
        "WaitingForQueue",
        "Pending",
        "the queue will never have so much google.com/tpu",
    ),
    "a workload that was deactivated": (
        {
            "active": False,
            "conditions": [condition("Evicted", 60, reason="Deactivated", message="The workload is deactivated")],
        },
        "WaitingForQueue",
        "Deactivated",
        "spec.active of its workload",
    ),
    "an admission check": (
        {
            "conditions": [RESERVED],
            "checks": ({"name": "capacity", "state": "Pending", "message": "nodes are being made"},),
        },
        "WaitingForQueue",
        "AdmissionCheck",
        "capacity is Pending: nodes are being made",
    ),
    "a workload that Kueue could not start": (
        {
            "conditions": [
                RESERVED,
                ADMITTED,
                condition("Finished", 45, reason="FailedToStart", message="in podSet slice: conflict for nodeSelector"),
            ]
        },
        "WaitingForQueue",
        "Admitted",
        "conflict for nodeSelector",
    ),
    "a Kueue that has not looked yet": ({"conditions": []}, "WaitingForQueue", "Pending", "has not looked"),
}


@pytest.mark.parametrize(("workload", "queued", "admitted", "said"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_keeps_a_job_in_its_queue_is_named(
    workload: dict[str, Any], queued: str, admitted: str, said: str
) -> None:
    conditions = workload.pop("conditions")
    status = derived(held(WAITS, *conditions, **workload))
    assert status.phase is JobPhase.QUEUED
    assert of(status, ConditionType.QUEUED).reason == queued
    assert of(status, ConditionType.ADMITTED).reason == admitted
    assert status.message is not None
    assert said in status.message


def test_a_controller_that_makes_no_workload_is_suspected() -> None:
    status = derived(observe(QUEUED_JOB, status=prepared_status(), jobset=WAITS))
    assert status.message is not None
    assert "Kueue has not taken it up yet" in status.message
    assert "kubectl get pods -n kueue-system" in status.message


def test_suspending_a_job_in_a_queue_is_its_users_doing_not_kueues() -> None:
    raw = a_job({"queueName": "tpus", "runPolicy": {"suspend": True, "queueTimeout": "1m"}})
    gone = condition("Evicted", 60, reason="Deactivated", message="The workload is deactivated")
    status = derived(held(WAITS, gone, raw=raw, active=False), 1000)
    assert status.phase is JobPhase.SUSPENDED
    assert of(status, ConditionType.SUSPENDED).status == "True"


def test_a_suspended_job_whose_slice_was_never_made_is_suspended() -> None:
    raw = a_job({"queueName": "tpus", "runPolicy": {"suspend": True}})
    assert derived(observe(raw, status=prepared_status())).phase is JobPhase.SUSPENDED


def test_a_preparation_that_kueue_has_put_into_a_default_queue_waits_there() -> None:
    waits = a_batch_job(Phase.PREPARE, 1, condition("Suspended", 1), suspend=True, queue="default")
    no_quota = condition("QuotaReserved", 2, "False", "Pending", "insufficient unused quota for cpu")
    status = derived(observe(prepare=waits, workload=a_workload(waits, no_quota)), 10)
    assert status.phase is JobPhase.QUEUED
    assert status.message is not None
    assert status.message.startswith("tiny-prepare is waiting in the queue default: insufficient unused quota")
    assert of(status, ConditionType.PREPARED).message == status.message
    assert [(entry.phase.value, entry.started) for entry in status.timeline] == [("Pending", at(0)), ("Queued", at(1))]

    begins = waits.model_copy(
        update={
            "spec": waits.spec.model_copy(update={"suspend": False}),
            "status": waits.status.model_copy(update={"start_time": at(30)}),
        }
    )
    status = derived(observe(prepare=begins, status=status), 31)
    assert [(entry.phase.value, entry.started) for entry in status.timeline][1:] == [
        ("Queued", at(1)),
        ("Preparing", at(30)),
    ]


def test_an_export_in_a_default_queue_says_what_it_waits_for() -> None:
    done = a_jobset(21, condition("Completed", 59))
    waits = a_batch_job(Phase.EXPORT, 60, condition("Suspended", 60), suspend=True, queue="default")
    no_quota = condition("QuotaReserved", 61, "False", "Pending", "insufficient unused quota for cpu")
    status = derived(observe(status=prepared_status(), jobset=done, export=waits, workload=a_workload(waits, no_quota)))
    assert status.phase is JobPhase.EXPORTING
    assert status.message is not None
    assert status.message.startswith("tiny-export is waiting in the queue default")


def test_kueues_labels_reach_the_jobset() -> None:

    labels = {"kueue.x-k8s.io/queue-name": "tpus", "kueue.x-k8s.io/priority-class": "urgent", "team": "a"}
    found = jobset.build(blueprint(a_job(labels=labels)))["metadata"]["labels"]
    assert found["kueue.x-k8s.io/queue-name"] == "tpus"
    assert found["kueue.x-k8s.io/priority-class"] == "urgent"
    assert "team" not in found


def test_the_wait_of_a_job_that_was_resumed_begins_when_it_is_in_its_queue_again() -> None:
    raw = a_job({"queueName": "tpus", "runPolicy": {"queueTimeout": "1m"}})
    jobset = a_jobset(21, condition("Suspended", 100), suspend=True, queue="tpus")
    out = condition("Evicted", 99, reason="Deactivated", message="The workload is deactivated")
    lost = condition("QuotaReserved", 100, "False", "Pending", "The workload is deactivated")
    suspended = prepared_status(
        phase=JobPhase.SUSPENDED, timeline=[PhaseTime(phase=JobPhase.SUSPENDED, started=at(99))]
    )
    not_yet = held(jobset, out, lost, raw=raw, status=suspended)
    status = derived(not_yet, 500)
    assert [(entry.phase.value, entry.started, entry.reason) for entry in status.timeline][-1] == (
        "Queued",
        at(500),
        "WaitingForQueue",
    )
    back = condition("Requeued", 501, reason="Reactivated", message="The workload was reactivated")
    assert derived(held(jobset, out, lost, back, raw=raw, status=suspended), 560).phase is JobPhase.QUEUED
    assert derived(held(jobset, out, lost, back, raw=raw, status=suspended), 562).phase is JobPhase.FAILED
