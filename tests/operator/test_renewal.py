"""Starting again: what a retry and an edit while suspended take away, keep and make anew; and how long a job stays."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import ConditionType, Failure, JobPhase, LoraDpoJobStatus
from lora_dpo_operator import accept, derive, lifetime, plan, renewal
from lora_dpo_operator.observed import Accepted, Observed

from .builders import (
    LATEST,
    NAME,
    SETTINGS,
    UID,
    a_batch_job,
    a_job,
    a_jobset,
    a_pod,
    at,
    condition,
    observe,
    prepare_report,
    prepared_status,
    progress,
)

PREPARE = a_batch_job(Phase.PREPARE, 1, condition("Complete", 20))
PREPARE_FAILED = a_batch_job(Phase.PREPARE, 1, condition("Failed", 9))
EXPORT_FAILED = a_batch_job(Phase.EXPORT, 60, condition("Failed", 65))
FAILURE = Failure(class_="Deadline", reason="DeadlineExceeded", message="too long")
GOING = {"deletion_timestamp": at(200)}


def spec_hash() -> str:
    verdict = accept.judge(a_job(), SETTINGS)
    assert isinstance(verdict, Accepted)
    return verdict.spec_hash


def failed(**fields: Any) -> LoraDpoJobStatus:
    first = derive.status(observe(prepare=PREPARE, status=prepared_status()), at(30))
    changes = {"phase": JobPhase.FAILED, "failure": FAILURE, "completion_time": at(100), "active_seconds": 50}
    return first.model_copy(update=changes | fields)


def asked(value: str = "1", spec: dict[str, Any] | None = None) -> dict[str, Any]:
    raw = a_job(spec)
    raw["metadata"]["annotations"] = {"training.loradpo.dev/retry": value}
    return raw


def told(observed: Observed) -> list[str]:
    renewed = renewal.renewed(observed)
    names = []
    for action in plan.actions(renewed, SETTINGS):
        assert isinstance(action, plan.Create | plan.Delete | plan.SetSuspend)
        name = action.name if isinstance(action, plan.Delete | plan.SetSuspend) else action.manifest["metadata"]["name"]
        names.append(f"{type(action).__name__} {name.split('-config-')[0]}")
    return names


RETRIES: dict[str, tuple[Observed, list[str]]] = {
    "nobody asks": (observe(status=failed()), []),
    "what was asked is not asked again": (observe(asked(), status=failed(retry="1")), []),
    "only a failed job": (observe(asked(), status=failed(phase=JobPhase.SUCCEEDED)), []),
    "a preparation that failed is made again": (
        observe(asked(), status=failed(prepared=None), prepare=PREPARE_FAILED),
        ["Delete tiny-prepare"],
    ),
    "one that succeeded is not": (
        observe(asked(), status=failed(), prepare=PREPARE, jobset=a_jobset(21, condition("Failed", 50))),
        ["Delete tiny"],
    ),
    "what goes is waited for": (
        observe(
            asked(),
            status=failed(),
            prepare=PREPARE,
            jobset=a_jobset(21).model_copy(update={"metadata": a_jobset(21).metadata.model_copy(update=GOING)}),
        ),
        [],
    ),
    "and so are its pods": (
        observe(asked(), status=failed(), prepare=PREPARE, pods=(a_pod(Phase.TRAIN, 21, running=25),)),
        [],
    ),
    "then the slice is made anew": (
        observe(asked(), status=failed(), prepare=PREPARE),
        ["Create tiny", "Create tiny"],
    ),
    "a failed export does not train again": (
        observe(
            asked(),
            status=failed(),
            prepare=PREPARE,
            jobset=a_jobset(21, condition("Completed", 59)),
            export=EXPORT_FAILED,
        ),
        ["Delete tiny-export"],
    ),
    "but exports again": (
        observe(asked(), status=failed(), prepare=PREPARE, jobset=a_jobset(21, condition("Completed", 59))),
        ["Create tiny", "Create tiny-export"],
    ),
    "a spec that was mended since is prepared again": (
        observe(asked(spec={"eval": {"everySteps": 7}}), status=failed(), prepare=PREPARE),
        ["Delete tiny-prepare"],
    ),
}


@pytest.mark.parametrize(("observed", "expected"), RETRIES.values(), ids=RETRIES)
def test_a_retry_takes_away_what_failed_and_goes_on_where_it_stopped(observed: Observed, expected: list[str]) -> None:
    assert told(observed) == expected


def test_a_job_that_is_tried_again_has_all_its_time_and_no_failure() -> None:
    again = renewal.renewed(observe(asked("2"), status=failed(retry="1", restarts=3, preemptions=1), prepare=PREPARE))
    made = dataclasses.replace(again, jobset=a_jobset(210))
    status = derive.status(made, at(211))
    assert (status.phase, status.failure, status.completion_time) == (JobPhase.INITIALIZING, None, None)
    assert (status.active_seconds, status.retry, status.prepared) == (None, "2", prepared_status().prepared)
    assert (again.status.restarts, again.status.preemptions) == (0, 0)


def test_the_failed_condition_is_false_again_after_a_retry() -> None:
    over = derive.status(observe(prepare=PREPARE_FAILED), at(30))
    assert over.condition(ConditionType.FAILED).status == "True"  # type: ignore[union-attr]
    again = derive.status(renewal.renewed(observe(asked(), status=over)), at(40))
    assert again.phase is JobPhase.PENDING
    found = again.condition(ConditionType.FAILED)
    assert found is not None
    assert (found.status, found.reason, found.last_transition_time) == ("False", "Retried", at(40))


def test_until_all_is_gone_a_failed_job_stays_failed_and_gets_no_second_deletion() -> None:
    waits = observe(asked(), status=failed(), prepare=PREPARE, jobset=a_jobset(21))
    assert derive.status(waits, at(300)) == waits.status
    assert plan.release(waits, at(300)) == ()


def test_an_annotation_from_before_the_failure_is_no_retry() -> None:
    status = derive.status(observe(asked(), prepare=PREPARE_FAILED), at(30))
    assert (status.phase, status.retry) == (JobPhase.FAILED, "1")
    assert not renewal.wanted(observe(asked(), prepare=PREPARE_FAILED, status=status))


def test_what_an_earlier_slice_left_behind_is_not_of_the_new_one() -> None:
    ended = a_pod(Phase.TRAIN, 25, ended=(58, 70), message="boom")
    fresh = observe(status=prepared_status(), prepare=PREPARE, jobset=a_jobset(210), gone=(ended,))
    status = derive.status(fresh, at(220))
    assert (status.phase, status.failure, status.crashes) == (JobPhase.INITIALIZING, None, [])
    old = a_pod(Phase.PREPARE, 1, ended=(19, 0), message=prepare_report())
    assert observe(prepare=a_batch_job(Phase.PREPARE, 100), gone=(old,)).prepared is None


PAUSED = prepared_status(phase=JobPhase.SUSPENDED, spec_hash=spec_hash(), config_map="tiny-config-old")
STOPPED = a_jobset(21, condition("Suspended", 80), suspend=True)
CHANGED = {"eval": {"everySteps": 7}}

EDITS: dict[str, tuple[Observed, list[str]]] = {
    "as long as it is suspended, nothing happens": (
        observe(a_job(CHANGED | {"runPolicy": {"suspend": True}}), status=PAUSED, prepare=PREPARE, jobset=STOPPED),
        [],
    ),
    "an unchanged spec just goes on": (
        observe(status=PAUSED, prepare=PREPARE, jobset=STOPPED),
        ["SetSuspend tiny"],
    ),
    "another deadline is no other spec": (
        observe(a_job({"runPolicy": {"activeDeadline": "48h"}}), status=PAUSED, prepare=PREPARE, jobset=STOPPED),
        ["SetSuspend tiny"],
    ),
    "another spec is made anew when it is resumed": (
        observe(a_job(CHANGED), status=PAUSED, prepare=PREPARE, jobset=STOPPED),
        ["Delete tiny", "Delete tiny-prepare"],
    ),
    "and prepared once more": (observe(a_job(CHANGED), status=PAUSED), ["Create tiny", "Create tiny-prepare"]),
    "what runs keeps its spec": (
        observe(
            a_job(CHANGED),
            status=PAUSED.model_copy(update={"phase": JobPhase.RUNNING}),
            prepare=PREPARE,
            jobset=a_jobset(21),
        ),
        [],
    ),
}


@pytest.mark.parametrize(("observed", "expected"), EDITS.values(), ids=EDITS)
def test_an_edit_while_suspended_applies_on_resume(observed: Observed, expected: list[str]) -> None:
    assert told(observed) == expected


def test_a_job_that_was_edited_while_suspended_gets_its_new_configuration() -> None:
    again = renewal.renewed(observe(a_job(CHANGED), status=PAUSED))
    status = derive.status(again, at(300))
    assert isinstance(again.verdict, Accepted)
    assert status.spec_hash == again.verdict.spec_hash != spec_hash()
    assert status.config_map != "tiny-config-old"


def test_an_edit_that_slipped_past_admission_is_said_and_not_followed() -> None:
    runs = observe(
        a_job(CHANGED),
        status=PAUSED.model_copy(update={"phase": JobPhase.RUNNING}),
        prepare=PREPARE,
        jobset=a_jobset(21),
        pods=(a_pod(Phase.TRAIN, 21, running=25),),
        report=progress(),
    )
    status = derive.status(runs, at(60))
    assert [entry.code for entry in status.advice] == ["SpecChangedWhileRunning"]
    assert status.spec_hash == spec_hash()


TTL = {"runPolicy": {"ttlAfterFinished": "10m"}}
LIVES: dict[str, tuple[Observed, int | None]] = {
    "without a time it stays": (observe(status=failed()), None),
    "with one, from its end on": (observe(a_job(TTL), status=failed()), 700),
    "also a good one": (observe(a_job(TTL), status=failed(phase=JobPhase.SUCCEEDED)), 700),
    "not while it runs": (observe(a_job(TTL), status=failed(phase=JobPhase.RUNNING, completion_time=None)), None),
    "not while it is tried again": (observe(asked(spec=TTL), status=failed()), None),
    "never, where the calendar ends": (observe(a_job(TTL), status=failed(completion_time=LATEST)), None),
}


@pytest.mark.parametrize(("observed", "expected"), LIVES.values(), ids=LIVES)
def test_a_finished_job_goes_when_its_time_is_over(observed: Observed, expected: int | None) -> None:
    assert lifetime.expires_at(observed) == (None if expected is None else at(expected))
    if expected is not None:
        assert lifetime.expiry_of(a_job(TTL), observed.status) == at(expected)
        assert plan.release(observed, at(expected - 1)) == ()
        assert plan.release(observed, at(expected)) == (plan.Delete(plan.LORA_DPO_JOBS, NAME, uid=UID),)


def test_a_slice_is_not_made_while_pods_of_an_earlier_one_live() -> None:
    deleted_by_hand = observe(status=prepared_status(), prepare=PREPARE, pods=(a_pod(Phase.TRAIN, 21, running=25),))
    assert plan.actions(deleted_by_hand, SETTINGS) == ()
