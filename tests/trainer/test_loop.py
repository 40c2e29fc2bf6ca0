"""The training loop over a real engine, whose steps are so short that the next one runs while one is read."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_dpo_api import protocol
from lora_dpo_api.config_file import TrainerConfig
from lora_dpo_trainer import (
    checkpoint,
    engine,
    errors,
    identity,
    loop,
    preemption,
    prepare,
    prepared,
    progress,
    reference_pass,
    sources,
)
from lora_dpo_trainer import trackers as tracking
from lora_dpo_trainer.step import TrainState

STEPS = 8
BROKEN = 6
"""From the third step of an attempt on, the next one is started first."""


@dataclasses.dataclass(frozen=True)
class StopAfter:
    """Asks to stop once a step is reported."""

    shown: progress.Progress
    step: int

    def reached(self) -> bool:
        return self.shown.snapshot.step >= self.step


@dataclasses.dataclass(frozen=True)
class Run:
    """One output folder, and an engine to train with."""

    config: TrainerConfig
    owner: identity.RunIdentity
    machine: engine.Engine
    notice: preemption.Notice

    def attempt(self, stop_after: int = STEPS + 1, on_saved: Callable[..., object] = lambda saved, shown: None) -> None:
        """Train from the last checkpoint, as the train phase does; may raise what the loop does."""
        output = self.config.output.path
        shown = progress.Progress(progress.Snapshot(run_id="run", total_steps=STEPS, checkpoint_seconds=120))
        state = self.machine.fresh_state()
        restored = checkpoint.restore(output, state, self.owner)
        start = loop.Position(restored.step, restored.notes) if restored else loop.Position(0, {})
        evaluated = start.notes.get("evaluated_step") == start.step
        writer = checkpoint.Writer(
            output, self.owner, keep=100, leads=True, on_saved=lambda saved: on_saved(saved, shown)
        )
        record = tracking.start(self.config, self.owner, shown, resumed_from=start.step, evaluated=evaluated)
        try:
            loop.train(
                self.config,
                self.machine,
                restored.state if restored else state,
                start,
                shown=shown,
                watch=StopAfter(shown, stop_after),
                notice=self.notice,
                writer=writer,
                record=record,
            )
        finally:
            assert not writer.busy

    def with_unknown_reference(self, split: str, keys: Sequence[int]) -> Run:
        """The run whose reference log-probabilities are not a number for some pairs."""
        known = {name: np.array(values) for name, values in self.machine.reference_logprobs.items()}
        known[split][list(keys)] = math.nan
        return dataclasses.replace(self, machine=dataclasses.replace(self.machine, reference_logprobs=known))

    def changed(self, **sections: Any) -> Run:
        """The run with other sections of its configuration."""
        return dataclasses.replace(self, config=self.config.model_copy(update=sections))

    def keys_of(self, step: int) -> list[int]:
        """The training pairs of a step, counted from 1."""
        return [int(self.machine.keys[at]) for at in self.machine.plan.keys_of_step(step - 1)]

    def lines(self, name: str = "dpo_loss") -> dict[int, float | None]:
        """Step → metric, in the history's order; fails when a step is there twice."""
        lines = [
            json.loads(line) for line in (Path(self.config.output.path) / "metrics.jsonl").read_text().splitlines()
        ]
        found = [(line["step"], line[name]) for line in lines if name in line]
        assert len(dict(found)) == len(found)
        return dict(found)

    def checkpoints(self) -> list[int]:
        """Steps of the complete ones; fails when one holds what is not finite."""
        steps = []
        for folder in sorted((Path(self.config.output.path) / "checkpoints").glob("*/manifest.json")):
            steps.append(json.loads(folder.read_text())["step"])
            (file,) = folder.parent.glob("*.safetensors")
            arrays = load_file(file)
            assert all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")
        return steps


@pytest.fixture(scope="module")
def engines() -> dict[str, engine.Engine]:
    """One engine for all tests: its programs take long to compile."""
    return {}


