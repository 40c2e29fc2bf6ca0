"""From what was observed to the new status. Pure: the same observation and clock give the same status."""

from __future__ import annotations

import datetime
from typing import Any

from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import Disruption, Failure, JobPhase, LoraDpoJobStatus
from lora_dpo_operator import conditions, crashes, failures, holding, messages, progress_status, stage, timeline
from lora_dpo_operator.observed import Accepted, Observed, Refused


def status(observed: Observed, now: datetime.datetime) -> LoraDpoJobStatus:
    """The status that the job should have.

    Args:
        observed: the job, its children and its old status.
        now: the clock, used only where no object has a time of its own.
    """
    if observed.settled or observed.retry_asked:
        # A failed job that is asked to try again stays as it is until what is in the way is gone.
        return observed.status
    if any(job.timed_out(now) and not job.ended for job in (observed.prepare, observed.export) if job is not None):
        # Its pod goes first, and with it what it waited for: that still stands in the status.
        return observed.status
    failure = failures.find(observed, now)
    phase = stage.phase_of(observed, failure)
    message = messages.derive(observed, phase, failure, now)
    path = stage.path_to(phase, observed, failure, now)
    new_attempt = observed.attempt > observed.known_attempt
    entries = timeline.advance(observed.status.timeline, path, new_attempt=new_attempt)
    changes = {
        "observed_generation": observed.metadata.generation,
        "phase": phase,
        "message": message,
        "timeline": entries,
        "conditions": conditions.derive(observed, phase, failure, message, now),
        "prepared": observed.prepared,
        "failure": failure or _last_failure(observed, phase),
        "advice": progress_status.advice(observed),
        "artifacts": progress_status.artifacts(observed),
        "crashes": crashes.record(observed),
        "disruption": _disruption(observed),
        "retry": observed.metadata.retry,
    }
    changes |= _identity(observed, now) | _restarts(observed) | progress_status.derive(observed)
    changes |= _times(observed, phase, entries[-1].started, now)
    return observed.status.model_copy(update=changes)


def _last_failure(observed: Observed, phase: JobPhase) -> Failure | None:
    """Why the spec is refused, or why the slice last failed; forgotten once that is over."""
    if isinstance(observed.verdict, Refused):
        return failures.of_refusal(observed.verdict)
    if observed.jobset is None or phase in (JobPhase.EXPORTING, JobPhase.SUCCEEDED):
        return None
    return failures.of_slice(observed) or observed.status.failure


def _identity(observed: Observed, now: datetime.datetime) -> dict[str, Any]:
    verdict = observed.verdict
    if not isinstance(verdict, Accepted):
        return {}
    ready = sum(1 for pod in observed.slice_pods if pod.alive and pod.trainer and pod.trainer.ready)
    images = [pod.trainer.image_id for pod in observed.pods if pod.trainer and pod.trainer.image_id]
    return {
        "run_id": verdict.run_id,
        "spec_hash": observed.status.spec_hash or verdict.spec_hash,
        "config_map": observed.pinned_config_map,
        "image": observed.pinned_image,
        "image_digest": observed.status.image_digest or (images[0][-600:] if images else None),
        "slice": verdict.placement.hardware.status.model_copy(update={"ready_hosts": ready}),
        "start_time": observed.status.start_time or now,
    }


def _restarts(observed: Observed) -> dict[str, Any]:
    if observed.jobset is None:
        return {}
    counted = observed.jobset.status.restarts_count_towards_max
    crashed, taken = observed.restarted_before
    return {"restarts": crashed + counted, "preemptions": taken + max(0, observed.attempt - counted)}


def _disruption(observed: Observed) -> Disruption | None:
    """The last host that the cluster took away, also after its pod is gone."""
    taken = [end for end in observed.ends(Phase.TRAIN) if end.disruption]
    if not taken:
        return observed.status.disruption
    early = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    last = max(taken, key=lambda end: end.disrupted_at or early)
    return Disruption(
        reason=last.disruption[:64],
        message=last.disruption_message[:1024],
        pod=last.pod,
        node=last.node,
        time=last.disrupted_at,
    )


def _times(observed: Observed, phase: JobPhase, since: datetime.datetime, now: datetime.datetime) -> dict[str, Any]:
    hold = holding.of(observed, now)
    times: dict[str, Any] = {
        "running_since": observed.status.running_since or observed.scheduled_whole_at,
        "held_since": hold.since,
        "active_seconds": hold.before or observed.status.active_seconds,
    }
    if phase.finished:
        times |= {"completion_time": since, "eta": None}
    if phase is JobPhase.FAILED and hold.since is not None:
        # A failed job's slice is released at once.
        held = max(0, round((since - hold.since).total_seconds()))
        times |= {"held_since": None, "active_seconds": hold.before + held}
    return times
