from __future__ import annotations

import dataclasses

import pytest

from lora_dpo_api.protocol import ExitCode, Metrics, Phase, TrainerState
from lora_dpo_api.status import ConditionType, JobPhase, LoraDpoJobStatus
from lora_dpo_operator import derive, events
from lora_dpo_operator.objects import EventView
from lora_dpo_operator.observed import Observed, Poll, Trouble
from lora_dpo_operator.settings import Settings

from .builders import (
    NAME,
    PREPARED,
    SETTINGS,
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
    train_report,
)

NOW = at(1000)
PREPARE = a_batch_job(Phase.PREPARE, 1)
PREPARE_DONE = a_batch_job(Phase.PREPARE, 1, condition("Complete", 20))
EXPORT = a_batch_job(Phase.EXPORT, 60)
EXPORT_DONE = a_batch_job(Phase.EXPORT, 60, condition("Complete", 70))
TPU = {"cpu": None, "tpu": {"machineType": "ct5lp-hightpu-4t", "topology": "4x4"}}
QUEUED_JOB = a_job({"queueName": "tpu-queue"})


def derived(observed: Observed) -> LoraDpoJobStatus:
    return derive.status(observed, NOW)


def running(**fields: object) -> Observed:
    """A job in the middle of training."""
    pods = (a_pod(Phase.TRAIN, 21, running=25),)
    defaults = {"status": prepared_status(), "prepare": PREPARE_DONE, "jobset": a_jobset(21), "pods": pods}
    return observe(**({"report": progress()} | defaults | fields))  # type: ignore[arg-type]


def phases(status: LoraDpoJobStatus) -> list[str]:
    return [entry.phase.value for entry in status.timeline]


