"""The training loop: step, watch, log, evaluate, save; the same on every process."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any

import jax

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_api.protocol import TrainerState
from lora_dpo_trainer import (
    adapter_files,
    checkpoint,
    engine,
    errors,
    evaluate,
    health,
    history,
    metrics,
    preemption,
    progress,
    storage,
)
from lora_dpo_trainer.step import TrainState

LOG_SECONDS = 5.0
"""At most one line in this time, but for the first and the last step."""

AGREE_STEPS = 10
"""With several processes, the time of the next checkpoint is agreed on every so many steps."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        step: Steps completed.
        notes: What is kept in checkpoints besides the state: the last and the best evaluation.
    """

    step: int
    notes: Mapping[str, Any]


def train(
    config: TrainerConfig,
    machine: engine.Engine,
    state: TrainState,
    start: Position,
    *,
    shown: progress.Progress,
    watch: preemption.Watch,
    writer: checkpoint.Writer,
    record: history.History | None,
) -> TrainState:
    """Run from `start` to the last step and the last evaluation.

    Returns:
        The final state.

    Raises:
        Preempted: a SIGTERM came; the last completed step is saved.
        Diverged: the first loss is not ln 2, or something is not finite.
    """
    run = _Loop(config, machine, start, shown, watch, writer, record)
    return run.to_the_end(state)


class _Loop:
    def __init__(
        self,
        config: TrainerConfig,
        machine: engine.Engine,
        start: Position,
        shown: progress.Progress,
        watch: preemption.Watch,
        writer: checkpoint.Writer,
        record: history.History | None,
    ) -> None:
        self._config = config
        self._machine = machine
        self._start = start.step
        self._notes = dict(start.notes)
        self._shown = shown
        self._watch = watch
        self._writer = writer
        self._record = record
        self._rate = progress.RateMeter()
        self._window = health.Window.of(config, machine.total_steps, held_out=machine.validation_pairs > 0)
        self._saved_step = start.step
        self._saved_at = time.monotonic()
        self._logged_at = 0.0

    def to_the_end(self, state: TrainState) -> TrainState:
        total = self._machine.total_steps
        self._shown.enter(TrainerState.COMPILING)
        with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as ahead:
            upcoming = ahead.submit(self._machine.batch, self._start) if self._start < total else None
            if self._evaluation_is_due(self._start):  # an attempt that ended between a step and its evaluation
                self._evaluate(state, self._start)
            for step in range(self._start, total):
                assert upcoming is not None
                batch = upcoming.result()
                upcoming = ahead.submit(self._machine.batch, step + 1) if step + 1 < total else None
                state = self._step(state, batch, step)
                self._between_steps(state, step + 1)
        self._save(state, total)
        self._writer.wait()
        if self._record is not None:
            self._record.flush()
        return state

    def _step(self, state: TrainState, batch: engine.HostBatch, step: int) -> TrainState:
        began = time.monotonic()
        state, values = self._machine.train(state, batch)
        seconds = time.monotonic() - began
        if step == 0:
            health.check_first_loss(self._config, values["dpo_loss"], self._machine.compute_dtype)
        if step == self._start:  # it has compiled
            self._shown.enter(TrainerState.TRAINING)
        else:
            self._rate.add(seconds, batch.pairs, batch.tokens)
        self._report(step + 1, values | self._rate.rates())
        health.check_finite(step + 1, values)
        return state

    def _report(self, step: int, values: dict[str, float]) -> None:
        total = self._machine.total_steps
        seconds = self._rate.seconds_per_step
        eta = (total - step) * seconds if seconds else None
        self._shown.record(step, values, epoch=self._machine.epoch(step), eta_seconds=eta)
        self._watch_health(self._window.after(step, values))
        if self._record is not None:
            self._record.add(step, values)
            if step in (self._start + 1, total) or time.monotonic() - self._logged_at > LOG_SECONDS:
                self._logged_at = time.monotonic()
                _log.info("%s", line(step, total, values, eta))

    def _watch_health(self, window: health.Window) -> None:
        self._window = window
        for advice in health.advice(window):
            self._shown.advise(advice)

    def _between_steps(self, state: TrainState, step: int) -> None:
        if self._watch.reached():
            self._leave(state, step)
        if self._checkpoint_is_due(step):
            self._save(state, step)
        every = self._config.output.peft.every_steps
        if every and step % every == 0:
            url = storage.join(self._config.output.path, "peft", checkpoint.name_of(step))
            if self._record is not None:
                known = metrics.finite(self._shown.snapshot.values)
                adapter_files.write(self._machine, state.adapter, url, steps=step, metrics=known)
        if self._evaluation_is_due(step):
            self._evaluate(state, step)

    def _evaluation_is_due(self, step: int) -> bool:
        every, total = self._config.eval.every_steps, self._machine.total_steps
        if self._machine.validation_pairs == 0 or self._notes.get("evaluated_step") == step:
            return False
        return step == total or (every is not None and step > 0 and step % every == 0)

    def _evaluate(self, state: TrainState, step: int) -> None:
        self._shown.enter(TrainerState.EVALUATING)
        values = evaluate.run(self._machine, state, max_pairs=self._config.eval.max_pairs, watch=self._watch)
        if values is None:
            self._leave(state, step)
        else:
            self._shown.note(values)
            self._watch_health(self._window.evaluated(values["eval_dpo_loss"]))
            best = self._notes.get("best_eval_loss")
            if best is None or values["eval_dpo_loss"] < best:
                self._notes |= {"best_eval_loss": values["eval_dpo_loss"], "best_step": step}
            self._notes["evaluated_step"] = step
            if self._record is not None:
                self._record.add(step, values)
                _log.info(
                    "Evaluation after step %d: loss %.4f, accuracy %.3f, reward margin %.4f (%d pairs)",
                    step,
                    values["eval_dpo_loss"],
                    values["eval_dpo_accuracy"],
                    values["eval_reward_margin"],
                    values["eval_pairs"],
                )
        self._shown.enter(TrainerState.TRAINING)

    def _checkpoint_is_due(self, step: int) -> bool:
        due = time.monotonic() - self._saved_at >= self._config.output.checkpoint.every_seconds
        if jax.process_count() == 1:
            return due
        if step % AGREE_STEPS:
            return False
        from jax.experimental import multihost_utils

        return bool(multihost_utils.broadcast_one_to_all(due))

    def _save(self, state: TrainState, step: int) -> None:
        self._writer.save(step, state, self._notes)
        self._saved_step, self._saved_at = step, time.monotonic()
        if self._record is not None:
            self._record.flush()

    def _leave(self, state: TrainState, step: int) -> None:
        self._shown.enter(TrainerState.SAVING)
        if self._saved_step != step:
            self._save(state, step)
        self._writer.wait()
        if self._record is not None:
            self._record.flush()
        raise errors.Preempted(f"Stopped after step {step} of {self._machine.total_steps}; the state is saved.")


def line(step: int, total: int, values: Mapping[str, float], eta: float | None) -> str:
    """One readable line about a step."""
    parts = [
        f"step {step}/{total}",
        f"loss {values['dpo_loss']:.4f}",
        f"margin {values['reward_margin']:.4f}",
        f"accuracy {values['dpo_accuracy']:.3f}",
        f"lr {values['learning_rate']:.2e}",
    ]
    if "pairs_per_second" in values:
        parts.append(f"{values['pairs_per_second']:.2f} pairs/s")
    if eta is not None:
        parts.append(f"eta {duration(eta)}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """A duration as people write it: 1h12m, 3m05s, 9s."""
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole}s"
