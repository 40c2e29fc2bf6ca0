"""Why a job waits, in words that name what is missing."""

from __future__ import annotations

import dataclasses

from lora_dpo_api.protocol import Phase, TrainerState
from lora_dpo_operator.observed import Accepted, Observed
from lora_dpo_operator.pods import Pod, WaitingKind
from lora_dpo_operator.reasons import Reason

_IMAGE = (WaitingKind.IMAGE_PULL, WaitingKind.IMAGE_PULL_FIRST, WaitingKind.IMAGE_NAME)
_MOUNT_EVENTS = ("FailedMount", "FailedAttachVolume")
_STATES = {
    TrainerState.STARTING: "The trainer is starting",
    TrainerState.LOADING: "The base model is being loaded",
    TrainerState.REFERENCE: "The reference log-probabilities are being computed",
    TrainerState.COMPILING: "The train step is being compiled",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wait:
    """What a job waits for."""

    reason: str
    message: str


def prepare_wait(observed: Observed) -> Wait | None:
    """Why prepare has not started; None while it runs, or is just about to."""
    job = observed.prepare
    if job is None:
        return None
    for pod in observed.pods_of(Phase.PREPARE):
        found = _pod_wait(observed, pod)
        if found is not None:
            return found
    refused = next((event for event in observed.warnings if event.reason == "FailedCreate"), None)
    if refused is not None:
        return Wait(reason=Reason.PREPARE_WAITS, message=f"The pod cannot be made: {refused.message}")
    return None


def export_wait(observed: Observed) -> Wait | None:
    """Why export has not started; None while it runs, or is just about to."""
    found = (_pod_wait(observed, pod) for pod in observed.pods_of(Phase.EXPORT))
    return next((wait for wait in found if wait is not None), None)


def slice_wait(observed: Observed) -> Wait:
    """Why the slice has not started."""
    jobset = observed.jobset
    if jobset is not None and jobset.suspended and isinstance(observed.verdict, Accepted):
        return Wait(
            reason=Reason.WAITING_FOR_QUEUE, message=f"Waiting in the queue {observed.verdict.queue_name} for quota"
        )
    pending = [pod for pod in observed.slice_pods if pod.unschedulable]
    why = pending[0].unschedulable if pending else None
    hosts = f"{len(pending)} of {len(observed.slice_pods)} hosts have no node"
    return Wait(reason=Reason.WAITING_FOR_CAPACITY, message=f"{hosts}: {why.message if why else 'no node is free'}")


def start_problem(observed: Observed) -> Wait | None:
    """Why a host of the slice cannot start its container; None where nothing is wrong."""
    found = (_pod_wait(observed, pod) for pod in observed.slice_pods if not pod.unschedulable)
    return next((wait for wait in found if wait is not None), None)


def starting(observed: Observed) -> str:
    """What a slice does that has its hosts, and has not trained yet."""
    problem = start_problem(observed)
    if problem is not None:
        return problem.message
    report = observed.poll.report
    if report is not None and report.attempt == observed.attempt and report.state in _STATES:
        return _STATES[report.state]
    return "The slice's hosts are starting"


def watched_pods(observed: Observed) -> tuple[Pod, ...]:
    """Pods that have a node but no container yet: what holds them up is only in the cluster's events."""
    return tuple(pod for pod in observed.pods if pod.starting and pod.stuck is None)


def _pod_wait(observed: Observed, pod: Pod) -> Wait | None:
    stuck = pod.stuck
    if stuck is not None and stuck.reason in _IMAGE:
        return Wait(
            reason=Reason.IMAGE_PULL, message=f"{pod.metadata.name}: the image cannot be pulled: {stuck.message}"
        )
    if stuck is not None:
        return Wait(
            reason=Reason.MISSING_REFERENCE,
            message=f"{pod.metadata.name} waits: {stuck.message}; it goes on by itself once that is there",
        )
    if pod.unschedulable is not None and pod.status.phase == "Pending":
        return Wait(
            reason=Reason.UNSCHEDULABLE, message=f"{pod.metadata.name} has no node: {pod.unschedulable.message}"
        )
    mount = next((event for event in observed.warnings if event.reason in _MOUNT_EVENTS), None)
    if mount is not None and pod.starting:
        return Wait(
            reason=Reason.MISSING_REFERENCE,
            message=f"{pod.metadata.name} waits: {mount.message}; it goes on by itself once that is there",
        )
    return None