PHASES = {
    "nothing exists yet": (observe(), JobPhase.PENDING),
    "a refused spec waits to be corrected": (
        observe(a_job({"tpu": {"topology": "9x9"}, "cpu": None})),
        JobPhase.PENDING,
    ),
    "prepare has been made": (observe(prepare=PREPARE), JobPhase.PREPARING),
    "prepare is suspended": (observe(prepare=a_batch_job(Phase.PREPARE, 1, suspend=True)), JobPhase.SUSPENDED),
    "prepare has failed": (
        observe(prepare=a_batch_job(Phase.PREPARE, 1, condition("Failed", 9, message="x"))),
        JobPhase.FAILED,
    ),
    "prepare is done, the JobSet not made": (
        observe(prepare=PREPARE_DONE, pods=(a_pod(Phase.PREPARE, 1, ended=(19, 0), message=prepare_report()),)),
        JobPhase.PREPARING,
    ),
    "prepare's pod is gone before its report was read": (observe(prepare=PREPARE_DONE), JobPhase.PREPARING),
    "a fresh JobSet has no conditions": (observe(status=prepared_status(), jobset=a_jobset(21)), JobPhase.INITIALIZING),
    "hosts have no node": (
        observe(
            status=prepared_status(),
            jobset=a_jobset(21),
            pods=(a_pod(Phase.TRAIN, 21, unschedulable="0/1 nodes have google.com/tpu"),),
        ),
        JobPhase.QUEUED,
    ),
    "Kueue holds the JobSet": (
        observe(QUEUED_JOB, status=prepared_status(), jobset=a_jobset(21, suspend=True, queue="tpu-queue")),
        JobPhase.QUEUED,
    ),
    "the user suspended it": (observe(status=prepared_status(), jobset=a_jobset(21, suspend=True)), JobPhase.SUSPENDED),
    "a resumed JobSet keeps its condition Suspended=False": (
        observe(status=prepared_status(), jobset=a_jobset(21, condition("Suspended", 30, "False", "ResumeJobs"))),
        JobPhase.INITIALIZING,
    ),
    "a JobSet that goes on, and does not say so yet, does not train on the word of before": (
        running(
            status=prepared_status(phase=JobPhase.SUSPENDED), jobset=a_jobset(21, condition("Suspended", 60)), pods=()
        ),
        JobPhase.INITIALIZING,
    ),
    "the model is being loaded": (
        running(report=progress(TrainerState.LOADING, step=0)),
        JobPhase.INITIALIZING,
    ),
    "the step is being compiled": (running(report=progress(TrainerState.COMPILING, step=0)), JobPhase.INITIALIZING),
    "the first step is done": (running(), JobPhase.RUNNING),
    "an evaluation is training": (running(report=progress(TrainerState.EVALUATING)), JobPhase.RUNNING),
    "a report of the attempt before says nothing": (
        running(jobset=a_jobset(21, restarts=1), pods=(a_pod(Phase.TRAIN, 60, attempt=1, running=61),)),
        JobPhase.INITIALIZING,
    ),
    "the operator was restarted while it ran, and rank 0 does not answer": (
        running(report=None, status=prepared_status(phase=JobPhase.RUNNING)),
        JobPhase.RUNNING,
    ),
    "someone has deleted the slice's Job, and its pod is made again in the same attempt": (
        running(
            status=prepared_status(phase=JobPhase.RUNNING),
            pods=(
                a_pod(Phase.TRAIN, 21, ended=(55, 42), message=train_report(42, "Preempted"), deleted=50),
                a_pod(Phase.TRAIN, 56, waiting=("ContainerCreating", "")),
            ),
            report=None,
        ),
        JobPhase.INITIALIZING,
    ),
    "its new pod loads the model": (
        running(
            status=prepared_status(phase=JobPhase.RUNNING),
            pods=(a_pod(Phase.TRAIN, 56, running=57),),
            report=progress(TrainerState.LOADING, step=0, updated=58),
        ),
        JobPhase.INITIALIZING,
    ),
    "its new pod has no node": (
        running(
            status=prepared_status(phase=JobPhase.RUNNING),
            pods=(a_pod(Phase.TRAIN, 56, unschedulable="0/1 nodes are available"),),
            report=None,
        ),
        JobPhase.QUEUED,
    ),
    "the Jobs are being made anew": (
        running(jobset=a_jobset(21, condition("RestartingJobSet", 55), restarts=1), pods=()),
        JobPhase.RESTARTING,
    ),
    "the Jobs are made anew, and their hosts have no node": (
        running(
            jobset=a_jobset(21, condition("RestartingJobSet", 55), restarts=1),
            pods=(a_pod(Phase.TRAIN, 60, attempt=1, unschedulable="0/1 nodes are available"),),
        ),
        JobPhase.QUEUED,
    ),
    "the Jobs are made anew, and their trainers start": (
        running(
            jobset=a_jobset(21, condition("RestartingJobSet", 55), restarts=1),
            pods=(a_pod(Phase.TRAIN, 60, attempt=1, running=61),),
        ),
        JobPhase.INITIALIZING,
    ),
    "no pod of the new attempt is there yet": (running(jobset=a_jobset(21, restarts=1), pods=()), JobPhase.RESTARTING),
    "someone has deleted the JobSet": (
        running(jobset=None, pods=(), status=prepared_status(phase=JobPhase.RUNNING)),
        JobPhase.RESTARTING,
    ),
    "the JobSet is done, export not made": (
        running(jobset=a_jobset(21, condition("Completed", 59))),
        JobPhase.EXPORTING,
    ),
    "export runs": (running(jobset=a_jobset(21, condition("Completed", 59)), export=EXPORT), JobPhase.EXPORTING),
    "the JobSet was deleted after training": (running(jobset=None, export=EXPORT), JobPhase.EXPORTING),
    "export is done": (
        running(jobset=a_jobset(21, condition("Completed", 59)), export=EXPORT_DONE),
        JobPhase.SUCCEEDED,
    ),
    "export has failed": (
        running(
            jobset=a_jobset(21, condition("Completed", 59)),
            export=a_batch_job(Phase.EXPORT, 60, condition("Failed", 65)),
        ),
        JobPhase.FAILED,
    ),
    "the JobSet has failed for good": (running(jobset=a_jobset(21, condition("Failed", 59))), JobPhase.FAILED),
    "the cluster refuses what is built, and always will": (
        observe(trouble=Trouble(reason="RefusedByCluster", message="bad volume")),
        JobPhase.FAILED,
    ),
    "the quota is full for now": (
        observe(trouble=Trouble(reason="RefusedByCluster", message="quota", final=False)),
        JobPhase.PENDING,
    ),
}


@pytest.mark.parametrize(("observed", "phase"), PHASES.values(), ids=PHASES.keys())
def test_the_phase_follows_from_what_is_observed(observed: Observed, phase: JobPhase) -> None:
    status = derived(observed)
    assert status.phase is phase
    assert status.timeline[-1].phase is phase
    assert status.message


@pytest.mark.parametrize("observed", [case[0] for case in PHASES.values()], ids=PHASES.keys())
def test_deriving_again_changes_nothing(observed: Observed) -> None:
    once = derived(observed)
    assert derive.status(dataclasses.replace(observed, status=once), at(1500)) == once


