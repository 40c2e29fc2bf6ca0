"""The conditions of a LoraDpoJob: each one a question that a user or a program asks."""

from __future__ import annotations

import datetime
from typing import Literal

from lora_dpo_api import durations
from lora_dpo_api.protocol import Phase, ProgressReport
from lora_dpo_api.status import Condition, ConditionType, Failure, JobPhase
from lora_dpo_operator import failures
from lora_dpo_operator.objects import ConditionView
from lora_dpo_operator.observed import Accepted, Observed, Refused
from lora_dpo_operator.pods import Pod
from lora_dpo_operator.reasons import Reason
from lora_dpo_operator.waiting import Wait, prepare_wait, slice_wait

Status = Literal["True", "False", "Unknown"]


def derive(
    observed: Observed, phase: JobPhase, failure: Failure | None, message: str, now: datetime.datetime
) -> list[Condition]:
    """All conditions, in the order in which a job meets them; those that don't apply yet are left out."""
    found = [
        _accepted(observed),
        _prepared(observed, failure),
        _admitted(observed),
        _evicted(observed),
        _queued(observed, phase),
        _running(observed, phase),
        _progress_reachable(observed, phase, now),
        _healthy(observed, phase),
        _suspended(observed, phase),
        _maintenance(observed, phase),
        _simulated(observed),
        _complete(observed, phase, message),
        _failed(observed, phase, failure),
    ]
    known = [condition for condition in found if condition is not None]
    return [_kept(observed, condition, now) for condition in known]


def _condition(
    observed: Observed,
    kind: ConditionType,
    status: Status,
    reason: str,
    message: str,
    time: datetime.datetime | None = None,
) -> Condition:
    return Condition(
        type=kind,
        status=status,
        observed_generation=observed.metadata.generation,
        last_transition_time=time or datetime.datetime.min.replace(tzinfo=datetime.UTC),
        reason=reason,
        message=message[:4096],
    )


def _kept(observed: Observed, condition: Condition, now: datetime.datetime) -> Condition:
    """With the time of the last change of its status, the object's own where it has one."""
    before = observed.status.condition(ConditionType(condition.type))
    if before is not None and before.status == condition.status:
        return condition.model_copy(update={"last_transition_time": before.last_transition_time})
    unknown = condition.last_transition_time.year == datetime.MINYEAR
    return condition.model_copy(update={"last_transition_time": now}) if unknown else condition


def _accepted(observed: Observed) -> Condition:
    verdict = observed.verdict
    if isinstance(verdict, Refused):
        return _condition(observed, ConditionType.ACCEPTED, "False", Reason.INVALID_SPEC, verdict.message)
    if observed.trouble is not None and observed.trouble.final:
        return _condition(observed, ConditionType.ACCEPTED, "False", observed.trouble.reason, observed.trouble.message)
    notices = "".join(f". Note: {str(notice).rstrip('.')}" for notice in verdict.notices)
    message = f"The job can run on {verdict.placement.hardware.description}{notices}"
    return _condition(observed, ConditionType.ACCEPTED, "True", Reason.ACCEPTED, message)


def _prepared(observed: Observed, failure: Failure | None) -> Condition | None:
    report = observed.prepared
    if report is not None:
        message = f"{report.train_pairs} training pairs, {report.validation_pairs} held out, {report.total_steps} steps"
        time = (
            observed.prepare.complete.last_transition_time if observed.prepare and observed.prepare.complete else None
        )
        return _condition(observed, ConditionType.PREPARED, "True", Reason.PREPARED, message, time)
    if observed.prepare is None:
        return None
    if failure is not None and failure.phase == Phase.PREPARE:
        message = failures.sentence(failure)
        return _condition(observed, ConditionType.PREPARED, "False", failure.reason, message, failure.time)
    wait = prepare_wait(observed) or Wait(reason=Reason.PREPARING, message="Data, model and bucket are being checked")
    return _condition(observed, ConditionType.PREPARED, "False", wait.reason, wait.sentence)


