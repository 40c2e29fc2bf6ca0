"""Starting a job again: a failed one when its user asks, a suspended one whose spec was changed when it is resumed.

Either way what is in the way goes first, pods included, so that no two slices write to one output; then the job goes on
from its last checkpoint. What is still good stays: prepared rows of an unchanged spec, a slice that has trained.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lora_dpo_api.protocol import Phase
from lora_dpo_api.status import JobPhase
from lora_dpo_operator.objects import Job, JobSet
from lora_dpo_operator.observed import Accepted, Observed

_OVER: dict[str, Any] = {
    "phase": None,
    "failure": None,
    "completion_time": None,
    "held_since": None,
    "active_seconds": None,
    "crashes": [],
    "reported_attempt": None,
}
"""What is forgotten of a failure: the job has all its time and restarts again."""

_UNTRAINED: dict[str, Any] = {"restarts": 0, "preemptions": 0}
"""What is forgotten of a slice that is made anew."""

_UNPREPARED: dict[str, Any] = {
    "prepared": None,
    "spec_hash": None,
    "config_map": None,
    "image": None,
    "image_digest": None,
    "trainer_state": None,
    "eta": None,
}
"""What is forgotten of another spec."""


def wanted(observed: Observed) -> bool:
    """Whether the job is to be started again."""
    if not isinstance(observed.verdict, Accepted) or observed.metadata.deletion_timestamp is not None:
        return False
    return observed.retry_asked or _resumed_with_another_spec(observed, observed.verdict)


def changed(observed: Observed) -> bool:
    """Whether the spec is another one than that which the job was started with."""
    begun = observed.status.spec_hash
    return isinstance(observed.verdict, Accepted) and begun is not None and begun != observed.verdict.spec_hash


def in_the_way(observed: Observed) -> tuple[Job | JobSet, ...]:
    """Objects that must be gone before the job starts again."""
    found: list[Job | JobSet | None] = [observed.export if not _exported(observed) else None]
    if not observed.trained:
        found.append(observed.jobset)
        unprepared = observed.prepared is None or changed(observed)
        found.append(observed.prepare if unprepared else None)
    return tuple(child for child in found if child is not None)


def renewed(observed: Observed) -> Observed:
    """The job as it starts again, once nothing is in the way; as it is, until then."""
    pods = () if observed.trained else observed.pods_of(Phase.TRAIN)
    if not wanted(observed) or in_the_way(observed) or pods:
        return observed
    fresh = {} if observed.trained else _UNTRAINED | (_UNPREPARED if changed(observed) else {})
    status = observed.status.model_copy(update=_OVER | fresh | {"retry": observed.metadata.retry})
    return dataclasses.replace(observed, status=status, terminations=())


def _exported(observed: Observed) -> bool:
    return observed.export is not None and observed.export.complete is not None


def _resumed_with_another_spec(observed: Observed, verdict: Accepted) -> bool:
    """Only what is suspended may be made anew: what runs keeps the spec that it was started with."""
    if verdict.spec.run_policy.suspend or not changed(observed):
        return False
    return observed.status.phase is JobPhase.SUSPENDED
