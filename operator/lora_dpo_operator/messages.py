"""The status message: the present state in a sentence, with the next step where there is one to take."""

from __future__ import annotations

import datetime

from lora_dpo_api.status import Failure, JobPhase
from lora_dpo_operator import failures, waiting
from lora_dpo_operator.observed import Observed, Refused


def derive(observed: Observed, phase: JobPhase, failure: Failure | None, now: datetime.datetime) -> str:
    """One sentence."""
    if observed.trouble is not None and not observed.trouble.final:
        trouble = observed.trouble
        return (f"{trouble.message}. Hint: {trouble.hint}" if trouble.hint else trouble.message)[:1024]
    match phase:
        case JobPhase.PENDING if isinstance(observed.verdict, Refused):
            message = f"Not accepted: {observed.verdict.message}"
        case JobPhase.FAILED if failure is not None:
            message = failures.sentence(failure)
        case JobPhase.PENDING:
            message = "Waiting for the preparation to be started"
        case JobPhase.PREPARING:
            wait = waiting.prepare_wait(observed)
            message = wait.sentence if wait else "Data, model and bucket are being checked, before a slice is held"
        case JobPhase.QUEUED:
            message = waiting.slice_wait(observed).sentence
        case JobPhase.INITIALIZING:
            wait = waiting.controller_wait(observed, now)
            message = wait.sentence if wait else waiting.starting(observed)
        case JobPhase.RUNNING:
            message = _training(observed)
        case JobPhase.RESTARTING if observed.jobset is None:
            message = "The JobSet was deleted by someone else; it is made again, and goes on from the last checkpoint"
        case JobPhase.RESTARTING:
            why = _restart_cause(observed)
            message = f"The slice is being restarted (attempt {observed.attempt + 1}){why}"
        case JobPhase.SUSPENDED:
            message = "Suspended; set spec.runPolicy.suspend to false to go on"
        case JobPhase.EXPORTING:
            wait = waiting.export_wait(observed)
            message = wait.sentence if wait else "The slice is released; the adapter is being verified and exported"
        case _:
            message = "The adapter is trained, verified and exported"
    return message[:1024]


def _training(observed: Observed) -> str:
    going = next((pod for pod in observed.slice_pods if pod.disrupted or pod.metadata.deletion_timestamp), None)
    if going is None:
        return "Training"
    why = f" ({going.disrupted.reason})" if going.disrupted else ""
    return f"{going.spec.node_name or going.metadata.name} is being taken away{why}: the slice saves and starts again"


def _restart_cause(observed: Observed) -> str:
    """What ended the attempt before: a crash of its own, or the cluster that took a host."""
    before = [end for end in observed.terminations if end.attempt == observed.attempt - 1 and end.disruption]
    if before:
        return f" after {before[0].node or before[0].pod} was taken away ({before[0].disruption})"
    failure = observed.status.failure
    return f" after: {failure.message}" if failure else ""
