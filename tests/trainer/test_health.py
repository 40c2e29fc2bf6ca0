from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_dpo_api.config_file import LoraConfig, OptimizerConfig, TrainerConfig
from lora_dpo_trainer import batch, errors, health, lora, metrics, model, packing, parity, step
from lora_dpo_trainer.health import LN2, Window
from lora_dpo_trainer.objective import Objective
from lora_dpo_trainer.optimizer import Optimizer
from lora_dpo_trainer.pairs import TokenizedPair

type MakeConfig = Callable[..., TrainerConfig]

CASE = parity.Case(Path(__file__).parents[1] / "data" / "parity" / "llama-r8")


PAIRS = CASE.recorded_pairs()
SHAPE = packing.BatchPlan.make(packing.PairLengths.of(PAIRS), 8, shuffle=False, max_shapes=1).shapes[-1]
WARMUP = 1_000_000_000


@functools.cache
def machinery() -> tuple[step.TrainStep, step.TrainState]:
    """The tiny model's train step, compiled once, and its first state.

    In an endless warm-up the learning rate is the step's number / WARMUP, so that the state's step says it.
    """
    base = model.load_base(str(CASE.folder / "base"))
    settings = LoraConfig(r=8)
    plan = lora.resolve(base.linears, settings)
    optimizer = Optimizer(OptimizerConfig(learning_rate=1.0, warmup=WARMUP), WARMUP)
    state = step.init_state(lora.init(plan, settings, jax.random.key(0)), optimizer, seed=0)
    return step.make_train_step(base, plan, Objective(), optimizer), state


def train(
    batches: Sequence[Sequence[TokenizedPair]], learning_rate: float, steps: int, window: Window, *, warmup: int = 1
) -> tuple[Window, list[str]]:
    """A real run over batches of 8 pairs, again and again; returns the last window and all advice, in order."""
    program, first = machinery()
    state = jax.tree.map(lambda leaf: leaf.copy(), first)
    window = dataclasses.replace(window, peak_learning_rate=learning_rate)
    codes = dict[str, None]()
    for number in range(steps):
        rate = learning_rate * min(1.0, (number + 1) / warmup)
        state = state._replace(step=jnp.int32(rate * WARMUP))
        state, found = program(state, batch.build(batches[number % len(batches)], SHAPE))
        values = {name: float(value) for name, value in jax.device_get(found).items()}
        values |= metrics.derived(values, beta=0.1)
        window = window.after(number + 1, values)
        codes |= dict.fromkeys(advice.code for advice in health.advice(window))
    return window, list(codes)


def flipped(pair: TokenizedPair) -> TokenizedPair:
    """The pair with the contrary label."""
    return TokenizedPair(pair.key, pair.rejected_ids, pair.rejected_mask, pair.chosen_ids, pair.chosen_mask)


@pytest.mark.parametrize("loss", [LN2, LN2 + 4e-4])
def test_a_fresh_run_starts_at_ln_2(make_config: MakeConfig, loss: float) -> None:
    health.check_first_loss(make_config(), loss, "float32")


@pytest.mark.parametrize("loss", [12.0, LN2 + 1e-3, math.nan])
def test_any_other_start_is_a_broken_identity(make_config: MakeConfig, loss: float) -> None:
    with pytest.raises(errors.BrokenIdentity, match=r"should be ln 2 = 0\.6931"):
        health.check_first_loss(make_config(), loss, "float32")


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"type": "ipo"}},
        {"loss": {"sft_weight": 0.5}},
        {"adapter": {"init_from": "gs://bucket/adapter"}},
        {"lora": {"r": 8, "dropout": 0.1}},
    ],
)
def test_losses_that_start_elsewhere_are_not_judged(make_config: MakeConfig, changes: dict[str, Any]) -> None:
    health.check_first_loss(make_config(**changes), 5.0, "float32")


@pytest.mark.parametrize("name", ["dpo_loss", "grad_norm"])
def test_what_is_not_finite_ends_the_run_with_its_step(name: str) -> None:
    with pytest.raises(errors.NonFinite, match=f"{name} not finite at step 5"):
        health.check_finite(5, {"dpo_loss": 0.5, "grad_norm": 1.0} | {name: math.inf})


CONTRARY = [PAIRS[:8], [flipped(pair) for pair in PAIRS[:8]]]


def test_a_healthy_run_hears_nothing() -> None:
    window, codes = train([PAIRS[:8], PAIRS[8:16]], 1e-3, 24, Window(24))
    assert window.last("dpo_loss", 1)[0] < 0.4
    assert codes == []


