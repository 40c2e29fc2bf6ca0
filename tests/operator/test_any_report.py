"""Whatever rank 0 says in a report's form, the job's status can be derived, written and read again."""

from __future__ import annotations

import dataclasses
import datetime
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from lora_dpo_api.protocol import LARGEST_COUNT, Checkpoint, CurvePoint, Metrics, Phase, ProgressReport, TrainerState
from lora_dpo_api.status import JobPhase, LoraDpoJobStatus
from lora_dpo_operator import deadlines, derive, events, lifetime, plan

from .builders import (
    NAME,
    NAMESPACE,
    SETTINGS,
    a_batch_job,
    a_job,
    a_jobset,
    a_pod,
    at,
    condition,
    observe,
    prepared_status,
    wire,
)


def models[M: BaseModel](model: type[M], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[M]:
    return st.fixed_dictionaries(fields).map(lambda values: model(**values))


counts = st.integers(0, 30) | st.integers(0, LARGEST_COUNT) | st.just(LARGEST_COUNT)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
times = st.datetimes(max_value=at(350).replace(tzinfo=None), timezones=st.just(datetime.UTC))
metrics = models(Metrics, loss=numbers, accuracy=numbers, grad_norm=numbers, parameter_count=st.none() | counts)
points = st.lists(models(CurvePoint, step=counts, loss=numbers), max_size=3)
reports = models(
    ProgressReport,
    run_id=st.just(f"{NAMESPACE}/{NAME}"),
    attempt=st.integers(0, 2),
    state=st.sampled_from(TrainerState),
    state_since=times,
    updated_at=times,
    step=counts,
    total_steps=counts,
    epoch=numbers,
    eta_seconds=numbers,
    resumed_from_step=st.none() | counts,
    metrics=metrics,
    non_finite=st.lists(st.sampled_from(("loss", "grad_norm")), max_size=2),
    curve=points,
    last_checkpoint=st.none() | models(Checkpoint, step=counts, time=times, path=st.just("gs://bucket/run")),
)
words = st.just("") | st.text(max_size=64)
ends = st.sampled_from((None, 0, 42, 70, 139))
phases = st.sampled_from((JobPhase.INITIALIZING, JobPhase.RUNNING, JobPhase.RESTARTING))


@settings(deadline=None, max_examples=300)
@given(
    polled=st.none() | reports,
    left=st.none() | reports,
    end=ends,
    said=st.tuples(words, words, words),
    phase=phases,
    attempt=st.integers(0, 2),
    given_up=st.booleans(),
)
def test_whatever_is_said_the_status_can_be_written(
    polled: ProgressReport | None,
    left: ProgressReport | None,
    end: int | None,
    said: tuple[str, str, str],
    phase: JobPhase,
    attempt: int,
    given_up: bool,
) -> None:
    message = json.dumps(
        {
            "phase": "train",
            "exitCode": end,
            "progress": wire(left) if left else None,
            **dict(zip(("reason", "message", "hint"), said, strict=True)),
        }
    )
    over = None if end is None else (60, end)
    pod = a_pod(Phase.TRAIN, 30, attempt=attempt, running=None if over else 35, ended=over, message=message)
    seen = observe(
        a_job({"runPolicy": {"ttlAfterFinished": "10m"}}),
        status=prepared_status(phase=phase),
        prepare=a_batch_job(Phase.PREPARE, 1, condition("Complete", 20)),
        jobset=a_jobset(21, *([condition("Failed", 65)] if given_up else []), restarts=attempt),
        pods=(pod,),
        report=polled,
    )
    for now in (at(100), at(5000)):
        status = derive.status(seen, now)
        assert LoraDpoJobStatus.model_validate(wire(status)) == status
        plan.actions(seen, SETTINGS)
        deadlines.next_due(seen, now)
        events.between(seen.status, status, seen.verdict)
        seen = dataclasses.replace(seen, status=status)
        lifetime.expires_at(seen)
