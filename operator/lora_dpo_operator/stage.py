"""Which phase a job is in, and the way that led there: from what is observed, never from counted events."""

from __future__ import annotations

import dataclasses
import datetime

from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import Failure, JobPhase
from lora_dpo_operator.objects import Job, JobSet
from lora_dpo_operator.observed import Accepted, Observed, Refused
from lora_dpo_operator.reasons import Reason
from lora_dpo_operator.terminations import TRAINING_STATES

_HAD_A_SLICE = (JobPhase.QUEUED, JobPhase.INITIALIZING, JobPhase.RUNNING, JobPhase.RESTARTING)


@dataclasses.dataclass(frozen=True)
class Milestone:
    """A phase that the job has reached, and when."""

    phase: JobPhase
    time: datetime.datetime
    reason: str = ""


def phase_of(observed: Observed, failure: Failure | None) -> JobPhase:
    """The phase that a job is in.

    Args:
        observed: the job.
        failure: why it has failed for good, if it has.
    """
    if isinstance(observed.verdict, Refused) and observed.prepare is None:
        return JobPhase.PENDING
    if failure is not None:
        return JobPhase.FAILED
    if observed.export is not None and observed.export.complete:
        return JobPhase.SUCCEEDED
    if observed.trained:
        return JobPhase.EXPORTING
    if observed.jobset is not None:
        return _slice_phase(observed, observed.jobset)
    if observed.prepared is not None and _held_back(observed):
        return JobPhase.SUSPENDED
    if observed.prepared is not None and observed.status.phase in _HAD_A_SLICE:
        return JobPhase.RESTARTING
    if observed.prepare is None:
        return JobPhase.PENDING
    if observed.prepare.spec.suspend:
        return JobPhase.QUEUED if observed.waits_in_queue else JobPhase.SUSPENDED
    return JobPhase.PREPARING


def path_to(phase: JobPhase, observed: Observed, failure: Failure | None, now: datetime.datetime) -> list[Milestone]:
    """The phases from the beginning to the present one, of the present attempt, with the objects' own times."""
    path = [Milestone(JobPhase.PENDING, observed.metadata.creation_timestamp or now)]
    if phase is JobPhase.QUEUED and observed.jobset is None:
        return [*path, Milestone(phase, observed.queued_since or now, _queue_reason(observed))]
    if observed.prepare is not None:
        path.append(Milestone(JobPhase.PREPARING, _prepare_started(observed, observed.prepare) or now))
    if observed.jobset is not None:
        path += _slice_path(observed, observed.jobset, phase, now)
    if observed.export is not None:
        path.append(Milestone(JobPhase.EXPORTING, observed.export.metadata.creation_timestamp or now))
    if phase is JobPhase.SUSPENDED:
        path.append(Milestone(phase, _since(observed.jobset, "Suspended") or now, Reason.SUSPENDED))
    if phase is JobPhase.SUCCEEDED and observed.export and observed.export.complete:
        path.append(Milestone(phase, observed.export.complete.last_transition_time or now))
    if phase is JobPhase.FAILED:
        path.append(Milestone(phase, _failed_at(observed, failure) or now, failure.reason if failure else ""))
    if path[-1].phase is not phase:
        path.append(Milestone(phase, now))
    return path


def _held_back(observed: Observed) -> bool:
    """Whether the JobSet is not made because its user wants nothing to run, and its queue would start it."""
    verdict = observed.verdict
    return isinstance(verdict, Accepted) and verdict.queue_name is not None and observed.wants_suspension


def _slice_phase(observed: Observed, jobset: JobSet) -> JobPhase:
    if jobset.suspended:
        return JobPhase.QUEUED if observed.waits_in_queue else JobPhase.SUSPENDED
    if observed.training:
        # A failed host ends the attempt: JobSet will say so in a moment.
        return JobPhase.RESTARTING if jobset.restarting else JobPhase.RUNNING
    if not observed.slice_pods and (jobset.restarting or observed.attempt > 0):
        # Once the new attempt has pods, they tell more: JobSet says that it restarts until all of them are ready.
        return JobPhase.RESTARTING
    if any(pod.unschedulable for pod in observed.slice_pods):
        return JobPhase.QUEUED
    return JobPhase.INITIALIZING


