"""docs/metrics.md lists what is really exported."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric

from lora_dpo_api.protocol import Checkpoint, Metrics, utc_now
from lora_dpo_api.status import Condition, ConditionType, JobPhase, LoraDpoJobStatus, PhaseTime, SliceStatus
from lora_dpo_operator.metrics import Instruments
from lora_dpo_trainer import metrics, progress

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"

type Row = tuple[str, ...]


def rows(title: str) -> list[Row]:
    """The cells of the table below a title."""
    section = DOCUMENT.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [tuple(cell.strip().strip("`") for cell in line.strip("|").split(" | ")) for line in lines]


def exposed(families: Iterable[Metric]) -> set[Row]:
    """Name as Prometheus has it, kind, labels and help."""
    found = set()
    for family in families:
        labels = sorted({label for sample in family.samples for label in sample.labels if label != "le"})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found.add((name, family.type, " ".join(labels), family.documentation))
    return found


def listed(title: str) -> set[Row]:
    return {(name, kind, labels, meaning) for name, kind, labels, _, meaning in rows(title)}


def test_each_metric_of_training_is_listed_as_it_is() -> None:
    expected = [
        (
            metric.name,
            metrics.prometheus_name(metric.name),
            metric.trl or "",
            re.sub(r"_(\w)", lambda match: match[1].upper(), metric.field or ""),
            "yes" if metric.held_out else "",
            metric.unit,
            metric.meaning,
            metric.formula,
        )
        for metric in metrics.ALL
    ]
    assert rows("Training: values") == expected


def test_the_status_has_every_field_that_is_listed() -> None:
    assert {row[3] for row in rows("Training: values") if row[3]} | {"evalLoss", "evalAccuracy"} == {
        field.alias for field in Metrics.model_fields.values()
    }


def test_each_other_series_of_the_trainer_is_listed() -> None:
    checkpoint = Checkpoint(step=1, time=utc_now(), path="gs://bucket/checkpoints/step-00000001")
    shown = progress.Progress(
        progress.Snapshot(run_id="a/llama", total_steps=2, checkpoint_seconds=120, last_checkpoint=checkpoint)
    )
    assert listed("Trainer: state") == exposed(progress.collector(shown).collect())


def test_each_series_of_the_operator_is_listed() -> None:
    now = utc_now()
    status = LoraDpoJobStatus(
        phase=JobPhase.RUNNING,
        step=1,
        total_steps=2,
        restarts=0,
        preemptions=0,
        steps_lost=0,
        metrics=Metrics.model_validate(dict.fromkeys(Metrics.model_fields, 1)),
        slice=SliceStatus(description="v6e 2x4", slices=1, hosts=1, chips=8),
        last_checkpoint=Checkpoint(step=1, time=now, path="gs://bucket/checkpoints/step-00000001"),
        conditions=[
            Condition(
                type=ConditionType.MAINTENANCE,
                status="True",
                reason="HostMaintenance",
                message="host-1",
                last_transition_time=now,
            )
        ],
        timeline=[PhaseTime(phase=phase, started=now) for phase in (JobPhase.PENDING, JobPhase.RUNNING)],
    )
    failed = LoraDpoJobStatus(phase=JobPhase.FAILED, completion_time=now)
    instruments = Instruments()
    instruments.lead(lambda: {("a", "llama"): status, ("a", "qwen"): failed}, utc_now)
    instruments.observe_call("get", "jobs", 200)
    instruments.reconciles.labels("ok").inc()
    instruments.progress_pulls.labels("read").inc()
    assert listed("Operator") == exposed(instruments.registry.collect())
