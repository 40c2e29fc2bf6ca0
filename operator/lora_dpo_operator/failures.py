"""From what a container left behind to `status.failure`: whose matter it is, what happened, what to do."""

from __future__ import annotations

import datetime

from lora_dpo_api.protocol import ExitCode, Phase
from lora_dpo_api.status import ConditionType, Failure
from lora_dpo_operator import crashes, deadlines
from lora_dpo_operator.observed import Observed, Refused
from lora_dpo_operator.reasons import FailureClass, Reason
from lora_dpo_operator.terminations import Termination, first_failure

_CLASSES = {
    ExitCode.PREEMPTED: FailureClass.INFRASTRUCTURE,
    ExitCode.CONFIG: FailureClass.CONFIG,
    ExitCode.DATA: FailureClass.DATA,
    ExitCode.UNREACHABLE: FailureClass.STORAGE,
    ExitCode.INTERNAL: FailureClass.INTERNAL,
    ExitCode.OUTPUT_OCCUPIED: FailureClass.OUTPUT,
    ExitCode.DIVERGED: FailureClass.TRAINING,
    ExitCode.CREDENTIALS: FailureClass.CREDENTIALS,
    ExitCode.ENVIRONMENT: FailureClass.ENVIRONMENT,
}
_SIGKILL = 137
_LIMIT = 1024

_MEMORY_HINT = {
    Phase.PREPARE: "raise spec.prepare.resources.limits.memory",
    Phase.TRAIN: "raise spec.podTemplate.resources.limits.memory, or take a larger slice",
    Phase.EXPORT: "raise spec.prepare.resources.limits.memory; export runs with it too",
}


def of_termination(end: Termination) -> Failure:
    """The failure that one container's end stands for."""
    report = end.report
    if report is not None:
        return _failure(end, _class(end), report.reason, report.message, report.hint)
    if end.reason == "OOMKilled":
        message = f"{end.pod} used more memory than its limit"
        return _failure(end, FailureClass.INFRASTRUCTURE, Reason.OUT_OF_MEMORY, message, _MEMORY_HINT[end.phase])
    said = f"; its last words: {end.text}" if end.text else ""
    if end.exit_code == _SIGKILL:
        message = f"{end.pod} was killed (exit code {_SIGKILL}){said}"
        hint = "the node may have run out of memory, or was shut down: kubectl describe node"
        return _failure(end, FailureClass.INFRASTRUCTURE, Reason.KILLED, message, hint)
    message = f"{end.pod} ended with exit code {end.exit_code}{said}"
    return _failure(end, _class(end), Reason.CRASHED, message, f"kubectl logs {end.pod}")


def of_job(observed: Observed, phase: Phase, now: datetime.datetime) -> Failure | None:
    """Why the prepare or export Job failed for good; None while it has not."""
    job = observed.prepare if phase is Phase.PREPARE else observed.export
    if job is None or job.failed is None:
        return None
    if job.failed.reason == "DeadlineExceeded":
        waits, _, remedy = (observed.status.message or "").partition(". Hint: ")
        cause = _waited_for(observed) if phase is Phase.PREPARE else None
        return Failure(
            class_=FailureClass.DEADLINE,
            reason=cause or (Reason.PREPARE_TIMEOUT if phase is Phase.PREPARE else Reason.DEADLINE_EXCEEDED),
            message=_cut(f"{job.metadata.name} was not done within spec.prepare.timeout. Last seen: {waits}"),
            phase=phase.value,
            hint=f"{remedy or 'mend what it waited for'}, or raise spec.prepare.timeout",
            time=job.failed.last_transition_time or now,
        )
    end = first_failure(observed.ends(phase))
    if end is not None:
        return of_termination(end)
    return Failure(
        class_=FailureClass.INFRASTRUCTURE,
        reason=Reason.PREPARE_FAILED if phase is Phase.PREPARE else Reason.EXPORT_FAILED,
        message=_cut(f"{job.metadata.name}: {job.failed.message or job.failed.reason}"),
        phase=phase.value,
        hint=f"kubectl describe job {job.metadata.name}",
        time=job.failed.last_transition_time or now,
    )


def _waited_for(observed: Observed) -> str | None:
    """What prepare was last seen to wait for: its pod is gone, and the status still knows."""
    prepared = observed.status.condition(ConditionType.PREPARED)
    known = prepared is not None and prepared.status == "False" and prepared.reason != Reason.PREPARING
    return prepared.reason if prepared and known else None