def test_contrary_labels_keep_a_run_in_the_bad_basin() -> None:
    window, codes = train(CONTRARY, 2e-4, 11, Window(1000))
    assert codes == ["BadBasin"]
    assert min(window.last("grad_norm")) > 0.1
    window, codes = train(CONTRARY[:1], 2e-4, 11, Window(11))  # the same without the contradiction
    assert codes == []
    assert window.last("dpo_loss", 1)[0] < LN2 - health.BASIN_WIDTH


@pytest.mark.parametrize("name", ["llama-r8", "llama-lm-head-rslora"])
def test_the_runs_recorded_with_trl_hear_nothing(name: str) -> None:
    expected = parity.Case(CASE.folder.with_name(name)).expected
    window = Window(len(expected["steps"]), peak_learning_rate=expected["settings"]["learning_rate"])
    for number, values in enumerate(expected["steps"], start=1):
        window = window.after(number, values | {"learning_rate": expected["settings"]["learning_rate"]})
        assert health.advice(window) == ()


def test_a_warm_up_over_those_steps_is_no_basin() -> None:
    assert train(CONTRARY, 2e-4, 11, Window(1000), warmup=10)[1] == []
    assert train(CONTRARY, 2e-4, 11, Window(1000), warmup=100)[1] == []


def test_a_tiny_learning_rate_is_no_basin() -> None:
    assert train(CONTRARY, 1e-6, 11, Window(1000))[1] == []


def test_a_learning_rate_of_nothing_leaves_margins_flat() -> None:
    assert train([PAIRS[:8], PAIRS[8:16]], 1e-9, 100, Window(1000))[1] == ["FlatMargins"]


def test_a_few_pairs_saturate_early_and_are_learned_by_heart() -> None:
    _, codes = train([PAIRS[:8]], 2e-3, 40, Window(1000))
    assert codes == ["EarlySaturation", "LowLoss"]


def test_late_saturation_is_learning() -> None:
    _, codes = train([PAIRS[:8]], 2e-3, 12, Window(12))
    assert codes == []


@pytest.mark.parametrize(("evaluations", "warned"), [((), False), ((0.5, 0.4), False), ((0.4, 0.6), True)])
def test_a_held_out_loss_judges_a_low_training_loss(evaluations: tuple[float, ...], warned: bool) -> None:
    window, _ = train([PAIRS[:8]], 2e-3, 40, Window(40, held_out=True))
    for loss in evaluations:
        window = window.evaluated(loss)
    assert ("LowLoss" in [advice.code for advice in health.advice(window)]) is warned


def test_margins_that_jump_back_with_a_loss_that_spikes_diverge() -> None:
    learned, turned = CONTRARY
    _, codes = train([learned] * 20 + [turned], 5e-3, 21, Window(21))
    assert "MarginDivergence" in codes


def rambling(pair: TokenizedPair, token: int = 5) -> TokenizedPair:
    """A pair whose answers repeat one word, the rejected one half as often again."""
    prompt = int(np.flatnonzero(pair.rejected_mask)[0])
    rejected = len(pair.rejected_ids)
    chosen = prompt + max(1, (rejected - prompt) * 2 // 3)
    ids = np.concatenate([pair.rejected_ids[:prompt], np.full(rejected - prompt, token, np.int32)])
    mask = np.arange(rejected) >= prompt
    return TokenizedPair(pair.key, ids[:chosen], mask[:chosen], ids, mask)


def test_an_answer_that_falls_with_the_one_it_is_the_beginning_of_collapses() -> None:
    # What makes the rambling unlikely makes its beginning, the better answer, unlikely too.
    window, codes = train([[rambling(pair) for pair in PAIRS[:8]]], 5e-3, 40, Window(1000))
    assert "LogProbCollapse" in codes
    assert window.last("dpo_rejected_reward", 1)[0] < window.last("dpo_chosen_reward", 1)[0] < -1
    assert window.last("dpo_loss", 1)[0] < LN2  # all the while the loss looks well


def test_one_side_falling_alone_is_no_collapse() -> None:
    def falling(chosen: float, rejected: float) -> list[str]:
        window = Window(1000)
        for number in range(200, 220):
            values = {"dpo_chosen_reward": chosen * number / 100, "dpo_rejected_reward": rejected * number / 100}
            window = window.after(number, values | {"dpo_loss": 0.5, "reward_margin": chosen - rejected})
        return [advice.code for advice in health.advice(window)]

    assert falling(-1.0, -2.0) == ["LogProbCollapse"]
    assert falling(0.5, -2.0) == []
    assert falling(-0.1, -2.0) == []


def test_other_losses_are_not_measured_against_ln_2(make_config: MakeConfig) -> None:
    window = Window.of(make_config(loss={"type": "ipo"}), 1000, held_out=False)
    for number in range(1, 30):
        window = window.after(number, {"dpo_loss": 25.0 if number < 29 else 90.0, "reward_margin": float(number)})
    assert health.advice(window) == ()
