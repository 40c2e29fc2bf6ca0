"""The story that `kubectl describe` tells: one event for each thing that has just become known.

Derived from two statuses, so that an event is written exactly when the status has changed, and not again after a
restart of the operator.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator

from lora_dpo_api import wire
from lora_dpo_api.job import Metadata
from lora_dpo_api.status import ConditionType, JobPhase, LoraDpoJobStatus
from lora_dpo_operator import names
from lora_dpo_operator.gateway import Manifest
from lora_dpo_operator.observed import Accepted, Verdict
from lora_dpo_operator.reasons import Reason

_MESSAGE_LIMIT = 1024
_BEGUN = (JobPhase.RUNNING, JobPhase.RESTARTING)


@dataclasses.dataclass(frozen=True)
class Event:
    """Something to tell.

    Attributes:
        type: Normal or Warning.
        reason: one word.
        message: a sentence.
    """

    type: str
    reason: str
    message: str


def between(before: LoraDpoJobStatus, after: LoraDpoJobStatus, verdict: Verdict) -> list[Event]:
    """What has become known, in the order in which it happened."""
    return [
        *_acceptance(before, after, verdict),
        *_eviction(before, after, verdict),
        *_phases(before, after),
        *_warnings(before, after),
    ]


def build(event: Event, metadata: Metadata, now: datetime.datetime, index: int = 0) -> Manifest:
    """The manifest of an event on a LoraDpoJob.

    Args:
        event: what to tell.
        metadata: the job's.
        now: when it became known.
        index: its place among the events of one reconcile: kubectl sorts by seconds, then by name.
    """
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    order = int(now.timestamp() * 1_000_000) + index
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata.name}.{order:x}", "namespace": metadata.namespace},
        "involvedObject": {
            "apiVersion": wire.API_VERSION,
            "kind": wire.KIND,
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version or "",
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:_MESSAGE_LIMIT],
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
        "source": {"component": names.MANAGER},
        "reportingComponent": names.MANAGER,
        "reportingInstance": "",
    }


def _acceptance(before: LoraDpoJobStatus, after: LoraDpoJobStatus, verdict: Verdict) -> Iterator[Event]:
    was, now = before.condition(ConditionType.ACCEPTED), after.condition(ConditionType.ACCEPTED)
    if now is None or (was is not None and was.status == now.status):
        return
    if now.status == "False":
        yield Event("Warning", now.reason, now.message)
        return
    notices = verdict.notices if isinstance(verdict, Accepted) else ()
    runs_on = after.slice.description if after.slice else "its machines"
    yield Event("Normal", Reason.ACCEPTED, f"The job can run on {runs_on}")
    for notice in notices:
        yield Event("Warning", notice.code, str(notice))


def _eviction(before: LoraDpoJobStatus, after: LoraDpoJobStatus, verdict: Verdict) -> Iterator[Event]:
    if isinstance(verdict, Accepted) and verdict.spec.run_policy.suspend:
        # Its user's own wish, which Kueue calls an eviction too.
        return
    was, now = before.condition(ConditionType.EVICTED), after.condition(ConditionType.EVICTED)
    if now is not None and now.status == "True" and (was is None or was.status != "True"):
        yield Event("Warning", ConditionType.EVICTED, f"{now.reason}: {now.message}")


def _phases(before: LoraDpoJobStatus, after: LoraDpoJobStatus) -> Iterator[Event]:
    known = {(entry.phase, entry.started) for entry in before.timeline}
    for entry in after.timeline:
        if (entry.phase, entry.started) in known:
            continue
        message = _message(entry.phase, after)
        if message:
            warning = entry.phase in (JobPhase.FAILED, JobPhase.RESTARTING)
            yield Event("Warning" if warning else "Normal", entry.phase.value, message)


def _message(phase: JobPhase, status: LoraDpoJobStatus) -> str:
    """What has happened, in the past tense; what the status message says where it speaks of this phase."""
    metrics = status.metrics
    runs_on = status.slice.description if status.slice else "the slice"
    match phase:
        case JobPhase.PENDING:
            return ""
        case JobPhase.PREPARING:
            return "Started to check data, model and bucket; no slice is held yet"
        case JobPhase.INITIALIZING if any(entry.phase in _BEGUN for entry in status.timeline):
            return "The slice starts again from its last checkpoint"
        case JobPhase.INITIALIZING:
            found = status.prepared
            about = f"Prepared {found.train_pairs} pairs for {found.total_steps} steps; " if found else ""
            return f"{about}asked for {runs_on}"
        case JobPhase.RUNNING:
            return "Training has begun"
        case JobPhase.RESTARTING:
            why = f": {status.failure.message}" if status.failure else ""
            return f"The slice is restarted{why}"
        case JobPhase.EXPORTING:
            loss = f", loss {metrics.loss:g}" if metrics and metrics.loss is not None else ""
            return f"Trained {status.progress or 'all'} steps{loss}; the slice is released"
        case JobPhase.SUCCEEDED:
            paths = ", ".join(artifact.path for artifact in status.artifacts)
            return f"Done: {paths}" if paths else "Done"
        case _:
            return status.message or phase.value


def _warnings(before: LoraDpoJobStatus, after: LoraDpoJobStatus) -> Iterator[Event]:
    for kind in (ConditionType.PREPARED, ConditionType.PROGRESS_REACHABLE, ConditionType.HEALTHY):
        was, now = before.condition(kind), after.condition(kind)
        if now is None or now.status != "False" or now.reason == Reason.PREPARING:
            continue
        failed_anyway = after.phase is JobPhase.FAILED
        if (was is None or was.reason != now.reason) and not failed_anyway:
            yield Event("Warning", now.reason, now.message)