def of_slice(observed: Observed) -> Failure | None:
    """Why the slice failed, or why its present attempt did; None while no host has failed."""
    end = first_failure(observed.slice_ends)
    jobset = observed.jobset
    if end is not None:
        return of_termination(end)
    if jobset is None or jobset.failed is None:
        return None
    if observed.status.failure is not None:
        return observed.status.failure
    deadline = "DeadlineExceeded" in jobset.failed.message or "deadline" in jobset.failed.message
    return Failure(
        class_=FailureClass.DEADLINE if deadline else FailureClass.INFRASTRUCTURE,
        reason=Reason.DEADLINE_EXCEEDED if deadline else Reason.SLICE_FAILED,
        message=_cut(f"JobSet {jobset.metadata.name}: {jobset.failed.message or jobset.failed.reason}"),
        phase=Phase.TRAIN.value,
        hint="raise spec.runPolicy.activeDeadline" if deadline else f"kubectl describe jobset {jobset.metadata.name}",
        time=jobset.failed.last_transition_time,
    )


def of_crash_loop(observed: Observed) -> Failure | None:
    """Why the slice is not restarted once more, though it may be: it never gets further."""
    record = crashes.record(observed)
    end = first_failure(observed.slice_ends)
    if end is None or not crashes.in_a_loop(record, crashes.unseen(observed)):
        return None
    last = of_termination(end)
    saved = record[-1].checkpoint_step
    checkpoint = f"the last checkpoint is of step {saved}" if saved is not None else "no checkpoint was made"
    message = (
        f"The slice crashed {crashes.LOOP} times in a row and was seen to get no further than step "
        f"{crashes.furthest(record)} ({checkpoint}). The last time: {last.message}"
    )
    return last.model_copy(update={"reason": Reason.CRASH_LOOP, "message": _cut(message)})


def of_missing_report(observed: Observed, now: datetime.datetime) -> Failure | None:
    """Prepare says that it has succeeded, and left no report: an image that is not the trainer's."""
    ends = observed.ends(Phase.PREPARE)
    succeeded = [end for end in ends if end.succeeded]
    if observed.prepare is None or observed.prepare.complete is None or observed.prepared or not succeeded:
        return None
    return Failure(
        class_=FailureClass.INTERNAL,
        reason=Reason.NO_REPORT,
        message=f"{succeeded[0].pod} ended well, but without a report of what it prepared",
        phase=Phase.PREPARE.value,
        pod=succeeded[0].pod,
        exit_code=0,
        hint="check that spec.podTemplate.image is a trainer image of this operator's version",
        time=succeeded[0].finished_at or now,
    )


def of_refusal(refused: Refused) -> Failure:
    """Why the spec cannot run."""
    return Failure(
        class_=FailureClass.CONFIG,
        reason=Reason.INVALID_SPEC,
        message=_cut(refused.message),
        hint="correct the spec and apply it again",
    )


def of_trouble(observed: Observed, now: datetime.datetime) -> Failure | None:
    """The cluster refuses what the job needs."""
    if observed.trouble is None or not observed.trouble.final:
        return None
    trouble = observed.trouble
    return Failure(
        class_=trouble.class_,
        reason=trouble.reason,
        message=_cut(trouble.message),
        hint=trouble.hint or None,
        time=now,
    )


def find(observed: Observed, now: datetime.datetime) -> Failure | None:
    """Why the job has failed for good; None while it has not.

    A spec that is refused has not failed: nothing has begun, and it can still be corrected.
    """
    final_slice = of_slice(observed) if observed.jobset and observed.jobset.failed else None
    return (
        of_trouble(observed, now)
        or of_job(observed, Phase.PREPARE, now)
        or of_missing_report(observed, now)
        or of_crash_loop(observed)
        or final_slice
        or deadlines.failure(observed, now)
        or of_job(observed, Phase.EXPORT, now)
    )


def sentence(failure: Failure) -> str:
    """What went wrong, and what to do."""
    return f"{failure.message.rstrip('.')}. Hint: {failure.hint}" if failure.hint else failure.message


def _class(end: Termination) -> FailureClass:
    known = (kind for code, kind in _CLASSES.items() if code == end.exit_code)
    return next(known, FailureClass.INTERNAL)


def _failure(end: Termination, kind: FailureClass, reason: str, message: str, hint: str | None) -> Failure:
    return Failure(
        class_=kind,
        reason=reason[:64],
        message=_cut(message),
        phase=end.phase.value,
        pod=end.pod,
        node=end.node,
        exit_code=end.exit_code,
        hint=hint,
        time=end.finished_at,
    )


def _cut(text: str) -> str:
    """On one line, and bounded: tracebacks and logs come in many."""
    text = " ".join(text.split())
    return text if len(text) <= _LIMIT else text[: _LIMIT - 1] + "…"