def _admitted(observed: Observed) -> Condition | None:
    """What Kueue says of the job, with its own reason; quota is one thing, and nodes are another."""
    trouble, workload = observed.trouble, observed.workload
    if trouble is not None and trouble.reason in (Reason.NO_KUEUE, Reason.NO_QUEUE):
        message = f"{trouble.message}. Hint: {trouble.hint}"
        return _condition(observed, ConditionType.ADMITTED, "False", trouble.reason, message)
    if workload is None:
        return _as_before(observed, ConditionType.ADMITTED)
    admitted = workload.admitted
    if admitted is not None:
        message = f"{admitted.message.rstrip('.')} (ClusterQueue {workload.cluster_queue})"
        return _mirrored(observed, ConditionType.ADMITTED, admitted, message)
    said = workload.refusal
    time = said.last_transition_time if said.type == "QuotaReserved" else None
    return _condition(observed, ConditionType.ADMITTED, "False", said.reason, said.message, time)


def _evicted(observed: Observed) -> Condition | None:
    """That Kueue took the hosts away, and why; False once quota was found again."""
    evicted = observed.workload.condition("Evicted") if observed.workload else None
    if evicted is None:
        return _as_before(observed, ConditionType.EVICTED)
    return _mirrored(observed, ConditionType.EVICTED, evicted, evicted.message)


def _mirrored(observed: Observed, kind: ConditionType, theirs: ConditionView, message: str) -> Condition:
    status: Status = "True" if theirs.status == "True" else "False"
    return _condition(observed, kind, status, theirs.reason or status, message, theirs.last_transition_time)


def _as_before(observed: Observed, kind: ConditionType) -> Condition | None:
    before = observed.status.condition(kind)
    return before.model_copy(update={"observed_generation": observed.metadata.generation}) if before else None


def _queued(observed: Observed, phase: JobPhase) -> Condition | None:
    if phase is JobPhase.QUEUED:
        wait = slice_wait(observed)
        return _condition(observed, ConditionType.QUEUED, "True", wait.reason, wait.sentence)
    if observed.status.condition(ConditionType.QUEUED) is None:
        return None
    if observed.scheduled_whole_at is not None:
        return _condition(observed, ConditionType.QUEUED, "False", Reason.SCHEDULED, "All hosts have a node")
    return _condition(observed, ConditionType.QUEUED, "False", phase.value, f"The job is {phase.value}")


def _running(observed: Observed, phase: JobPhase) -> Condition | None:
    if observed.jobset is None and observed.status.condition(ConditionType.RUNNING) is None:
        return None
    if phase is JobPhase.RUNNING:
        return _condition(observed, ConditionType.RUNNING, "True", Reason.TRAINING, "The slice is training")
    reasons = {JobPhase.EXPORTING: Reason.TRAINED, JobPhase.SUCCEEDED: Reason.TRAINED}
    return _condition(
        observed, ConditionType.RUNNING, "False", reasons.get(phase, phase.value), f"The job is {phase.value}"
    )


def _progress_reachable(observed: Observed, phase: JobPhase, now: datetime.datetime) -> Condition | None:
    poll, leader = observed.poll, observed.leader
    if phase not in (JobPhase.INITIALIZING, JobPhase.RUNNING) or leader is None:
        return None
    if poll.unreachable and (poll.report is not None or _should_serve(leader, now, observed.settings.serving_seconds)):
        message = (
            f"Rank 0 ({leader.metadata.name}) does not answer on port 9100: {poll.error}. Training goes on; "
            "check that a NetworkPolicy lets the operator in"
        )
        return _condition(observed, ConditionType.PROGRESS_REACHABLE, "False", Reason.UNREACHABLE, message)
    if poll.report is None:
        return None
    return _condition(observed, ConditionType.PROGRESS_REACHABLE, "True", Reason.REACHABLE, "Rank 0 reports")


def _should_serve(leader: Pod, now: datetime.datetime, seconds: float) -> bool:
    running = leader.trainer.state.running if leader.trainer else None
    since = running.started_at if running else None
    return since is not None and (now - since).total_seconds() >= seconds