def test_a_pod_that_is_made_again_starts_when_it_was_made() -> None:
    before = derived(running())
    again = running(status=before, pods=(a_pod(Phase.TRAIN, 560, waiting=("ContainerCreating", "")),), report=None)
    status = derived(again)
    assert phases(status)[-2:] == ["Running", "Initializing"]
    assert status.timeline[-1].started == at(560)
    told = [event.message for event in events.between(before, status, again.verdict) if event.reason == "Initializing"]
    assert told == ["The slice starts again from its last checkpoint"]


def test_every_condition_speaks_of_the_generation_that_was_seen() -> None:
    raw = a_job()
    raw["metadata"]["generation"] = 7
    status = derived(observe(raw, prepare=PREPARE))
    assert status.observed_generation == 7
    assert {entry.observed_generation for entry in status.conditions} == {7}


def test_a_run_that_nobody_watched_has_every_phase_with_its_own_times() -> None:
    done = train_report(progress=progress(TrainerState.FINISHED, step=20, updated=58))
    observed = observe(
        prepare=PREPARE_DONE,
        jobset=a_jobset(21, condition("Completed", 59)),
        export=EXPORT_DONE,
        pods=(
            a_pod(Phase.PREPARE, 1, ended=(19, 0), message=prepare_report()),
            a_pod(Phase.TRAIN, 25, ended=(58, 0), message=done),
            a_pod(Phase.EXPORT, 60, ended=(69, 0)),
        ),
    )
    status = derived(observed)
    assert [(entry.phase.value, entry.started) for entry in status.timeline] == [
        ("Pending", at(0)),
        ("Preparing", at(1)),
        ("Initializing", at(21)),
        ("Running", at(25)),
        ("Exporting", at(60)),
        ("Succeeded", at(70)),
    ]
    assert [entry.ended for entry in status.timeline] == [at(1), at(21), at(25), at(60), at(70), at(70)]
    assert (status.step, status.progress, status.eta) == (20, "20/20", None)
    assert status.completion_time == at(70)
    assert status.prepared == PREPARED


def test_the_timeline_grows_as_the_job_goes_on() -> None:
    status = derived(observe())
    for observed in (
        observe(prepare=PREPARE),
        observe(status=prepared_status(), prepare=PREPARE_DONE, jobset=a_jobset(21)),
        running(),
        running(jobset=a_jobset(21, condition("RestartingJobSet", 55), restarts=1), pods=()),
        running(
            jobset=a_jobset(21, condition("RestartingJobSet", 57, "False"), restarts=1),
            pods=(a_pod(Phase.TRAIN, 56, attempt=1, running=57),),
        ),
        running(
            jobset=a_jobset(21, restarts=1),
            pods=(a_pod(Phase.TRAIN, 56, attempt=1, running=57),),
            report=progress(attempt=1, since=62, updated=63),
        ),
    ):
        before = status.model_copy(update={"prepared": observed.status.prepared})
        status = derived(dataclasses.replace(observed, status=before))
    assert phases(status) == [
        "Pending",
        "Preparing",
        "Initializing",
        "Running",
        "Restarting",
        "Initializing",
        "Running",
    ]
    starts = [entry.started for entry in status.timeline]
    assert starts == sorted(starts)


def test_suspending_and_resuming_shows_both() -> None:
    status = derived(running())
    suspended = running(jobset=a_jobset(21, condition("Suspended", 80), suspend=True), pods=(), report=None)
    status = derived(dataclasses.replace(suspended, status=status))
    assert status.phase is JobPhase.SUSPENDED
    resumed = running(jobset=a_jobset(21, condition("Suspended", 90, "False")), pods=(), report=None)
    status = derived(dataclasses.replace(resumed, status=status))
    assert phases(status)[-3:] == ["Running", "Suspended", "Initializing"]
    assert [entry.started for entry in status.timeline][-2:] == [at(80), at(90)]
    assert status.condition(ConditionType.SUSPENDED).status == "False"  # type: ignore[union-attr]


def test_what_was_said_before_a_suspension_says_nothing_after_it() -> None:
    ended = a_pod(Phase.TRAIN, 21, ended=(79, 42), message=train_report(42, "Preempted", progress=progress(updated=79)))
    resumed = running(
        jobset=a_jobset(21, condition("Suspended", 90, "False")), pods=(), gone=(ended,), report=progress(updated=78)
    )
    assert derived(resumed).phase is JobPhase.INITIALIZING


