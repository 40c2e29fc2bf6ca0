"""What a job has waited for and used, from the timeline of its status: for dashboards, bills and comparisons.

Pure and repeatable: the same status gives the same numbers whoever computes them, so that nothing is lost with a
restart of the operator and nothing is counted twice.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Collection

from lora_dpo_api.status import JobPhase, LoraDpoJobStatus

HOLDING = (JobPhase.INITIALIZING, JobPhase.RUNNING, JobPhase.RESTARTING)
"""Phases in which a slice is held: it starts, trains, or starts again on the same nodes."""


class Outcome(enum.StrEnum):
    """How a job ended, as far as it has."""

    ACTIVE = "Active"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """One job's times, in seconds, over all its attempts.

    The timeline is bounded: of a job that restarted very often it has lost the beginning. What can't be known then
    is None.

    Attributes:
        outcome: how it ended.
        queued: in the phase Queued.
        to_first_step: from the job's creation to its first step.
        held: while its slice was held.
        useful: of those, training whose steps were kept: the time in the phase Running (evaluations and checkpoints
            included), less the share of the steps that had to be computed again. Goodput is useful / held.
        chip: chips x held; 0 without TPUs.
    """

    outcome: Outcome
    queued: float | None
    to_first_step: float | None
    held: float
    useful: float | None
    chip: float


def of(status: LoraDpoJobStatus, now: datetime.datetime) -> Account:
    """Add up a job's timeline.

    Args:
        status: the job's.
        now: the end of a phase that lasts.
    """
    whole = not status.timeline or status.timeline[0].phase is JobPhase.PENDING
    held = _seconds(status, HOLDING, now) + (0.0 if whole else _dropped(status))
    chips = status.slice.chips if status.slice else 0
    return Account(
        outcome=_outcome(status.phase),
        queued=_seconds(status, (JobPhase.QUEUED,), now) if whole else None,
        to_first_step=_to_first_step(status) if whole else None,
        held=held,
        useful=_seconds(status, (JobPhase.RUNNING,), now) * _kept(status) if whole else None,
        chip=chips * held,
    )


def _outcome(phase: JobPhase | None) -> Outcome:
    if phase is JobPhase.SUCCEEDED:
        return Outcome.SUCCEEDED
    return Outcome.FAILED if phase is JobPhase.FAILED else Outcome.ACTIVE


def _seconds(status: LoraDpoJobStatus, phases: Collection[JobPhase], now: datetime.datetime) -> float:
    entries = [entry for entry in status.timeline if entry.phase in phases]
    # Times come from several machines' clocks, and a phase may begin a moment in the future.
    return sum(max(0.0, ((entry.ended or now) - entry.started).total_seconds()) for entry in entries)


def _dropped(status: LoraDpoJobStatus) -> float:
    """Between the first hold of the slice and what is left of the timeline; pauses in between are not known."""
    if status.running_since is None:
        return 0.0
    return max(0.0, (status.timeline[0].started - status.running_since).total_seconds())


def _to_first_step(status: LoraDpoJobStatus) -> float | None:
    running = next((entry.started for entry in status.timeline if entry.phase is JobPhase.RUNNING), None)
    return None if running is None else (running - status.timeline[0].started).total_seconds()


def _kept(status: LoraDpoJobStatus) -> float:
    """The share of the computed steps that no restart threw away."""
    steps = status.step or 0
    computed = steps + status.steps_lost
    return steps / computed if computed else 1.0
