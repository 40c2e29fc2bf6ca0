"""What restarts cost, and which of them lead nowhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lora_dpo_api.protocol import Checkpoint, Phase, TrainerState
from lora_dpo_api.status import ConditionType, Crash, JobPhase, LoraDpoJobStatus
from lora_dpo_operator import crashes, derive, names, plan
from lora_dpo_operator.nodes import Node
from lora_dpo_operator.objects import JobSet
from lora_dpo_operator.observed import Observed

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
    train_report,
)

PREPARE = a_batch_job(Phase.PREPARE, 1, condition("Complete", 20))


def running(**fields: Any) -> Observed:
    attempt = fields.pop("attempt", 0)
    pods = (a_pod(Phase.TRAIN, 21 + attempt, attempt=attempt, running=25 + attempt),)
    defaults: dict[str, Any] = {
        "status": prepared_status(),
        "prepare": PREPARE,
        "jobset": a_jobset(21, restarts=attempt),
        "pods": pods,
        "report": progress(attempt=attempt),
    }
    return observe(**(defaults | fields))


def crash(attempt: int, step: int | None, checkpoint: int | None) -> Crash:
    return Crash(attempt=attempt, step=step, checkpoint_step=checkpoint, exit_code=70)


LOOPS: dict[str, tuple[list[Crash], bool]] = {
    "three at one step": ([crash(0, 9, 8), crash(1, 9, 8), crash(2, 9, 8)], True),
    "before any step": ([crash(0, None, None), crash(1, None, None), crash(2, None, None)], True),
    "later ones do not even get so far": ([crash(0, 9, 8), crash(1, None, 8), crash(2, 8, 8)], True),
    "two": ([crash(0, 9, 8), crash(1, 9, 8)], False),
    "a checkpoint in between": ([crash(0, 9, 8), crash(1, 9, 8), crash(2, 9, 9)], False),
    "a step further": ([crash(0, 9, 8), crash(1, 9, 8), crash(2, 10, 8)], False),
    "a preemption in between": ([crash(0, 9, 8), crash(1, 9, 8), crash(3, 9, 8)], False),
    "progress long ago": ([crash(0, 1, 0), crash(1, 9, 8), crash(2, 9, 8), crash(3, 9, 8)], True),
}


@pytest.mark.parametrize(("record", "loop"), LOOPS.values(), ids=LOOPS)
def test_a_loop_is_three_crashes_in_a_row_without_progress(record: list[Crash], loop: bool) -> None:
    assert crashes.in_a_loop(record) is loop


def test_steps_that_nobody_saw_before_a_crash_are_no_progress() -> None:
    seen = [crash(0, 7, None), crash(1, 9, None), crash(2, 8, None)]
    assert not crashes.in_a_loop(seen, unseen=1)
    assert crashes.in_a_loop(seen, unseen=2)
    assert not crashes.in_a_loop([crash(0, 9, 8), crash(1, 9, 8), crash(2, 9, 9)], unseen=9)


@pytest.mark.parametrize(
    ("eta_seconds", "loop"),
    [(12.0, True), (120.0, False), (5e-324, True)],
    ids=["quick steps", "slow steps", "steps that take no time"],
)
def test_a_loop_of_crashes_that_leave_no_report_is_seen_whenever_they_were_polled(
    eta_seconds: float, loop: bool
) -> None:
    # They all crash behind step 9, and were last polled up to 10 s before that.
    status = prepared_status()
    for attempt, polled in enumerate((7, 9, 8)):
        end = a_pod(Phase.TRAIN, 30, attempt=attempt, ended=(60, 139), reason="Error")
        report = progress(step=polled, attempt=attempt, updated=51, eta_seconds=eta_seconds)
        status = derive.status(running(attempt=attempt, pods=(), gone=(end,), report=report, status=status), at(100))
    assert (status.phase is JobPhase.FAILED) is loop


def crashed(attempt: int, status: LoraDpoJobStatus, **report: Any) -> Observed:
    said = train_report(70, "InternalError", message="boom", progress=progress(step=9, attempt=attempt, **report))
    pod = a_pod(Phase.TRAIN, 30 + attempt, attempt=attempt, ended=(60 + attempt, 70), message=said)
    return running(attempt=attempt, pods=(), gone=(pod,), report=None, status=status)


def test_a_crash_loop_ends_the_job_with_that_said_and_gives_the_slice_back() -> None:
    saved = Checkpoint(step=8, time=at(40), path="gs://bucket/runs/tiny/checkpoints/step-00000008")
    status = prepared_status()
    for attempt in (0, 1):
        seen = derive.status(crashed(attempt, status, last_checkpoint=saved), at(100))
        status = derive.status(crashed(attempt, seen, last_checkpoint=saved), at(101))
        assert status.phase is not JobPhase.FAILED
    assert [entry.attempt for entry in status.crashes] == [0, 1]
    third = crashed(2, status, last_checkpoint=saved)
    failed = derive.status(third, at(102))
    assert failed.phase is JobPhase.FAILED
    assert failed.failure is not None
    assert (failed.failure.class_, failed.failure.reason, failed.failure.exit_code) == ("Internal", "CrashLoop", 70)
    assert "crashed 3 times in a row and was seen to get no further than step 9 (the last checkpoint is of step 8)" in (
        failed.failure.message
    )
    assert "boom" in failed.failure.message
    assert plan.release(dataclasses.replace(third, status=failed), at(102)) == (plan.Delete(plan.JOBSETS, "tiny"),)


@pytest.mark.parametrize(
    ("pods", "recorded"),
    [
        ((a_pod(Phase.TRAIN, 30, ended=(60, 139)),), 1),
        ((a_pod(Phase.TRAIN, 30, ended=(60, 42), message=train_report(42, "Preempted")),), 0),
        ((a_pod(Phase.TRAIN, 30, ended=(60, 69), message=train_report(69, "Unreachable")),), 0),
        (
            (
                a_pod(Phase.TRAIN, 30, host=0, ended=(60, 134)),
                a_pod(Phase.TRAIN, 30, host=1, disrupted="DeletionByTaintManager"),
            ),
            0,
        ),
    ],
    ids=["a crash", "a preemption", "a bucket that does not answer", "the peer of a host that was taken away"],
)
def test_only_crashes_are_on_the_record(pods: Any, recorded: int) -> None:
    assert len(derive.status(running(pods=(), gone=pods, report=None), at(100)).crashes) == recorded


def test_steps_done_again_are_counted_once_the_new_attempt_knows_where_it_goes_on() -> None:
    status = derive.status(running(report=progress(step=9, updated=50)), at(50))
    assert (status.step, status.steps_lost) == (9, 0)
    loading = progress(TrainerState.LOADING, step=0, updated=60, attempt=1)
    status = derive.status(running(attempt=1, report=loading, status=status), at(60))
    assert (status.step, status.steps_lost, status.trainer_state) == (9, 0, "Loading")
    compiling = progress(TrainerState.COMPILING, step=6, updated=70, attempt=1, resumed_from_step=6)
    status = derive.status(running(attempt=1, report=compiling, status=status), at(70))
    assert (status.step, status.steps_lost) == (6, 3)
    on = progress(step=12, updated=80, attempt=1, resumed_from_step=6)
    status = derive.status(running(attempt=1, report=on, status=status), at(80))
    assert (status.step, status.steps_lost) == (12, 3)


def test_a_start_from_scratch_loses_all_steps_and_one_from_the_last_step_none() -> None:
    before = derive.status(running(report=progress(step=9, updated=50)), at(50))
    fresh = progress(TrainerState.REFERENCE, step=0, updated=70, attempt=1)
    assert derive.status(running(attempt=1, report=fresh, status=before), at(70)).steps_lost == 9
    exact = progress(step=11, updated=70, attempt=1, resumed_from_step=9)
    assert derive.status(running(attempt=1, report=exact, status=before), at(70)).steps_lost == 0


def test_a_host_that_went_with_its_node_is_named_though_nobody_knows_its_exit_code() -> None:
    lost = a_pod(Phase.TRAIN, 21, running=25, disrupted="DeletionByTaintManager")
    said = derive.status(running(pods=(lost,)), at(50))
    assert said.message == "node-1 is being taken away (DeletionByTaintManager): the slice saves and starts again"
    restarting = condition("RestartingJobSet", 51, reason="FailurePolicy_disruption")
    jobset = a_jobset(21, restarting, restarts=1, counted=0)
    status = derive.status(running(jobset=jobset, pods=(), gone=(lost,), status=said), at(60))
    assert (
        status.message
        == "The slice is being restarted (attempt 2) after node-1 was taken away (DeletionByTaintManager)"
    )
    assert status.disruption is not None
    assert (status.disruption.node, status.disruption.reason) == ("node-1", "DeletionByTaintManager")
    assert (status.failure, status.restarts, status.preemptions) == (None, 0, 1)
    later = running(attempt=1, status=status)
    assert derive.status(later, at(90)).disruption == status.disruption


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"cloud.google.com/scheduled-maintenance-time": "1767272400"}, "from 2026-01-01 13:00 UTC"),
        ({"cloud.google.com/active-node-maintenance": "ONGOING"}, "maintenance now"),
    ],
)
def test_announced_maintenance_is_shown_before_it_happens(labels: dict[str, str], words: str) -> None:
    node = Node.model_validate({"metadata": {"name": "node-1", "labels": labels}})
    status = derive.status(running(maintenance=(node,)), at(60))
    found = status.condition(ConditionType.MAINTENANCE)
    assert found is not None
    assert (found.status, found.reason) == ("True", "HostMaintenance")
    assert "node-1" in found.message
    assert words in found.message
    after = derive.status(running(status=status), at(90)).condition(ConditionType.MAINTENANCE)
    assert after is not None
    assert after.status == "False"
    assert derive.status(running(), at(60)).condition(ConditionType.MAINTENANCE) is None


def test_a_slice_without_a_step_for_a_quarter_of_an_hour_is_not_healthy() -> None:
    status = derive.status(running(report=progress(step=9, updated=50)), at(50))
    for updated, healthy in ((60, "True"), (949, "True"), (950, "False")):
        found = running(report=progress(step=9, updated=updated), status=status)
        status = derive.status(found, at(updated))
        said = status.condition(ConditionType.HEALTHY)
        assert said is not None
        assert said.status == healthy, updated
    assert said.reason == "Stalled"
    assert "No step was done for 15m (step 9, Training)" in said.message
    on = derive.status(running(report=progress(step=10, updated=960), status=status), at(960))
    assert on.condition(ConditionType.HEALTHY).status == "True"  # type: ignore[union-attr]


def made_again(**policy: Any) -> tuple[Observed, dict[str, Any]]:
    """A job whose JobSet was deleted by hand after a crash and two preemptions, and the manifest of the next one."""
    status = prepared_status(phase=JobPhase.RUNNING, restarts=1, preemptions=2)
    observed = running(raw=a_job({"runPolicy": policy}), status=status, jobset=None, pods=(), report=None)
    made = [action for action in plan.actions(observed, SETTINGS) if isinstance(action, plan.Create)]
    return observed, made[-1].manifest


def test_a_jobset_that_is_made_again_goes_on_counting() -> None:
    observed, manifest = made_again()
    made = JobSet.model_validate(manifest)
    new = dataclasses.replace(observed, jobset=made)
    assert derive.status(observed, at(99)).restarts == 1
    status = derive.status(new, at(100))
    assert (status.restarts, status.preemptions) == (1, 2)
    later = made.model_copy(update={"status": a_jobset(100, restarts=3, counted=1).status})
    status = derive.status(dataclasses.replace(new, jobset=later, status=status), at(110))
    assert (status.restarts, status.preemptions) == (2, 4)
    assert [entry.phase for entry in status.timeline].count(JobPhase.RESTARTING) == 1


@pytest.mark.parametrize(("allowed", "left"), [(5, 4), (1, 0), (0, 0)])
def test_a_jobset_that_is_made_again_has_only_the_restarts_that_are_left(allowed: int, left: int) -> None:
    _, manifest = made_again(maxRestarts=allowed)
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == left


@pytest.mark.parametrize("written", ["many", "-1", "\N{SUPERSCRIPT TWO}", "9" * 5000], ids=len)
def test_a_count_that_somebody_wrote_over_is_none(written: str) -> None:
    _, manifest = made_again()
    manifest["metadata"]["annotations"][names.RESTARTS_ANNOTATION] = written
    assert derive.status(running(jobset=JobSet.model_validate(manifest)), at(100)).restarts == 0
