"""The story of a job, for people: what it does, what it did, how well, what failed, and what to do next.

Pure: from a job and the clock to text. Names and messages come from others, and are shown, never obeyed.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from rich.text import Text

from ldj.follow import number
from ldj.saying import printable
from ldj.seen import SeenJob
from lora_dpo_api import durations
from lora_dpo_api.protocol import Metrics
from lora_dpo_api.status import Failure, JobPhase, LoraDpoJobStatus

STYLES = {
    JobPhase.SUCCEEDED: "bold green",
    JobPhase.FAILED: "bold red",
    JobPhase.RESTARTING: "bold yellow",
    JobPhase.SUSPENDED: "bold yellow",
}
_USUAL = "bold cyan"
_LABEL = 12

_SHOWN: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("training", (("loss", "loss"), ("reward margin", "reward_margin"), ("accuracy", "accuracy"))),
    ("held out", (("loss", "eval_loss"), ("accuracy", "eval_accuracy"))),
    ("margins", (("policy", "margin_policy"), ("reference", "margin_ref"))),
    ("rewards", (("chosen", "chosen_reward"), ("rejected", "rejected_reward"))),
    ("optimizer", (("learning rate", "learning_rate"), ("gradient norm", "grad_norm"))),
    ("speed", (("tokens/s", "tokens_per_second"), ("MFU", "mfu"))),
)


def tell(job: SeenJob, now: datetime.datetime) -> Text:
    """The whole story, one fact a line."""
    return Text("\n").join(_lines(job, now))


def _lines(job: SeenJob, now: datetime.datetime) -> Iterator[Text]:
    status = job.status
    yield _head(job, now)
    if not job.readable:
        yield _fact("note", "another version of the operator wrote the status; this ldj can't read it. Update ldj.")
    if status.message:
        yield Text(f"  {printable(status.message)}")
    if status.timeline:
        yield Text()
        yield from _phases(status, now)
    facts = [*_facts(job, now)]
    if facts:
        yield Text()
        yield from facts
    metrics = [*_metrics(status.metrics or Metrics())]
    if metrics:
        yield Text()
        yield Text("metrics", style="bold")
        yield from metrics
    for advice in status.advice:
        yield Text()
        yield Text.assemble((f"advice: {printable(advice.code)}", "bold yellow"))
        yield Text(f"  {printable(advice.message)}")
    if status.failure:
        yield Text()
        yield from _failure(status.failure, finished=job.phase is JobPhase.FAILED)


def _head(job: SeenJob, now: datetime.datetime) -> Text:
    status = job.status
    parts = [(f"{job.metadata.namespace}/{job.name}  ", "bold"), (job.phase.value, STYLES.get(job.phase, _USUAL))]
    if status.step is not None and status.total_steps:
        share = f" ({100 * status.step / status.total_steps:.0f} %)"
        parts.append((f"  step {status.step} of {status.total_steps}{share}", ""))
    if not job.phase.finished:
        if status.trainer_state:
            parts.append((f", {printable(status.trainer_state)}", ""))
        if status.eta:
            parts.append((f", {printable(status.eta)} to go", ""))
    created = job.metadata.creation_timestamp
    if created is not None:
        parts.append((f"  made {_ago(created, now)}", "dim"))
    return Text.assemble(*parts)


def _phases(status: LoraDpoJobStatus, now: datetime.datetime) -> Iterator[Text]:
    yield Text("phases", style="bold")
    for entry in status.timeline:
        ended = entry.ended or (None if entry.phase.finished else now)
        lasted = durations.text((ended - entry.started).total_seconds()) if ended else ""
        because = f"  {printable(entry.reason)}" if entry.reason and entry.reason != entry.phase.value else ""
        went_on = "…" if entry.ended is None and not entry.phase.finished else ""
        started = entry.started.astimezone(now.tzinfo).strftime("%Y-%m-%d %H:%M:%S")
        line = f"  {entry.phase.value:{_LABEL}}  {started}  {lasted + went_on:>8}{because}"
        yield Text(line.rstrip(), style=STYLES.get(entry.phase, "") if entry.phase.finished else "")


def _facts(job: SeenJob, now: datetime.datetime) -> Iterator[Text]:
    status = job.status
    if status.slice is not None:
        made = status.slice
        chips = f", {made.chips} chips" if made.chips else ""
        yield _fact("slice", f"{printable(made.description)}, {made.ready_hosts} of {made.hosts} hosts ready{chips}")
    if status.prepared is not None:
        data = status.prepared
        dropped = f", {data.dropped_pairs} dropped" if data.dropped_pairs else ""
        yield _fact("data", f"{data.train_pairs} pairs, {data.validation_pairs} held out{dropped}")
    if status.last_checkpoint is not None:
        kept = status.last_checkpoint
        yield _fact("checkpoint", f"step {kept.step}, {_ago(kept.time, now)}, {printable(kept.path)}")
    if status.restarts or status.preemptions or status.steps_lost:
        yield _fact(
            "restarts",
            f"{status.restarts} after crashes, {status.preemptions} after preemptions; "
            f"{status.steps_lost} steps computed again",
        )
    for artifact in status.artifacts:
        yield _fact("result", f"{printable(artifact.kind)}: {printable(artifact.path)}")


def _metrics(metrics: Metrics) -> Iterator[Text]:
    for title, fields in _SHOWN:
        shown = [(name, _value(field, getattr(metrics, field))) for name, field in fields]
        words = [f"{name} {value}" for name, value in shown if value]
        if words:
            yield _fact(title, ", ".join(words))
    if metrics.trainable_parameter_count is not None and metrics.parameter_count:
        share = 100 * metrics.trainable_parameter_count / metrics.parameter_count
        trained = f"{metrics.trainable_parameter_count:,} of {metrics.parameter_count:,} trained ({share:.3g} %)"
        yield _fact("parameters", trained)


def _value(field: str, value: float | None) -> str:
    return f"{value:,.0f}" if field == "tokens_per_second" and value is not None else number(value)


def _failure(failure: Failure, *, finished: bool) -> Iterator[Text]:
    kind = f"{printable(failure.class_)}/{printable(failure.reason)}"
    yield Text(f"{'failure' if finished else 'last failure'}: {kind}", style="bold red" if finished else "bold yellow")
    yield Text(f"  {printable(failure.message)}")
    where = [
        *([f"in {printable(failure.phase)}"] if failure.phase else []),
        *([f"pod {printable(failure.pod)}"] if failure.pod else []),
        *([f"node {printable(failure.node)}"] if failure.node else []),
        *([f"exit code {failure.exit_code}"] if failure.exit_code is not None else []),
    ]
    if where:
        yield Text(f"  {', '.join(where)}", style="dim")
    if failure.hint:
        yield Text.assemble(("  what to do: ", "bold"), printable(failure.hint))


def _fact(label: str, text: str) -> Text:
    return Text(f"  {label:{_LABEL}}  {text}")


def _ago(moment: datetime.datetime, now: datetime.datetime) -> str:
    return f"{durations.text((now - moment).total_seconds())} ago"