def _slice_path(observed: Observed, jobset: JobSet, phase: JobPhase, now: datetime.datetime) -> list[Milestone]:
    path: list[Milestone] = []
    if observed.attempt > 0:
        path.append(Milestone(JobPhase.RESTARTING, _restarted_at(observed, jobset) or now, _restart_reason(jobset)))
        if phase is JobPhase.RESTARTING:
            return path
    if phase is JobPhase.SUSPENDED:
        return path
    leader = observed.leader if observed.status.phase is JobPhase.RUNNING and not observed.training else None
    started = (leader.metadata.creation_timestamp if leader else observed.attempt_started_at) or now
    was_queued = phase is JobPhase.QUEUED or observed.status.phase is JobPhase.QUEUED
    if was_queued:
        since = observed.queued_since or now if observed.waits_in_queue else started
        path.append(Milestone(JobPhase.QUEUED, since, _queue_reason(observed)))
        if phase is JobPhase.QUEUED or (phase is JobPhase.FAILED and observed.scheduled_whole_at is None):
            return path
        started = observed.scheduled_whole_at or _admitted_since(observed) or now
    path.append(Milestone(JobPhase.INITIALIZING, started))
    if observed.training:
        path.append(Milestone(JobPhase.RUNNING, _training_since(observed) or now))
    return path


def _prepare_started(observed: Observed, prepare: Job) -> datetime.datetime | None:
    """When it was made; out of a queue, when it was let go."""
    made, let_go = prepare.metadata.creation_timestamp, prepare.status.start_time
    return let_go or made if observed.in_queue(prepare) else made


def _queue_reason(observed: Observed) -> str:
    """Kueue's word for why it took the hosts away; where it has only not given any yet, ours."""
    workload = observed.workload
    if not observed.waits_in_queue:
        return ""
    if workload is None or workload.evicted is None or workload.put_back:
        return Reason.WAITING_FOR_QUEUE
    return workload.evicted.reason[:64]


def _admitted_since(observed: Observed) -> datetime.datetime | None:
    """When Kueue let the slice go on, if that was after it began to wait: later waits are for nodes alone."""
    time, waits = observed.admitted_at, observed.status.timeline
    return time if time is not None and (not waits or time >= waits[-1].started) else None


def _restarted_at(observed: Observed, jobset: JobSet) -> datetime.datetime | None:
    if jobset.restarting:
        return jobset.restarting.last_transition_time
    before = [end for end in observed.ends(Phase.TRAIN) if end.attempt == observed.attempt - 1]
    times = [end.finished_at for end in before if end.finished_at is not None]
    return min(times, default=None) or observed.attempt_started_at


def _restart_reason(jobset: JobSet) -> str:
    condition = jobset.condition("RestartingJobSet")
    disruption = condition is not None and condition.reason.endswith("disruption")
    return Reason.PREEMPTED if disruption else Reason.RESTARTING


def _training_since(observed: Observed) -> datetime.datetime | None:
    """Rank 0 knows when training began; where nobody heard it, its container's start is the nearest known time."""
    report = observed.poll.report
    if report is not None and report.attempt == observed.attempt and report.state in TRAINING_STATES:
        return report.state_since
    started = [end.started_at for end in observed.slice_ends if end.leader and end.started_at]
    return min(started, default=None)


def _failed_at(observed: Observed, failure: Failure | None) -> datetime.datetime | None:
    conditions = (
        observed.prepare.failed if observed.prepare else None,
        observed.jobset.failed if observed.jobset else None,
        observed.export.failed if observed.export else None,
    )
    ended = next((found.last_transition_time for found in conditions if found is not None), None)
    return ended or (failure.time if failure else None)


def _since(jobset: JobSet | None, kind: str) -> datetime.datetime | None:
    condition = jobset.condition(kind) if jobset else None
    return condition.last_transition_time if condition else None
