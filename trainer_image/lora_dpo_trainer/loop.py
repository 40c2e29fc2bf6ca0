"""The training loop: step, watch, log, evaluate, save; the same on every process."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_api.protocol import TrainerState
from lora_dpo_trainer import (
    adapter_files,
    checkpoint,
    engine,
    errors,
    evaluate,
    health,
    memory,
    metrics,
    preemption,
    progress,
    storage,
    trackers,
)
from lora_dpo_trainer.step import Metrics, TrainState

RUN_AHEAD_SECONDS = 1.0
"""Where a step takes less, the next one starts before its metrics are read, and the devices never wait for that."""

AGREE_SECONDS, AGREE_STEPS = 5.0, 10
"""With several processes, whether a checkpoint is due is agreed on about so often, and every so many steps."""

LONG_STEP_SECONDS = 5.0
"""Where a step takes longer, a SIGTERM is looked for at each microbatch."""

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
    notice: preemption.Notice,
    writer: checkpoint.Writer,
    record: trackers.Trackers | None,
) -> TrainState:
    """Run from `start` to the last step and the last evaluation.

    Returns:
        The final state.

    Raises:
        Preempted: a SIGTERM came; the last completed step is saved. Where that takes longer than the notice's time,
            the process ends with what `notice` was told to say.
        Diverged: the first loss is not ln 2, or something is not finite.
    """
    run = _Loop(config, machine, start, shown, watch, writer, record)
    notice.protect(run.last_words)
    try:
        return run.to_the_end(state)
    except errors.Diverged:
        run.finish_writing()  # the last good checkpoint may still be on its way
        raise


@dataclasses.dataclass(frozen=True)
class _Running:
    """A step that has been started, and whose metrics are not read yet.

    Attributes:
        step: Steps completed with it.
        batch: What it is trained on.
        values: On the devices.
        data_seconds: How long its batch was waited for.
    """

    step: int
    batch: engine.HostBatch
    values: Metrics
    data_seconds: float


class _Loop:
    def __init__(
        self,
        config: TrainerConfig,
        machine: engine.Engine,
        start: Position,
        shown: progress.Progress,
        watch: preemption.Watch,
        writer: checkpoint.Writer,
        record: trackers.Trackers | None,
    ) -> None:
        self._config = config
        self._machine = machine
        self._start = start.step
        self._notes = dict(start.notes)
        self._shown = shown
        self._watch = watch
        self._writer = writer
        self._record = record
        self._rate = progress.RateMeter(machine.peak_flops)
        self._running: _Running | None = None
        self._complete_at = 0.0
        self._save_seconds: dict[str, float] = {}
        self._window = health.Window.of(config, machine.total_steps, held_out=machine.validation_pairs > 0)
        self._done = start.step
        self._saved = start.step, dict(start.notes)
        self._saved_at = time.monotonic()
        self._next_agreement = start.step + 1

    def to_the_end(self, state: TrainState) -> TrainState:
        total = self._machine.total_steps
        self._shown.enter(TrainerState.COMPILING)
        with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as ahead:
            upcoming = ahead.submit(self._machine.batch, self._start) if self._start < total else None
            if self._evaluation_is_due(self._start):  # an attempt that ended between a step and its evaluation
                self._evaluate(state, self._start)
            for step in range(self._start, total):
                assert upcoming is not None
                asked = time.monotonic()
                batch = upcoming.result()
                waited = time.monotonic() - asked
                upcoming = ahead.submit(self._machine.batch, step + 1) if step + 1 < total else None
                state = self._step(state, batch, step, waited)
                self._between_steps(state, step + 1)
        if self._unsaved(total):
            self._save(state, total)
        self.finish_writing()
        return state

    def finish_writing(self) -> None:
        """Wait until the last checkpoint and every metric so far are complete in the output."""
        self._writer.wait()
        if self._record is not None:
            self._record.flush()

    def last_words(self) -> str:
        """What to say when the process must end at once, wherever the loop is."""
        saved = self._writer.saved_step
        saved = self._start if saved is None else saved
        done, total = self._done, self._machine.total_steps
        if saved >= done:
            return f"Stopped after step {done} of {total}; the state is saved."
        again = f"{done - saved} step{'s' if done - saved > 1 else ''}"
        return (
            f"Stopped after step {done} of {total}, which could not be saved within {preemption.SAVE_SECONDS:.0f} s: "
            f"the checkpoint of step {saved} counts, and {again} will be done again."
        )

    def _step(self, state: TrainState, batch: engine.HostBatch, step: int, waited: float) -> TrainState:
        before = state
        state, values = self._machine.start(before, batch, lambda sums: self._within_a_step(before, sums, step))
        self._settle()
        self._running = _Running(step + 1, batch, values, waited)
        seconds = self._rate.seconds_per_step
        if seconds is None or seconds > RUN_AHEAD_SECONDS:  # a SIGTERM must not wait for a second long step
            self._settle()
        return state

    def _settle(self) -> None:
        """Wait for the step that runs; judge and report it. Nothing is kept of a step that is not settled."""
        if self._running is None:
            return
        running, self._running = self._running, None
        values = self._machine.read(running.values)
        before, self._complete_at = self._complete_at, time.monotonic()
        self._done = running.step
        if running.step == 1:
            health.check_first_loss(self._config, values["dpo_loss"], self._machine.compute_dtype)
        values |= {"pad_fraction": running.batch.pad_fraction, "data_seconds": running.data_seconds}
        if running.step == self._start + 1:  # it has compiled
            self._shown.enter(TrainerState.TRAINING)
        else:
            values["step_seconds"] = self._complete_at - before
            self._rate.add(values["step_seconds"], running.batch.pairs, running.batch.tokens, running.batch.flops)
        self._report(running.step, values | self._rate.rates() | self._save_seconds | memory.used())
        self._save_seconds = {}
        health.check_finite(running.step, values)

    def _within_a_step(self, state: TrainState, sums: Any, step: int) -> None:
        """Between two microbatches; `state` is that of the last completed step."""
        if self._seconds_per_step > LONG_STEP_SECONDS:
            jax.block_until_ready(sums)  # else all microbatches are on their way before the first is done
        if self._watch.reached():
            self._leave(state, step)

    def _report(self, step: int, values: dict[str, float]) -> None:
        total = self._machine.total_steps
        seconds = self._rate.seconds_per_step
        eta = (total - step) * seconds if seconds else None
        self._shown.record(step, values, epoch=self._machine.epoch(step), eta_seconds=eta)
        self._watch_health(self._window.after(step, values))
        if self._record is not None:
            self._record.add(step, values)

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
            self._settle()
            url = storage.join(self._config.output.path, "peft", checkpoint.name_of(step))
            if self._record is not None:
                known = metrics.finite(self._shown.snapshot.values)
                adapter_files.write(self._machine, state.adapter, url, steps=step, metrics=known)
            self._complete_at = time.monotonic()
        if self._evaluation_is_due(step):
            self._evaluate(state, step)

    def _evaluation_is_due(self, step: int) -> bool:
        every, total = self._config.eval.every_steps, self._machine.total_steps
        if self._machine.validation_pairs == 0 or self._notes.get("evaluated_step") == step:
            return False
        return step == total or (every is not None and step > 0 and step % every == 0)

    def _evaluate(self, state: TrainState, step: int) -> None:
        self._settle()
        self._shown.enter(TrainerState.EVALUATING)
        values = evaluate.run(self._machine, state, max_pairs=self._config.eval.max_pairs, watch=self._watch)
        if values is None:
            self._leave(state, step)
        else:
            self._shown.note(values)
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
            health.check_finite(step, values)
            self._watch_health(self._window.evaluated(values["eval_dpo_loss"]))
            best = self._notes.get("best_eval_loss")
            is_best = best is None or values["eval_dpo_loss"] < best
            if is_best:
                self._notes |= {"best_eval_loss": values["eval_dpo_loss"], checkpoint.BEST_STEP: step}
            self._notes["evaluated_step"] = step
            if is_best:
                self._save(state, step)
        self._shown.enter(TrainerState.TRAINING)
        self._complete_at = time.monotonic()

    def _checkpoint_is_due(self, step: int) -> bool:
        # One that is still being written, to a slow store, must not hold the slice back.
        due = time.monotonic() - self._saved_at >= self._config.output.checkpoint.every_seconds
        due = due and not self._writer.busy
        if jax.process_count() == 1:
            return due
        if step < self._next_agreement:
            return False
        from jax.experimental import multihost_utils

        pause = int(min(max(AGREE_SECONDS / self._seconds_per_step, 1), AGREE_STEPS))
        agreed, pause = multihost_utils.broadcast_one_to_all(np.asarray([due, pause])).tolist()
        self._next_agreement = step + pause
        return bool(agreed)

    def _save(self, state: TrainState, step: int) -> None:
        self._settle()
        began = time.monotonic()
        if self._record is not None:  # before the checkpoint is complete: what it resumes from is in the history
            self._record.flush()
        self._writer.save(step, state, self._notes)
        self._saved, self._saved_at = (step, dict(self._notes)), time.monotonic()
        self._complete_at, self._save_seconds = self._saved_at, {"save_seconds": self._saved_at - began}
        self._shown.note(self._save_seconds)

    @property
    def _seconds_per_step(self) -> float:
        return self._rate.seconds_per_step or math.inf

    def _unsaved(self, step: int) -> bool:
        return self._saved != (step, self._notes)

    def _leave(self, state: TrainState, step: int) -> NoReturn:
        self._shown.enter(TrainerState.SAVING)
        if self._unsaved(step):
            self._save(state, step)
        self.finish_writing()
        raise errors.Preempted(f"Stopped after step {step} of {self._machine.total_steps}; the state is saved.")