def test_a_refused_spec_is_named_and_can_be_corrected() -> None:
    status = derived(observe(a_job({"cpu": None, "tpu": {"machineType": "ct5lp-hightpu-4t", "topology": "4x5"}})))
    accepted = status.condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert (accepted.status, accepted.reason) == ("False", "InvalidSpec")
    assert "spec.tpu.topology" in accepted.message
    assert status.failure is not None
    assert status.failure.class_ == "Config"
    corrected = derived(observe(status=status))
    assert corrected.condition(ConditionType.ACCEPTED).status == "True"  # type: ignore[union-attr]
    assert corrected.failure is None


def test_forced_zero_init_b_is_said_in_condition_and_advice() -> None:
    status = derived(observe(a_job({"lora": {"zeroInitB": False}})))
    assert [entry.code for entry in status.advice] == ["ZeroInitBForced"]
    accepted = status.condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert "spec.lora.zeroInitB" in accepted.message


def test_the_guides_rank_for_the_number_of_pairs_is_advised_once_it_is_known() -> None:
    raw = a_job({"lora": {"r": 128, "rsLora": True}})
    assert derived(observe(raw)).advice == []
    assert [entry.code for entry in derived(observe(raw, status=prepared_status())).advice] == ["RankForPairs"]


WAITS = {
    "a missing Secret": (
        {"pods": (a_pod(Phase.PREPARE, 1, waiting=("CreateContainerConfigError", 'secret "hf" not found')),)},
        "MissingReference",
        'secret "hf" not found',
    ),
    "a Secret that a volume needs": (
        {
            "pods": (a_pod(Phase.PREPARE, 1, waiting=("ContainerCreating", "")),),
            "warnings": (EventView(type="Warning", reason="FailedMount", message='secret "certs" not found'),),
        },
        "MissingReference",
        'secret "certs" not found',
    ),
    "an image that is not there": (
        {"pods": (a_pod(Phase.PREPARE, 1, waiting=("ImagePullBackOff", 'pulling "trainer:x"')),)},
        "ImagePullFailed",
        "trainer:x",
    ),
    "no node": (
        {"pods": (a_pod(Phase.PREPARE, 1, unschedulable="0/3 nodes are available"),)},
        "Unschedulable",
        "0/3 nodes are available",
    ),
    "nothing: it runs": ({"pods": (a_pod(Phase.PREPARE, 1, running=2),)}, "Preparing", "checked"),
}


@pytest.mark.parametrize(("fields", "reason", "words"), WAITS.values(), ids=WAITS.keys())
def test_prepare_says_what_it_waits_for(fields: dict[str, object], reason: str, words: str) -> None:
    status = derived(observe(prepare=PREPARE, **fields))  # type: ignore[arg-type]
    prepared = status.condition(ConditionType.PREPARED)
    assert prepared is not None
    assert (prepared.status, prepared.reason) == ("False", reason)
    assert words in prepared.message
    assert status.phase is JobPhase.PREPARING


FAILURES = {
    "bad data, said by prepare": (
        a_pod(
            Phase.PREPARE,
            1,
            ended=(9, ExitCode.DATA),
            message=prepare_report().model_copy(
                update={
                    "exit_code": 65,
                    "reason": "InvalidRow",
                    "message": "line 3",
                    "hint": "mend it",
                    "prepared": None,
                }
            ),
        ),
        ("Data", "InvalidRow", 65),
    ),
    "a bucket that does not answer": (
        a_pod(Phase.PREPARE, 1, ended=(9, ExitCode.UNREACHABLE), message="boom"),
        ("Storage", "Crashed", 69),
    ),
    "out of memory": (
        a_pod(Phase.PREPARE, 1, ended=(9, 137), reason="OOMKilled"),
        ("Infrastructure", "OutOfMemory", 137),
    ),
    "killed": (a_pod(Phase.PREPARE, 1, ended=(9, 137), reason="Error"), ("Infrastructure", "Killed", 137)),
    "an exit code that nobody promised": (a_pod(Phase.PREPARE, 1, ended=(9, 3)), ("Internal", "Crashed", 3)),
}


