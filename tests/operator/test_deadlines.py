"""How long a slice may wait, start and be held."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest

from lora_dpo_api.protocol import Phase, TrainerState
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus
from lora_dpo_operator import deadlines, derive, plan
from lora_dpo_operator.objects import Job
from lora_dpo_operator.observed import Observed, Poll

from .builders import (
    SETTINGS,
    a_batch_job,
    a_job,
    a_jobset,
    a_pod,
    at,
    condition,
    observe,
    prepared_status,
    progress,
    when,
)

TWO_HOSTS = {"cpu": {"hosts": 2}}
LIMITED = {"runPolicy": {"queueTimeout": "1m", "startupTimeout": "2m", "activeDeadline": "10m"}}
PREPARED = a_batch_job(Phase.PREPARE, 1, condition("Complete", 20))
SUSPENDED = condition("Suspended", 300)
RESUMED = condition("Suspended", 400, "False")


def job(**fields: Any) -> Observed:
    """A prepared job on two hosts with short limits, whose JobSet was made after 100 s."""
    spec = TWO_HOSTS | LIMITED | fields.pop("spec", {})
    defaults: dict[str, Any] = {"status": prepared_status(), "prepare": PREPARED, "jobset": a_jobset(100)}
    return observe(a_job(spec), **(defaults | fields))


def hosts(created: int = 100, **fields: Any) -> tuple[Any, ...]:
    return tuple(a_pod(Phase.TRAIN, created, host=host, **fields) for host in (0, 1))


NO_NODE = hosts(unschedulable="0/3 nodes are available: 3 Insufficient google.com/tpu.")
HALF = (a_pod(Phase.TRAIN, 100, scheduled=130, running=140), NO_NODE[1])
WHOLE = hosts(scheduled=130, running=140)
COMPILING = progress(TrainerState.COMPILING, step=0, since=150, updated=160)
HELD = prepared_status(phase=JobPhase.RUNNING, held_since=at(130))

CASES: dict[str, tuple[Observed, tuple[str, int] | None]] = {
    "nothing is limited before there is a slice": (job(jobset=None), None),
    "the wait counts from the JobSet on": (job(pods=NO_NODE), ("QueueTimeout", 160)),
    "also for quota": (
        job(spec={"queueName": "tpus"}, jobset=a_jobset(100, suspend=True, queue="tpus")),
        ("QueueTimeout", 160),
    ),
    "and after an eviction, from then on": (
        job(spec={"queueName": "tpus"}, jobset=a_jobset(100, SUSPENDED, suspend=True, queue="tpus")),
        ("QueueTimeout", 360),
    ),
    "once more after a restart": (
        job(jobset=a_jobset(100, restarts=1), pods=hosts(500, attempt=1, unschedulable="no node")),
        ("QueueTimeout", 560),
    ),
    "without queueTimeout it may wait for ever": (
        job(spec={"runPolicy": {"startupTimeout": "2m"}}, pods=NO_NODE),
        None,
    ),
    "who is suspended waits for nothing": (
        job(spec={"runPolicy": LIMITED["runPolicy"] | {"suspend": True}}, jobset=a_jobset(100, suspend=True)),
        None,
    ),
    "half a gang holds its hosts for nothing": (
        job(spec={"runPolicy": {"startupTimeout": "2m"}}, pods=HALF),
        ("StartupTimeout", 250),
    ),
    "the start counts from the last host's node": (
        job(pods=(WHOLE[0], a_pod(Phase.TRAIN, 100, host=1, scheduled=150, running=160)), report=COMPILING),
        ("StartupTimeout", 270),
    ),
    "a container that does not start has not trained": (
        job(pods=(WHOLE[0], a_pod(Phase.TRAIN, 100, host=1, waiting=("ImagePullBackOff", "not found")))),
        ("StartupTimeout", 250),
    ),
    "after resuming it counts anew": (
        job(
            jobset=a_jobset(100, RESUMED),
            pods=hosts(401, scheduled=410, running=420),
            report=progress(TrainerState.LOADING, step=0, since=425, updated=430),
        ),
        ("StartupTimeout", 530),
    ),
    "who trains has started": (job(pods=WHOLE, report=progress(since=200, updated=210)), ("DeadlineExceeded", 730)),
    "who cannot be asked may train": (
        job(pods=WHOLE, poll=Poll(report=COMPILING, failures=3, error="no answer")),
        ("DeadlineExceeded", 730),
    ),
    "nor can one that was not asked yet": (job(pods=WHOLE), ("DeadlineExceeded", 730)),
    "the time held is not longer for a restart": (
        job(
            jobset=a_jobset(100, restarts=1),
            status=HELD,
            pods=hosts(600, attempt=1, scheduled=601, running=602),
            report=progress(attempt=1, since=610, updated=620),
        ),
        ("DeadlineExceeded", 730),
    ),
    "a pause does not count": (
        job(
            jobset=a_jobset(100, RESUMED),
            status=prepared_status(active_seconds=170),
            pods=hosts(401, scheduled=410, running=420),
            report=progress(since=430, updated=440),
        ),
        ("DeadlineExceeded", 410 + 600 - 170),
    ),
    "nor one that nobody saw": (
        job(
            jobset=a_jobset(100, RESUMED),
            status=prepared_status(held_since=at(130), last_progress_time=at(290)),
            pods=hosts(401, scheduled=410, running=420),
            report=progress(since=430, updated=440),
        ),
        ("DeadlineExceeded", 410 + 600 - 160),
    ),
    "a trained slice has no limits": (job(jobset=a_jobset(100, condition("Completed", 500)), status=HELD), None),
    "nor has one that has failed": (job(jobset=a_jobset(100, condition("Failed", 500)), status=HELD), None),
}


@pytest.mark.parametrize(("observed", "expected"), CASES.values(), ids=CASES.keys())
def test_the_first_limit_follows_from_the_objects_own_times(
    observed: Observed, expected: tuple[str, int] | None
) -> None:
    found = min(deadlines.limits(observed, at(5000)), key=lambda limit: limit.due, default=None)
    assert (found and (found.reason, found.due)) == (expected and (expected[0], at(expected[1])))
    # A second later: until then it may be early, by the second's part that the objects' own times lack.
    assert deadlines.next_due(observed, at(5000)) == (found.due + datetime.timedelta(seconds=1) if found else None)


@pytest.mark.parametrize(("observed", "expected"), [case for case in CASES.values() if case[1]], ids=str)
def test_a_limit_that_is_reached_fails_the_job_and_gives_the_slice_back(
    observed: Observed, expected: tuple[str, int]
) -> None:
    reason, due = expected
    before = derive.status(observed, at(due - 1))
    assert before.phase is not JobPhase.FAILED
    assert plan.release(dataclasses.replace(observed, status=before), at(due)) == ()
    failed = derive.status(observed, at(due + 30))
    assert failed.phase is JobPhase.FAILED
    assert failed.failure is not None
    assert (failed.failure.class_, failed.failure.reason, failed.failure.time) == ("Deadline", reason, at(due))
    assert failed.completion_time == at(due)
    assert failed.failure.hint
    assert [action.name for action in plan.release(dataclasses.replace(observed, status=failed), at(due))] == ["tiny"]


@pytest.mark.parametrize("pods", [NO_NODE, HALF], ids=["no host", "a part of the gang"])
def test_a_slice_that_never_had_all_its_hosts_goes_from_the_queue_to_its_failure(pods: tuple[Any, ...]) -> None:
    waits = derive.status(job(pods=pods), at(140))
    assert waits.timeline[-1].phase is JobPhase.QUEUED
    failed = derive.status(job(pods=pods, status=waits), at(5000))
    assert [entry.phase for entry in failed.timeline[-2:]] == [JobPhase.QUEUED, JobPhase.FAILED]


def test_the_failure_says_what_the_slice_waited_for() -> None:
    status = derive.status(job(pods=NO_NODE), at(1000))
    assert status.failure is not None
    assert "queueTimeout (1m)" in status.failure.message
    assert "Insufficient google.com/tpu" in status.failure.message
    half = derive.status(job(spec={"runPolicy": {"startupTimeout": "2m"}}, pods=HALF), at(1000)).failure
    assert half is not None
    assert "Only 1 of 2 hosts got a node within spec.runPolicy.startupTimeout (2m)" in half.message
    compiling = derive.status(job(pods=WHOLE, report=COMPILING), at(1000)).failure
    assert compiling is not None
    assert "no first step within spec.runPolicy.startupTimeout (2m)" in compiling.message
    assert "The train step is being compiled" in compiling.message
    assert compiling.node == "node-1"


def test_the_time_held_is_told_and_ends_with_every_pause() -> None:
    trains = job(pods=WHOLE, report=progress(since=200, updated=210))
    status = derive.status(trains, at(220))
    assert (status.held_since, status.active_seconds) == (at(130), None)
    paused = job(jobset=a_jobset(100, SUSPENDED, suspend=True), status=status)
    status = derive.status(paused, at(350))
    assert (status.held_since, status.active_seconds) == (None, 170)
    again = job(jobset=a_jobset(100, RESUMED), status=status, pods=hosts(401, scheduled=410, running=420))
    status = derive.status(again, at(500))
    assert (status.held_since, status.active_seconds) == (at(410), 170)
    done = job(jobset=a_jobset(100, RESUMED, condition("Completed", 460)), status=status)
    status = derive.status(done, at(500))
    assert (status.held_since, status.active_seconds) == (None, 220)


def test_a_failed_job_keeps_what_has_ended_so_that_its_logs_can_be_read() -> None:
    ended = job(jobset=a_jobset(100, condition("Failed", 500)), status=LoraDpoJobStatus(phase=JobPhase.FAILED))
    assert plan.release(ended, at(900)) == ()


def a_slice_job(seconds: int, *, started: int = 101) -> Job:
    return Job.model_validate(
        {
            "metadata": {"name": "tiny-slice-0"},
            "spec": {"activeDeadlineSeconds": seconds},
            "status": {"startTime": when(started)},
        }
    )


def test_kubernetes_ends_a_held_slice_too_should_the_operator_be_away() -> None:
    fresh = job(pods=WHOLE, status=HELD, slice_jobs=(a_slice_job(605_400),))
    held = (130 - 101) + 600 + plan.AWAY_SECONDS
    assert plan.actions(fresh, SETTINGS) == (plan.SetDeadline("tiny-slice-0", held),)
    assert plan.actions(dataclasses.replace(fresh, slice_jobs=(a_slice_job(held),)), SETTINGS) == ()
    waits = dataclasses.replace(fresh, status=prepared_status())
    assert plan.actions(waits, SETTINGS) == ()