@pytest.fixture
def run(
    make_config: Callable[..., TrainerConfig],
    engines: dict[str, engine.Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    notice: preemption.Notice,
    preference_file: Path,
) -> Run:
    """A prepared run that saves whenever it can and evaluates after every fourth step."""
    monkeypatch.setattr(loop, "RUN_AHEAD_SECONDS", math.inf)  # however slow this machine is
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(preference_file.read_text().splitlines(keepends=True)[:32]))
    config = make_config(
        data={"components": {"prefs": {"source": {"type": "url", "train_urls": [str(rows)]}}}},
        trainer={"train_batch_size": 4, "num_train_steps": STEPS, "mp": "p=f32,c=f32"},
        optimizer={"learning_rate": 1e-3, "warmup": 0},
        eval={"every_steps": 4, "max_pairs": 4},
        output={"path": str(tmp_path / "out"), "checkpoint": {"every_seconds": 1e-9}},
        cache={"path": str(tmp_path / "cache")},
    )
    prepare.run(config)
    owner = identity.read(config.output.path)
    assert owner is not None
    if not engines:
        machine = engine.build(config, prepared.load(config.cache_path, owner.data), owner)
        known = reference_pass.run(machine, owner.base, watch=preemption.FlagWatch(notice), leads=True)
        engines["tiny"] = dataclasses.replace(machine, reference_logprobs=known)
    return Run(config, owner, dataclasses.replace(engines["tiny"], config=config), notice)


@pytest.fixture(scope="module")
def notice() -> Iterator[preemption.Notice]:
    """Hears no signal here."""
    before = signal.getsignal(signal.SIGTERM)
    yield preemption.Notice(lambda error: None)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, before)


def test_a_step_that_is_not_finite_ends_the_run_though_the_next_one_runs(run: Run) -> None:
    before = {key for step in range(1, BROKEN) for key in run.keys_of(step)}
    broken = run.with_unknown_reference(sources.TRAIN, [key for key in run.keys_of(BROKEN) if key not in before])
    broken = broken.changed(eval=run.config.eval.model_copy(update={"every_steps": None}))
    started = list[int]()

    def counted(state: TrainState, *rest: Any) -> Any:
        started.append(len(started) + 1)
        return run.machine.train_step(state, *rest)

    broken = dataclasses.replace(broken, machine=dataclasses.replace(broken.machine, train_step=counted))

    def until_it_is_read(saved: protocol.Checkpoint, shown: progress.Progress) -> None:
        give_up = time.monotonic() + 300
        while shown.snapshot.step < BROKEN and time.monotonic() < give_up:
            time.sleep(0.01)

    with pytest.raises(errors.NonFinite, match=rf"not finite at step {BROKEN}\."):
        broken.attempt(on_saved=until_it_is_read)
    assert started[-1] == BROKEN + 1
    assert list(broken.lines()) == list(range(1, BROKEN + 1))
    assert broken.lines()[BROKEN] is None
    assert broken.checkpoints() == [1]


def test_no_checkpoint_holds_what_is_not_finite(run: Run) -> None:
    broken = run.with_unknown_reference(sources.TRAIN, run.keys_of(3))
    with pytest.raises(errors.NonFinite, match=r"not finite at step 3\."):
        broken.attempt()
    assert broken.checkpoints() in ([1], [1, 2])  # the second is due, unless the first is still being written


def test_an_evaluation_that_is_not_finite_ends_the_run(run: Run) -> None:
    broken = run.with_unknown_reference(sources.VALIDATION, [0])
    with pytest.raises(errors.NonFinite, match=r"eval_dpo_loss not finite at step 4\.") as raised:
        broken.attempt()
    assert raised.value.exit_code == protocol.ExitCode.DIVERGED
    assert list(broken.lines()) == [1, 2, 3, 4]
    assert broken.lines("eval_dpo_loss") == {4: None}
    assert max(broken.checkpoints()) <= 4


def test_every_step_is_in_the_history_once_however_often_a_run_is_stopped(run: Run) -> None:
    undisturbed = run.changed(output=run.config.output.model_copy(update={"path": f"{run.config.output.path}-2"}))
    undisturbed.attempt()
    for stop_after in (1, 4, 6):
        with pytest.raises(errors.Preempted):
            run.attempt(stop_after)
    run.attempt()
    assert list(run.lines()) == list(range(1, STEPS + 1))
    assert run.lines() == undisturbed.lines()
    assert run.lines("eval_dpo_loss") == undisturbed.lines("eval_dpo_loss")
    assert list(run.lines("eval_dpo_loss")) == [4, STEPS]