@pytest.mark.parametrize(("pod", "expected"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failed_prepare_is_explained(pod: object, expected: tuple[str, str, int]) -> None:
    failed = a_batch_job(Phase.PREPARE, 1, condition("Failed", 10, reason="PodFailurePolicy"))
    status = derived(observe(prepare=failed, pods=(pod,)))
    assert status.failure is not None
    assert (status.failure.class_, status.failure.reason, status.failure.exit_code) == expected
    assert status.failure.node == "node-1"
    prepared = status.condition(ConditionType.PREPARED)
    assert prepared is not None
    assert prepared.reason == expected[1]
    assert status.condition(ConditionType.FAILED).status == "True"  # type: ignore[union-attr]


def test_a_prepare_that_waited_too_long_says_for_what() -> None:
    failed = a_batch_job(Phase.PREPARE, 1, condition("Failed", 10, reason="DeadlineExceeded"))
    waited = LoraDpoJobStatus(message='tiny-prepare waits: secret "hf" not found')
    status = derived(observe(prepare=failed, status=waited))
    assert status.failure is not None
    assert (status.failure.class_, status.failure.reason) == ("Deadline", "PrepareTimeout")
    assert 'secret "hf" not found' in status.failure.message


def test_what_a_preparation_waited_for_is_still_known_when_its_time_is_up_and_its_pod_gone() -> None:
    stuck = a_pod(Phase.PREPARE, 1, waiting=("CreateContainerConfigError", 'secret "hf" not found'))
    waits = derived(observe(prepare=PREPARE, pods=(stuck,)))
    target = condition("FailureTarget", 900, reason="DeadlineExceeded")
    between = derived(observe(prepare=a_batch_job(Phase.PREPARE, 1, target), status=waits))
    assert between == waits
    failed = a_batch_job(Phase.PREPARE, 1, target, condition("Failed", 901, reason="DeadlineExceeded"))
    status = derived(observe(prepare=failed, status=between))
    assert status.failure is not None
    assert status.failure.reason == "MissingReference"
    assert 'secret "hf" not found' in status.failure.message


def test_an_image_that_leaves_no_report_is_not_a_trainer() -> None:
    status = derived(observe(prepare=PREPARE_DONE, pods=(a_pod(Phase.PREPARE, 1, ended=(9, 0), message="hello"),)))
    assert status.phase is JobPhase.FAILED
    assert status.failure is not None
    assert status.failure.reason == "NoReport"


def test_the_first_failure_survives_the_restart_that_deletes_its_pod() -> None:
    crashed = a_pod(Phase.TRAIN, 21, ended=(50, 70), message=train_report(70, "InternalError"))
    status = derived(running(pods=(), gone=(crashed,)))
    assert status.failure is not None
    assert status.failure.reason == "InternalError"
    restarted = running(
        jobset=a_jobset(21, restarts=1), pods=(a_pod(Phase.TRAIN, 60, attempt=1, running=61),), status=status
    )
    after = derived(restarted)
    assert after.failure == status.failure
    assert after.restarts == 1


def test_the_cause_is_the_host_that_failed_by_itself_not_its_peers() -> None:
    peers = tuple(a_pod(Phase.TRAIN, 21, host=host, ended=(49 + host, 134)) for host in (0, 1, 3))
    culprit = a_pod(Phase.TRAIN, 21, host=2, ended=(50, 76), message=train_report(76, "Diverged"))
    failed = a_jobset(21, condition("Failed", 52, reason="FailJobSetFailurePolicyAction"))
    status = derived(running(jobset=failed, gone=(*peers, culprit), pods=()))
    assert status.failure is not None
    assert (status.failure.class_, status.failure.pod) == ("Training", f"{NAME}-slice-0-2-abcde")


def test_a_preempted_host_is_nobodys_failure_and_no_counted_restart() -> None:
    gone = (
        a_pod(Phase.TRAIN, 21, host=0, ended=(50, 42), message=train_report(42, "Preempted")),
        a_pod(Phase.TRAIN, 21, host=1, ended=(50, 137), disrupted="DeletionByTaintManager"),
    )
    restarting = condition("RestartingJobSet", 51, reason="FailurePolicy_disruption")
    status = derived(running(jobset=a_jobset(21, restarting, restarts=1, counted=0), pods=(), gone=gone))
    assert status.failure is None
    assert (status.restarts, status.preemptions) == (0, 1)
    assert status.timeline[-1].reason == "Preempted"


def test_metrics_keep_four_digits_and_the_last_evaluation() -> None:
    before = prepared_status(metrics=Metrics(eval_accuracy=0.75, loss=0.7), last_progress_time=at(45))
    status = derived(
        running(status=before, report=progress(metrics=Metrics(loss=0.693147, learning_rate=5.0000001e-6)))
    )
    assert status.metrics == Metrics(loss=0.6931, learning_rate=5e-6, eval_accuracy=0.75)


def test_an_older_report_changes_nothing() -> None:
    before = derived(running(report=progress(step=9, updated=90)))
    after = derived(running(status=before, report=progress(step=3, updated=50)))
    assert after.step == 9


def test_a_metric_that_is_not_finite_is_named() -> None:
    status = derived(running(report=progress(non_finite=["loss", "gradNorm"])))
    healthy = status.condition(ConditionType.HEALTHY)
    assert healthy is not None
    assert (healthy.status, healthy.reason) == ("False", "NonFinite")
    assert "loss, gradNorm" in healthy.message


def test_a_trainer_that_still_imports_is_not_unreachable() -> None:
    poll = Poll(failures=9, error="no connection")
    starting = running(report=None, poll=poll)
    assert derive.status(starting, at(60)).condition(ConditionType.PROGRESS_REACHABLE) is None
    late = derive.status(starting, at(200)).condition(ConditionType.PROGRESS_REACHABLE)
    assert late is not None
    assert late.status == "False"


def test_a_traceback_is_told_on_one_line() -> None:
    crashed = a_pod(Phase.TRAIN, 21, ended=(50, 1), message="Traceback:\n  line 1\nImportError: no git\n")
    status = derived(running(pods=(), gone=(crashed,)))
    assert status.failure is not None
    assert status.failure.message.endswith("Traceback: line 1 ImportError: no git")


@pytest.mark.parametrize(("failures", "reachable"), [(0, "True"), (2, "True"), (3, "False")])
def test_an_endpoint_counts_as_unreachable_after_three_failures(failures: int, reachable: str) -> None:
    poll = Poll(report=progress(), failures=failures, error="connection refused")
    found = derived(running(poll=poll)).condition(ConditionType.PROGRESS_REACHABLE)
    assert found is not None
    assert found.status == reachable


def test_the_final_metrics_and_artifacts_outlive_the_pod() -> None:
    report = train_report(
        progress=progress(TrainerState.FINISHED, step=20, updated=58, metrics=Metrics(loss=0.25)),
        artifacts=[{"kind": "peft", "path": "gs://bucket/runs/tiny/adapter", "step": 20}],
    )
    status = derived(running(pods=(), gone=(a_pod(Phase.TRAIN, 21, ended=(58, 0), message=report),)))
    assert status.metrics is not None
    assert status.metrics.loss == 0.25
    assert [artifact.path for artifact in status.artifacts] == ["gs://bucket/runs/tiny/adapter"]


def test_a_job_on_posed_tpu_hosts_says_so() -> None:
    simulating = Settings(trainer_image="trainer:1", simulate_tpu=True)
    assert derived(observe(a_job(TPU), settings=simulating)).condition(ConditionType.SIMULATED) is not None
    assert derived(observe(a_job(TPU), settings=SETTINGS)).condition(ConditionType.SIMULATED) is None
    assert derived(observe(settings=simulating)).condition(ConditionType.SIMULATED) is None


def test_a_finished_job_never_changes_again() -> None:
    done = prepared_status(phase=JobPhase.SUCCEEDED)
    assert derived(observe(status=done)) == done


def test_a_job_that_another_controller_runs_is_left_alone() -> None:
    assert derived(observe(a_job({"managedBy": "kueue.x-k8s.io/multikueue"}))) == LoraDpoJobStatus()


def test_conditions_keep_the_time_of_their_last_change() -> None:
    first = derive.status(observe(prepare=PREPARE), at(5))
    second = derive.status(observe(prepare=PREPARE, status=first), at(500))
    assert [entry.last_transition_time for entry in second.conditions] == [
        entry.last_transition_time for entry in first.conditions
    ]


def test_a_pause_lasts_until_the_jobset_goes_on_though_it_does_not_say_so_yet() -> None:
    pauses = derive.status(running(jobset=a_jobset(21, condition("Suspended", 60), suspend=True), pods=()), at(61))
    goes_on = running(status=pauses, jobset=a_jobset(21, condition("Suspended", 60)), pods=())
    status = derive.status(goes_on, at(100))
    pause, start = status.timeline[-2:]
    assert (pause.phase, pause.started, pause.ended) == (JobPhase.SUSPENDED, at(60), at(100))
    assert (start.phase, start.started) == (JobPhase.INITIALIZING, at(100))
