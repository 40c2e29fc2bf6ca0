"""The timeline: each phase with its times, in order, also when nobody was there to see it."""

from __future__ import annotations

from collections.abc import Sequence

from lora_dpo_api.status import TIMELINE_LIMIT, JobPhase, PhaseTime
from lora_dpo_operator.stage import Milestone


def advance(timeline: Sequence[PhaseTime], path: Sequence[Milestone], *, new_attempt: bool) -> list[PhaseTime]:
    """Add to a timeline what has happened since it was written.

    Args:
        timeline: as the status has it.
        path: the way to the present phase, in order; of the present attempt.
        new_attempt: the slice was restarted since.

    Returns:
        The timeline up to the present phase, its times never going back.
    """
    found = list(timeline)
    for milestone in _news(timeline, path, new_attempt=new_attempt):
        if found and found[-1].phase is milestone.phase:
            continue
        started = max(milestone.time, found[-1].started) if found else milestone.time
        if found:
            found[-1] = found[-1].model_copy(update={"ended": started})
        found.append(PhaseTime(phase=milestone.phase, started=started, reason=milestone.reason or None))
    if found and found[-1].phase.finished:
        found[-1] = found[-1].model_copy(update={"ended": found[-1].started})
    return found[-TIMELINE_LIMIT:]


def _news(timeline: Sequence[PhaseTime], path: Sequence[Milestone], *, new_attempt: bool) -> Sequence[Milestone]:
    if not timeline:
        return path
    phases = [milestone.phase for milestone in path]
    if new_attempt and JobPhase.RESTARTING in phases:
        return path[phases.index(JobPhase.RESTARTING) :]
    last = timeline[-1]
    if last.phase in phases:
        return path[len(phases) - phases[::-1].index(last.phase) :]
    later = [milestone for milestone in path[:-1] if milestone.time >= last.started]
    return [*later, path[-1]]