def _healthy(observed: Observed, phase: JobPhase) -> Condition | None:
    report = observed.progress
    if report is None:
        return _as_before(observed, ConditionType.HEALTHY)
    if report.non_finite:
        metrics = ", ".join(report.non_finite)
        message = f"Not finite at step {report.step}: {metrics}. Lower spec.optimizer.learningRate"
        return _condition(observed, ConditionType.HEALTHY, "False", Reason.NON_FINITE, message)
    idle = _idle(observed, report)
    if phase is JobPhase.RUNNING and idle.total_seconds() >= observed.settings.stalled_seconds:
        message = (
            f"No step was done for {durations.text(idle.total_seconds())} (step {report.step}, {report.state}). "
            f"kubectl logs {observed.leader.metadata.name if observed.leader else 'the pods'}; deleting the pod starts "
            "the slice again from its last checkpoint"
        )
        return _condition(observed, ConditionType.HEALTHY, "False", Reason.STALLED, message)
    return _condition(observed, ConditionType.HEALTHY, "True", Reason.FINITE, "Every metric is finite")


def _idle(observed: Observed, report: ProgressReport) -> datetime.timedelta:
    """How long rank 0 says the same step, by its own clock."""
    status = observed.status
    same = (status.step, status.reported_attempt, status.trainer_state) == (report.step, report.attempt, report.state)
    since = status.last_step_time if same else None
    return report.updated_at - since if since else datetime.timedelta(0)


def _suspended(observed: Observed, phase: JobPhase) -> Condition | None:
    if phase is JobPhase.SUSPENDED:
        message = "spec.runPolicy.suspend is true; no slice is held"
        return _condition(observed, ConditionType.SUSPENDED, "True", Reason.SUSPENDED, message)
    if observed.status.condition(ConditionType.SUSPENDED) is None:
        return None
    return _condition(observed, ConditionType.SUSPENDED, "False", Reason.RESUMED, "The job goes on")


def _maintenance(observed: Observed, phase: JobPhase) -> Condition | None:
    known = observed.status.condition(ConditionType.MAINTENANCE) is not None
    if not observed.maintenance or phase.finished:
        done = (ConditionType.MAINTENANCE, "False", Reason.NO_MAINTENANCE, "No host's maintenance is announced")
        return _condition(observed, *done) if known else None  # type: ignore[arg-type]
    node = min(observed.maintenance, key=lambda node: (not node.in_maintenance, str(node.maintenance_at)))
    when = "now" if node.in_maintenance or not node.maintenance_at else f"from {node.maintenance_at:%Y-%m-%d %H:%M} UTC"
    message = (
        f"Host {node.metadata.name} is taken for maintenance {when}: the slice then saves, stops, and goes on from "
        "there; it counts as no restart"
    )
    return _condition(observed, ConditionType.MAINTENANCE, "True", Reason.MAINTENANCE, message)


def _simulated(observed: Observed) -> Condition | None:
    if not isinstance(observed.verdict, Accepted) or not observed.verdict.placement.simulated:
        return None
    message = "The TPU slice is posed by ordinary nodes, and the trainer runs on CPU: for trying things out only"
    return _condition(observed, ConditionType.SIMULATED, "True", Reason.SIMULATED, message)


def _complete(observed: Observed, phase: JobPhase, message: str) -> Condition | None:
    if phase is not JobPhase.SUCCEEDED:
        return None
    time = observed.export.complete.last_transition_time if observed.export and observed.export.complete else None
    return _condition(observed, ConditionType.COMPLETE, "True", Reason.SUCCEEDED, message, time)


def _failed(observed: Observed, phase: JobPhase, failure: Failure | None) -> Condition | None:
    if phase is not JobPhase.FAILED or failure is None:
        again = observed.status.condition(ConditionType.FAILED) is not None
        return _condition(observed, ConditionType.FAILED, "False", Reason.RETRIED, "Tried again") if again else None
    return _condition(observed, ConditionType.FAILED, "True", failure.reason, failure.message, failure.time)
