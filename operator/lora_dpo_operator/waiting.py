"""Why a job waits, in words that name what is missing and what to do."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Iterator

from lora_dpo_api.protocol import Phase, TrainerState
from lora_dpo_operator import capacity, causes, names
from lora_dpo_operator.causes import Cause
from lora_dpo_operator.objects import EventView, JobSet, ObjectMeta
from lora_dpo_operator.observed import Observed
from lora_dpo_operator.pods import Pod, WaitingKind
from lora_dpo_operator.reasons import FailureClass, Reason

CONTROLLER_PATIENCE = datetime.timedelta(seconds=30)
"""How long the JobSet controller may take to make the slice's Jobs."""

_IMAGE = (WaitingKind.IMAGE_PULL, WaitingKind.IMAGE_PULL_FIRST, WaitingKind.IMAGE_NAME)
_POD_EVENTS = ("FailedMount", "FailedAttachVolume", "FailedToRetrieveImagePullSecret")
_NORMAL = ("leader pod not yet scheduled", "follower pod node selector not set")
"""JobSet's webhook refuses the other hosts' pods until the first one of an exclusive slice has its node."""

_STATES = {
    TrainerState.STARTING: "The trainer is starting",
    TrainerState.LOADING: "The base model is being loaded",
    TrainerState.REFERENCE: "The reference log-probabilities are being computed",
    TrainerState.COMPILING: "The train step is being compiled",
}
_MISSING = Cause(Reason.MISSING_REFERENCE, FailureClass.CONFIG)
_PULL = Cause(Reason.IMAGE_PULL, FailureClass.CONFIG, "correct spec.podTemplate.image, or let the nodes reach it")
_NO_NODE = Cause(Reason.UNSCHEDULABLE, FailureClass.INFRASTRUCTURE)
_IN_QUEUE = Cause(Reason.WAITING_FOR_QUEUE, FailureClass.INFRASTRUCTURE)
_NOT_MADE = Cause(Reason.PREPARE_WAITS, FailureClass.INFRASTRUCTURE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wait:
    """What a job waits for.

    Attributes:
        class_: whose matter it is.
        hint: what to do; may be empty.
        pod: the pod that waits, if there is one.
    """

    reason: str
    message: str
    class_: FailureClass = FailureClass.INFRASTRUCTURE
    hint: str = ""
    pod: Pod | None = None

    @property
    def sentence(self) -> str:
        """The message, and what to do."""
        return f"{self.message.rstrip('.')}. Hint: {self.hint}" if self.hint else self.message


def prepare_wait(observed: Observed) -> Wait | None:
    """Why prepare has not started; None while it runs, or is just about to."""
    if observed.jobset is None and observed.export is None and observed.waits_in_queue:
        return queue_wait(observed)
    return _first(observed, observed.pods_of(Phase.PREPARE)) if observed.prepare else None


def export_wait(observed: Observed) -> Wait | None:
    """Why export has not started; None while it runs, or is just about to."""
    if observed.export is not None and observed.waits_in_queue:
        return queue_wait(observed)
    return _first(observed, observed.pods_of(Phase.EXPORT)) if observed.export else None


def start_problem(observed: Observed) -> Wait | None:
    """Why a host of the slice cannot start its container; None where nothing is wrong."""
    return _first(observed, [pod for pod in observed.slice_pods if not pod.unschedulable])


def slice_wait(observed: Observed) -> Wait:
    """Why the slice has no hosts."""
    if observed.waits_in_queue:
        return queue_wait(observed)
    pending = [pod for pod in observed.slice_pods if pod.unschedulable]
    why = pending[0].unschedulable.message if pending and pending[0].unschedulable else "no node is free"
    cause = causes.of(why, Cause(Reason.WAITING_FOR_CAPACITY, FailureClass.INFRASTRUCTURE))
    wanted = f". {capacity.sentence(pending[0], observed.nodes)}" if pending else ""
    # An exclusive slice's other hosts are not even made before the first one has its node.
    missing = observed.hosts - sum(pod.scheduled_at is not None for pod in observed.slice_pods)
    return Wait(
        reason=cause.reason,
        message=f"{missing} of {observed.hosts} hosts have no node: {why.rstrip('.')}{wanted}",
        class_=cause.class_,
        hint=cause.hint,
        pod=pending[0] if pending else None,
    )


def queue_wait(observed: Observed) -> Wait:
    """Why Kueue keeps a child from starting, in Kueue's own words."""
    child = observed.working_child
    queue = child.metadata.labels.get(names.QUEUE_LABEL) if child else None
    who = "Waiting" if isinstance(child, JobSet) else f"{child.metadata.name} is waiting" if child else "Waiting"
    where = f"in the queue {queue}" if queue else "for Kueue"
    if observed.workload is None:
        hint = f"kubectl get pods -n {names.KUEUE_NAMESPACE}: Kueue's controller may be down"
        return Wait(reason=Reason.WAITING_FOR_QUEUE, message=f"{who} {where}: Kueue has not taken it up yet", hint=hint)
    said = observed.workload.refusal
    return _wait(f"{who} {where}: {said.message or said.reason}", _IN_QUEUE, None)


def starting(observed: Observed) -> str:
    """What a slice does that has its hosts, and has not trained yet."""
    problem = start_problem(observed)
    if problem is not None:
        return problem.sentence
    report = observed.poll.report
    if report is not None and report.attempt == observed.attempt and report.state in _STATES:
        return _STATES[report.state]
    return "The slice's hosts are starting"


def controller_wait(observed: Observed, now: datetime.datetime) -> Wait | None:
    """The JobSet that nobody takes up."""
    jobset, since = observed.jobset, observed.attempt_started_at
    if jobset is None or jobset.suspended or jobset.ended or observed.slice_jobs or observed.slice_pods:
        return None
    if jobset.metadata.deletion_timestamp is not None or since is None or now - since < CONTROLLER_PATIENCE:
        return None
    return Wait(
        reason=Reason.CONTROLLER_DOWN,
        message=f"The JobSet {jobset.metadata.name} exists, but its Jobs have not been made",
        hint="see whether the JobSet controller runs: kubectl get pods -n jobset-system",
    )


def watched(observed: Observed) -> ObjectMeta | None:
    """The object whose events tell what holds the job up, where nothing else does."""
    if observed.status.phase is not None and observed.status.phase.finished:
        return None
    for pod in observed.pods:
        if pod.starting and (pod.stuck is None or pod.stuck.reason in _IMAGE):
            return pod.metadata
    job = observed.export or (observed.prepare if observed.jobset is None else None)
    phase = Phase.EXPORT if observed.export else Phase.PREPARE
    if job is not None:
        return job.metadata if not (job.ended or job.spec.suspend or observed.pods_of(phase)) else None
    if observed.jobset is None or observed.jobset.suspended or observed.jobset.ended:
        return None
    if observed.slice_pods:
        return None
    if not observed.slice_jobs:
        return observed.jobset.metadata
    return next((job.metadata for job in observed.slice_jobs if not job.ended), None)


def _first(observed: Observed, pods: Iterable[Pod]) -> Wait | None:
    found = [wait for pod in pods for wait in _pod_waits(observed, pod)]
    return next(iter([*found, *_not_made(observed)]), None)


def _pod_waits(observed: Observed, pod: Pod) -> Iterator[Wait]:
    name, stuck = pod.metadata.name, pod.stuck
    told = [event for event in observed.warnings if event.reason in _POD_EVENTS] if pod.starting else []
    for event in told:
        yield _wait(f"{name} waits: {event.message}; it goes on by itself once that is there", _MISSING, pod)
    if stuck is not None and stuck.reason in _IMAGE:
        yield _wait(f"{name}: the image cannot be pulled: {stuck.reason} {stuck.message}", _PULL, pod)
    elif stuck is not None:
        yield _wait(f"{name} waits: {stuck.message}; it goes on by itself once that is there", _MISSING, pod)
    elif pod.unschedulable is not None and pod.status.phase == "Pending":
        yield _wait(f"{name} has no node: {pod.unschedulable.message}", _NO_NODE, pod)


def _not_made(observed: Observed) -> Iterator[Wait]:
    for event in observed.warnings:
        if event.reason in ("FailedCreate", "JobCreationFailed") and not _is_normal(event):
            yield _wait(f"The pod cannot be made: {event.message}", _NOT_MADE, None)


def _wait(message: str, otherwise: Cause, pod: Pod | None) -> Wait:
    cause = causes.of(message, otherwise)
    message = " ".join(message.split())
    return Wait(reason=cause.reason, message=message, class_=cause.class_, hint=cause.hint, pod=pod)


def _is_normal(event: EventView) -> bool:
    return any(phrase in event.message for phrase in _NORMAL)
