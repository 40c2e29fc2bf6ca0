"""What watches tell between two looks at a job: added where it goes as it should, else a reason to look."""

from __future__ import annotations

from typing import Any

import pytest

from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import JobPhase
from lora_dpo_operator import heard
from lora_dpo_operator.observed import Observed, Trouble

from .builders import (
    NAMESPACE,
    OWNER,
    a_batch_job,
    a_job,
    a_jobset,
    a_pod,
    a_workload,
    condition,
    merged,
    observe,
    prepared_status,
    when,
    wire,
)


def told(kind: str, model: Any, version: str = "9", **metadata: Any) -> dict[str, Any]:
    """As a watch shows it."""
    return merged(wire(model), {"kind": kind, "metadata": {"resourceVersion": version} | metadata})  # type: ignore[no-any-return]


def as_read[T](model: T, version: str = "5") -> T:
    """As it was when the job was looked at."""
    metadata = model.metadata.model_copy(update={"resource_version": version})  # type: ignore[attr-defined]
    return model.model_copy(update={"metadata": metadata})  # type: ignore[attr-defined, no-any-return]


def a_slice_job(*conditions: dict[str, Any]) -> dict[str, Any]:
    """The JobSet's Job, as a watch shows it."""
    owner = OWNER | {"kind": "JobSet", "name": "tiny", "uid": "uid-tiny"}
    metadata = {"name": "tiny-slice-0", "namespace": NAMESPACE, "uid": "uid-slice", "ownerReferences": [owner]}
    return {
        "kind": "Job",
        "metadata": metadata | {"resourceVersion": "9"},
        "spec": {},
        "status": {"conditions": list(conditions)},
    }


JOBSET = as_read(a_jobset(21))
POD = as_read(a_pod(Phase.TRAIN, 22, scheduled=23))
SEEN = observe(status=prepared_status(phase=JobPhase.INITIALIZING), jobset=JOBSET, pods=(POD,))
SUSPENDED = observe(
    a_job({"runPolicy": {"suspend": True}}), status=prepared_status(), jobset=as_read(a_jobset(21, suspend=True))
)


def test_what_goes_as_it_should_is_as_if_it_had_been_read() -> None:
    running = a_pod(Phase.TRAIN, 22, scheduled=23, running=30)
    found = heard.added(SEEN, [told("Pod", running), told("JobSet", a_jobset(21)), a_slice_job()])
    assert found is not None
    assert found.pods == (as_read(running, "9"),)
    assert found.leader is not None
    assert found.leader.alive
    assert found.jobset == as_read(JOBSET, "9")
    assert [job.metadata.uid for job in found.slice_jobs] == ["uid-slice"]
    assert {("uid-slice", "9"), ("uid-tiny", "9"), (POD.metadata.uid, "9")} <= found.versions
    assert found.status == SEEN.status


def test_a_new_pod_joins_those_that_were_seen() -> None:
    second = told("Pod", a_pod(Phase.TRAIN, 22, host=1, scheduled=23))
    found = heard.added(SEEN, [second])
    assert found is not None
    assert [pod.host_index for pod in found.pods] == [0, 1]


def test_a_suspended_jobset_that_says_so_is_added() -> None:
    said = told("JobSet", a_jobset(21, condition("Suspended", 22), suspend=True))
    found = heard.added(SUSPENDED, [said, a_slice_job(condition("Suspended", 22))])
    assert found is not None
    assert found.jobset is not None
    assert found.jobset.condition("Suspended") is not None


def test_what_is_older_than_what_was_read_is_left_out() -> None:
    late = told("Pod", a_pod(Phase.TRAIN, 22), version="4")
    assert heard.added(SEEN, [late, told("JobSet", a_jobset(21), version="5")]) == SEEN


def test_events_about_another_object_than_before_are_read_at_the_next_look() -> None:
    # Its container was being made; now there is none any more to wait for.
    waits = observe(jobset=JOBSET, pods=(POD,), status=prepared_status(), warnings=("old",))
    found = heard.added(waits, [told("Pod", a_pod(Phase.TRAIN, 22, scheduled=23, running=30))])
    assert found is not None
    assert found.warnings == ()
    kept = heard.added(waits, [told("JobSet", a_jobset(21))])
    assert kept is not None
    assert kept.warnings == ("old",)


