"""The part of the status that comes from rank 0: metrics, curve, estimate, checkpoint, advice."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from typing import Any

from lora_dpo_api import durations, guidance
from lora_dpo_api.protocol import Advice, Artifact, Metrics, Phase, ProgressReport, TrainerState
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus
from lora_dpo_operator import renewal
from lora_dpo_operator.observed import Accepted, Observed
from lora_dpo_operator.reasons import Reason

DIGITS = 4
"""Significant digits of a metric."""

ADVICE_LIMIT = 16
_SPEC_CHANGED = Advice(
    code=Reason.SPEC_CHANGED,
    message="The spec was changed while the job runs; it goes on with the spec that it was started with. To run with "
    "the new one, set spec.runPolicy.suspend to true, and to false again",
)
_UNKNOWN_STEP = (TrainerState.STARTING, TrainerState.LOADING)
ARTIFACT_LIMIT = 8


def derive(observed: Observed) -> dict[str, Any]:
    """The fields to change; none where rank 0 has said nothing new."""
    report = observed.progress
    last = observed.status.last_progress_time
    if report is None or (last is not None and report.updated_at < last):
        return {}
    if report.state in _UNKNOWN_STEP:
        # It has not looked for a checkpoint yet: the step that was reached last still stands.
        return {"trainer_state": report.state.value, "eta": None, "last_progress_time": report.updated_at}
    step, total = report.step, report.total_steps
    return {
        "trainer_state": report.state.value,
        "reported_attempt": report.attempt,
        "last_step_time": _last_step(report, observed.status),
        "steps_lost": observed.status.steps_lost + _lost(report, observed.status),
        "step": step,
        "total_steps": total,
        "progress": f"{step}/{total}",
        "epoch": None if report.epoch is None else rounded(report.epoch),
        "eta": _eta(report),
        "metrics": _metrics(report.metrics, observed.status.metrics),
        "curve": report.curve or observed.status.curve,
        "last_checkpoint": report.last_checkpoint or observed.status.last_checkpoint,
        "last_progress_time": report.updated_at,
    }


def advice(observed: Observed) -> list[Advice]:
    """What a user may want to change: forced values and guidance, then what prepare and training found.

    The newest word on a subject stands.
    """
    found: dict[str, Advice] = {}
    if isinstance(observed.verdict, Accepted):
        said = list(observed.verdict.notices)
        prepared = observed.prepared
        about_rank = prepared and guidance.rank_advice(observed.verdict.spec.lora.r, prepared.train_pairs)
        said += [about_rank] if about_rank else []
        if renewal.changed(observed) and observed.status.phase is not JobPhase.SUSPENDED:
            found[Reason.SPEC_CHANGED] = _SPEC_CHANGED
        found |= {notice.code: Advice(code=notice.code[:64], message=str(notice)[:1024]) for notice in said}
    found |= {entry.code: entry for entry in observed.status.advice if entry.code not in found}
    for end in observed.terminations:
        found |= {entry.code: entry for entry in (end.report.advice if end.report else [])}
    if observed.progress is not None:
        found |= {entry.code: entry for entry in observed.progress.advice}
    return list(found.values())[:ADVICE_LIMIT]


def artifacts(observed: Observed) -> list[Artifact]:
    """What the job wrote for its user; of two of the same kind and place, the later."""
    reports = [end.report for end in observed.terminations if end.report and end.phase is not Phase.PREPARE]
    written: Iterable[Artifact] = (artifact for report in reports for artifact in report.artifacts)
    found = {(entry.kind, entry.path): entry for entry in (*observed.status.artifacts, *written)}
    return list(found.values())[-ARTIFACT_LIMIT:]


def rounded(value: float) -> float:
    """A number to 4 significant digits."""
    if value == 0 or not math.isfinite(value):
        return value
    try:
        return round(value, DIGITS - 1 - math.floor(math.log10(abs(value))))
    except OverflowError:
        # Above it there is no number to round up to.
        return value


def newest(times: Sequence[datetime.datetime | None]) -> datetime.datetime | None:
    """The latest of the times that are known."""
    return max((time for time in times if time is not None), default=None)


def _last_step(report: ProgressReport, before: LoraDpoJobStatus) -> datetime.datetime | None:
    """When the step was seen to change; a new attempt and a new state (an evaluation) begin anew."""
    same = (before.step, before.reported_attempt, before.trainer_state) == (
        report.step,
        report.attempt,
        report.state.value,
    )
    return before.last_step_time if same and before.last_step_time else report.updated_at


def _lost(report: ProgressReport, before: LoraDpoJobStatus) -> int:
    """Steps that were done before a restart and are done again: those after the checkpoint that it went on from."""
    if before.step is None or before.reported_attempt is None:
        return 0
    restarted = report.attempt != before.reported_attempt or report.step < before.step
    return max(0, before.step - (report.resumed_from_step or 0)) if restarted else 0


def _eta(report: ProgressReport) -> str | None:
    if report.eta_seconds is None or report.state is TrainerState.FINISHED:
        return None
    return durations.text(max(0.0, report.eta_seconds))[:16]


def _metrics(new: Metrics, before: Metrics | None) -> Metrics:
    """New values over the old ones: a report without an evaluation keeps the last evaluation's."""
    values = (before.model_dump(exclude_none=True) if before else {}) | new.model_dump(exclude_none=True)
    return Metrics(**{name: rounded(value) if isinstance(value, float) else value for name, value in values.items()})