PREPARE = Phase.PREPARE
PREPARING = observe(prepare=as_read(a_batch_job(Phase.PREPARE, 1)))
QUEUED = a_jobset(21, suspend=True, queue="tpus")
TO_LOOK_AT: dict[str, tuple[Observed, dict[str, Any]]] = {
    "a pod that ended": (SEEN, told("Pod", a_pod(Phase.TRAIN, 22, scheduled=23, ended=(40, 1)))),
    "a pod on its way out": (SEEN, told("Pod", a_pod(Phase.TRAIN, 22, deleted=40))),
    "a pod without a node": (SEEN, told("Pod", a_pod(Phase.TRAIN, 22, unschedulable="0/1 nodes are available"))),
    "a pod of an earlier job of that name": (
        SEEN,
        told("Pod", a_pod(Phase.TRAIN, 22), labels={"training.loradpo.dev/job-uid": "another"}),
    ),
    "a slice that starts anew": (SEEN, told("JobSet", a_jobset(21, restarts=1))),
    "a slice that is about to": (SEEN, told("JobSet", a_jobset(21, condition("RestartingJobSet", 40)))),
    "a slice that is done": (SEEN, told("JobSet", a_jobset(21, condition("Completed", 40)))),
    "a slice that failed": (SEEN, told("JobSet", a_jobset(21, condition("Failed", 40)))),
    "a slice that somebody suspends": (SEEN, told("JobSet", a_jobset(21, suspend=True))),
    "a slice that is let go on": (SUSPENDED, told("JobSet", a_jobset(21))),
    "a slice that is being deleted": (SEEN, told("JobSet", a_jobset(21), deletionTimestamp=when(40))),
    "another slice of that name": (SEEN, told("JobSet", a_jobset(21), uid="another")),
    "a slice that nobody made here": (PREPARING, told("JobSet", a_jobset(21))),
    "a slice that Kueue takes up": (SEEN, told("JobSet", a_jobset(21, queue="tpus"))),
    "a prepare that is done": (PREPARING, told("Job", a_batch_job(PREPARE, 1, condition("Complete", 20)))),
    "a prepare whose time is up": (PREPARING, told("Job", a_batch_job(PREPARE, 1, condition("FailureTarget", 9)))),
    "a prepare that somebody suspends": (PREPARING, told("Job", a_batch_job(PREPARE, 1, suspend=True))),
    "an export that nobody made here": (SEEN, told("Job", a_batch_job(Phase.EXPORT, 40))),
    "a slice's Job that failed": (SEEN, a_slice_job(condition("Failed", 40))),
    "the job itself": (SEEN, a_job() | {"kind": "LoraDpoJob"}),
    "versions that are no numbers": (SEEN, told("Pod", a_pod(Phase.TRAIN, 22), version="abc")),
    "a job in a queue": (observe(a_job({"queueName": "tpus"}), jobset=QUEUED), told("JobSet", QUEUED)),
    "a slice that Kueue has by itself": (
        observe(jobset=JOBSET, workload=a_workload(JOBSET), status=prepared_status()),
        told("JobSet", a_jobset(21)),
    ),
    "after a refusal": (
        observe(prepare=PREPARING.prepare, trouble=Trouble(reason="Quota", message="full", final=False)),
        told("Job", a_batch_job(PREPARE, 1)),
    ),
    "a job that has failed": (
        observe(jobset=JOBSET, pods=(POD,), status=prepared_status(phase=JobPhase.FAILED)),
        told("Pod", a_pod(Phase.TRAIN, 22, scheduled=23, running=30)),
    ),
    "a spec that is refused": (
        observe(a_job({"trainer": {"trainBatchSize": 0}}), prepare=PREPARING.prepare),
        told("Job", a_batch_job(PREPARE, 1)),
    ),
}


@pytest.mark.parametrize(("observed", "news"), TO_LOOK_AT.values(), ids=TO_LOOK_AT.keys())
def test_all_else_is_a_reason_to_look(observed: Observed, news: dict[str, Any]) -> None:
    assert heard.added(observed, [news]) is None
